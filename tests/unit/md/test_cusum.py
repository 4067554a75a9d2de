"""Page's sum: run lengths of the textbooks, and the limit that gives them."""

import math

import pytest

from ase_bayesmlip.md.cusum import LONGEST_RUN, limit_of, mean_run_length


def run_length(alarm, scores):
    for score in scores:
        if alarm.update(float(score)):
            return alarm.n_frames
    raise AssertionError(f"no alarm in {alarm.n_frames} frames")


@pytest.mark.parametrize(
    ("limit", "shift", "expected"),
    [(4.0, 0.0, 336.0), (5.0, 0.0, 930.0), (4.0, 1.0, 8.38), (5.0, 1.0, 10.4), (5.0, 2.0, 4.01)],
)
def test_run_lengths_of_the_textbooks(limit, shift, expected):
    """Montgomery, Introduction to Statistical Quality Control, chapter 9, for k = 1/2.

    The chart there has two sides, which halves its run length without a shift (168 and 465).
    """
    assert mean_run_length(limit, 0.5, shift) == pytest.approx(expected, rel=3e-3)


def test_without_a_limit_the_run_is_geometric():
    assert mean_run_length(1e-12, 0.5) == pytest.approx(1 / 0.3085375387259869, rel=1e-9)


@pytest.mark.parametrize("allowance", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("run_length", [100.0, 1e4, 1e8])
def test_limit_is_the_inverse_of_the_run_length(allowance, run_length):
    if 1 / (1 - 0.5 * math.erfc(-allowance / math.sqrt(2))) > run_length:
        return
    found = mean_run_length(limit_of(run_length, allowance), allowance)
    assert found == pytest.approx(run_length, rel=1e-6)


def test_limits_out_of_reach():
    for run_length in (3.0, 2 * LONGEST_RUN, float("nan")):
        with pytest.raises(ValueError, match="out of reach"):
            limit_of(run_length, 0.5)
