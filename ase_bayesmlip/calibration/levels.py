"""From a probability to the size of a region, learned from errors of calibration frames.

Sizes are in units of the standard deviations that are served: a force f lies in the region of
radius r when (f - F)ᵀ Σ⁻¹ (f - F) ≤ r², an energy when |E' - E| ≤ r σ. Both maps below leave the
mean and the covariance as they are; neither needs the errors to be Gaussian.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ase_bayesmlip.calibration.observations import FloatArray, IntArray
from ase_bayesmlip.metrics.reach import frames_needed

# Probabilities for which sizes are kept.
LEVELS = (0.001, *(round(k / 200, 3) for k in range(1, 200)), 0.999)

_ROUND_OFF = 1e-9


def conformal_radii(
    distance: FloatArray, frame: IntArray, levels: Sequence[float] = LEVELS
) -> list[float | None]:
    """Radii with a guaranteed coverage: the split-conformal quantile of frames with many atoms.

    With K frames, of which frame k holds N_k distances, the radius of level p is the p-quantile of

        Σ_k Σ_i δ(d_ki) / ((K + 1) N_k)  +  δ(∞) / (K + 1)                                  (3)

    (Lee, Barber and Willett, Distribution-free inference with hierarchical data,
    arXiv:2306.06342). If the frames and a new one are exchangeable, an atom drawn at random from
    the new frame has a distance within it with a probability of p at least, however the atoms of a
    frame depend on each other. With one distance a frame it is the k-th smallest of n,
    k = ceil((n + 1) p) (Vovk, Gammerman and Shafer, 2005).

    Parameters
    ----------
    distance : ndarray, (n,)
    frame : ndarray of int, (n,)

    Returns
    -------
    list of float or None
        None where K frames are too few: p above K/(K + 1).
    """
    _, index, counts = np.unique(frame, return_inverse=True, return_counts=True)
    weight = 1.0 / ((len(counts) + 1) * counts[index])
    order = np.argsort(distance, kind="stable")
    reached = np.cumsum(weight[order])
    ranks = np.searchsorted(reached, np.asarray(levels) - _ROUND_OFF, side="left")
    ordered = distance[order]
    return [float(ordered[rank]) if rank < len(ordered) else None for rank in ranks]


def isotonic_quantiles(values: FloatArray, levels: Sequence[float] = LEVELS) -> list[float | None]:
    """Quantiles of a recalibrated distribution, in the units of the values.

    Kuleshov, Fenner and Ermon (arXiv:1807.00263) regress the observed frequency
    P̂(F(y)) = #{j : F(y_j) ≤ F(y)} / n on the predicted F(y) under the constraint of being
    isotonic. Such points are isotonic already, so that the regression is the empirical
    distribution function itself, here with n + 1 in the place of n and interpolated linearly. Its
    inverse is kept in terms of the standardised value, F⁻¹ with it: F saturates, values do not.

    Parameters
    ----------
    values : ndarray, (n,)
        e/σ of energies, with its sign, so that a bias is repaired as well; d of forces.

    Returns
    -------
    list of float or None
        None below 1/(n + 1) and above n/(n + 1), of which n values say nothing.
    """
    n = len(values)
    position = np.asarray(levels) * (n + 1) - 1.0
    ordered = np.sort(values)
    inside = (position >= -_ROUND_OFF) & (position <= n - 1 + _ROUND_OFF)
    found = np.interp(position, np.arange(n), ordered)
    return [float(x) if known else None for x, known in zip(found, inside, strict=True)]


def conformal_at(levels: Sequence[float], radii: Sequence[float | None], coverage: float) -> float:
    """The radius kept for the next level that is not below the coverage.

    Raises
    ------
    ValueError
        If there is none, because there were too few frames.
    """
    check_coverage(coverage)
    for level, radius in zip(levels, radii, strict=True):
        if level >= coverage - _ROUND_OFF and radius is not None:
            return radius
    known = [level for level, radius in zip(levels, radii, strict=True) if radius is not None]
    raise ValueError(
        f"a guaranteed coverage of {coverage} needs at least {frames_needed(1 - coverage)}"
        f" calibration frames; the largest that this file can give is {max(known, default=0.0)}"
    )


def isotonic_at(levels: Sequence[float], values: Sequence[float | None], level: float) -> float:
    """Interpolate quantiles between the levels that are known.

    Raises
    ------
    ValueError
        If the level is outside of them.
    """
    known = [(p, v) for p, v in zip(levels, values, strict=True) if v is not None]
    if not known or not known[0][0] - _ROUND_OFF <= level <= known[-1][0] + _ROUND_OFF:
        reach = f"from {known[0][0]} to {known[-1][0]}" if known else "nowhere"
        raise ValueError(
            f"the recalibrated distribution is known {reach}, and the level {level:.4g} was asked "
            "for; calibrate with more frames"
        )
    return float(np.interp(level, *np.array(known).T))


def check_coverage(coverage: float) -> None:
    """Refuse what is no probability."""
    if not 0.0 < coverage < 1.0:
        raise ValueError(f"coverage must lie between 0 and 1 (both excluded), not {coverage}")
