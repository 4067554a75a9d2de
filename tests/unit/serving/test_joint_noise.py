"""One factor for the noise of a mixture, on errors whose law is known."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.special import chdtri
from tiny import tiny_config, tiny_potential, tiny_sets

from ase_bayesmlip.metrics.errors import Errors
from ase_bayesmlip.metrics.laws import PredictiveLaw
from ase_bayesmlip.serving.home import Home
from ase_bayesmlip.serving.joint_noise import (
    LEAST,
    LEVEL,
    MOST,
    errors_at_home,
    fit_joint_noise,
    joint_factor,
)


def random_errors(true_factor, dimension=3, n_frames=100, n_atoms=20, spread=0.3, seed=0):
    """Gaussian errors of covariance Σ_epi + c Σ_ale with anisotropic parts."""
    generator = np.random.default_rng(seed)
    n, d = n_frames * n_atoms, dimension

    def covariances(size, rank):
        roots = size * generator.normal(size=(n, d, rank))
        return roots @ roots.swapaxes(1, 2)

    epistemic = covariances(spread, 1)
    aleatoric = covariances(1.0, 5) + 0.1 * np.eye(d)
    root = np.linalg.cholesky(epistemic + true_factor * aleatoric)
    error = np.einsum("nij,nj->ni", root, generator.normal(size=(n, d)))
    frame = np.arange(n) // n_atoms
    return Errors(error, epistemic, aleatoric, frame, law=PredictiveLaw())


@pytest.mark.parametrize("dimension", [1, 3])
@pytest.mark.parametrize("factor", [0.2, 1.0, 6.0])
def test_the_factor_of_misspecified_noise_is_found(dimension, factor):
    """Its standard error is 5 % at most: that of a quantile of 2,000 distances."""
    found = joint_factor(random_errors(factor, dimension))
    assert abs(np.log(found / factor)) < 0.15


def test_without_spread_the_factor_is_a_ratio_of_quantiles():
    errors = random_errors(1.0, dimension=1)
    errors = dataclasses.replace(errors, epistemic=0.0 * errors.epistemic)
    square = errors.error[:, 0] ** 2 / errors.aleatoric[:, 0, 0]
    expected = np.quantile(square, LEVEL) / chdtri(1, 1.0 - LEVEL)
    np.testing.assert_allclose(joint_factor(errors), expected, rtol=1e-9)


@pytest.mark.parametrize("times", [10.0, 1e4])
def test_one_rare_frame_does_not_move_the_factor(times):
    """One of a hundred, whose errors carry all of χ²: it moves the quantile by one rank in a
    hundred, and a factor of Gaussian errors by less than a tenth."""
    errors = random_errors(0.5)
    rare = errors.error.copy()
    rare[errors.frame == 7] *= times
    moved = joint_factor(dataclasses.replace(errors, error=rare))
    before = joint_factor(errors)
    assert before <= moved < 1.1 * before
    most_likely = np.mean((rare**2).sum(1)) / np.mean((errors.error**2).sum(1))
    assert most_likely > 1.9


def test_noise_stays_where_the_spread_is_wide_enough_alone():
    errors = random_errors(0.5)
    wide = dataclasses.replace(errors, epistemic=100.0 * np.tile(np.eye(3), (2000, 1, 1)))
    assert joint_factor(wide) == LEAST
    exact = dataclasses.replace(errors, error=0.0 * errors.error)
    assert joint_factor(exact) == LEAST
    assert joint_factor(dataclasses.replace(errors, error=1e9 * errors.error)) == MOST


def members_and_home(n_valid=12, loss="nll_jef", covariance="spd", n=3):
    config = tiny_config(
        data={"valid": tiny_config().data.train.replace("@0:7", f"@20:{20 + n_valid}")},
        loss={"kind": loss},
        model={"covariance": covariance},
        posterior={"kind": "ensemble", "members": n},
    )
    members = [tiny_potential(config).requires_grad_(False).eval() for _ in range(n)]
    train, valid = tiny_sets(config)
    generator = torch.Generator().manual_seed(0)
    for member in members:  # closer to each other than to the labels
        member.embedding *= 1.0 + 0.05 * torch.randn(4, generator=generator)
        member.noise.set_scales(2.0, 3.0)
    return members, Home(train, valid, np.array([[6, 2, 1]]))


def test_the_regions_of_a_mixture_hold_the_validation_frames():
    members, home = members_and_home()
    before = errors_at_home(members, home)
    found = fit_joint_noise(members, home)
    factors = found["noise"]
    after = errors_at_home(members, home)
    for name in ("energy", "forces"):
        assert LEAST < factors[name] < MOST
        np.testing.assert_allclose(
            after[name].aleatoric, factors[name] * before[name].aleatoric, rtol=1e-9
        )
        np.testing.assert_allclose(after[name].epistemic, before[name].epistemic, rtol=1e-12)
        np.testing.assert_array_equal(after[name].error, before[name].error)
        held = np.mean(after[name].confidence <= LEVEL)
        assert abs(held - LEVEL) <= 1.0 / len(after[name].error)
    again = fit_joint_noise(members, home)
    assert again["noise"] == pytest.approx(dict.fromkeys(factors, 1.0), rel=1e-6)
    squares = np.sort(after["energy"].standardised ** 2)[::-1]
    assert again["tenth"]["energy"] == pytest.approx(squares[:2].sum() / squares.sum())
    assert again["tenth"] == pytest.approx(found["tenth"])


def test_errors_at_home_are_labels_minus_the_mean_of_the_members():
    members, home = members_and_home()
    errors = errors_at_home(members, home)
    graph, labels = home.valid.items[3]
    leaf = graph._replace(positions=graph.positions.clone().requires_grad_(True))
    energies = torch.stack([member(leaf).atomic_energies.sum() for member in members])
    forces = -torch.autograd.grad(energies.mean(), leaf.positions)[0]
    np.testing.assert_allclose(
        errors["energy"].error[3], (labels.energy - energies.mean()).detach().numpy(), rtol=1e-9
    )
    mine = errors["forces"].frame == 3
    np.testing.assert_allclose(
        errors["forces"].error[mine], (labels.forces - forces).numpy(), rtol=1e-8, atol=1e-10
    )


@pytest.mark.parametrize(
    ("options", "fitted"),
    [
        ({"n_valid": 9}, set()),
        ({"loss": "mse"}, set()),
        ({"loss": "nll_e"}, {"energy"}),
        ({"covariance": "cholesky"}, {"energy"}),
        ({"loss": "evidential"}, set()),
    ],
)
def test_what_cannot_or_must_not_be_scaled_is_left_alone(options, fitted):
    members, home = members_and_home(**options)
    assert fit_joint_noise(members, home).get("noise", {}).keys() == fitted
    scales = [float(members[0].noise.energy_scale), float(members[0].noise.force_scale)]
    assert (scales[0] != 2.0) == ("energy" in fitted)
    assert scales[1] == 3.0
