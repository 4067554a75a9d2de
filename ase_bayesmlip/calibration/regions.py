"""Intervals of energies and ellipsoids of forces, from a calibrated file.

Three kinds of region answer the same question, how large a region must be to hold the reference
with a given probability:

* ``"conformal"``: a coverage of at least that much on average over atoms of an element, for frames
  exchangeable with the calibration frames, whatever the errors look like;
* ``"isotonic"``: the recalibrated distribution of Kuleshov et al., all elements together; sharp
  and centred on what was observed, guaranteed by nothing;
* ``"gaussian"``: the served covariance, taken at its word.

None of them promises anything off the calibration data: the regions grow with the covariances
there, and no further.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import ArrayLike
from scipy.special import chdtri, ndtri

from ase_bayesmlip.calibration.levels import check_coverage, conformal_at, isotonic_at
from ase_bayesmlip.calibration.observations import Errors, FloatArray
from ase_bayesmlip.card import ModelCard

KINDS = ("conformal", "isotonic", "gaussian")


def standardised(errors: Errors) -> FloatArray:
    """Errors in standard deviations, (n,): signed for scalars, √(eᵀ Σ⁻¹ e) for vectors."""
    if errors.error.shape[1] == 1:
        return errors.error[:, 0] / np.sqrt(errors.total[:, 0, 0])
    return _lengths(errors.error, errors.total)


def _lengths(vectors: FloatArray, covariance: FloatArray) -> FloatArray:
    """√(vᵀ Σ⁻¹ v), (n,)."""
    solved = np.linalg.solve(covariance, vectors[:, :, None])[:, :, 0]
    return np.sqrt(np.maximum((vectors * solved).sum(axis=1), 0.0))


def force_radii(
    card: ModelCard,
    atomic_numbers: Sequence[int] | np.ndarray,
    coverage: float,
    kind: str = "conformal",
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
    kind : "conformal", "isotonic" or "gaussian"

    Returns
    -------
    ndarray, (n_atoms,)

    Raises
    ------
    ValueError
        If the file is not calibrated, or gives no such region for an element or a coverage.
    """
    record = _record(card, "forces", kind)
    numbers = np.asarray(atomic_numbers)
    check_coverage(coverage)
    if kind == "gaussian":
        return np.full(len(numbers), np.sqrt(chdtri(3, 1.0 - coverage)))
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

    √(vᵀ Σ⁻¹ v) for files with a noise model, whose regions are ellipsoids; |v| / √(tr Σ/3) for
    those without, whose regions are balls, because a sample covariance of few members is singular
    or nearly so.

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
    if _record(card, "forces", "gaussian")["shape"] == "ball":
        variance = np.trace(sigma, axis1=1, axis2=2) / 3.0
        return np.sqrt((v**2).sum(axis=1) / variance)
    return _lengths(v, sigma)


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
    kind : "conformal", "isotonic" or "gaussian"
        The isotonic interval need not be centred on the energy: it repairs a bias as well. The
        served energy does not move.

    Returns
    -------
    low, high : float, eV
    """
    record = _record(card, "energy", kind)
    check_coverage(coverage)
    mean, sigma = float(results["energy"]), float(np.sqrt(results["energy_var"]))
    if kind == "isotonic":
        tails = ((1.0 - coverage) / 2.0, (1.0 + coverage) / 2.0)
        low, high = (isotonic_at(record["levels"], record["isotonic"]["energy"], p) for p in tails)
        return mean + low * sigma, mean + high * sigma
    if kind == "gaussian":
        radius = float(ndtri((1.0 + coverage) / 2.0))
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
