"""`bayesmlip serve`: from frames to a served file, and folders that are no run."""

import dataclasses
import shutil

import numpy as np
import pytest
from ase.io import read
from tiny import tiny_config

from ase_bayesmlip.calculator import BayesianCalculator
from ase_bayesmlip.card import read_card
from ase_bayesmlip.cli.main import main
from ase_bayesmlip.md import threshold
from ase_bayesmlip.posteriors import POSTERIORS, RunOptions
from ase_bayesmlip.testing import check_served_model
from ase_bayesmlip.training.state import Checkpoint


def test_serve_a_folder_that_is_no_run(tmp_path, capsys):
    assert main(["serve", str(tmp_path), "-o", str(tmp_path / "model.pt")]) == 2
    assert "is no run written by" in capsys.readouterr().err
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.slow
def test_from_frames_to_a_served_file(write_config, tmp_path, data_folder, capsys, ethanol, reads):
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
    reads.clear()
    assert main(["serve", str(run), "-o", str(path), "--calibration", *calibration]) == 0
    assert reads == {"model.pt": 1}
    printed = capsys.readouterr()
    assert "20 calibration frames: false-alarm rates from 4.8 % on can be promised" in printed.out
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


# --- a run that has not come to its end


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for kind, settings in {"ensemble": {"members": 3}, "swag": {"members": 2, "epochs": 2}}.items():
        config = tiny_config(model={"n_layers": 1}, posterior={"kind": kind, **settings})
        POSTERIORS[kind].fit(config, folder / kind, RunOptions(progress=False))
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(trained, tmp_path / "runs")


def stop(path, done, **state):
    """As if the member had been interrupted."""
    found = Checkpoint.read(path)
    dataclasses.replace(found, done=done, finished=False, state={**found.state, **state}).write(
        path
    )


def served(folder, *options):
    return main(["serve", str(folder), "-o", str(folder / "model.pt"), *options])


def test_an_unfinished_run_is_served_on_request_and_marked(run, capsys):
    folder = run / "ensemble"
    stop(folder / "member-01/checkpoint.pt", 3)
    assert served(folder) == 2
    assert "after step 3 of 4; finish it with --resume, or serve it" in capsys.readouterr().err
    shutil.rmtree(folder / "member-02")
    assert served(folder, "--unfinished") == 0
    notes = ["member-01 after step 3 of 4", "member-02 has not begun"]
    assert [f"unfinished: {note}" for note in notes] == capsys.readouterr().err.splitlines()[:2]
    card = read_card(folder / "model.pt")
    assert (card.unfinished, card.n_members) == (notes, 2)
    assert main(["inspect", str(folder / "model.pt")]) == 0
    assert f"unfinished  {'; '.join(notes)}" in capsys.readouterr().out


@pytest.mark.parametrize("early", [{"phase": "mse"}, {"best_loss": float("inf")}])
def test_error_bars_that_nothing_trained_are_not_served(run, capsys, early):
    """The weights of the warm-up have noise heads, too."""
    folder = run / "ensemble"
    stop(folder / "member-00/checkpoint.pt", 2, **early)
    assert served(folder, "--unfinished") == 0
    card = read_card(folder / "model.pt")
    assert (card.unfinished, card.n_members) == (["member-00 is left out after step 2 of 4"], 2)
    stop(folder / "member-01/checkpoint.pt", 2, **early)
    assert served(folder, "--unfinished") == 2
    assert "cannot be served yet (member-00 is left out after" in capsys.readouterr().err


def test_a_stage_that_has_not_come_to_its_end(run, capsys):
    folder = run / "swag"
    path = folder / "member-01/swag.pt"
    moments = Checkpoint.read(path).state["moments"]
    stop(path, 1, moments={**moments, "n": 1})
    assert served(folder, "--unfinished") == 0
    card = read_card(folder / "model.pt")
    assert card.unfinished == ["member-01 is left out after step 1 of 2"]
    assert card.n_members == 8
    assert served(folder) == 2


def test_a_finished_run_is_not_marked(run, capsys):
    assert served(run / "ensemble", "--unfinished") == 0
    assert read_card(run / "ensemble/model.pt").unfinished == []
