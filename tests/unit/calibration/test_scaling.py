"""Variance factors: closed forms, maxima, and standard errors over repeats."""

import dataclasses
import math

import numpy as np
import pytest
from synthetic_errors import force_errors, student_errors, synthetic

from ase_bayesmlip.calibration import scaled_results
from ase_bayesmlip.calibration.scaling import (
    Factors,
    components,
    fit_one_factor,
    fit_two_factors,
)
from ase_bayesmlip.metrics import PredictiveLaw


def test_one_factor_in_closed_form():
    generator = np.random.default_rng(0)
    errors = force_errors(generator, 50, 2.0, 2.0)
    d2 = np.einsum("ni,nij,nj->n", errors.error, np.linalg.inv(errors.covariance), errors.error)
    fit = fit_one_factor(components(errors))
    assert fit.epistemic == fit.aleatoric == pytest.approx(d2.mean() / 3, rel=1e-12)


@pytest.mark.parametrize("factors", [(1.0, 1.0), (4.0, 0.25), (0.1, 3.0)])
def test_two_factors_within_their_standard_errors(factors):
    """Over repeats: no bias, and standard errors that say how far they scatter."""
    repeats = 60
    logs, errors = [], []
    for seed in range(repeats):
        generator = np.random.default_rng([1, seed])
        fit = fit_two_factors(components(force_errors(generator, 300, *factors)))
        logs.append(np.log(fit[:2]))
        errors.append(fit.log_errors)
    z = (np.array(logs) - np.log(factors)) / np.array(errors)
    assert np.abs(z.mean(axis=0)).max() < 4 / math.sqrt(repeats)
    # The variance of z² of a Gaussian is 2.
    assert np.abs((z**2).mean(axis=0) - 1).max() < 4 * math.sqrt(2 / repeats)


def test_two_factors_are_the_best_there_are():
    errors = force_errors(np.random.default_rng(5), 200, 3.0, 0.5)
    fit = fit_two_factors(components(errors))

    def nll(*factors):
        return errors.scaled(*(np.full(200, factor) for factor in factors)).nll

    best = nll(*fit[:2])
    for angle in np.linspace(0, 2 * np.pi, 12, endpoint=False):
        moved = (
            fit[0] * math.exp(0.02 * math.cos(angle)),
            fit[1] * math.exp(0.02 * math.sin(angle)),
        )
        assert nll(*moved) > best


def test_standard_errors_know_that_atoms_of_a_frame_are_not_independent():
    """Nine copies of one error in each frame tell nothing that one does not."""
    errors = force_errors(np.random.default_rng(2), 100, 2.0, 0.5)
    copies = np.repeat(np.arange(100), 9)
    many = errors.take(copies)
    for fit in (fit_one_factor, fit_two_factors):
        one, nine = fit(components(errors)), fit(components(many))
        assert nine[:2] == pytest.approx(one[:2], rel=1e-5)
        assert nine.log_errors == pytest.approx(one.log_errors, rel=1e-3)


@pytest.mark.parametrize("fit", [fit_one_factor, fit_two_factors])
def test_student_factors_are_the_best_there_are(fit):
    errors = student_errors(np.random.default_rng(6), 200, 3.0, 3.0)
    found = fit(components(errors))

    def nll(*factors):
        return errors.scaled(*(np.full(200, factor) for factor in factors)).nll

    best = nll(*found[:2])
    diagonal = [(0.02, 0.02), (-0.02, -0.02)]
    moves = diagonal if fit is fit_one_factor else [*diagonal, (0.02, -0.02), (0.0, 0.02)]
    for one, two in moves:
        assert nll(found[0] * math.exp(one), found[1] * math.exp(two)) > best


@pytest.mark.parametrize("factors", [(2.0, 2.0), (4.0, 0.25)])
def test_student_factors_within_their_standard_errors(factors):
    repeats = 60
    fit = fit_one_factor if factors[0] == factors[1] else fit_two_factors
    z = []
    for seed in range(repeats):
        generator = np.random.default_rng([2, seed])
        found = fit(components(student_errors(generator, 300, *factors)))
        z.append((np.log(found[:2]) - np.log(factors)) / np.array(found.log_errors))
    z = np.array(z)
    assert np.abs(z.mean(axis=0)).max() < 4 / math.sqrt(repeats)
    assert np.abs((z**2).mean(axis=0) - 1).max() < 4 * math.sqrt(2 / repeats)


@pytest.mark.parametrize("fit", [fit_one_factor, fit_two_factors])
def test_many_degrees_of_freedom_are_gaussian(fit):
    errors = force_errors(np.random.default_rng(7), 100, 2.0, 0.5)
    many = dataclasses.replace(errors, law=PredictiveLaw(dof=np.full(100, 1e9)))
    one, two = fit(components(errors)), fit(components(many))
    assert two[:2] == pytest.approx(one[:2], rel=1e-5)
    assert two.log_errors == pytest.approx(one.log_errors, rel=1e-5)


def test_scaled_results():
    results, frames = synthetic(1)
    factors = Factors({"H": 1.0, "C": 2.0, "O": 3.0}, {"H": 4.0, "C": 5.0, "O": 6.0}, 7.0, 8.0)
    scaled = scaled_results(results[0], list(frames[0].atoms.symbols), factors)
    expected = np.array([2.0, 1.0, 1.0, 3.0])[:, None, None] * results[0]["forces_cov_epistemic"]
    np.testing.assert_array_equal(scaled["forces_cov_epistemic"], expected)
    assert scaled["energy_var_aleatoric"] == 8.0 * results[0]["energy_var_aleatoric"]
    assert "forces_cov" not in scaled
    squared = factors * factors
    assert squared.forces_aleatoric == {"H": 16.0, "C": 25.0, "O": 36.0}
    assert squared.energy_epistemic == 49.0
