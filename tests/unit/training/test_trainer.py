"""The schedule of a training, whole or limited in time, and the same bits when it is resumed."""

import csv
import math
import types

import pytest
import torch
from tiny import assert_same, tiny_config, tiny_potential, tiny_sets

from ase_bayesmlip.training import stage
from ase_bayesmlip.training.state import Checkpoint
from ase_bayesmlip.training.trainer import Trainer


@pytest.fixture
def clock(monkeypatch):
    """One second an epoch."""
    found, epoch = types.SimpleNamespace(now=0.0), Trainer.epoch

    def timed(trainer, index):
        found.now += 1.0
        return epoch(trainer, index)

    monkeypatch.setattr(Trainer, "epoch", timed)
    monkeypatch.setattr(stage, "time", types.SimpleNamespace(monotonic=lambda: found.now))


def trainer_of(folder, resume=False, limit=None, seed=0, **training):
    training = {"epochs": 60, "batch_size": 7, "evaluate_every": 1, "warmup_steps": 0, **training}
    config = tiny_config(model={"n_layers": 1}, training=training)
    trainer = Trainer(tiny_potential(config, seed), *tiny_sets(config), config)
    trainer.limit = limit
    trainer.open(folder, resume)
    return trainer


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("limit", "n_epochs"), [(2.0, 3), (8.0, 8)])
def test_the_likelihood_has_its_share_and_the_rate_ends_at_zero(tmp_path, clock, limit, n_epochs):
    trainer = trainer_of(tmp_path, limit=limit)
    trainer.run(progress=False)
    table = rows(tmp_path)
    assert len(table) == trainer.done == n_epochs
    phases = [row["phase"] for row in table]
    assert phases == sorted(phases)  # mse before nll_jef
    assert phases.count("nll_jef") == (1 if n_epochs == 3 else 3)
    rates = [float(row["learning_rate"]) for row in table]
    assert rates == sorted(rates, reverse=True)
    if n_epochs == 8:  # a sixth of the way is left at the one batch of the last epoch
        assert rates[-1] < 0.07 * rates[0]


def test_a_limited_training_resumes_to_the_same_bits(tmp_path, clock):
    trainer_of(tmp_path / "whole", limit=6.0).run(progress=False)
    trainer_of(tmp_path / "parts", limit=6.0).run(progress=False, until=3)
    trainer_of(tmp_path / "parts", resume=True, limit=6.0, seed=5).run(progress=False)
    one, two = (vars(Checkpoint.read(tmp_path / f"{k}/checkpoint.pt")) for k in ("whole", "parts"))
    assert_same(one, two)
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")


def test_fewer_epochs_on_resume_end_the_schedule_there(tmp_path):
    trainer_of(tmp_path, epochs=8).run(progress=False, until=3)
    trainer = trainer_of(tmp_path, resume=True, epochs=5)
    trainer.run(progress=False)
    table = rows(tmp_path)
    assert [row["phase"] for row in table] == ["mse"] * 3 + ["nll_jef"] * 2  # half is at 3.4
    assert trainer.finished
    rates = [float(row["learning_rate"]) for row in table]
    # Cosine at 0, 1/8, 2/8 | 3/8, 3/8 + 5/16.
    assert rates[3] / rates[0] == pytest.approx(0.6913417, rel=1e-6)
    assert rates[4] / rates[0] == pytest.approx(0.2222149, rel=1e-6)


def test_a_checkpoint_of_before_is_continued(tmp_path):
    """Which had all in one mapping."""
    trainer_of(tmp_path / "whole", epochs=4).run(progress=False)
    trainer_of(tmp_path / "parts", epochs=4).run(progress=False, until=2)
    path = tmp_path / "parts/checkpoint.pt"
    found = Checkpoint.read(path)
    kept = {"finished": found.finished, "identity": found.identity, "epoch": found.done}
    torch.save({"version": 1, **found.state, **kept}, path)
    trainer_of(tmp_path / "parts", resume=True, epochs=4, seed=5).run(progress=False)
    one, two = (Checkpoint.read(tmp_path / f"{k}/checkpoint.pt") for k in ("whole", "parts"))
    assert_same(one.state, two.state)


# --- whole

N_BATCHES = 4  # seven structures in batches of two


def train(folder, until, **training):
    config = tiny_config(loss={"warmup_fraction": 0.5}, training={"evaluate_every": 1, **training})
    trainer = Trainer(tiny_potential(config).requires_grad_(True), *tiny_sets(config), config)
    trainer.open(folder, resume=False)
    trainer.run(progress=False, until=until)
    return rows(folder)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_rate_rises_from_the_first_step_of_each_phase(tmp_path, schedule):
    """The log has the rate of the last step of each epoch; the loss changes after the second."""
    warmup, epochs, rate = 10, 4, 0.01
    settings = {"schedule": schedule, "warmup_steps": warmup, "learning_rate": rate}
    table = train(tmp_path, None, epochs=epochs, **settings)
    assert [row["phase"] for row in table] == ["mse"] * 2 + ["nll_jef"] * 2
    for epoch, row in enumerate(table):
        step = (epoch + 1) * N_BATCHES - 1
        in_phase = step % (2 * N_BATCHES)
        expected = rate * (in_phase + 1) / warmup
        if schedule == "cosine":
            expected *= 0.5 * (1.0 + math.cos(math.pi * step / (epochs * N_BATCHES)))
        assert float(row["learning_rate"]) == pytest.approx(expected, rel=1e-12)


def test_the_optimiser_forgets_the_warm_up(tmp_path):
    """Its moments are those of another loss, and were gathered at other weights."""
    train(tmp_path, 3, epochs=4)
    state = Checkpoint.read(tmp_path / "checkpoint.pt").state
    assert state["phase"] == "nll_jef"
    steps = {float(torch.as_tensor(m["step"])) for m in state["optimizer"]["state"].values()}
    assert steps == {float(N_BATCHES)}
