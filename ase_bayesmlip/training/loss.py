"""Losses on energies, forces and stress; every weight multiplies a whole term.

Residuals are measured in units of the training force RMS s (energies in s · 1 Å), so that weights
carry over between data sets. Per structure of n atoms, with weights w, the joint likelihood is

    NLL_JEF = (1/n) { w_E ½ [ΔE²/σ_E² + log σ_E²] + w_F Σ_i ½ [Δf_iᵀ Σ_i⁻¹ Δf_i + log det Σ_i] },

averaged over structures: with w = 1 and β = 0 the true negative log-likelihood per atom. NLL_E has
the energy term of it and the squared force error; MSE is

    w_E ΔE²/n + w_F |Δf|²/3 (mean over atoms).

Evidential losses (`training.evidential_loss`) have Student-t likelihoods in the places of the
Gaussian ones. Stress enters as a squared error, w_S (V Δσ)²/n, the residual of the virial.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ase_bayesmlip.config import LossConfig
from ase_bayesmlip.graph import AtomicGraph, sum_by_graph
from ase_bayesmlip.statistics import gaussian_nll, multivariate_nll
from ase_bayesmlip.training.component_loss import component_loss
from ase_bayesmlip.training.data import Labels
from ase_bayesmlip.training.evidential_loss import evidential_loss
from ase_bayesmlip.training.outputs import Outputs

# Of whole laws, in the place of a term of energies and one of forces.
LAW_LOSSES = {"evidential": evidential_loss, "eip": component_loss}


def loss(
    kind: str, config: LossConfig, outputs: Outputs, labels: Labels, graph: AtomicGraph, unit: float
) -> Tensor:
    """The loss of a batch, a scalar in float64.

    Parameters
    ----------
    kind : "mse", "huber", "nll_e", "nll_jef", "evidential" or "eip"
        The warm-up's or the final kind.
    unit : float, eV/Å
        Force RMS of the training set.
    """
    residual = (labels.energy - outputs.energy) / unit
    force_residual = (labels.forces - outputs.forces) / unit
    if kind in LAW_LOSSES:
        value = LAW_LOSSES[kind](config, outputs, labels, graph, unit)
    else:
        value = config.energy_weight * _energy_term(kind, config, outputs, labels, residual, unit)
        value = value + config.forces_weight * _force_term(
            kind, config, outputs, labels, graph, force_residual, unit
        )
    if outputs.stress is not None and bool(labels.has_stress.any()):
        volume = torch.linalg.det(graph.cell).abs()[labels.has_stress].view(-1, 1, 1)
        difference = (labels.stress - outputs.stress)[labels.has_stress] * volume / unit
        per_structure = (difference**2).mean(dim=(1, 2)) / labels.n_atoms[labels.has_stress]
        value = value + config.stress_weight * per_structure.mean()
    return value


def final_loss(config: LossConfig) -> str:
    """Kind of the loss that training ends with: squared errors are those of its warm-up."""
    return config.warmup if config.kind == "mse" else config.kind


def negative_log_likelihood(outputs: Outputs, labels: Labels, graph: AtomicGraph) -> Tensor:
    """-log p(E, F | weights) of every structure with the noise of the heads, in nats: (n_graphs,).

    Nothing is weighted, averaged over atoms or left out but the constants log 2π: the likelihood
    that a posterior is made of. Stress has no noise model and is not in it.
    """
    assert outputs.energy_var is not None  # the potential was built for the loss nll_jef
    assert outputs.forces_cov is not None
    energy = gaussian_nll(labels.energy - outputs.energy, outputs.energy_var)
    forces = multivariate_nll(labels.forces - outputs.forces, outputs.forces_cov)
    return energy + sum_by_graph(forces, graph.batch, graph.n_graphs)


def _energy_term(
    kind: str, config: LossConfig, outputs: Outputs, labels: Labels, residual: Tensor, unit: float
) -> Tensor:
    if kind in ("nll_e", "nll_jef"):
        assert outputs.energy_var is not None  # the potential was built for this loss
        nll = gaussian_nll(residual, outputs.energy_var / unit**2, config.beta)
        return (nll / labels.n_atoms).mean()
    if kind == "huber":
        return _huber(residual / labels.n_atoms.sqrt(), config.huber_delta).mean()
    return (residual**2 / labels.n_atoms).mean()


def _force_term(
    kind: str,
    config: LossConfig,
    outputs: Outputs,
    labels: Labels,
    graph: AtomicGraph,
    residual: Tensor,
    unit: float,
) -> Tensor:
    if kind == "nll_jef":
        assert outputs.forces_cov is not None  # the potential was built for this loss
        nll = multivariate_nll(residual, outputs.forces_cov / unit**2, config.beta)
        return (sum_by_graph(nll, graph.batch, graph.n_graphs) / labels.n_atoms).mean()
    if kind == "huber":
        return _huber(residual, config.huber_delta).mean()
    return (residual**2).mean()


def _huber(residual: Tensor, delta: float) -> Tensor:
    """Twice the Huber function: r² within ±delta, linear beyond."""
    size = residual.abs()
    return torch.where(size <= delta, residual**2, delta * (2.0 * size - delta))
