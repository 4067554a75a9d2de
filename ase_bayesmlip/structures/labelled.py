"""Labelled frames: the one door through which structures with labels come in.

Every frame of a file for training, validation, calibration and evaluation passes `checked_atoms`
before a model is built: what the calculator would refuse is refused here, with ``file#frame``.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms, units

from ase_bayesmlip.config import KeysConfig
from ase_bayesmlip.structures.checks import check_geometry, check_overlaps
from ase_bayesmlip.structures.deepmd import DEEPMD_KEYS, is_deepmd, read_deepmd
from ase_bayesmlip.structures.labels import (
    FREE_ENERGY_GAP,
    HIGH_STRESS,
    energy_of,
    forces_of,
    free_energy_gap,
    needed_label,
    stress_of,
)
from ase_bayesmlip.structures.npz import read_npz
from ase_bayesmlip.structures.qm9 import is_qm9, read_qm9
from ase_bayesmlip.structures.reading import (
    DataError,
    check_named_once,
    data_files,
    is_isolated_atom,
    read_structures,
)

# Under these names, in any case and with or without underscores, cells are written elsewhere.
CELL_NAMES = {"lattice", "cell", "box", "unitcell", "latticevectors", "cellvectors", "latvec"}

# Key in ``atoms.info`` that tells the trajectories of one file apart.
TRAJECTORY = "trajectory"

ENERGY_UNITS = {"eV": 1.0, "kcal/mol": units.kcal / units.mol}


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
    """Read and check labelled frames from any format ASE reads, ``.npz`` or DeePMD-kit's folders.

    A path may hold ``*``, ``?`` and ``**``, and may end in an ASE slice of each of its files:
    ``runs/*/vasprun.xml@::10``. Isolated atoms (``config_type=IsolatedAtom``) are left out: they
    carry reference energies, not training data.

    Raises
    ------
    FileNotFoundError
    DataError
        For structures that no model can be asked about, and for missing or broken labels; names
        file, frame and key.

    Warns
    -----
    UserWarning
        Once a file, if a stress is so large that its unit may be wrong; once, if energies are not
        those that the forces are slopes of.
    """
    keys = keys or KeysConfig()
    frames: list[LabelledFrame] = []
    gaps: list[tuple[str, float]] = []
    for name, index in data_files(paths):
        if name.suffix == ".npz":
            frames += npz_frames(name, index, npz_units)
            continue
        structures, names = read_any(name, index, keys)
        found = [labelled_frame(atoms, names, source) for source, atoms in structures]
        gaps += [(source, free_energy_gap(atoms, names.energy)) for source, atoms in structures]
        warn_of_high_stress([(frame.source, frame.stress) for frame in found])
        frames += found
    warn_of_free_energy(gaps)
    check_named_once([frame.source for frame in frames])
    if not frames:
        raise DataError(f"no labelled frames in {paths}")
    return frames


def npz_frames(path: Path, index: slice, npz_units: str) -> list[LabelledFrame]:
    """The chosen frames of a ``.npz`` file, their labels in eV and eV/Å."""
    unit = ENERGY_UNITS[npz_units]
    return [
        LabelledFrame(checked_atoms(atoms, source), energy * unit, forces * unit, None, source)
        for source, atoms, energy, forces in read_npz(path, index)
    ]


def read_any(
    path: Path, index: slice, keys: KeysConfig
) -> tuple[list[tuple[str, Atoms]], KeysConfig]:
    """``file#frame`` and structure of the chosen frames, and the names of their labels.

    Without isolated atoms. The names are those given, or those that the format prescribes.
    """
    folder = is_deepmd(path)
    read = read_deepmd if folder else read_qm9 if is_qm9(path) else read_structures
    found = read(path, index)
    sources = [(f"{path}#{number}", atoms) for number, atoms in found]
    kept = [(source, atoms) for source, atoms in sources if not is_isolated_atom(atoms, source)]
    return kept, DEEPMD_KEYS if folder else keys


def labelled_frame(atoms: Atoms, keys: KeysConfig, source: str) -> LabelledFrame:
    """A structure with all of its labels checked, or a `DataError` that names frame and key."""
    clean = checked_atoms(atoms, source)
    energy = needed_label(atoms, keys.energy, "energy", source)
    forces = needed_label(atoms, keys.forces, "forces", source, per_atom=True)
    return LabelledFrame(
        clean,
        energy_of(atoms, energy, keys.energy, source),
        forces_of(atoms, forces, keys.forces, source),
        stress_of(atoms, keys, source),
        source,
    )


def checked_atoms(atoms: Atoms, source: str) -> Atoms:
    """The structure alone, without labels, or a `DataError` if no model can be asked about it."""
    check_names(atoms, source)
    try:
        check_geometry(atoms)
        check_overlaps(atoms)
    except ValueError as error:
        raise DataError(f"{source}: {error}") from error
    info = {key: atoms.info[key] for key in (TRAJECTORY,) if key in atoms.info}
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, info=info)


def check_names(atoms: Atoms, source: str) -> None:
    """Refuse a cell, boundary conditions or columns that were not read for their name's case."""
    for key, value in atoms.info.items():
        name = str(key).lower()
        if name == "pbc":
            lost = np.shape(value) not in ((), (3,)) or not np.all(value == atoms.pbc)
            right = f"pbc is {atoms.pbc.tolist()} without it; write pbc="
        elif name.replace("_", "") in CELL_NAMES:
            vectors = isinstance(value, np.ndarray) and value.size in (3, 6, 9)
            lost = vectors and not atoms.cell.array.any()
            right = 'the frame has no cell without it; write Lattice="..."'
        elif name == "properties":
            lost = ":" in str(value)
            right = "its columns are not known without it; write Properties="
        else:
            continue
        if lost:
            raise DataError(f"{source}: '{key}' is no name that the reader knows, and {right}")


def warn_of_high_stress(stresses: Sequence[tuple[str, np.ndarray | None]]) -> None:
    """Warn, once for all frames of a file, of stresses that may have the unit of something else."""
    sizes = [0.0 if stress is None else float(np.abs(stress).max()) for _, stress in stresses]
    high = [k for k, size in enumerate(sizes) if size > HIGH_STRESS]
    if high:
        warnings.warn(
            f"{stresses[high[0]][0]}: a stress of {sizes[high[0]]:.3g} eV/Å³ is above "
            f"{HIGH_STRESS} eV/Å³ (80 GPa), as in {len(high)} of {len(stresses)} frames: is it in "
            "GPa, or a virial (data.keys.virial)?",
            stacklevel=3,
        )


def warn_of_free_energy(gaps: Sequence[tuple[str, float]]) -> None:
    """Warn of energies that differ from the free energy, eV/atom, whose slopes the forces are."""
    source, largest = max(gaps, key=lambda gap: gap[1], default=("", 0.0))
    if largest > FREE_ENERGY_GAP:
        warnings.warn(
            f"{source}: the energy differs from the free energy by {largest:.2g} eV/atom, as it "
            "does where electronic levels are smeared; forces are slopes of the free energy: give "
            "data.keys.energy: free_energy",
            stacklevel=3,
        )


def trajectories(frames: Sequence[LabelledFrame]) -> list[int]:
    """Which trajectory each frame belongs to, numbered from 0 in the order of the frames.

    One for each file, or for each value of ``info["trajectory"]`` in it.
    """
    names = [
        (frame.source.rpartition("#")[0], str(frame.atoms.info.get(TRAJECTORY, "")))
        for frame in frames
    ]
    known = {name: k for k, name in enumerate(dict.fromkeys(names))}
    return [known[name] for name in names]


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
