"""Validation sets in which a few frames carry χ², and sets in which none does."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import chdtr, chdtri
from tiny import mixture_set, tiny_config, tiny_potential

from ase_bayesmlip.training.few_frames import MOST, carried, frame_chi2, warn_of_few_frames
from ase_bayesmlip.training.outputs import evaluate


def test_chi2_of_frames_in_batches_is_that_of_each():
    config = tiny_config()
    potential, data = tiny_potential(config), mixture_set(config)
    found = frame_chi2(potential, data)
    for k, (graph, labels) in enumerate(data.items):
        outputs = evaluate(potential, graph, False, create_graph=False)
        error = float((labels.energy - outputs.energy).detach())
        variance = float(outputs.energy_var.detach())
        np.testing.assert_allclose(found["energies"][k], error**2 / variance)
        residual = (labels.forces - outputs.forces).detach().numpy()
        covariance = outputs.forces_cov.detach().numpy()
        solved = np.linalg.solve(covariance, residual[:, :, None])[:, :, 0]
        np.testing.assert_allclose(found["forces"][k], (residual * solved).sum())


def test_a_potential_without_noise_has_no_chi2():
    config = tiny_config(loss={"kind": "mse"})
    assert frame_chi2(tiny_potential(config), mixture_set(config)) == {}


@pytest.mark.parametrize("dof", [1, 3, 27])
def test_what_the_largest_tenth_of_gaussian_errors_carries(dof):
    expected = 1.0 - chdtr(dof + 2, chdtri(dof, 0.1))
    chi2 = np.random.default_rng(0).chisquare(dof, size=100_000)
    assert carried(chi2)[0] == pytest.approx(expected, abs=0.01)
    assert expected <= 0.44


def test_healthy_sets_do_not_warn():
    generator = np.random.default_rng(1)
    shares = [carried(generator.chisquare(1, size=50))[0] for _ in range(2000)]
    assert np.mean(np.array(shares) > MOST) < 0.002


def test_the_frames_are_those_of_the_largest_values():
    chi2 = np.ones(40)
    chi2[[7, 31]] = 50.0, 60.0
    share, frames = carried(chi2)
    assert frames[:2].tolist() == [31, 7]
    assert len(frames) == 4
    assert share == pytest.approx(112.0 / 148.0)
    assert carried(np.zeros(40))[0] == 0.0


def test_the_warning_names_the_frames():
    config = tiny_config()
    potential, data = tiny_potential(config), mixture_set(config)
    data.items, data.sources = data.items[:1] * 30, [f"valid.xyz#{k}" for k in range(30)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_few_frames(potential, data, Path("run"))  # all the same: none carries more
    graph, labels = data.items[17]
    data.items[17] = (graph, labels._replace(energy=labels.energy + torch.tensor(1e4)))
    with pytest.warns(UserWarning, match=r"energies.*valid\.xyz#17, ") as caught:
        warn_of_few_frames(potential, data, Path("run"))
    assert len(caught) == 1  # forces are as they were
    data.items, data.sources = data.items[:29], data.sources[:29]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_few_frames(potential, data, Path("run"))  # too few to say
