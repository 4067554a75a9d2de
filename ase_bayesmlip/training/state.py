"""Checkpoints: all that a training run needs to go on as if it had never stopped.

A checkpoint holds tensors and plain data only, and is read with ``weights_only=True``. Batches and
learning rates are functions of the epoch and step, so no state of a random generator is needed.
"""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import torch

from ase_bayesmlip.config import Config, to_dict
from ase_bayesmlip.files import write_whole

VERSION = 1

# Sections whose epochs may be lowered: the schedule is fitted to them.
EPOCHS = ("training", "posterior")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a stage leaves after each step.

    Attributes
    ----------
    done : int
        Steps.
    finished : bool
    identity : dict
        What must not change between a stage and its continuation.
    state : dict
        All that changes on the way. Of a training: ``model``, ``optimizer`` and the fields of
        `trainer.TrainingState`.
    schedule : list
        Fields of a `Schedule`; empty in files of before.
    seconds : list of float
        Time of each step.
    """

    done: int
    finished: bool
    identity: dict[str, Any]
    state: dict[str, Any]
    schedule: list[Any] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write the file; an interruption or a full disk leaves the old one."""
        buffer = io.BytesIO()
        torch.save({"version": VERSION, **vars(self)}, buffer)
        write_whole(path, buffer.getvalue())

    @classmethod
    def read(cls, path: Path, device: torch.device | str = "cpu") -> Checkpoint:
        """Read what `write` wrote.

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
        if not isinstance(content, dict) or content.get("version") != VERSION:
            raise ValueError(f"{path} is not a checkpoint of version {VERSION}; {repair}")
        if "epoch" in content:  # a training of before, which had all in one
            content |= {"done": content["epoch"], "state": dict(content)}
        missing = [
            name for name in ("done", "finished", "identity", "state") if name not in content
        ]
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing)}; {repair}")
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: content[name] for name in names if name in content})


def run_identity(config: Config) -> dict[str, Any]:
    """What must not change between a run and its continuation.

    Another patience or limit of time continues a run; all else would make it a different one. Files
    may move: their content is checked by the run.
    """
    identity = to_dict(config)
    for key in ("patience", "time_limit"):
        del identity["training"][key]
    for key in ("train", "valid", "calibration", "reference_energies"):
        identity["data"].pop(key)
    keys = identity["data"]["keys"]
    # As runs of before have it, which knew no virials and took the default for given.
    keys["stress"] = config.data.keys.stress_or_default
    if keys["virial"] is None:
        del keys["virial"]
    for key in ("anchor", "repulsion"):  # as runs of before, which had neither
        if not identity["model"][key]:
            del identity["model"][key]
    identity["posterior"].pop("start_from", None)  # its weights are checked, too
    identity["posterior"].pop("samples", None)
    return identity


def check_same(where: Path, stored: dict[str, Any], asked: dict[str, Any]) -> None:
    """Refuse to continue with other settings; fewer epochs are none.

    Raises
    ------
    ValueError
    """
    changed = differences(with_epochs_of(stored, asked), asked)
    if changed:
        raise ValueError(
            f"{where} belongs to a run with other settings ({'; '.join(changed)}); restore them, "
            "or train into another folder"
        )


def with_epochs_of(stored: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """The stored settings with the epochs that are asked for, where those are not more."""
    stored = dict(stored)
    for section in EPOCHS:
        before, now = (item[section].get("epochs") for item in (stored, asked))
        if before is not None and now is not None and now < before:
            stored[section] = {**stored[section], "epochs": now}
    return stored


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
