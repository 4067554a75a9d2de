"""Laplace approximation: a Gaussian of the weights from the curvature at trained weights.

Post hoc, for any trained potential (Daxberger et al. 2021, arXiv 2106.14806; for potentials
Kellner and Ceriotti, arXiv 2402.16621, and Bigi et al., arXiv 2403.02251). With the Gauss-Newton
matrices G_E and G_F of energies and forces (see `posteriors.curvature`), noise factors s and the
precision τ of the prior, the posterior is N(w̄, H⁻¹) with

    H = G_E/s_E + G_F/s_F + τ.

``weights: last_layer`` takes the readout of the energy, in which energies and forces are both
linear: H is exact, this is Bayesian linear regression, new labels are taken in without gradient
descent (`update`), and one network serves all draws. With ``by_element`` each element has readout
weights of its own, of which the trained ones, that all share, are the mean: what the data say of
one element does not make the model sure of another. ``weights: all`` takes every weight and the
diagonal of H, as RACE's authors did. They predict from the potential linearised in its weights
(`linearised_variances`), at one derivative per energy and force component; what is served are whole
potentials drawn from the same Gaussian.

The noise is that of the heads where the likelihood trained them (s = 1), and fitted where not:
σ_E² = s_E n_atoms eV², Σ_i = s_F (eV/Å)². Fitted noise stays in here: it is a property of the
residuals, not of a structure, and is not served as aleatoric.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from ase_bayesmlip.config import Config as RunConfig
from ase_bayesmlip.config.posterior import LaplaceConfig as Config
from ase_bayesmlip.graph import AtomicGraph
from ase_bayesmlip.nn.last_layer import LastLayerPotential
from ase_bayesmlip.nn.potential import Potential, readout_weights
from ase_bayesmlip.posteriors.around_members import (
    AroundMembers,
    drawn_potentials,
    fit_around,
    load_stages,
)
from ase_bayesmlip.posteriors.curvature import (
    GaussNewton,
    Linearised,
    estimated_diagonal,
    linearise_all,
    linearise_last_layer,
    linearised_at,
    predictive_nll,
    shift_to,
)
from ase_bayesmlip.posteriors.linear_gaussian import (
    Gaussian,
    maximise_evidence,
    posterior_precision,
)
from ase_bayesmlip.posteriors.lock import one_at_a_time
from ase_bayesmlip.posteriors.options import RunOptions
from ase_bayesmlip.structures.labelled import LabelledFrame
from ase_bayesmlip.training.data import GraphDataset, Labels
from ase_bayesmlip.training.stage import Stage, digest
from ase_bayesmlip.training.state import run_identity

__all__ = ["Config", "Gaussian", "State", "draw", "fit", "linearised_variances", "load", "update"]

NAME = "laplace"
BATCH = 16

# Precisions tried with ``prior: validation``, in units of the mean curvature.
GRID = torch.logspace(-8, 2, 41, dtype=torch.float64)


@dataclasses.dataclass(frozen=True)
class State(AroundMembers):
    """A Gaussian around each member.

    Attributes
    ----------
    gaussians : tuple of Gaussian
    """

    gaussians: tuple[Gaussian, ...]

    @property
    def settings(self) -> Config:
        """Settings of the posterior."""
        assert isinstance(self.config.posterior, Config)
        return self.config.posterior


class Curvature(Stage):
    """The stage that sums the curvature over the training data: a step is a batch of structures."""

    name, log = NAME, f"{NAME}.csv"

    def __init__(
        self,
        potential: Potential,
        train: GraphDataset,
        valid: GraphDataset,
        config: RunConfig,
        seed: int,
    ) -> None:
        assert isinstance(config.posterior, Config)
        self.potential, self.settings = potential, config.posterior
        potential.requires_grad_(config.posterior.weights == "all")
        identity = run_identity(config) | {"start": digest(potential.state_dict())}
        super().__init__(math.ceil(len(train) / BATCH), identity, potential.scale.device)
        self.train_set, self.valid_set = train, valid
        self.seed = seed
        self.diagonal = config.posterior.weights == "all"
        self.resolved = not self.diagonal and config.posterior.by_element
        self.mean = self._mean()
        zeros = torch.zeros_like(self.mean)
        empty = zeros if self.diagonal else torch.diag(zeros)
        self.total = GaussNewton(empty, empty)
        self.gaussian: Gaussian | None = None

    def _mean(self) -> Tensor:
        if self.diagonal:
            vector = parameters_to_vector(self.potential.parameters())
        else:
            vector = readout_weights(self.potential)
        if self.resolved:
            vector = vector.repeat(len(self.potential.atomic_numbers))
        return vector.detach().to("cpu", torch.float64)

    def step(self, index: int) -> dict[str, float]:
        """The next structures; after the last ones the Gaussian."""
        order = range(len(self.train_set))[index * BATCH : (index + 1) * BATCH]
        for found in self._curvatures(order, index):
            self.total = self.total + found
        if index + 1 == self.n_steps:
            self.gaussian = self._gaussian()
        return {
            "energy_chi2": self.total.energy_chi2 / self.total.n_energies,
            "forces_chi2": self.total.forces_chi2 / self.total.n_forces,
        }

    def _curvatures(self, order: Sequence[int], index: int) -> list[GaussNewton]:
        batches = self.train_set.batches(order, 1 if self.diagonal else BATCH)
        if not self.diagonal or self.settings.probes == 0:
            return [GaussNewton.of(self._linearised(*batch), self.diagonal) for batch in batches]
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + index)
        n_probes = self.settings.probes
        return [estimated_diagonal(self.potential, *one, n_probes, generator) for one in batches]

    def _linearised(self, graph: AtomicGraph, labels: Labels) -> Linearised:
        if self.diagonal:
            return linearise_all(self.potential, graph, labels).cpu()
        return linearise_last_layer(self.potential, graph, labels, self.resolved).cpu()

    def _gaussian(self) -> Gaussian:
        total, potential = self.total, self.potential
        curvatures = [total.energy, total.forces]
        found = maximise_evidence(
            curvatures,
            [total.energy_chi2, total.forces_chi2],
            [total.n_energies, total.n_forces],
            [not potential.has_energy_noise, not potential.has_force_noise],
            self.mean,
        )
        prior = found.prior
        if self.settings.prior == "validation":
            prior = self._validated_prior(
                posterior_precision(curvatures, found.noise, 0.0), found.noise
            )
        elif not isinstance(self.settings.prior, str):
            prior = self.settings.prior
        precision = posterior_precision(curvatures, found.noise, prior)
        return Gaussian(self.mean, precision, prior, *found.noise)

    def _validated_prior(self, curvature: Tensor, noise: tuple[float, ...]) -> float:
        """The precision of the grid with the smallest -log p of the validation labels."""
        values, vectors = (curvature, None) if self.diagonal else torch.linalg.eigh(curvature)
        grid = GRID * float(values.mean())
        nll = torch.zeros_like(grid)
        order = range(len(self.valid_set))
        for graph, labels in self.valid_set.batches(order, 1 if self.diagonal else BATCH):
            data = self._linearised(graph, labels)
            nll += torch.stack(
                [predictive_nll(data, vectors, values.clamp(min=0.0) + tau, noise) for tau in grid]
            )
        return float(grid[nll.argmin()])

    def state(self) -> dict[str, Any]:
        """Weights, sums so far, and at the end the Gaussian."""
        return {
            "model": self.potential.state_dict(),
            "total": vars(self.total),
            "gaussian": None if self.gaussian is None else vars(self.gaussian),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.total = GaussNewton(**state["total"])
        if state["gaussian"] is not None:
            self.gaussian = Gaussian(**state["gaussian"])


@one_at_a_time
def fit(config: RunConfig, folder: Path, options: RunOptions = RunOptions()) -> State:
    """Train the members, or take those of `start_from`, and fit a Gaussian around each."""
    fit_around(Curvature, config, folder, options)
    return load(folder)


def load(folder: Path, unfinished: bool = False) -> State:
    """Read the Gaussians of a run, see `run_folder.read_members`."""
    run, states = load_stages(folder, NAME, unfinished, lambda state: state["gaussian"] is not None)
    gaussians = tuple(Gaussian(**state["gaussian"]) for state in states)
    settings = run.config.posterior
    assert isinstance(settings, Config)
    if settings.weights == "last_layer":  # runs from before elements were told apart do not say so
        shared = len(gaussians[0].mean) == len(readout_weights(run.potential(run.weights[0])))
        settings = dataclasses.replace(settings, by_element=settings.by_element and not shared)
        config = dataclasses.replace(run.config, posterior=settings)
        run = dataclasses.replace(run, config=config)
    return State(run, gaussians)


def draw(
    state: State, n: int | None, generator: torch.Generator
) -> list[Potential] | list[LastLayerPotential]:
    """Potentials with `n` draws, for None as many as configured.

    With ``weights: last_layer`` these are the members, each with n drawn readouts; as many draws
    as weights, or more, make the covariance of the forces exact. With ``weights: all`` they are n
    whole potentials, and members take turns.

    Raises
    ------
    ValueError
        If fewer than two are asked for.
    """
    n = state.settings.samples if n is None else n

    def sample(member: int) -> Tensor:
        gaussian = state.gaussians[member]
        noise = torch.randn(len(gaussian.mean), generator=generator, dtype=torch.float64)
        return gaussian.mean + gaussian.factor() * noise

    if state.settings.weights == "all":
        return drawn_potentials(state.run, n, sample)
    if n < 2:
        raise ValueError(f"{n} draws asked of a Laplace posterior; at least 2 have a spread")
    return [last_layer(state, index, n, generator) for index in range(len(state.gaussians))]


def last_layer(state: State, member: int, n: int, generator: torch.Generator) -> LastLayerPotential:
    """One member with its uncertain readout."""
    potential, gaussian = state.run.potential(state.run.weights[member]), state.gaussians[member]
    factor, shift = gaussian.factor(), shift_to(gaussian.mean, potential)
    n_weights = len(factor)
    if n >= n_weights:  # every column of the factor once: (1/P) Σ_d is then exact
        return LastLayerPotential(potential, factor, math.sqrt(n_weights) * factor, shift)
    noise = torch.randn(n_weights, n, generator=generator, dtype=torch.float64)
    return LastLayerPotential(potential, factor, factor @ noise, shift)


def linearised_variances(
    state: State, frames: Sequence[LabelledFrame], member: int = 0
) -> list[tuple[float, Tensor]]:
    """J H⁻¹ Jᵀ of one member for each frame: the predictive of the linearised potential.

    Exact where energies are linear in the weights; with ``weights: all`` the authors' prediction.
    Labels are not looked at.

    Returns
    -------
    list of tuple
        Epistemic variance of the energy, eV², and covariance of the forces, (n_atoms, 3, 3),
        (eV/Å)², of each frame.
    """
    potential, gaussian = state.run.potential(state.run.weights[member]), state.gaussians[member]
    set_of, factor, found = _dataset(state, frames), gaussian.factor(), []
    if factor.ndim == 2:
        potential.requires_grad_(False)
        items = linearised_at(gaussian.mean, potential, set_of, 1)
    else:
        potential.requires_grad_(True)
        items = (linearise_all(potential, *one) for one in set_of.batches(range(len(frames)), 1))
    for data in items:
        energy, forces = (
            jacobian @ factor if factor.ndim == 2 else jacobian * factor
            for jacobian in (data.energy_jacobian, data.force_jacobian)
        )
        found.append((float((energy**2).sum()), forces @ forces.transpose(1, 2)))
    return found


def _dataset(state: State, frames: Sequence[LabelledFrame]) -> GraphDataset:
    statistics = state.run.statistics
    references = dict(zip(statistics.atomic_numbers, statistics.reference_energies, strict=True))
    return GraphDataset(frames, references, state.config.model.cutoff, torch.float64)


def update(state: State, frames: Sequence[LabelledFrame]) -> State:
    """Take in new labels by one block update of mean and precision, without gradient descent.

    Exact for the last layer; the network below it, and the noise, stay as they are.

    Raises
    ------
    ValueError
        With ``weights: all``, whose potentials are not linear in the weights.
    DataError
        If a frame holds an element that the model does not know.
    """
    if state.settings.weights != "last_layer":
        raise ValueError("only a last-layer Laplace posterior takes new labels; fit another")
    data = _dataset(state, frames)
    gaussians = list(state.gaussians)
    for index, gaussian in enumerate(state.gaussians):
        potential = state.run.potential(state.run.weights[index])
        batches = [b.whitened() for b in linearised_at(gaussian.mean, potential, data, BATCH)]
        energy, energy_residual, forces, forces_residual = (
            torch.cat(parts) for parts in zip(*batches, strict=True)
        )
        scales = math.sqrt(gaussian.energy_noise), math.sqrt(gaussian.forces_noise)
        gaussians[index] = gaussian.observed(
            torch.cat([energy / scales[0], forces / scales[1]]),
            torch.cat([energy_residual / scales[0], forces_residual / scales[1]]),
        )
    return State(state.run, tuple(gaussians))
