"""Observed against predicted shares: by hand, and on models that are right."""

import math

import numpy as np
import pytest
from gaussian_errors import ensemble_errors, gaussian_vectors, random_spd
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from ase_bayesmlip import metrics

LEVELS = np.linspace(0.0, 1.0, 21)


def scalar_confidence(generator, n):
    std = np.exp(generator.normal(size=n))
    return metrics.interval_confidence(std * generator.normal(size=n), std)


def gaussian_confidence(generator, n):
    covariance = random_spd(generator, n)
    d2 = metrics.mahalanobis_squared(gaussian_vectors(generator, covariance), covariance)
    return metrics.ellipsoid_confidence(d2, metrics.chi_squared_law())


def ensemble_confidence(n_members):
    def confidence(generator, n):
        d2 = metrics.mahalanobis_squared(*ensemble_errors(generator, n, n_members))
        return metrics.ellipsoid_confidence(d2, metrics.hotelling_law(n_members))

    return confidence


def student_confidence(generator, n):
    scale, dof = random_spd(generator, n), generator.uniform(2.5, 9.0, size=n)
    width = np.sqrt(dof / generator.chisquare(dof))
    error = width[:, None] * gaussian_vectors(generator, scale)
    d2 = metrics.mahalanobis_squared(error, scale)
    return metrics.ellipsoid_confidence(d2, metrics.student_t_law(dof))


PERFECT = {
    "scalar": scalar_confidence,
    "chi2": gaussian_confidence,
    "4 members": ensemble_confidence(4),
    "8 members": ensemble_confidence(8),
    "student_t": student_confidence,
}


@pytest.mark.parametrize("name", PERFECT)
def test_a_perfect_model_reaches_the_floor(name):
    # 200 data sets of 200 items. The standard deviation of one CE is 1/(√45 n).
    n, repeats = 200, 200
    confidence = PERFECT[name](np.random.default_rng(30), n * repeats).reshape(repeats, n)
    errors = [metrics.calibration_error(u) for u in confidence]
    standard_error = 1 / math.sqrt(45) / n / math.sqrt(repeats)
    assert abs(np.mean(errors) - metrics.calibration_error_floor(n)) < 4 * standard_error
    whole = metrics.calibration_curve(confidence, LEVELS)
    spread = np.sqrt(LEVELS * (1 - LEVELS) / (n * repeats))
    assert (np.abs(whole - LEVELS) <= 4.5 * spread).all()


def test_spread_of_the_calibration_error_of_a_perfect_model():
    n, repeats = 300, 3000
    confidence = np.random.default_rng(31).uniform(size=(repeats, n))
    errors = [metrics.calibration_error(u) for u in confidence]
    # The law has a long tail: the standard deviation of 3000 values is known to about 3 %.
    assert n * np.std(errors) == pytest.approx(1 / math.sqrt(45), rel=0.12)


@pytest.mark.parametrize("n_levels", [1, 7, 100])
def test_floor_is_the_mean_binomial_variance(n_levels):
    p = np.arange(1, n_levels + 1) / (n_levels + 1)
    expected = np.mean(p * (1 - p)) / 250
    assert metrics.calibration_error_floor(250, n_levels) == pytest.approx(expected, rel=1e-13)


def test_calibration_curve_by_hand():
    confidence = [[0.0, 0.2], [0.2, 1.0]]
    found = metrics.calibration_curve(confidence, [0.0, 0.1, 0.2, 0.9, 1.0])
    np.testing.assert_array_equal(found, [0.25, 0.25, 0.75, 0.75, 1.0])
    assert metrics.coverage(confidence, 0.2) == 0.75


def test_calibration_error_by_hand():
    # Levels 1/4, 1/2, 3/4; observed 0, 1/2, 1/2.
    assert metrics.calibration_error([0.4, 0.8], n_levels=3) == pytest.approx(2 / 48)


def test_calibration_error_at_its_worst():
    assert metrics.calibration_error(np.ones(10)) == pytest.approx(201 / 606)
    assert metrics.calibration_error(np.zeros(10)) == pytest.approx(201 / 606)


def test_interval_confidence_is_the_smallest_interval():
    generator = np.random.default_rng(32)
    error, std = generator.normal(size=(100, 3)), generator.uniform(0.7, 2.0, size=(100, 3))
    confidence = metrics.interval_confidence(error, std)
    assert confidence.shape == error.shape
    np.testing.assert_allclose(std * norm.ppf((1 + confidence) / 2), np.abs(error), rtol=1e-8)
    for p in LEVELS[1:-1]:
        expected = (np.abs(error) <= std * norm.ppf((1 + p) / 2)).mean()
        assert metrics.coverage(confidence, p) == expected


def test_pit():
    error, std = np.array([-1.0, 0.0, 2.0]), np.array([0.5, 1.0, 4.0])
    pit = metrics.pit_gaussian(error, std)
    np.testing.assert_allclose(pit, norm.cdf(error, scale=std), rtol=1e-14)
    confidence = metrics.interval_confidence(error, std)
    np.testing.assert_allclose(confidence, np.abs(2 * pit - 1), rtol=1e-13)


def test_overconfidence_lies_below_the_diagonal():
    generator = np.random.default_rng(33)
    error = generator.normal(size=4000)
    levels = LEVELS[2:-1]
    halved = metrics.calibration_curve(
        metrics.interval_confidence(error, np.full(4000, 0.5)), levels
    )
    expected = 2 * norm.cdf(0.5 * norm.ppf((1 + levels) / 2)) - 1
    assert (halved < levels).all()
    np.testing.assert_allclose(halved, expected, atol=4.5 * 0.5 / math.sqrt(4000))


def test_sharpness():
    assert metrics.sharpness([[1.0, 4.0], [2.0, 9.0]]) == 2.0


@given(
    st.lists(st.floats(0.0, 1.0), min_size=1, max_size=30),
    st.integers(1, 40),
)
def test_curve_rises_and_error_is_bounded(confidence, n_levels):
    curve = metrics.calibration_curve(confidence, LEVELS)
    assert (np.diff(curve) >= 0).all()
    assert curve[0] >= 0
    assert curve[-1] == 1
    # The worst curves are 0 or 1 throughout.
    error = metrics.calibration_error(confidence, n_levels)
    assert 0 <= error <= (2 * n_levels + 1) / (6 * (n_levels + 1)) + 1e-12
