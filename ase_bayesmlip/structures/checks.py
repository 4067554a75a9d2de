"""What a model can be asked about: checks of a structure before the model runs."""

from __future__ import annotations

import math

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from ase_bayesmlip.card import ModelCard
from ase_bayesmlip.structures.neighbors import complete_cell

# Two atoms closer than this, Å, are taken for a mistake in the input: nuclei of a bond are never
# so close, and no training set covers it.
MIN_DISTANCE = 0.2


def check_structure(atoms: Atoms, card: ModelCard) -> None:
    """Raise `ValueError` for a structure that the model cannot be asked about."""
    if len(atoms) == 0:
        raise ValueError("the structure has no atoms")
    unknown = sorted(set(atoms.numbers.tolist()) - set(card.atomic_numbers))
    if unknown:
        raise ValueError(
            f"the model does not know {', '.join(chemical_symbols[z] for z in unknown)}; it was "
            f"trained on {', '.join(chemical_symbols[z] for z in card.atomic_numbers)}"
        )
    finite = np.isfinite(atoms.positions)
    if not finite.all():
        bad = np.flatnonzero(~finite.all(axis=1))
        raise ValueError(f"positions of atoms {bad[:10].tolist()} are not finite")
    if not np.isfinite(atoms.cell.array).all():
        raise ValueError("the cell is not finite")
    if atoms.pbc.any() and not _has_volume(atoms):
        raise ValueError(
            f"pbc is {atoms.pbc.tolist()}, but the cell has no volume along the periodic "
            f"directions: {atoms.cell.array.tolist()}; set atoms.cell or pbc=False"
        )


def _has_volume(atoms: Atoms) -> bool:
    if not atoms.cell.array[atoms.pbc].any(axis=1).all():
        return False
    # In plain numbers, which are faster than linear algebra for nine of them.
    a, b, c = complete_cell(atoms).tolist()
    normal = (b[1] * c[2] - b[2] * c[1], b[2] * c[0] - b[0] * c[2], b[0] * c[1] - b[1] * c[0])
    volume = abs(sum(x * y for x, y in zip(a, normal, strict=True)))
    # Round-off leaves a volume where long vectors lie in a plane.
    return volume >= max(1e-6, 1e-14 * math.hypot(*a) * math.hypot(*b) * math.hypot(*c))


def check_distances(edge_index: np.ndarray, squared_lengths: np.ndarray) -> None:
    """Raise `ValueError` if two atoms overlap; lengths are in Å."""
    if squared_lengths.size and squared_lengths.min() < MIN_DISTANCE**2:
        k = int(squared_lengths.argmin())
        i, j = edge_index[:, k]
        raise ValueError(
            f"atoms {i} and {j} overlap: they are {np.sqrt(squared_lengths[k]):.3f} Å apart (the "
            f"smallest distance allowed is {MIN_DISTANCE} Å)"
        )
