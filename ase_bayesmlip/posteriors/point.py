"""A single potential: no epistemic uncertainty, aleatoric noise where its loss trained it."""

from __future__ import annotations

from pathlib import Path

import torch

from ase_bayesmlip.config import Config as RunConfig
from ase_bayesmlip.config.posterior import PointConfig as Config
from ase_bayesmlip.nn.potential import Potential
from ase_bayesmlip.posteriors.lock import one_at_a_time
from ase_bayesmlip.posteriors.members import TrainedMembers as State
from ase_bayesmlip.posteriors.members import load_members as load
from ase_bayesmlip.posteriors.members import train_members
from ase_bayesmlip.posteriors.options import RunOptions

__all__ = ["Config", "State", "draw", "fit", "load"]


@one_at_a_time
def fit(config: RunConfig, folder: Path, options: RunOptions = RunOptions()) -> State:
    """Train one potential."""
    return train_members(config, 1, False, folder, options)


def draw(state: State, n: int | None, generator: torch.Generator) -> list[Potential]:  # noqa: ARG001
    """The potential itself.

    Raises
    ------
    ValueError
        If more than one sample is asked for.
    """
    if n not in (None, 1):
        raise ValueError(f"{n} samples asked of a point model, which holds exactly 1")
    return state.potentials()
