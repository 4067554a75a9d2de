"""The numbers of an evaluation, each with a bootstrap interval by frame.

`force_numbers` and `energy_numbers` give dictionaries of `Estimate`, and the functions at the end
tables of forces by element and by kind of frame; docs/calibrate-evaluate.md lists names and units.
A number that cannot be had is left out, and a sentence says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from ase.data import chemical_symbols
from ase.units import GPa

from ase_bayesmlip import metrics
from ase_bayesmlip.evaluation.comparison import Comparison
from ase_bayesmlip.evaluation.intervals import Bootstrap, Estimate
from ase_bayesmlip.metrics.errors import PRESSURE, STRESS, Errors, errors_of_stress

CURVE_LEVELS = np.linspace(0.0, 1.0, 21)
# Levels of `metrics.calibration_error`: j/101.
ERROR_LEVELS = np.arange(1, 101) / 101
COVERAGES = (50, 90)
UNNAMED = "(none)"
# eV per atom; no potential in use is off by so much where its labels come from.
SUSPICIOUS_OFFSET = 0.2
N_REDRAWS = 100
N_ENERGY_SCORE_SAMPLES = 100


def force_numbers(errors: Errors, bootstrap: Bootstrap) -> dict[str, Estimate]:
    """Numbers on forces; the error bar of an atom is the covariance of its force."""
    found = _sizes(errors, bootstrap)
    found["forces_mae_meV_per_A"] = bootstrap.mean(errors, _absolute, _milli)
    if errors.covariance is None:
        bootstrap.note(f"errors of forces without error bars: {errors.why_no_law}")
        return found
    generator = bootstrap.generator()
    found["energy_score_forces"] = bootstrap.mean(errors, lambda e: _energy_score(e, generator))
    found |= _order_numbers(errors, bootstrap, "forces")
    return found | _law_numbers(errors, bootstrap, "forces")


def energy_numbers(errors: Errors, bootstrap: Bootstrap) -> dict[str, Estimate]:
    """Numbers on energies; errors are per atom, and the law is that of the whole frame."""
    assert errors.n_atoms is not None
    per_atom = errors.divided_by(errors.n_atoms)
    found = {
        "energy_rmse_meV_per_atom": bootstrap.mean(per_atom, _square, _milli_root),
        "energy_mae_meV_per_atom": bootstrap.mean(per_atom, _absolute, _milli),
        "energy_bias_meV_per_atom": bootstrap.mean(
            per_atom, lambda e: float(e.error.mean()), _milli
        ),
    }
    _note_offset(per_atom.error, bootstrap)
    if errors.covariance is None:
        bootstrap.note(f"errors of energies without error bars: {errors.why_no_law}")
        return found
    found["energy_sigma_meV_per_atom"] = bootstrap.mean(per_atom, _variance, _milli_root)
    found |= _order_numbers(per_atom, bootstrap, "energy")
    found |= _law_numbers(errors, bootstrap, "energy")
    if errors.law is not None and errors.law.name == "gaussian":
        crps = _attempt(
            lambda: bootstrap.mean(
                per_atom, lambda e: metrics.crps_gaussian(e.error[:, 0], e.std), _milli
            ),
            "energy_crps_meV_per_atom",
            bootstrap,
        )
        found |= crps
    return found


def stress_numbers(comparison: Comparison, bootstrap: Bootstrap) -> dict[str, Estimate]:
    """Numbers on components of the stress and on the pressure; error bars are epistemic alone."""
    found = {}
    for what, rows in (("stress", STRESS), ("pressure", PRESSURE)):
        errors = errors_of_stress(comparison.results, comparison.frames, comparison.origin, rows)
        if errors is None:
            return {}
        errors = errors.divided_by(np.full(len(errors.error), GPa))
        found[f"{what}_rmse_GPa"] = bootstrap.mean(errors, _square, np.sqrt)
        if errors.covariance is None or errors.law is None:
            bootstrap.note(f"errors of {what} without error bars: {errors.why_no_law}")
            continue
        found[f"{what}_sigma_GPa"] = bootstrap.mean(errors, _variance, np.sqrt)
        for percent in COVERAGES:
            name = f"coverage_{percent}_{what}"
            found |= _attempt(partial(_coverage, errors, percent, bootstrap), name, bootstrap)
    return found


def _note_offset(error: np.ndarray, bootstrap: Bootstrap) -> None:
    """Say so if all energies are off by nearly the same: that is another zero, not an error."""
    offset = float(np.mean(error))
    if abs(offset) > SUSPICIOUS_OFFSET and abs(offset) > 10.0 * float(np.std(error)):
        bootstrap.note(
            f"energies are off by {offset:.3g} eV/atom, nearly the same for all frames: labels of "
            "another level of theory or with other reference energies? Then numbers on energies "
            "say nothing about the model"
        )


def _sizes(forces: Errors, bootstrap: Bootstrap) -> dict[str, Estimate]:
    """How large the errors are, and how large the model says that they are."""
    found = {"forces_rmse_meV_per_A": bootstrap.mean(forces, _square, _milli_root)}
    if forces.covariance is not None:
        found["forces_sigma_meV_per_A"] = bootstrap.mean(forces, _variance, _milli_root)
    return found


def _milli(value: np.ndarray) -> float:
    return 1e3 * float(value)


def _milli_root(value: np.ndarray) -> float:
    return 1e3 * float(value) ** 0.5


def _square(errors: Errors) -> float:
    return metrics.rmse(errors.error) ** 2


def _absolute(errors: Errors) -> float:
    return metrics.mae(errors.error)


def _variance(errors: Errors) -> float:
    """The mean square error of a component that the law expects, or the mean variance."""
    expected = 1.0 if errors.law is None else errors.law.mean_square
    return expected * float(np.mean(errors.std**2))


def _size(errors: Errors) -> np.ndarray:
    return np.asarray(np.linalg.norm(errors.error, axis=1))


def _energy_score(errors: Errors, generator: np.random.Generator) -> float:
    """Energy score in meV/Å; of the Gaussian with this covariance unless the law is evidential.

    The Student-t of a few members has no mean, and then the score would be infinite.
    """
    assert errors.covariance is not None
    if errors.law is None or errors.law.dof is None:
        score = metrics.energy_score_gaussian(
            errors.error, errors.covariance, N_ENERGY_SCORE_SAMPLES, generator=generator
        )
    else:
        drawn = errors.law.draws(errors.covariance, N_ENERGY_SCORE_SAMPLES, generator)
        score = metrics.energy_score(errors.error, np.stack(list(drawn), axis=1))
    return 1e3 * score


def _order_numbers(errors: Errors, bootstrap: Bootstrap, what: str) -> dict[str, Estimate]:
    """Does the error bar put errors in the right order?"""
    found = _attempt(
        lambda: bootstrap.ranked(errors, lambda e: metrics.spearman(_size(e), e.std)),
        f"spearman_{what}",
        bootstrap,
    )
    if not found:
        return {}
    if errors.law is not None:
        found |= _attempt(
            lambda: _redrawn_spearman(errors, bootstrap), f"spearman_{what}_if_exact", bootstrap
        )
    found[f"retention_ratio_{what}"] = bootstrap.ranked(errors, _retention_ratio)
    return found


def _retention_ratio(errors: Errors) -> float:
    """Area of the error-retention curve between the best order (0) and no order (1)."""
    size = _size(errors)
    area = metrics.error_retention_area(size, errors.std)
    best = metrics.error_retention_area(size, size)
    nothing = 0.5 * float(size.mean())
    return (area - best) / (nothing - best)


def _redrawn_spearman(errors: Errors, bootstrap: Bootstrap) -> Estimate:
    """Spearman's correlation if errors were drawn from the model's own law: what 1 would be."""
    assert errors.covariance is not None
    assert errors.law is not None
    drawn = errors.law.draws(errors.covariance, N_REDRAWS, bootstrap.generator())
    values = [metrics.spearman(np.linalg.norm(error, axis=1), errors.std) for error in drawn]
    ends = [0.5 * (1 - bootstrap.level), 0.5 * (1 + bootstrap.level)]
    return Estimate(float(np.mean(values)), np.quantile(values, ends))


def _law_numbers(errors: Errors, bootstrap: Bootstrap, what: str) -> dict[str, Estimate]:
    """Does the law hold? Likelihood, coverage and calibration error."""
    if errors.law is None:
        bootstrap.note(f"no coverage, calibration or likelihood of {what}: {errors.why_no_law}")
        return {}

    found = _attempt(
        lambda: bootstrap.mean(errors, lambda part: part.nll), f"{what}_nll", bootstrap
    )
    if not found:
        bootstrap.note(f"no coverage and no calibration error of {what}, for the same reason")
        return {}
    return found | _calibration(errors, bootstrap, what)


def _calibration(errors: Errors, bootstrap: Bootstrap, what: str) -> dict[str, Estimate]:
    def curve(part: Errors) -> np.ndarray:
        return metrics.calibration_curve(part.confidence, ERROR_LEVELS)

    def distance(observed: np.ndarray) -> float:
        return float(np.mean((ERROR_LEVELS - observed) ** 2))  # as `metrics.calibration_error`

    found = {f"calibration_error_{what}": bootstrap.mean(errors, curve, distance)}
    for percent in COVERAGES:
        found[f"coverage_{percent}_{what}"] = _coverage(errors, percent, bootstrap)
    return found


def _coverage(errors: Errors, percent: int, bootstrap: Bootstrap) -> Estimate:
    """Fraction of the labels inside the regions of a nominal coverage in percent."""
    return bootstrap.mean(errors, lambda e: metrics.coverage(e.confidence, percent / 100))


def curve_of(errors: Errors, bootstrap: Bootstrap) -> Estimate:
    """Calibration curve at `CURVE_LEVELS`, with a band."""
    return bootstrap.mean(
        errors,
        lambda e: metrics.calibration_curve(e.confidence, CURVE_LEVELS),
        lambda observed: observed,
    )


@dataclass(frozen=True, eq=False)
class Group:
    """One line of a table: the forces on the atoms of one element or of one kind of frame.

    Attributes
    ----------
    name : str
    n_frames, n_atoms : int
    numbers : dict of str to Estimate
    """

    name: str
    n_frames: int
    n_atoms: int
    numbers: dict[str, Estimate]


def numbers_per_element(forces: Errors, bootstrap: Bootstrap) -> list[Group]:
    """Numbers on the forces of each element."""
    assert forces.atomic_numbers is not None
    symbols = np.array([chemical_symbols[z] for z in forces.atomic_numbers])
    return _groups(forces, symbols, bootstrap)


def numbers_per_config_type(
    forces: Errors, comparison: Comparison, bootstrap: Bootstrap
) -> list[Group]:
    """Numbers on the forces of each kind of frame; `UNNAMED` where the file does not say."""
    kinds = np.array([frame.config_type or UNNAMED for frame in comparison.frames])
    return _groups(forces, kinds[forces.frame], bootstrap)


def _groups(forces: Errors, labels: np.ndarray, bootstrap: Bootstrap) -> list[Group]:
    """Numbers on the forces under each label, (n_atoms,), in alphabetical order."""
    groups = []
    for name in np.unique(labels):
        part = forces.take(np.flatnonzero(labels == name))
        numbers = _sizes(part, bootstrap)
        if part.law is not None:
            numbers |= _calibration(part, bootstrap, "forces")
        groups.append(Group(str(name), len(np.unique(part.frame)), len(part.error), numbers))
    return groups


def _attempt(
    estimate: Callable[[], Estimate], name: str, bootstrap: Bootstrap
) -> dict[str, Estimate]:
    """The estimate under its name, or nothing and a sentence."""
    try:
        return {name: estimate()}
    except ValueError as error:
        bootstrap.note(f"{name} is left out: {error}")
        return {}
