"""The README is true: its Python runs, its YAML parses, its commands exist."""

import re
import runpy
from pathlib import Path

import pytest
import yaml

from ase_bayesmlip.calculator import BayesianCalculator
from ase_bayesmlip.cli.main import main
from ase_bayesmlip.config import Config, from_dict

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def fences(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = fences("python")
    assert len(code) == 1
    script = tmp_path / "readme.py"
    script.write_text(code[0], encoding="utf-8")
    names = runpy.run_path(str(script))
    printed = capsys.readouterr().out
    assert "(9, 3, 3)" in printed
    assert names["monitor"].n_observed == 101
    assert (tmp_path / "monitor.csv").read_text().count("\n") == 102


def test_yaml_of_the_readme_is_a_configuration():
    whole, part, evidential = map(yaml.safe_load, fences("yaml"))
    from_dict(Config, {**whole, **evidential})
    config = from_dict(Config, whole)
    assert config.posterior.kind == "ensemble"
    assert config.posterior.members == 4
    assert from_dict(Config, whole | part).posterior.kind == "laplace"


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "configs").glob("*.yaml")))
def test_configurations_of_the_examples_are_valid(path):
    from_dict(Config, yaml.safe_load(path.read_text(encoding="utf-8")))


def test_commands_of_the_readme_exist(capsys):
    commands = set(re.findall(r"bayesmlip (\w+)", "\n".join(fences("bash"))))
    assert {"demo", "md", "train", "serve", "inspect"} <= commands
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
    capsys.readouterr()


def test_table_of_results_matches_the_calculator():
    rows = re.search(r"## What the calculator returns(.*?)## ", README, flags=re.DOTALL)[1]
    documented = set(re.findall(r"`([a-z_]+)`", rows)) - {"_epistemic", "_aleatoric"}
    documented -= {"calc", "results", "return_members"}
    documented -= {"evidential", "forces_dof", "forces_std_epistemic"}  # not of an ensemble
    path = ROOT / "data" / "ethanol_ensemble.pt"
    known = set(BayesianCalculator(path, return_members=True).implemented_properties)
    plain = {n for n in known if not n.endswith(("_epistemic", "_aleatoric"))}
    assert documented == plain
