"""A number of an evaluation with its interval: what is resampled are frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from ase_bayesmlip import metrics
from ase_bayesmlip.metrics.errors import Errors

# Ranks are found anew in each resample, which takes longer than adding up sums of frames.
N_RANK_RESAMPLES = 200


@dataclass(frozen=True, eq=False)
class Estimate:
    """A number, or a curve, with its interval.

    Attributes
    ----------
    value : float or ndarray
    interval : ndarray or None, (2, ...)
        None where there is no second frame to resample.
    """

    value: float | np.ndarray
    interval: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """How intervals are made; `notes` collects what could not be had, each sentence once.

    Attributes
    ----------
    n_resamples : int
    level : float
    seed : int
        Every interval starts from it, so that a number does not depend on those before it.
    notes : list of str
    """

    n_resamples: int = 1000
    level: float = 0.95
    seed: int = 0
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # The small shift keeps levels such as 0.95 from losing a resample to round-off.
        least = int(np.ceil(2.0 / (1.0 - self.level) - 1e-9)) if 0 < self.level < 1 else 2
        if self.n_resamples < least:
            raise ValueError(
                f"{self.n_resamples} resamples are too few for an interval of "
                f"{100 * self.level:g} %; give {least} or more"
            )

    def note(self, sentence: str) -> None:
        """Keep a sentence for the reader, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def generator(self) -> np.random.Generator:
        """A fresh generator."""
        return np.random.default_rng(self.seed)

    def mean(
        self,
        errors: Errors,
        metric: Callable[[Errors], float | np.ndarray],
        finish: Callable[[np.ndarray], float | np.ndarray] = float,
    ) -> Estimate:
        """Estimate of ``finish(mean over items)`` for a metric that is a mean over items.

        The metric is evaluated once on each frame; means over many frames, the true ones and those
        of the resamples, are averages weighted by the number of items.
        """
        frames = by_frame(errors)
        weights = np.array([len(part.error) for part in frames], dtype=np.float64)
        values = np.array([metric(part) for part in frames], dtype=np.float64)

        def statistic(chosen: np.ndarray) -> float | np.ndarray:
            drawn = weights[chosen]
            return finish(drawn @ values[chosen] / drawn.sum())

        everything = np.arange(len(frames))
        return Estimate(statistic(everything), self._interval(statistic, everything))

    def ranked(self, errors: Errors, metric: Callable[[Errors], float]) -> Estimate:
        """Estimate of a metric that depends on the order of all items."""
        few = replace(self, n_resamples=min(self.n_resamples, N_RANK_RESAMPLES))
        interval = few._interval(lambda chosen: metric(errors.take(chosen)), errors.frame)
        return Estimate(metric(errors), interval)

    def _interval(
        self, statistic: Callable[[np.ndarray], float | np.ndarray], frame: np.ndarray
    ) -> np.ndarray | None:
        if len(np.unique(frame)) < 2:
            return None
        return metrics.bootstrap_interval(
            statistic, frame, self.n_resamples, self.level, generator=self.generator()
        )


def by_frame(errors: Errors) -> list[Errors]:
    """The items of each frame that has any."""
    starts = np.flatnonzero(np.diff(errors.frame, prepend=-1))
    parts = np.split(np.arange(len(errors.frame)), starts[1:])
    return [errors.take(part) for part in parts]
