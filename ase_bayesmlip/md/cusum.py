"""Page's cumulative sum of normal scores, and how long it runs.

    S_t = max(0, S_{t-1} + z_t - k),    alarm when S_t > h,                                   (1)

(Page, doi:10.1093/biomet/41.1-2.100). For z ~ N(μ, 1), independent, the mean number of steps from
the sum s to the alarm obeys

    L(s) = 1 + L(0) Φ(k - μ - s) + ∫₀ʰ L(y) φ(y + k - μ - s) dy,                              (2)

because the sum falls to zero with the probability Φ(k - μ - s). Against a shift of μ the best
allowance is k = μ/2, of the likelihood ratio (Lorden, doi:10.1214/aoms/1177693055).
"""

from __future__ import annotations

import functools
import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

# Points of the quadrature of (2): these, and as many for each standard deviation of the limit.
# Half of them give the same to 1e-8.
_POINTS, _POINTS_PER_STD = 30, 4

# Beyond it (2) is singular to round-off.
LONGEST_RUN = 1e8


def mean_run_length(limit: float, allowance: float, shift: float = 0.0) -> float:
    """Mean number of steps from zero to the alarm, L(0) of (2).

    Parameters
    ----------
    limit : float
        h.
    allowance : float
        k.
    shift : float
        μ, in standard deviations.
    """
    n_points = _POINTS + math.ceil(_POINTS_PER_STD * limit)
    nodes, weights = np.polynomial.legendre.leggauss(n_points)
    y, w = 0.5 * limit * (nodes + 1.0), 0.5 * limit * weights
    start = np.concatenate([[0.0], y])
    drift = allowance - shift
    density = np.exp(-0.5 * (y + drift - start[:, None]) ** 2) / math.sqrt(2.0 * math.pi)
    kernel = np.concatenate([ndtr(drift - start)[:, None], w * density], axis=1)
    return float(np.linalg.solve(np.eye(len(start)) - kernel, np.ones(len(start)))[0])


@functools.lru_cache
def limit_of(run_length: float, allowance: float) -> float:
    """The limit h for which steps between false alarms are `run_length` on average.

    Raises
    ------
    ValueError
        If the sum alarms more often even with a limit of zero, or beyond `LONGEST_RUN`.
    """
    shortest = 1.0 / float(ndtr(-allowance))
    if not shortest < run_length <= LONGEST_RUN:
        raise ValueError(
            f"a mean run of {run_length:g} independent frames is out of reach: give between "
            f"{shortest:.3g} and {LONGEST_RUN:g}"
        )

    def excess(limit: float) -> float:
        return math.log(mean_run_length(limit, allowance) / run_length)

    # Here Siegmund's approximation L ≈ exp(2k (h + 1.17)) / 2k² exceeds the run length, if k ≤ 2.
    upper = (math.log(run_length) + 3.0) / (2.0 * allowance)
    return float(brentq(excess, 0.0, upper, xtol=1e-9))
