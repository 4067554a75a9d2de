"""`evaluate`: all numbers of one model on a test set, beside an OOD set and an earlier model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ase_bayesmlip import metrics
from ase_bayesmlip._version import __version__
from ase_bayesmlip.evaluation.comparison import Comparison, energy_errors, force_errors
from ase_bayesmlip.evaluation.detection import Detection, detect
from ase_bayesmlip.evaluation.estimates import (
    CURVE_LEVELS,
    Group,
    curve_of,
    energy_numbers,
    force_numbers,
    numbers_per_config_type,
    numbers_per_element,
)
from ase_bayesmlip.evaluation.intervals import Bootstrap, Estimate
from ase_bayesmlip.metrics.errors import Errors
from ase_bayesmlip.metrics.round_off import round_off_note

FORMAT_VERSION = 1


@dataclass(frozen=True, eq=False)
class SetEvaluation:
    """Everything about one model on one set of frames.

    Attributes
    ----------
    comparison : Comparison
    energies, forces : Errors or None
        None where no frame has the label.
    numbers : dict of str to Estimate
    curves : dict of str to Estimate
        ``"energy"`` and ``"forces"``: calibration curves at `CURVE_LEVELS`.
    per_element, per_config_type : list of Group
    """

    comparison: Comparison
    energies: Errors | None
    forces: Errors | None
    numbers: dict[str, Estimate]
    curves: dict[str, Estimate]
    per_element: list[Group]
    per_config_type: list[Group]

    @property
    def n_frames(self) -> int:
        """Frames evaluated, with or without labels."""
        return len(self.comparison.frames)

    def to_json(self) -> dict[str, Any]:
        """Numbers under their documented keys, each beside its ``_ci``."""
        found: dict[str, Any] = {"n_frames": self.n_frames}
        for what, errors in (("energy", self.energies), ("forces", self.forces)):
            n_labelled = 0 if errors is None else len(np.unique(errors.frame))
            found[f"n_frames_{what}"] = n_labelled
            law = None if errors is None else errors.law
            found[f"law_{what}"] = None if law is None else law.name
            if law is not None:
                key = f"calibration_error_floor_{what}"
                found[key] = metrics.calibration_error_floor(n_labelled)
        found["n_atoms_forces"] = 0 if self.forces is None else len(self.forces.error)
        found |= _flat(self.numbers)
        for name, groups in (
            ("per_element", self.per_element),
            ("per_config_type", self.per_config_type),
        ):
            found[name] = {
                group.name: {"n_frames": group.n_frames, "n_atoms": group.n_atoms}
                | _flat(group.numbers)
                for group in groups
            }
        found["calibration_curves"] = {
            what: {"expected": CURVE_LEVELS.tolist(), **_flat({"observed": curve})}
            for what, curve in self.curves.items()
        }
        return found


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A model on a test set, and what it is compared with.

    Attributes
    ----------
    test : SetEvaluation
    ood, before, before_ood : SetEvaluation or None
        The model on foreign frames; an earlier model (before calibration) on both sets.
    detections : list of Detection
        The headline score first; empty without an OOD set.
    names : dict of str to str
        ``"model"``, ``"test"``, ``"ood"``, ``"before"``: what a reader calls them.
    model : mapping
        Facts on the model for the head of a report.
    bootstrap : Bootstrap
    notes : list of str
        What could not be had or needs care.
    """

    test: SetEvaluation
    ood: SetEvaluation | None
    before: SetEvaluation | None
    before_ood: SetEvaluation | None
    detections: list[Detection]
    names: dict[str, str]
    model: Mapping[str, Any]
    bootstrap: Bootstrap
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """The whole as plain data: numbers of the test set at the top, others below."""
        found: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "ase_bayesmlip": __version__,
            "names": self.names,
            "model": dict(self.model),
            "ci_level": self.bootstrap.level,
            "n_resamples": self.bootstrap.n_resamples,
            "seed": self.bootstrap.seed,
            "notes": self.notes,
            **self.test.to_json(),
        }
        if self.detections:
            found["ood_score"] = self.detections[0].score
            found |= _flat(self.detections[0].numbers)
            found["ood_scores"] = {d.score: _flat(d.numbers) for d in self.detections}
        for name, part in (
            ("ood", self.ood),
            ("before", self.before),
            ("before_ood", self.before_ood),
        ):
            if part is not None:
                found[name] = part.to_json()
        return found


def evaluate_set(comparison: Comparison, name: str, bootstrap: Bootstrap) -> SetEvaluation:
    """All numbers of one model on one set; sentences go to the notes under the set's name."""
    own = Bootstrap(bootstrap.n_resamples, bootstrap.level, bootstrap.seed)
    energies, forces = energy_errors(comparison), force_errors(comparison)
    suspicious = round_off_note(forces, energies, comparison.frames)
    if suspicious:
        own.note(suspicious)
    numbers: dict[str, Estimate] = {}
    curves = {}
    if energies is not None:
        numbers |= energy_numbers(energies, own)
        if "calibration_error_energy" in numbers:
            curves["energy"] = curve_of(energies, own)
        else:
            energies = replace(energies, law=None)
    per_element: list[Group] = []
    per_config_type: list[Group] = []
    if forces is not None:
        numbers |= force_numbers(forces, own)
        if "calibration_error_forces" in numbers:
            curves["forces"] = curve_of(forces, own)
        else:
            forces = replace(forces, law=None)
        per_element = numbers_per_element(forces, own)
        per_config_type = numbers_per_config_type(forces, comparison, own)
    if any(estimate.interval is None for estimate in numbers.values()):
        own.note("one labelled frame: an interval is impossible, and `_ci` is null")
    for sentence in own.notes:
        bootstrap.note(f"{name}: {sentence}")
    return SetEvaluation(
        comparison, energies, forces, numbers, curves, per_element, per_config_type
    )


def evaluate(
    test: Comparison,
    ood: Comparison | None = None,
    before: Comparison | None = None,
    before_ood: Comparison | None = None,
    *,
    names: Mapping[str, str] | None = None,
    model: Mapping[str, Any] | None = None,
    notes: list[str] | None = None,
    bootstrap: Bootstrap | None = None,
) -> Evaluation:
    """Evaluate predictions of any origin, see `Comparison`.

    Parameters
    ----------
    test, ood : Comparison
        The model on a test set, and on frames that it should know to be foreign.
    before, before_ood : Comparison
        Another model on the same frames, for instance the same before it was calibrated.
    names, model, notes
        For the report; see `Evaluation`.

    Returns
    -------
    Evaluation
    """
    bootstrap = bootstrap or Bootstrap()
    labels = {"model": "model", "test": "test", "ood": "OOD", "before": "before", **(names or {})}
    parts = {
        key: None if part is None else evaluate_set(part, title, bootstrap)
        for key, part, title in (
            ("test", test, "test set"),
            ("ood", ood, "OOD set"),
            ("before", before, "test set, before"),
            ("before_ood", before_ood, "OOD set, before"),
        )
    }
    first = parts["test"]
    assert first is not None
    detections = [] if ood is None else detect(test, ood, bootstrap)
    return Evaluation(
        first,
        parts["ood"],
        parts["before"],
        parts["before_ood"],
        detections,
        labels,
        model or {},
        bootstrap,
        [*(notes or []), *bootstrap.notes],
    )


def _flat(numbers: Mapping[str, Estimate]) -> dict[str, Any]:
    """Names and values, each followed by its interval under the name with ``_ci``."""
    found: dict[str, Any] = {}
    for name, estimate in numbers.items():
        found[name] = np.asarray(estimate.value).tolist()
        interval = estimate.interval
        found[f"{name}_ci"] = None if interval is None else np.asarray(interval).tolist()
    return found
