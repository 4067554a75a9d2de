"""`BayesianCalculator`: a served model as an ASE calculator with error bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import (
    PropertyNotImplementedError,
    all_changes,
    external_calculators,
    register_calculator_class,
)
from ase.outputs import Properties, all_outputs

from ase_bayesmlip.graph import AtomicGraph
from ase_bayesmlip.prediction import result_names, to_results
from ase_bayesmlip.serving.runtime import LoadedModel, load_model
from ase_bayesmlip.serving.served_calculator import ServedCalculator
from ase_bayesmlip.structures.checks import check_distances, check_structure
from ase_bayesmlip.structures.neighbors import (
    NeighborList,
    atomic_graph,
    find_lone_atoms,
    has_lattice,
)

MEAN = ["energy", "free_energy", "energies", "forces", "stress"]
FORCE_SPREAD = ["forces_var", "forces_uncertainty", "forces_std"]
STRESS_SPREAD = ["stress_var", "stress_cov"]
ENSEMBLE = ["energy_ensemble", "forces_ensemble", "stress_ensemble"]

# What takes work that a step may leave out, see `ModelCard.lazy`.
EXTRA = {"forces_cov", "forces_cov_epistemic", *FORCE_SPREAD, *STRESS_SPREAD, *ENSEMBLE}
MATRICES = EXTRA | {"forces_cov_aleatoric"}

# What the model sees of a structure: no other change needs a new evaluation.
SEEN = ["positions", "numbers", "cell", "pbc"]


class BayesianCalculator(ServedCalculator):
    """Energy, forces and stress of a served model, with their variances.

    Parameters
    ----------
    model : path or LoadedModel
        A file written by ``bayesmlip serve``.
    device : "cpu", "cuda" or None
        None is the CPU, or for a loaded model the device it is on.
    dtype : "float32", "float64" or None
        None takes the precision of the training. Use ``"float64"`` for long NVE runs.
    backend : "auto", "torchscript" or "aoti"
        "auto" takes the program compiled for this machine where the file has one, see
        `load_model`; ``calc.model.backend`` says which it is.
    skin : float, Å
        Neighbours are searched again when an atom has moved by half of it.
    return_members : bool
        Whether `results` holds ``energy_ensemble``, ``forces_ensemble`` and ``stress_ensemble``.
    lazy : bool
        Leave out of `results` what takes work of its own until it is asked for by name: the
        covariances of forces and stress of a last-layer Laplace posterior, the matrices of an
        evidential one. Variances of energies, and of an evidential posterior
        ``forces_std_epistemic``, stay. Other posteriors, and evidential ones when compiled, compute
        everything at once.

    Attributes
    ----------
    card : ModelCard
    implemented_properties : list of str
        What this file gave when it was loaded. A quantity that its posterior cannot know, or that
        its program is too old for, is not in the list, and asking for it raises
        `PropertyNotImplementedError`.
    lone_atoms : tuple of int
        Atoms without a neighbour within the cutoff in the structure that `results` belongs to.
        The model knows of such an atom nothing but its element: all members agree on a force of
        zero, so that no uncertainty tells of it. Its energy is that of its element if
        ``card.anchored``, else neither that nor its variance is known.

    Notes
    -----
    On the CPU the process keeps the memory of one step for the next, unless glibc's own variables
    say otherwise (`nn.allocator.keep_freed_memory`).

    Results are float64 arrays of their own, in eV and Å; docs/results.md lists keys, shapes and
    units. `export_properties` passes on the names that ASE knows, so trajectories, databases
    and drivers that ask for "all properties" keep working.
    """

    def __init__(
        self,
        model: str | Path | LoadedModel,
        device: str | None = None,
        dtype: str | None = None,
        skin: float = 0.5,
        return_members: bool = False,
        lazy: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if isinstance(model, LoadedModel):
            elsewhere = device is not None and model.device != torch.device(device)
            if (
                elsewhere
                or dtype not in (None, model.dtype)
                or backend not in ("auto", model.backend)
            ):
                raise ValueError(
                    f"the loaded model is on {model.device} in {model.dtype} with backend "
                    f"{model.backend}; load it with the device, dtype and backend you want, or "
                    "give the path of the file"
                )
        else:
            model = load_model(model, device or "cpu", dtype, backend)
        self._configure(model, skin, return_members, lazy)

    def _configure(self, model: LoadedModel, skin: float, return_members: bool, lazy: bool) -> None:
        for name, value in (("return_members", return_members), ("lazy", lazy)):
            if not isinstance(value, bool | np.bool_):
                raise TypeError(f"{name} is {value!r}; it must be True or False")
        if isinstance(skin, bool) or not isinstance(skin, int | float | np.number):
            raise TypeError(f"skin is {skin!r}; it must be a number of Å, such as 0.5")
        self._neighbors = NeighborList(model.card.cutoff, skin)
        self.model = model
        self.implemented_properties = _implemented(model, return_members)
        self.lone_atoms: tuple[int, ...] = ()
        self.parameters.update(
            model=model.path,
            device=str(model.device),
            dtype=model.dtype,
            backend=model.backend,
            skin=float(skin),
            return_members=bool(return_members),
            lazy=bool(lazy),
        )

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Evaluate the model once and fill `results` with everything it gives.

        Raises
        ------
        ValueError
            Before the model runs, if the structure is empty, holds an element the model does not
            know, has non-finite positions, overlapping atoms, or a periodic cell without volume.
        """
        super().calculate(atoms, properties, system_changes)
        self.results = {}  # a structure that is refused must not keep the numbers of the last one
        self.lone_atoms = ()
        graph = self._checked_graph(self.atoms, self._neighbors)
        stress = has_lattice(self.atoms)
        # Evidential networks know the trace without the matrices, others do not.
        needed = MATRICES if self.card.evidential else MATRICES | {"forces_std_epistemic"}
        lazy = self.lazy and self.model.lazy and needed.isdisjoint(properties)
        prediction = self.model.predict(
            [graph],
            stress=stress,
            members=self.return_members and not lazy,
            lazy=lazy,
        )
        self.results = to_results(prediction, [len(self.atoms)])[0]
        if lazy:  # without its epistemic part a total would be too small
            for name in EXTRA & self.results.keys():
                del self.results[name]
        lone = find_lone_atoms(graph.edge_index.numpy(), len(self.atoms))
        self.lone_atoms = tuple(lone.tolist())

    def evaluate(self, frames: Sequence[Atoms], batch_size: int = 32) -> list[dict[str, Any]]:
        """Results of many structures, evaluated `batch_size` at a time; the cache is untouched.

        Returns
        -------
        list of dict
            One per frame, with the keys of `results`.

        Raises
        ------
        ValueError
            As `calculate`; the message names the frame.
        TypeError
            For a single structure instead of a list.
        """
        if isinstance(frames, Atoms):
            raise TypeError("evaluate takes a list of structures; for one, give [atoms]")
        results: list[dict[str, Any]] = []
        for start in range(0, len(frames), batch_size):
            chunk = list(frames[start : start + batch_size])
            graphs = [self._numbered_graph(atoms, start + k) for k, atoms in enumerate(chunk)]
            stress = any(has_lattice(atoms) for atoms in chunk)
            prediction = self.model.predict(graphs, stress=stress, members=self.return_members)
            found = to_results(prediction, [len(atoms) for atoms in chunk])
            for atoms, result in zip(chunk, found, strict=True):
                if not has_lattice(atoms):
                    for name in ("stress", *STRESS_SPREAD, "stress_ensemble"):
                        result.pop(name, None)
            results += found
        return results

    def _numbered_graph(self, atoms: Atoms, number: int) -> AtomicGraph:
        try:
            return self._checked_graph(atoms, NeighborList(self.card.cutoff, skin=0.0))
        except ValueError as error:
            raise ValueError(f"frame {number}: {error}") from error

    def _checked_graph(self, atoms: Atoms, neighbors: NeighborList) -> AtomicGraph:
        """What the model is asked about, or a `ValueError` if it cannot be asked."""
        check_structure(atoms, self.card)
        edge_index, edge_shift, squared_lengths = neighbors.measured(atoms)
        check_distances(edge_index, squared_lengths)
        return atomic_graph(atoms, (edge_index, edge_shift))

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """Which of `SEEN` changed since the last evaluation.

        As ASE's own, which compares arrays that are equal with a tolerance too, and slowly.
        """
        last = self.atoms
        if last is None:
            return list(all_changes)
        same = {
            "positions": _equal(last.positions, atoms.positions, tol),
            "numbers": _equal(last.numbers, atoms.numbers, 0.0),
            "cell": _equal(last.cell.array, atoms.cell.array, tol),
            "pbc": _equal(last.pbc, atoms.pbc, 0.0),
        }
        return [name for name in SEEN if not same[name]]

    def get_property(
        self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        """A result by name, calculated if necessary.

        Raises
        ------
        PropertyNotImplementedError
            If this file cannot give it; the message says what the file holds.
        """
        if name not in self.implemented_properties:
            card = self.card
            raise PropertyNotImplementedError(
                f"{name} is not available: the file holds a posterior of kind '{card.kind}' with "
                f"{card.n_members} member(s), epistemic part: {_yes(card.has_epistemic)}, "
                f"aleatoric energy: {_yes(card.has_aleatoric_energy)}, aleatoric forces: "
                f"{_yes(card.has_aleatoric_forces)}, members returned: "
                f"{_yes(self.return_members)}. Available: {', '.join(self.implemented_properties)}"
            )
        return super().get_property(name, atoms, allow_calculation)

    def export_properties(self) -> Any:
        """The results under names that ASE knows; extra keys would break `Atoms.get_properties`."""
        return Properties({k: v for k, v in self.results.items() if k in all_outputs})

    def attach_uncertainty(self, atoms: Atoms, prefix: str = "") -> None:
        """Copy variances and standard deviations into `atoms.info` and `atoms.arrays`.

        They then survive extended XYZ, which drops results that ASE does not know. Covariances of
        each atom are flattened to nine columns.

        Parameters
        ----------
        atoms : Atoms
            A structure with the same atoms as the last evaluation.
        prefix : str
            Put before every name.

        Raises
        ------
        ValueError
            If nothing was evaluated yet, or the number of atoms differs.
        """
        if not self.results:
            raise ValueError("nothing to attach: evaluate first, e.g. atoms.get_forces()")
        if len(self.results["forces"]) != len(atoms):
            raise ValueError(
                f"the last evaluation had {len(self.results['forces'])} atoms, these are "
                f"{len(atoms)}"
            )
        for name, value in self.results.items():
            if name in MEAN or name in ENSEMBLE:
                continue
            if name.startswith(("forces", "energies")):
                per_atom = value.reshape(len(atoms), -1) if value.ndim > 2 else value
                atoms.arrays[prefix + name] = per_atom.copy()
            else:
                atoms.info[prefix + name] = np.copy(value) if np.ndim(value) else value


def _implemented(model: LoadedModel, return_members: bool) -> list[str]:
    names = result_names(model.fields)
    return [name for name in names if return_members or name not in ENSEMBLE]


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"


def _equal(before: np.ndarray, now: np.ndarray, tol: float) -> bool:
    if before.shape != now.shape:
        return False
    # Most often nothing has changed, and comparing bytes is the fastest way to see it.
    if before.tobytes() == now.tobytes() or (before == now).all():
        return True
    with np.errstate(invalid="ignore"):
        return tol > 0.0 and bool(np.abs(before - now).max() <= tol)


if "bayesmlip" not in external_calculators:  # for ase.calculators.calculator.get_calculator_class
    register_calculator_class("bayesmlip", BayesianCalculator)
