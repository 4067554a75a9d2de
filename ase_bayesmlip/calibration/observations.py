"""What calibration sees: the errors of labelled frames and the covariances given for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ase_bayesmlip.metrics.errors import Errors, Frame, errors_of_energies, errors_of_forces
from ase_bayesmlip.metrics.origin import Origin
from ase_bayesmlip.metrics.round_off import round_off_note

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_TOTALS = ("energy_var", "forces_cov")


@dataclasses.dataclass(frozen=True)
class Observations:
    """Errors of calibration frames.

    Attributes
    ----------
    forces, energy : Errors or None
        None where the file gives no variance. Their `law` is that of the file.
    origin : Origin
        What the laws follow from; its `spherical` is settled.
    frames : ndarray of int, (n_frames,)
        The numbers of the frames, as in `Errors.frame`.
    n_atoms : dict of int to int
        By atomic number.
    """

    forces: Errors | None
    energy: Errors | None
    origin: Origin
    frames: IntArray
    n_atoms: dict[int, int]

    @property
    def shape(self) -> str:
        """``"ball"`` or ``"ellipsoid"``, of the regions of forces."""
        return "ball" if self.origin.spherical else "ellipsoid"

    @property
    def laws(self) -> dict[str, dict[str, Any]]:
        """Plain data for a model card: the law of each quantity that has a variance."""
        both = (("forces", self.forces), ("energy", self.energy))
        return {name: part.judged[0].to_record() for name, part in both if part is not None}

    @property
    def n_frames(self) -> int:
        """Number of frames."""
        return len(self.frames)

    def of_frames(self, frames: IntArray) -> Observations:
        """The part that belongs to some frames."""
        parts = [
            None if part is None else part.take(np.isin(part.frame, frames))
            for part in (self.forces, self.energy)
        ]
        return dataclasses.replace(self, forces=parts[0], energy=parts[1], frames=frames)


def observe(
    results: Sequence[Mapping[str, Any]],
    frames: Sequence[Frame],
    origin: Origin | None = None,
) -> Observations:
    """Errors and covariances of calibration frames, with their law.

    Parameters
    ----------
    results : sequence of mapping
        Of the served model, one per frame, with the keys of `BayesianCalculator`. Of the variances
        the parts are read.
    frames : sequence of Frame
    origin : Origin
        What the variances are made of: ``metrics.origin_of(calc.card)``. Without it those that
        have no noise part count as known.

    Raises
    ------
    ValueError
        If there are no frames, if results are not finite or hold no variance, if a variance is
        zero, or if the labels are the predictions of the file.
    """
    if len(frames) == 0:
        raise ValueError("there are no calibration frames; give labelled frames unseen in training")
    if len(results) != len(frames):
        raise ValueError(f"{len(results)} results for {len(frames)} frames; give one for each")
    origin = origin or Origin()
    parts = [{k: v for k, v in result.items() if k not in _TOTALS} for result in results]
    forces = _checked("forces", errors_of_forces(parts, frames, origin), frames)
    energy = _checked("energy", errors_of_energies(parts, frames, origin), frames)
    if forces is None and energy is None:
        raise ValueError(
            "the file gives no variance of energies or forces, so that there is nothing to "
            "calibrate; it needs two members or more, or noise heads"
        )
    suspicious = round_off_note(forces, energy, frames)
    if suspicious:
        raise ValueError(suspicious)
    spherical = forces is not None and forces.judged[0].spherical
    numbers = np.concatenate([frame.atoms.numbers for frame in frames])
    elements, atoms = np.unique(numbers, return_counts=True)
    n_atoms = {int(z): int(n) for z, n in zip(elements, atoms, strict=True)}
    settled = dataclasses.replace(origin, spherical=spherical)
    return Observations(forces, energy, settled, np.arange(len(frames)), n_atoms)


def _checked(name: str, found: Errors | None, frames: Sequence[Frame]) -> Errors | None:
    """The errors, if they have covariances, all of which must be finite and not zero."""
    if found is None or found.covariance is None:
        return None
    total = found.covariance
    trace = np.trace(total, axis1=1, axis2=2)
    finite = np.isfinite(found.error.sum(axis=1) + total.sum(axis=(1, 2)))
    # Written so that NaN is bad.
    bad = np.flatnonzero(~(finite & (trace > 0)))
    if len(bad):
        first = int(bad[0])
        what = "zero variance" if finite[first] else "numbers that are not finite"
        raise ValueError(
            f"{name}: {len(bad)} of {len(found.error)} items have {what}; the first is in "
            f"{frames[int(found.frame[first])].source}. Leave that frame out"
        )
    return found
