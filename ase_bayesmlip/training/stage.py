"""A fit that runs step by step: the loop, its bar, its log, and a checkpoint after each step.

The training of a potential is one, and so is what may follow it (SWAG, IVON, Laplace). A step is
whatever the stage makes of it, an epoch or a batch; an interruption loses the unfinished one.
"""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ase_bayesmlip.training.distributed import of_first_rank, rank
from ase_bayesmlip.training.log import append_metrics, truncate_metrics
from ase_bayesmlip.training.schedule import Schedule, planned_epochs
from ase_bayesmlip.training.state import Checkpoint, check_same

# What the bar shows of a row.
FORCES = "valid_forces_rmse_meV_per_A"


class Stage(ABC):
    """What is fitted in steps; subclasses give `step`, `state` and `restore`.

    Parameters
    ----------
    n_steps : int
        Steps as configured; fewer are taken where time is limited.
    identity : dict
        What must not change between a stage and its continuation.
    device : torch.device
        Where the ranks of torchrun exchange numbers.

    Attributes
    ----------
    name, log : str
        Stem of the checkpoint's file, and name of the table.
    section : str
        Part of the configuration that the epochs and the learning rate are in.
    least : int
        Steps without which no time ends the stage.
    limit : float or None, s
        Time for all steps.
    """

    name = ""
    log = ""
    section = ""
    least = 1
    limit: float | None = None

    def __init__(self, n_steps: int, identity: dict[str, Any], device: torch.device) -> None:
        self.n_steps, self.identity, self.device = n_steps, identity, device
        self.schedule = Schedule(n_steps)
        self.done, self.finished = 0, False
        self.seconds: list[float] = []
        self.folder = Path()
        self._since = 0.0

    @abstractmethod
    def step(self, index: int) -> dict[str, Any] | None:
        """Do step `index` (from 0) and return a row of the log, if there is one."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Tensors and plain data that `restore` goes on from."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""

    @property
    def title(self) -> str:
        """Folder and name, for people."""
        return f"{self.folder.name} {self.name}".removesuffix(" checkpoint")

    @property
    def is_last(self) -> bool:
        """Whether the step that is being taken is the last one planned."""
        return self.done + 1 == self.schedule.epochs

    def spent(self) -> float:
        """Seconds of all steps, with what has passed of this one."""
        return sum(self.seconds) + time.monotonic() - self._since

    def open(self, folder: Path, resume: bool) -> None:
        """Begin in the folder of a member, or go on from the checkpoint there.

        Raises
        ------
        ValueError
            If the checkpoint belongs to other settings, or has done more steps than are asked for.
        """
        self.folder = folder
        path, log = folder / f"{self.name}.pt", folder / self.log
        if resume and path.exists():
            self._restore(path)
        if rank() > 0:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if self.done > 0:
            truncate_metrics(log, self.done)
        else:
            log.unlink(missing_ok=True)

    def _restore(self, path: Path) -> None:
        stored = Checkpoint.read(path, self.device)
        check_same(path, stored.identity, self.identity)
        refuse_done(path, stored, self.section, self.n_steps)
        before = stored.identity[self.section]["epochs"] if self.section else self.n_steps
        self.schedule = Schedule(*stored.schedule) if stored.schedule else Schedule(before)
        self.done, self.finished, self.seconds = stored.done, stored.finished, stored.seconds
        self.restore(stored.state)

    def run(self, progress: bool = True, position: int = 0, until: int | None = None) -> None:
        """Take the steps that are left, or those `until` a number of them is done.

        Parameters
        ----------
        position : int
            Line of the progress bar.
        """
        bar = tqdm(
            total=self.schedule.epochs,
            initial=self.done,
            desc=self.title,
            unit="epoch" if self.section else "batch",
            disable=not progress,
            position=position,
        )
        with bar:
            self._since = time.monotonic()
            while not self.finished and self.done != until:
                self._plan()
                bar.total = self.schedule.epochs
                last = self.is_last
                row = self.step(self.done)
                self.done += 1
                self.finished |= last
                now = time.monotonic()
                self.seconds.append(now - self._since)
                self._since = now
                if rank() == 0:
                    # In this order: a row without its checkpoint is dropped when it is repeated.
                    if row is not None:
                        append_metrics(self.folder / self.log, {"epoch": self.done, **row})
                    self._save()
                if row is not None and FORCES in row:
                    bar.set_postfix(F=f"{row[FORCES]:.1f} meV/Å")
                bar.update()

    def _plan(self) -> None:
        """Fit the schedule to the steps asked for, and to the time; rank 0 decides."""
        n_steps = self.n_steps
        if self.limit is not None and self.seconds:
            n_steps = planned_epochs(n_steps, self.done, self.limit, self.seconds)
            n_steps = min(max(n_steps, self.least), self.n_steps)
            n_steps = int(of_first_rank({"epochs": float(n_steps)}, self.device)["epochs"])
        self.schedule = self.schedule.replanned(n_steps, self.done)

    def _save(self) -> None:
        Checkpoint(
            self.done,
            self.finished,
            self.identity,
            self.state(),
            list(self.schedule),
            self.seconds,
        ).write(self.folder / f"{self.name}.pt")


def refuse_done(path: Path, stored: Checkpoint, section: str, epochs: int) -> None:
    """Raise `ValueError` for an unfinished stage that is to end before what it has done."""
    if epochs <= stored.done and not stored.finished:
        raise ValueError(
            f"{path} has done {stored.done} epochs already; {section}.epochs is {epochs}: ask for "
            "more, or serve the run as it is with --unfinished"
        )


def digest(weights: dict[str, Tensor]) -> str:
    """Checksum of weights, to recognise the start of a stage."""
    total = hashlib.sha256()
    for name in sorted(weights):
        total.update(name.encode())
        total.update(weights[name].detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()
