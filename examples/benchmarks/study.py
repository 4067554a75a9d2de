"""What the studies `evidential.py` and `calibration.py` share: arguments, and a file of numbers."""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ase_bayesmlip.nn.allocator import keep_freed_memory


def parser_of(description: str | None, datasets: Iterable[str]) -> argparse.ArgumentParser:
    """The arguments that every study takes."""
    names = list(datasets)
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("runs", type=Path, help="folder of the runs")
    parser.add_argument("--datasets", nargs="+", choices=names, default=names)
    parser.add_argument("--evaluate-only", action="store_true")
    parser.add_argument("--jobs", type=int, default=1, help="members trained at a time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="keep the numbers there as JSON")
    return parser


def begin(arguments: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """The folder of the runs, made if need be, and the numbers of before by data set."""
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    folder = arguments.runs.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.out and arguments.out.is_file():
        return folder, json.loads(arguments.out.read_text(encoding="utf-8"))["datasets"]
    return folder, {}


def keep(path: Path | None, results: dict[str, Any]) -> None:
    """Write the numbers of all data sets, if that was asked for."""
    if path:
        content = {"torch": torch.__version__, "datasets": results}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
