"""`UncertaintyMonitor`: the one ASE observer that turns error bars into decisions."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ase_bayesmlip.md.actions import LogCSV, Stop, Warn
from ase_bayesmlip.md.alarm import CalibrationAlarm
from ase_bayesmlip.md.barostat import cell_columns
from ase_bayesmlip.md.constraints import check_constraints
from ase_bayesmlip.md.counted import counted_atoms
from ase_bayesmlip.md.events import (
    Action,
    Event,
    History,
    HistoryRecorder,
    LastFrame,
    copy_results,
    fresh_results,
    worst_atoms,
)
from ase_bayesmlip.md.integrators import check_attached_once, observed_structure, time_step_fs
from ase_bayesmlip.md.limit import find_limit, find_scores, named_score
from ase_bayesmlip.md.physical import PhysicalChecks, unphysical_results
from ase_bayesmlip.md.stopping import Brake
from ase_bayesmlip.md.threshold import Budget, Trigger
from ase_bayesmlip.scores import SCORE_UNITS, Score, ScoreFunction, evaluate_score


class _Observation(NamedTuple):
    """One frame as the monitor sees it; `unphysical` says why, and is empty if it is not."""

    time_fs: float | None
    results: Mapping[str, Any]
    score: Score
    unphysical: str
    flagged: bool


class UncertaintyMonitor:
    """Watch the uncertainty of a running simulation or relaxation and act on it.

    The monitor reads the results that the calculator already holds and never evaluates it::

        monitor = UncertaintyMonitor(dyn, false_alarm_rate=0.01, actions=[Warn(), Stop()])
        dyn.attach(monitor, interval=1)

    A frame is *flagged* when its score is above the threshold. An *uncertain* event fires when
    patience, cooldown and budget allow it, and is handed to `actions` in their order. A frame
    with non-finite results or momenta, a score above `upper_limit`, two atoms that almost coincide,
    an atom without neighbours or a temperature above `max_temperature_K` is *unphysical*: it fires
    at once and goes to `on_unphysical` only, never to `actions`, so that it is neither
    recalculated nor learned from.

    Attach it once. Dynamics that lose constraints, runs that nothing can stop, and, beside a
    `Rewind`, dynamics whose state is not known are refused.

    Parameters
    ----------
    dyn : MolecularDynamics or Optimizer
    score : str, callable or None
        A name in `SCORES`, or a function ``(results, atoms) -> Score or float``, which chooses its
        atoms itself. None takes the best that the file has (``card.default_score``).
    atoms : None, "all", mask or indices
        The atoms that count in a score that is a maximum or a mean over atoms. None leaves out
        those that constraints hold fixed in all three coordinates. The threshold of the card is
        for as many atoms as count (`md.limit.level_for`). Other scores see all atoms.
    threshold : float, unit of the score
    false_alarm_rate : float
        Instead of `threshold`: false alarms per frame, turned into a threshold by the calibration
        scores. Default: 0.01, or with a warning the smallest rate that so few scores can promise.
        See `false_alarm_threshold` for what is guaranteed, and `md.limit` for folds.
    calibration_scores : array_like, (n,), unit of the score
        In the order of their trajectory. Default: those in the model card.
    actions : sequence of callables ``action(event, monitor)``
    alarm : CalibrationAlarm or None
        Watches all scores for a shift; an event of the kind *expired* goes to its own actions.
    log : path or LogCSV
        Every observed frame as one row of a CSV file.
    patience : int
        Flagged frames in a row before an event fires.
    cooldown : int
        Observed frames without an event after an event.
    budget : int or None
        Largest number of uncertain events. The event after the last is not handed to the actions.
    on_budget : {"ignore", "stop"}
        What that event does: warn once and go on logging only, or stop the run.
    upper_limit : float or None, unit of the score
        Frames with a larger score are unphysical.
    on_unphysical : sequence of callables
        Default: stop the run.
    min_distance_ratio : float or None
        Atoms closer than this part of the sum of covalent radii are unphysical; None: no check.
    max_temperature_K : float, "auto" or None, K
        Frames of dynamics that are hotter are unphysical, see `TemperatureWatch`. None switches
        the check off.
    lone_atoms : {"unphysical", "ignore"}
        Whether a frame with an atom that has no neighbour within the cutoff is unphysical, for
        calculators that tell (``lone_atoms``) and where the training had no such atom.
    n_worst : int
        Atoms named in an event.
    keep_events : int
        The newest that `events` keeps; `n_events` counts all.

    Attributes
    ----------
    events : deque of Event
    history : History
    threshold : float
    meaning : str
        What is flagged, and what is promised of it.
    stop_reason : str
        Why the monitor stopped the run; empty when it did not.
    row : dict
        The log entry of the present frame.
    """

    def __init__(
        self,
        dyn: Any,
        *,
        score: str | ScoreFunction | None = None,
        atoms: Any = None,
        threshold: float | None = None,
        false_alarm_rate: float | None = None,
        calibration_scores: Sequence[float] | np.ndarray | None = None,
        actions: Sequence[Action] = (),
        alarm: CalibrationAlarm | None = None,
        log: str | Path | LogCSV | None = None,
        patience: int = 1,
        cooldown: int = 0,
        budget: int | None = None,
        on_budget: str = "ignore",
        upper_limit: float | None = None,
        on_unphysical: Sequence[Action] | None = None,
        min_distance_ratio: float | None = 0.5,
        max_temperature_K: float | str | None = "auto",
        lone_atoms: str = "unphysical",
        n_worst: int = 3,
        keep_events: int = 1000,
    ) -> None:
        self.dyn = dyn
        self.atoms = observed_structure(dyn)
        self._brake = Brake(dyn)
        self.score_name, function = named_score(score, self.atoms.calc)
        self._count = partial(
            counted_atoms,
            self.atoms,
            atoms,
            self.score_name,
            by_name=not callable(score),
            card_threshold=threshold is None and calibration_scores is None,
        )
        self._heed_constraints()
        n_atoms = len(self.atoms) if self._counted is None else int(self._counted.sum())
        asked = (threshold, false_alarm_rate, calibration_scores)
        limit = find_limit(*asked, (self.score_name, function), self.atoms.calc, n_atoms)
        self.threshold, self.false_alarm_rate, self._score, self.meaning = limit
        logging.getLogger("ase_bayesmlip").info("flagged: %s", self.meaning)
        if upper_limit is not None and not upper_limit > (flagged := self.threshold):
            raise ValueError(f"upper_limit {upper_limit:g} must be above the threshold {flagged:g}")
        self.alarm = alarm
        if alarm is not None:
            alarm.start(find_scores(calibration_scores, self.score_name, self.atoms.calc))
        self.actions = tuple(actions)
        self.on_unphysical = (Stop(),) if on_unphysical is None else tuple(on_unphysical)
        log = LogCSV(log) if isinstance(log, str | Path) else log
        self.on_expired = (Warn(),) if alarm is None or alarm.actions is None else alarm.actions
        hooked: tuple[Any, ...] = (*self.actions, *self.on_unphysical, *self.on_expired, log)
        for item in (each for each in hooked if hasattr(each, "check_dynamics")):
            item.check_dynamics(dyn)
        self._loggers = {id(item): item for item in hooked if hasattr(item, "on_frame")}.values()
        self._trigger = Trigger(patience, cooldown)
        self._budget = Budget(budget, on_budget)
        self.upper_limit, self.n_worst = upper_limit, n_worst
        self._physical = PhysicalChecks(
            dyn, self.atoms, min_distance_ratio, max_temperature_K, lone_atoms
        )
        self.events: deque[Event] = deque(maxlen=keep_events)
        self.n_events = self.n_uncertain = 0
        self.stop_reason = ""
        self.row: dict[str, Any] = {}
        self._history = HistoryRecorder()
        self._last_frame = LastFrame()

    def __call__(self) -> None:
        """Observe the present frame: score it, note it, act on it, log it.

        A frame that ASE shows again, when a run starts again, is left out.

        Raises
        ------
        RuntimeError
            If the calculator holds no results of this structure, or if it was attached twice.
        PropertyNotImplementedError
            If the results lack what the score needs.
        """
        check_attached_once(self.dyn, self)
        if self.atoms.constraints != self._constraints:  # set after the monitor was made
            self._heed_constraints()
        results = fresh_results(self.atoms)
        if self._last_frame.is_shown_again(self.dyn.nsteps, self.atoms, results.get("energy")):
            return
        frame = self._observe(results)
        self._note_frame(frame)
        try:
            if frame.unphysical:
                self._trigger.reset()
                self._fire("unphysical", frame.unphysical, frame, self.on_unphysical)
            else:
                # First, because an uncertain event may rewind the atoms.
                if self.alarm is not None and self.alarm.update(frame.score.value):
                    self._fire("expired", self.alarm.describe(), frame, self.on_expired)
                if self._trigger.update(frame.flagged):
                    self._fire_uncertain(frame)
        finally:
            for logger in self._loggers:
                logger.on_frame(self)

    def __repr__(self) -> str:
        return (
            f"<UncertaintyMonitor of {type(self.dyn).__name__}: {self.score_name} above "
            f"{self.threshold:.4g} {SCORE_UNITS.get(self.score_name, '')}; "
            f"{self.n_observed} frames, {self.n_flagged} flagged, {self.n_events} events; "
            f"{[*self.actions]}{'; stopped: ' * bool(self.stop_reason)}{self.stop_reason}>"
        )

    @property
    def history(self) -> History:
        """Step, time, score and flag of every observed frame."""
        return self._history.arrays()

    @property
    def n_observed(self) -> int:
        """Number of observed frames."""
        return len(self._history.step)

    @property
    def n_flagged(self) -> int:
        """Number of flagged frames, whether or not they fired an event."""
        return self._history.n_flagged

    def note(self, **values: Any) -> None:
        """Add values to the log entry of the present frame."""
        self.row.update(values)

    def stop(self, reason: str) -> None:
        """End the run after the present step, with the integrator in a state to continue from."""
        self.stop_reason = reason
        self._brake.pull()

    def _heed_constraints(self) -> None:
        check_constraints(self.dyn)
        self._counted = self._count()
        self._constraints = list(self.atoms.constraints)

    def _observe(self, results: Mapping[str, Any]) -> _Observation:
        score, unphysical = self._judge(results)
        flagged = bool(unphysical) or score.value > self.threshold
        time_fs = self._history.time_of(self.dyn.nsteps, time_step_fs(self.dyn))
        return _Observation(time_fs, results, score, unphysical, flagged)

    def _judge(self, results: Mapping[str, Any]) -> tuple[Score, str]:
        """Score the frame and say why it is unphysical (empty if it is not)."""
        unphysical = self._physical()
        reason = unphysical_results(results)
        if reason:
            return Score(float("nan"), None), reason
        score = evaluate_score(self._score, results, self.atoms, self._counted)
        if not np.isfinite(score.value):
            return score, f"score {self.score_name} is {score.value}"
        if self.upper_limit is not None and score.value > self.upper_limit:
            return score, (
                f"score {self.score_name} = {score.value:.4g} is above the upper limit "
                f"{self.upper_limit:.4g}"
            )
        return score, unphysical

    def _note_frame(self, frame: _Observation) -> None:
        self._history.append(self.dyn.nsteps, frame.time_fs, frame.score.value, frame.flagged)
        self.row = {
            "step": self.dyn.nsteps,
            "time_fs": frame.time_fs,
            "temperature_K": self._physical.temperature_K,
            "energy": frame.results.get("energy"),
            "energy_uncertainty": frame.results.get("energy_uncertainty"),
            "score": frame.score.value,
            "threshold": self.threshold,
            "flagged": int(frame.flagged),
            **cell_columns(self.atoms, frame.results),
        }

    def _fire_uncertain(self, frame: _Observation) -> None:
        if self._budget.is_used_up(self.n_uncertain):
            self._budget.report(self)
            return
        self.n_uncertain += 1
        reason = (
            f"score {self.score_name} = {frame.score.value:.4g} is above the threshold "
            f"{self.threshold:.4g}"
        )
        self._fire("uncertain", reason, frame, self.actions)

    def _fire(self, kind: str, reason: str, frame: _Observation, actions: Sequence[Action]) -> None:
        atoms, scores = worst_atoms(frame.score, self.n_worst, self._counted)
        event = Event(
            kind=kind,
            reason=reason,
            step=self.dyn.nsteps,
            time_fs=frame.time_fs,
            score=frame.score.value,
            threshold=self.threshold,
            worst_atoms=atoms,
            worst_scores=scores,
            atoms=self.atoms.copy(),
            results=copy_results(frame.results),
        )
        self.events.append(event)
        self.n_events += 1
        earlier = f"{self.row['event']}+" if self.row.get("event") else ""
        self.note(event=earlier + kind)
        for action in actions:
            action(event, self)
