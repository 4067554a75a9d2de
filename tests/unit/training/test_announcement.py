"""The line at the start of a training."""

import csv
import logging
import re

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from tiny import DATA, tiny_config, tiny_potential

from ase_bayesmlip.cli.main import main
from ase_bayesmlip.structures.reading import DataError
from ase_bayesmlip.training.announcement import announce, describe
from ase_bayesmlip.training.data import load_training_data

NAMES = ("forces_rmse_meV_per_A", "energy_rmse_meV_per_atom")


def line(**data) -> str:
    config = tiny_config(data=data)
    return describe(config, load_training_data(config))


def test_what_it_says():
    text = line(calibration=f"{DATA}/ethanol_calib.extxyz@:19")
    n = sum(p.numel() for p in tiny_potential(tiny_config()).parameters())
    assert text.startswith(
        "7 training and 3 validation frames (63 and 27 atoms, 4 batches an epoch); "
        f"{n} parameters; labels: energy 10 of 10, forces"
    )
    assert (
        "forces 10 of 10, stress 0 of 10; elements: H, C, O; reference energies: given in" in text
    )
    assert "19 calibration frames: false-alarm rates from 5 % on can be promised" in text
    assert "\n" not in text


def test_without_calibration_frames_and_with_fitted_references():
    text = line(reference_energies="fit")
    assert "reference energies: fitted to the training frames; no calibration frames" in text
    given = line(reference_energies={"H": -10.0, "C": -1000.0, "O": -2000.0})
    assert "reference energies: given in the configuration" in given


def test_frames_with_stress_are_counted(tmp_path):
    frames = []
    for k in range(4):
        atoms = bulk("Cu", cubic=True)
        atoms.positions[0, 0] += 0.1 * (k + 1)
        atoms.info = {"REF_energy": -1.0} | ({"S": 0.1 * np.eye(3)} if k % 3 else {})
        atoms.arrays["REF_forces"] = np.ones((4, 3))
        frames.append(atoms)
    path = tmp_path / "a.extxyz"
    ase.io.write(path, frames)
    settings = {"train": f"{path}@:2", "valid": f"{path}@2:", "keys": {"stress": "S"}}
    assert "stress 2 of 4; elements: Cu;" in line(reference_energies="fit", **settings)


def test_bad_calibration_frames_are_found_before_the_training():
    config = tiny_config(data={"calibration": f"{DATA}/ethanol_calib.extxyz@900:"})
    data = load_training_data(config)
    with pytest.raises(DataError, match=r"no frames in .* it has 300"):
        announce(config, data)


def test_the_library_is_silent_and_the_command_is_not(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(
        f"data: {{train: {DATA}/ethanol_valid.extxyz@:4, valid: {DATA}/ethanol_valid.extxyz@4:6}}\n"
        "model: {cutoff: 2.5, n_layers: 1, hidden_irreps: 2x0e + 2x1o, radial_hidden: [4],\n"
        "  readout_hidden: 4}\n"
        "training: {epochs: 1}\nposterior: {kind: point}\n"
    )
    config = tiny_config()
    announce(config, load_training_data(config))
    assert capsys.readouterr() == ("", "")
    for more in ([], ["--resume"]):
        assert main(["train", str(path), "--out", str(tmp_path / "run"), "--quiet", *more]) == 0
        first, last = capsys.readouterr().out.splitlines()
        assert first.startswith("4 training and 2 validation frames (36 and 18 atoms, 1 batches")
        run = tmp_path / "run"
        with (run / "member-00/metrics.csv").open() as file:
            (row,) = csv.DictReader(file)
        forces, energies = (float(row[f"valid_{name}"]) for name in NAMES)
        assert last == (
            f"trained {run}: validation RMSE of forces {forces:.3g} meV/Å, of energies "
            f"{energies:.3g} meV/atom; next: bayesmlip serve {run} -o model.pt"
        )
    assert not logging.getLogger("ase_bayesmlip").handlers


def test_frames_with_atoms_that_have_no_neighbour_are_counted():
    """They switch off a check of the monitor."""
    assert "no neighbour" not in line()
    config = tiny_config(model={"cutoff": 1.02})
    text = describe(config, load_training_data(config))
    assert "7 training frames with atoms that have no neighbour" in text


def test_frames_whose_atoms_are_on_their_way_out_are_counted(monkeypatch):
    """Bonds of O and H, the first 40 frames, are pulled to 2.0 Å; later ones move whole groups."""
    assert "leave their neighbours" not in line()
    given = {"reference_energies": f"{DATA}/isolated_atoms.extxyz"}
    stretched = {"train": f"{DATA}/ethanol_ood_stretch.extxyz@:40", **given}
    assert "leave their neighbours" not in line(**given)
    monkeypatch.setattr("ase_bayesmlip.training.announcement.MAX_FRAMES", 20)
    assert re.search(
        r"; atoms leave their neighbours in \d+ training fr.* of 20 ", line(**stretched)
    )
    assert "leave" not in line(**{**stretched, "reference_energies": "fit"})


def test_a_cutoff_that_reaches_no_atom_is_refused():
    with pytest.raises(DataError, match=r"no training atom has a neighbour .* 0\.4 Å"):
        load_training_data(tiny_config(model={"cutoff": 0.4}))
