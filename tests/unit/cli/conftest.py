"""A configuration to train from, and who reads which card, for tests of the commands."""

from collections import Counter
from pathlib import Path

import pytest
import yaml

from ase_bayesmlip.card import ModelCard


@pytest.fixture
def write_config(tmp_path, data_folder):
    """Function that writes a small training configuration with changes: {"model": {...}}."""

    def write(**changes):
        content = {
            "data": {
                "train": f"{data_folder / 'ethanol_train.extxyz'}@0:40",
                "reference_energies": str(data_folder / "isolated_atoms.extxyz"),
            },
            "model": {
                "cutoff": 3.0,
                "n_layers": 1,
                "hidden_irreps": "4x0e + 4x1o + 4x2e",
                "n_radial": 4,
                "radial_hidden": [8],
                "readout_hidden": 8,
            },
            "loss": {"warmup_fraction": 0.5},
            "training": {"epochs": 2, "batch_size": 8, "warmup_steps": 2, "evaluate_every": 1},
            "posterior": {"kind": "ensemble", "members": 2},
        }
        for section, values in changes.items():
            content[section] = {**content[section], **values}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path

    return write


@pytest.fixture
def reads(monkeypatch):
    """How often the card of each file is read."""
    counted = Counter()
    read = ModelCard.from_json.__func__

    def count(cls, text, source="model card"):
        counted[Path(source).name] += 1
        return read(cls, text, source)

    monkeypatch.setattr(ModelCard, "from_json", classmethod(count))
    return counted
