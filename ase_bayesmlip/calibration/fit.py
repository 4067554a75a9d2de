"""Fit everything that a file is calibrated by, and say how good it was before and after."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from ase_bayesmlip.calibration.levels import LEVELS, conformal_radii, isotonic_quantiles
from ase_bayesmlip.calibration.observations import IntArray, Observations
from ase_bayesmlip.calibration.quality import Quality
from ase_bayesmlip.calibration.scaling import (
    Factors,
    Fit,
    components,
    fit_one_factor,
    fit_two_factors,
)
from ase_bayesmlip.metrics.errors import Errors

METHODS = {
    "global": "one factor for forces, one for energies",
    "split": "the same, for the epistemic and the aleatoric part separately",
    "per-element": "one factor for the forces on each element, one for energies",
    "per-element-split": "the same, for the epistemic and the aleatoric part separately",
    "none": "variances as they are; levels of confidence only",
}
MIN_FRAMES = 10
N_FOLDS = 5

# Below this number of frames the factor of the energies is a guess: a warning says how good a one.
_FEW_FRAMES = 50

# With one factor for each quantity no region and no flag depends on the factor, so that the frames
# that fix it may fix regions and thresholds, too. More factors change shapes: they take frames of
# their own.
_UNDIVIDED = ("global", "none")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What calibration frames taught; `record` is what a model card keeps of it.

    Attributes
    ----------
    method : str
        One of `METHODS`.
    factors : Factors
        Relative to the variances that the file served before.
    log_errors : dict
        Standard errors of the logarithms of the fitted factors, (epistemic, aleatoric), of the
        ``energy``, the ``forces`` over all elements and those on each element, as far as fitted.
    shape : "ellipsoid" or "ball"
        Of the regions of forces.
    origin : dict
        What the variances are made of, see `metrics.Origin`: the law of the file follows from it.
    laws : dict
        Of the ``forces`` and the ``energy``, which factors, regions and numbers rest on: see
        `metrics.PredictiveLaw`.
    n_frames, n_frames_factors, n_frames_levels : int
        In all, and those that fixed the factors, and the levels and thresholds. The latter two
        have no frame in common where there is more than one factor for a quantity.
    n_atoms : dict of str to int
    levels : list of float
        Probabilities of the sizes below.
    conformal : dict
        Radii with guaranteed coverage: ``forces`` by symbol, and ``energy``. See
        `conformal_radii`.
    isotonic : dict
        Quantiles of the recalibrated distributions: of the distance of ``forces``, all elements
        together, and of the standardised error of the ``energy``. See `isotonic_quantiles`.
    numbers : dict
        ``before``; ``after`` scaling, with regions of the file's law; ``after_isotonic``;
        ``after_conformal``. All but the first are measured on frames that the fit in question had
        not seen, in five folds.
    level_frames : ndarray of int
        Which frames fixed the levels, and are to fix thresholds.
    """

    method: str
    factors: Factors
    log_errors: dict[str, Any]
    shape: str
    origin: dict[str, Any]
    laws: dict[str, Any]
    n_frames: int
    n_frames_factors: int
    n_frames_levels: int
    n_atoms: dict[str, int]
    levels: list[float]
    conformal: dict[str, Any]
    isotonic: dict[str, Any]
    numbers: dict[str, Any]
    level_frames: IntArray

    @property
    def record(self) -> dict[str, Any]:
        """Plain data for a model card."""
        content = dataclasses.asdict(self)
        del content["level_frames"]
        return content


def calibrate(observed: Observations, elements: Sequence[int], method: str) -> Calibration:
    """Fit variance factors and levels of confidence.

    Parameters
    ----------
    observed : Observations
    elements : sequence of int
        Atomic numbers that the file knows.
    method : str
        One of `METHODS`.

    Raises
    ------
    ValueError
        If the method is unknown or the frames are too few.

    Warns
    -----
    UserWarning
        If an element of the file has no calibration atom, if the frames are few, or if they do not
        tell epistemic from aleatoric variance.
    """
    _check(observed, elements, method)
    factors, log_errors, conformal, isotonic, halves = _fit(observed, elements, method)
    before = Quality()
    before.add(observed)
    return Calibration(
        method=method,
        factors=factors,
        log_errors=log_errors,
        shape=observed.shape,
        origin=dataclasses.asdict(observed.origin),
        laws=observed.laws,
        n_frames=observed.n_frames,
        n_frames_factors=0 if method == "none" else len(halves[0]),
        n_frames_levels=len(halves[1]),
        n_atoms={chemical_symbols[z]: n for z, n in observed.n_atoms.items()},
        levels=list(LEVELS),
        conformal=conformal,
        isotonic=isotonic,
        numbers={"before": before.numbers()["law"], **_held_out(observed, elements, method)},
        level_frames=halves[1],
    )


def _check(observed: Observations, elements: Sequence[int], method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose {', '.join(METHODS)}")
    divided = method not in _UNDIVIDED
    needed = 2 * MIN_FRAMES if divided else MIN_FRAMES
    if observed.n_frames < needed:
        halves = ", half for factors and half for levels" if divided else ""
        raise ValueError(
            f"{observed.n_frames} calibration frame(s) are too few for method {method!r}, which "
            f"needs {needed}{halves}; a few hundred are better"
        )
    n = observed.n_frames // 2 if divided else observed.n_frames
    if n < _FEW_FRAMES:
        warnings.warn(
            f"with {n} calibration frames the factor of the energy variance is known to "
            f"{math.sqrt(2 / n):.0%} at best, and no region of more than {n / (n + 1):.1%} "
            "coverage can be guaranteed",
            stacklevel=3,
        )
    missing = [chemical_symbols[z] for z in elements if z not in observed.n_atoms]
    if missing:
        warnings.warn(
            f"the calibration frames hold no {', '.join(missing)}: covariances of forces there are "
            "scaled as those of the other elements, and no confidence region exists for them",
            stacklevel=3,
        )


def _fit(
    observed: Observations, elements: Sequence[int], method: str
) -> tuple[Factors, dict[str, Any], dict[str, Any], dict[str, Any], tuple[IntArray, IntArray]]:
    """Factors, their standard errors, conformal and isotonic levels, and the frames of either."""
    frames = observed.frames
    halves = (frames, frames) if method in _UNDIVIDED else (frames[0::2], frames[1::2])
    factors, log_errors = _fit_factors(observed.of_frames(halves[0]), elements, method)
    scaled = _scaled(observed.of_frames(halves[1]), factors)
    conformal: dict[str, Any] = {}
    isotonic: dict[str, Any] = {}
    if scaled.forces is not None:
        distance, frame = scaled.forces.standardised, scaled.forces.frame
        conformal["forces"] = {
            chemical_symbols[z]: conformal_radii(distance[chosen], frame[chosen])
            for z, chosen in _by_element(scaled.forces)
        }
        isotonic["forces"] = isotonic_quantiles(distance)
    if scaled.energy is not None:
        value = scaled.energy.standardised
        conformal["energy"] = conformal_radii(np.abs(value), scaled.energy.frame)
        isotonic["energy"] = isotonic_quantiles(value)
    return factors, log_errors, conformal, isotonic, halves


def _by_element(errors: Errors) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Atomic numbers, and which items belong to them."""
    assert errors.atomic_numbers is not None  # they are forces
    for z in np.unique(errors.atomic_numbers):
        yield int(z), errors.atomic_numbers == z


def _fit_factors(
    observed: Observations, elements: Sequence[int], method: str
) -> tuple[Factors, dict[str, Any]]:
    symbols = [chemical_symbols[z] for z in elements]
    ones = dict.fromkeys(symbols, 1.0)
    if method == "none":
        return Factors(dict(ones), dict(ones)), {}
    fit = fit_two_factors if method.endswith("split") else fit_one_factor
    fits: dict[str, Fit] = {}
    if observed.energy is not None:
        fits["energy"] = fit(components(observed.energy))
    if observed.forces is not None:
        fits["forces"] = fit(components(observed.forces))
        if method.startswith("per-element"):
            for z, chosen in _by_element(observed.forces):
                fits[chemical_symbols[z]] = fit(components(observed.forces.take(chosen)))
    if method.endswith("split"):
        _warn_of_mixtures(fits)
    one = Fit(1.0, 1.0, (0.0, 0.0))
    energy, overall = fits.get("energy", one), fits.get("forces", one)
    by_symbol = {symbol: fits.get(symbol, overall) for symbol in symbols}
    factors = Factors(
        forces_epistemic={symbol: found.epistemic for symbol, found in by_symbol.items()},
        forces_aleatoric={symbol: found.aleatoric for symbol, found in by_symbol.items()},
        energy_epistemic=energy.epistemic,
        energy_aleatoric=energy.aleatoric,
        stress_epistemic=overall.epistemic,
    )
    return factors, {name: found.log_errors for name, found in fits.items()}


def _warn_of_mixtures(fits: dict[str, Fit]) -> None:
    mixed = [
        f"{name} ({found.epistemic:.3g} and {found.aleatoric:.3g})"
        for name, found in fits.items()
        if not found.tells_parts_apart
    ]
    if mixed:
        warnings.warn(
            "the calibration errors do not fix the epistemic and the aleatoric factor separately "
            f"for: {', '.join(mixed)}. The sum is calibrated on frames like these; off the "
            "training data, where the epistemic part grows, it may be far off. More frames, or "
            "--method global, help",
            stacklevel=2,
        )


def _scaled(observed: Observations, factors: Factors) -> Observations:
    """The same errors with the covariances that a scaled file gives."""
    forces: Errors | None = observed.forces
    energy: Errors | None = observed.energy
    if forces is not None:
        assert forces.atomic_numbers is not None
        symbols = [chemical_symbols[z] for z in forces.atomic_numbers]
        forces = forces.scaled(*factors.of_atoms(symbols))
    if energy is not None:
        ones = np.ones(len(energy.error))
        energy = energy.scaled(factors.energy_epistemic * ones, factors.energy_aleatoric * ones)
    return dataclasses.replace(observed, forces=forces, energy=energy)


def _held_out(observed: Observations, elements: Sequence[int], method: str) -> dict[str, Any]:
    """How good the fit is on frames it has not seen: every fifth frame is left out in turn."""
    quality = Quality()
    frames = observed.frames
    for fold in range(N_FOLDS):
        left_out = np.arange(len(frames)) % N_FOLDS == fold
        with warnings.catch_warnings():
            # What the whole set warns of has been said.
            warnings.filterwarnings("ignore", category=UserWarning)
            factors, _, conformal, isotonic, _ = _fit(
                observed.of_frames(frames[~left_out]), elements, method
            )
        test = _scaled(observed.of_frames(frames[left_out]), factors)
        quality.add(test, conformal, isotonic)
    numbers = quality.numbers()
    return {
        "after": numbers["law"],
        "after_isotonic": numbers["isotonic"],
        "after_conformal": numbers["conformal"],
    }
