"""How far so many frames reach."""

import pytest

from ase_bayesmlip.metrics.reach import frames_needed, promise, reachable_rate


@pytest.mark.parametrize("n", [1, 9, 20, 99, 100, 1000])
def test_reach_and_need_are_inverse(n):
    assert frames_needed(reachable_rate(n)) == n
    assert frames_needed(0.999 * reachable_rate(n)) > n


def test_the_promise_in_words():
    assert promise(19, regions=True) == (
        "false-alarm rates from 5 % on and regions of up to 95 % coverage can be promised "
        "(1 % needs 99 frames)"
    )
    assert "needs" not in promise(99)
