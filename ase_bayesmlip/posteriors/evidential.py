"""Evidential uncertainty, e²IP: one network that gives the law of its own errors.

Every atom has a normal-inverse-Wishart law over the mean and the covariance of its force error, and
everything follows from one forward pass (arXiv 2602.10419; `nn.evidential` has the equations). With
``loss.kind: eip`` it is the component-wise baseline. The likelihood does not say how the total
uncertainty divides into aleatoric and epistemic: that of one network is a convention
(`EvidenceConfig`). The spread of several members, or a Laplace approximation around one, is not.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ase_bayesmlip.config import Config as RunConfig
from ase_bayesmlip.config.loss import EVIDENTIAL_LOSSES
from ase_bayesmlip.config.posterior import EvidentialConfig as Config
from ase_bayesmlip.nn.potential import Potential
from ase_bayesmlip.posteriors.around_members import check_start
from ase_bayesmlip.posteriors.lock import one_at_a_time
from ase_bayesmlip.posteriors.members import Start, chosen_members, train_members
from ase_bayesmlip.posteriors.members import TrainedMembers as State
from ase_bayesmlip.posteriors.members import load_members as load
from ase_bayesmlip.posteriors.options import RunOptions
from ase_bayesmlip.training.data import load_training_data

__all__ = ["Config", "State", "draw", "fit", "load"]


@one_at_a_time
def fit(config: RunConfig, folder: Path, options: RunOptions = RunOptions()) -> State:
    """Train the network, or its head on the potentials of `start_from`.

    Raises
    ------
    ValueError
        If the potentials of `start_from` are of another shape, had other data, are too few, or have
        noise heads, whose features are not those of an evidential potential.
    """
    settings = config.posterior
    assert isinstance(settings, Config)
    starts = None
    if settings.start_from is not None:
        start = load(Path(settings.start_from))
        kind = start.config.loss.kind
        if kind not in ("mse", config.loss.kind):
            raise ValueError(
                f"posterior.start_from: {settings.start_from} was trained with loss.kind {kind}, "
                f"whose potentials have noise heads of their own; give a run with loss.kind mse or "
                f"{config.loss.kind}"
            )
        evidential = kind in EVIDENTIAL_LOSSES
        check_start(start, config, load_training_data(config), settings.members, evidential)
        starts = [
            Start(weights, settings.features == "frozen")
            for weights in start.weights[: settings.members]
        ]
    return train_members(config, settings.members, False, folder, options, starts)


def draw(state: State, n: int | None, generator: torch.Generator) -> list[Potential]:
    """`n` members without replacement, all of them for None.

    Raises
    ------
    ValueError
        If more are asked for than were trained.
    """
    return chosen_members(state, n, 1, generator)
