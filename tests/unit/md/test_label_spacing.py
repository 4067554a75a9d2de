"""How often flagged frames are labelled."""

import numpy as np
import pytest

from ase_bayesmlip.md import label_spacing
from ase_bayesmlip.md.correlation import relative_error
from ase_bayesmlip.md.label_spacing import MIN_SPACING, LabelSpacing


def labelled(plan, scores, flagged=None):
    """Numbers of the frames that are labelled; all are flagged unless it is said which are."""
    frames = range(len(scores)) if flagged is None else flagged
    return [k for k in frames if plan.is_due(k + 1, lambda k=k: scores[: k + 1])]


def autoregressive(tau, n, seed=0):
    """A series with the integrated autocorrelation time τ = (1 + φ)/(1 - φ)."""
    phi = (tau - 1) / (tau + 1)
    generator = np.random.default_rng(seed)
    values = np.zeros(n)
    for k in range(1, n):
        values[k] = phi * values[k - 1] + generator.standard_normal()
    return values


def test_every_event_by_default():
    assert labelled(LabelSpacing(), np.zeros(5)) == [0, 1, 2, 3, 4]


def test_fixed_spacing():
    plan = LabelSpacing(4)
    assert labelled(plan, np.zeros(10)) == [0, 4, 8]
    assert (plan.n_labels, plan.n_correlated, plan.n_over_budget) == (3, 7, 0)
    assert labelled(LabelSpacing(4), np.zeros(12), flagged=[2, 5, 6, 9, 11]) == [2, 6, 11]


def test_another_monitor_begins_anew():
    plan = LabelSpacing(10)
    assert labelled(plan, np.zeros(15)) == [0, 10]
    assert labelled(plan, np.zeros(3)) == [0]


def test_budget():
    plan = LabelSpacing(2, max_labels=2)
    assert labelled(plan, np.zeros(8)) == [0, 2]
    assert (plan.n_labels, plan.n_correlated, plan.n_over_budget) == (2, 1, 5)
    assert labelled(LabelSpacing(max_labels=0), np.zeros(3)) == []


@pytest.mark.slow
@pytest.mark.parametrize("tau", [3.0, 20.0, 60.0, 150.0])
def test_labels_are_a_correlation_time_apart(tau):
    """Once there is enough to measure it on; never closer than the minimum."""
    scores = autoregressive(tau, 12000)
    frames = np.array(labelled(LabelSpacing("correlation"), scores))
    assert frames[0] == 0
    gaps = np.diff(frames)
    assert gaps.min() >= MIN_SPACING
    # Of 50 times its length or more the time is known to √(2 (10 τ + 1) / (50 τ)).
    enough = max(50 * tau, 500)
    assert np.mean(gaps[frames[1:] > enough]) >= max(
        MIN_SPACING, (1 - relative_error(tau, enough)) * tau
    )
    assert np.mean(gaps[frames[1:] > enough]) <= max(
        MIN_SPACING, (1 + relative_error(tau, enough)) * tau
    )


def test_a_change_of_the_simulation_that_is_known_does_not_stop_the_labels():
    """A step in the scores looks like a slow motion, unless what was before is forgotten."""
    scores = autoregressive(20.0, 3000)
    scores[1500:] += 50.0
    drifting, told = LabelSpacing("correlation"), LabelSpacing("correlation")
    few = labelled(drifting, scores)
    before = labelled(told, scores[:1500])
    told.restart(1500)
    after = [k for k in range(1500, 3000) if told.is_due(k + 1, lambda k=k: scores[: k + 1])]
    assert len(after) == pytest.approx(len(before), rel=0.5)
    assert len(few) < 0.7 * (len(before) + len(after))


def test_what_is_not_finite_does_not_count():
    scores = autoregressive(20.0, 1500)
    plan = LabelSpacing("correlation")
    expected = plan.frames_between(scores)
    gaps = np.insert(scores, [5, 700, 1500], np.nan)
    assert plan.frames_between(gaps) == expected
    assert plan.frames_between(np.full(100, np.nan)) == MIN_SPACING
    assert plan.frames_between(np.zeros(0)) == MIN_SPACING


@pytest.mark.parametrize("spacing", [0, -1, 1.5, True, "often", np.nan, None])
def test_bad_spacing(spacing):
    with pytest.raises(ValueError, match="spacing"):
        LabelSpacing(spacing)


def test_bad_budget():
    for bad in ("3", 2.5, True):
        with pytest.raises(ValueError, match="max_labels must be a number"):
            LabelSpacing(max_labels=bad)
    with pytest.raises(ValueError, match="max_labels must be a number of 0 or more"):
        LabelSpacing(max_labels=-1)


def test_a_ramp_is_no_correlation():
    """Independent scores around a line count as independent, where the line is expected."""
    scores = np.arange(500.0) + np.random.default_rng(0).standard_normal(500)
    spacing = LabelSpacing("correlation")
    assert spacing.frames_between(scores) > 50
    spacing.follows_ramp = True
    assert spacing.frames_between(scores) == MIN_SPACING


def test_the_newest_scores_count(monkeypatch):
    """A run that was slow at first and is not any more needs no long spacing."""
    monkeypatch.setattr(label_spacing, "_NEWEST", 500)
    slow, fast = autoregressive(60.0, 2000), np.random.default_rng(1).standard_normal(500)
    plan = LabelSpacing("correlation")
    assert plan.frames_between(slow) > 2 * MIN_SPACING
    assert plan.frames_between(np.concatenate([slow, fast])) == MIN_SPACING
