"""Likelihood of e²IP.

Per structure of n atoms and with weights w,

    (1/n) { w_E g_E NLL_E + w_F Σ_i [g_i NLL_i + λ (ν_i + κ_i) |r_i|²/σ_F²] },

NLL_i the Student-t of a force and NLL_E that of the energy. The weights g = σ^(2β), held constant,
are those of β-NLL with the total variances (arXiv 2203.09168), in units of the training force RMS.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ase_bayesmlip.config.loss import EvidenceConfig, LossConfig
from ase_bayesmlip.graph import AtomicGraph, sum_by_graph
from ase_bayesmlip.nn.evidential.energies import energy_student_t_nll, evidential_energy
from ase_bayesmlip.nn.evidential.head import Evidence
from ase_bayesmlip.nn.evidential.law import (
    LOG_SCALE_LINEAR,
    evidence_penalty,
    student_t_nll,
    total_deviation,
)
from ase_bayesmlip.training.data import Labels
from ase_bayesmlip.training.outputs import Outputs

# λ of mode "paper" in (eV/Å)⁻².
PAPER_WEIGHT = 0.1


def evidential_loss(
    config: LossConfig, outputs: Outputs, labels: Labels, graph: AtomicGraph, unit: float
) -> Tensor:
    """Loss of a batch without stress, a scalar in float64; arguments as for `loss.loss`."""
    residual = labels.forces - outputs.forces
    evidence = outputs.evidence
    assert isinstance(evidence, Evidence)  # the potential was built for this loss
    forces = student_t_nll(residual, evidence.niw, evidence.unit_squared)
    variance = total_deviation(evidence.niw, evidence.unit_squared) ** 2
    forces = forces * (variance.detach() / unit**2) ** config.beta
    energy = energy_nll(evidence, outputs, labels, graph)
    assert outputs.energy_var is not None
    energy = energy * (outputs.energy_var.detach() / unit**2) ** config.beta
    penalty = penalty_weight(config.evidence, float(evidence.unit_squared))
    if penalty > 0.0:
        stop = config.evidence.stop_residual
        cost = evidence_penalty(residual, evidence.niw, evidence.unit_squared, stop)
        forces = forces + penalty * cost
    per_atom = sum_by_graph(forces, graph.batch, graph.n_graphs) / labels.n_atoms
    value = config.energy_weight * (energy / labels.n_atoms).mean()
    return value + config.forces_weight * per_atom.mean()


def energy_nll(evidence: Evidence, outputs: Outputs, labels: Labels, graph: AtomicGraph) -> Tensor:
    """-log p of the energy of each structure, (n_graphs,), nats."""
    law = evidential_energy(
        evidence.energy_scale, evidence.niw, graph.batch, graph.n_graphs, evidence.coherent
    )
    return energy_student_t_nll(labels.energy - outputs.energy, law.variance, law.dof)


def penalty_weight(config: EvidenceConfig, unit_squared: float) -> float:
    """λ in units of 1/σ_F²."""
    if config.weight is not None:
        return config.weight
    return PAPER_WEIGHT * unit_squared if config.mode == "paper" else 0.0


def saturated(evidence: Evidence) -> Tensor:
    """Whether the damper bends the scale or the anisotropy of an atom, (n,), bool.

    Many such atoms say that σ_F is far from the errors.
    """
    norm = torch.linalg.vector_norm(evidence.niw.tensor, dim=1)
    return (evidence.niw.log_scale.abs() > LOG_SCALE_LINEAR) | (norm > LOG_SCALE_LINEAR)


def likely_force_factor(distance: Tensor, dof: Tensor, spread: Tensor) -> float:
    """The most likely common factor a of the scale matrices of Student-t laws of forces.

    The likelihood is stationary where a = ⟨(ν + 1)/3 · M/(c + M/a)⟩ with c = ν (1 + 1/κ): the fixed
    point of expectation maximisation, which climbs to it from any start.

    Parameters
    ----------
    distance : Tensor, (n,)
        M = rᵀ Σ₀⁻¹ r.
    dof, spread : Tensor, (n,)
        ν and c.
    """
    factor = distance.mean() / spread.mean()
    for _ in range(200):
        factor = ((dof + 1.0) / 3.0 * distance / (spread + distance / factor)).mean()
    return float(factor)
