"""How far apart frames of a trajectory must be to count as independent."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri
from scipy.stats import rankdata

# Of Sokal's window: the sum ends at the first lag of as many autocorrelation times.
_WINDOW = 5.0

# An autocorrelation time from few of its lengths is too small as a rule, and too small a one costs
# false alarms: so many standard errors are added. Found by simulation, see `effective_number`.
_SAFE = 1.25

# Below as many standard errors the autocorrelation of neighbours, and Sokal's sum, whose tail is
# heavy, are taken for chance: one set of independent frames in a thousand is not.
_CHANCE = 4.0, 10.0

# Autocorrelation that is left between frames that count as independent.
RESIDUAL = 0.02


def autocorrelation_time(values: ArrayLike, trajectory: ArrayLike | None = None) -> float:
    """Integrated autocorrelation time in frames,

        τ = 1 + 2 Σ_{t=1}^{M} ρ(t),    M = the first lag with M ≥ 5 τ(M)

    (Sokal, Monte Carlo Methods in Statistical Mechanics, 1997). A mean over n frames is as good as
    one over n/τ independent ones; τ is 1 for independent frames and (1 + φ)/(1 - φ) for an AR(1)
    process. Below n = 50 τ (see `relative_error`) it is a guess, and as a rule too small.

    Parameters
    ----------
    values : array_like, (n,), any unit
    trajectory : array_like of int or None, (n,)
        The trajectory of each frame; frames of different ones are independent. None: all are one.

    Returns
    -------
    float
        At least 1; also 1 for values that do not change.
    """
    return _integrated(_autocovariance(values, trajectory))


def effective_number(values: ArrayLike, trajectory: ArrayLike | None = None) -> float:
    """How many independent frames as many correlated ones are worth, n/τ; 1 at least, n at most.

    Of normal scores, so that no large value rules. τ is the larger of two estimates, Sokal's
    (`autocorrelation_time`) and that of an AR(1) process with the autocorrelation of neighbours,

        τ = (1 + φ)/(1 - φ),    φ = ρ(1) + (1 + 3 ρ(1))/n + 1.25 √((1 - ρ(1)²)/n),

    with Kendall's correction (doi:10.1093/biomet/41.3-4.403) and a margin: of n = 6 τ frames of an
    AR(1) process Sokal's sum finds 0.4 τ. A correlation within what chance makes of independent
    frames counts for none. Values in order of size have lost the order of their frames, and count
    as independent.

    Parameters
    ----------
    values, trajectory : see `autocorrelation_time`
    """
    x = np.asarray(values, dtype=float)
    n = len(x)
    if n < 3 or (np.diff(x) >= 0).all() or (np.diff(x) <= 0).all():
        return float(n)
    covariance = _autocovariance(ndtri(rankdata(x) / (n + 1.0)), trajectory)
    n_pairs = n - (1 if trajectory is None else len(np.unique(np.asarray(trajectory))))
    if n_pairs < 1 or len(covariance) < 2:
        return float(n)
    time, rho = _integrated(covariance), covariance[1] / covariance[0] * n / n_pairs
    by_chance = _CHANCE[0] / math.sqrt(n_pairs), 1.0 + _CHANCE[1] * relative_error(1.0, n)
    if rho < by_chance[0] and time < by_chance[1]:
        return float(n)
    corrected = min(rho + (1.0 + 3.0 * rho) / n, 1.0 - 2.0 / n)
    margin = _SAFE * math.sqrt((1.0 - corrected**2) / n_pairs)
    phi = min(corrected + margin, 1.0 - 2.0 / n)
    return float(n / min(max(time, (1.0 + phi) / (1.0 - phi)), n))


def _autocovariance(values: ArrayLike, trajectory: ArrayLike | None) -> np.ndarray:
    """Sums over all pairs of a trajectory that are 0, 1, 2, ... frames apart."""
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(x) < 2 or not np.isfinite(x).all():
        raise ValueError(
            "an autocorrelation time needs a series of 2 or more finite values, not one of shape "
            f"{x.shape} with {np.count_nonzero(~np.isfinite(x))} not finite"
        )
    owner = np.zeros(len(x), dtype=int) if trajectory is None else np.asarray(trajectory)
    if owner.shape != x.shape:
        raise ValueError(f"{len(x)} values need the trajectory of each, not {owner.shape} of them")
    x = x - x.mean()
    found = np.zeros(len(x))
    for one in np.unique(owner):
        part = x[owner == one]
        # Padded, so that the ends do not meet.
        spectrum = np.abs(np.fft.rfft(part, 2 * len(part))) ** 2
        found[: len(part)] += np.fft.irfft(spectrum, 2 * len(part))[: len(part)]
    return found


def _integrated(covariance: np.ndarray) -> float:
    """Sokal's windowed sum, frames."""
    if covariance[0] <= 0.0:
        return 1.0
    tau = 2.0 * np.cumsum(covariance / covariance[0]) - 1.0
    inside = np.flatnonzero(np.arange(len(tau)) >= _WINDOW * tau)
    return max(1.0, float(tau[inside[0] if len(inside) else -1]))


def relative_error(time: float, n: int) -> float:
    """Relative standard error √(2 (2M + 1)/n) of an autocorrelation time from n frames, M = 5 τ."""
    return math.sqrt(2.0 * (2.0 * _WINDOW * time + 1.0) / n)


def independent_stride(time: float) -> int:
    """Frames from one to the next that counts as independent, for an autocorrelation time.

    The AR(1) process of that time has φ = (τ - 1)/(τ + 1); the stride is the first lag at which
    its autocorrelation φ^m is `RESIDUAL` or less: about 2 τ for long times.
    """
    if not time >= 1.0:
        raise ValueError(f"an autocorrelation time is 1 or more, not {time}")
    phi = (time - 1.0) / (time + 1.0)
    return 1 if phi <= RESIDUAL else math.ceil(math.log(RESIDUAL) / math.log(phi))
