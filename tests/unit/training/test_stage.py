"""The loop of all stages: limits of time on a false clock, fewer epochs, and files of before."""

import itertools
import types

import pytest
import torch

from ase_bayesmlip.training import stage
from ase_bayesmlip.training.stage import Stage
from ase_bayesmlip.training.state import Checkpoint


class Toy(Stage):
    """Steps that cost what the clock is told, and remember the progress."""

    name, log, section = "toy", "toy.csv", "training"

    def __init__(self, clock, epochs, costs=None, limit=None):
        identity = {"training": {"epochs": epochs}, "posterior": {}}
        super().__init__(epochs, identity, torch.device("cpu"))
        self.clock, self.costs, self.limit = clock, costs or {}, limit
        self.passed = []

    def step(self, index):
        self.clock.now += self.costs.get(index, 1.0)
        self.passed.append(self.schedule.at(index))
        return {"progress": self.passed[-1]}

    def state(self):
        return {"passed": self.passed}

    def restore(self, state):
        self.passed = list(state["passed"])


@pytest.fixture
def clock(monkeypatch):
    found = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(stage, "time", types.SimpleNamespace(monotonic=lambda: found.now))
    return found


def run(toy, folder, resume=False, until=None):
    toy.open(folder, resume)
    toy.run(progress=False, until=until)
    return toy


@pytest.mark.parametrize(
    ("costs", "limit", "n_epochs"),
    [
        ({}, 10.0, 10),
        ({}, 1000.0, 50),
        ({0: 6.0}, 15.0, 10),  # the first is slow
        (dict.fromkeys(range(5, 50), 3.0), 20.0, 10),  # 5 s, and then 15 s at 3 s
        ({}, 0.5, 2),  # never fewer: the first one could not know
    ],
)
def test_a_run_ends_with_its_time_and_its_schedule_with_it(tmp_path, clock, costs, limit, n_epochs):
    toy = run(Toy(clock, 50, costs, limit), tmp_path)
    assert toy.finished
    assert toy.done == len(toy.passed) == n_epochs
    assert sum(toy.seconds) <= max(limit, 2.0)
    assert toy.passed == sorted(toy.passed)
    assert toy.schedule.at(toy.done) == pytest.approx(1.0, abs=1e-12)
    # Without a jump but that of the epochs that a bad start took for many.
    steps = [b - a for a, b in itertools.pairwise([*toy.passed[2:], 1.0])]
    assert max(steps, default=0.0) < 3.0 / n_epochs


@pytest.mark.parametrize("stop", [1, 2, 6, 9])
def test_time_spent_is_remembered(tmp_path, clock, stop):
    costs = {0: 4.0, 3: 2.0}
    whole = run(Toy(clock, 50, costs, 15.0), tmp_path / "whole")
    run(Toy(clock, 50, costs, 15.0), tmp_path / "parts", until=stop)
    clock.now += 5000.0  # nobody trained meanwhile
    parts = run(Toy(clock, 50, costs, 15.0), tmp_path / "parts", resume=True)
    assert parts.passed == whole.passed
    one, two = (Checkpoint.read(tmp_path / name / "toy.pt") for name in ("whole", "parts"))
    assert one == two
    assert (tmp_path / "whole/toy.csv").read_text() == (tmp_path / "parts/toy.csv").read_text()


def test_another_limit_refits_the_rest(tmp_path, clock):
    run(Toy(clock, 50, limit=40.0), tmp_path, until=20)
    toy = run(Toy(clock, 50, limit=30.0), tmp_path, resume=True)
    assert toy.done == 30
    assert toy.passed[20] == pytest.approx(0.5, abs=0.01)
    assert toy.passed[25] == pytest.approx(0.75, abs=0.01)


def test_fewer_epochs_may_be_asked_for(tmp_path, clock):
    run(Toy(clock, 10), tmp_path, until=4)
    for epochs in (3, 4):
        with pytest.raises(ValueError, match=rf"done 4 epochs already; .* is {epochs}"):
            Toy(clock, epochs).open(tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"other settings \(training\.epochs: 10 -> 11\)"):
        Toy(clock, 11).open(tmp_path, resume=True)
    toy = run(Toy(clock, 6), tmp_path, resume=True)
    assert toy.done == 6
    assert toy.passed == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.7])
    # What has come to its end stays as it is.
    assert run(Toy(clock, 5), tmp_path, resume=True).done == 6


def test_a_checkpoint_of_before_knows_its_epochs_by_its_settings(tmp_path, clock):
    run(Toy(clock, 10), tmp_path, until=4)
    path = tmp_path / "toy.pt"
    content = torch.load(path, weights_only=True)
    del content["schedule"], content["seconds"]
    torch.save(content, path)
    assert run(Toy(clock, 6), tmp_path, resume=True).passed[4:] == pytest.approx([0.4, 0.7])


def test_a_stage_has_the_steps_that_it_needs(tmp_path, clock):
    toy = Toy(clock, 50, limit=1.0)
    toy.least = 7
    assert run(toy, tmp_path).done == 7


def test_the_first_rank_decides(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(stage, "of_first_rank", lambda numbers, device: {"epochs": 5.0})
    assert run(Toy(clock, 50, limit=20.0), tmp_path).done == 5


def test_the_bar_knows_its_length_from_the_start(tmp_path, clock, capsys):
    toy = Toy(clock, 4)
    toy.open(tmp_path / "member-00", resume=False)
    toy.run(progress=True)
    drawn = capsys.readouterr().err
    assert "member-00 toy:   0%" in drawn
    assert "4/4" in drawn
