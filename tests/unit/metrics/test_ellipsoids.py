"""Distances in units of a covariance, and the laws that they follow."""

import math

import numpy as np
import pytest
from gaussian_errors import ensemble_errors, random_spd
from scipy.stats import chi2, f, t

from ase_bayesmlip import metrics

LEVELS = np.linspace(0.0, 1.0, 21)


def test_mahalanobis_solves_the_linear_system():
    generator = np.random.default_rng(20)
    error, covariance = generator.normal(size=(9, 3)), random_spd(generator, 9)
    expected = [e @ np.linalg.solve(c, e) for e, c in zip(error, covariance, strict=True)]
    np.testing.assert_allclose(metrics.mahalanobis_squared(error, covariance), expected, rtol=1e-13)


def test_mahalanobis_is_rotation_invariant():
    generator = np.random.default_rng(21)
    error, covariance = generator.normal(size=(9, 3)), random_spd(generator, 9)
    q = np.linalg.qr(generator.normal(size=(3, 3)))[0]
    rotated = metrics.mahalanobis_squared(error @ q.T, q @ covariance @ q.T)
    np.testing.assert_allclose(rotated, metrics.mahalanobis_squared(error, covariance), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_members", [2, 3])
def test_singular_covariances_are_refused(n_members, dtype):
    error, covariance = ensemble_errors(np.random.default_rng(22), 2000, n_members)
    covariance = covariance.astype(dtype)
    name = np.dtype(dtype).name
    for function in (metrics.mahalanobis_squared, metrics.multivariate_gaussian_nll):
        with pytest.raises(ValueError, match=f"definite in {name}, and 2000 of 2000.*4 members"):
            function(error, covariance)
    with pytest.raises(ValueError, match=r"no inverse in 3 dimensions.*4 members or more"):
        metrics.hotelling_law(n_members)


def test_four_members_suffice():
    error, covariance = ensemble_errors(np.random.default_rng(24), 20000, 4)
    assert np.isfinite(metrics.mahalanobis_squared(error, covariance)).all()


def test_chi_squared_law():
    d2 = np.linspace(0.0, 30.0, 50)
    np.testing.assert_allclose(metrics.chi_squared_law()(d2), chi2.cdf(d2, 3), rtol=1e-13)


@pytest.mark.parametrize("n_members", [4, 8, 100])
def test_hotelling_law(n_members):
    d2 = np.linspace(0.0, 50.0, 50)
    # T² = d²/(1 + 1/S), and (S - 3)/(3 (S - 1)) T² ~ F(3, S - 3).
    ratio = (n_members - 3) / (3 * (n_members - 1)) * d2 / (1 + 1 / n_members)
    found = metrics.hotelling_law(n_members)(d2)
    np.testing.assert_allclose(found, f.cdf(ratio, 3, n_members - 3), rtol=1e-12)


def test_hotelling_law_of_a_scalar_is_that_of_student():
    d2 = np.linspace(0.0, 20.0, 30)
    expected = 2 * t.cdf(np.sqrt(d2 / (1 + 1 / 5)), 4) - 1
    np.testing.assert_allclose(metrics.hotelling_law(5, 1)(d2), expected, rtol=1e-12, atol=1e-15)


def test_hotelling_law_of_many_members_is_chi_squared():
    d2 = np.linspace(0.0, 20.0, 30)
    difference = metrics.hotelling_law(10**6)(d2) - metrics.chi_squared_law()(d2)
    assert np.abs(difference).max() < 1e-5


def test_student_t_law():
    d2 = np.linspace(0.0, 20.0, 30)
    dof = np.linspace(0.5, 40.0, 30)
    np.testing.assert_allclose(metrics.student_t_law(dof)(d2), f.cdf(d2 / 3, 3, dof), rtol=1e-12)
    np.testing.assert_allclose(metrics.student_t_law(5)(d2), f.cdf(d2 / 3, 3, 5), rtol=1e-12)


LAWS = {
    "chi2": (metrics.chi_squared_law(), lambda p: chi2.ppf(p, 3)),
    "hotelling": (
        metrics.hotelling_law(8),
        lambda p: (1 + 1 / 8) * 3 * 7 / 5 * f.ppf(p, 3, 5),
    ),
    "student_t": (metrics.student_t_law(5.0), lambda p: 3 * f.ppf(p, 3, 5)),
}


@pytest.mark.parametrize("name", LAWS)
def test_the_curve_counts_the_labels_inside_the_ellipsoids(name):
    law, quantile = LAWS[name]
    d2 = np.random.default_rng(24).exponential(3.0, size=501)
    levels = LEVELS[1:-1]
    expected = [(d2 <= quantile(p)).mean() for p in levels]
    found = metrics.calibration_curve(metrics.ellipsoid_confidence(d2, law), levels)
    np.testing.assert_array_equal(found, expected)


def test_chi_squared_regions_of_eight_members_cover_too_little():
    # P(d² ≤ χ²₀.₉) under the true law, d² ~ 4.725 F(3, 5).
    exact = f.cdf(chi2.ppf(0.9, 3) / (9 / 8 * 3 * 7 / 5), 3, 5)
    assert exact == pytest.approx(0.635, abs=5e-4)
    n = 20000
    d2 = metrics.mahalanobis_squared(*ensemble_errors(np.random.default_rng(25), n, 8))
    naive = metrics.ellipsoid_confidence(d2, metrics.chi_squared_law())
    right = metrics.ellipsoid_confidence(d2, metrics.hotelling_law(8))
    for confidence, truth in ((naive, exact), (right, 0.9)):
        standard_error = math.sqrt(truth * (1 - truth) / n)
        assert abs(metrics.coverage(confidence, 0.9) - truth) < 4 * standard_error
