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

from ase_bayesmlip.metrics.laws import PredictiveLaw
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
    """

    frames: Sequence[EvaluationFrame]
    results: Sequence[Mapping[str, Any]]
    n_members: int | None = None
    n_draws: int = 0

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


@dataclass(frozen=True, eq=False)
class Errors:
    """Errors (label - prediction) with their covariance and the law they should follow.

    Attributes
    ----------
    error : ndarray, (n, d)
        Energies of frames, eV, d = 1; forces of atoms, eV/Å, d = 3.
    covariance : ndarray or None, (n, d, d)
        Total; None if the model states none.
    law : PredictiveLaw or None
        None if the covariance has none, see `why_no_law`.
    frame : ndarray of int, (n,)
        Index of the frame of each item; never decreases.
    atomic_numbers : ndarray of int, (n,)
        Of the atom of a force. For an energy, the number of atoms that share it.
    why_no_law : str
    """

    error: np.ndarray
    covariance: np.ndarray | None
    law: PredictiveLaw | None
    frame: np.ndarray
    atomic_numbers: np.ndarray
    why_no_law: str = ""

    @property
    def std(self) -> np.ndarray:
        """√(tr C / d), (n,): the deviation of one component, which no rotation changes."""
        if self.covariance is None:
            raise ValueError("the model states no covariance")
        trace = np.einsum("ncc->n", self.covariance)
        return np.asarray(np.sqrt(trace / self.error.shape[1]))

    def take(self, items: np.ndarray) -> Errors:
        """Some of the items."""
        return Errors(
            self.error[items],
            None if self.covariance is None else self.covariance[items],
            None if self.law is None else self.law.take(items),
            self.frame[items],
            self.atomic_numbers[items],
            self.why_no_law,
        )


def energy_errors(comparison: Comparison) -> Errors | None:
    """Errors of the energies of labelled frames; None if there are none."""
    known = [k for k, frame in enumerate(comparison.frames) if frame.energy is not None]
    if not known:
        return None
    frames = [comparison.frames[k] for k in known]
    results = [comparison.results[k] for k in known]
    labels = np.array([frame.energy for frame in frames], dtype=np.float64)
    error = labels - np.array([float(result["energy"]) for result in results])
    variance = None
    if all("energy_var" in result for result in results):
        variance = np.array([float(r["energy_var"]) for r in results]).reshape(-1, 1, 1)
    law, why = _law(results, comparison, "energy_var", 1)
    return Errors(
        error.reshape(-1, 1),
        variance,
        law,
        np.array(known),
        np.array([len(frame.atoms) for frame in frames]),
        why,
    )


def force_errors(comparison: Comparison) -> Errors | None:
    """Errors of the forces on the atoms of labelled frames; None if there are none."""
    known = [k for k, frame in enumerate(comparison.frames) if frame.forces is not None]
    if not known:
        return None
    frames = [comparison.frames[k] for k in known]
    results = [comparison.results[k] for k in known]
    labels = np.concatenate([np.asarray(frame.forces) for frame in frames])
    error = labels - np.concatenate([np.asarray(result["forces"]) for result in results])
    covariance = None
    if all("forces_cov" in result for result in results):
        covariance = np.concatenate([np.asarray(r["forces_cov"]) for r in results])
    law, why = _law(results, comparison, "forces_cov", 3)
    return Errors(
        error,
        covariance,
        law,
        np.repeat(np.array(known), [len(frame.atoms) for frame in frames]),
        np.concatenate([frame.atoms.numbers for frame in frames]),
        why,
    )


def _law(
    results: Sequence[Mapping[str, Any]], comparison: Comparison, key: str, dimension: int
) -> tuple[PredictiveLaw | None, str]:
    """The law of errors whose covariance stands under `key`, or why there is none."""
    first = results[0]
    if not all(key in result for result in results):
        return None, f"the model states no {key}"
    if dimension == 3 and "forces_dof" in first:
        return PredictiveLaw(dof=np.concatenate([np.ravel(r["forces_dof"]) for r in results])), ""
    only_spread = f"{key}_epistemic" in first and f"{key}_aleatoric" not in first
    if only_spread and comparison.n_draws and dimension == 3:
        return None, (
            f"the force covariance comes from {comparison.n_draws} drawn readouts and has no noise "
            "part: no law is known for it"
        )
    if not only_spread or comparison.n_members is None:
        return PredictiveLaw(), ""
    if comparison.n_members <= dimension:
        return None, (
            f"the covariance of {comparison.n_members} members without a noise part has no inverse "
            f"in {dimension} dimensions: {dimension + 1} members or more would be needed"
        )
    return PredictiveLaw(n_members=comparison.n_members), ""


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
    """Results of any ASE calculators as the members of a committee, one dictionary per frame."""
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
