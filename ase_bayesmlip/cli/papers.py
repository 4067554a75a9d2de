"""The papers behind a served file, chosen by its card; `papers.bib` is the one table of them."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

from ase_bayesmlip.card import ModelCard

POSTERIORS = {
    "ensemble": ["deep_ensembles"],
    "swag": ["swag"],
    "ivon": ["ivon"],
    "laplace": ["laplace"],
    "evidential": ["e2ip", "multivariate_evidential"],
}


def papers_of(card: ModelCard) -> dict[str, list[str]]:
    """What a file owes to whom: subject -> names in `papers.bib`, in the order of printing."""
    loss = card.config.get("loss", {})
    eip = loss.get("kind") == "eip"
    subjects = {
        "backbone": ["race", "dimenet"] + ["mace"] * (card.backbone == "race_plus"),
        "posterior": ["eip"] if eip and card.kind == "evidential" else _posterior(card),
        "loss": _loss(loss),
        "optimiser": ["adamw", "amsgrad"] + ["ivon"] * (card.kind == "ivon"),
        "thresholds": ["conformal"] * bool(card.calibration),
        "calibration": _calibration(card),
        "software": ["ase_bayesmlip", "ase", "e3nn", "pytorch"]
        + ["pytorch2"] * bool(card.compiled),
    }
    return {subject: names for subject, names in subjects.items() if names}


def _posterior(card: ModelCard) -> list[str]:
    names = list(POSTERIORS.get(card.kind, []))
    names += ["llpr"] * (card.kind == "laplace" and card.n_draws > 0)  # the last layer alone
    seeds = card.config.get("posterior", {}).get("members", 1)
    if seeds > 1 and card.kind != "ensemble":
        names.append("multiswag" if card.kind == "swag" else "deep_ensembles")
    return names


def _loss(loss: dict[str, Any]) -> list[str]:
    kind = str(loss.get("kind"))
    likelihood = {"nll_jef": ["race"], "evidential": ["e2ip"], "eip": ["eip"]}.get(kind, [])
    weighted = kind in ("nll_jef", "nll_e", "evidential") and loss.get("beta", 0) > 0
    return likelihood + ["beta_nll"] * weighted


def _calibration(card: ModelCard) -> list[str]:
    if not card.recalibrations:
        return []
    scaled = any(record["method"] != "none" for record in card.recalibrations)
    return ["scaled_variances"] * scaled + ["hierarchical_conformal", "calibrated_regression"]


def bibtex() -> dict[str, str]:
    """Name -> entry, as BibTeX."""
    text = (files("ase_bayesmlip.cli") / "papers.bib").read_text("utf-8")
    return {re.search(r"{(\w+),", entry)[1]: entry for entry in text.strip().split("\n\n")}  # type: ignore[index]


def in_words(entry: str) -> str:
    """One paper in a line: authors, title, where, DOI and arXiv number."""
    field = dict(re.findall(r"^  (\w+) = {(.*)},$", entry, flags=re.MULTILINE))
    field = {name: re.sub("[{}]", "", value).replace("--", "–") for name, value in field.items()}
    authors = [name.split(", ")[0] for name in field["author"].split(" and ")]
    few = len(authors) < 4 and "others" not in authors
    where = [field.get("journal") or field.get("booktitle"), field.get("volume")]
    parts = [
        f"{', '.join(authors) if few else f'{authors[0]} et al.'}: {field['title']}",
        " ".join(filter(None, where)),
        field.get("pages"),
        field["year"],
        f"doi:{field['doi']}" if "doi" in field else "",
        f"arXiv:{field['eprint']}" if "eprint" in field else "",
    ]
    return ", ".join(filter(None, parts))


def cite(card: ModelCard, as_bibtex: bool = False) -> str:
    """The papers behind a file, subject by subject, or their BibTeX entries, each once."""
    entries, subjects = bibtex(), papers_of(card)
    if as_bibtex:
        names = dict.fromkeys(name for chosen in subjects.values() for name in chosen)
        return "\n\n".join(entries[name] for name in names)
    return "\n".join(
        f"{subject}\n" + "\n".join(f"  {in_words(entries[name])}" for name in names)
        for subject, names in subjects.items()
    )
