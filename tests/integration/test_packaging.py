"""What a user installs: the wheel holds the code and the files of the demonstration."""

import configparser
import importlib.metadata
import importlib.resources
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ["setup.cfg", "pyproject.toml", "README.md", "LICENSE", "ase_bayesmlip", "data"]


@pytest.fixture(scope="module")
def settings():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the sources, without a network."""
    version = importlib.metadata.version("setuptools")
    if int(version.split(".")[0]) < 77:
        pytest.skip(f"building needs setuptools >= 77, this is {version}")
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / "src" / name)
        else:
            (folder / "src").mkdir(exist_ok=True)
            shutil.copy(source, folder / "src" / name)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "wheel", ".", *options, "-w", str(folder)]
    done = subprocess.run(
        command, cwd=folder / "src", capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_package_list_equals_the_folders(settings):
    listed = settings["options"]["packages"].split()
    folders = {
        path.parent.relative_to(ROOT) for path in (ROOT / "ase_bayesmlip").rglob("__init__.py")
    }
    names = {".".join(folder.parts) for folder in folders} | {"ase_bayesmlip.data"}
    assert sorted(listed) == sorted(names)
    stray = {path.parent for path in (ROOT / "ase_bayesmlip").rglob("*.py")} - {
        ROOT / folder for folder in folders
    }
    assert not stray, "folders with modules and without __init__.py"


def test_wheel_holds_every_module_and_the_data(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ase_bayesmlip").rglob("*.py")}
    assert modules <= names
    assert {"ase_bayesmlip/py.typed", "ase_bayesmlip/cli/papers.bib"} <= names
    data = [path for path in (ROOT / "data").iterdir() if path.suffix in (".extxyz", ".pt")]
    assert {f"ase_bayesmlip/data/{path.name}" for path in data} <= names
    assert any(path.name.startswith("ethanol") for path in data)
    assert not {name for name in names if name.startswith(("tests", "examples"))}


def test_wheel_states_its_command_and_version(wheel):
    with zipfile.ZipFile(wheel) as archive:
        read = {
            name.rpartition("/")[2]: name for name in archive.namelist() if ".dist-info" in name
        }
        metadata = archive.read(read["METADATA"]).decode()
        scripts = archive.read(read["entry_points.txt"]).decode()
    version = importlib.metadata.version("ase-bayesmlip")
    assert f"\nVersion: {version}\n" in metadata
    assert "bayesmlip = ase_bayesmlip.cli.main:main" in scripts


def test_unpacked_wheel_runs_away_from_the_sources(wheel, served, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = """
import sys
from importlib.resources import files
import ase_bayesmlip
assert ase_bayesmlip.__file__.startswith(sys.argv[1]), ase_bayesmlip.__file__
data = files("ase_bayesmlip.data")
assert str(data).startswith(sys.argv[1]), data
assert (data / "ethanol_test.extxyz").is_file()
from ase_bayesmlip.cli.main import main
raise SystemExit(main(["inspect", sys.argv[2]]))
"""
    site = str(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-c", code, site, str(served("race"))],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": site},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "ensemble, 2 member(s)" in done.stdout


@pytest.mark.slow
def test_ase_lists_the_calculator_of_an_unpacked_wheel(wheel, tmp_path):
    pytest.importorskip("ase._4.plugins", reason="new in ASE 3.29")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-m", "ase", "info", "--plugins"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "CalculatorPlugin\n----------------\nbayesmlip\n" in done.stdout


def test_data_is_found_in_this_installation():
    assert (importlib.resources.files("ase_bayesmlip.data") / "ethanol_train.extxyz").is_file()


def test_console_script_is_installed():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="bayesmlip")
    assert script.load().__module__ == "ase_bayesmlip.cli.main"


def test_pinned_versions_satisfy_the_requirements(settings):
    """Every requirement has an exact version in constraints.txt, or is a package of types."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0].lower() for line in lines if "==" in line}
    required = settings["options"]["install_requires"].split()
    names = {item.partition(">=")[0].lower() for item in required}
    assert names <= pinned
