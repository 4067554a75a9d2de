"""Whether a compiled program says what the TorchScript program of the same file says.

Asked when a program is compiled and again when it is loaded, on structures made from the card that
differ in what programs may trip over: how many lattice vectors there are and which, their
obliqueness and hand, and whether a structure is alone or in a batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers
from torch import Tensor

from ase_bayesmlip.card import ModelCard
from ase_bayesmlip.graph import AtomicGraph, batch_graphs
from ase_bayesmlip.prediction import Prediction
from ase_bayesmlip.structures.neighbors import graph_of

# Largest deviation from the reference in float64, relative to the largest value of a field. What
# is left in float64 is the error of the radial tables.
TOLERANCE = {"float32": 1e-4, "float64": 3e-6}

# The spread of members is a small difference of large numbers: it has fewer digits than they, and
# so has the distance of features along directions in which training hardly varied.
ENLARGED = ("epistemic", "energy_shares", "feature_distance")
SPREAD_TOLERANCE = {"float32": 5e-3, "float64": 1e-4}

# In units of the cutoff: a crystal of three atoms of which no two, images included, are closer
# than 0.47. Its sublattices make slabs, wires and a molecule.
LATTICE = np.array([[0.95, 0.10, -0.05], [0.25, 0.90, 0.15], [-0.10, 0.30, 1.00]])
ATOMS = np.array([[0.02, 0.05, 0.01], [0.48, 0.55, 0.13], [0.17, 0.40, 0.58]])

Evaluate = Callable[[AtomicGraph], Prediction]


def trial_structures(card: ModelCard) -> list[Atoms]:
    """A molecule, wires, slabs and a crystal of the elements and the cutoff of a card.

    Lattice vectors that are not there are zero; every other structure is left-handed.
    """
    elements = itertools.cycle(card.atomic_numbers)
    frames = []
    for number, rows in enumerate(itertools.product((False, True), repeat=3)):
        cell = card.cutoff * LATTICE * np.array(rows)[:, None]
        positions = card.cutoff * ATOMS @ LATTICE
        if number % 2:
            cell, positions = cell * [1.0, 1.0, -1.0], positions * [1.0, 1.0, -1.0]
        numbers = list(itertools.islice(elements, len(positions)))
        frames.append(Atoms(numbers, positions, cell=cell, pbc=rows))
    return frames


def trial_graphs(card: ModelCard) -> list[AtomicGraph]:
    """The same with their neighbours, on the CPU."""
    return [graph_of(atoms, card.cutoff) for atoms in trial_structures(card)]


def disagreement(card: ModelCard, run: Evaluate, reference: Evaluate) -> dict[str, float]:
    """Largest deviation of each field over `trial_graphs`, see `deviations`.

    `run` takes them one by one and all at once, the reference all at once.
    """
    graphs = trial_graphs(card)
    batch = batch_graphs(graphs)
    expected = reference(batch)
    found = [run(batch), _joined([run(graph) for graph in graphs])]
    return largest(deviations(one, expected, batch, card) for one in found)


def deviations(
    found: Prediction, expected: Prediction, graph: AtomicGraph, card: ModelCard
) -> dict[str, float]:
    """Largest deviation of each field that both know, relative to its largest value.

    Reference energies, beside which everything is small, are left out.
    """
    references = _reference_energies(card)
    of_atoms = references[graph.atomic_numbers]
    zeros = torch.zeros(graph.n_graphs, dtype=torch.float64)
    of_graphs = zeros.index_add(0, graph.batch, of_atoms)
    offsets = {"energy": of_graphs, "energy_members": of_graphs, "atomic_energies": of_atoms}
    worst = {}
    for name, value in expected._asdict().items():
        other = getattr(found, name)
        if value is None or other is None:  # the file is from before there was such a field
            continue
        value = value.detach().to("cpu", torch.float64)
        deviation = (other.detach().to("cpu", torch.float64) - value).abs().max()
        size = (value - offsets.get(name, 0.0)).abs().max().clamp(min=1e-12)
        worst[name] = float(deviation / size)
    return worst


def largest(found: Iterable[dict[str, float]]) -> dict[str, float]:
    """The largest of each field."""
    worst: dict[str, float] = {}
    for one in found:
        for name, deviation in one.items():
            # np.maximum keeps NaN, which no tolerance allows.
            worst[name] = float(np.maximum(deviation, worst.get(name, 0.0)))
    return worst


def excess(worst: dict[str, float], dtype: str) -> str | None:
    """The first field that deviates by more than it may, in words; None if none does."""
    for name, deviation in worst.items():
        allowed = (SPREAD_TOLERANCE if name.endswith(ENLARGED) else TOLERANCE)[dtype]
        # Written so that NaN is too much.
        if not deviation <= allowed:
            return f"{name} by {deviation:.1e}, relative (allowed {allowed:.1e})"
    return None


def _reference_energies(card: ModelCard) -> Tensor:
    table = torch.zeros(119, dtype=torch.float64)
    for symbol, energy in card.reference_energies.items():
        table[atomic_numbers[symbol]] = energy
    return table


def _joined(alone: list[Prediction]) -> Prediction:
    """Predictions of single structures as that of a batch."""
    fields: dict[str, Tensor | None] = {}
    for name in Prediction._fields:
        parts: Collection[Tensor | None] = [getattr(one, name) for one in alone]
        known = [part for part in parts if part is not None]
        axis = 1 if name.endswith("_members") else 0
        fields[name] = torch.cat(known, dim=axis) if known else None
    return Prediction(**fields)  # type: ignore[arg-type]
