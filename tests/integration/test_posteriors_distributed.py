"""Posteriors fitted by two processes: the same weights on both, other samples on each.

Run by torchrun, this file is its own worker: see `work`.
"""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest does; the workers need it

from tiny import assert_same, tiny_config

from ase_bayesmlip.posteriors import RunOptions, ivon, laplace, point, swag
from ase_bayesmlip.posteriors.ivon_optimizer import IVON
from ase_bayesmlip.training import distributed

pytestmark = pytest.mark.slow

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

# Seven structures in batches of three: parts of 2 and 1, and in the end of 1 and none.
TRAINING = {"batch_size": 3, "epochs": 2}
EPOCHS, N_BATCHES = 3, 3


def config_of(start, kind="ivon", **settings):
    epochs = {} if kind == "laplace" else {"epochs": EPOCHS}
    posterior = {"kind": kind, "start_from": str(start), **epochs, **settings}
    return tiny_config(training=TRAINING, posterior=posterior)


def sharp(start):
    """So certain of its weights that samples are the mean, and that it stays where it is."""
    return config_of(start, hess_init=1e20)


# --- the worker ----------------------------------------------------------------------------------


def work(folder: Path) -> None:
    """What each of two ranks does."""
    rank, start = distributed.rank(), folder / "start"
    perturb, step, seen = IVON._perturb, IVON.step, {"samples": [], "means": []}

    def followed(optimizer, generator):
        perturb(optimizer, generator)
        first = optimizer.param_groups[0]["params"][0]
        seen["samples"].append(first.detach().clone())

    def stepped(optimizer, reduce=None):
        step(optimizer, reduce)
        parameters = [p.detach().flatten() for g in optimizer.param_groups for p in g["params"]]
        deviations = [std.flatten() for std in optimizer.posterior_std()]
        seen["means"].append(torch.cat([*parameters, *deviations]))

    IVON._perturb, IVON.step = followed, stepped
    ivon.fit(config_of(start), folder / "ivon", RunOptions(progress=False))
    torch.save(seen, folder / f"seen-{rank}.pt")
    n_steps = 0

    def interrupted(optimizer, reduce=None):
        nonlocal n_steps
        n_steps += 1
        if n_steps == N_BATCHES + 2:  # in the second epoch
            raise KeyboardInterrupt
        step(optimizer, reduce)

    IVON.step = interrupted
    for _ in range(2):
        try:
            ivon.fit(config_of(start), folder / "parts", RunOptions(resume=True, progress=False))
        except KeyboardInterrupt:
            torch.distributed.destroy_process_group()  # as the end of the processes would
    IVON._perturb, IVON.step = perturb, step
    ivon.fit(sharp(start), folder / "sharp", RunOptions(progress=False))
    swag.fit(config_of(start, "swag"), folder / "swag", RunOptions(progress=False))
    laplace.fit(config_of(start, "laplace"), folder / "laplace", RunOptions(progress=False))


# --- two processes -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worked(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("worked")
    config = tiny_config(training=TRAINING)
    point.fit(config, folder / "start", RunOptions(progress=False))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*TORCHRUN, __file__, str(folder)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **streams) as process:
        try:
            _, errors = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun then ends its workers; killed, it would leave them
            raise
    assert process.returncode == 0, errors
    return folder


def stage_of(folder, name):
    content = torch.load(folder / f"member-00/{name}.pt", weights_only=True)
    return content | {"seconds": []}


def log_of(folder, name):
    with (folder / f"member-00/{name}.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_ranks_have_the_same_means_and_samples_of_their_own(worked):
    one, two = (torch.load(worked / f"seen-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert len(one["means"]) == len(one["samples"]) == EPOCHS * N_BATCHES
    assert_same(one["means"], two["means"])
    for sample, other in zip(one["samples"], two["samples"], strict=True):
        assert not torch.isclose(sample, other, rtol=1e-12, atol=0.0).any()
    # What the ranks have is what rank 0 wrote.
    content = stage_of(worked / "ivon", "ivon")
    assert content["finished"]
    n_weights = len(content["state"]["deviations"])
    assert torch.equal(one["means"][-1][n_weights:], content["state"]["deviations"])
    embedding = content["state"]["model"]["embedding"].flatten()
    assert torch.equal(one["means"][-1][: len(embedding)], embedding)


def test_an_interrupted_fit_continues_to_the_same_bits(worked):
    assert_same(stage_of(worked / "ivon", "ivon"), stage_of(worked / "parts", "ivon"))
    assert log_of(worked / "ivon", "ivon") == log_of(worked / "parts", "ivon")


def test_the_log_is_of_whole_batches_and_not_of_the_part_of_a_rank(worked, tmp_path):
    ivon.fit(sharp(worked / "start"), tmp_path / "alone", RunOptions(progress=False))
    logs = [log_of(folder, "ivon") for folder in (tmp_path / "alone", worked / "sharp")]
    for one, two in zip(*logs, strict=True):
        # A σ of 10⁻¹⁰: likelihoods differ by that times their slopes, of up to 10⁴.
        assert two == pytest.approx(one, rel=1e-6, abs=1e-9)


def test_snapshots_of_two_ranks_are_those_of_one(worked, tmp_path):
    alone = swag.fit(
        config_of(worked / "start", "swag"), tmp_path / "alone", RunOptions(progress=False)
    )
    both = swag.load(worked / "swag")
    # Sums in another order: the round-off of nine steps in float64, in units of the weights.
    for name in ("mean", "deviations"):
        one, two = (getattr(state.moments[0], name) for state in (alone, both))
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)
    for one, two in zip(
        log_of(tmp_path / "alone", "swag"), log_of(worked / "swag", "swag"), strict=True
    ):
        assert two == pytest.approx(one, rel=1e-8)


def test_a_curvature_of_two_ranks_is_that_of_one(worked, tmp_path):
    alone = laplace.fit(
        config_of(worked / "start", "laplace"), tmp_path / "alone", RunOptions(progress=False)
    )
    (one,), (two,) = alone.gaussians, laplace.load(worked / "laplace").gaussians
    assert torch.equal(one.precision, two.precision)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
