"""Labelled frames of one molecule in a `.npz` file, as rMD17 and MD22 come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms

from ase_bayesmlip.structures.labels import checked_array, energy_of, forces_of
from ase_bayesmlip.structures.reading import DataError, check_is_file

# Array names of the two layouts in use: (numbers, positions, energies, forces).
NPZ_LAYOUTS = {
    "rMD17": ("nuclear_charges", "coords", "energies", "forces"),
    "MD17/MD22": ("z", "R", "E", "F"),
}


def read_npz(path: Path, index: slice) -> list[tuple[str, Atoms, float, np.ndarray]]:
    """The chosen frames: ``file#frame``, structure, energy and forces in the units of the file.

    Raises
    ------
    FileNotFoundError
    DataError
        For an unreadable file, an unknown layout, shapes that do not fit and broken labels.
    """
    names, (numbers, positions, energies, forces) = _arrays(path)
    n_frames = len(positions) if positions.ndim else 0
    shape = (n_frames, len(numbers) if numbers.ndim else 0, 3)
    if positions.shape != shape or forces.shape != shape or energies.size != n_frames:
        raise DataError(
            f"{path}: shapes do not fit together: {names[1]} {positions.shape}, "
            f"{names[2]} {energies.shape}, {names[3]} {forces.shape} for {shape[1]} atoms"
        )
    if numbers.dtype.kind not in "iu" or numbers.ndim != 1:
        raise DataError(f"{path}: '{names[0]}' must be one list of atomic numbers: {numbers!r:.80}")
    frames = []
    for number in range(n_frames)[index]:
        source = f"{path}#{number}"
        atoms = Atoms(numbers, checked_array(positions[number], shape[1:], names[1], source))
        energy = energy_of(atoms, energies.reshape(-1)[number], names[2], source)
        frames.append((source, atoms, energy, forces_of(atoms, forces[number], names[3], source)))
    return frames


def _arrays(path: Path) -> tuple[tuple[str, ...], tuple[np.ndarray, ...]]:
    """Names and arrays of the layout that a file has."""
    check_is_file(path)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            known = {name for names in NPZ_LAYOUTS.values() for name in names}
            content = {name: archive[name] for name in archive.files if name in known}
            present = archive.files
    except Exception as error:  # damaged archives raise whatever zip, zlib or numpy meet first
        raise DataError(f"{path} is not a readable .npz file ({error})") from error
    for names in NPZ_LAYOUTS.values():
        if all(name in content for name in names):
            return names, tuple(np.asarray(content[name]) for name in names)
    layouts = "; ".join(f"{k}: {', '.join(v)}" for k, v in NPZ_LAYOUTS.items())
    raise DataError(f"{path} lacks arrays of a known layout ({layouts}); it has {present}")
