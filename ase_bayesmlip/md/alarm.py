"""A sequential alarm: have the scores of a simulation left those of the calibration frames?

A threshold looks at one frame; evidence of a small shift builds up over many. Every new score is
ranked among the calibration scores and the scores before it,

    p_t = (#{larger} + U #{equal, itself included}) / n,        U uniform on (0, 1),          (1)

and the conformal p-values p_1, p_2, ... are independent and uniform if the scores are exchangeable
with the calibration scores, whatever their distribution (Vovk, Gammerman and Shafer, Algorithmic
Learning in a Random World, 2005, theorem 8.1). The normal scores z_t = Φ⁻¹(1 - p_t) are then
independent and standard normal, and a cumulative sum of them (`cusum`) has a run length that is
known exactly: a conformal CUSUM (Vovk et al., arXiv:2102.10439) with the bet of a normal shift.

Frames of a trajectory are not exchangeable, but frames far enough apart are, nearly: only each
so-manieth frame enters, with a stride from the autocorrelation time of the scores (`correlation`).
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import ndtri

from ase_bayesmlip.md.correlation import (
    autocorrelation_time,
    independent_stride,
    relative_error,
)
from ase_bayesmlip.md.cusum import LONGEST_RUN, limit_of, mean_run_length
from ase_bayesmlip.md.events import UncertaintyWarning

# An autocorrelation time is known well enough from as many times its length.
_RELIABLE = 50.0

_SHIFTS = (0.2, 4.0)

# Least run length in units of the warm-up: it leaves some independent frames, however few.
_WARM_UPS = 10


class CalibrationAlarm:
    """Says that the calibration has expired, when scores have become larger than they were.

    Give it to a monitor, which feeds it, or call `start` and `update` yourself::

        alarm = CalibrationAlarm(frames_between_false_alarms=1e6, actions=[Stop()])
        monitor = UncertaintyMonitor(dyn, false_alarm_rate=0.01, alarm=alarm)

    It fires once; `start` begins anew, for example after a new calibration.

    Parameters
    ----------
    frames_between_false_alarms : float
        Observed frames until a false alarm, on average, while scores are like the calibration
        scores. The true mean is that if frames a stride apart are independent.
    shift : float
        The shift that is found fastest, in standard deviations of the normal scores; 0.2 to 4.
    stride : int or None
        Observed frames from one that counts to the next. None measures the autocorrelation time
        of the scores on the first `warm_up` frames, which are judged when it is known.
    warm_up : int
        Observed frames.
    actions : sequence of callables ``action(event, monitor)``
        Run by the monitor with an event of the kind ``"expired"``. Default: warn.
    seed : int
        Of the U in (1).

    Attributes
    ----------
    expired : bool
    n_frames : int
        Observed frames since the start.
    stride : int or None
        Observed frames from one that counts to the next; None until it is measured.
    statistic, limit : float
        The cumulative sum, and what it must not exceed. The limit is NaN during the warm-up.
    autocorrelation_time : float
        In observed frames, measured; NaN before the end of the warm-up, or if a stride was given.

    Notes
    -----
    New scores join those they are compared with, which is what makes the run length exact. A
    change must be found before it becomes usual: a large one is (`expected_delay`); one so small
    that it takes more frames than there are calibration scores may be missed for ever.
    """

    def __init__(
        self,
        frames_between_false_alarms: float = 1e5,
        *,
        shift: float = 1.0,
        stride: int | None = None,
        warm_up: int = 1000,
        actions: Sequence[Callable[[Any, Any], None]] | None = None,
        seed: int = 0,
    ) -> None:
        if not _SHIFTS[0] <= shift <= _SHIFTS[1]:
            raise ValueError(f"shift must lie between {_SHIFTS[0]} and {_SHIFTS[1]}, not {shift}")
        if stride is not None and stride < 1:
            raise ValueError(f"stride must be 1 or more, not {stride}")
        if stride is None and warm_up < 100:
            raise ValueError(
                f"a warm-up of {warm_up} frames says nothing of their correlation; give 100 or "
                "more, or a stride"
            )
        self.frames_between_false_alarms = float(frames_between_false_alarms)
        self.allowance = 0.5 * shift
        self.warm_up = warm_up
        self.actions = None if actions is None else tuple(actions)
        self._given_stride = stride
        self._seed = seed
        # Refused before anything runs. A stride that is measured is below two warm-ups.
        if stride is not None:
            self._limit_for(stride)
        elif not _WARM_UPS * warm_up <= frames_between_false_alarms <= LONGEST_RUN:
            raise ValueError(
                f"frames_between_false_alarms must lie between {_WARM_UPS * warm_up} ({_WARM_UPS} "
                f"warm-ups) and {LONGEST_RUN:g}, not be {frames_between_false_alarms:g}"
            )
        self._reset([])

    def __repr__(self) -> str:
        state = "expired" if self.expired else f"{self.statistic:.3g} of {self.limit:.3g}"
        return f"<CalibrationAlarm: {state} after {self.n_frames} frames>"

    def start(self, calibration_scores: Sequence[float] | np.ndarray) -> None:
        """Begin, with the scores of calibration frames, (n,)."""
        scores = np.asarray(calibration_scores, dtype=float)
        if scores.ndim != 1 or len(scores) < 2 or not np.isfinite(scores).all():
            raise ValueError(
                "an alarm needs two or more finite calibration scores, got shape "
                f"{scores.shape} with {np.count_nonzero(~np.isfinite(scores))} not finite"
            )
        self._reset(sorted(scores.tolist()))

    def _reset(self, known: list[float]) -> None:
        self._known = known
        self._waiting: list[float] = []
        self._generator = np.random.default_rng(self._seed)
        self.n_frames = 0
        self.statistic = 0.0
        self.expired = False
        self.autocorrelation_time = math.nan
        self.stride, self.limit = self._given_stride, math.nan
        if self.stride is not None:
            self.limit = self._limit_for(self.stride)

    def update(self, score: float) -> bool:
        """Take note of the score of one observed frame; True on the frame on which it fires.

        Raises
        ------
        RuntimeError
            If the alarm was not started.
        ValueError
            If the score is not finite.
        """
        if not self._known:
            raise RuntimeError("start the alarm with calibration scores before its first frame")
        if not math.isfinite(score):
            raise ValueError(f"the score of a frame must be finite, not {score}")
        if self.expired:
            return False
        self.n_frames += 1
        if self.stride is None:
            self._waiting.append(score)
            if len(self._waiting) < self.warm_up:
                return False
            self.stride = self._measured_stride()
            self.limit = self._limit_for(self.stride)
            entering, self._waiting = self._waiting[:: self.stride], []
        else:
            entering = [score] if (self.n_frames - 1) % self.stride == 0 else []
        self.expired = any(self._add(value) for value in entering)
        return self.expired

    def expected_delay(self, shift: float) -> float:
        """Observed frames from a change to the alarm, on average and at worst.

        From a sum of zero, with scores that stay a given shift above the calibration scores, and
        with so many of these that the new ones do not count among them.

        Parameters
        ----------
        shift : float
            In standard deviations of the normal scores.
        """
        if self.stride is None:
            raise RuntimeError("the delay is known when the stride is: give one, or warm up")
        return self.stride * mean_run_length(self._limit_for(self.stride), self.allowance, shift)

    def describe(self) -> str:
        """One sentence for an event."""
        return (
            f"the calibration has expired: scores have been above those of the calibration frames "
            f"(cumulative sum {self.statistic:.3g}, limit {self.limit:.3g}; a false alarm comes "
            f"once in {self.frames_between_false_alarms:.3g} frames)"
        )

    def _add(self, score: float) -> bool:
        """One step of the sum; whether it is above its limit."""
        # Ranks of (1): the new score is one of those that are equal to it.
        below, upto = bisect_left(self._known, score), bisect_right(self._known, score)
        larger, equal = len(self._known) - upto, upto - below + 1
        uniform = 1.0 - self._generator.random()  # above zero, so that p is
        p = (larger + uniform * equal) / (len(self._known) + 1)
        insort(self._known, score)
        self.statistic = max(0.0, self.statistic - float(ndtri(p)) - self.allowance)
        return self.statistic > self.limit

    def _limit_for(self, stride: int) -> float:
        return limit_of(self.frames_between_false_alarms / stride, self.allowance)

    def _measured_stride(self) -> int:
        """Stride of the warm-up frames, by the ranks of their scores among the calibration scores.

        Ranks, because one large score would rule the autocorrelation of the scores themselves.
        """
        ranks = np.searchsorted(self._known, self._waiting)
        found = autocorrelation_time(ndtri((ranks + 0.5) / (len(self._known) + 1.0)))
        self.autocorrelation_time = found
        if found * _RELIABLE > self.warm_up:
            warnings.warn(
                f"scores are correlated over {found:.0f} observed frames or more, too long to "
                f"measure in a warm-up of {self.warm_up}: false alarms of the calibration alarm "
                "may be more frequent than was asked for. Observe less often, or give a longer "
                f"warm_up (of {_RELIABLE * found:.0f} or more) or a stride",
                UncertaintyWarning,
                stacklevel=2,
            )
        # Two standard errors on the safe side: a stride too short costs false alarms.
        safe = found * (1.0 + 2.0 * relative_error(found, self.warm_up))
        return independent_stride(safe)
