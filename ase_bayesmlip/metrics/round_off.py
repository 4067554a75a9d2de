"""Errors that no model makes: labels that are its own predictions, read back from a file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ase_bayesmlip.metrics.errors import Errors, Frame

# Relative to the RMS of the label forces: float32 leaves 2e-6 between two runs of one potential,
# and the best of potentials is a hundred times farther from its labels.
_RELATIVE = 2e-5
# eV and eV/Å: the last digit of extended XYZ.
_ABSOLUTE = 1e-8
# Labels in files are rounded to so many decimals; with fewer, good potentials come as close.
_DECIMALS = range(3, 9)
# So many frames of a set are no accident. Of single small molecules one may be hit by chance.
_SHARE = 0.1


def round_off_note(forces: Errors | None, energies: Errors | None, frames: Sequence[Frame]) -> str:
    """What is suspicious about the labels, or nothing.

    Parameters
    ----------
    forces, energies : Errors or None
        Of the frames.
    """
    if forces is not None:
        labelled = np.unique(forces.frame)
        hit = _force_round_off(forces, frames)
        if len(hit) > 0 and len(hit) >= _SHARE * len(labelled):
            return _sentence("forces", len(hit), len(labelled))
    if energies is not None and len(energies.error) > 1 and _energy_round_off(energies, frames):
        return _sentence("energies", len(energies.error), len(energies.error))
    return ""


def _sentence(what: str, number: int, total: int) -> str:
    return (
        f"the {what} of {number} of {total} frames are identical with the predictions of this file "
        "to the round-off of its precision or of the file of labels: they are its own predictions, "
        "read back. Give labels of the reference method, under their keys"
    )


def _force_round_off(forces: Errors, frames: Sequence[Frame]) -> np.ndarray:
    """Frames whose forces have errors of round-off alone, though they are not zero."""
    given = np.unique(forces.frame)
    squares = np.bincount(forces.frame, (forces.error**2).sum(axis=1))[given]
    labels = np.array([np.sum(np.square(frames[k].forces)) for k in given])
    n = 3.0 * np.bincount(forces.frame)[given]
    rms = np.sqrt(labels.sum() / n.sum())
    largest = np.zeros(len(given))
    np.maximum.at(largest, np.searchsorted(given, forces.frame), np.abs(forces.error).max(axis=1))
    digits = _last_digit([np.asarray(frames[k].forces) for k in given])
    small = (np.sqrt(squares / n) <= _RELATIVE * rms + _ABSOLUTE) | (largest <= 0.6 * digits)
    # By symmetry forces may vanish in both.
    return np.asarray(given[small & (np.sqrt(labels / n) > 1e-3 * rms)])


def _last_digit(labels: Sequence[np.ndarray]) -> float:
    """One unit of the last decimal that all labels are rounded to; 0 if there is none."""
    values = np.concatenate([array.ravel() for array in labels])
    for decimals in _DECIMALS:
        scaled = values * 10.0**decimals
        if np.allclose(scaled, np.round(scaled), rtol=1e-9, atol=1e-6):
            return float(10.0**-decimals)
    return 0.0


def _energy_round_off(energies: Errors, frames: Sequence[Frame]) -> bool:
    """Whether errors are nothing beside how energies scatter for one composition."""
    given = [frames[k] for k in energies.frame]
    labels = np.array([frame.energy for frame in given], dtype=np.float64)
    elements = sorted({int(z) for frame in given for z in frame.atoms.numbers})
    counts = np.array(
        [[np.sum(f.atoms.numbers == z) for z in elements] for f in given], dtype=float
    )
    rest = labels - counts @ np.linalg.lstsq(counts, labels, rcond=None)[0]
    limit = _RELATIVE * np.sqrt(np.mean(rest**2)) + _ABSOLUTE
    return bool(np.sqrt(np.mean(energies.error**2)) <= limit)
