"""The schedule of a training, read from what it writes."""

import csv
import math

import pytest
import torch
from tiny import tiny_config, tiny_potential, tiny_sets

from ase_bayesmlip.training.loop import Trainer
from ase_bayesmlip.training.state import load_state

N_BATCHES = 4  # seven structures in batches of two


def train(folder, until, **training):
    config = tiny_config(loss={"warmup_fraction": 0.5}, training={"evaluate_every": 1, **training})
    trainer = Trainer(tiny_potential(config), *tiny_sets(config), config, folder)
    trainer.potential.requires_grad_(True)
    trainer.run(progress=False, until=until)
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_rate_rises_from_the_first_step_of_each_phase(tmp_path, schedule):
    """The log has the rate of the last step of each epoch; the loss changes after the second."""
    warmup, epochs, rate = 10, 4, 0.01
    settings = {"schedule": schedule, "warmup_steps": warmup, "learning_rate": rate}
    rows = train(tmp_path, None, epochs=epochs, **settings)
    assert [row["phase"] for row in rows] == ["mse"] * 2 + ["nll_jef"] * 2
    for epoch, row in enumerate(rows):
        step = (epoch + 1) * N_BATCHES - 1
        in_phase = step % (2 * N_BATCHES)
        expected = rate * (in_phase + 1) / warmup
        if schedule == "cosine":
            expected *= 0.5 * (1.0 + math.cos(math.pi * step / (epochs * N_BATCHES)))
        assert float(row["learning_rate"]) == pytest.approx(expected, rel=1e-12)


def test_the_optimiser_forgets_the_warm_up(tmp_path):
    """Its moments are those of another loss, and were gathered at other weights."""
    train(tmp_path, 3, epochs=4)
    state = load_state(tmp_path / "checkpoint.pt")
    assert state.phase == "nll_jef"
    steps = {float(torch.as_tensor(m["step"])) for m in state.optimizer["state"].values()}
    assert steps == {float(N_BATCHES)}
