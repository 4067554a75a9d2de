"""Conformal and isotonic levels: by hand, and against known quantiles."""

import numpy as np
import pytest
from scipy.optimize import isotonic_regression
from scipy.special import ndtr

from ase_bayesmlip.calibration.levels import (
    LEVELS,
    conformal_at,
    conformal_radii,
    isotonic_at,
    isotonic_quantiles,
)
from ase_bayesmlip.md.threshold import false_alarm_threshold


def test_conformal_radius_of_one_distance_a_frame_is_the_known_quantile():
    distance = np.random.default_rng(0).exponential(size=73)
    radii = conformal_radii(distance, np.arange(73))
    for level, radius in zip(LEVELS, radii, strict=True):
        if radius is None:
            assert level > 73 / 74
        else:
            assert radius == false_alarm_threshold(distance, 1 - level)


def test_conformal_radius_by_hand():
    """Two frames, of one and of two atoms: weights 1/3, 1/6 and 1/6, and 1/3 at infinity."""
    distance, frame = np.array([2.0, 1.0, 3.0]), np.array([0, 1, 1])
    levels = [0.1, 1 / 6, 0.2, 0.5, 0.6, 2 / 3, 0.7]
    assert conformal_radii(distance, frame, levels) == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, None]


def test_isotonic_regression_of_a_distribution_function_is_the_function():
    """Which is why there is no pool-adjacent-violators here (Kuleshov et al., algorithm 1)."""
    predicted = np.sort(ndtr(np.random.default_rng(0).normal(scale=2.0, size=200)))
    observed = np.array([(predicted <= p).mean() for p in predicted])
    np.testing.assert_allclose(isotonic_regression(observed).x, observed, atol=1e-12)


def test_isotonic_quantiles():
    values = np.random.default_rng(0).permutation(np.arange(1.0, 100.0))  # n + 1 = 100
    found = dict(zip(LEVELS, isotonic_quantiles(values), strict=True))
    assert (found[0.01], found[0.5], found[0.985]) == pytest.approx((1.0, 50.0, 98.5))
    assert found[0.001] is found[0.005] is found[0.995] is None
    levels, quantiles = zip(*found.items(), strict=True)
    assert isotonic_at(levels, quantiles, 0.9025) == pytest.approx(90.25)
    with pytest.raises(ValueError, match="more frames"):
        isotonic_at(levels, quantiles, 0.999)


def test_a_coverage_between_levels_gets_the_larger_radius():
    levels, radii = [0.5, 0.9, 0.95], [1.0, 2.0, None]
    assert conformal_at(levels, radii, 0.5) == 1.0
    assert conformal_at(levels, radii, 0.51) == 2.0
    with pytest.raises(ValueError, match="needs at least 19"):
        conformal_at(levels, radii, 0.95)
    for coverage in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            conformal_at(levels, radii, coverage)
