"""What `bayesmlip inspect` says of a served file, from its card alone (no torch)."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

from ase.data import chemical_symbols

from ase_bayesmlip.card import ModelCard
from ase_bayesmlip.cli.papers import cite
from ase_bayesmlip.metrics.reach import promise

EPISTEMIC = {
    "ensemble": "spread of potentials trained from different seeds",
    "swag": "spread of draws from the weights that training visits at a constant rate",
    "ivon": "spread of draws from a variational Gaussian over the weights",
    "laplace": "curvature of the likelihood at trained weights",
    "evidential": "law that the network gives for its own error; its share is a convention",
}


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
    rows = describe(card) | describe_code(arguments.model, card)
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:>{width}}  {value}")


def describe(card: ModelCard) -> dict[str, str]:
    """Title -> text, in the order of printing."""
    draws = f" with {card.n_draws} draws each" if card.n_draws else ""
    draws += "" if card.seed is None else f", seed {card.seed}"
    return {
        **({"unfinished": "; ".join(card.unfinished)} if card.unfinished else {}),
        "posterior": f"{card.kind}, {card.n_members} member(s){draws}, ddof {card.ddof}",
        "epistemic": _epistemic(card),
        "aleatoric": _aleatoric(card),
        "passes per step": _passes(card),
        "backbone": f"{card.backbone}, {card.n_parameters} parameters per member",
        "cutoff": f"{card.cutoff} Å",
        "elements": ", ".join(
            f"{chemical_symbols[z]} ({card.reference_energies[chemical_symbols[z]]:.4f} eV)"
            for z in card.atomic_numbers
        ),
        "trained in": card.dtype,
        "compiled for": ", ".join(_machine(record) for record in card.compiled) or "nothing",
        "frames": f"{card.training.get('n_train', '?')} training, "
        f"{card.training.get('n_valid', '?')} validation",
        "data sha256": card.training.get("train_sha256", "?")[:16],
        "calibrated": _calibrated(card),
        "thresholds from": _thresholds(card),
        "written": f"{card.created} with torch {card.versions.get('torch')}, "
        f"ase_bayesmlip {card.versions.get('ase_bayesmlip')}",
    }


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


def _epistemic(card: ModelCard) -> str:
    if not card.has_epistemic:
        return "unknown (one potential)"
    text = EPISTEMIC.get(card.kind, "spread of the members")
    if card.evidential and card.n_members > 1:
        text += ", plus the spread of the members"
    if card.n_draws > 0:
        text += "; energies in closed form, forces from the draws"
        text += ", plus the spread of the members" if card.n_members > 1 else ""
    return text


def _aleatoric(card: ModelCard) -> str:
    parts = [("energy", card.has_aleatoric_energy), ("forces", card.has_aleatoric_forces)]
    known = [name for name, trained in parts if trained]
    return f"noise heads trained on {' and '.join(known)}" if known else "unknown (no noise heads)"


def _passes(card: ModelCard) -> str:
    """Forward passes and derivatives of them."""
    n, extra = card.n_members, card.n_members * card.n_draws
    text = f"{n} network(s), {n} derivative(s) for forces"
    return text + (f", {extra} more for their epistemic covariance" if extra else "")


def _thresholds(card: ModelCard) -> str:
    """Frames that thresholds come from, and the smallest false-alarm rate that they promise."""
    folds = card.calibration.get("folds", [])
    parts = [fold["scores"] for fold in folds] or [card.calibration.get("scores", {})]
    sizes = [min(map(len, scores.values()), default=0) for scores in parts]
    if not min(sizes):
        return "nothing"
    if not folds:
        return f"{sizes[0]} calibration frames: {promise(sizes[0])}"
    return (
        f"{sum(sizes)} training frames in {len(folds)} folds, each scored by the members that left "
        f"it out: {promise(min(sizes))}; all folds must agree, which misses more than calibration "
        "frames would"
    )


def _calibrated(card: ModelCard) -> str:
    if not card.recalibrations:
        return "no"
    record = card.recalibrations[-1]
    text = f"{record['method']}, on {record['n_frames']} frames"
    before, after = (record["numbers"][stage] for stage in ("before", "after"))
    for name in after:
        held = [stage.get(name, {}).get("coverage_90") for stage in (before, after)]
        shown = ["unknown" if share is None else f"{share:.1%}" for share in held]
        text += f"; 90% of {name}: {shown[0]} before, {shown[1]} after"
    earlier = len(card.recalibrations) - 1
    return text + (f"; {earlier} calibration(s) earlier" if earlier else "")


def _machine(record: dict[str, Any]) -> str:
    machine = record["machine"]
    return (
        f"{record['device']} in {record['dtype']} ({machine['system']} {machine['machine']}, torch "
        f"{record['torch']}, table error {record['table_error']:.0e})"
    )
