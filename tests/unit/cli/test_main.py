"""The command line: exit codes, messages, and one run from frames to a served file."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml
from ase.io import read

from ase_bayesmlip import __version__
from ase_bayesmlip.calculator import BayesianCalculator
from ase_bayesmlip.card import read_card
from ase_bayesmlip.cli.main import main
from ase_bayesmlip.md import threshold
from ase_bayesmlip.testing import check_served_model


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


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("arguments", [[], ["fly"], ["train"], ["serve", "run"], ["inspect"]])
def test_wrong_usage_is_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: bayesmlip" in capsys.readouterr().err


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    for command in ("train", "serve", "inspect", "md", "demo"):
        assert command in printed


def test_installed_command():
    code = "from ase_bayesmlip.cli.main import main; raise SystemExit(main())"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, "--version"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, __version__, "")


# --- inspect ---


def test_inspect_table(served, capsys):
    assert main(["inspect", str(served("ensemble"))]) == 0
    printed = capsys.readouterr()
    rows = dict(line.strip().split("  ", 1) for line in printed.out.splitlines())
    assert rows["posterior"] == "ensemble, 4 member(s), ddof 1"
    assert rows["epistemic"] == "spread of potentials trained from different seeds"
    assert rows["aleatoric"] == "noise heads trained on energy and forces"
    assert rows["passes per step"] == "4 network(s), 4 derivative(s) for forces"
    assert re.match(r"ethanol \d+\.\d \(compiled \d+\.\d\), water_192 ", rows["measured cost"])
    assert rows["cutoff"] == "4.0 Å"
    assert rows["elements"] == "H (-13.6000 eV), C (-1027.5000 eV), O (-2041.9000 eV)"
    assert rows["trained in"] == "float64"
    assert rows["thresholds from"] == "nothing"
    assert printed.err == ""


def test_inspect_says_what_is_unknown(served, capsys):
    heads = {"mse": "unknown (no noise heads)", "point": "noise heads trained on energy and forces"}
    for name, expected in heads.items():
        assert main(["inspect", str(served(name))]) == 0
        printed = capsys.readouterr().out
        assert "epistemic  unknown (one potential)\n" in printed
        assert f"aleatoric  {expected}\n" in printed


def test_inspect_json_is_the_card(served, capsys):
    assert main(["inspect", "--json", str(served("ensemble"))]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(read_card(served("ensemble")).to_json())


def test_inspect_missing_file(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "no.pt")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("bayesmlip inspect: no model file at")
    assert "Traceback" not in printed.err


# --- train and serve ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"cutof": 3.0}}, "unknown key 'model.cutof'; did you mean 'cutoff'?"),
        ({"training": {"epoch": 3}}, "unknown key 'training.epoch'; did you mean 'epochs'?"),
        ({"model": {"cutoff": -1.0}}, "model.cutoff"),
        ({"posterior": {"members": 1}}, "at least 2"),
        ({"data": {"train": "/no/such/file.extxyz"}}, "/no/such/file.extxyz"),
        ({"data": {"keys": {"energy": "DFT_energy"}}}, "DFT_energy"),
    ],
)
def test_train_refuses_a_wrong_configuration(write_config, tmp_path, capsys, changes, message):
    arguments = ["train", str(write_config(**changes)), "--out", str(tmp_path / "run")]
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("bayesmlip train: ")
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert not (tmp_path / "run").exists()


def test_train_without_a_configuration(tmp_path, capsys):
    assert main(["train", str(tmp_path / "no.yaml"), "--out", str(tmp_path / "run")]) == 2
    assert "no configuration file at" in capsys.readouterr().err


def test_interruption_is_exit_code_130(write_config, tmp_path, capsys, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("ase_bayesmlip.posteriors.ensemble.fit", interrupt)
    assert main(["train", str(write_config()), "--out", str(tmp_path / "run")]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_serve_a_folder_that_is_no_run(tmp_path, capsys):
    assert main(["serve", str(tmp_path), "-o", str(tmp_path / "model.pt")]) == 2
    assert "is no run written by" in capsys.readouterr().err
    assert not (tmp_path / "model.pt").exists()


def test_from_frames_to_a_served_file(write_config, tmp_path, data_folder, capsys, ethanol):
    run, path = tmp_path / "run", tmp_path / "model.pt"
    assert main(["train", str(write_config()), "--out", str(run), "--quiet"]) == 0
    printed = capsys.readouterr()
    assert "bayesmlip serve" in printed.out
    assert printed.err == ""

    assert main(["train", str(write_config()), "--out", str(run), "--quiet"]) == 2
    assert "--resume" in capsys.readouterr().err

    calibration = [f"{data_folder / 'ethanol_calib.extxyz'}@0:20"]
    assert main(["serve", str(run), "-o", str(path)]) == 0
    assert "no calibration frames" in capsys.readouterr().err
    assert main(["serve", str(run), "-o", str(path), "--calibration", *calibration]) == 0
    printed = capsys.readouterr()
    assert f"wrote {path}" in printed.out
    assert printed.err == ""

    card = read_card(path)
    assert (card.kind, card.n_members, card.dtype) == ("ensemble", 2, "float32")
    assert (card.training["n_train"], card.training["n_valid"]) == (36, 4)
    assert str(tmp_path) not in card.to_json()
    assert card.calibration["n_frames"] == 20
    assert len(card.calibration["sha256"]) == 64
    scores = card.calibration["scores"]
    assert all(len(values) == 20 for values in scores.values())
    assert all(list(values) == sorted(values) for values in scores.values())
    assert threshold.false_alarm_threshold(scores["forces_epistemic_max"], 0.1) > 0

    assert main(["inspect", str(path)]) == 0
    assert "20 calibration frames" in capsys.readouterr().out

    calculator = BayesianCalculator(path, dtype="float64")
    check_served_model(calculator.model, ethanol)
    frames = read(data_folder / "ethanol_train.extxyz", "0:3")
    errors = [
        result["energy"] - frame.info["REF_energy"]
        for result, frame in zip(calculator.evaluate(frames), frames, strict=True)
    ]
    # Reference energies come from isolated atoms: what is left is the energy of the bonds.
    assert np.abs(errors).max() < 60.0

    assert main(["serve", str(run), "-o", str(path), "--samples", "3"]) == 2
    assert "3 samples asked of 2 trained members" in capsys.readouterr().err
    assert read_card(path) == card
