"""`bayesmlip serve`: from frames to a served file, and folders that are no run."""

import numpy as np
from ase.io import read

from ase_bayesmlip.calculator import BayesianCalculator
from ase_bayesmlip.card import read_card
from ase_bayesmlip.cli.main import main
from ase_bayesmlip.md import threshold
from ase_bayesmlip.testing import check_served_model


def test_serve_a_folder_that_is_no_run(tmp_path, capsys):
    assert main(["serve", str(tmp_path), "-o", str(tmp_path / "model.pt")]) == 2
    assert "is no run written by" in capsys.readouterr().err
    assert not (tmp_path / "model.pt").exists()


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
