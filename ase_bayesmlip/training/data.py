"""Training data as tensors: graphs with labels, batches, and the statistics of a data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from ase_bayesmlip.config import Config
from ase_bayesmlip.graph import AtomicGraph, batch_graphs, graph_to
from ase_bayesmlip.nn.build import DataStatistics
from ase_bayesmlip.structures.labelled import (
    DataError,
    LabelledFrame,
    read_frames,
    reference_energies,
    sha256,
    split_validation,
)
from ase_bayesmlip.structures.neighbors import complete_cell, graph_of, neighbor_edges


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
        for frame in frames:
            unknown = sorted({int(z) for z in frame.atoms.numbers} - references.keys())
            if unknown:
                names = ", ".join(chemical_symbols[z] for z in unknown)
                raise DataError(f"{frame.source}: the model does not know the element(s) {names}")
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
    graph = graph_of(atoms, cutoff, dtype)
    offset = sum(references[int(z)] for z in atoms.numbers)
    stress = np.zeros((3, 3)) if frame.stress is None else frame.stress
    labels = Labels(
        energy=torch.tensor([frame.energy - offset], dtype=torch.float64),
        forces=torch.tensor(frame.forces, dtype=dtype),
        stress=torch.tensor(stress, dtype=dtype).unsqueeze(0),
        has_stress=torch.tensor([frame.stress is not None]),
        n_atoms=torch.tensor([len(atoms)], dtype=dtype),
    )
    return graph_to(graph, device, dtype), Labels(*(field.to(device) for field in labels))


def data_statistics(
    frames: Sequence[LabelledFrame], references: dict[int, float], cutoff: float
) -> DataStatistics:
    """Elements, reference energies, mean number of neighbours and force RMS of training frames.

    Raises
    ------
    DataError
        If all forces are zero, which leaves the potential without a scale.
    """
    n_edges = n_atoms = 0
    squares = 0.0
    for frame in frames:
        atoms = frame.atoms
        edges, _ = neighbor_edges(atoms.positions, complete_cell(atoms), atoms.pbc, cutoff)
        n_edges += edges.shape[1]
        n_atoms += len(atoms)
        squares += float((frame.forces**2).sum())
    force_rms = float(np.sqrt(squares / (3 * n_atoms)))
    if force_rms == 0.0:
        raise DataError("all training forces are zero: nothing to learn a force field from")
    elements = sorted(references)
    return DataStatistics(
        atomic_numbers=elements,
        reference_energies=[references[z] for z in elements],
        avg_n_neighbors=max(n_edges / n_atoms, 1.0),
        force_rms=force_rms,
        mean_energies=_mean_energies(frames, references, elements),
    )


def _mean_energies(
    frames: Sequence[LabelledFrame], references: dict[int, float], elements: list[int]
) -> list[float]:
    """Least-squares interaction energy per atom of each element, eV.

    The minimum-norm solution: where the composition never varies, labels cannot tell how the
    energy divides over the elements, and all members should at least agree on one division.
    """
    counts = np.array(
        [[np.sum(frame.atoms.numbers == z) for z in elements] for frame in frames], dtype=float
    )
    energies = np.array([frame.energy for frame in frames])
    interaction = energies - counts @ np.array([references[z] for z in elements])
    return [float(e) for e in np.linalg.lstsq(counts, interaction, rcond=None)[0]]


@dataclass(frozen=True)
class TrainingData:
    """Frames of a run and what follows from them.

    Attributes
    ----------
    train, valid : list of LabelledFrame
    references : dict of int to float, eV
    statistics : DataStatistics
    """

    train: list[LabelledFrame]
    valid: list[LabelledFrame]
    references: dict[int, float]
    statistics: DataStatistics

    def record(self) -> dict[str, Any]:
        """Plain data that a run keeps: statistics, checksums, a probe structure."""
        probe = self.train[0].atoms
        return {
            "statistics": dataclasses.asdict(self.statistics),
            "n_train": len(self.train),
            "n_valid": len(self.valid),
            "train_sha256": sha256(self.train),
            "valid_sha256": sha256(self.valid),
            "has_stress": any(frame.stress is not None for frame in self.train),
            "probe": {
                "numbers": probe.numbers.tolist(),
                "positions": probe.positions.tolist(),
                "cell": probe.cell.array.tolist(),
                "pbc": probe.pbc.tolist(),
            },
        }


def load_training_data(config: Config) -> TrainingData:
    """Read, check and split the frames that a configuration names.

    Raises
    ------
    FileNotFoundError, DataError
    """
    data = config.data
    train = read_frames(data.train, data.keys, data.units)
    if data.valid is None:
        train, valid = split_validation(train, data.valid_fraction, config.seeds.data)
    else:
        valid = read_frames(data.valid, data.keys, data.units)
    references = reference_energies(data, train)
    statistics = data_statistics(train, references, config.model.cutoff)
    return TrainingData(train, valid, references, statistics)
