"""What the likelihoods are minimised by: the noise of the labels, whatever the weights."""

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from scipy.stats import multivariate_normal, norm

from ase_bayesmlip.config import LossConfig, ModelConfig
from ase_bayesmlip.graph import AtomicGraph, batch_graphs
from ase_bayesmlip.nn.build import DataStatistics, build_potential
from ase_bayesmlip.statistics import gaussian_nll, multivariate_nll
from ase_bayesmlip.testing import graph_of
from ase_bayesmlip.training.data import Labels
from ase_bayesmlip.training.loss import loss
from ase_bayesmlip.training.outputs import Outputs, evaluate

pytestmark = pytest.mark.slow

UNIT = 1.7


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def noise_sample(n: int = 300) -> torch.Tensor:
    """Anisotropic, correlated vectors."""
    mixing = torch.tensor([[1.0, 0.4, 0.0], [0.0, 0.5, -0.2], [0.0, 0.0, 0.1]])
    return randn(n, 3) @ mixing.double()


# --- minimisers in closed form -------------------------------------------------------------------


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


# --- losses against an independent evaluation ----------------------------------------------------


def example() -> tuple[Outputs, Labels, AtomicGraph, list[int]]:
    """A molecule without stress and two crystals, one of them labelled with stress."""
    frames = [
        Atoms("HO", [[0, 0, 0], [1.0, 0, 0]]),
        Atoms("OHH", [[0, 0, 0], [1, 0, 0], [0, 1, 0]], cell=[3.0, 4.0, 5.0], pbc=True),
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


# --- a potential that learns the noise of its labels ---------------------------------------------

N_DIMERS = 300
TRUE_FORCE = 0.8
# Standard deviations of the force noise by element: along the bond, across it.
SIGMA = {"spd": {"H": (0.30, 0.08), "O": (0.05, 0.15)}, "iso": {"H": (0.2, 0.2), "O": (0.06, 0.06)}}
SIGMA_ENERGY = 0.12


def noisy_dimers(sigma: dict[str, tuple[float, float]]):
    """HO dimers of one length in random directions, with noise that rotates along."""
    generator = np.random.default_rng(7)
    frames, forces, errors = [], [], []
    for _ in range(N_DIMERS):
        axis = generator.normal(size=3)
        axis /= np.linalg.norm(axis)
        frames.append(Atoms("HO", [np.zeros(3), 1.1 * axis]))
        for element, sign in (("H", -1.0), ("O", 1.0)):
            along, across = sigma[element]
            white = generator.normal(size=3)
            parallel = (white @ axis) * axis
            noise = along * parallel + across * (white - parallel)
            forces.append(sign * TRUE_FORCE * axis + noise)
            # Squared noise along the bond, and mean square of the two components across it.
            errors.append([noise @ axis, across * np.linalg.norm(white - parallel) / math.sqrt(2)])
    energies = SIGMA_ENERGY * generator.normal(size=N_DIMERS)
    graph = batch_graphs([graph_of(atoms, 3.0) for atoms in frames])
    labels = labels_of(torch.tensor(energies), torch.tensor(np.array(forces)))
    axes = np.array([atoms.positions[1] / 1.1 for atoms in frames])
    return graph, labels, axes, np.array(errors).reshape(N_DIMERS, 2, 2)


def minimise(potential, kind, n_steps, config, graph, labels) -> None:
    optimizer = torch.optim.LBFGS(
        potential.parameters(), max_iter=n_steps, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        outputs = evaluate(potential, graph, stress=False, create_graph=True)
        value = loss(kind, config, outputs, labels, graph, TRUE_FORCE)
        value.backward()
        return value

    optimizer.step(closure)


@pytest.mark.parametrize("covariance", ["spd", "iso"])
def test_potential_learns_the_noise_of_its_labels(covariance):
    """Variances within 4 standard errors of the truth: σ² √(2/n) with n = 300 or 600 squares."""
    sigma = SIGMA[covariance]
    graph, labels, axes, errors = noisy_dimers(sigma)
    config = ModelConfig(
        backbone="race",
        cutoff=3.0,
        n_layers=1,
        hidden_irreps="8x0e + 8x2e",
        l_max=2,
        n_radial=4,
        radial_hidden=[8],
        readout_hidden=8,
        covariance=covariance,
    )
    statistics = DataStatistics([1, 8], [0.0, 0.0], 1.0, TRUE_FORCE)
    potential = build_potential(config, LossConfig(), statistics, seed=0)
    objective = LossConfig(energy_weight=1.0, forces_weight=4.0, beta=0.0)
    minimise(potential, "mse", 30, objective, graph, labels)
    outputs = evaluate(potential, graph, stress=False, create_graph=False)
    error = float(((outputs.forces - labels.forces).detach() ** 2).mean())
    potential.noise.set_scales(0.01, error)
    for _ in range(2):  # the second time with a fresh estimate of the curvature
        minimise(potential, "nll_jef", 90, objective, graph, labels)
    outputs = evaluate(potential, graph, stress=False, create_graph=False)

    energy_var = float(outputs.energy_var[0].detach())
    sample = float(((labels.energy - labels.energy.mean()) ** 2).mean())
    assert energy_var == pytest.approx(sample, rel=0.02)
    assert energy_var == pytest.approx(SIGMA_ENERGY**2, rel=4.0 * math.sqrt(2.0 / N_DIMERS))

    found = outputs.forces_cov.detach().numpy().reshape(N_DIMERS, 2, 3, 3)
    for k, element in enumerate(("H", "O")):
        along = np.einsum("na,nab,nb->n", axes, found[:, k], axes)
        across = 0.5 * (np.trace(found[:, k], axis1=1, axis2=2) - along)
        # Fixed length: one covariance for all, but for rotation.
        assert np.ptp(along) < 1e-9 * along.mean()
        truth = np.array(sigma[element]) ** 2
        if covariance == "iso":
            pooled = (errors[:, k, 0] ** 2 + 2.0 * errors[:, k, 1] ** 2).mean() / 3.0
            assert along.mean() == pytest.approx(pooled, rel=0.02)
            error = math.sqrt(2.0 / (3 * N_DIMERS))
            assert along.mean() == pytest.approx(truth[0], rel=4.0 * error)
            continue
        squares = (errors[:, k] ** 2).mean(axis=0)
        assert along.mean() == pytest.approx(squares[0], rel=0.03)
        assert across.mean() == pytest.approx(squares[1], rel=0.02)
        assert along.mean() == pytest.approx(truth[0], rel=4.0 * math.sqrt(2.0 / N_DIMERS))
        assert across.mean() == pytest.approx(truth[1], rel=4.0 * math.sqrt(1.0 / N_DIMERS))
