"""Does uncertainty put items in the right order? Errors by size, and foreign frames above known.

Ties are treated exactly: the value is the expected one over all orders of the tied items, or, where
a threshold is drawn, no threshold divides them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from ase_bayesmlip.metrics.checks import FloatArray, finite_1d, not_negative, same_shape


def spearman(error_size: ArrayLike, uncertainty: ArrayLike) -> float:
    """Spearman's rank correlation: Pearson's correlation of the ranks, tied ranks averaged.

    A perfect model is far from 1. The size of an error is random even when its standard deviation
    is known exactly; compare with the value for errors drawn from the model's own distribution.

    Parameters
    ----------
    error_size, uncertainty : array_like, (n,), n ≥ 2
        |e| and σ, in any unit. The error without its size taken would measure something else.

    Returns
    -------
    float
        Between -1 and 1.

    Raises
    ------
    ValueError
        If all values of one argument are equal: there is no order to compare with.
    """
    size = not_negative("error_size", finite_1d("error_size", error_size))
    sigma = finite_1d("uncertainty", uncertainty)
    same_shape("error_size", size, "uncertainty", sigma)
    for name, values in (("error_size", size), ("uncertainty", sigma)):
        if np.ptp(values) == 0.0:
            raise ValueError(
                f"{name} has one value, {values[0]:.6g}, for all {values.size} items; a rank "
                "correlation needs two different ones"
            )
    a, b = (rankdata(values) - 0.5 * (size.size + 1) for values in (size, sigma))
    return float((a @ b) / np.sqrt((a @ a) * (b @ b)))


def error_retention_curve(
    error_size: ArrayLike, uncertainty: ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Mean error when the most certain items keep their prediction and the others are labelled.

    With the items in the order of their uncertainty, the k most certain ones retained, and the
    error of the others zero because a reference has answered for them,

        R(k/n) = (1/n) Σ_{i≤k} |e|₍ᵢ₎,    k = 0 ... n

    (Malinin et al., Shifts, arXiv:2107.07455). Items of equal uncertainty enter with their mean
    error, the expectation over their orders.

    Parameters
    ----------
    error_size, uncertainty : array_like, (n,)
        |e| (or e²) and σ, in any unit.

    Returns
    -------
    fraction, error : ndarray, (n + 1,)
        Retained fraction from 0 to 1, and R from 0 to the mean of `error_size`, in its unit.
    """
    size = not_negative("error_size", finite_1d("error_size", error_size))
    sigma = finite_1d("uncertainty", uncertainty)
    same_shape("error_size", size, "uncertainty", sigma)
    _, tied = np.unique(sigma, return_inverse=True)
    expected = np.bincount(tied, weights=size) / np.bincount(tied)
    cumulated = np.cumsum(expected[np.sort(tied)])
    n = size.size
    return np.arange(n + 1) / n, np.concatenate([[0.0], cumulated]) / n


def error_retention_area(error_size: ArrayLike, uncertainty: ArrayLike) -> float:
    """Area under the `error_retention_curve`, by the trapezoidal rule; less is better.

    An uncertainty that says nothing gives half of the mean error; the best possible order gives
    ``error_retention_area(error_size, error_size)``.

    Parameters
    ----------
    error_size, uncertainty : array_like, (n,)

    Returns
    -------
    float, unit of `error_size`
    """
    _, error = error_retention_curve(error_size, uncertainty)
    return float(0.5 * (error[1:] + error[:-1]).mean())


def auroc(scores_in: ArrayLike, scores_out: ArrayLike) -> float:
    """Area under the ROC curve: the probability that a foreign frame scores above a known one,

        P(out > in) + ½ P(out = in),

    from the sum of the ranks of the foreign scores (Mann-Whitney U; Fawcett,
    doi:10.1016/j.patrec.2005.10.010).

    Parameters
    ----------
    scores_in, scores_out : array_like, (n_in,) and (n_out,)
        Scores of in- and of out-of-distribution (OOD) frames; a higher score says more OOD.

    Returns
    -------
    float
        ½ for scores that tell nothing.
    """
    known, foreign = finite_1d("scores_in", scores_in), finite_1d("scores_out", scores_out)
    ranks = rankdata(np.concatenate([known, foreign]))[known.size :]
    wins = ranks.sum() - 0.5 * foreign.size * (foreign.size + 1)
    return float(wins / (known.size * foreign.size))


def roc_curve(scores_in: ArrayLike, scores_out: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Rates of flagged frames as the threshold falls, with OOD as the positive class.

    Parameters
    ----------
    scores_in, scores_out : array_like, (n_in,) and (n_out,)
        A higher score says more OOD.

    Returns
    -------
    false_positive, true_positive : ndarray, (m + 1,)
        Fractions of the known and of the foreign frames that score the threshold or more, for no
        threshold at all and then each of the m distinct scores, the highest first: from (0, 0) to
        (1, 1). Tied scores make a slope, so that the area by the trapezoidal rule is `auroc`.
    """
    known, foreign = finite_1d("scores_in", scores_in), finite_1d("scores_out", scores_out)
    thresholds = np.unique(np.concatenate([known, foreign]))[::-1]
    false_positive, true_positive = (
        1.0 - np.searchsorted(np.sort(scores), thresholds) / scores.size
        for scores in (known, foreign)
    )
    return np.append(0.0, false_positive), np.append(0.0, true_positive)


def aupr(scores_in: ArrayLike, scores_out: ArrayLike) -> float:
    """Area under the precision-recall curve with OOD as the positive class, by its steps,

        Σₜ (recallₜ - recallₜ₋₁) precisionₜ

    over the distinct scores t, the highest first, flagging every frame that scores t or more. It is
    the average precision: precision is not interpolated, which would flatter (Davis and Goadrich,
    doi:10.1145/1143844.1143874).

    Parameters
    ----------
    scores_in, scores_out : array_like, (n_in,) and (n_out,)
        A higher score says more OOD.

    Returns
    -------
    float
        Scores that are all equal give n_out / (n_in + n_out): what is good depends on the numbers
        of frames, unlike for `auroc`.
    """
    known, foreign = finite_1d("scores_in", scores_in), finite_1d("scores_out", scores_out)
    values, position = np.unique(np.concatenate([known, foreign]), return_inverse=True)
    is_foreign = np.repeat([0.0, 1.0], [known.size, foreign.size])
    new_hits = np.bincount(position, weights=is_foreign, minlength=values.size)[::-1]
    flagged = np.cumsum(np.bincount(position, minlength=values.size)[::-1])
    precision = np.cumsum(new_hits) / flagged
    return float((new_hits * precision).sum() / foreign.size)


def fpr95(scores_in: ArrayLike, scores_out: ArrayLike) -> float:
    """False-positive rate at 95 % true positives, with OOD as the positive class.

    The fraction of known frames that are flagged by the highest threshold, among the scores that
    occur, at which 95 % of the foreign frames or more are flagged (score ≥ threshold); the
    convention of Hendrycks, Mazeika and Dietterich, arXiv:1812.04606.

    Others take the known frames as positive: the fraction of foreign frames that are let through
    when 95 % of the known ones are accepted. For arrays that is
    ``fpr95(-scores_out, -scores_in)``.

    Parameters
    ----------
    scores_in, scores_out : array_like, (n_in,) and (n_out,)
        A higher score says more OOD.
    """
    known, foreign = finite_1d("scores_in", scores_in), finite_1d("scores_out", scores_out)
    # The smallest whole number that is 0.95 n or more, without round-off.
    needed = -(-19 * foreign.size // 20)
    threshold = np.sort(foreign)[foreign.size - needed]
    return float(np.mean(known >= threshold))
