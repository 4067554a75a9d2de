"""README and docs are true: Python runs, YAML parses, commands and links exist, tables match."""

import re
import runpy
from pathlib import Path

import pytest
import yaml

from ase_bayesmlip.calculator import BayesianCalculator
from ase_bayesmlip.cli.main import main
from ase_bayesmlip.config import Config, from_dict

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def fences(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize(
    "name", ["README.md", pytest.param("docs/start.md", marks=pytest.mark.slow)]
)
def test_python_of_the_first_screen_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = fences(text_of(name), "python")
    script = tmp_path / "first.py"
    script.write_text(code, encoding="utf-8")
    names = runpy.run_path(str(script))
    printed = capsys.readouterr().out
    assert "(9, 3, 3)" in printed
    assert names["monitor"].n_observed == 101
    assert (tmp_path / "monitor.csv").read_text().count("\n") == 102


def test_python_of_the_monitor_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = fences(text_of("docs/monitor.md"), "python")
    names = {}
    exec(code, names)
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("step ")
    assert names["monitor"].stop_reason
    assert (tmp_path / "flagged.extxyz").exists()


def test_the_readme_is_one_that_is_read():
    assert len(text_of("README.md").encode()) < 8000


def test_yaml_is_a_configuration():
    (whole,) = map(yaml.safe_load, fences(text_of("README.md"), "yaml"))
    part, evidential = map(yaml.safe_load, fences(text_of("docs/which-posterior.md"), "yaml"))
    for name in ("docs/train.md", "docs/start.md"):
        assert list(map(yaml.safe_load, fences(text_of(name), "yaml"))) == [whole]
    from_dict(Config, {**whole, **evidential})
    config = from_dict(Config, whole)
    assert config.posterior.kind == "ensemble"
    assert config.posterior.members == 4
    assert from_dict(Config, whole | part).posterior.kind == "laplace"


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "configs").glob("*.yaml")))
def test_configurations_of_the_examples_are_valid(path):
    from_dict(Config, yaml.safe_load(path.read_text(encoding="utf-8")))


def test_commands_exist(capsys):
    scripts = "\n".join(script for page in PAGES for script in fences(page.read_text(), "bash"))
    commands = set(re.findall(r"bayesmlip (\w+)", scripts))
    assert {"demo", "md", "train", "serve", "inspect", "calibrate", "evaluate"} <= commands
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
        options = capsys.readouterr().out
        for line in scripts.replace("\\\n", " ").splitlines():
            if f"bayesmlip {command} " in line:
                for option in re.findall(r" (--[\w-]+)", line.split(f"bayesmlip {command}")[1]):
                    assert option in options, f"{option} of {line}"


def headings(page):
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", title.lower()) for title in found)
    return {title.replace(" ", "-") for title in kept}


@each_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        other = (page.parent / name) if name else page
        assert other.exists(), f"{page.name}: {target}"
        if heading:
            assert heading in headings(other), f"{page.name}: {target}"


def test_table_of_results_matches_the_calculator(served):
    rows = text_of("docs/results.md").split("\n\n")[2]
    documented = set(re.findall(r"`([a-z_]+)`", rows)) - {"_epistemic", "_aleatoric"}
    documented -= {"return_members"}
    documented -= {"evidential", "forces_dof", "forces_std_epistemic"}  # not of an ensemble
    documented -= {"feature_distances"}  # of files that were given their training frames
    known = set(BayesianCalculator(served("ensemble"), return_members=True).implemented_properties)
    plain = {n for n in known if not n.endswith(("_epistemic", "_aleatoric"))}
    assert documented == plain
