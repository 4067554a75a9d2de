"""The machine code in a served file: which parts there may be, their checksums, who made them.

A served file is a program. Its TorchScript program runs in torch's own interpreter; a compiled
part is machine code, which may do anything that the user may. So no part is ever joined to a
folder under a name from the file, each is compared with the SHA-256 that the card has of it before
it is used, and by default it runs only on the machine that compiled it. Which parts these are is
kept in ``~/.cache/ase_bayesmlip/compiled.json`` (``$XDG_CACHE_HOME`` is respected). The checksums
say that a part is the one the card was written with, not that the author of both is to be trusted.

This module is free of torch: ``bayesmlip inspect`` uses it, and executes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ase_bayesmlip.card import DAMAGE
from ase_bayesmlip.files import write_whole

PARTS = ("program.pt2", "lean.pt2", "kernels.so")
_FOLDERS = [f"compiled/{device}-{d}/" for device in ("cpu", "cuda") for d in ("float32", "float64")]
_EXTRA = {"model_card.json", *(folder + part for folder in _FOLDERS for part in PARTS)}

Files = dict[str, bytes]


class PartError(ValueError):
    """A compiled part that is damaged, missing, or not the one that the card was written with."""


def folder_of(record: dict[str, Any]) -> str:
    """Where the files of a compiled program lie among the extra files."""
    return f"compiled/{record['device']}-{record['dtype']}/"


def checksums(files: Files) -> dict[str, str]:
    """SHA-256 of each file, in hexadecimal digits."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def check_names(path: Path) -> None:
    """Refuse an archive with a file in it that we would not have written.

    Raises
    ------
    ValueError
        For an unknown name, a name twice, a path out of the archive, or a link; it is named.
    """
    for entry, count in Counter(_extra_files(path)).items():
        if count > 1:
            raise ValueError(f"{path} holds {entry!r} {count} times; do not use this file")
        if entry not in _EXTRA:
            raise ValueError(
                f"{path} holds a part of an unknown name, {entry!r}; do not use this file (known "
                f"are {', '.join(sorted(_EXTRA))})"
            )


def _extra_files(path: Path) -> list[str]:
    """Names of what is not torch's own in the archive, without its root folder.

    Raises
    ------
    ValueError
        For a name that leaves the folder of the archive, and for a link.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    root = entries[0].orig_filename.split("/", 1)[0] + "/"
    for entry in entries:
        name = entry.orig_filename  # as it is in the file, not as zipfile tidies it
        unusual = {"", ".", ".."} & set(name.split("/")) or "\\" in name or "\0" in name
        if unusual or not name.startswith(root) or stat.S_ISLNK(entry.external_attr >> 16):
            raise ValueError(f"{path} holds {name!r}, which no served file does; do not use it")
    names = [entry.orig_filename.removeprefix(root) for entry in entries]
    return [name.removeprefix("extra/") for name in names if name.startswith("extra/")]


def read_parts(path: Path, records: Sequence[dict[str, Any]]) -> Files:
    """Files of the compiled programs of these records, by their name among the extra files.

    Raises
    ------
    PartError
        If one cannot be read.
    """
    folders = tuple(folder_of(record) for record in records)
    if not folders:
        return {}
    found: Files = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.namelist():
            name = entry.split("/extra/", 1)[-1]
            if name not in _EXTRA or not name.startswith(folders):
                continue
            try:
                found[name] = archive.read(entry)
            except DAMAGE as error:
                raise PartError(f"its {name} is damaged: {error}") from error
    return found


def checked_parts(path: Path, record: dict[str, Any]) -> Files:
    """Files of one compiled program, by their short names, after a look at their checksums.

    Raises
    ------
    PartError
        If one is damaged, missing, or other than the card says.
    """
    folder = folder_of(record)
    files = {name.removeprefix(folder): data for name, data in read_parts(path, [record]).items()}
    if "program.pt2" not in files:
        raise PartError(f"{folder}program.pt2 is missing")
    expected = record.get("sha256")
    if expected is not None and checksums(files) != expected:
        found = checksums(files)
        names = sorted(n for n in found | expected if found.get(n) != expected.get(n))
        raise PartError(f"the checksum of {', '.join(names)} is not that in the card")
    return files


def made_here(digests: Iterable[str]) -> bool:
    """Whether this machine compiled all of these parts; not if there are none to look up."""
    known = set(digests)
    return bool(known) and known <= _recorded()


def remember(digests: Iterable[str]) -> None:
    """Record parts that this machine compiled.

    Raises
    ------
    OSError
        If the record cannot be written, e.g. in a home that is read-only.
    """
    path = record_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"sha256": sorted(_recorded() | set(digests))}
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


def record_path() -> Path:
    """Where the record is, whether it exists or not.

    Raises
    ------
    OSError
        If there is no home folder.
    """
    folder = os.environ.get("XDG_CACHE_HOME", "")
    try:
        cache = Path(folder) if Path(folder).is_absolute() else Path.home() / ".cache"
    except RuntimeError as error:
        raise OSError(f"no folder for the record of compiled programs: {error}") from error
    return cache / "ase_bayesmlip" / "compiled.json"


def _recorded() -> set[str]:
    """Checksums in the record; none if it is absent or unreadable."""
    try:
        content = json.loads(record_path().read_text(encoding="utf-8"))
        return {digest for digest in content["sha256"] if isinstance(digest, str)}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
