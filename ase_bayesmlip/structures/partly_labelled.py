"""Frames to evaluate on: labels that are there are used, and what is missing is said.

Training needs every label (`labelled.read_frames`). An evaluation does not: files of broken bonds
often hold energies alone, and for telling foreign frames from known ones no label is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from ase_bayesmlip.config import KeysConfig
from ase_bayesmlip.structures.labelled import (
    LabelledFrame,
    checked_atoms,
    labelled_frame,
    npz_frames,
    read_any,
    warn_of_high_stress,
)
from ase_bayesmlip.structures.labels import energy_of, find_label, forces_of, stress_of
from ase_bayesmlip.structures.reading import DataError, check_named_once, data_files


@dataclass(frozen=True, eq=False)
class EvaluationFrame:
    """A structure with those of its labels that are known.

    Attributes
    ----------
    atoms : Atoms
        Without calculator and labels.
    energy : float or None, eV
    forces : ndarray or None, (n_atoms, 3), eV/Å
    stress : ndarray or None, (3, 3), eV/Å³
        Kept for checksums alone.
    config_type : str
        Kind of frame, from ``info["config_type"]``; empty where the file does not say.
    source : str
        ``file#frame``, for messages.
    """

    atoms: Atoms
    energy: float | None
    forces: np.ndarray | None
    stress: np.ndarray | None = None
    config_type: str = ""
    source: str = ""


def read_evaluation_frames(
    paths: str | Sequence[str], keys: KeysConfig | None = None, npz_units: str = "kcal/mol"
) -> list[EvaluationFrame]:
    """As `labelled.read_frames`, but labels may be missing.

    Raises
    ------
    FileNotFoundError
    DataError
        If there are no frames, if a structure is none that a model can be asked about, or if a
        label is there but broken; the message names file, frame and key.
    """
    keys = keys or KeysConfig()
    frames: list[EvaluationFrame] = []
    for name, index in data_files(paths):
        if name.suffix == ".npz":
            frames += [_complete(frame, "") for frame in npz_frames(name, index, npz_units)]
            continue
        structures, names = read_any(name, index, keys)
        found = [_frame(atoms, names, source) for source, atoms in structures]
        warn_of_high_stress([(frame.source, frame.stress) for frame in found])
        frames += found
    check_named_once([frame.source for frame in frames])
    if not frames:
        raise DataError(f"no frames in {paths}: nothing can be evaluated")
    return frames


def _frame(atoms: Atoms, keys: KeysConfig, source: str) -> EvaluationFrame:
    config_type = str(atoms.info.get("config_type", ""))
    energy = find_label(atoms, keys.energy, "energy", source)
    forces = find_label(atoms, keys.forces, "forces", source, per_atom=True)
    if energy is not None and forces is not None:
        return _complete(labelled_frame(atoms, keys, source), config_type)
    return EvaluationFrame(
        checked_atoms(atoms, source),
        None if energy is None else energy_of(atoms, energy, keys.energy, source),
        None if forces is None else forces_of(atoms, forces, keys.forces, source),
        stress_of(atoms, keys, source),
        config_type,
        source,
    )


def _complete(frame: LabelledFrame, config_type: str) -> EvaluationFrame:
    return EvaluationFrame(
        frame.atoms, frame.energy, frame.forces, frame.stress, config_type, frame.source
    )


def label_notes(frames: Sequence[EvaluationFrame], keys: KeysConfig | None = None) -> list[str]:
    """Sentences on missing labels and what follows from them; none if every label is there."""
    keys = keys or KeysConfig()
    notes = []
    for key, what, missing in (
        (keys.energy, "energy", [f.energy is None for f in frames]),
        (keys.forces, "force", [f.forces is None for f in frames]),
    ):
        if all(missing):
            notes.append(
                f"no frame has the label '{key}': every number on {what} errors is left out"
            )
        elif any(missing):
            notes.append(
                f"{sum(missing)} of {len(frames)} frames lack the label '{key}' (the first is "
                f"{frames[missing.index(True)].source}): numbers on {what} errors are from the rest"
            )
    return notes


def check_labels(
    frames: Sequence[EvaluationFrame], path: str, keys: KeysConfig | None = None
) -> None:
    """Raise `DataError` if no frame has any label: a test set without labels tests nothing."""
    keys = keys or KeysConfig()
    if all(frame.energy is None and frame.forces is None for frame in frames):
        raise DataError(
            f"{path}: none of the {len(frames)} frames has the label '{keys.energy}' or "
            f"'{keys.forces}'; give their names with --energy-key and --forces-key"
        )


def frames_of_known_elements(
    frames: Sequence[EvaluationFrame], atomic_numbers: Iterable[int], path: str
) -> tuple[list[EvaluationFrame], list[str]]:
    """The frames that a model can be asked about, and a sentence on the others.

    Raises
    ------
    DataError
        If no frame is left.
    """
    known = set(atomic_numbers)
    foreign = [sorted(set(frame.atoms.numbers.tolist()) - known) for frame in frames]
    kept = [frame for frame, unknown in zip(frames, foreign, strict=True) if not unknown]
    if len(kept) == len(frames):
        return kept, []
    counts = Counter(z for unknown in foreign for z in unknown)
    names = ", ".join(f"{chemical_symbols[z]} (in {counts[z]} frames)" for z in sorted(counts))
    trained = ", ".join(chemical_symbols[z] for z in sorted(known))
    if not kept:
        raise DataError(
            f"{path}: every frame holds an element that the model does not know: {names}; the "
            f"model was trained on {trained}"
        )
    return kept, [
        f"{len(frames) - len(kept)} of {len(frames)} frames hold elements that the model does not "
        f"know, {names}, and are left out of every number; the model was trained on {trained}"
    ]
