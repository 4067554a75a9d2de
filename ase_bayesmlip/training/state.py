"""Checkpoints: all that a training run needs to go on as if it had never stopped.

A checkpoint holds tensors and plain data only, and is read with ``weights_only=True``. Batches and
learning rates are functions of the epoch and step, so no state of a random generator is needed.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ase_bayesmlip.config import Config, to_dict
from ase_bayesmlip.files import write_whole

CHECKPOINT_VERSION = 1


@dataclasses.dataclass
class TrainingState:
    """Everything that changes while training.

    Attributes
    ----------
    epoch, step : int
        Finished epochs and optimiser steps.
    model, average, best : dict of str to Tensor
        Weights, their moving average, and the average with the lowest validation loss.
    optimizer : dict
        State of the optimiser.
    best_loss : float
    n_stale : int
        Evaluations since `best_loss` improved.
    phase : str
        Loss of the current phase; a change resets `best`.
    phase_start : int
        Step at which it began.
    finished : bool
    identity : dict
        What must not change between a run and its continuation.
    """

    epoch: int
    step: int
    model: dict[str, Tensor]
    average: dict[str, Tensor]
    best: dict[str, Tensor]
    optimizer: dict[str, Any]
    best_loss: float
    n_stale: int
    phase: str
    phase_start: int
    finished: bool
    identity: dict[str, Any]


def save_state(state: TrainingState, path: Path) -> None:
    """Write a checkpoint; an interruption leaves either the old file or the new one."""
    content = {
        field.name: getattr(state, field.name) for field in dataclasses.fields(TrainingState)
    }
    write_checkpoint(path, {"version": CHECKPOINT_VERSION, **content})


def load_state(path: Path, device: torch.device | str = "cpu") -> TrainingState:
    """Read a checkpoint.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_checkpoint`.
    """
    names = [field.name for field in dataclasses.fields(TrainingState)]
    content = read_checkpoint(path, CHECKPOINT_VERSION, names, device)
    return TrainingState(**{name: content[name] for name in names})


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain data; an interruption or a full disk leaves the old file."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(path, buffer.getvalue())


def read_checkpoint(
    path: Path, version: int, names: Sequence[str], device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Read what `write_checkpoint` wrote, which holds the version and at least these names.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or if it is damaged or of another version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: train the run with --resume to its end")
    repair = f"delete the folder {path.parent} and train it again with --resume"
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is not a readable checkpoint ({error}); {repair}") from error
    if not isinstance(content, dict) or content.get("version") != version:
        raise ValueError(f"{path} is not a checkpoint of version {version}; {repair}")
    missing = [name for name in names if name not in content]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; {repair}")
    return content


def run_identity(config: Config) -> dict[str, Any]:
    """What must not change between a run and its continuation.

    Another patience continues a run; all else would make it a different one. Files may move: their
    content is checked by the run.
    """
    identity = to_dict(config)
    identity["training"].pop("patience")
    for key in ("train", "valid", "calibration", "reference_energies"):
        identity["data"].pop(key)
    keys = identity["data"]["keys"]
    # As runs of before have it, which knew no virials and took the default for given.
    keys["stress"] = config.data.keys.stress_or_default
    if keys["virial"] is None:
        del keys["virial"]
    identity["posterior"].pop("start_from", None)  # its weights are checked, too
    identity["posterior"].pop("samples", None)
    return identity


def differences(old: dict[str, Any], new: dict[str, Any], path: str = "") -> list[str]:
    """Settings that differ, as 'path: old -> new'."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{path}{key}.")
        elif a != b:
            found.append(f"{path}{key}: {a} -> {b}")
    return found
