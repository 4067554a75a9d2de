"""`evaluate`: all numbers of one model on a test set, beside OOD sets and an earlier model."""

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
    stress_numbers,
)
from ase_bayesmlip.evaluation.intervals import Bootstrap, Estimate
from ase_bayesmlip.metrics.errors import STRESS, Errors, errors_of_stress
from ase_bayesmlip.metrics.round_off import round_off_note

FORMAT_VERSION = 1


@dataclass(frozen=True, eq=False)
class SetEvaluation:
    """Everything about one model on one set of frames.

    Attributes
    ----------
    comparison : Comparison
    energies, forces, stress : Errors or None
        None where no frame has the label.
    numbers : dict of str to Estimate
    curves : dict of str to Estimate
        ``"energy"`` and ``"forces"``: calibration curves at `CURVE_LEVELS`.
    per_element, per_config_type : list of Group
    """

    comparison: Comparison
    energies: Errors | None
    forces: Errors | None
    stress: Errors | None
    numbers: dict[str, Estimate]
    curves: dict[str, Estimate]
    per_element: list[Group]
    per_config_type: list[Group]

    @property
    def n_frames(self) -> int:
        """Frames evaluated, with or without labels."""
        return len(self.comparison.frames)

    @property
    def errors(self) -> dict[str, Errors | None]:
        """Errors by the name that numbers have."""
        return {"energy": self.energies, "forces": self.forces, "stress": self.stress}

    def to_json(self) -> dict[str, Any]:
        """Numbers under their documented keys, each beside its ``_ci``."""
        found: dict[str, Any] = {"n_frames": self.n_frames}
        for what, errors in self.errors.items():
            found[f"n_frames_{what}"] = n_labelled = n_frames_of(errors)
            law = None if errors is None else errors.law
            found[f"law_{what}"] = None if law is None else law.name
            if law is not None and what in self.curves:
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
    ood : dict of str to SetEvaluation
        The model on foreign frames, by the name of the set.
    before : SetEvaluation or None
        An earlier model (before calibration) on the test set.
    before_ood : dict of str to SetEvaluation
        The same on foreign frames.
    detections : dict of str to list of Detection
        Of each foreign set, the headline score first.
    names : dict of str to str
        ``"model"``, ``"test"``, ``"ood"`` (the first), ``"before"``: what a reader calls them.
    model : mapping
        Facts on the model, for programs.
    description : mapping of str to str
        The same for the reader of a report.
    bootstrap : Bootstrap
    notes : list of str
        What could not be had or needs care.
    """

    test: SetEvaluation
    ood: dict[str, SetEvaluation]
    before: SetEvaluation | None
    before_ood: dict[str, SetEvaluation]
    detections: dict[str, list[Detection]]
    names: dict[str, str]
    model: Mapping[str, Any]
    description: Mapping[str, str]
    bootstrap: Bootstrap
    notes: list[str]

    @property
    def sets(self) -> dict[str, SetEvaluation]:
        """The sets of the model itself by name, the test set first."""
        return {self.names["test"]: self.test, **self.ood}

    def columns(self) -> list[tuple[str, str, SetEvaluation]]:
        """Set, stage ("before", "after" or, with one model, "") and content of each column."""
        columns = []
        before = {self.names["test"]: self.before, **self.before_ood}
        for name, part in self.sets.items():
            earlier = before.get(name)
            if earlier is not None:
                columns.append((name, "before", earlier))
            columns.append((name, "after" if self.before is not None else "", part))
        return columns

    def to_json(self) -> dict[str, Any]:
        """The whole as plain data: numbers of the test set at the top, others below.

        The first foreign set is ``ood``; of several, ``ood_sets`` has all by name.
        """
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
        if self.before is not None:
            found["before"] = self.before.to_json()
        for name, part in self.ood.items():
            of_set = {"ood": part.to_json(), **self._detection_json(name)}
            if name in self.before_ood:
                of_set["before_ood"] = self.before_ood[name].to_json()
            if name == self.names["ood"]:
                found |= of_set
            if len(self.ood) > 1:
                found.setdefault("ood_sets", {})[name] = {**of_set.pop("ood"), **of_set}
        return found

    def _detection_json(self, name: str) -> dict[str, Any]:
        detections = self.detections[name]
        if not detections:
            return {}
        return {
            "ood_score": detections[0].score,
            **_flat(detections[0].numbers),
            "ood_scores": {d.score: _flat(d.numbers) for d in detections},
        }


def n_frames_of(errors: Errors | None) -> int:
    """How many frames have the label."""
    return 0 if errors is None else len(np.unique(errors.frame))


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
    numbers |= stress_numbers(comparison, own)
    stress = errors_of_stress(comparison.results, comparison.frames, comparison.origin, STRESS)
    if any(estimate.interval is None for estimate in numbers.values()):
        own.note("one labelled frame: an interval is impossible, and `_ci` is null")
    for sentence in own.notes:
        bootstrap.note(f"{name}: {sentence}")
    return SetEvaluation(
        comparison, energies, forces, stress, numbers, curves, per_element, per_config_type
    )


def evaluate(
    test: Comparison,
    ood: Comparison | Mapping[str, Comparison] | None = None,
    before: Comparison | None = None,
    before_ood: Comparison | Mapping[str, Comparison] | None = None,
    *,
    names: Mapping[str, str] | None = None,
    model: Mapping[str, Any] | None = None,
    description: Mapping[str, str] | None = None,
    notes: list[str] | None = None,
    bootstrap: Bootstrap | None = None,
) -> Evaluation:
    """Evaluate predictions of any origin, see `Comparison`.

    Parameters
    ----------
    test : Comparison
        The model on a test set.
    ood : Comparison or mapping of str to Comparison
        The model on frames that it should know to be foreign; several such sets by name.
    before, before_ood
        Another model on the same frames, for instance the same before it was calibrated.
    names, model, description, notes
        For the report; see `Evaluation`. The ``default_score`` of a model is the headline.

    Returns
    -------
    Evaluation
    """
    bootstrap = bootstrap or Bootstrap()
    labels = {"model": "model", "test": "test", "ood": "OOD", "before": "before", **(names or {})}
    foreign, earlier = (_by_name(sets, labels["ood"]) for sets in (ood, before_ood))
    if labels["test"] in foreign:
        raise ValueError(f"{labels['test']!r} names the test set and a foreign one; rename either")
    if foreign:
        labels["ood"] = next(iter(foreign))
    headline = (model or {}).get("default_score")
    own = evaluate_set(test, "test set", bootstrap)
    found = {name: evaluate_set(part, name, bootstrap) for name, part in foreign.items()}
    compared = None if before is None else evaluate_set(before, "test set, before", bootstrap)
    return Evaluation(
        own,
        found,
        compared,
        {name: evaluate_set(part, f"{name}, before", bootstrap) for name, part in earlier.items()},
        {name: detect(test, part, bootstrap, headline) for name, part in foreign.items()},
        labels,
        model or {},
        description or {},
        bootstrap,
        [*(notes or []), *bootstrap.notes],
    )


def _by_name(
    sets: Comparison | Mapping[str, Comparison] | None, name: str
) -> Mapping[str, Comparison]:
    return sets if isinstance(sets, Mapping) else {} if sets is None else {name: sets}


def _flat(numbers: Mapping[str, Estimate]) -> dict[str, Any]:
    """Names and values, each followed by its interval under the name with ``_ci``."""
    found: dict[str, Any] = {}
    for name, estimate in numbers.items():
        found[name] = np.asarray(estimate.value).tolist()
        interval = estimate.interval
        found[f"{name}_ci"] = None if interval is None else np.asarray(interval).tolist()
    return found
