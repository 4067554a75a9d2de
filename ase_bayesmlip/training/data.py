"""Training data as tensors: graphs with labels, batches, and the statistics of a data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from ase_bayesmlip.config import Config, DataConfig, check_keys
from ase_bayesmlip.graph import AtomicGraph, batch_graphs, graph_to
from ase_bayesmlip.nn.build import DataStatistics
from ase_bayesmlip.structures.labelled import (
    LabelledFrame,
    read_frames,
    sha256,
    split_validation,
)
from ase_bayesmlip.structures.neighbors import complete_cell, graph_of, neighbor_edges
from ase_bayesmlip.structures.overlap import digests
from ase_bayesmlip.structures.reading import DataError
from ase_bayesmlip.structures.reference_energies import reference_energies


class Labels(NamedTuple):
    """Reference labels of a batch; energies have the atomic reference energies subtracted.

    Attributes
    ----------
    energy : Tensor of float64, (n_graphs,), eV
    forces : Tensor, (n_atoms, 3), eV/Å
    stress : Tensor, (n_graphs, 3, 3), eV/Å³, zero where not given
    has_stress : Tensor of bool, (n_graphs,)
    n_atoms : Tensor, (n_graphs,)
    """

    energy: Tensor
    forces: Tensor
    stress: Tensor
    has_stress: Tensor
    n_atoms: Tensor


class GraphDataset:
    """Frames as graphs with labels, neighbour lists found once.

    Coordinates are in float64 whatever the dtype of the potential, which rounds the differences
    it takes of them; labels are in the dtype.

    Raises
    ------
    DataError
        If a frame holds an element without a reference energy (one the model does not know).
    """

    def __init__(
        self,
        frames: Sequence[LabelledFrame],
        references: dict[int, float],
        cutoff: float,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.items: list[tuple[AtomicGraph, Labels]] = []
        self.sources = [frame.source for frame in frames]
        for frame in frames:
            unknown = sorted({int(z) for z in frame.atoms.numbers} - references.keys())
            if unknown:
                names = ", ".join(chemical_symbols[z] for z in unknown)
                raise DataError(f"{frame.source}: the model does not know the element(s) {names}")
            with _named(frame):
                self.items.append(_item(frame, references, cutoff, dtype, torch.device(device)))

    def __len__(self) -> int:
        return len(self.items)

    def batches(self, order: Sequence[int], size: int) -> Iterator[tuple[AtomicGraph, Labels]]:
        """Batches of `size` structures in the given order; the last may be smaller."""
        for start in range(0, len(order), size):
            chosen = [self.items[i] for i in order[start : start + size]]
            graphs, labels = [item[0] for item in chosen], [item[1] for item in chosen]
            yield (
                batch_graphs(graphs),
                Labels(*(torch.cat(field) for field in zip(*labels, strict=True))),
            )


def _item(
    frame: LabelledFrame,
    references: dict[int, float],
    cutoff: float,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[AtomicGraph, Labels]:
    atoms = frame.atoms
    graph = graph_to(graph_of(atoms, cutoff), device, torch.float64)
    offset = sum(references[int(z)] for z in atoms.numbers)
    stress = np.zeros((3, 3)) if frame.stress is None else frame.stress
    labels = Labels(
        energy=torch.tensor([frame.energy - offset], dtype=torch.float64),
        forces=torch.tensor(frame.forces, dtype=dtype),
        stress=torch.tensor(stress, dtype=dtype).unsqueeze(0),
        has_stress=torch.tensor([frame.stress is not None]),
        n_atoms=torch.tensor([len(atoms)], dtype=dtype),
    )
    return graph, Labels(*(field.to(device) for field in labels))


@contextmanager
def _named(frame: LabelledFrame) -> Iterator[None]:
    """What the neighbour search refuses is an error of that frame."""
    try:
        yield
    except ValueError as error:
        raise DataError(f"{frame.source}: {error}") from error


def neighborhoods(
    frames: Sequence[LabelledFrame], cutoff: float
) -> tuple[list[np.ndarray], np.ndarray]:
    """Number of neighbours of each atom within the cutoff, (n_atoms,), of each frame.

    And the shortest distance of each pair of elements, (119, 119), Å, infinite without any.
    """
    counts, shortest = [], np.full((len(chemical_symbols),) * 2, np.inf)
    for frame in frames:
        atoms = frame.atoms
        cell = complete_cell(atoms)
        with _named(frame):
            (centres, others), shift = neighbor_edges(atoms.positions, cell, atoms.pbc, cutoff)
        counts.append(np.bincount(centres, minlength=len(atoms)))
        vectors = atoms.positions[others] - atoms.positions[centres] + shift @ cell
        pairs = atoms.numbers[centres], atoms.numbers[others]
        np.minimum.at(shortest, pairs, np.linalg.norm(vectors, axis=1))
    return counts, shortest


def data_statistics(
    frames: Sequence[LabelledFrame],
    references: dict[int, float],
    n_neighbors: np.ndarray,
    shortest: np.ndarray,
    anchored: bool,
) -> DataStatistics:
    """Elements, reference energies, mean number of neighbours and force RMS of training frames.

    Parameters
    ----------
    n_neighbors : ndarray of int, (n_atoms of all frames,)
    shortest : ndarray, (119, 119), Å
        See `neighborhoods`.
    anchored : bool
        See `DataStatistics`.

    Raises
    ------
    DataError
        If all forces are zero, which leaves the potential without a scale.
    """
    squares = sum(float((frame.forces**2).sum()) for frame in frames)
    force_rms = float(np.sqrt(squares / (3 * len(n_neighbors))))
    if force_rms == 0.0:
        raise DataError("all training forces are zero: nothing to learn a force field from")
    elements = sorted(references)
    return DataStatistics(
        atomic_numbers=elements,
        reference_energies=[references[z] for z in elements],
        avg_n_neighbors=max(int(n_neighbors.sum()) / len(n_neighbors), 1.0),
        force_rms=force_rms,
        mean_energies=_mean_energies(frames, references, elements),
        anchored=anchored,
        shortest=np.where(np.isfinite(shortest), shortest, 0.0)[
            np.ix_(elements, elements)
        ].tolist(),
    )


def _mean_energies(
    frames: Sequence[LabelledFrame], references: dict[int, float], elements: list[int]
) -> list[float]:
    """Least-squares interaction energy per atom of each element, eV.

    Where the composition never varies, labels cannot tell how the energy divides over the elements.
    Of all solutions this is the one that differs least from equal shares of all atoms: what an atom
    takes along when it leaves its molecule is then of the right size.
    """
    counts = np.array(
        [[np.sum(frame.atoms.numbers == z) for z in elements] for frame in frames], dtype=float
    )
    energies = np.array([frame.energy for frame in frames])
    interaction = energies - counts @ np.array([references[z] for z in elements])
    mean = interaction.sum() / counts.sum()
    rest = np.linalg.lstsq(counts, interaction - mean * counts.sum(axis=1), rcond=None)[0]
    return [float(mean + e) for e in rest]


@dataclass(frozen=True)
class TrainingData:
    """Frames of a run and what follows from them.

    Attributes
    ----------
    train, valid : list of LabelledFrame
    references : dict of int to float, eV
    statistics : DataStatistics
    n_lone : int
        Training frames in which some atom has no neighbour within the cutoff.
    lone_elements : list of int
        Of such atoms.
    """

    train: list[LabelledFrame]
    valid: list[LabelledFrame]
    references: dict[int, float]
    statistics: DataStatistics
    n_lone: int
    lone_elements: list[int]

    def record(self) -> dict[str, Any]:
        """Plain data that a run keeps: statistics, checksums, limits, a probe structure."""
        # A single atom would probe nothing of the network but its bias.
        frames = [frame.atoms for frame in self.train]
        probe = next((atoms for atoms in frames if len(atoms) > 1), frames[0])
        return {
            "statistics": dataclasses.asdict(self.statistics),
            "n_train": len(self.train),
            "n_valid": len(self.valid),
            "train_sha256": sha256(self.train),
            "valid_sha256": sha256(self.valid),
            "train_frames": digests(self.train),
            "valid_frames": digests(self.valid),
            "has_stress": any(frame.stress is not None for frame in self.train),
            "has_lone_atoms": self.n_lone > 0,
            "lone_elements": self.lone_elements,
            "label_limits": self.label_limits(),
            "probe": {
                "numbers": probe.numbers.tolist(),
                "positions": probe.positions.tolist(),
                "cell": probe.cell.array.tolist(),
                "pbc": probe.pbc.tolist(),
            },
        }

    def label_limits(self) -> dict[str, Any]:
        """Largest force on an atom, eV/Å, and range of the interaction energy per atom, eV."""
        energies = []
        for frame in self.train:
            numbers = frame.atoms.numbers
            offset = sum(self.references[int(z)] for z in numbers)
            energies.append((frame.energy - offset) / len(numbers))
        forces = [float(np.linalg.norm(frame.forces, axis=1).max()) for frame in self.train]
        return {"force_max": max(forces), "energy_per_atom": [min(energies), max(energies)]}


def load_training_data(config: Config) -> TrainingData:
    """Read, check and split the frames that a configuration names.

    Raises
    ------
    ConfigError
        For names of labels that cannot be meant.
    FileNotFoundError, DataError
    """
    data = config.data
    check_keys(data.keys)
    train = read_frames(data.train, data.keys, data.units)
    if data.valid is None:
        train, valid = split_validation(train, data.valid_fraction, config.seeds.data)
    else:
        valid = read_frames(data.valid, data.keys, data.units)
    _check_stress(data, train)
    # Members that leave out folds must not learn of them by what all members share.
    shared = _outside_folds(train, valid) if getattr(config.posterior, "folds", None) else train
    references = reference_energies(data, shared)
    of_frames, shortest = neighborhoods(train, config.model.cutoff)
    of_shared = of_frames
    if shared is not train:
        of_shared, shortest = neighborhoods(shared, config.model.cutoff)
    counts = np.concatenate(of_shared)
    if not counts.any():
        raise DataError(
            f"no training atom has a neighbour within model.cutoff, {config.model.cutoff} Å: there "
            "is nothing to learn; a cutoff is 4 to 6 Å as a rule"
        )
    anchored = data.reference_energies != "fit"
    statistics = data_statistics(shared, references, counts, shortest, anchored)
    lone = [f.atoms.numbers[count == 0] for f, count in zip(train, of_frames, strict=True)]
    elements = np.unique(np.concatenate(lone)).tolist()
    n_lone = sum(map(bool, map(len, lone)))
    return TrainingData(train, valid, references, statistics, n_lone, elements)


def _outside_folds(train: list[LabelledFrame], valid: list[LabelledFrame]) -> list[LabelledFrame]:
    """The validation frames, which are in no fold, if they know every element."""
    known = {int(z) for frame in valid for z in frame.atoms.numbers}
    missing = sorted({int(z) for frame in train for z in frame.atoms.numbers} - known)
    if missing:
        raise DataError(
            "with posterior.folds the validation frames give what all members share, and they "
            f"hold no {', '.join(chemical_symbols[z] for z in missing)}; give data.valid with "
            "every element"
        )
    return valid


def _check_stress(data: DataConfig, train: Sequence[LabelledFrame]) -> None:
    """A stress or virial that is asked for by its name must be there, as energies and forces."""
    for name in ("stress", "virial"):
        key = getattr(data.keys, name)
        if key is not None and all(frame.stress is None for frame in train):
            raise DataError(
                f"no training frame has the label '{key}' (the first is {train[0].source}); name "
                f"the right one under data.keys.{name}, or leave it out to train without stress"
            )
