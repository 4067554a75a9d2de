"""Numbers of a calibration record, on errors whose truth is known."""

import math

import pytest
from scipy.special import ndtr, ndtri
from synthetic_errors import fitted


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
