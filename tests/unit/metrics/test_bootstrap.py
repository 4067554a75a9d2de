"""Intervals by resampling frames: what is drawn, closed forms, and their coverage."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from ase_bayesmlip import metrics

LEVELS = np.linspace(0.0, 1.0, 21)


def test_bootstrap_draws_whole_frames():
    frame_index = np.array([7, 3, 7, 9, 3, 7])
    seen = []

    def statistic(chosen):
        seen.append(chosen)
        return 0.0

    metrics.bootstrap_interval(statistic, frame_index, 50, generator=np.random.default_rng(40))
    assert len(seen) == 50
    for chosen in seen:
        counts = np.bincount(chosen, minlength=6)
        assert counts[0] == counts[2] == counts[5]
        assert counts[1] == counts[4]
        assert counts[0] + counts[1] + counts[3] == 3
    assert len({tuple(np.sort(chosen)) for chosen in seen}) > 5


def test_bootstrap_interval_is_that_of_the_quantiles():
    values = np.array([0.0, 1.0])
    lower, upper = metrics.bootstrap_interval(
        lambda chosen: values[chosen].mean(), [0, 1], 400, generator=np.random.default_rng(41)
    )
    # Two frames: the mean is 0, ½ or 1, with the probabilities ¼, ½, ¼.
    assert (lower, upper) == (0.0, 1.0)
    lower, upper = metrics.bootstrap_interval(
        lambda chosen: values[chosen].mean(),
        [0, 1],
        400,
        level=0.3,
        generator=np.random.default_rng(41),
    )
    assert (lower, upper) == (0.5, 0.5)


def test_bootstrap_interval_covers_when_atoms_are_correlated():
    # 40 frames of 5 atoms whose errors have the correlation 0.8; 90 % intervals for the mean 0.
    generator = np.random.default_rng(42)
    n_frames, n_atoms, rho, repeats = 40, 5, 0.8, 300
    by_frame, by_atom = 0, 0
    frame_index = np.repeat(np.arange(n_frames), n_atoms)
    for _ in range(repeats):
        shared = np.repeat(generator.normal(size=n_frames), n_atoms)
        error = math.sqrt(rho) * shared + math.sqrt(1 - rho) * generator.normal(size=shared.size)
        for index in (frame_index, np.arange(error.size)):
            lower, upper = metrics.bootstrap_interval(
                lambda chosen, e=error: e[chosen].mean(), index, 100, 0.9, generator=generator
            )
            covered = lower <= 0 <= upper
            if index is frame_index:
                by_frame += covered
            else:
                by_atom += covered
    # Standard error 0.017; percentile intervals from 40 frames cover about 0.87.
    assert abs(by_frame / repeats - 0.87) < 0.07
    narrow = 2 * norm.cdf(norm.ppf(0.95) / math.sqrt(1 + (n_atoms - 1) * rho)) - 1
    assert narrow == pytest.approx(0.58, abs=0.01)
    assert abs(by_atom / repeats - narrow) < 4 * math.sqrt(narrow * (1 - narrow) / repeats)


def test_bootstrap_of_two_sets_resamples_each_by_itself():
    generator = np.random.default_rng(8)
    first, second = generator.normal(size=50), 2.0 + 3.0 * generator.normal(size=200)
    sizes = []

    def difference(a, b):
        sizes.append((len(a), len(b), a.max() < 50, b.max() < 200))
        return second[b].mean() - first[a].mean()

    lower, upper = metrics.bootstrap_interval_two_sets(
        difference, 50, 200, n_resamples=4000, generator=generator
    )
    assert set(sizes) == {(50, 200, True, True)}
    # The standard error of a difference of means; 4000 resamples know a quantile to about 4 %.
    error = np.sqrt(first.var() / 50 + second.var() / 200)
    middle = second.mean() - first.mean()
    assert (lower, upper) == pytest.approx((middle - 1.96 * error, middle + 1.96 * error), abs=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_first": 1}, "n_first must be an integer of 2 or more, not 1"),
        ({"n_second": 0}, "n_second"),
        ({"n_resamples": 10}, "n_resamples must be an integer of 40 or more"),
        ({"level": 1.0}, "level must be between 0 and 1"),
        ({"statistic": lambda a, b: np.nan}, "not finite"),
    ],
)
def test_bootstrap_of_two_sets_refuses(changes, message):
    arguments = {"statistic": lambda a, b: 1.0, "n_first": 3, "n_second": 3, **changes}
    with pytest.raises(ValueError, match=message):
        metrics.bootstrap_interval_two_sets(**arguments, generator=np.random.default_rng(0))


def test_bootstrap_band_of_a_curve():
    generator = np.random.default_rng(43)
    confidence = generator.uniform(size=60)
    lower, upper = metrics.bootstrap_interval(
        lambda chosen: metrics.calibration_curve(confidence[chosen], LEVELS),
        np.arange(60) // 3,
        100,
        generator=generator,
    )
    assert lower.shape == upper.shape == LEVELS.shape
    assert (lower <= upper).all()
