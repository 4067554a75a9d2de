"""Loss and errors of a potential on structures it was not trained on."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ase_bayesmlip.config import LossConfig
from ase_bayesmlip.nn.evidential.head import Evidence
from ase_bayesmlip.nn.evidential.law import NormalInverseWishart, scale_distance
from ase_bayesmlip.nn.potential import Potential
from ase_bayesmlip.statistics import mahalanobis
from ase_bayesmlip.training.data import GraphDataset
from ase_bayesmlip.training.evidential_loss import likely_force_factor, saturated
from ase_bayesmlip.training.loss import loss
from ase_bayesmlip.training.outputs import evaluate

BATCH_SIZE = 32

# Share of atoms bent by the damper of evidential laws, above which σ_F is the wrong unit.
MAX_SATURATED = 0.01


def validation_metrics(
    potential: Potential,
    data: GraphDataset,
    kind: str,
    config: LossConfig,
    stress: bool,
    unit: float,
) -> dict[str, float]:
    """Evaluate a potential on labelled structures.

    Returns
    -------
    dict of str to float
        ``loss`` (with β = 0: the weights of β-NLL shrink with the errors, so that its value does
        not tell better from worse), ``energy_mse`` (eV² per atom, of ΔE²/n), ``forces_mse``
        ((eV/Å)² per component), ``energy_rmse_meV_per_atom`` and ``forces_rmse_meV_per_A``; with
        trained noise ``energy_chi2``, the mean of ΔE²/σ_E², and ``forces_chi2``, that of
        Δfᵀ Σ⁻¹ Δf / 3, which are 1 where the error bars have the size of the errors. For evidential
        forces ``forces_chi2`` is the most likely factor of their scale matrices instead, and
        ``saturated`` the share of atoms whose law the damper bends.
    """
    config = dataclasses.replace(config, beta=0.0)
    total = energy = per_atom = force = 0.0
    energy_chi2 = forces_chi2 = 0.0
    n_atoms = 0
    laws = Laws()
    for graph, labels in data.batches(range(len(data)), BATCH_SIZE):
        outputs = evaluate(potential, graph, stress, create_graph=False)
        value = loss(kind, config, outputs, labels, graph, unit)
        total += float(value.detach()) * graph.n_graphs
        error = (labels.energy - outputs.energy).detach()
        energy += float((error**2 / labels.n_atoms).sum())
        per_atom += float(((error / labels.n_atoms) ** 2).sum())
        force += float(((labels.forces - outputs.forces.detach()) ** 2).sum())
        n_atoms += len(labels.forces)
        if outputs.energy_var is not None:
            energy_chi2 += float((error**2 / outputs.energy_var.detach()).sum())
        residual = (labels.forces - outputs.forces).detach()
        if isinstance(outputs.evidence, Evidence):
            laws.add(residual, outputs.evidence)
        elif outputs.forces_cov is not None:
            forces_chi2 += float(mahalanobis(residual, outputs.forces_cov.detach()).sum())
    metrics = {
        "loss": total / len(data),
        "energy_mse": energy / len(data),
        "forces_mse": force / (3 * n_atoms),
        "energy_rmse_meV_per_atom": 1e3 * math.sqrt(per_atom / len(data)),
        "forces_rmse_meV_per_A": 1e3 * math.sqrt(force / (3 * n_atoms)),
        "energy_chi2": energy_chi2 / len(data),
        "forces_chi2": forces_chi2 / (3 * n_atoms),
    }
    return metrics | laws.metrics()


class Laws:
    """What evidential laws of forces say of the errors they are for, collected over batches."""

    def __init__(self) -> None:
        self.columns: list[Tensor] = []

    def add(self, residual: Tensor, evidence: Evidence) -> None:
        """Take in a batch; `residual` is (n_atoms, 3), eV/Å."""
        niw = NormalInverseWishart(*(field.detach().double() for field in evidence.niw))
        distance = scale_distance(residual.double(), niw, evidence.unit_squared.double())
        spread = niw.dof * (1.0 + 1.0 / niw.evidence)
        self.columns.append(torch.stack([distance, niw.dof, spread, saturated(evidence).double()]))

    def metrics(self) -> dict[str, float]:
        """The entries of `validation_metrics` for evidential laws; none where there were none."""
        if not self.columns:
            return {}
        distance, dof, spread, bent = torch.cat(self.columns, dim=1)
        return {
            "forces_chi2": likely_force_factor(distance, dof, spread),
            "saturated": float(bent.mean()),
        }


def warn_if_saturated(metrics: dict[str, float], folder: Path) -> None:
    """Say so where the damper bends the laws of more than a few atoms."""
    share = metrics.get("saturated", 0.0)
    if share > MAX_SATURATED:
        warnings.warn(
            f"{folder}: the damper bends the covariance of {100 * share:.1f}% of the validation "
            "atoms, whose errors are far from that which the warm-up ended with; train longer "
            "before the likelihood",
            stacklevel=3,
        )


@contextmanager
def other_weights(potential: Potential, weights: dict[str, Tensor]) -> Iterator[None]:
    """Put other weights into a potential for the length of a `with` block."""
    own = {name: value.clone() for name, value in potential.state_dict().items()}
    potential.load_state_dict(weights)
    try:
        yield
    finally:
        potential.load_state_dict(own)
