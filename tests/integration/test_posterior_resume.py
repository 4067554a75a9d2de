"""Fits of posteriors that are interrupted anywhere continue to the same bits."""

import csv
import re

import pytest
import torch
from tiny import CONTENT, assert_same, tiny_config

from ase_bayesmlip.posteriors import POSTERIORS, RunOptions, ivon, laplace
from ase_bayesmlip.posteriors.ivon_optimizer import IVON
from ase_bayesmlip.training import epochs, stage
from ase_bayesmlip.training.stage import Stage
from ase_bayesmlip.training.trainer import Trainer

pytestmark = pytest.mark.slow

# Seven structures: four batches of two. Name -> settings, steps of the stage, and what is called
# in it: object, name, times in an uninterrupted fit.
SWAG = {"kind": "swag", "epochs": 4, "snapshot_every": 2, "rank": 2}
IVON_TWICE = {"kind": "ivon", "epochs": 3, "train_samples": 2}
ALL = {"kind": "laplace", "weights": "all", "probes": 2}
CASES = {
    "swag, batch": (SWAG, 4, torch.optim.AdamW, "step", 16),
    "swag, validation": (SWAG, 4, epochs, "validation_metrics", 4),
    "ivon, batch": (IVON_TWICE, 3, IVON, "step", 12),
    "ivon, sample": (IVON_TWICE, 3, ivon, "negative_log_likelihood", 24),
    "ivon, curvature": (IVON_TWICE, 3, ivon, "estimated_diagonal", 7),
    "laplace, batch": ({"kind": "laplace"}, 4, laplace, "linearise_last_layer", 4),
    "laplace, evidence": ({"kind": "laplace"}, 4, laplace, "maximise_evidence", 1),
    "laplace of all, structure": (ALL, 4, laplace, "estimated_diagonal", 7),
    "swag, checkpoint": (SWAG, 4, Stage, "_save", 4),
    "ivon, checkpoint": (IVON_TWICE, 3, Stage, "_save", 3),
    "laplace, checkpoint": ({"kind": "laplace"}, 4, Stage, "_save", 4),
    "swag, log": (SWAG, 4, stage, "append_metrics", 4),
    "ivon, log": (IVON_TWICE, 3, stage, "append_metrics", 3),
    "laplace, log": ({"kind": "laplace"}, 4, stage, "append_metrics", 4),
}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """More than one step for Laplace, too."""
    monkeypatch.setattr(laplace, "BATCH", 2)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Folder of a trained ensemble of two."""
    folder = tmp_path_factory.mktemp("start") / "run"
    config = tiny_config(posterior={"kind": "ensemble", "members": 2})
    POSTERIORS["ensemble"].fit(config, folder, RunOptions(progress=False))
    return folder


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """Function: settings -> folder of a fit that nothing interrupted."""
    folder, done = tmp_path_factory.mktemp("whole"), set()

    def fit(settings):
        name = "-".join(f"{value}" for value in settings.values())
        if name not in done:
            run(settings, start, folder / name)
            done.add(name)
        return folder / name

    return fit


def run(settings, start, folder, **arguments):
    posterior = {"start_from": None if start is None else str(start), **settings}
    config = tiny_config(posterior=posterior)
    return POSTERIORS[settings["kind"]].fit(config, folder, RunOptions(progress=False, **arguments))


def interrupt(monkeypatch, target, name, call):
    """Let the given call of a function (from 1) end in Ctrl-C instead."""
    function, calls = getattr(target, name), []

    def interrupted(*arguments, **keywords):
        calls.append(name)
        if len(calls) == call:
            raise KeyboardInterrupt
        return function(*arguments, **keywords)

    monkeypatch.setattr(target, name, interrupted)


def stages(folder):
    """Content of every checkpoint of a stage, but for the times."""
    paths = sorted(folder.glob("member-*/*.pt"))
    return {
        f"{path.parent.name}/{path.name}": torch.load(path, weights_only=True) | {"seconds": []}
        for path in paths
        if path.name != "checkpoint.pt"
    }


def logs(folder):
    """Metrics of every stage; Laplace's are exact, as all others."""
    found = {}
    for path in sorted(folder.glob("member-*/*.csv")):
        if path.name != "metrics.csv":
            with path.open(newline="") as file:
                found[f"{path.parent.name}/{path.name}"] = list(csv.DictReader(file))
    return found


def assert_same_fit(one, other):
    assert stages(one)
    assert_same(stages(one), stages(other))
    assert logs(one) == logs(other)
    assert not list(other.rglob(".*.pt.*"))


@pytest.mark.parametrize("settings", [SWAG, IVON_TWICE, {"kind": "laplace"}, ALL])
def test_the_cases_count_what_is_called(whole, start, tmp_path, monkeypatch, settings):
    """Otherwise an interruption could be placed where nothing happens."""
    cases = {name: case for name, case in CASES.items() if case[0] == settings}
    calls = []

    def counted(original, name):
        return lambda *a, **k: calls.append(name) or original(*a, **k)

    for name, (_, _, target, function, _) in cases.items():
        monkeypatch.setattr(target, function, counted(getattr(target, function), name))
    run(settings, start, tmp_path / "run")
    assert {name: calls.count(name) for name in cases} == {name: c[4] for name, c in cases.items()}
    assert_same_fit(whole(settings), tmp_path / "run")
    steps = {content["done"] for content in stages(tmp_path / "run").values()}
    assert steps == {case[1] for case in cases.values()}


@pytest.mark.parametrize(
    ("name", "call"),
    [
        (name, call)
        for name, (*_, n_calls) in CASES.items()
        for call in sorted({(2 * n_calls + 2) // 3, n_calls})
    ],
)
def test_an_interrupted_fit_continues_to_the_same_bits(
    whole, start, tmp_path, monkeypatch, name, call
):
    settings, _, target, function, _ = CASES[name]
    with monkeypatch.context() as patches:
        interrupt(patches, target, function, call)
        with pytest.raises(KeyboardInterrupt):
            run(settings, start, tmp_path / "run")
    if not stages(tmp_path / "run"):
        with pytest.raises(FileNotFoundError, match=r"is missing: train the run with --resume"):
            POSTERIORS[settings["kind"]].load(tmp_path / "run")
    elif not all(content["finished"] for content in stages(tmp_path / "run").values()):
        with pytest.raises(ValueError, match=r"after step \d of \d; finish it with --resume"):
            POSTERIORS[settings["kind"]].load(tmp_path / "run")
    run(settings, start, tmp_path / "run", resume=True)
    assert_same_fit(whole(settings), tmp_path / "run")


@pytest.mark.parametrize("settings", [SWAG, IVON_TWICE, {"kind": "laplace"}])
def test_a_finished_fit_is_left_as_it_is(whole, start, settings):
    folder = whole(settings)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    run(settings, start, folder, resume=True)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("target", "function", "call"), [(Trainer, "_step", 21), (torch.optim.AdamW, "step", 33 + 6)]
)
def test_members_and_their_stages_are_continued(tmp_path, monkeypatch, target, function, call):
    """In the training of the second member, and in the stage of the first one."""
    settings = {**SWAG, "members": 2}
    run(settings, None, tmp_path / "whole")
    with monkeypatch.context() as patches:
        interrupt(patches, target, function, call)
        with pytest.raises(KeyboardInterrupt):
            run(settings, None, tmp_path / "parts")
    finished = [(tmp_path / f"parts/member-0{k}/swag.pt").exists() for k in range(2)]
    assert finished == [target is torch.optim.AdamW, False]
    run(settings, None, tmp_path / "parts", resume=True)
    assert_same_fit(tmp_path / "whole", tmp_path / "parts")


# --- what a fit does not continue from


@pytest.fixture
def stopped(start, tmp_path, monkeypatch):
    """Function: settings -> folder of a fit that stopped after its first step."""

    def stop(settings):
        with monkeypatch.context() as patches:
            interrupt(patches, Stage, "_save", 2)
            with pytest.raises(KeyboardInterrupt):
                run(settings, start, tmp_path / "run")
        return tmp_path / "run"

    return stop


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        (SWAG, {"learning_rate": 0.02}),
        (SWAG, {"rank": 3}),
        (SWAG, {"members": 2}),
        (IVON_TWICE, {"beta2": 0.9}),
        (IVON_TWICE, {"train_samples": 1}),
        ({"kind": "laplace"}, {"prior": 2.0}),
        (ALL, {"probes": 3}),
    ],
)
def test_other_settings_are_refused(stopped, start, settings, changes):
    folder = stopped(settings)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    ((key, value),) = changes.items()
    match = rf"other settings \(posterior\.{key}: .* -> {value}\); restore them"
    with pytest.raises(ValueError, match=match):
        run({**settings, **changes}, start, folder, resume=True)
    with pytest.raises(FileExistsError, match="already holds a run; continue it with --resume"):
        run(settings, start, folder)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("settings", [SWAG, IVON_TWICE, {"kind": "laplace"}])
def test_another_start_is_refused_and_a_moved_one_is_not(stopped, whole, start, tmp_path, settings):
    folder = stopped(settings)
    other = tmp_path / "other"
    seeds = {"initialisation": 5}
    config = tiny_config(posterior={"kind": "point"}, seeds=seeds)
    POSTERIORS["point"].fit(config, other, RunOptions(progress=False))
    with pytest.raises(ValueError, match=r"other settings \(start: \w+ -> \w+\)"):
        run(settings, other, folder, resume=True)
    (tmp_path / "moved").symlink_to(start)
    run({**settings, "samples": 3}, tmp_path / "moved", folder, resume=True)
    assert_same(stages(folder), stages(whole(settings)))
    # Draws are asked for when serving, so their number may change.
    state = POSTERIORS[settings["kind"]].load(folder)
    assert state.config.posterior.samples == 3


def test_other_data_is_refused(stopped, start):
    folder = stopped(SWAG)
    data = {"valid": CONTENT["data"]["valid"].replace("30:33", "30:34")}
    config = tiny_config(posterior={**SWAG, "start_from": str(start)}, data=data)
    with pytest.raises(ValueError, match="the valid frames have changed"):
        POSTERIORS["swag"].fit(config, folder, RunOptions(resume=True, progress=False))


def test_a_checkpoint_that_cannot_be_read(stopped, start):
    folder = stopped(SWAG)
    path = folder / "member-00/swag.pt"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"swag\.pt is not a readable checkpoint"):
        run(SWAG, start, folder, resume=True)
    torch.save({"version": 99}, path)
    with pytest.raises(ValueError, match=re.escape(f"{path} is not a checkpoint of version 1")):
        POSTERIORS["swag"].load(folder)


@pytest.mark.parametrize("settings", [SWAG, IVON_TWICE])
def test_divergence_says_what_to_do_and_keeps_the_checkpoint(stopped, start, settings, monkeypatch):
    folder = stopped(settings)
    module = ivon if settings["kind"] == "ivon" else epochs
    before = stages(folder)
    evaluate = module.evaluate

    def broken(*arguments, **keywords):
        outputs = evaluate(*arguments, **keywords)
        return outputs._replace(energy=outputs.energy * float("nan"))

    monkeypatch.setattr(module, "evaluate", broken)
    with pytest.raises(FloatingPointError, match=r"diverged in epoch 2.*lower\s+posterior\.learni"):
        run(settings, start, folder, resume=True)
    assert_same(stages(folder), before)


@pytest.mark.parametrize("sample", [15, 16])
def test_a_single_sample_that_diverged_is_not_stepped_on(stopped, start, monkeypatch, sample):
    """One of the two of the last batch: no later batch would notice."""
    folder = stopped(IVON_TWICE)
    likelihood, calls = ivon.negative_log_likelihood, []

    def broken(*arguments):
        calls.append(1)
        return likelihood(*arguments) * (float("inf") if len(calls) == sample else 1.0)

    monkeypatch.setattr(ivon, "negative_log_likelihood", broken)
    with pytest.raises(FloatingPointError, match="diverged in epoch 3"):
        run(IVON_TWICE, start, folder, resume=True)
    (content,) = stages(folder).values()
    assert content["done"] == 2
    assert content["state"]["deviations"].isfinite().all()
