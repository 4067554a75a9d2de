"""Posteriors around trained members: where they start, how they are fitted, drawn and read.

SWAG, IVON and Laplace share this. Each has a stage that follows the training of a potential.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import vector_to_parameters

from ase_bayesmlip.config import Config
from ase_bayesmlip.nn.build import build_potential
from ase_bayesmlip.nn.potential import Potential
from ase_bayesmlip.posteriors.members import (
    TrainedMembers,
    Weights,
    load_members,
    member_data,
    run_members,
    seconds_for,
    train_members,
)
from ase_bayesmlip.posteriors.options import RunOptions
from ase_bayesmlip.posteriors.run_folder import member_name, prepare_run, read_members
from ase_bayesmlip.training.data import TrainingData, load_training_data
from ase_bayesmlip.training.distributed import barrier, process_group
from ase_bayesmlip.training.stage import Stage
from ase_bayesmlip.training.state import differences


@dataclasses.dataclass(frozen=True)
class AroundMembers:
    """State of a posterior that has a distribution of the weights around each member.

    Attributes
    ----------
    run : TrainedMembers
        With the weights at the centre.
    """

    run: TrainedMembers

    @property
    def config(self) -> Config:
        """Configuration of the run."""
        return self.run.config

    @property
    def record(self) -> dict[str, Any]:
        """What the run kept of its data."""
        return self.run.record

    @property
    def unfinished(self) -> tuple[str, ...]:
        """What is missing of a run that has not come to its end."""
        return self.run.unfinished


def fit_around(
    stage: Callable[..., Stage], config: Config, folder: Path, options: RunOptions
) -> None:
    """Train the members, or take those of `start_from`, and run a stage around each.

    Parameters
    ----------
    stage : callable
        ``stage(potential, train, valid, config, seed)``, at the top of its module.

    Raises
    ------
    ValueError
        If the other run has another potential, other data or fewer members.
    """
    start = _starting_members(config, folder, options)
    with process_group(options.device) as device:
        own = dataclasses.replace(options, device=device)
        arguments = [
            (stage, start.config, folder, index, weights, own)
            for index, weights in enumerate(start.weights)
        ]
        run_members(_fit_member, arguments, options)
        barrier()


def _starting_members(config: Config, folder: Path, options: RunOptions) -> TrainedMembers:
    n_members, start_from = config.posterior.members, config.posterior.start_from  # type: ignore[union-attr]
    if start_from is None:
        return train_members(config, n_members, False, folder, options)
    start = load_members(Path(start_from))
    with process_group(options.device):
        data = load_training_data(config)
        check_start(start, config, data, n_members)
        prepare_run(config, data, folder, options.resume)
        barrier()
    return TrainedMembers(config, data.record(), start.weights[:n_members])


def check_start(
    start: TrainedMembers,
    config: Config,
    data: TrainingData,
    n_members: int,
    noise: bool = True,
) -> None:
    """Whether a posterior can start from the members of another run.

    Parameters
    ----------
    noise : bool
        Whether the noise heads must be the same, too.

    Raises
    ------
    ValueError
        If the other run has another potential, other data or fewer members.
    """
    where = f"posterior.start_from: {config.posterior.start_from}"  # type: ignore[union-attr]
    there, here = (
        {
            "model": dataclasses.asdict(item.model),
            # The coupling is part of an evidential potential, its penalty is not.
            "loss": {"kind": item.loss.kind, "coupling": item.loss.evidence.coupling},
        }
        for item in (start.config, config)
    )
    if not noise:
        for settings in (there, here):
            del settings["loss"], settings["model"]["covariance"], settings["model"]["energy_noise"]
    changed = differences(there, here)
    if changed:
        raise ValueError(f"{where} holds another potential ({'; '.join(changed)})")
    if len(start.weights) < n_members:
        raise ValueError(f"{where} holds {len(start.weights)} members; {n_members} are asked for")
    same = {
        "train_sha256": start.record["train_sha256"] == data.record()["train_sha256"],
        "statistics": start.statistics == data.statistics,
    }
    for name in (name for name, is_same in same.items() if not is_same):
        raise ValueError(f"{where} was trained on other data ({name} differs)")


def _fit_member(
    stage: Callable[..., Stage],
    config: Config,
    folder: Path,
    index: int,
    weights: Weights,
    options: RunOptions,
    progress: bool,
    position: int,
) -> None:
    data, train, valid = member_data(config, options.device)
    dtype = getattr(torch, config.training.dtype)
    potential = build_potential(config.model, config.loss, data.statistics, 0, dtype)
    potential.load_state_dict(weights)
    made = stage(potential.to(options.device), train, valid, config, config.seeds.shuffling + index)
    if made.section:
        made.limit = seconds_for(config, made.n_steps, options.jobs)
    made.open(folder / member_name(index), options.resume)
    made.run(progress, position)


def load_stages(
    folder: Path,
    name: str,
    unfinished: bool,
    is_usable: Callable[[dict[str, Any]], bool] = lambda _: True,
) -> tuple[TrainedMembers, list[dict[str, Any]]]:
    """What the stage of that name left of every member, see `read_members`."""
    left = read_members(folder, name, unfinished, is_usable)
    weights = tuple(state["model"] for state in left.states)
    return TrainedMembers(left.config, left.record, weights, left.unfinished), left.states


def drawn_potentials(
    run: TrainedMembers, n: int, sample: Callable[[int], Tensor]
) -> list[Potential]:
    """`n` potentials with drawn weights; members take turns.

    Parameters
    ----------
    sample : callable
        Member -> all its weights as one vector, (P,), drawn.

    Raises
    ------
    ValueError
        If fewer than two are asked for.
    """
    if n < 2:
        raise ValueError(
            f"{n} samples asked of a posterior of kind {run.config.posterior.kind}; at least 2 "
            "have a spread"
        )
    potentials = []
    for index in range(n):
        member = index % len(run.weights)
        potential = run.potential(run.weights[member])
        vector_to_parameters(sample(member), potential.parameters())
        potentials.append(potential)
    return potentials
