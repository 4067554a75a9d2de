"""Home: the frames that a run was trained and validated on, for what is done when it is served."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ase_bayesmlip.config import Config
from ase_bayesmlip.structures.labelled import LabelledFrame, sha256
from ase_bayesmlip.training.data import GraphDataset, TrainingData, load_training_data

# Of training, and of validation: some seconds for each member.
MAX_ATOMS = 10_000
# Frames that members are asked about at once.
BATCH_SIZE = 16


@dataclasses.dataclass(frozen=True)
class Home:
    """Training and validation frames of a run as graphs with labels, in float64.

    Of a large set they are a part, chosen evenly over its frames, in which no element is missing.

    Attributes
    ----------
    train, valid : GraphDataset
    compositions : ndarray of int, (n_compositions, n_elements)
        Number of atoms of each element, sorted by atomic number: those of ALL training frames,
        each once.
    """

    train: GraphDataset
    valid: GraphDataset
    compositions: np.ndarray

    def record(self) -> dict[str, Any]:
        """Number of frames, for the card."""
        return {"n_train": len(self.train), "n_valid": len(self.valid)}


def load_home(config: Config, record: dict[str, Any], max_atoms: int = MAX_ATOMS) -> Home:
    """Read the frames of a run again.

    Parameters
    ----------
    record : dict
        What the run kept of them (`TrainingData.record`).
    max_atoms : int
        At most so many of training, and of validation, but a frame of every element.

    Raises
    ------
    FileNotFoundError, DataError
        If they are gone.
    ValueError
        If they are no longer those of the run.
    """
    data = load_training_data(config)
    for name, frames in (("train", data.train), ("valid", data.valid)):
        if sha256(frames) != record[f"{name}_sha256"]:
            raise ValueError(f"the {name} frames have changed since the training")
    statistics = record["statistics"]
    elements, energies = statistics["atomic_numbers"], statistics["reference_energies"]
    return home_of(data, dict(zip(elements, energies, strict=True)), config.model.cutoff, max_atoms)


def home_of(
    data: TrainingData, references: dict[int, float], cutoff: float, max_atoms: int = MAX_ATOMS
) -> Home:
    """`Home` from the frames of a run; `references`, eV, are those that it was trained with."""
    numbers = [frame.atoms.numbers for frame in data.train]
    counts = np.array([[np.sum(of_frame == z) for z in sorted(references)] for of_frame in numbers])
    train, valid = (
        GraphDataset(evenly(frames, max_atoms), references, cutoff, torch.float64)
        for frames in (data.train, data.valid)
    )
    return Home(train, valid, np.unique(counts, axis=0))


def evenly(frames: Sequence[LabelledFrame], max_atoms: int) -> list[LabelledFrame]:
    """About so many atoms: frames at even distances, and the first of each element they lack."""
    sizes = [len(frame.atoms) for frame in frames]
    n = max(int(len(frames) * min(1.0, max_atoms / sum(sizes))), 1)
    chosen = set(np.linspace(0, len(frames) - 1, n).round().astype(int).tolist())
    known = {z for k in chosen for z in frames[k].atoms.numbers.tolist()}
    for k, frame in enumerate(frames):
        if not known.issuperset(elements := set(frame.atoms.numbers.tolist())):
            chosen.add(k)
            known |= elements
    return [frames[k] for k in sorted(chosen)]
