"""Errors with the covariances that were stated for them and the law that they should follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from ase import Atoms

from ase_bayesmlip.metrics.laws import PredictiveLaw
from ase_bayesmlip.metrics.origin import Origin, law_of

# Indices of the components of a stress in ASE's Voigt order.
VOIGT = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])

# Relative: by how much a stated total may differ from the sum of its parts.
_ROUND_OFF = 1e-6


class Frame(Protocol):
    """A structure with labels, of which some may be missing."""

    @property
    def atoms(self) -> Atoms:
        """Structure."""

    @property
    def energy(self) -> float | None:
        """Energy, eV."""

    @property
    def forces(self) -> np.ndarray | None:
        """Forces, (n_atoms, 3), eV/Å."""

    @property
    def source(self) -> str:
        """Where it was read, for messages."""

    @property
    def stress(self) -> np.ndarray | None:
        """Stress, (3, 3), eV/Å³, with ASE's sign."""


@dataclass(frozen=True, eq=False)
class Errors:
    """Errors of one quantity, label - prediction.

    Attributes
    ----------
    error : ndarray, (n, d), any unit u
        Energies of frames, d = 1; forces of atoms, d = 3.
    epistemic, aleatoric : ndarray or None, (n, d, d), u²
        Parts of the covariance that was given; None where unknown.
    frame : ndarray of int, (n,)
        Index of the frame of each item; never decreases. Items of a frame are not independent.
    law : PredictiveLaw or None
        None if there is none, see `why_no_law`.
    atomic_numbers : ndarray of int or None, (n,)
        Of the atoms of forces.
    n_atoms : ndarray of int or None, (n,)
        Of the frames of energies.
    stated : ndarray or None, (n, d, d), u²
        A total that was given without parts, or that is not their sum.
    why_no_law : str
    """

    error: np.ndarray
    epistemic: np.ndarray | None
    aleatoric: np.ndarray | None
    frame: np.ndarray
    law: PredictiveLaw | None = None
    atomic_numbers: np.ndarray | None = None
    n_atoms: np.ndarray | None = None
    stated: np.ndarray | None = None
    why_no_law: str = ""

    @property
    def covariance(self) -> np.ndarray | None:
        """The total, (n, d, d), u²: as stated, or the sum of the known parts."""
        if self.stated is not None:
            return self.stated
        known = [part for part in (self.epistemic, self.aleatoric) if part is not None]
        return sum(known[1:], start=known[0]) if known else None

    @property
    def judged(self) -> tuple[PredictiveLaw, np.ndarray]:
        """Law and total covariance.

        Raises
        ------
        ValueError
            If one of them is missing.
        """
        covariance = self.covariance
        if self.law is None or covariance is None:
            raise ValueError(f"errors without a law have no regions: {self.why_no_law}")
        return self.law, covariance

    @property
    def std(self) -> np.ndarray:
        """√(tr C / d), (n,): the deviation of one component, which no rotation changes."""
        covariance = self.covariance
        if covariance is None:
            raise ValueError("the model states no covariance")
        trace = np.einsum("ncc->n", covariance)
        return np.asarray(np.sqrt(trace / self.error.shape[1]))

    @property
    def standardised(self) -> np.ndarray:
        """Errors in standard deviations, (n,): signed for scalars, `law.distances` for vectors."""
        law, covariance = self.judged
        if self.error.shape[1] == 1:
            return np.asarray(self.error[:, 0] / np.sqrt(covariance[:, 0, 0]))
        return law.distances(self.error, covariance)

    @property
    def confidence(self) -> np.ndarray:
        """Probability of the smallest region that holds each label, (n,)."""
        law, covariance = self.judged
        return law.confidence(self.error, covariance)

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood, nats per item."""
        law, covariance = self.judged
        return law.nll(self.error, covariance)

    def take(self, items: np.ndarray) -> Errors:
        """Some of the items: numbers, or a mask (n,)."""

        def of(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[items]

        return replace(
            self,
            error=self.error[items],
            epistemic=of(self.epistemic),
            aleatoric=of(self.aleatoric),
            frame=self.frame[items],
            law=None if self.law is None else self.law.take(items),
            atomic_numbers=of(self.atomic_numbers),
            n_atoms=of(self.n_atoms),
            stated=of(self.stated),
        )

    def scaled(self, epistemic: np.ndarray, aleatoric: np.ndarray) -> Errors:
        """With the parts of each item's covariance multiplied by its factors, (n,).

        The law stays what it is. A stated total, which has no parts, is multiplied by the first.
        """

        def times(part: np.ndarray | None, factor: np.ndarray) -> np.ndarray | None:
            return None if part is None else part * factor[:, None, None]

        return replace(
            self,
            epistemic=times(self.epistemic, epistemic),
            aleatoric=times(self.aleatoric, aleatoric),
            stated=times(self.stated, epistemic),
        )

    def divided_by(self, unit: np.ndarray) -> Errors:
        """In other units, one for each item, (n,)."""
        smaller = self.scaled(1.0 / unit**2, 1.0 / unit**2)
        return replace(smaller, error=self.error / unit[:, None])


def errors_of_energies(
    results: Sequence[Mapping[str, Any]], frames: Sequence[Frame], origin: Origin
) -> Errors | None:
    """Errors of the energies of labelled frames; None if no frame has one.

    Parameters
    ----------
    results : sequence of mapping
        One per frame, with the keys of `BayesianCalculator`: ``energy``, and of ``energy_var`` and
        its parts those that are known.
    frames : sequence of Frame
    origin : Origin
    """
    known = [k for k, frame in enumerate(frames) if frame.energy is not None]
    if not known:
        return None
    given = [results[k] for k in known]
    labels = np.array([frames[k].energy for k in known], dtype=np.float64)
    error = labels - np.array([float(result["energy"]) for result in given])
    n_atoms = np.array([len(frames[k].atoms) for k in known])
    return _errors(given, "energy_var", error[:, None], np.array(known), origin, n_atoms=n_atoms)


def errors_of_forces(
    results: Sequence[Mapping[str, Any]], frames: Sequence[Frame], origin: Origin
) -> Errors | None:
    """Errors of the forces on the atoms of labelled frames; None if no frame has them."""
    known = [k for k, frame in enumerate(frames) if frame.forces is not None]
    if not known:
        return None
    given = [results[k] for k in known]
    labels = np.concatenate([np.asarray(frames[k].forces, dtype=np.float64) for k in known])
    error = labels - np.concatenate([np.asarray(result["forces"]) for result in given])
    frame = np.repeat(known, [len(frames[k].atoms) for k in known])
    numbers = np.concatenate([frames[k].atoms.numbers for k in known]).astype(np.int64)
    return _errors(given, "forces_cov", error, frame, origin, atomic_numbers=numbers)


# Rows that make components and the pressure of a stress in ASE's Voigt order and sign.
STRESS = np.eye(6)
PRESSURE = -np.array([[1.0, 1.0, 1.0, 0.0, 0.0, 0.0]]) / 3.0


def errors_of_stress(
    results: Sequence[Mapping[str, Any]],
    frames: Sequence[Frame],
    origin: Origin,
    rows: np.ndarray,
) -> Errors | None:
    """Errors of components of the stress, one by one; None if no frame with a cell has the label.

    Their covariance is the epistemic part, the only one that there is. What vanishes by symmetry
    in label, prediction and error bar is left out.

    Parameters
    ----------
    rows : ndarray, (m, 6)
        `STRESS`, `PRESSURE` or other combinations of the Voigt components.
    """
    labels = [frame.stress for frame in frames]
    known = [k for k, label in enumerate(labels) if label is not None and "stress" in results[k]]
    if not known:
        return None
    given = [results[k] for k in known]
    label = np.array([np.asarray(labels[k])[VOIGT] for k in known])
    error = (label - np.array([result["stress"] for result in given])) @ rows.T
    frame, covariance = np.repeat(known, len(rows)), None
    if all("stress_cov" in result for result in given):
        covariance = np.einsum("ma,nab,mb->nm", rows, [r["stress_cov"] for r in given], rows)
        covariance = covariance.reshape(-1, 1, 1)
    found = Errors(error.reshape(-1, 1), covariance, None, frame)
    if covariance is None:
        return replace(found, why_no_law="the model states no stress_cov")
    law, why = law_of(origin, covariance, is_spread=True)
    if origin.n_draws:  # unlike those of energies, variances of stress are those of the draws
        law = PredictiveLaw(n_draws=origin.n_draws)
    sizes = np.abs(found.error[:, 0]) + np.sqrt(covariance[:, 0, 0])
    return replace(found, law=law, why_no_law=why).take(sizes > _ROUND_OFF * sizes.max())


def _errors(
    results: Sequence[Mapping[str, Any]],
    key: str,
    error: np.ndarray,
    frame: np.ndarray,
    origin: Origin,
    atomic_numbers: np.ndarray | None = None,
    n_atoms: np.ndarray | None = None,
) -> Errors:
    """Gather the covariances that stand under `key`, and find their law."""
    parts = [_gathered(results, f"{key}_{kind}") for kind in ("epistemic", "aleatoric")]
    found = Errors(error, parts[0], parts[1], frame, None, atomic_numbers, n_atoms)
    total, stated = found.covariance, _gathered(results, key)
    if stated is not None and (
        total is None or not np.allclose(total, stated, _ROUND_OFF, 0.0, equal_nan=True)
    ):
        found = replace(found, stated=stated)
    covariance = found.covariance
    if covariance is None:
        return replace(found, why_no_law=f"the model states no {key}")
    dof = None
    if error.shape[1] == 3 and all("forces_dof" in result for result in results):
        dof = np.concatenate([np.ravel(r["forces_dof"]) for r in results]).astype(np.float64)
    is_spread = parts[0] is not None and parts[1] is None
    law, why = law_of(origin, covariance, is_spread, dof)
    return replace(found, law=law, why_no_law=why)


def _gathered(results: Sequence[Mapping[str, Any]], key: str) -> np.ndarray | None:
    """All values of a key, (n, d, d); None if some result lacks it."""
    if not all(key in result for result in results):
        return None
    values = [np.asarray(result[key], dtype=np.float64) for result in results]
    return np.concatenate(values) if values[0].ndim else np.array(values).reshape(-1, 1, 1)
