"""Numbers of a validation against sums over single frames."""

import numpy as np
import pytest
from tiny import mixture_set, tiny_config, tiny_potential

from ase_bayesmlip.training.loss import loss
from ase_bayesmlip.training.outputs import evaluate
from ase_bayesmlip.training.validation import validation_metrics

UNIT = 0.8


def test_numbers_are_those_of_single_frames():
    """Of molecules and crystals: frames of different sizes, in one batch."""
    config = tiny_config(loss={"kind": "nll_jef", "beta": 0.5})
    potential, data = tiny_potential(config), mixture_set(config)
    found = validation_metrics(potential, data, "nll_jef", config.loss, False, UNIT)
    whole = tiny_config(loss={"kind": "nll_jef", "beta": 0.0}).loss
    per_frame, residuals, distances = [], [], []
    for graph, labels in data.items:
        outputs = evaluate(potential, graph, False, create_graph=False)
        value = float(loss("nll_jef", whole, outputs, labels, graph, UNIT).detach())
        error, n = float((labels.energy - outputs.energy).detach()), len(graph.positions)
        variance = float(outputs.energy_var.detach())
        per_frame.append([value, error**2 / n, (error / n) ** 2, error**2 / variance])
        residuals.append((labels.forces - outputs.forces).detach().numpy())
        covariance = outputs.forces_cov.detach().numpy()
        solved = np.linalg.solve(covariance, residuals[-1][:, :, None])[:, :, 0]
        distances.append((residuals[-1] * solved).sum(axis=1))
    value, energy, per_atom, chi2 = np.mean(per_frame, axis=0)
    force = np.mean(np.concatenate(residuals) ** 2)
    expected = {
        "loss": value,
        "energy_mse": energy,
        "forces_mse": force,
        "energy_rmse_meV_per_atom": 1e3 * np.sqrt(per_atom),
        "forces_rmse_meV_per_A": 1e3 * np.sqrt(force),
        "energy_chi2": chi2,
        "forces_chi2": np.mean(np.concatenate(distances)) / 3,
    }
    assert found == pytest.approx(expected, rel=1e-9)
