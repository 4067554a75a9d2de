"""Predictions of one model beside the labels of one set of frames, as plain arrays.

Nothing here knows where results come from: `BayesianCalculator.evaluate` gives them, and so does
`committee_results` for any ASE calculators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator

from ase_bayesmlip.metrics.errors import Errors, errors_of_energies, errors_of_forces
from ase_bayesmlip.metrics.origin import Origin
from ase_bayesmlip.structures.partly_labelled import EvaluationFrame


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a model said about some frames, and what is known about them.

    Attributes
    ----------
    frames : sequence of EvaluationFrame
    results : sequence of mapping
        One per frame: ``energy`` (eV) and ``forces`` (n_atoms, 3) (eV/Å), and of the uncertainties
        of `BayesianCalculator.results` those that are known, in the same units.
    n_members : int or None
        Exchangeable members whose spread the epistemic variances are (over S - 1). None if they
        are something else, as those of a last-layer Laplace approximation.
    n_draws : int
        Drawn readouts behind an epistemic covariance of forces, 0 if it has none.
    spherical : bool or None
        See `metrics.Origin`, of which the last three are the fields.
    """

    frames: Sequence[EvaluationFrame]
    results: Sequence[Mapping[str, Any]]
    n_members: int | None = None
    n_draws: int = 0
    spherical: bool | None = None

    def __post_init__(self) -> None:
        if len(self.frames) != len(self.results):
            raise ValueError(f"{len(self.frames)} frames have {len(self.results)} results")
        for frame, result in zip(self.frames, self.results, strict=True):
            for key in ("energy", "forces"):
                if key not in result or not np.isfinite(result[key]).all():
                    raise ValueError(f"{frame.source}: the predicted {key} is missing or no number")
            if np.shape(result["forces"]) != (len(frame.atoms), 3):
                raise ValueError(
                    f"{frame.source}: {len(frame.atoms)} atoms have predicted forces of shape "
                    f"{np.shape(result['forces'])}"
                )

    @property
    def origin(self) -> Origin:
        """What the epistemic variances are made of."""
        return Origin(self.n_members, self.n_draws, self.spherical)


def energy_errors(comparison: Comparison) -> Errors | None:
    """Errors of the energies of labelled frames; None if there are none."""
    return errors_of_energies(comparison.results, comparison.frames, comparison.origin)


def force_errors(comparison: Comparison) -> Errors | None:
    """Errors of the forces on the atoms of labelled frames; None if there are none."""
    return errors_of_forces(comparison.results, comparison.frames, comparison.origin)


def committee_results(energies: np.ndarray, forces: np.ndarray) -> dict[str, Any]:
    """Results of one frame from what S members say, in the form that `Comparison` takes.

    Parameters
    ----------
    energies : ndarray, (S,), eV
    forces : ndarray, (S, n_atoms, 3), eV/Å

    Returns
    -------
    dict
        Means and, for two members or more, variances over S - 1. Give ``n_members=S`` to the
        `Comparison`.

    Raises
    ------
    ValueError
        If the shapes do not fit.
    """
    e, f = np.asarray(energies, dtype=np.float64), np.asarray(forces, dtype=np.float64)
    if e.ndim != 1 or f.ndim != 3 or f.shape[::2] != (len(e), 3):
        raise ValueError(
            f"energies must have shape (S,) and forces (S, n_atoms, 3), not {e.shape} and {f.shape}"
        )
    results: dict[str, Any] = {"energy": float(e.mean()), "forces": f.mean(axis=0)}
    if len(e) < 2:
        return results
    deviation = f - results["forces"]
    covariance = np.einsum("sna,snb->nab", deviation, deviation) / (len(e) - 1)
    for kind in ("", "_epistemic"):
        results["energy_var" + kind] = float(e.var(ddof=1))
        results["forces_cov" + kind] = covariance
    return results


def evaluate_committee(
    calculators: Sequence[Calculator], frames: Sequence[Atoms]
) -> list[dict[str, Any]]:
    """`committee_results` of every frame, from any ASE calculators as the members."""
    if not calculators:
        raise ValueError("a committee needs one calculator or more")
    results = []
    for frame in frames:
        energies, forces = [], []
        for calculator in calculators:
            atoms = frame.copy()
            atoms.calc = calculator
            energies.append(atoms.get_potential_energy())
            forces.append(atoms.get_forces())
        results.append(committee_results(np.array(energies), np.array(forces)))
    return results
