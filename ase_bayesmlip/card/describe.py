"""What a card says in words: for ``bayesmlip inspect``, a prompt and a notebook."""

from __future__ import annotations

from html import escape
from typing import Any

EPISTEMIC = {
    "ensemble": "spread of potentials trained from different seeds",
    "swag": "spread of draws from the weights that training visits at a constant rate",
    "ivon": "spread of draws from a variational Gaussian over the weights",
    "laplace": "curvature of the likelihood at trained weights",
    "evidential": "law that the network gives for its own error; its share is a convention",
}


def rows(card: Any) -> dict[str, str]:
    """A `ModelCard` in rows: title -> text, in the order of printing."""
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
            f"{symbol} ({energy:.4f} eV)" for symbol, energy in card.reference_energies.items()
        ),
        "lone atoms": _lone_atoms(card),
        "trained in": card.dtype,
        "compiled for": ", ".join(_machine(record) for record in card.compiled) or "nothing",
        "frames": f"{card.training.get('n_train', '?')} training, "
        f"{card.training.get('n_valid', '?')} validation",
        "data sha256": card.training.get("train_sha256", "?")[:16],
        "fitted when served": _at_home(card),
        "calibrated": _calibrated(card),
        "score": f"{card.default_score}, unless a monitor asks for another"
        if card.has_score
        else "none",
        "thresholds from": _thresholds(card),
        "written": f"{card.created} with torch {card.versions.get('torch')}, "
        f"ase_bayesmlip {card.versions.get('ase_bayesmlip')}",
    }


def summary(card: Any) -> str:
    """A `ModelCard` in one line."""
    elements = " ".join(card.reference_energies)
    calibrated = ", calibrated" if card.recalibrations else ""
    return (
        f"{card.kind}, {card.n_members} member(s) of {card.backbone} for {elements} within "
        f"{card.cutoff:g} Å; thresholds from {_thresholds(card)}{calibrated}"
    )


def html_table(card: Any) -> str:
    """`rows` as a table, with whatever a file may say escaped."""
    body = "".join(
        f'<tr><th style="text-align:right">{escape(title)}</th>'
        f'<td style="text-align:left">{escape(str(text))}</td></tr>'
        for title, text in rows(card).items()
    )
    return f"<table>{body}</table>"


def _thresholds(card: Any) -> str:
    if card.calibration.get("folds"):
        return f"training frames in {len(card.calibration['folds'])} folds"
    n_frames = card.calibration.get("n_frames")
    return f"{n_frames} calibration frames" if n_frames else "nothing"


def _epistemic(card: Any) -> str:
    if not card.has_epistemic:
        return "unknown (one potential)"
    text = EPISTEMIC.get(card.kind, "spread of the members")
    if card.evidential and card.n_members > 1:
        text += ", plus the spread of the members"
    if card.n_draws > 0:
        text += "; energies in closed form, forces from the draws"
        text += ", plus the spread of the members" if card.n_members > 1 else ""
    return text


def _aleatoric(card: Any) -> str:
    parts = [("energy", card.has_aleatoric_energy), ("forces", card.has_aleatoric_forces)]
    known = [name for name, trained in parts if trained]
    if not known:
        return "unknown (no noise heads)"
    return f"misfit at home, from noise heads for {' and '.join(known)}"


def _lone_atoms(card: Any) -> str:
    if card.anchored:
        return "have the energy of their element, without variance"
    trained = card.training.get("has_lone_atoms")
    return "as the training frames had them" if trained else "their energy is unknown"


def _passes(card: Any) -> str:
    """Forward passes and derivatives of them."""
    n, extra = card.n_members, card.n_members * card.n_draws
    text = f"{n} network(s), {n} derivative(s) for forces"
    return text + (f", {extra} more for their epistemic covariance" if extra else "")


def _at_home(card: Any) -> str:
    if not card.home:
        return "nothing: written without the training frames"
    n_train, n_valid = (card.home.get(name, "?") for name in ("n_train", "n_valid"))
    text = f"to {n_train} training and {n_valid} validation frames"
    for name, factor in card.home.get("noise", {}).items():
        alone = " (the spread alone is wide enough)" if factor <= 0.01 else ""
        text += f"; noise of {name} times {factor:.3g}{alone}"
    few = [name for name, share in card.home.get("tenth", {}).items() if share > 2.0 / 3.0]
    if few:
        text += f"; a tenth of the validation frames carries most of the χ² of {' and '.join(few)}"
    text += f"; gauge: {card.home['gauge']}" if "gauge" in card.home else ""
    return text + ("; distances of features" if card.has_feature_distance else "")


def _calibrated(card: Any) -> str:
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
