"""Independently trained potentials in the folder of a run: what point and ensemble share.

A run is a folder with ``config.yaml`` (resolved), ``run.json`` (statistics and checksums of the
data) and one folder per member, each with its own checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from ase_bayesmlip.config import Config, to_dict
from ase_bayesmlip.nn.build import DataStatistics, build_potential
from ase_bayesmlip.nn.potential import Potential
from ase_bayesmlip.strict import from_dict
from ase_bayesmlip.training.allocator import keep_freed_memory
from ase_bayesmlip.training.data import GraphDataset, TrainingData, load_training_data
from ase_bayesmlip.training.distributed import barrier, process_group, rank, world_size
from ase_bayesmlip.training.loop import Trainer
from ase_bayesmlip.training.state import differences, load_state, run_identity


@dataclasses.dataclass(frozen=True)
class TrainedMembers:
    """Weights of independently trained potentials and what is needed to rebuild them.

    Attributes
    ----------
    config : Config
    record : dict
        Statistics and checksums of the data, see `TrainingData.record`.
    weights : tuple of dict of str to Tensor
        Best averaged weights of each member.
    """

    config: Config
    record: dict[str, Any]
    weights: tuple[dict[str, Tensor], ...]

    @property
    def statistics(self) -> DataStatistics:
        """Statistics of the training data."""
        return DataStatistics(**self.record["statistics"])

    def potentials(self) -> list[Potential]:
        """The members as potentials in float64, whatever they were trained in."""
        potentials = []
        for weights in self.weights:
            potential = build_potential(
                self.config.model, self.config.loss.kind, self.statistics, seed=0
            )
            potential.load_state_dict(weights)
            potentials.append(potential.eval().requires_grad_(False))
        return potentials


def train_members(
    config: Config,
    n_members: int,
    bootstrap: bool,
    folder: Path,
    resume: bool = False,
    device: str = "cpu",
    jobs: int = 1,
    progress: bool = True,
) -> TrainedMembers:
    """Train `n_members` potentials from different seeds, one after another or in processes.

    Under torchrun each is trained on all its processes, which must see the same folder.

    Raises
    ------
    FileExistsError
        If the folder holds a run and `resume` is not set.
    ValueError
        If the data or the configuration differ from those of the run that is resumed, or if
        `jobs` is more than 1 under torchrun.
    """
    if world_size() > 1 and jobs > 1:
        raise ValueError(
            f"jobs is {jobs}, but under torchrun members are trained one after another, each on "
            "all processes; leave it at 1"
        )
    jobs = min(jobs, n_members)
    with process_group(device) as own:
        prepare_run(config, load_training_data(config), folder, resume)
        arguments = [(config, folder, index, bootstrap, resume, own) for index in range(n_members)]
        if jobs > 1:
            _train_in_processes(arguments, jobs, progress)
        else:
            for item in arguments:
                train_member(*item, progress and rank() == 0)
        barrier()  # the last checkpoint is rank 0's to write and everyone's to read
    return load_members(folder)


def _train_in_processes(
    arguments: list[tuple[Config, Path, int, bool, bool, str]], jobs: int, progress: bool
) -> None:
    context = multiprocessing.get_context("spawn")
    n_threads = max(1, available_cores() // jobs)
    with ProcessPoolExecutor(jobs, context, _start_worker, (n_threads,)) as pool:
        futures = [
            pool.submit(train_member, *item, progress, position=item[2] % jobs)
            for item in arguments
        ]
        try:
            for future in futures:
                future.result()
        except BaseException:
            # Without this, members that have not begun would still be trained to their end.
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def available_cores() -> int:
    """Cores this process may use, which may be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start_worker(n_threads: int) -> None:
    torch.set_num_threads(n_threads)
    keep_freed_memory()


def train_member(
    config: Config,
    folder: Path,
    index: int,
    bootstrap: bool,
    resume: bool,
    device: str,
    progress: bool,
    position: int = 0,
) -> None:
    """Train member number `index`: its seeds are those of the configuration plus the index."""
    dtype = getattr(torch, config.training.dtype)
    data = load_training_data(config)
    cutoff = config.model.cutoff
    train = GraphDataset(data.train, data.references, cutoff, dtype, device)
    valid = GraphDataset(data.valid, data.references, cutoff, dtype, device)
    potential = build_potential(
        config.model,
        config.loss.kind,
        data.statistics,
        seed=config.seeds.initialisation + index,
        dtype=dtype,
    ).to(device)
    order = None
    if bootstrap:
        generator = np.random.default_rng([config.seeds.data, index])
        order = generator.integers(len(train), size=len(train)).tolist()
    trainer = Trainer(
        potential,
        train,
        valid,
        config,
        folder / member_name(index),
        shuffling_seed=config.seeds.shuffling + index,
        resume=resume,
        order=order,
    )
    trainer.run(progress, position=position)


def member_name(index: int) -> str:
    """Name of a member's folder."""
    return f"member-{index:02d}"


def prepare_run(config: Config, data: TrainingData, folder: Path, resume: bool) -> None:
    """Write ``config.yaml`` and ``run.json``, or check them against a run to be resumed."""
    record = data.record()
    written = folder / "run.json"
    if any(folder.glob("member-*/checkpoint.pt")) and written.exists():
        if not resume:
            raise FileExistsError(
                f"{folder} already holds a run; continue it with --resume, or train elsewhere"
            )
        _check_same_run(config, record, folder)
    barrier()  # the others must not read what rank 0 is writing
    if rank() > 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    written.write_text(json.dumps(record, indent=1), encoding="utf-8")


def _check_same_run(config: Config, record: dict[str, Any], folder: Path) -> None:
    content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    changed = differences(run_identity(from_dict(Config, content)), run_identity(config))
    if changed:
        raise ValueError(
            f"{folder} holds a run with other settings ({'; '.join(changed)}); restore them, or "
            "train into another folder"
        )
    old = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    for name in ("train", "valid"):
        if old[f"{name}_sha256"] != record[f"{name}_sha256"]:
            raise ValueError(f"{folder}: the {name} frames have changed since the run began")
    if old["statistics"] != record["statistics"]:
        raise ValueError(f"{folder}: the reference energies have changed since the run began")


def load_members(folder: Path) -> TrainedMembers:
    """Read the members of a run.

    Raises
    ------
    FileNotFoundError
        If the folder is no run or has no trained member.
    ValueError
        If a member has not finished training.
    """
    folder = Path(folder)
    if not (folder / "run.json").is_file() or not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"{folder} is no run written by `bayesmlip train`")
    content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    config = from_dict(Config, content)
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    n_members = config.posterior.members if config.posterior.kind == "ensemble" else 1
    weights = []
    for index in range(n_members):
        path = folder / member_name(index) / "checkpoint.pt"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: train the run with --resume to its end")
        state = load_state(path)
        if not state.finished:
            raise ValueError(
                f"{path} stopped after epoch {state.epoch} of {config.training.epochs}; finish it "
                "with --resume"
            )
        weights.append(state.best)
    return TrainedMembers(config, record, tuple(weights))
