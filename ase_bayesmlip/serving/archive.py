"""The served file on disk: a TorchScript archive with a model card and compiled programs."""

from __future__ import annotations

import dataclasses
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ase_bayesmlip.card import ModelCard, read_card

Files = dict[str, bytes]


@contextmanager
def quiet_torchscript() -> Iterator[None]:
    """Silence torch's notice that TorchScript is deprecated: the user cannot act on it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit\.", DeprecationWarning)
        yield


def folder_of(record: dict[str, Any]) -> str:
    """Where the files of a compiled program lie among the extra files."""
    return f"compiled/{record['device']}-{record['dtype']}/"


def write_served(
    scripted: torch.jit.ScriptModule, card: ModelCard, path: Path, extra: Files | None = None
) -> None:
    """Write a served file; an interruption leaves no half file.

    Parameters
    ----------
    extra : dict of str to bytes
        Files of compiled programs, by their name in the archive.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    files = {"model_card.json": card.to_json(), **(extra or {})}
    try:
        with quiet_torchscript():
            torch.jit.save(scripted, str(temporary), _extra_files=files)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_card(path: Path, card: ModelCard) -> None:
    """Write a served file again with another card, its programs unchanged."""
    extra = read_compiled(path, read_card(path).compiled)
    with quiet_torchscript():
        scripted = torch.jit.load(path, map_location="cpu")
    write_served(scripted, card, path, extra)


def add_compiled(path: Path, record: dict[str, Any], files: Files) -> ModelCard:
    """Write a served file again with one more compiled program, or another in its place."""
    card = read_card(path)
    kept = [other for other in card.compiled if folder_of(other) != folder_of(record)]
    extra = read_compiled(path, kept)
    extra |= {folder_of(record) + name: content for name, content in files.items()}
    card = dataclasses.replace(card, compiled=[*kept, record])
    with quiet_torchscript():
        scripted = torch.jit.load(path, map_location="cpu")
    write_served(scripted, card, path, extra)
    return card


def read_compiled(path: Path, records: list[dict[str, Any]]) -> Files:
    """Files of the compiled programs that the records name, by their name in the archive."""
    folders = tuple(folder_of(record) for record in records)
    if not folders:
        return {}
    with zipfile.ZipFile(path) as archive:
        names = {name: name.split("/extra/", 1)[-1] for name in archive.namelist()}
        return {
            short: archive.read(name) for name, short in names.items() if short.startswith(folders)
        }
