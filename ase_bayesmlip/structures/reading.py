"""Structures from files of any format that ASE reads, each with its number in the file."""

from __future__ import annotations

import glob
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ase.io
from ase import Atoms
from ase.io.formats import filetype, open_with_compression

from ase_bayesmlip.structures.extxyz_text import problems_of

COMPRESSED = (".gz", ".bz2", ".xz")
ISOLATED = "IsolatedAtom"
LFS_POINTER = b"version https://git-lfs.github.com"

# What folders hold frames in, the surest first: runs of a program, of `bayesmlip md`, collections.
LABELLED: tuple[str, ...] = ("recalculated.extxyz", "vasprun.xml", "OUTCAR", "type.raw")
LABELLED += tuple(f"*.{ending}" for ending in ("out", "extxyz", "xyz", "db", "traj", "npz"))


class DataError(ValueError):
    """Labelled frames that cannot be used; the message names file, frame and key."""


def split_slice(path: str) -> tuple[Path, slice]:
    """``file@0:450`` to the path and its slice; without ``@`` all frames.

    Raises
    ------
    DataError
        If what follows the last ``@`` is no slice, and there is no file of the whole name.
    """
    name, _, text = str(path).rpartition("@")
    if not name or Path(path).exists():
        return Path(path), slice(None)
    try:
        parts = [int(part) if part else None for part in text.split(":")]
        if len(parts) == 1 and parts[0] is not None:
            stop = parts[0] + 1 if parts[0] != -1 else None
            return Path(name), slice(parts[0], stop)
        chosen = slice(*parts)
        chosen.indices(1)  # a step of 0 is an error here
        return Path(name), chosen
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: '{text}' is no slice such as 0:450 or ::2") from error


def data_files(paths: str | Sequence[str]) -> list[tuple[Path, slice]]:
    """Every file that is meant, once, with its slice: as listed, matches of a pattern sorted.

    Raises
    ------
    FileNotFoundError
        If a pattern such as ``runs/*/vasprun.xml`` matches nothing.
    DataError
    """
    found: dict[str, tuple[Path, slice]] = {}
    for path in [paths] if isinstance(paths, str) else paths:
        name, index = split_slice(path)
        names = [name]
        if glob.has_magic(str(name)) and not name.exists():
            # Unlike Path.glob this leaves hidden files out.
            names = [Path(match) for match in sorted(glob.glob(str(name), recursive=True))]  # noqa: PTH207
            if not names:
                raise FileNotFoundError(f"no data file matches {name}; {_what_is_there(name)}")
        for each in names:
            found.setdefault(f"{each.resolve()}@{index}", (each, index))
    return list(found.values())


def in_words(paths: str | Sequence[str]) -> str:
    """The files in the order in which they are read; of many, their number, the first and last."""
    names = [str(name) for name, _ in data_files(paths)]
    if len(names) <= 3:
        return ", ".join(names)
    return f"{len(names)} files, {names[0]}, {names[1]}, ... {names[-1]}"


def _what_is_there(name: Path) -> str:
    """The part of a path that exists, with some of its content."""
    folder = next((parent for parent in name.parents if parent.is_dir()), Path())
    content = sorted(each.name + "/" * each.is_dir() for each in folder.iterdir())
    more = ", ..." * (len(content) > 5)
    return f"the folder {folder} holds {', '.join(content[:5]) or 'nothing'}{more}"


def check_is_file(path: Path) -> None:
    """Raise `DataError` for a folder or a pointer, `FileNotFoundError` for nothing at all."""
    if (path / "run.json").is_file():
        raise DataError(f"{path} is the folder of a training; give the frames, not the run")
    if path.is_dir():
        patterns = [deeper + name for name in LABELLED for deeper in ("", "*/", "*/*/")]
        inside = next((pattern for pattern in patterns if any(path.glob(pattern))), None)
        these = f"'{path / inside}'".replace("/type.raw", "") if inside else "the files in it"
        raise DataError(f"{path} is a folder; give {these}")
    if not path.is_file():
        raise FileNotFoundError(f"no data file at {path}; {_what_is_there(path)}")
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise DataError(f"{path} is a pointer of Git LFS, not the data; run 'git lfs pull'")


def read_structures(path: Path, index: slice) -> list[tuple[int, Atoms]]:
    """The chosen frames of a file that ASE reads, each with its number in the file.

    Of ``slice(-1, None)`` the frames before the last are passed over; its number is -1.

    Raises
    ------
    FileNotFoundError
    DataError
        If ASE cannot read the file, or would lose or change something of a chosen frame without a
        word (`extxyz_text`).
    """
    check_is_file(path)
    only_last = index == slice(-1, None)
    frames: list[Atoms] = []
    try:
        with _decompressed(path) as plain:
            kind = _format_of(plain)
            if kind == "extxyz":
                _check_text(plain, path, index)
            # One by one, so that an error can say where it is.
            for atoms in ase.io.iread(
                plain, "-1:" if only_last else ":", format=kind, do_not_split_by_at_sign=True
            ):
                frames.append(atoms)
    except DataError:
        raise
    except Exception as error:
        # Readers of a hundred formats raise whatever comes first: a traceback helps nobody.
        where = f", after frame {len(frames) - 1}" if frames else ""
        raise DataError(
            f"{path}: ASE cannot read it{where} ({type(error).__name__}: {error})"
        ) from error
    chosen = [(-1, atoms) for atoms in frames] if only_last else list(enumerate(frames))[index]
    if not chosen:
        raise DataError(
            f"no frames in {path} from {index.start} to {index.stop} in steps of "
            f"{index.step or 1}: it has {len(frames)}"
        )
    return chosen


def check_named_once(sources: Sequence[str]) -> None:
    """Refuse frames, by file and number, that a list of files and slices names twice."""
    twice = [source for source, times in Counter(sources).items() if times > 1]
    if twice:
        raise DataError(
            f"{len(twice)} frames are named twice, {twice[0]} first; slices must not overlap"
        )


def _format_of(plain: Path) -> str:
    """ASE's name of the format, which without a guess does not know its own databases."""
    with plain.open("rb") as file:
        database = file.read(15) == b"SQLite format 3"
    return "db" if database else filetype(str(plain), guess=False)


def _check_text(plain: Path, path: Path, index: slice) -> None:
    n_frames, problems = problems_of(plain, only_last=index == slice(-1, None))
    for number in range(n_frames)[index]:
        if number in problems:
            raise DataError(f"{path}#{number}: {problems[number]}")


@contextmanager
def _decompressed(path: Path) -> Iterator[Path]:
    """The path, or for the length of a `with` block that of a decompressed copy.

    ASE seeks backwards while it reads, and a compressed stream then starts from its beginning.
    """
    if path.suffix not in COMPRESSED:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / path.stem
        with open_with_compression(str(path), "rb") as source, plain.open("wb") as target:
            shutil.copyfileobj(source, target)
        yield plain


def is_isolated_atom(atoms: Atoms, source: str) -> bool:
    """Whether a frame says that it is one: it carries a reference energy, not training data.

    Raises
    ------
    DataError
        If it says so and has more atoms, or none.
    """
    kind = atoms.info.get("config_type")  # a list of numbers, if the file says so
    if not isinstance(kind, str) or kind != ISOLATED:
        return False
    if len(atoms) != 1:
        raise DataError(
            f"{source}: config_type is {ISOLATED}, but there are {len(atoms)} atoms; correct it"
        )
    return True
