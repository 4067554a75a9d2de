"""What a model can be asked about: checks of a structure before a model runs or is built.

`check_geometry` and `check_overlaps` need no model, and no torch: the readers of labelled files and
the reference calculators use them, too.
"""

from __future__ import annotations

import math

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from scipy.spatial import cKDTree

from ase_bayesmlip.card import ModelCard

# Two atoms closer than this, Å, are taken for a mistake in the input: nuclei of a bond are never
# so close, and no training set covers it.
MIN_DISTANCE = 0.2

# Lattice planes closer than this, Å, are those of a cell without volume.
MIN_HEIGHT = 1e-3


def check_structure(atoms: Atoms, card: ModelCard) -> None:
    """Raise `ValueError` for a structure that the model cannot be asked about."""
    check_geometry(atoms)
    unknown = sorted(set(atoms.numbers.tolist()) - set(card.atomic_numbers))
    if unknown:
        raise ValueError(
            f"the model does not know {', '.join(chemical_symbols[z] for z in unknown)}; it was "
            f"trained on {', '.join(chemical_symbols[z] for z in card.atomic_numbers)}"
        )


def check_geometry(atoms: Atoms) -> None:
    """Raise `ValueError` for a structure that no model and no reference can be asked about.

    No atoms, a number that is no element's, positions or a cell that are not finite, a cell without
    volume. Overlapping atoms are the matter of `check_distances` and `check_overlaps`.
    """
    if len(atoms) == 0:
        raise ValueError("the structure has no atoms")
    numbers = atoms.numbers
    if numbers.min() < 1 or numbers.max() >= len(chemical_symbols):
        wrong = (numbers < 1) | (numbers >= len(chemical_symbols))
        raise ValueError(
            f"atoms {_some(wrong)} have the atomic number {numbers[wrong][0]}, which is no "
            f"element's; allowed are 1 to {len(chemical_symbols) - 1} (a ghost atom 'X' has 0)"
        )
    finite = np.isfinite(atoms.positions)
    if not finite.all():
        raise ValueError(f"positions of atoms {_some(~finite.all(axis=1))} are not finite")
    if not np.isfinite(atoms.cell.array).all():
        raise ValueError(f"the cell is not finite: {atoms.cell.array.tolist()}")
    _check_volume(atoms)


def _some(chosen: np.ndarray) -> list[int]:
    """The first of the chosen atoms."""
    return [int(i) for i in np.flatnonzero(chosen)[:10]]


def _check_volume(atoms: Atoms) -> None:
    cell, pbc = atoms.cell.array, atoms.pbc
    given = cell.any(axis=1)
    if not pbc.any() and not given.all():
        return  # an unfinished cell of an open structure plays no part
    if given[pbc].all() and _has_volume(cell[given].tolist()):
        return
    where = "along the periodic directions" if pbc.any() else "(its vectors lie in a plane)"
    raise ValueError(
        f"pbc is {pbc.tolist()}, but the cell has no volume {where}: {cell.tolist()}; give the "
        "cell (atoms.cell; in extended XYZ, Lattice=), or pbc=False without a cell"
    )


def _has_volume(vectors: list[list[float]]) -> bool:
    """Whether one, two or three vectors span a length, an area or a volume."""
    # In plain numbers, which are faster than linear algebra for nine of them.
    lengths = [math.hypot(*vector) for vector in vectors]
    size = lengths[0]
    if len(vectors) > 1:
        a, b = vectors[:2]
        normal = (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])
        size = math.hypot(*normal)
        if len(vectors) == 3:
            size = abs(sum(x * y for x, y in zip(vectors[2], normal, strict=True)))
    # Round-off leaves a volume where long vectors lie in a plane.
    return size >= max(1e-6, 1e-14 * math.prod(lengths))


def check_distances(edge_index: np.ndarray, squared_lengths: np.ndarray) -> None:
    """Raise `ValueError` if two atoms overlap; lengths are in Å."""
    if squared_lengths.size and squared_lengths.min() < MIN_DISTANCE**2:
        k = int(squared_lengths.argmin())
        i, j = edge_index[:, k]
        raise ValueError(_overlap(int(i), int(j), math.sqrt(squared_lengths[k])))


def check_overlaps(atoms: Atoms) -> None:
    """Raise `ValueError` if two atoms, or an atom and an image, overlap, without neighbours.

    The structure must have passed `check_geometry`. Costs a fraction of a millisecond.
    """
    points, owners = _with_near_images(atoms)
    if len(points) < 2:
        return
    # Of each atom the nearest other point; of points at one place, any is the first.
    distances, indices = cKDTree(points).query(points[: len(atoms)], k=2)
    i = int(distances[:, 1].argmin())
    if distances[i, 1] >= MIN_DISTANCE:
        return
    j = int(indices[i, 1] if indices[i, 1] != i else indices[i, 0])
    pair = sorted((i, int(owners[j])))
    text = _overlap(pair[0], pair[1], float(distances[i, 1]))
    if len(atoms) > 2 and not np.ptp(atoms.positions, axis=0).any():
        text += "; all atoms are at one place: were positions given (in extended XYZ, a column pos)"
    raise ValueError(text)


def _overlap(i: int, j: int, distance: float) -> str:
    who = f"atoms {i} and {j} overlap: they are" if i != j else f"images of atom {i} overlap: it is"
    what = "apart" if i != j else "from its own periodic image"
    return f"{who} {distance:.3f} Å {what} (the smallest distance allowed is {MIN_DISTANCE} Å)"


def _with_near_images(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Positions wrapped into the cell, then those images within `MIN_DISTANCE` of its faces.

    Returns
    -------
    points : ndarray, (n_points, 3), Å
    owners : ndarray of int, (n_points,)
        Atom that each is an image of.
    """
    owners = np.arange(len(atoms))
    if not atoms.pbc.any():
        return atoms.positions, owners
    cell = atoms.cell.complete().array
    inverse = np.linalg.inv(cell)
    scaled = atoms.positions @ inverse
    scaled[:, atoms.pbc] %= 1.0
    # Distance of the planes that two of the vectors span.
    heights = 1.0 / np.linalg.norm(inverse, axis=0)
    for axis in np.flatnonzero(atoms.pbc):
        if heights[axis] < MIN_HEIGHT:
            raise ValueError(
                f"lattice planes of the cell are {heights[axis]:.1e} Å apart along direction "
                f"{axis}: {cell.tolist()}; give a cell that is less oblique"
            )
        margin = MIN_DISTANCE / heights[axis]
        found = [scaled]
        for shift in range(1, math.ceil(margin) + 1):
            for sign in (shift, -shift):
                place = scaled[:, axis] + sign
                near = np.flatnonzero(place < 1.0 + margin if sign > 0 else place > -margin)
                if len(near):
                    image = scaled[near]
                    image[:, axis] += sign
                    found.append(image)
                    owners = np.concatenate([owners, owners[near]])
        scaled = np.concatenate(found)
    return scaled @ cell, owners
