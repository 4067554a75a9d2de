"""What a potential says of a batch does not depend on where in space the structures are."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import DATA, tiny_config, tiny_potential

from ase_bayesmlip.config.loss import EVIDENTIAL_LOSSES
from ase_bayesmlip.structures.labelled import read_frames
from ase_bayesmlip.training.data import GraphDataset, load_training_data
from ase_bayesmlip.training.loss import loss
from ase_bayesmlip.training.outputs import evaluate

LOSSES = ["mse", "huber", "nll_e", "nll_jef", *EVIDENTIAL_LOSSES]


def labelled(config):
    """A molecule, and a crystal with a stress of its own."""
    molecules = read_frames(f"{DATA}/ethanol_valid.extxyz@0", config.data.keys)
    crystals = read_frames(f"{DATA}/co2_train.extxyz@0", config.data.keys)
    crystals = [replace(frame, stress=1e-3 * np.eye(3)) for frame in crystals]
    return [*molecules, *crystals]


def moved(frames, distance):
    """The frames far from the origin, by a number that float64 adds without rounding."""
    found = []
    for frame in frames:
        atoms = frame.atoms.copy()
        atoms.positions = np.round(atoms.positions * 2**20) / 2**20 + distance
        found.append(replace(frame, atoms=atoms))
    return found


def says(config, frames, kind):
    """Loss, its gradient, and forces and stress of a batch, in float64."""
    dtype = getattr(torch, config.training.dtype)
    potential = tiny_potential(config).requires_grad_(True)
    references = load_training_data(config).references
    data = GraphDataset(frames, references, config.model.cutoff, dtype)
    ((graph, labels),) = data.batches(range(len(frames)), len(frames))
    outputs = evaluate(potential, graph, True, create_graph=True)
    value = loss(kind, config.loss, outputs, labels, graph, float(potential.scale))
    value.backward()
    slope = torch.cat([p.grad.flatten() for p in potential.parameters() if p.grad is not None])
    assert outputs.forces.dtype == outputs.stress.dtype == slope.dtype == dtype
    named = {"loss": value, "forces": outputs.forces, "stress": outputs.stress, "slope": slope}
    return {name: item.detach().double() for name, item in named.items()}


@pytest.mark.parametrize("kind", LOSSES)
def test_float32_training_is_the_same_far_from_the_origin(kind):
    """10,000 Å away float32 would round coordinates to 1e-3 Å; the digits of differences stay."""
    trained_for = "mse" if kind == "huber" else kind
    posterior = {"kind": "evidential" if kind in EVIDENTIAL_LOSSES else "point"}
    config = tiny_config(
        loss={"kind": trained_for}, training={"dtype": "float32"}, posterior=posterior
    )
    frames = labelled(config)
    here, there = (says(config, moved(frames, d), kind) for d in (0.0, 1e4))
    for name, value in here.items():
        deviation = float((there[name] - value).abs().max() / value.abs().max())
        assert deviation < 1e-5, (name, deviation)


def test_float32_training_follows_float64():
    names = ("float32", "float64")
    configs = [tiny_config(training={"dtype": name}) for name in names]
    single, double = (says(c, moved(labelled(c), 1e4), "nll_jef") for c in configs)
    for name, value in double.items():
        assert float((single[name] - value).abs().max() / value.abs().max()) < 1e-4, name
