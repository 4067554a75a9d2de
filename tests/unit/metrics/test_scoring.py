"""Errors and proper scoring rules against closed forms, scipy, and samples."""

import itertools
import math

import numpy as np
import pytest
from gaussian_errors import gaussian_vectors, random_spd
from scipy.integrate import quad
from scipy.special import erf
from scipy.stats import multivariate_normal, multivariate_t, norm

from ase_bayesmlip import metrics


def test_rmse_and_mae():
    error = [[3.0, -4.0], [0.0, 5.0]]
    assert metrics.rmse(error) == math.sqrt(12.5)
    assert metrics.mae(error) == 3.0


def test_gaussian_nll_is_the_density():
    generator = np.random.default_rng(0)
    error, std = generator.normal(size=(7, 3)), np.exp(generator.normal(size=(7, 3)))
    expected = -norm.logpdf(error, scale=std).mean()
    assert metrics.gaussian_nll(error, std**2) == pytest.approx(expected, rel=1e-14)


def test_multivariate_gaussian_nll_is_the_density():
    generator = np.random.default_rng(1)
    error, covariance = generator.normal(size=(6, 3)), random_spd(generator, 6)
    expected = -np.mean(
        [multivariate_normal.logpdf(e, cov=c) for e, c in zip(error, covariance, strict=True)]
    )
    found = metrics.multivariate_gaussian_nll(error, covariance)
    assert found == pytest.approx(expected, rel=1e-13)


def test_multivariate_gaussian_nll_of_a_diagonal_covariance_is_three_gaussians():
    generator = np.random.default_rng(2)
    error, variance = generator.normal(size=(6, 3)), np.exp(generator.normal(size=(6, 3)))
    covariance = variance[:, :, None] * np.eye(3)
    found = metrics.multivariate_gaussian_nll(error, covariance)
    assert found == pytest.approx(3 * metrics.gaussian_nll(error, variance), rel=1e-13)


def test_nll_in_another_unit_is_shifted_by_the_logarithm():
    generator = np.random.default_rng(3)
    error, covariance = generator.normal(size=(6, 3)), random_spd(generator, 6)
    factor = 1000.0
    for nll in (
        metrics.multivariate_gaussian_nll,
        lambda e, c: metrics.student_t_nll(e, c, 5.0),
    ):
        shift = nll(factor * error, factor**2 * covariance) - nll(error, covariance)
        assert shift == pytest.approx(3 * math.log(factor), rel=1e-12)


@pytest.mark.parametrize("d", [1, 3])
def test_student_t_nll_is_the_density(d):
    generator = np.random.default_rng(4)
    error, scale = generator.normal(size=(8, d)), random_spd(generator, 8, d)
    dof = generator.uniform(0.5, 20.0, size=8)
    density = [
        multivariate_t.logpdf(e, shape=a, df=nu) for e, a, nu in zip(error, scale, dof, strict=True)
    ]
    assert metrics.student_t_nll(error, scale, dof) == pytest.approx(-np.mean(density), rel=1e-12)
    single = metrics.student_t_nll(error[:1], scale[:1], dof[0])
    assert single == pytest.approx(-density[0], rel=1e-12)


@pytest.mark.parametrize("dof", [1e8, 1e12])
def test_student_t_nll_becomes_gaussian(dof):
    generator = np.random.default_rng(5)
    error, scale = generator.normal(size=(8, 3)), random_spd(generator, 8)
    gaussian = metrics.multivariate_gaussian_nll(error, scale)
    # The first correction is of the order 1/ν; the log-gammas must not add round-off to it.
    assert metrics.student_t_nll(error, scale, dof) == pytest.approx(
        gaussian, abs=100 / dof + 1e-13
    )


@pytest.mark.parametrize(("error", "std"), [(0.0, 1.0), (0.7, 0.3), (-2.5, 1.4)])
def test_crps_is_its_integral(error, std):
    below = quad(lambda x: norm.cdf(x, scale=std) ** 2, -np.inf, error)[0]
    above = quad(lambda x: norm.sf(x, scale=std) ** 2, error, np.inf)[0]
    assert metrics.crps_gaussian([error], [std]) == pytest.approx(below + above, abs=1e-7)


def test_crps_of_a_certain_forecast_is_the_mean_absolute_error():
    error = np.array([0.3, -2.0, 1.0])
    found = metrics.crps_gaussian(error, np.full(3, 1e-12))
    assert found == pytest.approx(metrics.mae(error), abs=1e-12)


def test_energy_score_by_hand():
    # Samples at 0 and (3, 4, 0), label at the origin: (0 + 5)/2 - 2·5/(2·2·1) = 0.
    samples = np.array([[[0.0, 0.0, 0.0], [3.0, 4.0, 0.0]]])
    assert metrics.energy_score([[0.0, 0.0, 0.0]], samples) == 0.0
    assert metrics.energy_score([[0.0, 0.0, 2.0]], samples) == pytest.approx(
        (2.0 + math.sqrt(29.0)) / 2 - 2.5
    )


def test_energy_score_counts_every_pair_once():
    generator = np.random.default_rng(6)
    label, samples = generator.normal(size=(4, 3)), generator.normal(size=(4, 7, 3))
    expected = 0.0
    for y, drawn in zip(label, samples, strict=True):
        to_label = np.mean([np.linalg.norm(s - y) for s in drawn])
        apart = np.mean([np.linalg.norm(a - b) for a, b in itertools.permutations(drawn, 2)])
        expected += (to_label - 0.5 * apart) / 4
    assert metrics.energy_score(label, samples) == pytest.approx(expected, rel=1e-13)


def test_energy_score_in_one_dimension_is_the_crps():
    # The estimate is unbiased: its mean over 4000 pairs of samples is the CRPS.
    generator = np.random.default_rng(7)
    error, std = 0.8, 0.6
    scores = [
        metrics.energy_score([[error]], std * generator.normal(size=(1, 2, 1))) for _ in range(4000)
    ]
    standard_error = np.std(scores) / math.sqrt(len(scores))
    assert abs(np.mean(scores) - metrics.crps_gaussian([error], [std])) < 4 * standard_error


def gaussian_scores(error, covariance, seed, n=200):
    generator = np.random.default_rng(seed)
    scores = [
        metrics.energy_score_gaussian(error, covariance, 20, generator=generator) for _ in range(n)
    ]
    return np.mean(scores), np.std(scores) / math.sqrt(n)


def test_energy_score_of_an_isotropic_gaussian():
    # |Z - e| follows Maxwell's distribution, moved: E|Z - e| is in closed form.
    error, sigma = np.array([[0.3, -0.4, 1.2]]), 0.7
    r = np.linalg.norm(error) / sigma
    distance = math.sqrt(2 / math.pi) * math.exp(-(r**2) / 2) + (r + 1 / r) * erf(r / math.sqrt(2))
    exact = sigma * (distance - 2 / math.sqrt(math.pi))
    found, standard_error = gaussian_scores(error, sigma**2 * np.eye(3)[None], 8)
    assert standard_error < 0.01 * exact
    assert abs(found - exact) < 4 * standard_error


def test_energy_score_of_a_gaussian_is_that_of_its_samples():
    generator = np.random.default_rng(9)
    covariance = random_spd(generator, 5)
    error = gaussian_vectors(generator, covariance)
    found, standard_error = gaussian_scores(error, covariance, 10)
    many = [
        metrics.energy_score(
            error,
            np.stack([gaussian_vectors(generator, covariance) for _ in range(20)], axis=1),
        )
        for _ in range(200)
    ]
    total = math.hypot(standard_error, np.std(many) / math.sqrt(200))
    assert total < 0.02 * found
    assert abs(found - np.mean(many)) < 4 * total


def test_energy_score_needs_no_inverse():
    error = np.array([[3.0, 4.0, 0.0]])
    generator = np.random.default_rng(11)
    certain = metrics.energy_score_gaussian(error, np.zeros((1, 3, 3)), 1, generator=generator)
    assert certain == pytest.approx(5.0, rel=1e-15)
    flat, error_of_it = gaussian_scores([[0.8, 0.0, 0.0]], np.diag([0.36, 0.0, 0.0])[None], 12)
    assert abs(flat - metrics.crps_gaussian([0.8], [0.6])) < 4 * error_of_it


def test_draws_come_from_the_generator():
    error, covariance = np.ones((2, 3)), np.stack([np.eye(3)] * 2)
    first, second = (
        metrics.energy_score_gaussian(error, covariance, 5, generator=np.random.default_rng(13))
        for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("scale", [0.7, 1.4])
def test_scoring_rules_prefer_the_truth(scale):
    generator = np.random.default_rng(14)
    covariance = random_spd(generator, 3000)
    error = gaussian_vectors(generator, covariance)
    wrong = scale**2 * covariance
    std = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    assert metrics.gaussian_nll(error, std**2) < metrics.gaussian_nll(error, (scale * std) ** 2)
    assert metrics.crps_gaussian(error, std) < metrics.crps_gaussian(error, scale * std)
    nll = metrics.multivariate_gaussian_nll
    assert nll(error, covariance) < nll(error, wrong)
    right, mistaken = (
        metrics.energy_score_gaussian(error, c, 50, generator=np.random.default_rng(15))
        for c in (covariance, wrong)
    )
    assert right < mistaken
