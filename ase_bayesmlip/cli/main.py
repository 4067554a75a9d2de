"""The command ``bayesmlip``; each of its commands is a module of that name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ase.calculators.calculator import PropertyNotImplementedError
from ase.io.formats import UnknownFileTypeError

from ase_bayesmlip._version import __version__
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
        print(f"bayesmlip {parsed.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"bayesmlip {parsed.command}: interrupted; what was written is kept", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bayesmlip",
        description="Bayesian machine-learned potentials in ASE molecular dynamics.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser
