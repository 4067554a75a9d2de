"""Losses of batches against sums over structures, with densities of scipy."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm

from ase_bayesmlip.config import LossConfig
from ase_bayesmlip.graph import AtomicGraph
from ase_bayesmlip.training.data import Labels
from ase_bayesmlip.training.loss import loss, negative_log_likelihood
from ase_bayesmlip.training.outputs import Outputs

UNIT = 0.6
N_ATOMS = (2, 5)
WEIGHTS = {"energy_weight": 0.7, "forces_weight": 3.0, "stress_weight": 11.0}
# A molecule, and a crystal whose cell is left-handed: its determinant is negative.
CELLS = np.stack([np.zeros((3, 3)), [[0.0, 4.0, 0.5], [5.0, 0.0, 0.0], [0.2, 0.0, 6.0]]])


def batch():
    """Graph, labels and outputs of a molecule without and a crystal with a stress."""
    generator = np.random.default_rng(0)
    n = sum(N_ATOMS)

    def normal(*shape):
        return torch.tensor(generator.normal(size=shape))

    graph = AtomicGraph(
        positions=normal(n, 3),
        atomic_numbers=torch.ones(n, dtype=torch.int64),
        cell=torch.tensor(CELLS),
        edge_index=torch.zeros(2, 0, dtype=torch.int64),
        edge_shift=torch.zeros(0, 3, dtype=torch.float64),
        batch=torch.tensor([0] * N_ATOMS[0] + [1] * N_ATOMS[1]),
        n_graphs=2,
    )
    has_stress = torch.tensor([False, True])
    labels = Labels(normal(2), normal(n, 3), normal(2, 3, 3), has_stress, torch.tensor(N_ATOMS))
    root = normal(n, 3, 3)
    outputs = Outputs(
        energy=normal(2),
        forces=normal(n, 3),
        stress=normal(2, 3, 3),
        energy_var=normal(2).exp(),
        forces_cov=root @ root.mT,
    )
    return graph, labels, outputs


def atoms_of(graph, k):
    return torch.eq(graph.batch, k)


def huber(residual, delta):
    """Twice the integral of min(r, δ) from 0 to |r|."""
    return np.sum([r**2 if r < delta else delta**2 + 2 * delta * (r - delta) for r in residual])


def energy_term(kind, graph, labels, outputs, k):
    residual = float(labels.energy[k] - outputs.energy[k]) / UNIT
    if kind == "huber":
        return huber([abs(residual) / math.sqrt(N_ATOMS[k])], 0.3)
    if kind == "mse":
        return residual**2 / N_ATOMS[k]
    density = norm.logpdf(residual, scale=math.sqrt(float(outputs.energy_var[k])) / UNIT)
    return (-density - 0.5 * math.log(2 * math.pi)) / N_ATOMS[k]


def force_nll(graph, labels, outputs, k, unit=UNIT):
    atoms = atoms_of(graph, k)
    residual = (labels.forces - outputs.forces)[atoms] / unit
    densities = [
        multivariate_normal.logpdf(r, cov=c)
        for r, c in zip(
            residual.numpy(), (outputs.forces_cov[atoms] / unit**2).numpy(), strict=True
        )
    ]
    return -sum(densities) - 1.5 * math.log(2 * math.pi) * len(densities)


def force_term(kind, graph, labels, outputs):
    if kind == "nll_jef":
        return np.mean([force_nll(graph, labels, outputs, k) / N_ATOMS[k] for k in range(2)])
    residual = ((labels.forces - outputs.forces) / UNIT).numpy().ravel()
    return huber(np.abs(residual), 0.3) / len(residual) if kind == "huber" else np.mean(residual**2)


@pytest.mark.parametrize("kind", ["mse", "huber", "nll_e", "nll_jef"])
@pytest.mark.parametrize("with_stress", [False, True])
def test_loss_of_a_batch(kind, with_stress):
    graph, labels, outputs = batch()
    config = LossConfig(beta=0.0, huber_delta=0.3, **WEIGHTS)
    terms = [energy_term(kind, graph, labels, outputs, k) for k in range(2)]
    expected = 0.7 * np.mean(terms) + 3.0 * force_term(kind, graph, labels, outputs)
    if with_stress:
        virial = (labels.stress - outputs.stress)[1] * abs(np.linalg.det(CELLS[1])) / UNIT
        expected += 11.0 * float((virial**2).mean()) / N_ATOMS[1]
    else:
        outputs = outputs._replace(stress=None)
    assert float(loss(kind, config, outputs, labels, graph, UNIT)) == pytest.approx(expected)


def test_likelihood_of_a_posterior_is_whole():
    graph, labels, outputs = batch()
    found = negative_log_likelihood(outputs, labels, graph)
    for k in range(2):
        residual = float(labels.energy[k] - outputs.energy[k])
        energy = -norm.logpdf(residual, scale=math.sqrt(float(outputs.energy_var[k])))
        expected = energy - 0.5 * math.log(2 * math.pi)
        expected += force_nll(graph, labels, outputs, k, unit=1.0)
        assert float(found[k]) == pytest.approx(expected)
