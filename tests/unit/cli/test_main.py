"""The command line: version, usage, help and exit codes."""

import shutil
import subprocess
import sys

import pytest

from ase_bayesmlip import __version__
from ase_bayesmlip.cli.main import main
from ase_bayesmlip.serving.calibrate import write_recalibrated
from ase_bayesmlip.serving.runtime import load_model


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


# --- the card


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["inspect", "MODEL"], {"model.pt": 1}),
        (["evaluate", "MODEL", "TEST@0:4", "--before", "OTHER", "--quiet"],
         {"model.pt": 1, "other.pt": 1}),
        (["calibrate", "MODEL", "TEST@0:12", "-o", "NEW"], {"model.pt": 1, "new.pt.trial": 1}),
        (["md", "MODEL", "TEST@0:1", "--out", "RUN", "--steps", "2", "--threshold", "9",
          "--quiet"], {"model.pt": 1}),
    ],
    ids=["inspect", "evaluate", "calibrate", "md"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_each_card_is_read_once(command, expected, reads, served, tmp_path, data_folder, capsys):
    for name in ("model.pt", "other.pt"):
        shutil.copy(served("small"), tmp_path / name)
    places = {"MODEL": tmp_path / "model.pt", "OTHER": tmp_path / "other.pt"}
    places |= {"TEST": data_folder / "ethanol_test.extxyz", "NEW": tmp_path / "new.pt"}
    places["RUN"] = tmp_path / "run"
    for word, place in places.items():
        command = [argument.replace(word, str(place)) for argument in command]
    if command[0] == "md":
        command[2] = str(places["TEST"])
    assert main(command) == 0, capsys.readouterr().err
    assert reads == expected


def test_a_file_that_changes_while_it_is_calibrated_is_left_alone(served, tmp_path, data_folder):
    path = tmp_path / "model.pt"
    shutil.copy(served("small"), path)
    model = load_model(path, backend="torchscript")
    shutil.copy(served("point"), path)
    with pytest.raises(ValueError, match="has changed since it was loaded"):
        write_recalibrated(model, tmp_path / "new.pt", {}, {})
    assert not (tmp_path / "new.pt").exists()
