"""Numbers of a calibration record, on errors whose truth is known."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import ndtr, ndtri
from scipy.stats import multivariate_t
from synthetic_errors import fitted, student_errors

from ase_bayesmlip.calibration.quality import Quality


def test_likelihood_of_student_t_errors_is_the_density():
    """Their scale matrix is (η - 2)/η of the covariance; folds of other sizes count by items."""
    errors = student_errors(np.random.default_rng(3), 30, 2.0, 0.5)
    quality = Quality()
    for fold in (np.arange(7), np.arange(7, 30)):
        quality.add(SimpleNamespace(forces=errors.take(fold), energy=None))
    items = zip(errors.error, errors.covariance, errors.law.dof, strict=True)
    density = [multivariate_t.logpdf(e, shape=(d - 2) / d * c, df=d) for e, c, d in items]
    found = quality.numbers()["law"]["forces"]["nll"]
    assert found == pytest.approx(-np.mean(density), rel=1e-12)


def test_numbers_before_and_after():
    found = fitted("global", n_frames=600, a=4.0, b=4.0)
    before, after = found.numbers["before"], found.numbers["after"]
    # Error bars too small by a factor of 2.
    assert before["energy"]["coverage_90"] == pytest.approx(2 * ndtr(ndtri(0.95) / 2) - 1, abs=0.08)
    for name, n in (("energy", 600), ("forces", 2400)):
        error = math.sqrt(0.09 / n)
        assert abs(after[name]["coverage_90"] - 0.9) < 4 * error
        assert abs(found.numbers["after_isotonic"][name]["coverage_90"] - 0.9) < 4 * error
        # The floor 1/6n of a perfect model, and four of its standard deviations 1/√45n.
        assert after[name]["calibration_error"] < (1 / 6 + 4 / math.sqrt(45)) / n
        assert before[name]["calibration_error"] > 10 * after[name]["calibration_error"]
        assert after[name]["nll"] < before[name]["nll"] - 0.2
    assert abs(found.numbers["after_conformal"]["energy"]["coverage_90"] - 0.9) < 0.06


def test_isotonic_levels_repair_what_a_factor_cannot():
    found = fitted("global", n_frames=600, tails=2)
    for name in ("energy", "forces"):
        after, isotonic = (found.numbers[s][name] for s in ("after", "after_isotonic"))
        assert isotonic["calibration_error"] < 0.2 * after["calibration_error"]
