"""Deep ensemble (arXiv 1612.01474): potentials trained from different seeds.

The members differ in initial weights and order of the data, and, with `bootstrap`, in the training
set. Each is a sample of the posterior with the same weight.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ase_bayesmlip.config import Config as RunConfig
from ase_bayesmlip.config.posterior import EnsembleConfig as Config
from ase_bayesmlip.nn.potential import Potential
from ase_bayesmlip.posteriors.lock import one_at_a_time
from ase_bayesmlip.posteriors.members import TrainedMembers as State
from ase_bayesmlip.posteriors.members import chosen_members, train_members
from ase_bayesmlip.posteriors.members import load_members as load
from ase_bayesmlip.posteriors.options import RunOptions

__all__ = ["Config", "State", "draw", "fit", "load"]


@one_at_a_time
def fit(config: RunConfig, folder: Path, options: RunOptions = RunOptions()) -> State:
    """Train the members.

    Raises
    ------
    ValueError
        If fewer than two members are asked for: one has no spread.
    """
    settings = config.posterior
    assert isinstance(settings, Config)
    if settings.members < 2:
        raise ValueError(
            f"posterior.members is {settings.members}; an ensemble needs at least 2 (use "
            "posterior.kind point for a single potential)"
        )
    return train_members(config, settings.members, settings.bootstrap, folder, options)


def draw(state: State, n: int | None, generator: torch.Generator) -> list[Potential]:
    """`n` members without replacement, all of them for None.

    Raises
    ------
    ValueError
        If more are asked for than were trained: an ensemble cannot be sampled further.
    """
    return chosen_members(state, n, 2, generator)
