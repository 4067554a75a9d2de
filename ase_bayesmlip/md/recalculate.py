"""`Recalculate`: ask a reference calculator about the frames that the model does not know."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, PropertyNotImplementedError
from ase.stress import full_3x3_to_voigt_6_stress

from ase_bayesmlip.md.events import Event, UncertaintyWarning, event_information
from ase_bayesmlip.md.integrator_state import refresh_forces
from ase_bayesmlip.structures.extxyz import LABEL_PREFIX, FrameFile, annotated_frame

if TYPE_CHECKING:
    from ase_bayesmlip.md.monitor import UncertaintyMonitor

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

    Unphysical frames are never recalculated, whatever list the action stands in.

    Parameters
    ----------
    reference_calculator : ase Calculator
        Must give energy and forces.
    path : path or None
        Extended XYZ file to append to. It can be used as training data as it is: ``REF_energy``,
        ``REF_forces`` and, for a periodic cell, ``REF_stress`` (9 numbers, eV/Å³); the prediction
        and its uncertainties stand beside them as ``predicted_*``.
    continue_on_reference : bool
        Put the reference energy and forces (and stress, if known) into ``calc.results``, so that
        the next half-kick of the integrator uses them. The step that has just ended used the
        forces of the model. Per-atom energies and uncertainties remain those of the model.
    on_error : {"warn", "raise"}
        A reference that fails, or answers with numbers that are not finite, is noted in `records`
        and either warned about or raised.

    Attributes
    ----------
    records : list of ReferenceRecord
    """

    def __init__(
        self,
        reference_calculator: BaseCalculator,
        path: str | Path | None = None,
        continue_on_reference: bool = False,
        on_error: str = "warn",
    ) -> None:
        if on_error not in ("warn", "raise"):
            raise ValueError(f"on_error must be 'warn' or 'raise', not {on_error!r}")
        self.reference_calculator = reference_calculator
        self.path = None if path is None else Path(path)
        self._file = None if path is None else FrameFile(path)
        self.continue_on_reference = continue_on_reference
        self.on_error = on_error
        self.records: list[ReferenceRecord] = []

    def on_frame(self, monitor: UncertaintyMonitor) -> None:
        """Find out before the first step whether labelled frames can be written."""
        if self._file is not None and not self._file.checked:
            results = monitor.atoms.calc.results
            self._file.check(annotated_frame(monitor.atoms, results, prefix=PREDICTION_PREFIX))

    def __call__(self, event: Event, monitor: UncertaintyMonitor) -> None:
        """Recalculate the frame of one event."""
        if event.kind != "uncertain":
            return
        try:
            reference = self._evaluate(event)
        except Exception as error:
            self._fail(event, error)
            return
        record = compare(event, reference)
        self.records.append(record)
        monitor.note(**{name: getattr(record, name) for name in LOGGED})
        if self._file is not None:
            self._file.append(labelled_frame(event, reference))
        moved = not np.array_equal(monitor.atoms.positions, event.atoms.positions)
        if self.continue_on_reference and not moved:
            adopt_reference(monitor.atoms, monitor.dyn, reference)

    def _evaluate(self, event: Event) -> dict[str, Any]:
        atoms = event.atoms.copy()
        atoms.calc = self.reference_calculator
        reference: dict[str, Any] = {
            "energy": float(atoms.get_potential_energy(apply_constraint=False)),
            "forces": np.array(atoms.get_forces(apply_constraint=False)),
        }
        if atoms.pbc.all() and atoms.cell.rank == 3:
            with contextlib.suppress(PropertyNotImplementedError):
                reference["stress"] = atoms.get_stress(voigt=False, apply_constraint=False)
        for name, value in reference.items():
            if not np.isfinite(value).all():
                raise ValueError(f"the reference {name} is not finite")
        return reference

    def _fail(self, event: Event, error: Exception) -> None:
        failure = f"{type(error).__name__}: {error}"
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


def compare(event: Event, reference: dict[str, Any]) -> ReferenceRecord:
    """Errors, label - prediction, beside those that the prediction expected."""
    results = event.results
    error = reference["forces"] - results["forces"]
    lengths = np.linalg.norm(error, axis=1)
    numbers = {
        "energy": float(results.get("energy", np.nan)),
        "reference_energy": reference["energy"],
        "energy_uncertainty": float(results.get("energy_uncertainty", np.nan)),
        "force_rmse": float(np.sqrt(np.mean(error**2))),
        "force_max_error": float(lengths.max()),
    }
    numbers["energy_error"] = reference["energy"] - numbers["energy"]
    if "forces_cov" in results:
        traces = np.trace(results["forces_cov"], axis1=1, axis2=2)
        numbers["force_rms_uncertainty"] = float(np.sqrt(traces.mean() / 3))
        numbers["force_max_uncertainty"] = float(np.sqrt(traces.max()))
    return ReferenceRecord(event.step, event.time_fs, event.score, **numbers)


def labelled_frame(event: Event, reference: dict[str, Any]) -> Atoms:
    """Copy the frame with reference labels (``REF_*``) and the prediction (``predicted_*``)."""
    frame = annotated_frame(event.atoms, event.results, prefix=PREDICTION_PREFIX)
    frame.info.update(event_information(event))
    frame.info[f"{LABEL_PREFIX}energy"] = reference["energy"]
    frame.arrays[f"{LABEL_PREFIX}forces"] = reference["forces"]
    if "stress" in reference:
        frame.info[f"{LABEL_PREFIX}stress"] = reference["stress"].ravel()
    return frame


def adopt_reference(atoms: Atoms, dyn: Any, reference: dict[str, Any]) -> None:
    """Make the cached results of a frame those of the reference, for the integrator as well."""
    results = atoms.calc.results
    results["energy"] = reference["energy"]
    if "free_energy" in results:
        results["free_energy"] = reference["energy"]
    results["forces"] = reference["forces"].copy()
    if "stress" in reference and "stress" in results:
        results["stress"] = full_3x3_to_voigt_6_stress(reference["stress"])
    refresh_forces(dyn)
