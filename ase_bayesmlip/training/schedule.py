"""How far a run is, from 0 to 1, where the number of its epochs may change on the way.

Learning rates and the end of the warm-up follow this progress. When a run is to end sooner, or its
time allows other epochs than planned, the rest of the way is divided anew: the progress never
jumps, never goes back, and is 1 at the end.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

# Epochs whose mean time is the pace.
RECENT = 5


class Schedule(NamedTuple):
    """A straight line from the progress at which the plan was made to 1.

    Attributes
    ----------
    epochs : int
        Of the whole run.
    start : int
        Epoch at which this was planned.
    progress : float in [0, 1)
        At the start.
    """

    epochs: int
    start: int = 0
    progress: float = 0.0

    def at(self, position: float, per_epoch: int = 1) -> float:
        """Progress at a position, of which an epoch has so many."""
        done, whole = (n * per_epoch for n in (self.start, self.epochs))
        return min(self.progress + (1.0 - self.progress) * (position - done) / (whole - done), 1.0)

    def epoch_of(self, progress: float) -> int:
        """The epoch nearest to a progress."""
        share = (progress - self.progress) / (1.0 - self.progress)
        return round(self.start + share * (self.epochs - self.start))

    def replanned(self, epochs: int, done: int) -> Schedule:
        """With another number of epochs, more than are done."""
        return self if epochs == self.epochs else Schedule(epochs, done, self.at(done))


def planned_epochs(most: int, done: int, limit: float, seconds: Sequence[float]) -> int:
    """Epochs in all that a time allows, from one more than are done to `most`.

    Parameters
    ----------
    limit : float, s
        For all epochs.
    seconds : sequence of float
        Time of each epoch so far. The first, which is slow, is not counted in the pace; alone it
        tells no more than that time is up.
    """
    left = limit - sum(seconds)
    pace = statistics.fmean(seconds[1:][-RECENT:] or seconds)
    enough = 1 if len(seconds) == 1 else most - done
    if left >= enough * pace:
        return most
    return done + (max(1, int(left / pace + 1e-9)) if left > 0.0 else 1)
