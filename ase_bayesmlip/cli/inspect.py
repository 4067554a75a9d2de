"""``bayesmlip inspect``: what a served file is, from its card alone (no torch)."""

from __future__ import annotations

import argparse
import hashlib
import math
from pathlib import Path
from typing import Any

from ase_bayesmlip.card import ModelCard
from ase_bayesmlip.card.describe import rows
from ase_bayesmlip.cli.papers import cite
from ase_bayesmlip.metrics.reach import promise


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser("inspect", help="print the card of a served file (no torch)")
    parser.add_argument("model", type=Path, help="served file")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="the whole card as JSON")
    form.add_argument("--cite", action="store_true", help="the papers behind the file")
    form.add_argument("--bibtex", action="store_true", help="the same as BibTeX")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the card, in words or as JSON."""
    from ase_bayesmlip.card import read_card
    from ase_bayesmlip.serving.parts import check_names

    card = read_card(arguments.model)
    check_names(arguments.model)
    if arguments.json:
        print(card.to_json())
        return
    if arguments.cite or arguments.bibtex:
        print(cite(card, arguments.bibtex))
        return
    said = describe(card) | describe_code(arguments.model, card)
    width = max(map(len, said))
    for name, value in said.items():
        print(f"{name:>{width}}  {value}")


def describe(card: ModelCard) -> dict[str, str]:
    """Title -> text, in the order of printing."""
    return rows(card) | {"thresholds from": thresholds(card)}


def describe_code(path: Path, card: ModelCard) -> dict[str, str]:
    """What a file would execute, and whether it is what its card says: title -> text."""
    from ase_bayesmlip.serving.parts import PartError, checked_parts, checksums, made_here

    rows = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "code": "TorchScript program"}
    for record in card.compiled:
        title = f"{record['device']} {record['dtype']}"
        try:
            found = checksums(checked_parts(path, record))
        except PartError as error:
            rows[title] = f"machine code that will not run: {error}"
            continue
        rows["code"] += f", machine code for {record['device']} in {record['dtype']}"
        parts = ", ".join(f"{name} {digest[:16]}" for name, digest in found.items())
        agree = "as in the card" if "sha256" in record else "none in the card"
        here = made_here(record.get("sha256", {}).values())
        runs = "compiled on this machine" if here else 'not compiled here: backend="aoti" to run it'
        rows[title] = f"{parts} (checksums {agree}; {runs})"
    return rows


def thresholds(card: ModelCard) -> str:
    """Frames that thresholds come from, and the smallest false-alarm rate that they promise."""
    folds = card.calibration.get("folds", [])
    parts = [fold["scores"] for fold in folds] or [card.calibration.get("scores", {})]
    sizes = [min(map(len, scores.values()), default=0) for scores in parts]
    if not min(sizes):
        return "nothing"
    if not folds:
        worth = min(sizes[0], _effective_frames(card))
        words = f" (correlated, worth {worth:.0f} independent ones)" * (worth < sizes[0])
        return f"{sizes[0]} calibration frames{words}: {promise(worth)}"
    return (
        f"{sum(sizes)} training frames in {len(folds)} folds, each scored by the members that left "
        f"it out: {promise(min(sizes))}; all folds must agree, which misses more than calibration "
        "frames would"
    )


def _effective_frames(card: ModelCard) -> float:
    """How many independent frames the calibration frames are worth; infinite if unknown."""
    from ase_bayesmlip.md.correlation import effective_number

    series = card.calibration.get("series", {"scores": {}})
    counts = [effective_number(v, series["trajectory"]) for v in series["scores"].values()]
    return min(counts, default=math.inf)
