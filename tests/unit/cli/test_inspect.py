"""What `bayesmlip inspect` says of a file."""

import json

from ase_bayesmlip.card import read_card
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
