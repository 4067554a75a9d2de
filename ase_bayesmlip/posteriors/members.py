"""Independently trained potentials: what all posteriors start from."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ase_bayesmlip.config import Config
from ase_bayesmlip.nn.allocator import keep_freed_memory
from ase_bayesmlip.nn.build import DataStatistics, build_potential
from ase_bayesmlip.nn.evidential.potential import HEAD, freeze_features
from ase_bayesmlip.nn.potential import Potential
from ase_bayesmlip.posteriors.options import RunOptions
from ase_bayesmlip.posteriors.run_folder import (
    member_name,
    prepare_run,
    read_members,
    read_run,
)
from ase_bayesmlip.training.data import GraphDataset, TrainingData, load_training_data
from ase_bayesmlip.training.distributed import barrier, process_group, rank
from ase_bayesmlip.training.loss import final_loss
from ase_bayesmlip.training.trainer import Trainer

Weights = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Start:
    """Trained weights that a potential with an evidential head begins with.

    Attributes
    ----------
    weights : dict of str to Tensor
        With those of the head, or without.
    frozen : bool
        Whether the head alone is trained on.
    """

    weights: Weights
    frozen: bool

    def put_into(self, potential: Potential) -> None:
        """Load them; the head keeps its own where they have none."""
        missing, unexpected = potential.load_state_dict(self.weights, strict=False)
        wrong = [*unexpected, *(name for name in missing if not name.startswith(HEAD))]
        if wrong:
            raise ValueError(f"the weights to start from are of another potential: {wrong}")
        if self.frozen:
            freeze_features(potential)


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
    unfinished : tuple of str
        What is missing, where the run has not come to its end.
    """

    config: Config
    record: dict[str, Any]
    weights: tuple[Weights, ...]
    unfinished: tuple[str, ...] = ()

    @property
    def statistics(self) -> DataStatistics:
        """Statistics of the training data."""
        return DataStatistics(**self.record["statistics"])

    def potentials(self) -> list[Potential]:
        """The members as potentials in float64, whatever they were trained in."""
        return [self.potential(weights) for weights in self.weights]

    def potential(self, weights: Weights) -> Potential:
        """A potential of this run with the given weights, in float64 and without gradients."""
        potential = build_potential(self.config.model, self.config.loss, self.statistics, seed=0)
        potential.load_state_dict(weights)
        return potential.eval().requires_grad_(False)


def train_members(
    config: Config,
    n_members: int,
    bootstrap: bool,
    folder: Path,
    options: RunOptions,
    start: Sequence[Start | None] | None = None,
) -> TrainedMembers:
    """Train `n_members` potentials from different seeds, one after another or in processes.

    Under torchrun each is trained on all its processes, which must see the same folder.

    Parameters
    ----------
    start : sequence of Start, optional
        Where each begins, in the place of random weights and a warm-up.

    Raises
    ------
    FileExistsError
        If the folder holds a run that is not to be resumed.
    ValueError
        If the data or the configuration differ from those of the run that is resumed.
    """
    with process_group(options.device) as device:
        prepare_run(config, load_training_data(config), folder, options.resume)
        starts = [None] * n_members if start is None else start
        own = dataclasses.replace(options, device=device)
        arguments = [
            (config, folder, index, bootstrap, own, starts[index]) for index in range(n_members)
        ]
        run_members(train_member, arguments, options)
        barrier()  # the last checkpoint is rank 0's to write and everyone's to read
    return load_members(folder)


def run_members(
    function: Callable[..., None], arguments: Sequence[tuple[Any, ...]], options: RunOptions
) -> None:
    """Call ``function(*item, progress, position)`` for each item, some at a time in processes."""
    jobs = min(options.jobs, len(arguments))
    if jobs <= 1:
        for item in arguments:
            function(*item, options.progress and rank() == 0, 0)
        return
    context = multiprocessing.get_context("spawn")
    n_threads = max(1, available_cores() // jobs)
    with ProcessPoolExecutor(jobs, context, _start_worker, (n_threads,)) as pool:
        futures = [
            pool.submit(function, *item, options.progress, index % jobs)
            for index, item in enumerate(arguments)
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
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(n_threads)
    keep_freed_memory()


def _end_with_parent() -> None:
    """End this process as soon as the one that started it has ended, be it killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def train_member(
    config: Config,
    folder: Path,
    index: int,
    bootstrap: bool,
    options: RunOptions,
    start: Start | None,
    progress: bool,
    position: int = 0,
) -> None:
    """Train member number `index`: its seeds are those of the configuration plus the index."""
    data, train, valid = member_data(config, options.device)
    potential = build_potential(
        config.model,
        config.loss,
        data.statistics,
        seed=config.seeds.initialisation + index,
        dtype=getattr(torch, config.training.dtype),
    ).to(options.device)
    if start is not None:
        start.put_into(potential)
    order = None
    if bootstrap:
        generator = np.random.default_rng([config.seeds.data, index])
        order = generator.integers(len(train), size=len(train)).tolist()
    folds = getattr(config.posterior, "folds", None)
    if folds:
        order = np.flatnonzero(fold_of_frames(config, len(train)) != index % folds).tolist()
    seed = config.seeds.shuffling + index
    trainer = Trainer(potential, train, valid, config, seed, order, warm=start is not None)
    trainer.limit = seconds_for(config, config.training.epochs, options.jobs)
    trainer.open(folder / member_name(index), options.resume)
    trainer.run(progress, position)


def fold_of_frames(config: Config, n_frames: int) -> np.ndarray:
    """Fold of each training frame, (n_frames,), of a run with `posterior.folds`, by chance."""
    folds = getattr(config.posterior, "folds", 1)
    generator = np.random.default_rng([config.seeds.data, folds])
    return np.asarray(generator.permutation(np.arange(n_frames) % folds))


def seconds_for(config: Config, epochs: int, jobs: int) -> float | None:
    """Time for so many of the epochs of a member; None without a limit.

    Members that are trained one after another share the time, and so do training and the epochs of
    a posterior that follow it.
    """
    limit, posterior = config.training.time_limit, config.posterior
    if limit is None:
        return None
    n_members, after = getattr(posterior, "members", 1), getattr(posterior, "epochs", 0)
    around = after > 0 and getattr(posterior, "start_from", None) is not None
    total = after + (0 if around else config.training.epochs)
    rounds = math.ceil(n_members / min(jobs, n_members))
    return 60.0 * limit / rounds * epochs / total


def chosen_members(
    state: TrainedMembers, n: int | None, least: int, generator: torch.Generator
) -> list[Potential]:
    """`n` members without replacement, all of them for None.

    Raises
    ------
    ValueError
        If more are asked for than were trained, or fewer than `least`.
    """
    members = state.potentials()
    if n is None or n == len(members):
        return members
    if not least <= n <= len(members):
        raise ValueError(
            f"{n} samples asked of {len(members)} trained members of a posterior of kind "
            f"{state.config.posterior.kind}; choose {least} to all"
        )
    chosen = torch.randperm(len(members), generator=generator)[:n]
    return [members[index] for index in sorted(chosen.tolist())]


def member_data(config: Config, device: str) -> tuple[TrainingData, GraphDataset, GraphDataset]:
    """The data of a run, and its training and validation frames as graphs."""
    dtype, cutoff = getattr(torch, config.training.dtype), config.model.cutoff
    data = load_training_data(config)
    train = GraphDataset(data.train, data.references, cutoff, dtype, device)
    return data, train, GraphDataset(data.valid, data.references, cutoff, dtype, device)


def load_members(folder: Path, unfinished: bool = False) -> TrainedMembers:
    """Read the members of a run.

    Parameters
    ----------
    unfinished : bool
        Take those that have been validated with the final loss, at their best.

    Raises
    ------
    FileNotFoundError
        If the folder is no run or has no trained member.
    ValueError
        If a member has not finished training, is of another training than the folder says, or if
        the run started from the members of another.
    """
    config, _ = read_run(folder)
    start = getattr(config.posterior, "start_from", None)
    first = Path(folder) / member_name(0) / f"{Trainer.name}.pt"
    if not first.is_file() and start is not None and config.posterior.kind != "evidential":
        raise ValueError(
            f"{folder} holds no training of its own: its posterior started from {start}; give "
            "that run instead"
        )

    def is_trained(state: dict[str, Any]) -> bool:
        return state["phase"] == final_loss(config.loss) and math.isfinite(state["best_loss"])

    left = read_members(folder, Trainer.name, unfinished, is_trained)
    return TrainedMembers(
        left.config, left.record, tuple(state["best"] for state in left.states), left.unfinished
    )
