"""Labelled frames: reading, checking, splitting and atomic reference energies."""

from __future__ import annotations

import hashlib
import lzma
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms, units
from ase.data import chemical_symbols
from ase.io.formats import UnknownFileTypeError, open_with_compression

from ase_bayesmlip.config import DataConfig, KeysConfig

ENERGY_UNITS = {"eV": 1.0, "kcal/mol": units.kcal / units.mol}

# Array names of the two .npz layouts in use: (numbers, positions, energies, forces).
NPZ_LAYOUTS = {
    "rMD17": ("nuclear_charges", "coords", "energies", "forces"),
    "MD17/MD22": ("z", "R", "E", "F"),
}


class DataError(ValueError):
    """Labelled frames that cannot be used; the message names file, frame and key."""


@dataclass(frozen=True)
class LabelledFrame:
    """A structure with its reference labels.

    Attributes
    ----------
    atoms : Atoms
    energy : float, eV
    forces : ndarray, (n_atoms, 3), eV/Å
    stress : ndarray or None, (3, 3), eV/Å³
    source : str
        ``file#frame``, for messages.
    """

    atoms: Atoms
    energy: float
    forces: np.ndarray
    stress: np.ndarray | None
    source: str


def read_frames(
    paths: str | Sequence[str], keys: KeysConfig | None = None, npz_units: str = "kcal/mol"
) -> list[LabelledFrame]:
    """Read and check labelled frames from any format ASE reads, or from ``.npz``.

    A path may end in an ASE slice, ``train.extxyz@0:450``. Isolated atoms
    (``config_type=IsolatedAtom``) are left out: they carry reference energies, not training data.

    Raises
    ------
    FileNotFoundError
    DataError
        For missing or non-finite labels and wrong shapes; names file, frame and key.
    """
    keys = keys or KeysConfig()
    frames: list[LabelledFrame] = []
    for path in [paths] if isinstance(paths, str) else paths:
        name, index = split_slice(path)
        if name.suffix == ".npz":
            frames += _read_npz(name, index, ENERGY_UNITS[npz_units])
            continue
        for number, atoms in read_structures(name, index):
            if atoms.info.get("config_type") != "IsolatedAtom":
                frames.append(labelled_frame(atoms, keys, f"{name}#{number}"))
    if not frames:
        raise DataError(f"no labelled frames in {paths}")
    return frames


def split_slice(path: str) -> tuple[Path, slice]:
    """``file@0:450`` to the path and its slice; without ``@`` all frames."""
    name, _, text = str(path).rpartition("@")
    if not name or Path(path).exists():
        return Path(path), slice(None)
    try:
        parts = [int(part) if part else None for part in text.split(":")]
        if len(parts) == 1 and parts[0] is not None:
            stop = parts[0] + 1 if parts[0] != -1 else None
            return Path(name), slice(parts[0], stop)
        return Path(name), slice(*parts)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: '{text}' is no slice such as 0:450 or ::2") from error


def read_structures(path: Path, index: slice) -> list[tuple[int, Atoms]]:
    """The chosen frames of a file that ASE reads, each with its number in the file.

    Raises
    ------
    FileNotFoundError
    DataError
        If ASE cannot read the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no data file at {path}")
    try:
        with _decompressed(path) as plain:
            frames = ase.io.read(plain, index=":", do_not_split_by_at_sign=True)
        return list(enumerate(frames))[index]
    except (
        UnknownFileTypeError,
        StopIteration,
        IndexError,
        KeyError,
        ValueError,
        OSError,
        EOFError,
        lzma.LZMAError,
    ) as error:
        raise DataError(f"{path}: ASE cannot read it ({type(error).__name__}: {error})") from error


@contextmanager
def _decompressed(path: Path) -> Iterator[Path]:
    """The path, or for the length of a `with` block that of a decompressed copy.

    ASE seeks backwards while it reads, and a compressed stream then starts from its beginning.
    """
    if path.suffix not in (".gz", ".bz2", ".xz"):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / path.stem
        with open_with_compression(str(path), "rb") as source, plain.open("wb") as target:
            shutil.copyfileobj(source, target)
        yield plain


def labelled_frame(atoms: Atoms, keys: KeysConfig, source: str) -> LabelledFrame:
    """A structure with all of its labels checked, or a `DataError` that names frame and key."""
    computed = atoms.calc.results if atoms.calc is not None else {}
    energy = checked_number(_find(keys.energy, atoms.info, computed, source), keys.energy, source)
    forces = checked_array(
        _find(keys.forces, atoms.arrays, computed, source), (len(atoms), 3), keys.forces, source
    )
    stress = atoms.info.get(keys.stress, computed.get(keys.stress))
    if stress is not None:
        stress = _full_stress(stress, keys.stress, source)
        if atoms.cell.rank < 3:
            raise DataError(f"{source}: '{keys.stress}' is given, but the cell has no volume")
    clean = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    if not np.isfinite(clean.positions).all():
        raise DataError(f"{source}: positions are not finite")
    return LabelledFrame(clean, energy, forces, stress, source)


def _find(key: str, own: Any, computed: Any, source: str) -> Any:
    if key in own:
        return own[key]
    if key in computed:
        return computed[key]
    known = ", ".join(sorted({*map(str, own), *map(str, computed)} - {"numbers", "positions"}))
    raise DataError(
        f"{source}: no label '{key}'; the frame has: {known or 'no labels'}. Name the right one "
        "under data.keys"
    )


def checked_number(value: Any, key: str, source: str) -> float:
    """A label as a finite number, or a `DataError` that names frame and key."""
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{source}: '{key}' is {value!r}, not a number") from error
    if not np.isfinite(number):
        raise DataError(f"{source}: '{key}' is {number}")
    return number


def checked_array(value: Any, shape: tuple[int, ...], key: str, source: str) -> np.ndarray:
    """A label as finite numbers of that shape, or a `DataError` that names frame and key."""
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{source}: '{key}' is not numeric") from error
    if array.shape != shape:
        raise DataError(f"{source}: '{key}' has shape {array.shape}; expected {shape}")
    if not np.isfinite(array).all():
        where = np.argwhere(~np.isfinite(array))[0].tolist()
        raise DataError(f"{source}: '{key}' is not finite at {where}")
    return array


def _full_stress(value: Any, key: str, source: str) -> np.ndarray:
    try:
        flat = np.asarray(value, dtype=np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise DataError(f"{source}: '{key}' is not numeric") from error
    if flat.size == 6:
        xx, yy, zz, yz, xz, xy = flat
        flat = np.array([xx, xy, xz, xy, yy, yz, xz, yz, zz])
    if flat.size != 9:
        raise DataError(f"{source}: '{key}' has {flat.size} numbers; expected 9 or 6 (Voigt)")
    return checked_array(flat.reshape(3, 3), (3, 3), key, source)


def _read_npz(path: Path, index: slice, unit: float) -> list[LabelledFrame]:
    if not path.is_file():
        raise FileNotFoundError(f"no data file at {path}")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            known = {name for names in NPZ_LAYOUTS.values() for name in names}
            content = {name: archive[name] for name in archive.files if name in known}
            present = archive.files
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a readable .npz file ({error})") from error
    for names in NPZ_LAYOUTS.values():
        if all(name in content for name in names):
            break
    else:
        layouts = "; ".join(f"{k}: {', '.join(v)}" for k, v in NPZ_LAYOUTS.items())
        raise DataError(f"{path} lacks arrays of a known layout ({layouts}); it has {present}")
    numbers, positions, energies, forces = (np.asarray(content[name]) for name in names)
    shape = (len(positions), len(numbers), 3)
    if positions.shape != shape or forces.shape != shape or energies.size != shape[0]:
        raise DataError(
            f"{path}: shapes do not fit together: {names[1]} {positions.shape}, "
            f"{names[2]} {energies.shape}, {names[3]} {forces.shape} for {len(numbers)} atoms"
        )
    frames = []
    for number in range(shape[0])[index]:
        source = f"{path}#{number}"
        energy = checked_number(energies.reshape(-1)[number], names[2], source) * unit
        force = checked_array(forces[number], shape[1:], names[3], source) * unit
        atoms = Atoms(numbers, checked_array(positions[number], shape[1:], names[1], source))
        frames.append(LabelledFrame(atoms, energy, force, None, source))
    return frames


def sha256(frames: Sequence[LabelledFrame]) -> str:
    """Checksum of geometries and labels, independent of file format and path."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(frame.atoms.numbers.astype(np.int64).tobytes())
        for array in (frame.atoms.positions, frame.atoms.cell.array, frame.forces):
            digest.update(np.round(array, 8).astype(np.float64).tobytes())
        if frame.atoms.pbc.any():
            digest.update(frame.atoms.pbc.tobytes())
        if frame.stress is not None:
            digest.update(np.round(frame.stress, 8).astype(np.float64).tobytes())
        digest.update(np.float64(round(frame.energy, 8)).tobytes())
    return digest.hexdigest()


def split_validation(
    frames: list[LabelledFrame], fraction: float, seed: int
) -> tuple[list[LabelledFrame], list[LabelledFrame]]:
    """Hold out a random fraction, at least one frame on either side.

    Raises
    ------
    DataError
        If there are fewer than two frames.
    """
    if len(frames) < 2:
        raise DataError("one frame cannot be split into training and validation; give data.valid")
    order = np.random.default_rng(seed).permutation(len(frames))
    n_valid = min(max(1, round(fraction * len(frames))), len(frames) - 1)
    return [frames[i] for i in order[n_valid:]], [frames[i] for i in order[:n_valid]]


def reference_energies(data: DataConfig, frames: Sequence[LabelledFrame]) -> dict[int, float]:
    """Energy of the isolated atom by atomic number, eV, from a file, a mapping or a fit.

    Raises
    ------
    DataError
        If an element of the frames has none.
    """
    elements = sorted({int(z) for frame in frames for z in frame.atoms.numbers})
    given = data.reference_energies
    if given == "fit":
        return _fitted_references(frames, elements)
    if isinstance(given, dict):
        try:
            energies = {chemical_symbols.index(symbol): e for symbol, e in given.items()}
        except ValueError as error:
            raise DataError(f"data.reference_energies: {error}; use chemical symbols") from error
    else:
        energies = {}
        for number, atoms in read_structures(*split_slice(given)):
            source = f"{given}#{number}"
            if len(atoms) != 1:
                continue  # a file may hold isolated atoms beside its frames
            computed = atoms.calc.results if atoms.calc is not None else {}
            key = data.keys.energy
            value = _find(key, atoms.info, computed, source)
            energies[int(atoms.numbers[0])] = checked_number(value, key, source)
    missing = [chemical_symbols[z] for z in elements if z not in energies]
    if missing:
        raise DataError(f"no reference energy for {', '.join(missing)}; add it, or use 'fit'")
    return {z: float(energies[z]) for z in elements}


def _fitted_references(frames: Sequence[LabelledFrame], elements: list[int]) -> dict[int, float]:
    counts = np.array([[np.sum(f.atoms.numbers == z) for z in elements] for f in frames])
    energies = np.array([frame.energy for frame in frames])
    # The minimum-norm solution: compositions that never vary cannot tell elements apart.
    solution = np.linalg.lstsq(counts.astype(np.float64), energies, rcond=None)[0]
    return {z: float(e) for z, e in zip(elements, solution, strict=True)}
