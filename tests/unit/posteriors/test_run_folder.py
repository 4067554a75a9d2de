"""The folder of a run: damaged files are named, and what does not belong together is refused."""

import dataclasses
import json
import shutil

import pytest
import torch
import yaml
from tiny import tiny_config

from ase_bayesmlip.cli.main import main
from ase_bayesmlip.config import to_dict
from ase_bayesmlip.posteriors import RunOptions, laplace
from ase_bayesmlip.posteriors.run_folder import cut_short, prepare_run, read_run
from ase_bayesmlip.training.data import load_training_data
from ase_bayesmlip.training.state import Checkpoint

CONFIG = tiny_config(training={"epochs": 1}, posterior={"kind": "laplace"})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A member and the stage after its training."""
    folder = tmp_path_factory.mktemp("run") / "run"
    laplace.fit(CONFIG, folder, RunOptions(progress=False))
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(trained, tmp_path / "run")


def serve(run, capsys):
    """What `bayesmlip serve` says of a folder that it refuses."""
    assert main(["serve", str(run), "-o", str(run / "model.pt")]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert not (run / "model.pt").exists()
    return said


DAMAGED = {
    "config.yaml": ["", "[]", "a: [", "data: 3", "\0", "training: {epochs: many}", "model:\n- 1"],
    "run.json": [
        "",
        "[]",
        "3",
        "{",
        "{}",
        "[" * 100_000,
        '{"statistics": {}, "probe": {}, "train_sha256": "", "valid_sha256": ""}',
    ],
}


@pytest.mark.parametrize(("name", "text"), [(n, text) for n in DAMAGED for text in DAMAGED[n]])
def test_a_damaged_file_is_named_with_the_repair(run, capsys, name, text):
    (run / name).write_text(text)
    said = serve(run, capsys)
    assert f"{name} is damaged" in said
    assert f"delete {name} and run `bayesmlip train CONFIG --out {run} --resume`" in said


@pytest.mark.parametrize("name", ["statistics", "probe", "train_sha256"])
@pytest.mark.parametrize("value", [None, 3, [], "x", {"numbers": 3}])
def test_a_damaged_record_is_named(run, capsys, name, value):
    record = json.loads((run / "run.json").read_text())
    if type(record[name]) is type(value) is str:
        return
    (run / "run.json").write_text(json.dumps(record | {name: value}))
    assert "run.json is damaged" in serve(run, capsys)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("statistics", "atomic_numbers", [1, 6, 999]),
        ("statistics", "atomic_numbers", [0, 6, 8]),
        ("statistics", "avg_n_neighbors", float("nan")),
        ("statistics", "force_rms", 0.0),
        ("statistics", "reference_energies", [1.0, float("inf"), 1.0]),
        ("probe", "positions", [[0.0]]),
        ("probe", "cell", [1.0, 2.0]),
        ("probe", "pbc", [True]),
    ],
)
def test_numbers_of_the_record_that_cannot_be(run, capsys, part, name, value):
    record = json.loads((run / "run.json").read_text())
    record[part][name] = value
    (run / "run.json").write_text(json.dumps(record))
    assert "run.json is damaged" in serve(run, capsys)


@pytest.mark.parametrize("name", ["config.yaml", "run.json"])
def test_a_lost_file_is_named_and_the_repair_repairs(run, capsys, name):
    expected = (run / name).read_text()
    (run / name).unlink()
    assert f"has lost its {name}; run `bayesmlip train CONFIG" in serve(run, capsys)
    data = load_training_data(CONFIG)
    with pytest.raises(FileExistsError, match="already holds a run"):  # not trained over
        prepare_run(CONFIG, data, run, resume=False)
    prepare_run(CONFIG, data, run, resume=True)
    assert (run / name).read_text() == expected


@pytest.mark.parametrize("name", ["checkpoint.pt", "laplace.pt"])
@pytest.mark.parametrize("content", [b"", b"half", None])
def test_a_damaged_checkpoint_is_named(run, capsys, name, content):
    path = run / "member-00" / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    if name == "checkpoint.pt":  # the stage holds all that is served
        assert main(["serve", str(run), "-o", str(run / "model.pt")]) == 0
        capsys.readouterr()
        (run / "model.pt").unlink()
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["posterior"] = {"kind": "point"}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    said = serve(run, capsys)
    assert name in said
    assert "--resume" in said


def test_a_checkpoint_that_lacks_something_is_named(run, capsys):
    path = run / "member-00/laplace.pt"
    content = torch.load(path, weights_only=True)
    del content["state"]
    torch.save(content, path)
    assert "laplace.pt lacks state; delete the folder" in serve(run, capsys)


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("training", "learning_rate", 0.5),
        ("loss", "forces_weight", 3.0),
        ("model", "cutoff", 2.25),
        ("seeds", "shuffling", 7),
    ],
)
@pytest.mark.parametrize("kind", ["laplace", "point"])
def test_serve_compares_the_configuration_with_the_checkpoints(
    run, capsys, section, name, value, kind
):
    """As after two trainings into one folder: settings of one, weights of the other."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config[section][name] = value
    if kind == "point":
        config["posterior"] = {"kind": "point"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    said = serve(run, capsys)
    assert "was written by another training" in said
    assert f"{section}.{name}: " in said


def test_a_run_from_before_a_setting_existed_is_served(run):
    path = run / "member-00/laplace.pt"
    content = torch.load(path, weights_only=True)
    del content["identity"]["model"]["energy_noise"]
    torch.save(content, path)
    assert laplace.load(run).config == read_run(run)[0]


def test_a_run_from_before_anchors_is_built_as_it_was(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    for name in ("anchor", "repulsion"):
        del config["model"][name]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    record = json.loads((run / "run.json").read_text())
    del record["statistics"]["anchored"]
    (run / "run.json").write_text(json.dumps(record))
    (potential,) = laplace.load(run).run.potentials()
    assert (potential.pairs, potential.anchored) == (None, False)
    prepare_run(read_run(run)[0], load_training_data(CONFIG), run, resume=True)


def test_fewer_epochs_than_are_done_leave_the_configuration_as_it_was(run):
    asked = {n: tiny_config(training={"epochs": n}, posterior={"kind": "laplace"}) for n in (2, 4)}
    data = load_training_data(asked[4])
    for path in run.glob("member-*/laplace*.pt"):
        path.unlink()
    path = run / "member-00" / "checkpoint.pt"
    stored = Checkpoint.read(path)
    stored.identity["training"]["epochs"] = 4
    dataclasses.replace(stored, done=3, finished=False).write(path)
    (run / "config.yaml").write_text(yaml.safe_dump(to_dict(asked[4]), sort_keys=False))
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(ValueError, match=r"has done 3 epochs already; training.epochs is 2"):
        prepare_run(asked[2], data, run, resume=True)
    assert (run / "config.yaml").read_bytes() == before
    prepare_run(asked[4], data, run, resume=True)


def test_what_time_cut_short_is_said_of_every_stage(run):
    config = tiny_config(training={"epochs": 9}, posterior={"kind": "swag", "epochs": 7})
    for path in run.glob("member-*/laplace*.pt"):
        path.unlink()
    path = run / "member-00" / "checkpoint.pt"
    stored = Checkpoint.read(path)
    assert cut_short(tiny_config(training={"epochs": 1}), run) == []
    dataclasses.replace(stored, schedule=[3, 2, 0.5]).write(path)
    dataclasses.replace(stored, schedule=[7, 0, 0.0]).write(run / "member-00" / "swag.pt")
    assert cut_short(config, run) == ["3 of 9 training.epochs"]
    dataclasses.replace(stored, schedule=[2, 1, 0.5]).write(run / "member-00" / "swag.pt")
    assert cut_short(config, run) == ["3 of 9 training.epochs", "2 of 7 posterior.epochs"]
