"""When a frame is flagged: the threshold, the trigger and the check for atoms in contact."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from scipy.special import ndtri, stdtrit

from ase_bayesmlip.md.correlation import effective_number
from ase_bayesmlip.md.events import UncertaintyWarning
from ase_bayesmlip.metrics.reach import frames_needed, reachable_rate

# Above this size the neighbour list is cheaper than all pairs.
_ALL_PAIRS_LIMIT = 300

# Pairs that may come into contact are searched again when an atom has moved by half of this, Å.
_CONTACT_SKIN = 2.0

# Pairs further from contact than this, Å, are not measured.
_CONTACT_GAP = 1.0


class AlarmLevel(NamedTuple):
    """A threshold, the independent frames that it is worth, and whether these reach the rate."""

    threshold: float
    n_effective: float
    promised: bool


def false_alarm_threshold(
    calibration_scores: Sequence[float] | np.ndarray,
    rate: float,
    trajectory: Sequence[int] | np.ndarray | None = None,
) -> float:
    """Threshold that frames like the calibration frames exceed at most at the given rate.

    With n calibration scores it is the k-th smallest, the split-conformal quantile

        q = s_(k),    k = ceil((n + 1) (1 - rate)).                                         (1)

    If these and the score of a new frame are exchangeable, the new one is above it with a
    probability of at most `rate`, and without ties of at least ``rate - 1 / (n + 1)`` (Vovk,
    Gammerman and Shafer, 2005; Lei et al., doi:10.1080/01621459.2017.1307116).

    **Frames of a trajectory** are worth n' = n/τ independent ones (`effective_number`). They have
    not been everywhere, so that more new frames than asked for lie above (1), 4 % for 1 % with
    n' = 6. The threshold is then moved away from the median m,

        m + c (q - m),    c = t_{2n'-1}(1 - rate)/z(1 - rate) √((n' + 1)/(n' - 1)),         (2)

    on ln s where all scores are positive: c is the ratio of the prediction limit of a Gaussian from
    n' numbers, whose squares forget in half the time, to the quantile itself. It is one for many.
    Scores in order of size have lost the order of their frames, and count as independent.

    Parameters
    ----------
    calibration_scores : array_like, (n,)
        Scores of frames that were used neither for training nor for choosing the model, in the
        order of the trajectory.
    rate : float
        False alarms per frame, between 0 and 1 (both excluded).
    trajectory : array_like of int or None, (n,)
        The trajectory of each frame; None: all are of one.

    Returns
    -------
    float
        In the unit of the scores. A frame is flagged when its score is *above* it.

    Raises
    ------
    ValueError
        If the rate or the scores are out of range, or if n is below ``1 / rate - 1``.

    Warns
    -----
    UncertaintyWarning
        If n' is below ``1 / rate - 1``: nothing promises the rate then, (2) estimates it.

    Notes
    -----
    False alarms of a trajectory arrive in bursts. Frames at another temperature, composition or
    phase are unlike the calibration frames; that more of them are flagged is the purpose.
    """
    return alarm_level(calibration_scores, rate, trajectory).threshold


def alarm_level(
    calibration_scores: Sequence[float] | np.ndarray,
    rate: float,
    trajectory: Sequence[int] | np.ndarray | None = None,
    size: float = 1.0,
) -> AlarmLevel:
    """`false_alarm_threshold`, also for a maximum over `size` times as many atoms, N for M.

    That of N independent atoms stays below a threshold with the probability p^(N/M) if that of M
    does with p: the rate is kept by the quantile at

        1 - (1 - rate)^(M/N).                                                               (3)

    A size below one counts as one, for what fewer atoms flag is no more than asked for.
    """
    scores = _checked(calibration_scores, rate)
    n = len(scores)
    deep = -math.expm1(math.log1p(-rate) / max(size, 1.0))
    count = effective_number(scores, trajectory)
    promised = frames_needed(deep) <= count + 1e-9 * count
    if not promised:
        _warn_of_extrapolation(rate, deep, n, count)
    # What the largest score stands for, where (3) is beyond it.
    reached = max(deep, reachable_rate(n))
    rank = math.ceil((n + 1) * (1 - reached - 1e-9))  # the shift: no rank is lost to round-off
    found = float(np.partition(scores, rank - 1)[rank - 1])
    if (promised and count == n) or reached >= 0.5:
        return AlarmLevel(found, count, promised)
    logarithmic = bool(scores.min() > 0.0)
    middle = float(np.median(scores))
    if logarithmic:
        found, middle = math.log(found), math.log(middle)
    known = max(count, 1.5)  # below which (2) has no meaning
    limit = stdtrit(2.0 * known - 1.0, 1.0 - deep) * math.sqrt((known + 1.0) / (known - 1.0))
    moved = middle + max(1.0, float(limit / ndtri(1.0 - reached))) * (found - middle)
    return AlarmLevel(math.exp(min(moved, 700.0)) if logarithmic else moved, count, promised)


def _checked(calibration_scores: Any, rate: float) -> np.ndarray:
    if not 0 < rate < 1:
        raise ValueError(f"the false-alarm rate must be between 0 and 1, not {rate}")
    scores = np.asarray(calibration_scores, dtype=float)
    if scores.ndim != 1 or not np.isfinite(scores).all():
        raise ValueError(
            "calibration scores must be a one-dimensional array of finite numbers, got shape "
            f"{scores.shape} with {np.count_nonzero(~np.isfinite(scores))} not finite"
        )
    n = len(scores)
    if frames_needed(rate) > n:
        raise ValueError(
            f"a false-alarm rate of {rate} needs at least {frames_needed(rate)} calibration "
            f"frames, and there are {n}; give more frames or a rate of at least "
            f"{reachable_rate(n):.3g}"
        )
    return scores


def _warn_of_extrapolation(rate: float, deep: float, n: int, count: float) -> None:
    larger = f" ({deep:.2g} for as many atoms as in a calibration frame)" * (deep < rate)
    worth = f", correlated and worth {count:.0f} independent ones," * (count < n)
    warnings.warn(
        f"a false-alarm rate of {rate:g}{larger} needs {frames_needed(deep)} independent "
        f"calibration frames, and the {n}{worth} cannot promise it: the threshold is extrapolated "
        "as the tail of a Gaussian. Give more frames, further apart, or a higher rate",
        UncertaintyWarning,
        stacklevel=4,
    )


class Trigger:
    """Patience and cooldown: which of the flagged frames fire an event.

    Parameters
    ----------
    patience : int
        An event fires when this many observed frames in a row are flagged.
    cooldown : int
        Observed frames without another event after one. Flagged ones count towards the patience.
    """

    def __init__(self, patience: int = 1, cooldown: int = 0) -> None:
        if patience < 1:
            raise ValueError(f"patience must be at least 1, not {patience}")
        if cooldown < 0:
            raise ValueError(f"cooldown must not be negative, got {cooldown}")
        self.patience = patience
        self.cooldown = cooldown
        self.reset()

    def reset(self) -> None:
        """Forget the flagged frames seen so far and end any cooldown."""
        self._in_a_row = 0
        self._quiet = 0

    def update(self, flagged: bool) -> bool:
        """Take note of one observed frame and say whether it fires an event."""
        self._in_a_row = self._in_a_row + 1 if flagged else 0
        if self._quiet > 0:
            self._quiet -= 1
            return False
        if self._in_a_row < self.patience:
            return False
        self._in_a_row = 0
        self._quiet = self.cooldown
        return True


class Budget:
    """How many uncertain events are handed to actions, and what follows the last.

    Parameters
    ----------
    limit : int or None
    on_end : {"ignore", "stop"}
        Warn once, or stop the run.
    """

    def __init__(self, limit: int | None, on_end: str) -> None:
        if limit is not None and limit < 0:
            raise ValueError(f"budget must not be negative, got {limit}")
        if on_end not in ("ignore", "stop"):
            raise ValueError(f"on_budget must be 'ignore' or 'stop', not {on_end!r}")
        self._limit = limit
        self._on_end = on_end
        self._reported = False

    def is_used_up(self, n_events: int) -> bool:
        """Whether that many events are all there may be."""
        return self._limit is not None and n_events >= self._limit

    def report(self, monitor: Any) -> None:
        """Stop the run of a monitor, or warn if that was not done yet."""
        text = f"the budget of {self._limit} uncertain events is used up"
        if self._on_end == "stop":
            monitor.stop(text)
        elif not self._reported:
            warnings.warn(
                f"step {monitor.dyn.nsteps}: {text}; flagged frames are only logged from here",
                UncertaintyWarning,
                stacklevel=2,
            )
        self._reported = True


def close_contact(atoms: Atoms, ratio: float) -> str:
    """Say which two atoms are closer than `ratio` times the sum of their covalent radii.

    Parameters
    ----------
    ratio : float
        0.5 means 0.31 Å for H-H, 0.54 Å for C-H and 0.76 Å for C-C.

    Returns
    -------
    str
        Empty when there is no such pair. Periodic images are taken into account.

    Raises
    ------
    ValueError
        If the structure is beyond a search for neighbours, see `structures.compact`.
    """
    radii = ratio * covalent_radii[atoms.numbers]
    if not atoms.pbc.any() and len(atoms) <= _ALL_PAIRS_LIMIT:
        first, second = np.triu_indices(len(atoms), k=1)
        distances = np.linalg.norm(atoms.positions[first] - atoms.positions[second], axis=1)
    else:
        # Not at the top: it brings torch, which reading a log does not need.
        from ase_bayesmlip.structures.neighbors import NeighborList

        nearby = NeighborList(2.0 * float(radii.max(initial=0.1)), skin=0.0)
        (first, second), _, squared = nearby.measured(atoms)
        distances = np.sqrt(squared)
    close = np.flatnonzero(distances < radii[first] + radii[second])
    first, second, distances = first[close], second[close], distances[close]
    if len(distances) == 0:
        return ""
    nearest = int(np.argmin(distances))
    i, j = sorted((int(first[nearest]), int(second[nearest])))
    symbols = atoms.symbols
    return (
        f"atoms {i} ({symbols[i]}) and {j} ({symbols[j]}) are {distances[nearest]:.3f} Å apart, "
        f"below {ratio:g} of the sum of their covalent radii"
    )


class ContactWatch:
    """`close_contact` for a structure that moves a little from call to call.

    When pairs are measured, the smallest gap between a distance and its limit is kept: until an
    atom has moved by half of it, there is no contact. A frame in which a pair may be in contact is
    left to `close_contact`.
    """

    def __init__(self) -> None:
        self._neighbors: Any = None
        # Of the last frame that was measured; `_free` is half the smallest gap, Å.
        self._frame: tuple[Any, ...] | None = None
        self._positions = np.zeros((0, 3))
        self._free = 0.0

    def __call__(self, atoms: Atoms, ratio: float) -> str:
        """What `close_contact` says, or why there can be no search for contacts."""
        try:
            return close_contact(atoms, ratio) if self._suspects(atoms, ratio) else ""
        except ValueError as error:
            return str(error)

    def _suspects(self, atoms: Atoms, ratio: float) -> bool:
        arrays = (atoms.numbers, atoms.cell.array, atoms.pbc)
        frame = (ratio, *(array.tobytes() for array in arrays))
        if frame == self._frame and self._is_free(atoms.positions):
            return False
        gap = self._smallest_gap(atoms, ratio)
        self._frame, self._positions = frame, atoms.positions.copy()
        self._free = 0.5 * max(gap, 0.0)
        return gap <= 0.0

    def _is_free(self, positions: np.ndarray) -> bool:
        moved = positions - self._positions
        moved *= moved
        return bool(moved.sum(axis=1).max(initial=0.0) < self._free**2)

    def _smallest_gap(self, atoms: Atoms, ratio: float) -> float:
        """Smallest distance beyond its limit, Å, negative for a contact; at most _CONTACT_GAP."""
        # The margin leaves pairs at the very limit to `close_contact`.
        radii = (1 + 1e-9) * ratio * covalent_radii[atoms.numbers]
        cutoff = 2 * radii.max(initial=0.0) + _CONTACT_GAP
        if self._neighbors is None or self._neighbors.cutoff < cutoff:
            from ase_bayesmlip.structures.neighbors import NeighborList  # see `close_contact`

            self._neighbors = NeighborList(cutoff, _CONTACT_SKIN)
        (first, second), _, squared = self._neighbors.measured(atoms)
        gaps = np.sqrt(squared) - radii[first] - radii[second]
        return float(gaps.min(initial=_CONTACT_GAP))
