"""Losses: their minimisers in closed form, and sums over structures in plain numpy."""

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from scipy.stats import multivariate_normal, norm
from tiny import randn

from ase_bayesmlip.config import LossConfig
from ase_bayesmlip.graph import AtomicGraph, batch_graphs
from ase_bayesmlip.statistics import gaussian_nll, multivariate_nll
from ase_bayesmlip.testing import graph_of
from ase_bayesmlip.training.data import Labels
from ase_bayesmlip.training.loss import loss, negative_log_likelihood
from ase_bayesmlip.training.outputs import Outputs

UNIT = 1.7


def noise_sample(n: int = 300) -> torch.Tensor:
    """Anisotropic, correlated vectors."""
    mixing = torch.tensor([[1.0, 0.4, 0.0], [0.0, 0.5, -0.2], [0.0, 0.0, 0.1]])
    return randn(n, 3) @ mixing.double()


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_gaussian_likelihood_is_minimised_by_the_mean_square(beta):
    residual = randn(300)
    exact = (residual**2).mean()
    variance = exact.clone().requires_grad_(True)
    value = gaussian_nll(residual, variance.expand(300), beta).sum()
    (slope,) = torch.autograd.grad(value, variance)
    assert abs(float(slope)) < 1e-9
    for factor in (0.9, 1.1):
        other = gaussian_nll(residual, (factor * exact).expand(300)).sum()
        assert float(other) > float(gaussian_nll(residual, exact.expand(300)).sum())


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_multivariate_likelihood_is_minimised_by_the_sample_covariance(beta):
    residual = noise_sample()
    exact = residual.T @ residual / len(residual)
    covariance = exact.clone().requires_grad_(True)
    value = multivariate_nll(residual, covariance.expand(300, 3, 3), beta).sum()
    (slope,) = torch.autograd.grad(value, covariance)
    assert float(slope.abs().max()) < 1e-8 * 300
    best = float(multivariate_nll(residual, exact.expand(300, 3, 3)).sum())
    for seed in range(10):
        change = 0.05 * randn(3, 3, seed=seed)
        factor = torch.linalg.cholesky(exact)
        moved = factor @ torch.linalg.matrix_exp(change + change.T) @ factor.T
        assert float(multivariate_nll(residual, moved.expand(300, 3, 3)).sum()) > best


def dimers(n: int) -> AtomicGraph:
    return batch_graphs([graph_of(Atoms("HO", [[0, 0, 0], [1.2, 0, 0]]), 3.0)] * n)


def labels_of(energy: torch.Tensor, forces: torch.Tensor) -> Labels:
    n = len(energy)
    return Labels(
        energy=energy,
        forces=forces,
        stress=torch.zeros(n, 3, 3, dtype=torch.float64),
        has_stress=torch.zeros(n, dtype=torch.bool),
        n_atoms=torch.full((n,), len(forces) / n, dtype=torch.float64),
    )


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 50.0), (0.2, 1000.0)])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_weights_and_beta_do_not_move_the_minimum(weights, beta):
    """Weights multiply whole terms: the minimiser is the noise, not the noise times a weight."""
    n = 150
    graph = dimers(n)
    energy, forces = 0.3 * randn(n), noise_sample(2 * n)
    variance = (energy**2).mean().requires_grad_(True)
    covariance = (forces.T @ forces / len(forces)).requires_grad_(True)
    outputs = Outputs(
        energy=torch.zeros(n, dtype=torch.float64),
        forces=torch.zeros(2 * n, 3, dtype=torch.float64),
        stress=None,
        energy_var=variance.expand(n),
        forces_cov=covariance.expand(2 * n, 3, 3),
    )
    config = LossConfig(energy_weight=weights[0], forces_weight=weights[1], beta=beta)
    value = loss("nll_jef", config, outputs, labels_of(energy, forces), graph, UNIT)
    for slope in torch.autograd.grad(value, [variance, covariance]):
        assert float(slope.abs().max()) < 1e-10 * max(weights)


def example() -> tuple[Outputs, Labels, AtomicGraph, list[int]]:
    """A molecule without stress and two crystals, one of them labelled with stress."""
    left_handed = [[0.0, 4.0, 0.5], [3.0, 0.0, 0.0], [0.0, 0.2, 5.0]]
    frames = [
        Atoms("HO", [[0, 0, 0], [1.0, 0, 0]]),
        Atoms("OHH", [[0, 0, 0], [1, 0, 0], [0, 1, 0]], cell=left_handed, pbc=True),
        Atoms("O", cell=[[2.0, 0, 0], [0.5, 2.0, 0], [0, 0.3, 2.0]], pbc=True),
    ]
    graph = batch_graphs([graph_of(atoms, 3.0) for atoms in frames])
    counts = [len(atoms) for atoms in frames]
    n, total = len(frames), sum(counts)
    root = randn(total, 3, 3, seed=5)
    outputs = Outputs(
        energy=randn(n, seed=1),
        forces=randn(total, 3, seed=2),
        stress=0.1 * randn(n, 3, 3, seed=3),
        energy_var=randn(n, seed=4).exp(),
        forces_cov=root @ root.transpose(1, 2) + 0.1 * torch.eye(3, dtype=torch.float64),
    )
    labels = Labels(
        energy=randn(n, seed=6),
        forces=randn(total, 3, seed=7),
        stress=0.1 * randn(n, 3, 3, seed=8),
        has_stress=torch.tensor([False, True, False]),
        n_atoms=torch.tensor(counts, dtype=torch.float64),
    )
    return outputs, labels, graph, counts


def reference(kind: str, config: LossConfig, with_stress: bool = True) -> float:
    """The loss of the example in plain numpy, structure by structure."""
    outputs, labels, graph, counts = example()
    energy, forces, stress, variance, covariance = (field.numpy() for field in outputs[:5])
    starts = np.concatenate([[0], np.cumsum(counts)])
    terms = {"energy": [], "forces": [], "stress": []}
    for g, n in enumerate(counts):
        atoms = slice(starts[g], starts[g + 1])
        error = (energy[g] - labels.energy[g].item()) / UNIT
        difference = (forces[atoms] - labels.forces[atoms].numpy()) / UNIT
        if kind in ("nll_e", "nll_jef"):
            s2 = variance[g] / UNIT**2
            terms["energy"].append(0.5 * (error**2 / s2 + np.log(s2)) * s2**config.beta / n)
        elif kind == "huber":
            terms["energy"].append(huber(error / np.sqrt(n), config.huber_delta))
        else:
            terms["energy"].append(error**2 / n)
        if kind == "nll_jef":
            value = 0.0
            for r, cov in zip(difference, covariance[atoms] / UNIT**2, strict=True):
                density = 0.5 * (r @ np.linalg.solve(cov, r) + np.linalg.slogdet(cov)[1])
                value += density * (np.trace(cov) / 3.0) ** config.beta
            terms["forces"].append(value / n)
        elif kind == "huber":
            terms["forces"] += huber(difference, config.huber_delta).ravel().tolist()
        else:
            terms["forces"] += (difference**2).ravel().tolist()
        if labels.has_stress[g] and with_stress:
            volume = abs(np.linalg.det(graph.cell[g].numpy()))
            residual = (stress[g] - labels.stress[g].numpy()) * volume / UNIT
            terms["stress"].append(np.mean(residual**2) / n)
    return (
        config.energy_weight * np.mean(terms["energy"])
        + config.forces_weight * np.mean(terms["forces"])
        + (config.stress_weight * np.mean(terms["stress"]) if terms["stress"] else 0.0)
    )


def huber(x, delta):
    size = np.abs(x)
    return np.where(size <= delta, x**2, 2.0 * delta * (size - 0.5 * delta))


CONFIGS = [
    LossConfig(energy_weight=1.0, forces_weight=1.0, stress_weight=1.0, beta=0.0),
    LossConfig(energy_weight=0.7, forces_weight=12.0, stress_weight=3.0, beta=0.5),
    LossConfig(energy_weight=2.0, forces_weight=0.0, stress_weight=0.0, beta=1.0, huber_delta=0.5),
]


@pytest.mark.parametrize("kind", ["mse", "huber", "nll_e", "nll_jef"])
@pytest.mark.parametrize("config", CONFIGS)
def test_loss_agrees_with_numpy(kind, config):
    outputs, labels, graph, _ = example()
    found = loss(kind, config, outputs, labels, graph, UNIT)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(reference(kind, config), rel=1e-12)
    without = loss(kind, config, outputs._replace(stress=None), labels, graph, UNIT)
    assert without.item() == pytest.approx(reference(kind, config, with_stress=False), rel=1e-12)


def test_stress_without_labels_is_not_in_the_loss():
    outputs, labels, graph, _ = example()
    unlabelled = labels._replace(has_stress=torch.zeros(3, dtype=torch.bool))
    found = loss("mse", CONFIGS[0], outputs, unlabelled, graph, UNIT)
    expected = loss("mse", CONFIGS[0], outputs._replace(stress=None), labels, graph, UNIT)
    assert found.item() == expected.item()


def test_joint_likelihood_is_the_gaussian_density_per_atom():
    """w = 1, β = 0: minus the log density of all labels, per atom, up to constants."""
    outputs, labels, graph, counts = example()
    found = loss("nll_jef", CONFIGS[0], outputs._replace(stress=None), labels, graph, UNIT)
    starts = np.concatenate([[0], np.cumsum(counts)])
    total = 0.0
    for g, n in enumerate(counts):
        density = norm.logpdf(labels.energy[g], outputs.energy[g], outputs.energy_var[g].sqrt())
        for i in range(starts[g], starts[g + 1]):
            density += multivariate_normal.logpdf(
                labels.forces[i], outputs.forces[i], outputs.forces_cov[i]
            )
        # log 2π, and the unit in which residuals are measured.
        constant = (1 + 3 * n) * (0.5 * math.log(2.0 * math.pi) + math.log(UNIT))
        total += -(density + constant) / n
    assert found.item() == pytest.approx(total / len(counts), rel=1e-12)


def test_huber_is_the_squared_error_within_delta():
    outputs, labels, graph, _ = example()
    wide = LossConfig(huber_delta=1e3)
    found = loss("huber", wide, outputs, labels, graph, UNIT)
    expected = loss("mse", wide, outputs, labels, graph, UNIT)
    assert found.item() == pytest.approx(expected.item(), rel=1e-13)


def test_likelihood_of_a_posterior_is_whole():
    """Per structure, without weights: minus the log density but for the constants."""
    outputs, labels, graph, _ = example()
    found = negative_log_likelihood(outputs, labels, graph)
    for g in range(graph.n_graphs):
        density = norm.logpdf(labels.energy[g], outputs.energy[g], outputs.energy_var[g].sqrt())
        atoms = torch.flatten(torch.argwhere(torch.eq(graph.batch, g)))
        for i in atoms.tolist():
            density += multivariate_normal.logpdf(
                labels.forces[i], outputs.forces[i], outputs.forces_cov[i]
            )
        constants = 0.5 * math.log(2.0 * math.pi) * (1 + 3 * len(atoms))
        assert found[g].item() == pytest.approx(-density - constants, rel=1e-10)
