"""A stage after training: steps with a progress bar, a checkpoint after each, exact resume.

Posteriors that are fitted after the potential is trained (SWAG, IVON, Laplace) are stages. A step
is whatever the stage makes of it, an epoch or a batch; an interruption loses the unfinished one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from tqdm.auto import tqdm

from ase_bayesmlip.training.distributed import rank
from ase_bayesmlip.training.log import append_metrics, truncate_metrics
from ase_bayesmlip.training.state import differences, read_checkpoint, write_checkpoint

STAGE_VERSION = 1


class Stage(Protocol):
    """What `run_stage` runs.

    Attributes
    ----------
    name : str
        Names the files: ``<name>.pt`` and ``<name>.csv``.
    n_steps : int
    identity : dict
        What must not change between a stage and its continuation.
    """

    name: str
    n_steps: int
    identity: dict[str, Any]

    def step(self, index: int) -> dict[str, float]:
        """Do step `index` (from 0) and return numbers to log."""

    def state(self) -> dict[str, Any]:
        """Tensors and plain data that `restore` goes on from."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""


def run_stage(
    stage: Stage, folder: Path, resume: bool, progress: bool = True, position: int = 0
) -> None:
    """Run a stage to its end in the folder of a member.

    Parameters
    ----------
    resume : bool
        Continue from ``<name>.pt``, if there is one.
    position : int
        Line of the progress bar.

    Raises
    ------
    ValueError
        If the checkpoint belongs to other settings.
    """
    path, log = folder / f"{stage.name}.pt", folder / f"{stage.name}.csv"
    done = 0
    if resume and path.exists():
        content = _read(path)
        if content["identity"] != stage.identity:
            changed = "; ".join(differences(content["identity"], stage.identity))
            raise ValueError(
                f"{path} belongs to a run with other settings ({changed}); restore them, or train "
                "into another folder"
            )
        done = content["done"]
        stage.restore(content["state"])
    writes = rank() == 0
    if writes:
        folder.mkdir(parents=True, exist_ok=True)
        truncate_metrics(log, done)
    bar = tqdm(
        total=stage.n_steps,
        initial=done,
        desc=f"{folder.name} {stage.name}",
        disable=not progress,
        position=position,
    )
    with bar:
        for index in range(done, stage.n_steps):
            metrics = stage.step(index)
            if writes:
                # In this order: a row without its checkpoint is dropped when the step is repeated.
                append_metrics(log, {"epoch": index + 1, **metrics})
                _save(stage, index + 1, path)
            bar.update()


def _save(stage: Stage, done: int, path: Path) -> None:
    content = {
        "version": STAGE_VERSION,
        "done": done,
        "finished": done == stage.n_steps,
        "identity": stage.identity,
        "state": stage.state(),
    }
    write_checkpoint(path, content)


def _read(path: Path) -> dict[str, Any]:
    return read_checkpoint(path, STAGE_VERSION, ("done", "finished", "identity", "state"))


def read_stage(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Identity and state at the end of a stage, on the CPU.

    Raises
    ------
    FileNotFoundError
    ValueError
        If the stage has not come to its end.
    """
    content = _read(path)
    if not content["finished"]:
        raise ValueError(f"{path} stopped after step {content['done']}; finish it with --resume")
    return content["identity"], content["state"]


def digest(weights: dict[str, Tensor]) -> str:
    """Checksum of weights, to recognise the start of a stage."""
    total = hashlib.sha256()
    for name in sorted(weights):
        total.update(name.encode())
        total.update(weights[name].detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()
