"""One line at the start of a training: what it was understood to be."""

from __future__ import annotations

import logging
import math

import torch
from ase.data import chemical_symbols

from ase_bayesmlip.config import Config
from ase_bayesmlip.graph import edge_vectors
from ase_bayesmlip.metrics.reach import promise
from ase_bayesmlip.nn.build import build_potential
from ase_bayesmlip.nn.potential import Potential
from ase_bayesmlip.structures.labelled import LabelledFrame, read_frames
from ase_bayesmlip.structures.neighbors import graph_of
from ase_bayesmlip.structures.reading import in_words
from ase_bayesmlip.training.data import TrainingData
from ase_bayesmlip.training.distributed import rank

# In so many training frames atoms are searched that are on their way out.
MAX_FRAMES = 200

# Silent unless the application wants to hear it, as the command line does.
LOGGER = logging.getLogger("ase_bayesmlip")


def announce(config: Config, data: TrainingData) -> None:
    """Log `describe` once, on the first process.

    Raises
    ------
    FileNotFoundError, DataError
        For calibration frames that cannot be used: better now than when the training is over.
    """
    if rank() == 0:
        LOGGER.info(describe(config, data))


def describe(config: Config, data: TrainingData) -> str:
    """Sizes, labels, elements, reference energies and false-alarm rate of a training."""
    frames = [*data.train, *data.valid]
    with_stress = sum(frame.stress is not None for frame in frames)
    labels = ", ".join(
        f"{name} {count} of {len(frames)}"
        for name, count in (
            ("energy", len(frames)),
            ("forces", len(frames)),
            ("stress", with_stress),
        )
    )
    elements = ", ".join(chemical_symbols[z] for z in data.statistics.atomic_numbers)
    potential = build_potential(config.model, config.loss, data.statistics, seed=0)
    lone = _loose(
        potential, data.train
    ) + f"; {data.n_lone} training frames with atoms that have no neighbour" * (data.n_lone > 0)
    n_atoms, n_valid = (sum(len(f.atoms) for f in part) for part in (data.train, data.valid))
    n_batches = math.ceil(len(data.train) / config.training.batch_size)
    n_parameters = sum(parameter.numel() for parameter in potential.parameters())
    return (
        f"{len(data.train)} training and {len(data.valid)} validation frames ({n_atoms} and "
        f"{n_valid} atoms, {n_batches} batches an epoch); {n_parameters} parameters; "
        f"labels: {labels}; elements: {elements}; reference energies: {_references(config)}; "
        f"{_alarms(config, len(data.train))}{lone}; read from {in_words(config.data.train)}"
    )


def _loose(potential: Potential, frames: list[LabelledFrame]) -> str:
    """Whether training sees atoms on their way out, so that it shapes how energies get there."""
    if not potential.anchored:
        return ""
    assert potential.pairs is not None
    looked_at = frames[:: -(-len(frames) // MAX_FRAMES)]
    n_loose = 0
    for frame in looked_at:
        graph = graph_of(frame.atoms, potential.cutoff)
        distances = torch.linalg.norm(edge_vectors(graph), dim=1)
        species = potential.one_hot[graph.atomic_numbers].double()
        bonded = potential.pairs(distances, graph.edge_index, species).bonded
        n_loose += int((bonded < 1.0).any())
    seen = f" of {len(looked_at)} looked at" * (len(looked_at) < len(frames))
    return f"; atoms leave their neighbours in {n_loose} training frames{seen}" * (n_loose > 0)


def _references(config: Config) -> str:
    given = config.data.reference_energies
    if given == "fit":
        outside = getattr(config.posterior, "folds", None)
        return f"fitted to the {'validation' if outside else 'training'} frames"
    return "given in the configuration" if isinstance(given, dict) else f"given in {given}"


def _alarms(config: Config, n_train: int) -> str:
    paths = config.data.calibration
    if paths:
        n = len(read_frames(paths, config.data.keys, config.data.units))
        return f"{n} calibration frames: {promise(n)}"
    folds = getattr(config.posterior, "folds", None)
    if folds:
        return f"thresholds from {folds} folds of the training frames: {promise(n_train // folds)}"
    return "no calibration frames: a monitor will need a threshold in eV/Å"
