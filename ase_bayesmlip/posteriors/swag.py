"""SWAG: a Gaussian of the weights that training visits at a constant learning rate.

From snapshots θ_t of the weights (Maddox et al. 2019, arXiv 1902.02476), with their running mean
θ̄_t, diagonal variance and the last K deviations D = [θ_t - θ̄_t],

    θ = θ̄ + √scale (√diag z₁ + D z₂/√(K - 1)),    z₁, z₂ ~ N(0, 1),

so that Σ = scale (Σ_diag + Σ_low-rank). Each of the two terms estimates the covariance of the
snapshots: ``scale: 0.5``, the paper's sampling equation, is their covariance and the default of 1
is twice that. ``diagonal: true``, the default, leaves out the second: at a constant rate the noise
of the optimiser is along stiff directions, which are those that the data know. With several members
the draws are of the mixture, MultiSWAG (arXiv 2002.08791).
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from ase_bayesmlip.config import Config as RunConfig
from ase_bayesmlip.config.posterior import SWAGConfig as Config
from ase_bayesmlip.nn.potential import Potential
from ase_bayesmlip.posteriors.around_members import (
    AroundMembers,
    drawn_potentials,
    fit_around,
    load_stages,
)
from ase_bayesmlip.posteriors.lock import one_at_a_time
from ase_bayesmlip.posteriors.options import RunOptions
from ase_bayesmlip.training.epochs import Epochs, row_of

__all__ = ["Config", "Moments", "State", "draw", "fit", "load"]

NAME = "swag"


@dataclasses.dataclass(frozen=True)
class Moments:
    """Running moments of P weights over n snapshots, in float64.

    Attributes
    ----------
    n : int
    mean : Tensor, (P,)
    squares : Tensor, (P,)
        Sum of squared deviations from the mean.
    deviations : Tensor, (k, P)
        Of the last k ≤ rank snapshots from the mean at their time.
    """

    n: int
    mean: Tensor
    squares: Tensor
    deviations: Tensor

    @classmethod
    def empty(cls, n_weights: int) -> Moments:
        """Of no snapshot."""
        zeros = torch.zeros(n_weights, dtype=torch.float64)
        return cls(0, zeros, zeros.clone(), zeros.new_zeros((0, n_weights)))

    def updated(self, weights: Tensor, rank: int) -> Moments:
        """With one more snapshot (Welford's recurrence, which loses no digits)."""
        weights = weights.to("cpu", torch.float64)
        n = self.n + 1
        before = weights - self.mean
        mean = self.mean + before / n
        after = weights - mean
        deviations = torch.cat([self.deviations, after.unsqueeze(0)])[-rank:]
        return Moments(n, mean, self.squares + before * after, deviations)

    def sample(self, scale: float, diagonal: bool, generator: torch.Generator) -> Tensor:
        """Weights drawn from the Gaussian, (P,)."""

        def normal(size: int) -> Tensor:
            return torch.randn(size, generator=generator, dtype=torch.float64)

        deviation = torch.sqrt(self.squares / self.n) * normal(len(self.mean))
        n_columns = len(self.deviations)
        if not diagonal:
            deviation += normal(n_columns) @ self.deviations / math.sqrt(n_columns - 1)
        return self.mean + math.sqrt(scale) * deviation


@dataclasses.dataclass(frozen=True)
class State(AroundMembers):
    """Moments around each member.

    Attributes
    ----------
    moments : tuple of Moments
    """

    moments: tuple[Moments, ...]


class Snapshots(Epochs):
    """The stage that trains on at a constant rate and collects snapshots."""

    name, log, section = NAME, f"{NAME}.csv", "posterior"

    def prepare(self) -> None:
        """No snapshot yet."""
        assert isinstance(self.settings, Config)
        self.least = 2 * self.settings.snapshot_every
        self.optimizer = self.adamw(self.settings.learning_rate)
        self.moments = Moments.empty(sum(p.numel() for p in self.potential.parameters()))

    def step(self, index: int) -> dict[str, float]:
        """One epoch, then perhaps a snapshot."""
        train_loss = self.epoch(index)
        if (index + 1) % self.settings.snapshot_every == 0:
            weights = parameters_to_vector(self.potential.parameters()).detach()
            self.moments = self.moments.updated(weights, self.settings.rank)
        return {"train_loss": train_loss, **row_of(self.validate(self.kind))}

    def state(self) -> dict[str, Any]:
        """Weights, optimiser and moments."""
        return {
            "model": self.potential.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "moments": vars(self.moments),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.potential.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.moments = Moments(**state["moments"])


@one_at_a_time
def fit(config: RunConfig, folder: Path, options: RunOptions = RunOptions()) -> State:
    """Train the members, or take those of `start_from`, and collect snapshots around each.

    Raises
    ------
    ValueError
        If there would be fewer than two snapshots.
    """
    settings = config.posterior
    assert isinstance(settings, Config)
    n_snapshots = settings.epochs // settings.snapshot_every
    if n_snapshots < 2:
        raise ValueError(
            f"posterior.epochs {settings.epochs} with a snapshot every {settings.snapshot_every} "
            f"gives {n_snapshots} snapshots; at least 2 are needed"
        )
    fit_around(Snapshots, config, folder, options)
    return load(folder)


def load(folder: Path, unfinished: bool = False) -> State:
    """Read the moments of a run, see `run_folder.read_members`."""
    run, states = load_stages(folder, NAME, unfinished, lambda state: state["moments"]["n"] > 1)
    return State(run, tuple(Moments(**state["moments"]) for state in states))


def draw(state: State, n: int | None, generator: torch.Generator) -> list[Potential]:
    """`n` draws, for None as many as configured; members take turns.

    Raises
    ------
    ValueError
        If fewer than two are asked for.
    """
    settings = state.config.posterior
    assert isinstance(settings, Config)

    def sample(member: int) -> Tensor:
        return state.moments[member].sample(settings.scale, settings.diagonal, generator)

    return drawn_potentials(state.run, settings.samples if n is None else n, sample)
