"""What `bayesmlip inspect` says of a file."""

import dataclasses
import json

from ase_bayesmlip.card import read_card
from ase_bayesmlip.card.describe import rows
from ase_bayesmlip.cli.main import main


def test_inspect_table(served, capsys):
    assert main(["inspect", str(served("ensemble"))]) == 0
    printed = capsys.readouterr()
    rows = dict(line.strip().split("  ", 1) for line in printed.out.splitlines())
    assert rows["posterior"] == "ensemble, 4 member(s), ddof 1"
    assert rows["epistemic"] == "spread of potentials trained from different seeds"
    assert rows["aleatoric"] == "misfit at home, from noise heads for energy and forces"
    assert rows["passes per step"] == "4 network(s), 4 derivative(s) for forces"
    assert "cost" not in " ".join(rows)  # which is of other potentials
    assert rows["cutoff"] == "4.0 Å"
    assert rows["elements"] == "H (-13.6000 eV), C (-1027.5000 eV), O (-2041.9000 eV)"
    assert rows["trained in"] == "float64"
    assert rows["thresholds from"] == "nothing"
    assert printed.err == ""


def test_inspect_says_what_is_unknown(served, capsys):
    heads = {
        "mse": "unknown (no noise heads)",
        "point": "misfit at home, from noise heads for energy and forces",
    }
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


def test_what_was_fitted_to_the_frames_of_the_run(loaded):
    home = {
        "n_train": 400,
        "n_valid": 50,
        "gauge": "2 of 3",
        "noise": {"energy": 0.01, "forces": 0.25},
        "tenth": {"energy": 0.9, "forces": 0.3},
    }
    card = loaded("ensemble").card
    assert "without the training frames" in rows(card)["fitted when served"]
    said = rows(dataclasses.replace(card, home=home))["fitted when served"]
    assert said.startswith(
        "to 400 training and 50 validation frames; noise of energy times 0.01 (the"
    )
    assert "noise of forces times 0.25; a tenth" in said
    assert "most of the χ² of energy; gauge: 2 of 3" in said
