"""``bayesmlip train``: from a configuration to a folder with a run."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ase_bayesmlip.config import Config


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser("train", help="train the potential(s) of a configuration")
    parser.add_argument("config", type=Path, help="YAML configuration")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--jobs", type=int, help="members at a time (default: one per core)")
    parser.add_argument("--quiet", action="store_true", help="two lines and no progress bars")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Train, on this process or under torchrun."""
    from ase_bayesmlip.config import load_config
    from ase_bayesmlip.nn.allocator import keep_freed_memory
    from ase_bayesmlip.posteriors import POSTERIORS, RunOptions
    from ase_bayesmlip.posteriors.members import available_cores
    from ase_bayesmlip.serving.runtime import find_device
    from ase_bayesmlip.training.distributed import rank, world_size

    config = load_config(arguments.config)
    find_device(arguments.device)
    keep_freed_memory()
    one_per_core = arguments.device == "cpu" and world_size() == 1
    options = RunOptions(
        resume=arguments.resume,
        device=arguments.device,
        jobs=arguments.jobs or (available_cores() if one_per_core else 1),
        progress=not arguments.quiet,
    )
    with announced():
        POSTERIORS[config.posterior.kind].fit(config, arguments.out, options)
    if rank() == 0:
        print(
            f"trained {arguments.out}{_shortened(config, arguments.out)}"
            f"{_errors(arguments.out)}; next: bayesmlip serve {arguments.out} -o model.pt"
        )


def _shortened(config: Config, folder: Path) -> str:
    """Whether time ended a stage early; resuming does not lengthen what has come to its end."""
    from ase_bayesmlip.posteriors.run_folder import cut_short

    found = cut_short(config, folder)
    return f" (training.time_limit left {' and '.join(found)})" if found else ""


def _errors(folder: Path) -> str:
    """The best validation errors of the members that were trained there."""
    from ase_bayesmlip.training.log import METRICS_FILE, best_errors

    found = [best_errors(path) for path in sorted(folder.glob(f"member-*/{METRICS_FILE}"))]
    if not found:  # a posterior around the members of another run
        return ""
    forces, energies = (
        f"{min(values):.3g}" + f" to {max(values):.3g}" * (len(values) > 1)
        for values in zip(*found, strict=True)
    )
    return f": validation RMSE of forces {forces} meV/Å, of energies {energies} meV/atom"


@contextmanager
def announced() -> Iterator[None]:
    """Print what the package logs: what is trained, or flagged, which --quiet keeps."""
    logger, handler = logging.getLogger("ase_bayesmlip"), logging.StreamHandler(sys.stdout)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
