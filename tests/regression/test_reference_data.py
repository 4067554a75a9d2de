"""Real quantum-mechanical labels: they read, and a small potential learns from them."""

import numpy as np
import pytest
import torch

from ase_bayesmlip.config import Config, LossConfig, from_dict
from ase_bayesmlip.nn.build import build_potential
from ase_bayesmlip.structures.labelled import read_frames
from ase_bayesmlip.training.data import GraphDataset, load_training_data
from ase_bayesmlip.training.trainer import Trainer
from ase_bayesmlip.training.validation import validation_metrics

pytestmark = pytest.mark.reference_data


@pytest.mark.parametrize(
    ("name", "n_frames", "has_stress"),
    [
        ("acac/train_300K", 500, False),
        ("3bpa/train_300K", 500, False),
        ("mlearn/si_train", None, True),
        ("water_deepmd/calib", None, False),
    ],
)
def test_reference_frames_read(reference_data, name, n_frames, has_stress):
    frames = read_frames(str(reference_data / f"{name}.extxyz.xz"))
    assert n_frames is None or len(frames) == n_frames
    assert all((frame.stress is not None) == has_stress for frame in frames)
    assert all(np.isfinite(frame.forces).all() for frame in frames)


def test_learns_acetylacetone(reference_data, tmp_path):
    folder = reference_data / "acac"
    config = from_dict(
        Config,
        {
            "data": {
                "train": f"{folder}/train_300K.extxyz.xz@0:60",
                "valid": f"{folder}/train_300K.extxyz.xz@450:470",
                "reference_energies": f"{folder}/isolated_atoms.extxyz.xz",
            },
            "model": {"hidden_irreps": "8x0e + 8x1o", "radial_hidden": [16]},
            "loss": {"kind": "mse"},
            "training": {"epochs": 12, "batch_size": 4, "warmup_steps": 10},
        },
    )
    data = load_training_data(config)
    potential = build_potential(
        config.model, LossConfig(kind="mse"), data.statistics, 0, torch.float32
    )
    sets = [
        GraphDataset(frames, data.references, config.model.cutoff, torch.float32)
        for frames in (data.train, data.valid)
    ]
    trainer = Trainer(potential, *sets, config)
    trainer.open(tmp_path / "run", resume=False)
    trainer.run(progress=False)
    trainer.potential.load_state_dict(trainer.now.best)
    trained = trainer.potential.requires_grad_(False)
    metrics = validation_metrics(
        trained, sets[1], "mse", config.loss, False, data.statistics.force_rms
    )
    assert metrics["forces_rmse_meV_per_A"] < 0.35 * 1e3 * data.statistics.force_rms
