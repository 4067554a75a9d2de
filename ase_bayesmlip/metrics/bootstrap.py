"""Uncertainty of a metric: frames, not atoms, are what was drawn independently."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from ase_bayesmlip.metrics.checks import FloatArray, IntArray, whole


def bootstrap_interval(
    statistic: Callable[[IntArray], float | FloatArray],
    frame_index: ArrayLike,
    n_resamples: int = 1000,
    level: float = 0.95,
    *,
    generator: np.random.Generator,
) -> FloatArray:
    """Percentile bootstrap interval of a statistic, resampled by frame.

    The errors of the atoms of one frame depend on each other. Resampling atoms as if they did not
    makes the interval too narrow, by √(1 + (m - 1) ρ) for the mean of m atoms per frame with the
    correlation ρ. So whole frames are drawn, with replacement and as many as there are, and every
    one brings all its items; the interval runs between the quantiles (1 ∓ level)/2 of the
    statistic (Davison and Hinkley, Bootstrap Methods and their Application, 1997).

    Parameters
    ----------
    statistic : callable, (n_chosen,) int -> float or ndarray
        Value for the items with the given indices, of which some repeat, for instance
        ``lambda chosen: rmse(error[chosen])``. A function that returns a curve gives a band.
    frame_index : array_like, (n_items,), int
        Frame of each item; any labels, in any order. ``np.arange(n_frames)`` for energies.
    n_resamples : int
        At least 2 / (1 - level), so that one or more is expected beyond each end.
    level : float
        Nominal coverage, between 0 and 1 (both excluded).
    generator : numpy.random.Generator

    Returns
    -------
    ndarray, (2, ...)
        Lower and upper end: ``lower, upper = bootstrap_interval(...)``.

    Raises
    ------
    ValueError
        If there are fewer than two frames, or the statistic is not finite on a resample.

    Notes
    -----
    The interval is too narrow when frames are few (for a mean by about √(1 - 1/n_frames), and
    then by the tails of Student's t), and when frames of one trajectory are correlated: then let
    `frame_index` number blocks of frames longer than the correlation time.
    """
    members = _items_by_frame(frame_index)
    n = _enough_resamples(n_resamples, level)
    # Frames of one item each, as for energies, need no joining, which takes most of the time.
    single = np.concatenate(members) if all(len(items) == 1 for items in members) else None
    values = [
        statistic(
            np.concatenate([members[frame] for frame in drawn]) if single is None else single[drawn]
        )
        for drawn in generator.integers(len(members), size=(n, len(members)))
    ]
    return _percentiles(values, level)


def bootstrap_interval_two_sets(
    statistic: Callable[[IntArray, IntArray], float | FloatArray],
    n_first: int,
    n_second: int,
    n_resamples: int = 1000,
    level: float = 0.95,
    *,
    generator: np.random.Generator,
) -> FloatArray:
    """Percentile bootstrap interval of a statistic of two sets of frames, each resampled by itself.

    For comparisons such as `auroc`, whose sets have sizes that were chosen and not drawn.

    Parameters
    ----------
    statistic : callable, (n_first,) int and (n_second,) int -> float or ndarray
        Value for the frames with the given indices, of which some repeat.
    n_first, n_second : int
        Frames in each set, 2 or more.
    n_resamples, level, generator
        As in `bootstrap_interval`.

    Returns
    -------
    ndarray, (2, ...)

    Raises
    ------
    ValueError
        If a set has fewer than two frames, or the statistic is not finite on a resample.
    """
    sizes = (whole("n_first", n_first, 2), whole("n_second", n_second, 2))
    n = _enough_resamples(n_resamples, level)
    drawn = [generator.integers(size, size=(n, size)) for size in sizes]
    return _percentiles([statistic(a, b) for a, b in zip(*drawn, strict=True)], level)


def _enough_resamples(n_resamples: int, level: float) -> int:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, both excluded, not {level}")
    # The small shift keeps levels such as 0.95 from losing a resample to round-off.
    return whole("n_resamples", n_resamples, int(np.ceil(2.0 / (1.0 - level) - 1e-9)))


def _percentiles(statistics: Sequence[float | FloatArray], level: float) -> FloatArray:
    values = np.array(statistics, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("the statistic is not finite on some of the resamples")
    return np.quantile(values, [0.5 * (1.0 - level), 0.5 * (1.0 + level)], axis=0)


def _items_by_frame(frame_index: ArrayLike) -> list[IntArray]:
    """Indices of the items of each frame."""
    frames = np.asarray(frame_index)
    if frames.ndim != 1 or frames.dtype.kind not in "iu":
        raise ValueError(
            f"frame_index must hold integers in the shape (n_items,), not {frames.dtype} in "
            f"{frames.shape}"
        )
    _, n_items = np.unique(frames, return_counts=True)
    if len(n_items) < 2:
        raise ValueError(
            f"a bootstrap by frame needs 2 frames or more, and there are {len(n_items)}"
        )
    return np.split(np.argsort(frames, kind="stable"), np.cumsum(n_items)[:-1])
