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
from ase_bayesmlip.config.posterior import IVONConfig as Config
from ase_bayesmlip.nn.potential import Potential
from ase_bayesmlip.posteriors.around_members import (
    AroundMembers,
    drawn_potentials,
    fit_members,
    load_stages,
    starting_members,
)
from ase_bayesmlip.posteriors.curvature import estimated_diagonal
from ase_bayesmlip.posteriors.ivon_optimizer import IVON
from ase_bayesmlip.posteriors.lock import one_at_a_time
from ase_bayesmlip.posteriors.options import RunOptions
from ase_bayesmlip.posteriors.stage import digest
from ase_bayesmlip.training.data import GraphDataset
from ase_bayesmlip.training.distributed import (
    own_batches,
    rank,
    sum_tensors_over_ranks,
)
from ase_bayesmlip.training.loss import negative_log_likelihood
from ase_bayesmlip.training.outputs import evaluate
from ase_bayesmlip.training.state import run_identity
from ase_bayesmlip.training.validation import logged_errors

__all__ = ["Config", "State", "draw", "fit", "load"]

NAME = "ivon"

# Structures that the initial curvature is estimated on, and random vectors for each.
N_STRUCTURES, N_PROBES = 64, 4

# Smallest initial curvature, as a share of the mean: weights that the data hardly see would be
# perturbed without bounds.
FLOOR = 1e-2


@dataclasses.dataclass(frozen=True)
class State(AroundMembers):
    """Mean and standard deviation of the weights of each member.

    Attributes
    ----------
    deviations : tuple of Tensor, (P,)
    """

    deviations: tuple[Tensor, ...]


class Variational:
    """The stage that learns mean and variances: a step is an epoch."""

    name = NAME

    def __init__(
        self,
        potential: Potential,
        train: GraphDataset,
        valid: GraphDataset,
        config: RunConfig,
        shuffling_seed: int,
    ) -> None:
        assert isinstance(config.posterior, Config)
        self.potential, self.config, self.settings = potential, config, config.posterior
        self.train_set, self.valid_set = train, valid
        self.shuffling_seed = shuffling_seed
        self.n_steps = config.posterior.epochs
        self.identity = run_identity(config) | {
            "shuffling_seed": shuffling_seed,
            "start": digest(potential.state_dict()),
        }
        settings = config.posterior
        self.optimizer = IVON(
            potential.parameters(),
            lr=settings.learning_rate,
            ess=settings.effective_sample_size or float(len(train)),
            hess_init=settings.hess_init or self._curvature(),
            beta1=settings.beta1,
            beta2=settings.beta2,
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
        total = total.clamp(min=FLOOR * float(total.mean()))
        parameters = list(self.potential.parameters())
        parts = total.split([p.numel() for p in parameters])
        return [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]

    def step(self, index: int) -> dict[str, float]:
        """One epoch."""
        epoch = self.config.training.epochs + index
        numbers = np.random.default_rng([self.shuffling_seed, epoch])
        order = numbers.permutation(len(self.train_set)).tolist()
        # Every rank draws weights of its own.
        noise_seed = np.random.default_rng([self.shuffling_seed, epoch, 1 + rank()])
        noise = torch.Generator().manual_seed(int(noise_seed.integers(2**62)))
        batch_size = self.config.training.batch_size
        n_batches = math.ceil(len(order) / batch_size)
        losses = []
        # With a weight of one, the weight that comes back is the share of this rank.
        whole = dataclasses.replace(self.config.loss, energy_weight=1.0)
        batches = own_batches(self.train_set, order, batch_size, "nll_jef", whole)
        for k, (graph, labels, part) in enumerate(batches):
            done = (index + k / n_batches) / self.n_steps
            for group in self.optimizer.param_groups:
                group["lr"] = 0.5 * self.settings.learning_rate * (1.0 + math.cos(math.pi * done))
            for _ in range(self.settings.train_samples):
                with self.optimizer.sampled_params(noise):
                    outputs = evaluate(self.potential, graph, False, create_graph=True)
                    value = (
                        negative_log_likelihood(outputs, labels, graph).mean() * part.energy_weight
                    )
                    value.backward()
                losses.append(value.detach())
                self._check(losses[-1], index)
            self.optimizer.step(sum_tensors_over_ranks)
        mean = torch.stack(losses).mean()
        sum_tensors_over_ranks([mean])
        errors = logged_errors(
            self.potential, self.valid_set, self.config.loss.kind, self.config.loss, False
        )
        size = float(self._deviations().square().mean().sqrt())
        return {"train_nll": float(mean), **errors, "rms_deviation": size}

    def _check(self, value: Tensor, index: int) -> None:
        if not bool(torch.isfinite(value)):
            raise FloatingPointError(
                f"IVON diverged in epoch {index + 1} (loss {value.item():.3g}); lower "
                "posterior.learning_rate, or raise posterior.hess_init, and train into another "
                "folder"
            )

    def _deviations(self) -> Tensor:
        return parameters_to_vector(self.optimizer.posterior_std()).to("cpu", torch.float64)

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


@one_at_a_time
def fit(config: RunConfig, folder: Path, options: RunOptions = RunOptions()) -> State:
    """Train the members, or take those of `start_from`, and learn the variances of each."""
    start = starting_members(config, folder, options)
    fit_members(Variational, start, folder, options)
    return load(folder)


def load(folder: Path) -> State:
    """Read the means and deviations of a run.

    Raises
    ------
    FileNotFoundError, ValueError
        If the folder is no run, or one that has not come to its end.
    """
    run, states = load_stages(folder, NAME)
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
