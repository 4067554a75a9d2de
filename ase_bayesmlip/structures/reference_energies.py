"""Energies of isolated atoms: from a file, from the configuration, or fitted to the frames."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from ase_bayesmlip.config import DataConfig
from ase_bayesmlip.structures.labels import checked_number, energy_of, needed_label
from ase_bayesmlip.structures.reading import (
    ISOLATED,
    DataError,
    is_isolated_atom,
    read_structures,
    split_slice,
)

if TYPE_CHECKING:
    from ase_bayesmlip.structures.labelled import LabelledFrame

# Two entries of one element may differ by this, eV: the round-off of the files they come from.
SAME_ENERGY = 1e-6

# Images of an isolated atom in a periodic box are at least this far apart, Å.
MIN_BOX = 6.0


def reference_energies(data: DataConfig, frames: Sequence[LabelledFrame]) -> dict[int, float]:
    """Energy of the isolated atom by atomic number, eV, from a file, a mapping or a fit.

    Raises
    ------
    DataError
        If an element of the frames has none, or two that differ.
    """
    elements = sorted({int(z) for frame in frames for z in frame.atoms.numbers})
    given = data.reference_energies
    if given == "fit":
        return _fitted_references(frames, elements)
    energies = _given(given) if isinstance(given, dict) else _from_file(given, data.keys.energy)
    missing = [chemical_symbols[z] for z in elements if z not in energies]
    if missing:
        where = "" if isinstance(given, dict) else f"{given}: "
        raise DataError(
            f"{where}no reference energy for {', '.join(missing)}; add it, or use 'fit'"
        )
    return {z: energies[z] for z in elements}


def _given(energies: dict[str, float]) -> dict[int, float]:
    found = {}
    for symbol, value in energies.items():
        if symbol not in chemical_symbols[1:]:
            raise DataError(
                f"data.reference_energies: {symbol!r} is no element; use chemical symbols"
            )
        key = f"reference_energies.{symbol}"
        found[chemical_symbols.index(symbol)] = checked_number(value, key, "data")
    return found


def _from_file(path: str, key: str) -> dict[int, float]:
    """Energies of the isolated atoms of a file, which may hold frames of other kinds beside them.

    Those of ``config_type=IsolatedAtom`` if there are any, else single atoms that are not periodic:
    the energy of a crystal of one atom is not that of the atom.
    """
    name, index = split_slice(path)
    found: dict[int, tuple[float, str]] = {}
    for number, atoms in _isolated(read_structures(name, index), str(name)):
        source = f"{name}#{number}"
        value = needed_label(atoms, key, "energy", source)
        energy = energy_of(atoms, value, key, source)
        z = int(atoms.numbers[0])
        other, where = found.setdefault(z, (energy, source))
        if abs(energy - other) > SAME_ENERGY:
            raise DataError(
                f"{source}: the energy of an isolated {chemical_symbols[z]} is {energy} eV, but "
                f"{other} eV in {where}; remove one of them"
            )
    return {z: energy for z, (energy, _) in found.items()}


def _isolated(frames: list[tuple[int, Atoms]], path: str) -> list[tuple[int, Atoms]]:
    named = [item for item in frames if is_isolated_atom(item[1], f"{path}#{item[0]}")]
    for number, atoms in named:
        if _image_distance(atoms) < MIN_BOX:
            raise DataError(
                f"{path}#{number}: config_type is {ISOLATED}, but its periodic images are "
                f"{_image_distance(atoms):.3g} Å apart: a crystal; give it a box of {MIN_BOX:g} Å "
                "or more, or another config_type"
            )
    return named or [item for item in frames if len(item[1]) == 1 and not item[1].pbc.any()]


def _image_distance(atoms: Atoms) -> float:
    """Distance of a lone atom to its nearest image, Å; infinite without periodic directions."""
    sides = [(-1, 0, 1) if periodic else (0,) for periodic in atoms.pbc]
    shifts = [shift for shift in itertools.product(*sides) if any(shift)]
    return min(
        (float(np.linalg.norm(shift @ atoms.cell.array)) for shift in shifts), default=np.inf
    )


def _fitted_references(frames: Sequence[LabelledFrame], elements: list[int]) -> dict[int, float]:
    counts = np.array([[np.sum(f.atoms.numbers == z) for z in elements] for f in frames])
    energies = np.array([frame.energy for frame in frames])
    # The minimum-norm solution: compositions that never vary cannot tell elements apart.
    solution = np.linalg.lstsq(counts.astype(np.float64), energies, rcond=None)[0]
    return {z: float(e) for z, e in zip(elements, solution, strict=True)}
