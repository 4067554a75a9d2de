"""The output of a potential (`MemberOutput`) and of a served model (`Prediction`).

Both are NamedTuples of tensors, so that they cross the border of TorchScript. Optional fields are
None when the quantity is unknown to the model or was not asked for; they are never filled with
zeros. Variances are in squared units, and *epistemic* (the model does not know) and *aleatoric*
parts are kept apart. The latter is called after noise of the data; of labels without any it is the
misfit of the model at home.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# ASE's Voigt order: xx, yy, zz, yz, xz, xy.
VOIGT_ROWS = [0, 1, 2, 1, 0, 0]
VOIGT_COLUMNS = [0, 1, 2, 2, 2, 1]


class MemberOutput(NamedTuple):
    """What one potential says about a graph; K counts its heads (1 for a plain potential).

    Attributes
    ----------
    atomic_energies : Tensor, (K, n_atoms), eV
        Interaction energies: atomic reference energies are not included.
    atomic_energies_var : Tensor or None, (K, n_atoms), eV²
        Aleatoric variance of each atom's energy.
    forces_cov : Tensor or None, (K, n_atoms, 3, 3), (eV/Å)²
        Aleatoric covariance of each atom's force.
    directions : Tensor or None, (R, n_atoms), eV
        Epistemic uncertainty of the potential's own, in closed form: its atomic energies are those
        above plus Σ_r ξ_r directions_r with independent ξ_r ~ N(0, 1).
    draws : Tensor or None, (D, n_atoms), eV
        Samples of that sum, whose derivatives are samples of the deviation of the forces.
    atomic_energies_var_epistemic : Tensor or None, (K, n_atoms), eV²
        Epistemic variance of the potential's own, independent from atom to atom.
    forces_cov_epistemic : Tensor or None, (K, n_atoms, 3, 3), (eV/Å)²
        Epistemic covariance of the potential's own.
    forces_trace_epistemic : Tensor or None, (K, n_atoms), (eV/Å)²
        Its trace, also where the matrices were not asked for.
    forces_dof : Tensor or None, (K, n_atoms)
        Degrees of freedom of the Student-t law of each atom's force error, where it is one.
    """

    atomic_energies: Tensor
    atomic_energies_var: Tensor | None = None
    forces_cov: Tensor | None = None
    directions: Tensor | None = None
    draws: Tensor | None = None
    atomic_energies_var_epistemic: Tensor | None = None
    forces_cov_epistemic: Tensor | None = None
    forces_trace_epistemic: Tensor | None = None
    forces_dof: Tensor | None = None


class Prediction(NamedTuple):
    """Posterior mean and covariance for a batch of structures; S counts posterior samples.

    Attributes
    ----------
    energy : Tensor of float64, (n_graphs,), eV
    atomic_energies : Tensor of float64, (n_atoms,), eV
        Sum to `energy`; atomic reference energies are included in both.
    forces : Tensor, (n_atoms, 3), eV/Å
    stress : Tensor or None, (n_graphs, 3, 3), eV/Å³
        Only when asked for (it needs a cell).
    energy_var_epistemic, energy_var_aleatoric : Tensor or None, (n_graphs,), eV²
    atomic_energies_var_epistemic, atomic_energies_var_aleatoric : Tensor or None, (n_atoms,), eV²
    forces_cov_epistemic, forces_cov_aleatoric : Tensor or None, (n_atoms, 3, 3), (eV/Å)²
    stress_cov_epistemic : Tensor or None, (n_graphs, 6, 6), (eV/Å³)², Voigt order of ASE
    energy_members : Tensor or None, (S, n_graphs), eV
    forces_members : Tensor or None, (S, n_atoms, 3), eV/Å
    stress_members : Tensor or None, (S, n_graphs, 3, 3), eV/Å³
    forces_trace_epistemic : Tensor or None, (n_atoms,), (eV/Å)²
        Of the epistemic force covariance, where it is known without the matrices.
    forces_dof : Tensor or None, (n_atoms,)
        Degrees of freedom of the Student-t law of each atom's force error, whose covariance is the
        total one; None where the law is none or unknown.
    energy_shares : Tensor or None, (n_atoms,), eV²
        Cov(e_i, E): the share of each atom in the total variance of the energy, to which they sum.
    feature_distance : Tensor of float64 or None, (n_atoms,)
        √h of the leverage h of the features of each atom, see `nn.leverage`: how far they are from
        those of the training atoms of its element.
    """

    energy: Tensor
    atomic_energies: Tensor
    forces: Tensor
    stress: Tensor | None
    energy_var_epistemic: Tensor | None
    energy_var_aleatoric: Tensor | None
    atomic_energies_var_epistemic: Tensor | None
    atomic_energies_var_aleatoric: Tensor | None
    forces_cov_epistemic: Tensor | None
    forces_cov_aleatoric: Tensor | None
    stress_cov_epistemic: Tensor | None
    energy_members: Tensor | None
    forces_members: Tensor | None
    stress_members: Tensor | None
    forces_trace_epistemic: Tensor | None = None
    forces_dof: Tensor | None = None
    energy_shares: Tensor | None = None
    feature_distance: Tensor | None = None


def sum_of_known(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Sum of those that are known; None if none is."""
    if one is None:
        return other
    if other is None:
        return one
    return one + other


def to_voigt(stress: Tensor) -> Tensor:
    """Symmetric (..., 3, 3) stress to ASE's Voigt order (..., 6): xx, yy, zz, yz, xz, xy."""
    return torch.stack(
        [
            stress[..., 0, 0],
            stress[..., 1, 1],
            stress[..., 2, 2],
            stress[..., 1, 2],
            stress[..., 0, 2],
            stress[..., 0, 1],
        ],
        dim=-1,
    )


def to_results(prediction: Prediction, n_atoms: list[int]) -> list[dict[str, Any]]:
    """Split a prediction into ASE result dictionaries, one per structure.

    Keys, shapes and units are those of the result contract: totals are the sum of the parts that
    are known, and a part that is unknown has no key.

    Parameters
    ----------
    n_atoms : list of int
        Number of atoms of each structure, in the order of the batch.

    Returns
    -------
    list of dict
        Fresh float64 arrays and Python floats.
    """
    fields = {
        name: value.numpy(force=True)
        for name, value in prediction._asdict().items()
        if value is not None
    }
    results = []
    start = 0
    for index, count in enumerate(n_atoms):
        atoms = slice(start, start + count)
        results.append(_one_structure(fields, index, atoms))
        start += count
    return results


def _one_structure(fields: dict[str, np.ndarray], index: int, atoms: slice) -> dict[str, Any]:
    def take(name: str, selection: Any) -> np.ndarray | None:
        value = fields.get(name)
        return None if value is None else np.array(value[selection], dtype=np.float64)

    energy = float(fields["energy"][index])
    results: dict[str, Any] = {
        "energy": energy,
        "free_energy": energy,
        "energies": take("atomic_energies", atoms),
        "forces": take("forces", atoms),
    }
    stress = take("stress", index)
    if stress is not None:
        results["stress"] = stress[VOIGT_ROWS, VOIGT_COLUMNS]
    for kind in ("epistemic", "aleatoric"):
        variance = take(f"energy_var_{kind}", index)
        results[f"energy_var_{kind}"] = None if variance is None else float(variance)
        results[f"energies_var_{kind}"] = take(f"atomic_energies_var_{kind}", atoms)
        results[f"forces_cov_{kind}"] = take(f"forces_cov_{kind}", atoms)
    for name in ("energy_var", "energies_var", "forces_cov"):
        parts = [results[f"{name}_{kind}"] for kind in ("epistemic", "aleatoric")]
        known = [part for part in parts if part is not None]
        results[name] = sum(known) if known else None
    results["stress_cov"] = take("stress_cov_epistemic", index)
    results["energy_shares"] = take("energy_shares", atoms)
    results["forces_dof"] = take("forces_dof", atoms)
    results["feature_distances"] = take("feature_distance", atoms)
    trace = take("forces_trace_epistemic", atoms)
    results["forces_std_epistemic"] = None if trace is None else np.sqrt(trace)
    results["energy_ensemble"] = take("energy_members", (slice(None), index))
    results["forces_ensemble"] = take("forces_members", (slice(None), atoms))
    members = take("stress_members", (slice(None), index))
    if members is not None:
        results["stress_ensemble"] = members[:, VOIGT_ROWS, VOIGT_COLUMNS]
    results = {name: value for name, value in results.items() if value is not None}
    return add_derived(results)


def result_names(fields: Collection[str]) -> list[str]:
    """Keys that `to_results` makes of a prediction with these fields, for a structure with a cell.

    Found by making them, of one atom and zeros.
    """
    shapes: dict[str, tuple[int, ...]] = {"stress_cov_epistemic": (1, 6, 6)}
    for name in fields:
        single: tuple[int, ...] = (1,)
        if name.startswith("stress") or "_cov_" in name:
            single = (1, 3, 3)
        elif name in ("forces", "forces_members"):
            single = (1, 3)
        shapes.setdefault(name, (1, *single) if name.endswith("_members") else single)
    values = dict.fromkeys(Prediction._fields) | {
        name: torch.zeros(shapes[name]) for name in fields
    }
    return list(to_results(Prediction(**values), [1])[0])  # type: ignore[arg-type]


def add_derived(results: dict[str, Any]) -> dict[str, Any]:
    """Add standard deviations and diagonals that follow from the variances in `results`."""
    if "energy_var" in results:
        results["energy_uncertainty"] = float(np.sqrt(results["energy_var"]))
    if "forces_cov" in results:
        diagonal = results["forces_cov"].diagonal(axis1=1, axis2=2).copy()
        results["forces_var"] = diagonal
        results["forces_uncertainty"] = np.sqrt(diagonal)
        results["forces_std"] = np.sqrt(diagonal.sum(axis=1))
    if "forces_cov_epistemic" in results:
        trace = results["forces_cov_epistemic"].trace(axis1=1, axis2=2)
        results["forces_std_epistemic"] = np.sqrt(trace)
    if "stress_cov" in results:
        results["stress_var"] = results["stress_cov"].diagonal().copy()
    return results
