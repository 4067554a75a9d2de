"""What a monitor hands out: the event that an action receives and the history of a run."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from ase import Atoms

from ase_bayesmlip.scores import Score


class UncertaintyWarning(UserWarning):
    """Issued when a simulation leaves the ground that its potential knows."""


@dataclass(frozen=True, eq=False)
class Event:
    """What an action receives.

    Attributes
    ----------
    kind : str
        ``"uncertain"``, ``"unphysical"``, or ``"expired"`` from a `CalibrationAlarm`.
    reason : str
        One sentence.
    step : int
    time_fs : float or None, fs
        None in a relaxation.
    score, threshold : float
        In the unit of the score.
    worst_atoms : tuple of int
        The atoms with the largest scores, largest first; empty when the score has no atoms.
    worst_scores : tuple of float
    atoms : Atoms
        A copy of the frame, without a calculator.
    results : dict
        Copies of the results of the calculator, with its names and units.
    """

    kind: str
    reason: str
    step: int
    time_fs: float | None
    score: float
    threshold: float
    worst_atoms: tuple[int, ...]
    worst_scores: tuple[float, ...]
    atoms: Atoms
    results: dict[str, Any]


class Monitor(Protocol):
    """What an action may read and do of the monitor that calls it: the contract of both.

    Attributes
    ----------
    dyn : MolecularDynamics or Optimizer
    atoms : Atoms
        The live structure, which an action may change.
    row : dict
        The log entry of the present frame.
    events : sequence of Event
        The newest last.
    stop_reason : str
        Empty while the run goes on.
    """

    dyn: Any
    atoms: Atoms
    row: dict[str, Any]
    events: deque[Event]
    stop_reason: str

    @property
    def n_observed(self) -> int:
        """Number of observed frames."""

    @property
    def history(self) -> History:
        """Step, time, score and flag of every observed frame."""

    def note(self, **values: Any) -> None:
        """Add values to the log entry of the present frame."""

    def stop(self, reason: str) -> None:
        """End the run after the present step."""


Action = Callable[[Event, Monitor], None]


class History(NamedTuple):
    """Every observed frame, as arrays of one length.

    Attributes
    ----------
    step : ndarray of int
    time_fs : ndarray of float, fs
        NaN in a relaxation.
    score : ndarray of float
        NaN where the results were not finite.
    flagged : ndarray of bool
        Above the threshold, or unphysical.
    """

    step: np.ndarray
    time_fs: np.ndarray
    score: np.ndarray
    flagged: np.ndarray


class LastFrame:
    """Tells whether a frame is the one that was shown last.

    ASE shows the first frame again when a run that has made no step is started again.
    """

    def __init__(self) -> None:
        self._shown: tuple[Any, ...] = ()

    def is_shown_again(self, step: int, atoms: Atoms, energy: Any) -> bool:
        """Compare the frame with the last one, and remember it."""
        momenta = atoms.arrays.get("momenta")
        now = (
            step,
            energy,
            atoms.positions.tobytes(),
            atoms.cell.array.tobytes(),
            None if momenta is None else momenta.tobytes(),
        )
        last, self._shown = self._shown, now
        return now == last


class HistoryRecorder:
    """Growing columns of a `History`: four machine numbers a frame."""

    def __init__(self) -> None:
        self.step = array("q")
        self.time_fs = array("d")
        self.score = array("d")
        self.flagged = array("b")
        self.n_flagged = 0

    def append(self, step: int, time_fs: float | None, score: float, flagged: bool) -> None:
        """Add one frame."""
        self.step.append(step)
        self.time_fs.append(float("nan") if time_fs is None else time_fs)
        self.score.append(score)
        self.flagged.append(flagged)
        self.n_flagged += flagged

    def time_of(self, step: int, step_fs: float | None) -> float | None:
        """Time of a frame to come, fs: steps since the last one count with the present length."""
        if step_fs is None:
            return None
        if not self.step:
            return step * step_fs
        return self.time_fs[-1] + (step - self.step[-1]) * step_fs

    def arrays(self) -> History:
        """Copy the columns."""
        return History(
            np.array(self.step, dtype=int),
            np.array(self.time_fs, dtype=float),
            np.array(self.score, dtype=float),
            np.array(self.flagged, dtype=bool),
        )


def event_information(event: Event) -> dict[str, Any]:
    """Step, time, score and reason of an event, as entries for ``atoms.info``."""
    information: dict[str, Any] = {
        "event": event.kind,
        "reason": event.reason,
        "step": event.step,
        "score": event.score,
        "threshold": event.threshold,
    }
    if event.time_fs is not None:
        information["time_fs"] = event.time_fs
    return information


def fresh_results(atoms: Atoms) -> dict[str, Any]:
    """Read the results that the calculator holds for these atoms, without evaluating it.

    Raises
    ------
    RuntimeError
        If there are none, or if they belong to another structure.
    """
    calc = atoms.calc
    if calc is None:
        raise RuntimeError("the atoms have no calculator; set atoms.calc before the run")
    if not calc.results:
        raise RuntimeError(
            "the calculator holds no results; attach the monitor to a simulation with "
            "dyn.attach(monitor), which calls it after the forces are known"
        )
    changes = calc.check_state(atoms) if hasattr(calc, "check_state") else []
    if changes:
        raise RuntimeError(
            f"the results of the calculator belong to another structure ({', '.join(changes)} "
            "changed); attach the monitor before observers that change the atoms"
        )
    return calc.results


def copy_results(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results with every array copied."""
    return {
        name: value.copy() if isinstance(value, np.ndarray) else value
        for name, value in results.items()
    }


def worst_atoms(
    score: Score, count: int, counted: np.ndarray | None = None
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Find indices and scores of the `count` atoms with the largest score, largest first.

    Among those that count in the score, if a mask of them is given; indices are those of the whole
    structure.
    """
    if score.per_atom is None:
        return (), ()
    order = np.argsort(-score.per_atom, kind="stable")
    order = (order if counted is None else order[counted[order]])[:count]
    return tuple(int(i) for i in order), tuple(float(score.per_atom[i]) for i in order)
