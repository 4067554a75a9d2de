"""What calibration sees: the errors of labelled frames and the covariances given for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ase_bayesmlip.structures.labelled import LabelledFrame

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Smallest over largest eigenvalue of a covariance that is taken for singular.
_SINGULAR = 1e-10


@dataclasses.dataclass(frozen=True)
class Errors:
    """Errors of one quantity, with the two parts of the covariance that was given for them.

    Attributes
    ----------
    error : ndarray, (n, d), any unit u
        Label - prediction; d is 3 for forces and 1 for energies.
    epistemic, aleatoric : ndarray or None, (n, d, d), u²
        None where the file does not know them; at least one is known.
    frame : ndarray of int, (n,)
        Number of the frame that an item belongs to: items of one frame are not independent.
    atomic_numbers : ndarray of int, (n,)
        Zero for energies, which belong to no element.
    dof : ndarray or None, (n,)
        Degrees of freedom of a Student-t law with the total covariance; None for a Gaussian.
    """

    error: FloatArray
    epistemic: FloatArray | None
    aleatoric: FloatArray | None
    frame: IntArray
    atomic_numbers: IntArray
    dof: FloatArray | None = None

    @property
    def total(self) -> FloatArray:
        """Sum of the known parts, (n, d, d), u²."""
        known = [part for part in (self.epistemic, self.aleatoric) if part is not None]
        return sum(known[1:], start=known[0])

    def chosen(self, mask: NDArray[np.bool_]) -> Errors:
        """The items of a mask, (n,)."""
        return Errors(
            self.error[mask],
            None if self.epistemic is None else self.epistemic[mask],
            None if self.aleatoric is None else self.aleatoric[mask],
            self.frame[mask],
            self.atomic_numbers[mask],
            None if self.dof is None else self.dof[mask],
        )

    def scaled(self, epistemic: FloatArray, aleatoric: FloatArray) -> Errors:
        """With each item's covariances multiplied by its factors, (n,)."""

        def times(part: FloatArray | None, factor: FloatArray) -> FloatArray | None:
            return None if part is None else part * factor[:, None, None]

        return dataclasses.replace(
            self,
            epistemic=times(self.epistemic, epistemic),
            aleatoric=times(self.aleatoric, aleatoric),
        )


@dataclasses.dataclass(frozen=True)
class Observations:
    """Errors of calibration frames.

    Attributes
    ----------
    forces, energy : Errors or None
        None where the file gives no variance.
    shape : "ellipsoid" or "ball"
        Of the regions of forces. Balls stand in where there is no aleatoric covariance: every Σ is
        then replaced by tr Σ/3 times the identity. The sample covariance of S members alone has no
        inverse for S ≤ 3, and for a few more one that is dominated by its smallest eigenvalue.
    frames : ndarray of int, (n_frames,)
        The numbers of the frames, as in `Errors.frame`.
    n_atoms : dict of int to int
        By atomic number.
    """

    forces: Errors | None
    energy: Errors | None
    shape: str
    frames: IntArray
    n_atoms: dict[int, int]

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return len(self.frames)

    def of_frames(self, frames: IntArray) -> Observations:
        """The part that belongs to some frames."""
        parts = [
            None if part is None else part.chosen(np.isin(part.frame, frames))
            for part in (self.forces, self.energy)
        ]
        return dataclasses.replace(self, forces=parts[0], energy=parts[1], frames=frames)


def observe(results: Sequence[Mapping[str, Any]], frames: Sequence[LabelledFrame]) -> Observations:
    """Errors and covariances of calibration frames.

    Parameters
    ----------
    results : sequence of mapping
        Of the served model, one per frame, with the keys of `BayesianCalculator`.
    frames : sequence of LabelledFrame

    Raises
    ------
    ValueError
        If there are no frames, if results are not finite or hold no variance, or if a variance is
        zero.
    """
    if len(frames) == 0:
        raise ValueError("there are no calibration frames; give labelled frames unseen in training")
    if len(results) != len(frames):
        raise ValueError(f"{len(results)} results for {len(frames)} frames; give one for each")
    counts = [len(frame.atoms) for frame in frames]
    numbers = np.concatenate([frame.atoms.numbers for frame in frames]).astype(np.int64)
    index = np.arange(len(frames))
    force_error = [f.forces - r["forces"] for r, f in zip(results, frames, strict=True)]
    energy_error = [[f.energy - r["energy"]] for r, f in zip(results, frames, strict=True)]
    forces = _errors(
        "forces",
        np.concatenate(force_error),
        [_gathered(results, f"forces_cov_{kind}") for kind in ("epistemic", "aleatoric")],
        np.repeat(index, counts),
        numbers,
        frames,
    )
    if forces is not None and all("forces_dof" in result for result in results):
        dof = np.concatenate([np.ravel(result["forces_dof"]) for result in results])
        forces = dataclasses.replace(forces, dof=dof.astype(np.float64))
    energy = _errors(
        "energy",
        np.array(energy_error),
        [_gathered(results, f"energy_var_{kind}") for kind in ("epistemic", "aleatoric")],
        index,
        np.zeros(len(frames), dtype=np.int64),
        frames,
    )
    if forces is None and energy is None:
        raise ValueError(
            "the file gives no variance of energies or forces, so that there is nothing to "
            "calibrate; it needs two members or more, or noise heads"
        )
    shape = "ellipsoid"
    if forces is not None and not _definite(forces):
        shape = "ball"
        forces = dataclasses.replace(
            forces, epistemic=_rounded(forces.epistemic), aleatoric=_rounded(forces.aleatoric)
        )
    elements, atoms = np.unique(numbers, return_counts=True)
    n_atoms = {int(z): int(n) for z, n in zip(elements, atoms, strict=True)}
    return Observations(forces, energy, shape, index, n_atoms)


def _gathered(results: Sequence[Mapping[str, Any]], key: str) -> FloatArray | None:
    """All values of a key, (n, d, d); None if it is not there."""
    if not all(key in result for result in results):
        return None
    values = [np.asarray(result[key], dtype=np.float64) for result in results]
    return np.concatenate(values) if values[0].ndim else np.array(values).reshape(-1, 1, 1)


def _errors(
    name: str,
    error: FloatArray,
    parts: Sequence[FloatArray | None],
    frame: IntArray,
    numbers: IntArray,
    frames: Sequence[LabelledFrame],
) -> Errors | None:
    if parts[0] is None and parts[1] is None:
        return None
    found = Errors(error, parts[0], parts[1], frame, numbers)
    total = found.total
    trace = np.trace(total, axis1=1, axis2=2)
    finite = np.isfinite(error.sum(axis=1) + total.sum(axis=(1, 2)))
    # Written so that NaN is bad.
    bad = np.flatnonzero(~(finite & (trace > 0)))
    if len(bad):
        first = int(bad[0])
        what = "zero variance" if finite[first] else "numbers that are not finite"
        raise ValueError(
            f"{name}: {len(bad)} of {len(error)} items have {what}; the first is in "
            f"{frames[int(frame[first])].source}. Leave that frame out"
        )
    return found


def _definite(errors: Errors) -> bool:
    """Whether every covariance has an inverse that neither round-off nor sampling rules."""
    if errors.aleatoric is None:
        return False
    eigenvalues = np.linalg.eigvalsh(errors.aleatoric)
    return bool((eigenvalues[:, 0] > _SINGULAR * eigenvalues[:, -1]).all())


def _rounded(covariance: FloatArray | None) -> FloatArray | None:
    """Each covariance replaced by tr Σ/d times the identity."""
    if covariance is None:
        return None
    d = covariance.shape[1]
    return np.trace(covariance, axis1=1, axis2=2)[:, None, None] / d * np.eye(d)
