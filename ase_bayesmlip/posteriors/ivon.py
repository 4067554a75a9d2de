"""Variational diagonal Gaussian over the weights, learned by the optimiser IVON.

The posterior N(m, diag σ²) minimises E_q[Σ_n -log p(E_n, F_n | θ)] + KL(q ‖ prior) with the true
likelihood of the labels (`negative_log_likelihood`) and the prior N(0, 1/(λδ)); see
`ivon_optimizer` for the equations (Shen et al. 2024, arXiv 2402.17641). It starts from a trained
potential, and from the curvature there: an unsuitable initial curvature would either wreck the
potential in the first step or leave the variances where they started.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from ase_bayesmlip.config import Config as RunConfig
from ase_bayesmlip.config import LossConfig
from ase_bayesmlip.config.posterior import IVONConfig as Config
from ase_bayesmlip.graph import AtomicGraph
from ase_bayesmlip.nn.potential import Potential
from ase_bayesmlip.posteriors.around_members import (
    AroundMembers,
    drawn_potentials,
    fit_around,
    load_stages,
)
from ase_bayesmlip.posteriors.curvature import estimated_diagonal
from ase_bayesmlip.posteriors.ivon_optimizer import IVON
from ase_bayesmlip.posteriors.lock import one_at_a_time
from ase_bayesmlip.posteriors.options import RunOptions
from ase_bayesmlip.training.data import Labels
from ase_bayesmlip.training.distributed import rank, sum_tensors_over_ranks
from ase_bayesmlip.training.epochs import Epochs, row_of
from ase_bayesmlip.training.loss import negative_log_likelihood
from ase_bayesmlip.training.outputs import evaluate

__all__ = ["Config", "State", "draw", "fit", "load"]

NAME = "ivon"

# Structures that the initial curvature is estimated on, and random vectors for each.
N_STRUCTURES, N_PROBES = 64, 4

# Smallest initial curvature, as a share of the mean: weights that the data hardly see would be
# perturbed without bounds.
FLOOR = 1e-2

# Largest deviation at the start, in units of the weights before training: of biases, more of it in
# the exponent of a noise head than a loss can bear.
LARGEST = 1.0

# The average of the Hessian forgets its start so many times in a run, unless `beta2` is given.
# Never shorter than so many steps: the square in eq. (3) makes the precision explode where single
# estimates of the Hessian count.
MEMORIES, SHORTEST = 5, 100


@dataclasses.dataclass(frozen=True)
class State(AroundMembers):
    """Mean and standard deviation of the weights of each member.

    Attributes
    ----------
    deviations : tuple of Tensor, (P,)
    """

    deviations: tuple[Tensor, ...]


class Variational(Epochs):
    """The stage that learns mean and variances."""

    name, log, section = NAME, f"{NAME}.csv", "posterior"
    repair = ", or raise posterior.hess_init,"

    def prepare(self) -> None:
        """Start from the curvature."""
        settings = self.settings
        self.stress = False  # which has no noise, and so no likelihood
        # With a weight of one, the weight that comes back is the share of this rank.
        self.loss = dataclasses.replace(self.config.loss, energy_weight=1.0)
        n_steps = self.n_steps * math.ceil(len(self.train_set) / self.config.training.batch_size)
        curvature = settings.hess_init or self._curvature()
        if settings.weights == "readouts":
            self.potential.requires_grad_(False)
            self.potential.readouts.requires_grad_(True)
        parameters = list(self.potential.parameters())
        if not isinstance(curvature, float):
            curvature = [h for h, p in zip(curvature, parameters, strict=True) if p.requires_grad]
        self.optimizer = IVON(
            [parameter for parameter in parameters if parameter.requires_grad],
            lr=settings.learning_rate,
            ess=settings.effective_sample_size or float(len(self.train_set)),
            hess_init=curvature,
            beta1=settings.beta1,
            beta2=memory(n_steps) if settings.beta2 is None else settings.beta2,
            weight_decay=settings.weight_decay,
            clip_radius=settings.clip_radius,
        )

    def _curvature(self) -> list[Tensor]:
        """Diagonal of the mean Gauss-Newton matrix at the start, one tensor per parameter."""
        generator = torch.Generator().manual_seed(self.shuffling_seed)
        order = torch.randperm(len(self.train_set), generator=generator)[:N_STRUCTURES].tolist()
        total: Tensor | float = 0.0
        for graph, labels in self.train_set.batches(order, 1):
            found = estimated_diagonal(self.potential, graph, labels, N_PROBES, generator)
            total = total + (found.energy + found.forces) / len(order)
        assert isinstance(total, Tensor)
        size = self.settings.effective_sample_size or float(len(self.train_set))
        total = total.clamp(min=max(FLOOR * float(total.mean()), 1.0 / (size * LARGEST**2)))
        parameters = list(self.potential.parameters())
        parts = total.split([p.numel() for p in parameters])
        return [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]

    def step(self, index: int) -> dict[str, float]:
        """One epoch."""
        # Every rank draws weights of its own.
        seed = np.random.default_rng([self.shuffling_seed, self.first + index, 1 + rank()])
        self.noise = torch.Generator().manual_seed(int(seed.integers(2**62)))
        train_nll = self.epoch(index)
        size = float(self._deviations().square().mean().sqrt())
        return {
            "train_nll": train_nll,
            **row_of(self.validate(self.kind)),
            "rms_deviation": size,
        }

    def batch(
        self, graph: AtomicGraph, labels: Labels, weighted: LossConfig, position: float
    ) -> Tensor:
        """One step along the mean over samples."""
        done = self.schedule.at(position)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.5 * self.settings.learning_rate * (1.0 + math.cos(math.pi * done))
        losses = []
        for _ in range(self.settings.train_samples):
            with self.optimizer.sampled_params(self.noise):
                outputs = evaluate(self.potential, graph, False, create_graph=True)
                value = negative_log_likelihood(outputs, labels, graph).mean()
                value = value * weighted.energy_weight
                value.backward()
            losses.append(value.detach())
            self.check(losses[-1], losses[-1])
        self.optimizer.step(sum_tensors_over_ranks)
        found = torch.stack(losses)
        sum_tensors_over_ranks([found])
        return found

    def _deviations(self) -> Tensor:
        found = iter(self.optimizer.posterior_std())
        parts = [
            next(found) if parameter.requires_grad else torch.zeros_like(parameter)
            for parameter in self.potential.parameters()
        ]
        return parameters_to_vector(parts).to("cpu", torch.float64)

    def state(self) -> dict[str, Any]:
        """Mean weights, standard deviations and optimiser."""
        return {
            "model": self.potential.state_dict(),
            "deviations": self._deviations(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.potential.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def memory(n_steps: int) -> float:
    """β₂ with an average of the Hessian over 1/(1 - β₂) steps, a fifth of all."""
    return 1.0 - 1.0 / max(n_steps / MEMORIES, SHORTEST)


@one_at_a_time
def fit(config: RunConfig, folder: Path, options: RunOptions = RunOptions()) -> State:
    """Train the members, or take those of `start_from`, and learn the variances of each."""
    fit_around(Variational, config, folder, options)
    return load(folder)


def load(folder: Path, unfinished: bool = False) -> State:
    """Read the means and deviations of a run, see `run_folder.read_members`."""
    run, states = load_stages(folder, NAME, unfinished)
    return State(run, tuple(state["deviations"] for state in states))


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
        weights, deviation = state.run.weights[member], state.deviations[member]
        mean = parameters_to_vector(state.run.potential(weights).parameters())
        return mean + deviation * torch.randn(len(mean), generator=generator, dtype=torch.float64)

    return drawn_potentials(state.run, settings.samples if n is None else n, sample)
