"""The served file on disk: a TorchScript archive with a model card and compiled programs."""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ase_bayesmlip.card import ModelCard, read_card
from ase_bayesmlip.files import write_whole
from ase_bayesmlip.serving.parts import Files, PartError, checksums, folder_of, read_parts


@contextmanager
def quiet_torchscript() -> Iterator[None]:
    """Silence torch's notice that TorchScript is deprecated: the user cannot act on it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit\.", DeprecationWarning)
        yield


def write_served(
    scripted: torch.jit.ScriptModule, card: ModelCard, path: Path, extra: Files | None = None
) -> None:
    """Write a served file; an interruption or a full disk leaves no half file.

    Parameters
    ----------
    extra : dict of str to bytes
        Files of compiled programs, by their name in the archive.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    with quiet_torchscript():
        files = {"model_card.json": card.to_json(), **(extra or {})}
        torch.jit.save(scripted, buffer, _extra_files=files)
    write_whole(path, buffer.getvalue())


def replace_card(path: Path, card: ModelCard) -> None:
    """Write a served file again with another card and the programs that it names.

    Raises
    ------
    ValueError
        If a compiled part is damaged.
    """
    _write_again(path, card, _parts(path, card.compiled))


def add_compiled(
    path: Path, record: dict[str, Any], files: Files, card: ModelCard | None = None
) -> ModelCard:
    """Write a served file again with one more compiled program, or another in its place.

    The record gets the checksums of the files.

    Parameters
    ----------
    card : ModelCard, optional
        Of the file, where it has been read and the file has not changed since.

    Raises
    ------
    ValueError
        If a part that stays is damaged.
    """
    card = card or read_card(path)
    kept = [other for other in card.compiled if folder_of(other) != folder_of(record)]
    extra = _parts(path, kept)
    extra |= {folder_of(record) + name: content for name, content in files.items()}
    card = dataclasses.replace(card, compiled=[*kept, record | {"sha256": checksums(files)}])
    _write_again(path, card, extra)
    return card


def _parts(path: Path, records: list[dict[str, Any]]) -> Files:
    try:
        return read_parts(path, records)
    except PartError as error:
        raise ValueError(
            f"{path}: {error}; write the file again with `bayesmlip serve`, and compile it"
        ) from error


def _write_again(path: Path, card: ModelCard, extra: Files) -> None:
    with quiet_torchscript():
        scripted = torch.jit.load(str(path), map_location="cpu")
    write_served(scripted, card, path, extra)
