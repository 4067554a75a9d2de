"""Files of labelled structures with random labels."""

from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk, molecule


def labelled(seed: int = 0, periodic: bool = False) -> Atoms:
    generator = np.random.default_rng(seed)
    atoms = bulk("NaCl", "rocksalt", a=5.6) if periodic else molecule("H2O")
    atoms.positions += 0.1 * generator.normal(size=atoms.positions.shape)
    atoms.info["REF_energy"] = float(generator.normal())
    atoms.arrays["REF_forces"] = generator.normal(size=(len(atoms), 3))
    if periodic:
        stress = 0.01 * generator.normal(size=(3, 3))
        atoms.info["REF_stress"] = stress + stress.T
    return atoms


def write(path: Path, frames) -> str:
    ase.io.write(path, frames)
    return str(path)


def write_npz(path: Path, layout: str, n_frames: int = 4, **changes) -> str:
    names = {
        "rMD17": ("nuclear_charges", "coords", "energies", "forces"),
        "MD22": ("z", "R", "E", "F"),
    }[layout]
    generator = np.random.default_rng(0)
    energies = generator.normal(size=n_frames if layout == "rMD17" else (n_frames, 1))
    arrays = (
        np.array([8, 1, 1], dtype=np.uint8),
        generator.normal(size=(n_frames, 3, 3)),
        energies,
        generator.normal(size=(n_frames, 3, 3)),
    )
    np.savez(path, **{**dict(zip(names, arrays, strict=True)), **changes})
    return str(path)
