"""Checks of a served model, shipped so that users can run them on their own files.

Every check raises `AssertionError` naming the quantity and the deviation. Deviations are relative
to the largest magnitude of the compared quantity.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from ase import Atoms

from ase_bayesmlip.prediction import VOIGT_COLUMNS, VOIGT_ROWS, Prediction
from ase_bayesmlip.serving.runtime import LoadedModel
from ase_bayesmlip.structures.neighbors import graph_of

# Relative tolerance of an identity that holds exactly in real arithmetic.
TOLERANCE = {"float32": 2e-4, "float64": 1e-8}

# A spread of nearly equal numbers has fewer digits than the numbers: in float32 it shows.
SPREAD_TOLERANCE = {"float32": 5e-3, "float64": 1e-8}

# Place of each component of a symmetric tensor in ASE's Voigt order.
VOIGT_INDEX = [[0, 5, 4], [5, 1, 3], [4, 3, 2]]

PER_ATOM = [
    "atomic_energies",
    "forces",
    "atomic_energies_var_epistemic",
    "atomic_energies_var_aleatoric",
    "forces_cov_epistemic",
    "forces_cov_aleatoric",
    "forces_trace_epistemic",
    "forces_dof",
    "energy_shares",
]
PER_GRAPH = [
    "energy",
    "stress",
    "energy_var_epistemic",
    "energy_var_aleatoric",
    "stress_cov_epistemic",
]


def predict(model: LoadedModel, frames: Sequence[Atoms]) -> dict[str, np.ndarray]:
    """All fields of the prediction for a batch as float64 arrays; unknown ones are left out.

    Energies have the atomic reference energies subtracted, so that differences are visible.
    """
    graphs = [graph_of(atoms, model.card.cutoff) for atoms in frames]
    periodic = all(atoms.cell.rank == 3 for atoms in frames)
    prediction = model.predict(graphs, stress=periodic)
    fields = as_arrays(prediction)
    references = np.zeros(119)
    for symbol, energy in model.card.reference_energies.items():
        references[Atoms(symbol).numbers[0]] = energy
    fields["atomic_energies"] -= np.concatenate([references[a.numbers] for a in frames])
    fields["energy"] -= np.array([references[a.numbers].sum() for a in frames])
    return fields


def as_arrays(prediction: Prediction) -> dict[str, np.ndarray]:
    """Known fields of a prediction as float64 arrays."""
    return {
        name: value.detach().to("cpu", torch.float64).numpy().copy()
        for name, value in prediction._asdict().items()
        if value is not None
    }


def assert_close(name: str, found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Raise if the largest deviation exceeds the tolerance times the largest magnitude."""
    size = max(float(np.abs(expected).max(initial=0.0)), 1e-12)
    deviation = float(np.abs(found - expected).max(initial=0.0))
    # Written so that NaN fails.
    if not deviation <= tolerance * size:
        raise AssertionError(
            f"{name}: deviation {deviation:.3g} for values up to {size:.3g} "
            f"(relative {deviation / size:.3g}, allowed {tolerance:.3g})"
        )


def _allowed(model: LoadedModel, name: str, tolerance: float | None) -> float:
    if tolerance is not None:
        return tolerance
    spread = name.endswith("epistemic") or name == "energy_shares"
    return (SPREAD_TOLERANCE if spread else TOLERANCE)[model.dtype]


def assert_equivariant_prediction(
    model: LoadedModel, atoms: Atoms, seed: int = 0, tolerance: float | None = None
) -> None:
    """Rotation, reflection, translation and permutation of every predicted quantity.

    Σ(QR) = QΣ(R)Qᵀ, F(QR) = QF(R), σ(QR) = Qσ(R)Qᵀ for any orthogonal Q; energies and their
    variances are invariant.
    """
    generator = np.random.default_rng(seed)
    base = predict(model, [atoms])
    for sign in (1.0, -1.0):
        q = _orthogonal(generator, sign)
        order = generator.permutation(len(atoms))
        moved = atoms[order]
        moved.set_cell(atoms.cell.array @ q.T, scale_atoms=False)
        moved.positions = atoms.positions[order] @ q.T + generator.normal(size=3)
        found = predict(model, [moved])
        for name in _present({*PER_ATOM, *PER_GRAPH}, base):
            values = base[name][order] if name in PER_ATOM else base[name]
            label = f"{name} (det Q = {sign:+.0f})"
            assert_close(label, found[name], _rotate(values, q), _allowed(model, name, tolerance))


def _present(names: Collection[str], *predictions: dict[str, np.ndarray]) -> list[str]:
    """Those of the names that every prediction has, in the order of `Prediction`."""
    common = set(names).intersection(*predictions)
    return [name for name in Prediction._fields if name in common]


def _orthogonal(generator: np.random.Generator, sign: float) -> np.ndarray:
    q = np.linalg.qr(generator.normal(size=(3, 3)))[0]
    return q * (sign * np.sign(np.linalg.det(q)))


def _rotate(values: np.ndarray, q: np.ndarray) -> np.ndarray:
    if values.shape[1:] == (3,):
        return values @ q.T
    if values.shape[1:] == (3, 3):
        return np.einsum("ab,nbc,dc->nad", q, values, q)
    if values.shape[1:] == (6, 6):
        full = values[:, VOIGT_INDEX][..., VOIGT_INDEX]
        turned = np.einsum("ia,jb,kc,ld,nabcd->nijkl", q, q, q, q, full)
        return turned[:, VOIGT_ROWS, VOIGT_COLUMNS][..., VOIGT_ROWS, VOIGT_COLUMNS]
    return values


def assert_batching(
    model: LoadedModel, frames: Sequence[Atoms], tolerance: float | None = None
) -> None:
    """A batch gives what its structures give one by one."""
    batch = predict(model, frames)
    singles = [predict(model, [atoms]) for atoms in frames]
    for name in _present({*PER_ATOM, *PER_GRAPH}, batch, singles[0]):
        joined = np.concatenate([single[name] for single in singles])
        assert_close(f"{name} (batch)", batch[name], joined, _allowed(model, name, tolerance))


def assert_extensive(model: LoadedModel, atoms: Atoms, tolerance: float | None = None) -> None:
    """Two copies out of reach of each other: per-atom values unchanged, energy doubled.

    The aleatoric variance of the energy doubles too (independent noise); the epistemic one
    quadruples, since both copies depend on the same weights, and the shares of the atoms in it
    double. That of an evidential law has parts of both kinds.
    """
    if atoms.pbc.any():
        raise ValueError("extensivity is checked on a molecule, not on a periodic structure")
    size = np.ptp(atoms.positions[:, 0]) + 3.0 * model.card.cutoff
    other = atoms.copy()
    other.positions[:, 0] += size
    one, two = predict(model, [atoms]), predict(model, [atoms + other])
    factors = {"energy": 2.0, "energy_var_aleatoric": 2.0, "energy_var_epistemic": 4.0}
    # An evidential law divides its variance otherwise: its shares are checked by the symmetries.
    unknown = {"energy_shares"} if model.card.evidential else set()
    for name in _present({*PER_ATOM, *factors} - unknown, one):
        expected = (
            factors[name] * one[name] if name in factors else np.concatenate([one[name], one[name]])
        )
        least = expected
        if name == "energy_var_epistemic":
            least = 2.0 * one[name]
        elif name == "energy_shares":
            noise = np.tile(one.get("atomic_energies_var_aleatoric", 0.0 * one[name]), 2)
            expected = 2.0 * least - noise
        if model.card.evidential:
            # Independent errors of atoms add to the variance, those that they have in common to
            # the deviation.
            expected = np.clip(two[name], np.minimum(least, expected), np.maximum(least, expected))
        assert_close(f"{name} (extensivity)", two[name], expected, _allowed(model, name, tolerance))


def assert_positive_semidefinite(model: LoadedModel, atoms: Atoms) -> None:
    """Covariances are symmetric and have no negative eigenvalue beyond round-off."""
    fields = predict(model, [atoms])
    covariances = {"forces_cov_epistemic", "forces_cov_aleatoric", "stress_cov_epistemic"}
    for name in _present(covariances, fields):
        matrix = fields[name]
        assert_close(f"{name} (symmetry)", matrix, np.swapaxes(matrix, 1, 2), 1e-12)
        eigenvalues = np.linalg.eigvalsh(matrix)
        if eigenvalues.min() < -1e-12 * max(eigenvalues.max(), 1e-300):
            raise AssertionError(f"{name} has the negative eigenvalue {eigenvalues.min():.3g}")
    for name in fields:
        if "_var_" in name and (fields[name] < 0).any():
            raise AssertionError(f"{name} is negative: {fields[name].min():.3g}")


def check_served_model(model: LoadedModel, molecule: Atoms, crystal: Atoms | None = None) -> None:
    """Equivariance, batching, extensivity and positivity of a served model.

    Parameters
    ----------
    molecule, crystal : Atoms
        Structures of elements that the model knows; without a crystal stress is not checked.
    """
    frames = [atoms for atoms in (molecule, crystal) if atoms is not None]
    for atoms in frames:
        assert_equivariant_prediction(model, atoms)
        assert_positive_semidefinite(model, atoms)
        shaken = atoms.copy()
        shaken.rattle(0.02, seed=1)
        assert_batching(model, [atoms, shaken])
    assert_batching(model, [molecule, *frames])
    assert_extensive(model, molecule)
