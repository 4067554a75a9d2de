"""The command ``bayesmlip``; each of its commands is a module of that name."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

from ase.calculators.calculator import PropertyNotImplementedError
from ase.io.formats import UnknownFileTypeError

from ase_bayesmlip._version import WITHOUT_TORCH, __version__
from ase_bayesmlip.cli import calibrate, compile, demo, evaluate, inspect, md, serve, train

# In the order of `bayesmlip --help`.
COMMANDS = (train, serve, compile, calibrate, inspect, evaluate, md, demo)
USER_ERRORS = (ValueError, ArithmeticError, OSError, ImportError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; errors that a user can repair are printed without a traceback."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except (*USER_ERRORS, UnknownFileTypeError, PropertyNotImplementedError) as error:
        no_torch = getattr(error, "name", None) == "torch"
        said = WITHOUT_TORCH if no_torch else error
        print(f"bayesmlip {parsed.command}: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"bayesmlip {parsed.command}: interrupted; what was written is kept", file=sys.stderr)
        return 130
    return 0


class _Help(argparse.HelpFormatter):
    """Shows the default of every option that takes a value."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        takes_value = action.option_strings and action.nargs != 0 and not action.required
        if not takes_value or "(default" in text:
            return text
        known = action.default not in (None, argparse.SUPPRESS)
        return f"{text} (default: {'%(default)s' if known else 'none'})"


class _Parser(argparse.ArgumentParser):
    """Takes -1e6 and -inf for numbers, where Python before 3.14 takes them for options."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=_Help, **settings)
        self._negative_number_matcher = re.compile(
            r"-(inf|(\d+\.?\d*|\.\d+)(e[-+]?\d+)?)$", re.IGNORECASE
        )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="bayesmlip",
        description="Bayesian machine-learned potentials in ASE molecular dynamics.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser
