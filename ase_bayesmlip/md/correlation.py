"""How far apart frames of a trajectory must be to count as independent."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

# Of Sokal's window: the sum ends at the first lag of as many autocorrelation times.
_WINDOW = 5.0

# Autocorrelation that is left between frames that count as independent.
RESIDUAL = 0.02


def autocorrelation_time(values: ArrayLike) -> float:
    """Integrated autocorrelation time in frames,

        τ = 1 + 2 Σ_{t=1}^{M} ρ(t),    M = the first lag with M ≥ 5 τ(M)

    (Sokal, Monte Carlo Methods in Statistical Mechanics, 1997). A mean over n frames is as good as
    one over n/τ independent ones; τ is 1 for independent frames and (1 + φ)/(1 - φ) for an AR(1)
    process. Below n = 50 τ (see `relative_error`) it is a guess, and as a rule too small.

    Parameters
    ----------
    values : array_like, (n,), any unit

    Returns
    -------
    float
        At least 1; also 1 for values that do not change.
    """
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(x) < 2 or not np.isfinite(x).all():
        raise ValueError(
            "an autocorrelation time needs a series of 2 or more finite values, not one of shape "
            f"{x.shape} with {np.count_nonzero(~np.isfinite(x))} not finite"
        )
    x = x - x.mean()
    # Padded, so that the ends do not meet.
    spectrum = np.abs(np.fft.rfft(x, 2 * len(x))) ** 2
    covariance = np.fft.irfft(spectrum)[: len(x)]
    if covariance[0] <= 0.0:
        return 1.0
    tau = 2.0 * np.cumsum(covariance / covariance[0]) - 1.0
    inside = np.flatnonzero(np.arange(len(x)) >= _WINDOW * tau)
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
