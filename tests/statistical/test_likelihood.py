"""What a likelihood teaches a potential: the noise of the labels, whatever the weights."""

import math

import numpy as np
import pytest
import torch
from ase import Atoms

from ase_bayesmlip.config import LossConfig, ModelConfig
from ase_bayesmlip.graph import batch_graphs
from ase_bayesmlip.nn.build import DataStatistics, build_potential
from ase_bayesmlip.testing import graph_of
from ase_bayesmlip.training.data import Labels
from ase_bayesmlip.training.loss import loss
from ase_bayesmlip.training.outputs import evaluate


def labels_of(energy: torch.Tensor, forces: torch.Tensor) -> Labels:
    n = len(energy)
    return Labels(
        energy=energy,
        forces=forces,
        stress=torch.zeros(n, 3, 3, dtype=torch.float64),
        has_stress=torch.zeros(n, dtype=torch.bool),
        n_atoms=torch.full((n,), len(forces) / n, dtype=torch.float64),
    )


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
@pytest.mark.slow
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
