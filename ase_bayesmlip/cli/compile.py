"""``bayesmlip compile``: add a program compiled for this machine to a served file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "compile", help="add a program compiled for this machine to a served file"
    )
    parser.add_argument("model", type=Path, help="served file; rewritten in place")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--dtype", choices=["float32", "float64"], help="precision (default: of the training)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Compile a served file in place."""
    compile_file(arguments.model, arguments.device, arguments.dtype)


def compile_file(path: Path, device: str, dtype: str | None) -> None:
    """Compile, say so, and leave the file as it was if that fails."""
    from ase_bayesmlip.serving.compiler import compile_served

    print(f"compiling {path} for this machine (one to two minutes) ...", file=sys.stderr)
    try:
        card = compile_served(path, device, dtype)
    except RuntimeError as error:
        raise ValueError(f"{error}; {path} serves with TorchScript as before") from error
    record = card.compiled[-1]
    print(
        f"compiled {path} for {record['device']} in {record['dtype']} in {record['seconds']:.0f} s;"
        f" forces agree with the reference to {record['deviation']['forces']:.0e}, relative"
    )
