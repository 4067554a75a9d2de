"""Intervals of energies and ellipsoids of forces, from a calibrated file.

Three kinds of region answer the same question, how large a region must be to hold the reference
with a given probability:

* ``"conformal"``: a coverage of at least that much on average over atoms of an element, for frames
  exchangeable with the calibration frames, whatever the errors look like;
* ``"isotonic"``: the recalibrated distribution of Kuleshov et al., all elements together; sharp
  and centred on what was observed, guaranteed by nothing;
* ``"law"``: the served covariance and the law that the file was calibrated with, taken at their
  word: a Gaussian for files with noise heads, Hotelling's for the spread of a few members, a
  Student-t for an evidential file. ``"gaussian"``, its name when every file was taken for a
  Gaussian, means the same.

None of them promises anything off the calibration data: the regions grow with the covariances
there, and no further.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import ArrayLike

from ase_bayesmlip.calibration.levels import check_coverage, conformal_at, isotonic_at
from ase_bayesmlip.calibration.observations import FloatArray
from ase_bayesmlip.card import ModelCard
from ase_bayesmlip.metrics.laws import PredictiveLaw

KINDS = ("conformal", "isotonic", "law")
_ALIASES = {"gaussian": "law"}


def force_radii(
    card: ModelCard,
    atomic_numbers: Sequence[int] | np.ndarray,
    coverage: float,
    kind: str = "conformal",
    dof: ArrayLike | None = None,
) -> FloatArray:
    """Radius of each atom's region of forces, in standard deviations.

    The reference force f of an atom with the predicted force F lies in its region when
    `force_distances` of f - F is at most the radius.

    Parameters
    ----------
    card : ModelCard
        Of a file written by ``bayesmlip calibrate``: ``calc.card``.
    atomic_numbers : sequence of int, (n_atoms,)
    coverage : float
        Between 0 and 1, both excluded.
    kind : "conformal", "isotonic" or "law"
    dof : array_like, (n_atoms,)
        ``calc.results["forces_dof"]``, for the law of an evidential file.

    Returns
    -------
    ndarray, (n_atoms,)

    Raises
    ------
    ValueError
        If the file is not calibrated, or gives no such region for an element or a coverage.
    """
    kind = _ALIASES.get(kind, kind)
    record = _record(card, "forces", kind)
    numbers = np.asarray(atomic_numbers)
    check_coverage(coverage)
    if kind == "law":
        sizes = np.asarray(_law(record, "forces", dof).radius(coverage, 3))
        if sizes.shape not in ((), numbers.shape):
            raise ValueError(f"{sizes.size} degrees of freedom for {len(numbers)} atoms")
        return sizes * np.ones(len(numbers))
    if kind == "isotonic":
        radius = isotonic_at(record["levels"], record["isotonic"]["forces"], coverage)
        return np.full(len(numbers), radius)
    radii = {}
    for symbol in {chemical_symbols[z] for z in numbers}:
        known = record["conformal"]["forces"]
        if symbol not in known:
            raise ValueError(
                f"the calibration frames of this file held no {symbol} (they held "
                f"{', '.join(known)}); calibrate it with frames that do"
            )
        radii[symbol] = conformal_at(record["levels"], known[symbol], coverage)
    return np.array([radii[chemical_symbols[z]] for z in numbers])


def force_distances(card: ModelCard, difference: ArrayLike, covariance: ArrayLike) -> FloatArray:
    """Length of differences of forces in the standard deviations of their covariances.

    √(vᵀ Σ⁻¹ v) for most files, whose regions are ellipsoids; |v| / √(tr Σ/3) for those whose
    regions are balls: the spread of two or three members, which has no inverse, of errors that lie
    in planes, and all spreads without noise that were calibrated before laws were recorded.

    Parameters
    ----------
    difference : array_like, (n_atoms, 3), eV/Å
    covariance : array_like, (n_atoms, 3, 3), (eV/Å)²
        ``forces_cov`` of the calibrated file.

    Returns
    -------
    ndarray, (n_atoms,)
    """
    v, sigma = np.asarray(difference, dtype=np.float64), np.asarray(covariance, dtype=np.float64)
    if v.ndim != 2 or v.shape[1] != 3 or sigma.shape != (*v.shape, 3):
        raise ValueError(
            "difference must have shape (n_atoms, 3) and covariance (n_atoms, 3, 3), not "
            f"{v.shape} and {sigma.shape}"
        )
    law = PredictiveLaw(spherical=_record(card, "forces", "law")["shape"] == "ball")
    return law.distances(v, sigma)


def energy_interval(
    card: ModelCard, results: Mapping[str, Any], coverage: float, kind: str = "conformal"
) -> tuple[float, float]:
    """Interval that holds the reference energy with a given probability, eV.

    Parameters
    ----------
    card : ModelCard
    results : mapping
        ``calc.results``: its ``energy`` and ``energy_var``.
    coverage : float
    kind : "conformal", "isotonic" or "law"
        The isotonic interval need not be centred on the energy: it repairs a bias as well. The
        served energy does not move.

    Returns
    -------
    low, high : float, eV
    """
    kind = _ALIASES.get(kind, kind)
    record = _record(card, "energy", kind)
    check_coverage(coverage)
    mean, sigma = float(results["energy"]), float(np.sqrt(results["energy_var"]))
    if kind == "isotonic":
        tails = ((1.0 - coverage) / 2.0, (1.0 + coverage) / 2.0)
        low, high = (isotonic_at(record["levels"], record["isotonic"]["energy"], p) for p in tails)
        return mean + low * sigma, mean + high * sigma
    if kind == "law":
        radius = float(_law(record, "energy").radius(coverage, 1))
    else:
        radius = conformal_at(record["levels"], record["conformal"]["energy"], coverage)
    return mean - radius * sigma, mean + radius * sigma


def _record(card: ModelCard, quantity: str, kind: str) -> dict[str, Any]:
    """The calibration in force."""
    if kind not in KINDS:
        raise ValueError(f"unknown kind of region {kind!r}; choose {', '.join(KINDS)}")
    if not card.recalibrations:
        raise ValueError(
            "this file is not calibrated; run `bayesmlip calibrate model.pt calib.extxyz -o out.pt`"
        )
    record = card.recalibrations[-1]
    if quantity not in record["conformal"]:
        raise ValueError(f"this file gives no variance of {quantity}, and so no region")
    return record


def _law(record: dict[str, Any], quantity: str, dof: ArrayLike | None = None) -> PredictiveLaw:
    """The law of a calibration; before laws were recorded everything was taken for a Gaussian."""
    if "laws" not in record:
        return PredictiveLaw()
    content = record["laws"][quantity]
    if content["name"] != "student_t":
        return PredictiveLaw.from_record(content)
    if dof is None:
        raise ValueError(
            "the law of this file has degrees of freedom of its own for each atom; give "
            'dof=calc.results["forces_dof"], or take the kind "conformal"'
        )
    return PredictiveLaw(dof=np.ravel(np.asarray(dof, dtype=np.float64)))
