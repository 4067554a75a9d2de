"""Training on several processes gives what one process gives.

Run by torchrun, this file is its own worker: see `work`.
"""

import dataclasses
import os
import subprocess
import sys
import typing
from pathlib import Path

import ase.io
import pytest
import torch
import yaml

from ase_bayesmlip.cli.main import main
from ase_bayesmlip.config import Config, LossConfig, from_dict, to_dict
from ase_bayesmlip.config.loss import EVIDENTIAL_LOSSES, EvidenceConfig
from ase_bayesmlip.nn.build import build_potential
from ase_bayesmlip.posteriors import RunOptions, ensemble
from ase_bayesmlip.training import distributed
from ase_bayesmlip.training.data import GraphDataset, load_training_data
from ase_bayesmlip.training.loss import loss
from ase_bayesmlip.training.outputs import evaluate
from ase_bayesmlip.training.state import Checkpoint
from ase_bayesmlip.training.trainer import Trainer

pytestmark = pytest.mark.slow

DATA = Path(__file__).parents[2] / "data"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

# Batches of 3, 3 and 1 structures: parts of 2 and 1, and in the end of 1 and none.
ETHANOL = {
    "data": {
        "train": f"{DATA}/ethanol_valid.extxyz@0:7",
        "valid": f"{DATA}/ethanol_valid.extxyz@30:33",
        "reference_energies": f"{DATA}/isolated_atoms.extxyz",
    },
    "model": {
        "cutoff": 2.5,
        "n_layers": 1,
        "hidden_irreps": "4x0e + 4x1o + 4x2e",
        "n_radial": 4,
        "radial_hidden": [8],
        "readout_hidden": 8,
    },
    "training": {
        "epochs": 6,
        "batch_size": 3,
        "warmup_steps": 3,
        "evaluate_every": 2,
        "dtype": "float64",
    },
    "loss": {"warmup_fraction": 0.5},
    "posterior": {"kind": "ensemble", "members": 2},
}


def make_config(**sections) -> Config:
    content = dict(ETHANOL)
    for name, values in sections.items():
        content[name] = {**content[name], **values}
    return from_dict(Config, content)


def write_mixture(folder: Path) -> Path:
    """Molecules and crystals: other numbers of atoms, stress labels on some."""
    molecules = ase.io.read(DATA / "ethanol_valid.extxyz", "0:3")
    crystals = ase.io.read(DATA / "co2_train.extxyz", "0:4")
    crystals[1].info.pop("REF_stress")
    frames = [crystals[0], molecules[0], crystals[1], molecules[1], crystals[2], molecules[2]]
    path = folder / "mixture.extxyz"
    ase.io.write(path, [*frames, crystals[3]])
    return path


def cases(folder: Path) -> dict[str, Config]:
    return {
        "uneven": make_config(),
        "fewer structures than ranks": make_config(training={"batch_size": 1, "epochs": 2}),
        "stress on some": make_config(data={"train": str(folder / "mixture.extxyz")}),
    }


def make_sets(config: Config) -> tuple[GraphDataset, GraphDataset]:
    data = load_training_data(config)
    train, valid = (
        GraphDataset(frames, data.references, config.model.cutoff, torch.float64)
        for frames in (data.train, data.valid)
    )
    return train, valid


def make_potential(config: Config, seed: int = 0) -> torch.nn.Module:
    statistics = load_training_data(config).statistics
    return build_potential(config.model, config.loss, statistics, seed)


def train(config: Config, folder: Path) -> dict[str, torch.Tensor]:
    trainer = Trainer(make_potential(config), *make_sets(config), config)
    trainer.open(folder, resume=False)
    trainer.run(progress=False)
    return dict(trainer.potential.state_dict())


# --- the worker ----------------------------------------------------------------------------------


def work(folder: Path) -> None:
    """What each of two ranks does."""
    rank = distributed.rank()
    with distributed.process_group("cpu") as device:
        assert device == "cpu"
        for name, config in cases(folder).items():
            # A folder for each rank shows what each writes.
            weights = train(config, folder / f"{name}, rank {rank}")
            torch.save(weights, folder / f"{name}, rank {rank}.pt")
    assert not torch.distributed.is_initialized()
    take_step, n_steps = Trainer._step, 0

    def interrupted(trainer, value):
        nonlocal n_steps
        n_steps += 1
        # In the fourth epoch of the second member.
        if n_steps == 18 + 11:
            raise KeyboardInterrupt
        take_step(trainer, value)

    Trainer._step = interrupted
    for _ in range(2):
        try:
            ensemble.fit(make_config(), folder / "parts", RunOptions(resume=True, progress=False))
        except KeyboardInterrupt:
            assert Checkpoint.read(folder / "parts/member-01/checkpoint.pt").done == 3


def fail(folder: Path) -> None:
    """One of two ranks stops with an error while the other one trains."""

    def broken(trainer, value):
        raise FloatingPointError("rank 1 has no more numbers")

    if distributed.rank() == 1:
        Trainer._step = broken
    ensemble.fit(make_config(), folder / "failed", RunOptions(progress=False))


def torchrun(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*TORCHRUN, *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **streams) as process:
        try:
            stdout, stderr = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun then ends its workers; killed, it would leave them
            raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


# --- two processes -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worked(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("worked")
    write_mixture(folder)
    result = torchrun(__file__, "work", str(folder))
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def commanded(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A run of the command line that nothing interrupted."""
    folder = tmp_path_factory.mktemp("commanded")
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(to_dict(make_config())))
    command = ["train", str(config), "--out", str(folder / "run")]
    result = torchrun("-m", "ase_bayesmlip", *command)
    assert result.returncode == 0, result.stderr
    return folder / "run", result


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        # Sums in another order: the round-off of about twenty steps in float64.
        torch.testing.assert_close(value, other[name], rtol=1e-11, atol=1e-11, msg=name)


@pytest.mark.parametrize("name", cases(Path()))
def test_two_ranks_train_the_weights_of_one_process(worked, tmp_path, name):
    config = cases(worked)[name]
    first, second = (
        torch.load(worked / f"{name}, rank {rank}.pt", weights_only=True) for rank in (0, 1)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    start = make_potential(config).state_dict()
    assert not torch.allclose(first["embedding"], start["embedding"], rtol=1e-3)
    assert_close(train(config, tmp_path), first)
    one, two = (
        Checkpoint.read(path / "checkpoint.pt").state
        for path in (tmp_path, worked / f"{name}, rank 0")
    )
    assert two["best_loss"] == pytest.approx(one["best_loss"], rel=1e-9)
    assert_close(one["best"], two["best"])


def metrics(folder: Path) -> list[list[str]]:
    lines = (folder / "metrics.csv").read_text().splitlines()
    return [line.split(",")[:-1] for line in lines]  # without the seconds


@pytest.mark.parametrize("name", cases(Path()))
def test_only_rank_0_writes(worked, tmp_path, name):
    written = sorted(path.name for path in (worked / f"{name}, rank 0").iterdir())
    assert written == ["checkpoint.pt", "metrics.csv"]
    assert not (worked / f"{name}, rank 1").exists()
    train(cases(worked)[name], tmp_path)
    for one, two in zip(metrics(tmp_path), metrics(worked / f"{name}, rank 0"), strict=True):
        for value, other in zip(one, two, strict=True):
            try:
                assert float(other) == pytest.approx(float(value), rel=1e-9)
            except ValueError:
                assert value == other


def test_command_line(commanded, tmp_path):
    folder, result = commanded
    assert result.stdout.count("; next: bayesmlip serve") == 1
    # The first line of a bar is drawn once; how often the last one is depends on the clock.
    for member in ("member-00", "member-01"):
        assert result.stderr.count(f"{member}:   0%") == 1
    alone = ensemble.fit(make_config(), tmp_path / "run", RunOptions(progress=False))
    for one, two in zip(alone.weights, ensemble.load(folder).weights, strict=True):
        assert_close(one, two)
    for name in ("config.yaml", "run.json"):
        assert (folder / name).read_text() == (tmp_path / "run" / name).read_text()


def test_an_interrupted_run_continues_to_the_same_bits(commanded, worked):
    whole, _ = commanded
    for member in ("member-00", "member-01"):
        one, two = (
            Checkpoint.read(folder / member / "checkpoint.pt")
            for folder in (whole, worked / "parts")
        )
        assert one.done == two.done == 6
        one, two = one.state, two.state
        for part in ("model", "average", "best"):
            assert all(torch.equal(one[part][name], two[part][name]) for name in one[part])
        for index, moments in one["optimizer"]["state"].items():
            for name, value in moments.items():
                assert torch.equal(value, two["optimizer"]["state"][index][name])
        assert metrics(whole / member) == metrics(worked / "parts" / member)


def test_an_error_on_one_rank_ends_all(tmp_path):
    result = torchrun(__file__, "fail", str(tmp_path))
    assert result.returncode != 0
    assert "rank 1 has no more numbers" in result.stderr
    assert not list(tmp_path.rglob("checkpoint.pt"))


# --- the parts of a batch ------------------------------------------------------------------------

KINDS = {
    kind
    for name in ("kind", "warmup")
    for kind in typing.get_args(typing.get_type_hints(LossConfig)[name])
}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> Config:
    path = write_mixture(tmp_path_factory.mktemp("mixture"))
    return make_config(data={"train": str(path)})


def gradient(potential, kind, graph, labels, config) -> tuple[float, torch.Tensor]:
    outputs = evaluate(potential, graph, True, create_graph=True)
    value = loss(kind, config, outputs, labels, graph, unit=0.8)
    parameters = list(potential.parameters())
    found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    return value.item(), torch.cat([part.flatten() for part in found])


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 4, 9])
@pytest.mark.parametrize(
    ("kind", "mode"), [(kind, "coupled") for kind in sorted(KINDS)] + [("evidential", "paper")]
)
def test_parts_add_up_to_the_batch(mixture, kind, mode, n_ranks):
    from noise import wake_noise

    batch = [5, 0, 2, 4, 4, 6, 1]
    data, _ = make_sets(mixture)
    config = dataclasses.replace(mixture.loss, evidence=EvidenceConfig(mode=mode))
    # The heads that the loss needs; those of nll_jef serve the losses without a noise model.
    built = dataclasses.replace(config, kind=kind if kind in EVIDENTIAL_LOSSES else "nll_jef")
    model = dataclasses.replace(mixture.model, n_layers=2)
    potential = wake_noise(make_potential(dataclasses.replace(mixture, loss=built, model=model)))
    whole = gradient(potential, kind, *next(data.batches(batch, len(batch))), config)
    parts = [
        gradient(
            potential,
            kind,
            *distributed.part_of_batch(data, batch, kind, config, rank, n_ranks),
        )
        for rank in range(n_ranks)
    ]
    assert sum(value for value, _ in parts) == pytest.approx(whole[0], rel=1e-12)
    total = torch.stack([part for _, part in parts]).sum(0)
    torch.testing.assert_close(total, whole[1], rtol=0, atol=1e-12 * float(whole[1].norm()))
    for rank, (value, part) in enumerate(parts):
        assert (rank < len(batch)) == (value != 0.0) == bool(part.any())


def test_parts_differ_by_one_structure_at_most(mixture):
    data, _ = make_sets(mixture)
    for n_ranks in (2, 3, 4):
        parts = [
            distributed.part_of_batch(data, range(7), "mse", mixture.loss, rank, n_ranks)[0]
            for rank in range(n_ranks)
        ]
        sizes = [part.n_graphs for part in parts]
        assert sum(sizes) == 7
        assert max(sizes) - min(sizes) <= 1


# --- the environment -----------------------------------------------------------------------------


@pytest.fixture
def as_rank_1(monkeypatch):
    """The environment of a process that torchrun started."""
    values = {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "::1", "MASTER_PORT": 9}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


def test_ranks_come_from_torchrun(as_rank_1, monkeypatch):
    assert (distributed.rank(), distributed.world_size()) == (1, 2)
    # Schedulers set some of the variables too.
    monkeypatch.delenv("LOCAL_RANK")
    assert (distributed.rank(), distributed.world_size()) == (0, 1)


def test_one_process_of_torchrun_trains_as_without_it(as_rank_1, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    with distributed.process_group("cuda:3") as device:
        assert device == "cuda:3"
        distributed.barrier()
        assert not torch.distributed.is_initialized()


def test_every_rank_has_a_gpu_of_its_own(as_rank_1, monkeypatch):
    connected = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    def connect(backend, *, rank, world_size, device_id, store):
        connected.append((backend, rank, world_size, str(device_id)))

    store = torch.distributed.HashStore()
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda url: iter([(store, 1, 2)]))
    monkeypatch.setattr(torch.distributed, "init_process_group", connect)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", connected.clear)
    with distributed.process_group("cuda") as device:
        assert device == "cuda:1"
        assert connected == [("nccl", 1, 2, "cuda:1")]
    assert not connected
    with (
        pytest.raises(ValueError, match="'cuda:0' is one GPU for all processes; use 'cuda'"),
        distributed.process_group("cuda:0"),
    ):
        pass
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(ValueError, match="no GPU of its own: torch sees 1"),
        distributed.process_group("cuda"),
    ):
        pass


def test_jobs_are_refused_under_torchrun(as_rank_1, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(to_dict(make_config())))
    command = ["train", str(config), "--out", str(tmp_path / "run"), "--jobs", "2"]
    assert main(command) == 2
    assert "jobs is 2, but under torchrun" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


if __name__ == "__main__":
    {"work": work, "fail": fail}[sys.argv[1]](Path(sys.argv[2]))
