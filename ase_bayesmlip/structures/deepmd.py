"""Folders of DeePMD-kit, ``deepmd/npy`` and ``deepmd/raw``, read by dpdata: an optional package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from ase_bayesmlip.config import KeysConfig
from ase_bayesmlip.structures.reading import DataError

# Labels are named after their files: energy and virial in eV, forces in eV/Å.
DEEPMD_KEYS = KeysConfig("energy.npy", "force.npy", virial="virial.npy")


def is_deepmd(path: Path) -> bool:
    """Whether a folder is one system of DeePMD-kit."""
    return (path / "type.raw").is_file()


def read_deepmd(path: Path, index: slice) -> list[tuple[int, Atoms]]:
    """The chosen frames with their labels under `DEEPMD_KEYS`, each with its number in the folder.

    DeePMD-kit knows a structure as periodic in three directions, or in none (a file ``nopbc``).

    Raises
    ------
    DataError
        Without dpdata, for atoms whose elements the folder does not say, and for what dpdata
        refuses.
    """
    try:
        import dpdata
    except ImportError as error:
        raise DataError(
            f"{path} is a folder of DeePMD-kit, which the package dpdata reads: "
            'pip install "ase-bayesmlip[deepmd]"'
        ) from error
    _check_elements(path)
    kind = dpdata.LabeledSystem if any(path.rglob("energy.*")) else dpdata.System
    try:
        data = kind(str(path), fmt="deepmd/npy" if any(path.glob("set.*")) else "deepmd/raw").data
    except Exception as error:  # whatever NumPy meets first
        raise DataError(
            f"{path}: dpdata cannot read it ({type(error).__name__}: {error})"
        ) from error
    symbols = [data["atom_names"][k] for k in data["atom_types"]]
    frames = []
    for number in range(len(data["coords"]))[index]:
        cell = None if data.get("nopbc", False) else _double(data["cells"][number])
        atoms = Atoms(symbols, _double(data["coords"][number]), cell=cell, pbc=cell is not None)
        if "energies" in data:
            atoms.info["energy.npy"] = float(data["energies"][number])
        if "forces" in data:
            atoms.arrays["force.npy"] = _double(data["forces"][number])
        if "virials" in data:
            atoms.info["virial.npy"] = _double(data["virials"][number])
        frames.append((number, atoms))
    return frames


def _double(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)


def _check_elements(path: Path) -> None:
    """Refuse folders that dpdata reads with no elements, or with wrong ones and no word."""
    if any(path.glob("set.*/real_atom_types.npy")):
        raise DataError(
            f"{path} is of DeePMD-kit's mixed type, which holds several formulas; write them as "
            "folders of one formula each: dpdata.MultiSystems().load_systems_from_file("
            f"'{path}', fmt='deepmd/npy/mixed').to('deepmd/npy', 'FOLDER')"
        )
    names = path / "type_map.raw"
    symbols = names.read_text(encoding="utf-8", errors="replace").split() if names.is_file() else []
    unknown = [name for name in symbols if name not in chemical_symbols[1:]]
    if unknown or not symbols:
        what = f"names {unknown[0]!r}, which is no element" if unknown else "is not there"
        raise DataError(
            f"{names} {what}; write into it the chemical symbol of each type that type.raw counts, "
            "from 0 on"
        )
