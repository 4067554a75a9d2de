"""The command line: version, usage, help and exit codes."""

import subprocess
import sys

import pytest

from ase_bayesmlip import __version__
from ase_bayesmlip.cli.main import main


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
