"""The folder of a run: what `fit` writes first and `load` reads.

``config.yaml`` (resolved), ``run.json`` (statistics and checksums of the data) and one folder per
member, each with its own checkpoints.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from ase.data import chemical_symbols

from ase_bayesmlip.config import Config, completed, to_dict
from ase_bayesmlip.config.strict import from_dict
from ase_bayesmlip.files import write_whole
from ase_bayesmlip.nn.build import DataStatistics
from ase_bayesmlip.training.announcement import announce
from ase_bayesmlip.training.data import TrainingData
from ase_bayesmlip.training.distributed import barrier, rank
from ase_bayesmlip.training.stage import refuse_done
from ase_bayesmlip.training.state import (
    Checkpoint,
    check_same,
    differences,
    run_identity,
    with_epochs_of,
)
from ase_bayesmlip.training.trainer import Trainer

CONFIG_FILE, RECORD_FILE = "config.yaml", "run.json"


def member_name(index: int) -> str:
    """Name of a member's folder."""
    return f"member-{index:02d}"


def prepare_run(config: Config, data: TrainingData, folder: Path, resume: bool) -> None:
    """Say what is trained; write ``config.yaml`` and ``run.json``, or check them to resume."""
    announce(config, data)
    record = data.record()
    if any(folder.glob("member-*/*.pt")):
        if not resume:
            raise FileExistsError(
                f"{folder} already holds a run; continue it with --resume, or train elsewhere"
            )
        # Without these two files the checkpoints themselves say what they belong to.
        if (folder / CONFIG_FILE).exists() and (folder / RECORD_FILE).exists():
            _check_same_run(config, record, folder)
    barrier()  # the others must not read what rank 0 is writing
    if rank() > 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    write_whole(folder / CONFIG_FILE, text.encode())
    write_whole(folder / RECORD_FILE, json.dumps(record, indent=1).encode())


def _check_same_run(config: Config, record: dict[str, Any], folder: Path) -> None:
    stored, old = read_run(folder)
    check_same(folder, run_identity(stored), run_identity(config))
    for name in ("train", "valid"):
        if old[f"{name}_sha256"] != record[f"{name}_sha256"]:
            raise ValueError(f"{folder}: the {name} frames have changed since the run began")
    if DataStatistics(**old["statistics"]) != DataStatistics(**record["statistics"]):
        raise ValueError(f"{folder}: the reference energies have changed since the run began")
    # Before config.yaml says so: it could not go back.
    for path, section, epochs in _stages_of_epochs(config, folder):
        refuse_done(path, Checkpoint.read(path), section, epochs)


def _stages_of_epochs(config: Config, folder: Path) -> Iterator[tuple[Path, str, int]]:
    """Checkpoints of stages that count epochs, the section of each, and its epochs as asked for."""
    for path in sorted(folder.glob("member-*/*.pt")):
        section = "training" if path.stem == Trainer.name else "posterior"
        epochs = getattr(getattr(config, section), "epochs", None)
        if epochs is not None:
            yield path, section, epochs


def cut_short(config: Config, folder: Path) -> list[str]:
    """What a limit of time ended early: '2 of 50 training.epochs'; the fewest of each section."""
    fewest: dict[str, tuple[int, int]] = {}
    for path, section, epochs in _stages_of_epochs(config, folder):
        schedule = Checkpoint.read(path).schedule  # empty in files of before
        planned = schedule[0] if schedule else epochs
        if planned < epochs:
            fewest[section] = min(fewest.get(section, (planned, epochs)), (planned, epochs))
    return [f"{n} of {epochs} {section}.epochs" for section, (n, epochs) in fewest.items()]


def read_run(folder: Path) -> tuple[Config, dict[str, Any]]:
    """Configuration and record of a run.

    Raises
    ------
    FileNotFoundError
        If the folder is no run, or lacks a file.
    ValueError
        If a file is damaged; the message names it, and the repair.
    """
    folder = Path(folder)
    for name in (CONFIG_FILE, RECORD_FILE):
        if not (folder / name).is_file():
            held = any(folder.glob("member-*/*.pt"))
            raise FileNotFoundError(
                f"{folder} has lost its {name}; {_repair(folder)}"
                if held
                else f"{folder} is no run written by `bayesmlip train`"
            )
    path = folder / CONFIG_FILE
    try:
        config = from_dict(Config, completed(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is damaged: {error}; {_repair(folder, path)}") from error
    path = folder / RECORD_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        _check_record(record)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}; {_repair(folder, path)}") from error
    return config, record


def _repair(folder: Path, path: Path | None = None) -> str:
    first = f"delete {path.name} and " if path is not None else ""
    return (
        f"{first}run `bayesmlip train CONFIG --out {folder} --resume` with the configuration of "
        "the run, which writes it again"
    )


def _check_record(record: Any) -> None:
    """Refuse what `TrainingData.record` does not write."""
    if not isinstance(record, dict):
        raise ValueError(f"it holds a {type(record).__name__}, not a mapping")
    kinds = {"statistics": dict, "probe": dict, "train_sha256": str, "valid_sha256": str}
    for name, kind in kinds.items():
        if not isinstance(record.get(name), kind):
            raise ValueError(f"{name} is {record.get(name)!r:.60}")
    statistics = from_dict(DataStatistics, record["statistics"], "statistics")
    if len(statistics.reference_energies) != len(statistics.atomic_numbers):
        raise ValueError("statistics.reference_energies has not a number for each element")
    if not all(0 < z < len(chemical_symbols) for z in statistics.atomic_numbers):
        raise ValueError(f"statistics.atomic_numbers are {statistics.atomic_numbers}")
    scales = (statistics.avg_n_neighbors, statistics.force_rms)
    energies = (*statistics.reference_energies, *statistics.mean_energies)
    if not (all(0 < x < math.inf for x in scales) and all(map(math.isfinite, energies))):
        raise ValueError("statistics hold a number that is not finite, or a scale that is none")
    missing = {"numbers", "positions", "cell", "pbc"} - record["probe"].keys()
    if missing:
        raise ValueError(f"probe lacks {', '.join(sorted(missing))}")
    _check_probe(record["probe"])


def _check_probe(probe: dict[str, Any]) -> None:
    shapes = {"positions": (len(probe["numbers"]), 3), "cell": (3, 3), "pbc": (3,)}
    for name, shape in shapes.items():
        if np.shape(probe[name]) != shape:
            raise ValueError(f"probe.{name} has the shape {np.shape(probe[name])}, not {shape}")


class Left(NamedTuple):
    """What a stage left in the folder of a run.

    Attributes
    ----------
    config : Config
    record : dict
    states : list of dict
        Of each member.
    unfinished : tuple of str
        What is missing.
    """

    config: Config
    record: dict[str, Any]
    states: list[dict[str, Any]]
    unfinished: tuple[str, ...]


def read_members(
    folder: Path, name: str, unfinished: bool, is_usable: Callable[[dict[str, Any]], bool]
) -> Left:
    """Read what the stage of a name left of every member.

    Parameters
    ----------
    unfinished : bool
        Take members that have not come to their end, if their state `is_usable`.

    Raises
    ------
    FileNotFoundError, ValueError
        If the folder is no run, or one that has not come to its end, or not far enough.
    """
    config, record = read_run(folder)
    states, notes = [], []
    for index in range(getattr(config.posterior, "members", 1)):
        path = Path(folder) / member_name(index) / f"{name}.pt"
        if unfinished and not path.is_file():
            notes.append(f"{member_name(index)} has not begun")
            continue
        found = Checkpoint.read(path)
        check_identity(path, found.identity, config, index, record["n_train"])
        if not found.finished:
            steps = f"step {found.done}" + (f" of {found.schedule[0]}" if found.schedule else "")
            if not unfinished:
                raise ValueError(
                    f"{path} stopped after {steps}; finish it with --resume, or serve it as it is "
                    "with `bayesmlip serve --unfinished`"
                )
            early = not is_usable(found.state)
            notes.append(f"{member_name(index)} {'is left out ' * early}after {steps}")
            if early:
                continue
        states.append(found.state)
    if len(states) < (2 if config.posterior.kind == "ensemble" else 1):
        raise ValueError(f"{folder} cannot be served yet ({'; '.join(notes)}): go on with --resume")
    return Left(config, record, states, tuple(notes))


def check_identity(
    path: Path, identity: dict[str, Any], config: Config, index: int, n_train: int
) -> None:
    """Refuse a checkpoint that another training has written than the one of the configuration.

    Parameters
    ----------
    path : Path
        Of the checkpoint of member number `index`.
    identity : dict
        What it says of its training. Settings that did not exist then are not compared.
    n_train : int
        Training frames of the run.

    Raises
    ------
    ValueError
    """
    expected = run_identity(config) | {"shuffling_seed": config.seeds.shuffling + index}
    if folds := getattr(config.posterior, "folds", None):
        expected["n_train"] = n_train - len(range(index % folds, n_train, folds))
    identity = with_epochs_of(identity, expected)  # a member may have had more
    changed = differences(_shared(identity, expected), _shared(expected, identity))
    if changed:
        raise ValueError(
            f"{path} was written by another training than {path.parents[1] / CONFIG_FILE} says "
            f"({'; '.join(changed)}): the folder holds a mixture of runs; train again into an "
            "empty folder"
        )


def _shared(settings: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The part of nested settings whose keys another has as well."""
    return {
        key: _shared(value, other[key])
        if isinstance(value, dict) and isinstance(other[key], dict)
        else value
        for key, value in settings.items()
        if key in other
    }
