"""What ``bayesmlip calibrate`` takes and does."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("model", type=Path, help="served file")
    parser.add_argument("frames", nargs="+", help="labelled frames that trained nothing")
    parser.add_argument("-o", "--output", type=Path, required=True, help="may be the same file")
    parser.add_argument(
        "--method",
        choices=["global", "split", "per-element", "per-element-split", "none"],
        default="global",
        help="variance factors: one, one for epistemic and aleatoric, one for each element, both, "
        "or none; levels of confidence (isotonic, conformal) are kept in any case",
    )


def run_calibrate(arguments: argparse.Namespace) -> str:
    """Calibrate a file and say what came of it."""
    from ase_bayesmlip.card import read_card
    from ase_bayesmlip.config import KeysConfig
    from ase_bayesmlip.datasets import read_frames
    from ase_bayesmlip.recalibration import calibrate_file, describe_calibration

    # Labels have the names that they had in training.
    data = read_card(arguments.model).config.get("data", {})
    keys = KeysConfig(**data.get("keys", {}))
    frames = read_frames(arguments.frames, keys, data.get("units", "kcal/mol"))
    card = calibrate_file(arguments.model, frames, arguments.output, arguments.method)
    return f"{describe_calibration(card)}\nwrote {arguments.output}"
