"""`Recalculate`: ask a reference calculator about the frames that the model does not know."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.filters import Filter
from ase.stress import full_3x3_to_voigt_6_stress

from ase_bayesmlip.md.events import Event, Monitor, UncertaintyWarning, event_information
from ase_bayesmlip.md.integrator_state import refresh_forces
from ase_bayesmlip.md.label_limits import limits_for
from ase_bayesmlip.md.label_spacing import LabelSpacing
from ase_bayesmlip.md.periodicity import packages_of, refuse_partial_periodicity
from ase_bayesmlip.md.reference_process import ReferenceFailure, ReferenceProcess
from ase_bayesmlip.md.references import (
    Label,
    check_calculator,
    checked_label,
    evaluate,
    reference_calculator,
    reference_name,
)
from ase_bayesmlip.structures.extxyz import LABEL_PREFIX, FrameFile, annotated_frame

PREDICTION_PREFIX = "predicted_"


@dataclass(frozen=True, eq=False)
class ReferenceRecord:
    """Prediction and reference for one frame; numbers are NaN where there is none.

    Attributes
    ----------
    step : int
    time_fs : float or None, fs
    score : float
    energy, reference_energy, energy_error : float, eV
        Error: label - prediction, the reference minus the model's energy.
    energy_uncertainty : float, eV
        Predicted standard deviation of the energy (total).
    force_rmse : float, eV/Å
        Over the 3 n_atoms components.
    force_rms_uncertainty : float, eV/Å
        Prediction of `force_rmse`: root mean square of the predicted standard deviations of the
        components (total).
    force_max_error : float, eV/Å
        Largest length of the error of an atom's force.
    force_max_uncertainty : float, eV/Å
        Largest sqrt(tr Σ_i), the predicted root mean square length of that error.
    failure : str
        Why the reference gave no answer; empty when it did.
    """

    step: int
    time_fs: float | None
    score: float
    energy: float = float("nan")
    reference_energy: float = float("nan")
    energy_error: float = float("nan")
    energy_uncertainty: float = float("nan")
    force_rmse: float = float("nan")
    force_rms_uncertainty: float = float("nan")
    force_max_error: float = float("nan")
    force_max_uncertainty: float = float("nan")
    failure: str = ""


LOGGED = (
    "reference_energy",
    "energy_error",
    "force_rmse",
    "force_rms_uncertainty",
    "force_max_error",
    "force_max_uncertainty",
)


class Recalculate:
    """Evaluate a reference calculator on a copy of each uncertain frame.

    Unphysical frames are never recalculated, whatever list the action stands in. An answer counts
    when it has the right shapes and types, is finite, and is within the limits; nothing is
    broadcast. Whatever else the reference does goes through `on_error`.

    Parameters
    ----------
    reference_calculator : Calculator or str
        Must give energy and forces. A name is one that `references.reference_calculator` knows,
        such as ``"gfn2"`` or ``"package.module:factory"``.
    path : path or None
        Extended XYZ file to append to. It can be used as training data as it is: ``REF_energy``,
        ``REF_forces`` and, for a periodic cell, ``REF_stress`` (9 numbers, eV/Å³); the prediction
        and its uncertainties stand beside them as ``predicted_*``, and ``reference`` names the
        reference.
    continue_on_reference : bool
        Put the reference energy and forces (and stress, if known; where the cell moves it must
        be) into ``calc.results``, so that the next half-kick of the integrator uses them. The step
        that has just ended used the forces of the model. Per-atom energies and uncertainties
        remain those of the model.
    on_error : {"warn", "raise"}
        A reference that fails, or answers with what cannot be meant, is noted in `records` and
        either warned about or raised.
    spacing : int or "correlation"
        Observed frames from one label to the next, at least, see `LabelSpacing`. 1, the default,
        labels every event: patience, cooldown and budget of the monitor decide.
    max_labels : int or None
        Largest number of calls of the reference.
    timeout_s : float or None, s
        For one label. The reference is then made and asked in a process of its own
        (`ReferenceProcess`), which is killed when the time is over.
    force_limit : float, "training" or None, eV/Å
        Largest length of a reference force that is believed; see `training_limits` for what
        follows from the training labels of the file. None for no limit.
    energy_limit : (float, float), "training" or None, eV
        Smallest and largest energy per atom that is believed, with the reference energies of the
        file subtracted.

    Attributes
    ----------
    records : list of ReferenceRecord
    plan : LabelSpacing
        With the number of frames that were not labelled, and why.
    """

    def __init__(
        self,
        reference_calculator: BaseCalculator | str,
        path: str | Path | None = None,
        continue_on_reference: bool = False,
        on_error: str = "warn",
        *,
        spacing: str | int = 1,
        max_labels: int | None = None,
        timeout_s: float | None = None,
        force_limit: float | str | None = "training",
        energy_limit: tuple[float, float] | str | None = "training",
    ) -> None:
        if on_error not in ("warn", "raise"):
            raise ValueError(f"on_error must be 'warn' or 'raise', not {on_error!r}")
        check_calculator(reference_calculator)
        self.reference_calculator = reference_calculator
        self.plan = LabelSpacing(spacing, max_labels)
        limits_for(None, force_limit, energy_limit)  # refuses what is none
        self.force_limit, self.energy_limit = force_limit, energy_limit
        self.name = reference_name(reference_calculator)
        self._ask, self._packages = _asked(reference_calculator, timeout_s)
        self.path = None if path is None else Path(path)
        self._file = None if path is None else FrameFile(path)
        self.continue_on_reference = continue_on_reference
        self.on_error = on_error
        self.records: list[ReferenceRecord] = []

    def __repr__(self) -> str:
        n_failed = sum(bool(record.failure) for record in self.records)
        n_answered = len(self.records) - n_failed
        return f"<Recalculate with {self.name}: {n_answered} answers, {n_failed} failures>"

    def check_dynamics(self, dyn: Any) -> None:
        """Refuse the calculator of the simulation itself: it would label its own predictions."""
        if getattr(dyn.atoms, "calc", None) is self.reference_calculator:
            raise ValueError(
                f"the reference, {self.name}, is the calculator of the simulation: its own "
                "predictions would become labels; give another one"
            )

    def on_frame(self, monitor: Monitor) -> None:
        """Find out before the first step whether labelled frames can be written."""
        self.check(monitor.atoms)

    def refuse(self, atoms: Atoms) -> None:
        """Raise `ValueError` for a structure of which no frame could be labelled."""
        refuse_partial_periodicity(self._packages, atoms)

    def check(self, atoms: Atoms) -> None:
        """Try in memory, once, whether frames of these evaluated atoms can be written."""
        if self._file is not None and not self._file.checked:
            results = atoms.calc.results
            self._file.check(annotated_frame(atoms, results, prefix=PREDICTION_PREFIX))

    def __call__(self, event: Event, monitor: Monitor) -> None:
        """Recalculate the frame of one event, if it is due."""
        if event.kind != "uncertain":
            return
        if not self.plan.is_due(monitor.n_observed, lambda: monitor.history.score):
            return
        try:
            label = self._label(event.atoms, getattr(monitor.atoms.calc, "card", None))
            record = compare(event, label)
        except (Exception, SystemExit) as error:
            self._fail(event, error)
            return
        self.records.append(record)
        monitor.note(**{name: getattr(record, name) for name in LOGGED})
        if self._file is not None:
            self._file.append(labelled_frame(event, label, self.name))
        moved = not np.array_equal(monitor.atoms.positions, event.atoms.positions)
        if self.continue_on_reference and not moved:
            adopt_reference(monitor.atoms, monitor.dyn, label)

    def _label(self, atoms: Atoms, card: Any) -> Label:
        label = checked_label(self._ask(atoms), len(atoms))
        limits_for(card, self.force_limit, self.energy_limit).check(label, atoms)
        return label

    def _fail(self, event: Event, error: BaseException) -> None:
        own = isinstance(error, ReferenceFailure)  # it names the error that it stands for
        failure = str(error) if own else f"{type(error).__name__}: {error}"
        self.records.append(
            ReferenceRecord(event.step, event.time_fs, event.score, failure=failure)
        )
        if self.on_error == "raise":
            raise error
        warnings.warn(
            f"step {event.step}: the reference calculator failed ({failure}); the run goes on "
            "with the prediction",
            UncertaintyWarning,
            stacklevel=3,
        )


def _asked(
    reference: BaseCalculator | str, timeout_s: float | None
) -> tuple[Callable[[Atoms], dict[str, Any]], list[str]]:
    """Function that asks a reference, in this process or in one of its own; its packages."""
    if timeout_s is not None:
        process = ReferenceProcess(reference, timeout_s)
        return process.ask, process.packages
    calculator = reference_calculator(reference) if isinstance(reference, str) else reference
    return partial(evaluate, calculator), packages_of(calculator)


def compare(event: Event, reference: Label) -> ReferenceRecord:
    """Errors, label - prediction, beside those that the prediction expected."""
    results = event.results
    error = reference.forces - results["forces"]
    lengths = np.linalg.norm(error, axis=1)
    numbers: dict[str, Any] = {
        "energy": float(results.get("energy", np.nan)),
        "reference_energy": reference.energy,
        "energy_uncertainty": float(results.get("energy_uncertainty", np.nan)),
        "force_rmse": float(np.sqrt(np.mean(error**2))),
        "force_max_error": float(lengths.max()),
    }
    numbers["energy_error"] = reference.energy - numbers["energy"]
    if "forces_cov" in results:
        traces = np.trace(results["forces_cov"], axis1=1, axis2=2)
        numbers["force_rms_uncertainty"] = float(np.sqrt(traces.mean() / 3))
        numbers["force_max_uncertainty"] = float(np.sqrt(traces.max()))
    return ReferenceRecord(event.step, event.time_fs, event.score, **numbers)


def labelled_frame(event: Event, reference: Label, name: str) -> Atoms:
    """Copy the frame with reference labels (``REF_*``) and the prediction (``predicted_*``)."""
    frame = annotated_frame(event.atoms, event.results, prefix=PREDICTION_PREFIX)
    frame.info.update(event_information(event))
    frame.info["reference"] = name
    frame.info[f"{LABEL_PREFIX}energy"] = reference.energy
    frame.arrays[f"{LABEL_PREFIX}forces"] = reference.forces
    if reference.stress is not None:
        frame.info[f"{LABEL_PREFIX}stress"] = reference.stress.ravel()
    return frame


def adopt_reference(atoms: Atoms, dyn: Any, reference: Label) -> None:
    """Make the cached results of a frame those of the reference, for the integrator as well.

    Raises
    ------
    ValueError
        If the cell follows the stress, and the reference gives none.
    """
    cell_moves = "NPT" in type(dyn).__name__ or isinstance(dyn.atoms, Filter)
    if reference.stress is None and cell_moves:
        raise ValueError(
            f"{type(dyn).__name__} moves the cell by the stress, which the reference does not "
            "give; take one that does, a constant volume, or no continue_on_reference"
        )
    results = atoms.calc.results
    results["energy"] = reference.energy
    if "free_energy" in results:
        results["free_energy"] = reference.energy
    results["forces"] = reference.forces.copy()
    if reference.stress is not None and "stress" in results:
        results["stress"] = full_3x3_to_voigt_6_stress(reference.stress)
    refresh_forces(dyn)
