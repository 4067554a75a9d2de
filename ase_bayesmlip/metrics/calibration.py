"""Calibration: does the region of probability p hold a fraction p of the labels?

Everything rests on one number per item, its *confidence value*: the probability of the smallest
centred region that holds the label, an interval for a scalar (`interval_confidence`) or an
ellipsoid for a vector (`ellipsoids.ellipsoid_confidence`). An item is covered at level p when its
confidence value is at most p, and a perfect model makes these values uniform on [0, 1].
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import erf, ndtr

from ase_bayesmlip.metrics.checks import (
    FloatArray,
    finite,
    finite_1d,
    positive,
    probability,
    same_shape,
    whole,
)


def interval_confidence(error: ArrayLike, std: ArrayLike) -> FloatArray:
    """Probability of the smallest centred interval of N(μ, σ²) that holds the label,

        u = 2 Φ(|e|/σ) - 1 = erf(|e| / (σ √2)).

    u ≤ p says that |e| ≤ σ Φ⁻¹((1 + p)/2).

    Parameters
    ----------
    error : array_like, any shape, any unit u
    std : array_like, same shape, u

    Returns
    -------
    ndarray, same shape, between 0 and 1
    """
    return np.asarray(erf(np.abs(_standardised(error, std)) / math.sqrt(2.0)))


def pit_gaussian(error: ArrayLike, std: ArrayLike) -> FloatArray:
    """Probability integral transform F(y) = Φ(e/σ) of the labels under N(μ, σ²).

    Unlike `interval_confidence` it keeps the sign, and so shows bias as well as width.

    Parameters
    ----------
    error : array_like, any shape, any unit u
        Label - prediction.
    std : array_like, same shape, u

    Returns
    -------
    ndarray, same shape, between 0 and 1
    """
    return np.asarray(ndtr(_standardised(error, std)))


def _standardised(error: ArrayLike, std: ArrayLike) -> FloatArray:
    e, sigma = finite("error", error), positive("std", std)
    same_shape("error", e, "std", sigma)
    return e / sigma


def calibration_curve(confidence: ArrayLike, levels: ArrayLike) -> FloatArray:
    """Observed confidence levels: the fraction of items covered at each expected level,

        p̂(p) = #{i : uᵢ ≤ p} / n.

    Parameters
    ----------
    confidence : array_like, any shape, n numbers between 0 and 1
    levels : array_like, (m,), between 0 and 1
        Expected confidence levels p. Figures use 0, 0.05, ..., 1.

    Returns
    -------
    ndarray, (m,)
        Below the levels where the model is too sure of itself.
    """
    u = np.sort(probability("confidence", confidence), axis=None)
    p = probability("levels", finite_1d("levels", levels))
    return np.searchsorted(u, p, side="right") / u.size


def coverage(confidence: ArrayLike, level: float) -> float:
    """Fraction of items that the regions of one level hold: #{i : uᵢ ≤ p} / n.

    Parameters
    ----------
    confidence : array_like, any shape, between 0 and 1
    level : float
        Nominal coverage p, between 0 and 1.
    """
    return float(calibration_curve(confidence, [level])[0])


def calibration_error(confidence: ArrayLike, n_levels: int = 100) -> float:
    """Mean squared distance of the calibration curve from the diagonal,

        CE = (1/m) Σⱼ (pⱼ - p̂ⱼ)²,    pⱼ = j/(m + 1),   j = 1 ... m

    (Kuleshov, Fenner and Ermon, arXiv:1807.00263, with equal weights). The trivial levels 0 and 1
    are left out. The worst case, in which no region holds a label, is 0.332 for m = 100. A perfect
    model does not reach zero on n items: see `calibration_error_floor`.

    Parameters
    ----------
    confidence : array_like, any shape, between 0 and 1
    n_levels : int
        m.
    """
    m = whole("n_levels", n_levels, 1)
    levels = np.arange(1, m + 1) / (m + 1)
    return float(np.mean((levels - calibration_curve(confidence, levels)) ** 2))


def miscalibration_area(confidence: ArrayLike, n_levels: int = 99) -> float:
    """Mean absolute distance of the calibration curve from the diagonal,

        (1/m) Σⱼ |pⱼ - p̂ⱼ|,    pⱼ = j/(m + 1),   j = 1 ... m,

    the area between the two (Tran et al., arXiv:1912.10066). It is no `calibration_error`, which
    squares the distances and is therefore much smaller for the same curve.

    Parameters
    ----------
    confidence : array_like, any shape, between 0 and 1
    n_levels : int
        m.
    """
    m = whole("n_levels", n_levels, 1)
    levels = np.arange(1, m + 1) / (m + 1)
    return float(np.mean(np.abs(levels - calibration_curve(confidence, levels))))


def calibration_error_floor(n_items: int, n_levels: int = 100) -> float:
    """Expected calibration error of a perfect model on n independent items.

    Then n p̂ⱼ is binomial, and p̂ⱼ has the mean pⱼ and the variance pⱼ (1 - pⱼ)/n, so that

        E[CE] = (1/m) Σⱼ pⱼ (1 - pⱼ)/n = (m + 2) / (6 (m + 1) n) → 1/(6n).

    n CE is a sum of Cramér-von Mises type: for many items and levels its standard deviation is
    1/√45 (Anderson and Darling, doi:10.1214/aoms/1177729437), nearly as large as its mean.

    Parameters
    ----------
    n_items : int
        n. Components and atoms of a frame are not independent: for them the true floor is higher.
        If frames are independent and of equal size, the floor for n = the number of frames bounds
        it from above.
    n_levels : int
        m, as in `calibration_error`.
    """
    n, m = whole("n_items", n_items, 1), whole("n_levels", n_levels, 1)
    return (m + 2) / (6.0 * (m + 1) * n)


def sharpness(variance: ArrayLike) -> float:
    """Root mean variance √(mean σ²): how wide the error bars are, whether right or wrong.

    Of calibrated models the sharper is the better one (Gneiting, Balabdaoui and Raftery,
    doi:10.1111/j.1467-9868.2007.00587.x). A calibrated model has a sharpness close to its `rmse`.

    Parameters
    ----------
    variance : array_like, any shape, u²

    Returns
    -------
    float, u
    """
    return math.sqrt(np.mean(positive("variance", variance)))
