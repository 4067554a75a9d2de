"""Progress of a run whose number of epochs changes on the way."""

import math

import pytest

from ase_bayesmlip.training.schedule import Schedule, planned_epochs


def test_a_plan_that_stays_is_a_straight_line_to_the_bit():
    """What every run was before there were others."""
    schedule = Schedule(7)
    for step in range(7 * 3):
        assert schedule.at(step, 3) == step / 21
    assert [Schedule(n).epoch_of(f) for n in (7, 10) for f in (0.35, 0.7)] == [
        round(f * n) for n in (7, 10) for f in (0.35, 0.7)
    ]


@pytest.mark.parametrize("epochs", [6, 8, 30])
def test_another_plan_goes_on_from_where_the_run_is_to_one(epochs):
    """In closed form: 0.4 after 4 of 10 epochs, the rest divided by the epochs that are left."""
    schedule = Schedule(10).replanned(epochs, 4)
    assert schedule.at(4 * 5, 5) == 0.4
    assert schedule.at(epochs * 5, 5) == pytest.approx(1.0, abs=1e-15)
    middle = (4 + epochs) / 2
    assert schedule.at(middle) == pytest.approx(0.7, abs=1e-15)
    assert schedule.epoch_of(0.7) == round(middle)
    assert schedule.replanned(epochs, 5) is schedule


def test_progress_never_goes_back_whatever_the_plans():
    schedule, before = Schedule(50), 0.0
    for done, epochs in enumerate([50, 30, 44, 12, 50, 9, 9, 20, 10]):
        schedule = schedule.replanned(max(epochs, done + 1), done)
        now = schedule.at(done)
        assert before <= now < schedule.at(done + 1) <= 1.0
        before = now


@pytest.mark.parametrize(
    ("seconds", "limit", "planned"),
    [
        ([2.0], 100.0, 40),  # the first tells too little to plan by
        ([2.0], 3.9, 2),  # but that time is over
        ([9.0, 1.0], 21.0, 13),  # 11 s left at 1 s
        ([9.0, 1.0, 3.0], 23.0, 8),  # 10 s left at 2 s
        ([9.0, 1.0], 10.5, 3),  # one more, and no more than one over time
        ([9.0, 1.0], 3.0, 3),
        ([1.0, 1.0], 1000.0, 40),
        ([1.0, *[5.0] * 20, *[1.0] * 5], 120.0, 40),  # the pace is that of the last ones
        ([0.1] * 10, 2.0, 20),  # 0.9999… epochs of round-off
    ],
)
def test_epochs_that_a_time_allows(seconds, limit, planned):
    assert planned_epochs(40, len(seconds), limit, seconds) == planned


def test_a_clock_that_stands_still_does_not_end_a_run():
    assert planned_epochs(40, 3, 1.0, [0.0] * 3) == 40
    assert math.isfinite(planned_epochs(40, 3, 1.0, [2.0, 0.0, 0.0]))
