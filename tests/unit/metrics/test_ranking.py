"""How well error bars order errors and foreign frames: counted by hand and by pairs."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from ase_bayesmlip import metrics


def test_out_of_distribution_scores_by_hand():
    scores_in, scores_out = [3.0, 1.0, 2.0], [2.0, 4.0, 3.0]
    # Pairs won: 1½ by 2, 2½ by 3, 3 by 4.
    assert metrics.auroc(scores_in, scores_out) == pytest.approx(7 / 9)
    # One hit more at each of the thresholds 4, 3, 2, with the precision 1, 2/3, 3/5.
    assert metrics.aupr(scores_in, scores_out) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    # 95 % of three are three: the threshold is 2, and flags two of three.
    assert metrics.fpr95(scores_in, scores_out) == pytest.approx(2 / 3)


def test_out_of_distribution_scores_of_apart_and_of_equal_scores():
    apart, equal = ([0.0, 1.0], [2.0, 3.0, 4.0]), (np.ones(4), np.ones(3))
    assert (metrics.auroc(*apart), metrics.aupr(*apart), metrics.fpr95(*apart)) == (1, 1, 0)
    assert metrics.auroc(*equal) == 0.5
    assert metrics.aupr(*equal) == pytest.approx(3 / 7)
    assert metrics.fpr95(*equal) == 1.0
    assert metrics.auroc(apart[1], apart[0]) == 0.0


def test_fpr95_lets_one_of_twenty_pass():
    scores_out = np.arange(1.0, 21.0)
    assert metrics.fpr95([1.5, 2.0, 3.0, 0.0], scores_out) == 0.5
    # With one frame fewer, all 19 have to be found: 18 would be 94.7 %.
    assert metrics.fpr95([1.5, 2.0, 3.0, 0.0], scores_out[:-1]) == 0.75
    # All ties with the threshold are flagged.
    assert metrics.fpr95([2.0, 2.0, 1.0, 1.0], np.full(20, 2.0)) == 0.5


def test_fpr95_with_known_frames_as_positive():
    # 19 of 20 known frames are accepted up to the score 19; of the foreign, 18.5 and 19 are too.
    known, foreign = np.arange(1.0, 21.0), np.array([18.5, 19.0, 19.5, 30.0])
    assert metrics.fpr95(-foreign, -known) == 0.5


whole_scores = st.lists(st.integers(-4, 4), min_size=1, max_size=12)


@given(whole_scores, whole_scores)
def test_auroc_counts_pairs(scores_in, scores_out):
    pairs = [
        (out > known) + 0.5 * (out == known)
        for out, known in itertools.product(scores_out, scores_in)
    ]
    found = metrics.auroc(scores_in, scores_out)
    assert found == pytest.approx(np.mean(pairs), abs=1e-14)
    assert found == pytest.approx(1 - metrics.auroc(scores_out, scores_in), abs=1e-14)


@given(whole_scores, whole_scores)
def test_only_the_order_of_scores_counts(scores_in, scores_out):
    for metric in (metrics.auroc, metrics.aupr, metrics.fpr95):
        # Exponentials of whole numbers keep their order and their ties.
        mapped = metric(np.exp(scores_in), np.exp(scores_out))
        assert mapped == metric(scores_in, scores_out)
        assert mapped == metric(scores_in[::-1], sorted(scores_out))
        assert 0 <= mapped <= 1


@given(whole_scores, whole_scores)
def test_aupr_and_fpr95_try_every_threshold(scores_in, scores_out):
    known, foreign = np.array(scores_in), np.array(scores_out)
    area, recall_before, false_positives = 0.0, 0.0, []
    for threshold in sorted({*scores_in, *scores_out}, reverse=True):
        hits, alarms = (foreign >= threshold).sum(), (known >= threshold).sum()
        recall = hits / foreign.size
        area += (recall - recall_before) * hits / (hits + alarms)
        recall_before = recall
        if 20 * hits >= 19 * foreign.size:
            false_positives.append(alarms / known.size)
    assert metrics.aupr(known, foreign) == pytest.approx(area, abs=1e-13)
    assert metrics.fpr95(known, foreign) == min(false_positives)


@given(st.integers(0, 10**6), st.integers(3, 30))
def test_spearman_agrees_with_scipy(seed, n):
    generator = np.random.default_rng(seed)
    size = np.concatenate([[0, 1], generator.integers(0, 5, size=n)])
    sigma = np.concatenate([[1, 2], generator.integers(0, 5, size=n)])
    expected = spearmanr(size, sigma).statistic
    assert metrics.spearman(size, sigma) == pytest.approx(expected, abs=1e-13)


def test_spearman_of_perfect_orders():
    size = np.array([0.1, 0.5, 0.2, 3.0])
    assert metrics.spearman(size, np.log(size)) == pytest.approx(1, abs=1e-15)
    assert metrics.spearman(size, -size) == pytest.approx(-1, abs=1e-15)


def test_error_retention_by_hand():
    size, sigma = [3.0, 1.0, 2.0], [0.3, 0.1, 0.2]
    fraction, error = metrics.error_retention_curve(size, sigma)
    np.testing.assert_allclose(fraction, [0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(error, [0, 1 / 3, 1, 2])
    assert metrics.error_retention_area(size, sigma) == pytest.approx(7 / 9)


def test_error_retention_without_information():
    size = [3.0, 1.0, 2.0, 5.0]
    assert metrics.error_retention_area(size, np.ones(4)) == pytest.approx(0.5 * 2.75)


def test_ties_enter_error_retention_with_the_mean_over_their_orders():
    size, sigma = np.array([4.0, 1.0, 2.0, 7.0, 3.0]), np.array([1.0, 1.0, 0.5, 2.0, 1.0])
    curves = [
        np.concatenate([[0], np.cumsum(size[list(order)])]) / 5
        for order in itertools.permutations(range(5))
        if (np.diff(sigma[list(order)]) >= 0).all()
    ]
    assert len(curves) == 6
    found = metrics.error_retention_curve(size, sigma)[1]
    np.testing.assert_allclose(found, np.mean(curves, axis=0), rtol=1e-14)


@given(st.integers(0, 10**6), st.integers(1, 20))
def test_no_order_is_better_than_that_of_the_errors(seed, n):
    generator = np.random.default_rng(seed)
    size, sigma = generator.integers(0, 5, size=n), generator.integers(0, 5, size=n)
    best = metrics.error_retention_area(size, size)
    worst = metrics.error_retention_area(size, -size)
    assert best - 1e-12 <= metrics.error_retention_area(size, sigma) <= worst + 1e-12


@pytest.mark.parametrize("scale", [1, 10])  # coarse scores are tied
def test_roc_curve_has_the_area_of_auroc(scale):
    generator = np.random.default_rng(4)
    known = np.round(scale * generator.normal(size=40)) / scale
    foreign = np.round(scale * (1 + generator.normal(size=30))) / scale
    false_positive, true_positive = metrics.roc_curve(known, foreign)
    assert (false_positive[0], true_positive[0]) == (0, 0)
    assert (false_positive[-1], true_positive[-1]) == (1, 1)
    area = np.sum(np.diff(false_positive) * 0.5 * (true_positive[1:] + true_positive[:-1]))
    assert area == pytest.approx(metrics.auroc(known, foreign), abs=1e-12)
    # One flagged frame at each threshold, by hand.
    curve = metrics.roc_curve([1.0, 3.0], [2.0, 3.0])
    np.testing.assert_array_equal(curve, [[0, 0.5, 0.5, 1], [0, 0.5, 1, 1]])
