"""Which of the flagged frames are labelled: not two of one correlation time, not without end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ase_bayesmlip.md.correlation import autocorrelation_time

# Observed frames between two labels, at least, while the correlation time is not known better.
MIN_SPACING = 10

# Of so many scores, the newest, the correlation time is measured: a limit of the work alone.
_NEWEST = 20_000

# Fewer scores say nothing of their correlation.
_FEWEST = 20


class LabelSpacing:
    """Says whether a flagged frame is worth a label, and counts those that are not.

    Parameters
    ----------
    spacing : "correlation" or int
        Observed frames from one label to the next, at least. ``"correlation"``: the integrated
        autocorrelation time of the scores since the start, and `MIN_SPACING` at least. The first
        flagged frame is labelled at once. A simulation that drifts has a long correlation time.
    max_labels : int or None
        Largest number of calls of the reference, answered or not.

    Attributes
    ----------
    follows_ramp : bool
        Whether the scores follow a ramp of the temperature. A straight line through them is then
        no part of their correlation.
    n_labels, n_correlated, n_over_budget : int
        Frames to be labelled, left out as too close to the last, and left out by the budget.
    """

    def __init__(self, spacing: str | int = 1, max_labels: int | None = None) -> None:
        if isinstance(spacing, str):
            if spacing != "correlation":
                raise ValueError(f"spacing must be 'correlation' or frames, not {spacing!r}")
        elif not _is_integer(spacing) or spacing < 1:
            raise ValueError(f"a spacing is 1 or more observed frames, not {spacing!r}")
        if max_labels is not None and (not _is_integer(max_labels) or max_labels < 0):
            raise ValueError(f"max_labels must be a number of 0 or more, or None: {max_labels!r}")
        self.spacing = spacing
        self.max_labels = max_labels
        self.follows_ramp = False
        self.n_labels = self.n_correlated = self.n_over_budget = 0
        self._last: int | None = None
        self._wait = 1
        self._start = 0

    def is_due(self, frame: int, scores: Callable[[], np.ndarray]) -> bool:
        """Whether to label this frame, which is counted.

        Parameters
        ----------
        frame : int
            Number of the observed frame.
        scores : callable, () -> ndarray, (n,)
            Scores of all observed frames; called when the last label may be far enough away.
        """
        if self.max_labels is not None and self.n_labels >= self.max_labels:
            self.n_over_budget += 1
            return False
        elapsed = 0 if self._last is None else frame - self._last
        if elapsed > 0:  # otherwise another monitor has begun to count
            if elapsed >= self._wait:
                self._wait = self.frames_between(scores())
            if elapsed < self._wait:
                self.n_correlated += 1
                return False
        self._last, self._wait = frame, 1
        self.n_labels += 1
        return True

    def frames_between(self, scores: np.ndarray) -> int:
        """Observed frames from one label to the next, for the scores so far."""
        if not isinstance(self.spacing, str):
            return int(self.spacing)
        known = scores[self._start :]
        known = known[np.isfinite(known)][-_NEWEST:]
        if len(known) < _FEWEST:
            return MIN_SPACING
        if self.follows_ramp:
            frames = np.arange(len(known))
            known = known - np.polyval(np.polyfit(frames, known, 1), frames)
        return max(MIN_SPACING, math.ceil(autocorrelation_time(known)))

    def restart(self, frame: int) -> None:
        """Forget the scores of the frames before this one, for instance when a heating begins."""
        self._start = frame


def _is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
