"""Extended XYZ read by other code than ASE's: what is in a file, or nothing if it is in doubt.

A few rules, without exceptions: a key stands once, values are bare or in double quotes, rows have
the declared columns. Whatever breaks a rule makes a frame doubtful.
"""

import re
from typing import NamedTuple

import numpy as np
from ase.data import chemical_symbols

PAIR = re.compile(r'([^\s="\'{\[\\]+)=(?:"([^"\\]*)"|([^\s"\'{\[\\=]+))(?=\s|$)')
# As Python writes numbers, with underscores between digits.
NUMBER = re.compile(r"[+-]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][+-]?\d+)?")
FLAGS = {"T": True, "F": False}


class DoubtError(ValueError):
    """The text breaks a rule."""


class Content(NamedTuple):
    """Numbers of a frame; None for a label that is not there."""

    numbers: list
    positions: np.ndarray
    cell: np.ndarray
    pbc: list
    energy: float | None
    forces: np.ndarray | None
    stress: np.ndarray | None


def contents(text: str) -> list[Content | None]:
    """All frames of a text, None for one in doubt, or `DoubtError` where frames begin and end."""
    lines = text.split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    frames, start = [], 0
    while start < len(lines):
        if not lines[start].strip().isdecimal():
            raise DoubtError(f"no number of atoms: {lines[start]!r}")
        n_atoms = int(lines[start])
        rows = lines[start + 2 : start + 2 + n_atoms]
        if len(rows) < n_atoms or n_atoms == 0:
            raise DoubtError("rows are missing")
        try:
            frames.append(_content(lines[start + 1], rows))
        except DoubtError:
            frames.append(None)
        start += 2 + n_atoms
    return frames


def _content(comment: str, rows: list[str]) -> Content:
    values = _values(comment)
    columns = _columns(values.pop("Properties", "species:S:1:pos:R:3"), rows)
    cell = np.zeros((3, 3))
    if "Lattice" in values:
        cell = _numbers(values.pop("Lattice"), 9).reshape(3, 3)
    given = values.pop("pbc", "T T T" if cell.any() else "F F F").split()
    if not 0 < len(given) != 2 or not set(given) <= set(FLAGS):
        raise DoubtError(f"pbc {given}")
    energy, stress = values.get("REF_energy"), values.get("REF_stress")
    return Content(
        [chemical_symbols.index(_symbol(row[0])) for row in columns["species"]],
        _table(columns["pos"]),
        cell,
        [FLAGS[flag] for flag in given] if len(given) == 3 else 3 * [FLAGS[given[0]]],
        None if energy is None else float(_numbers(energy, 1)[0]),
        _table(columns["REF_forces"]) if "REF_forces" in columns else None,
        None if stress is None else _numbers(stress, 9).reshape(3, 3),
    )


def _values(comment: str) -> dict[str, str]:
    values = {}
    rest = PAIR.sub("", comment)
    if rest.strip():
        raise DoubtError(f"not key=value: {rest!r}")
    for key, quoted, bare in PAIR.findall(comment):
        if key in values or not (quoted or bare).strip():
            raise DoubtError(f"key {key} twice or empty")
        # Commas divide as blanks do.
        values[key] = (quoted or bare).replace(",", " ")
    return values


def _columns(properties: str, rows: list[str]) -> dict[str, list[list[str]]]:
    parts = properties.split(":")
    if len(parts) % 3 or not all(count.isdecimal() for count in parts[2::3]):
        raise DoubtError(f"Properties {properties}")
    names, kinds, counts = parts[::3], parts[1::3], [int(count) for count in parts[2::3]]
    if len(set(names)) < len(names) or not {"species", "pos"} <= set(names):
        raise DoubtError(f"Properties {properties}")
    allowed = {"species": ("S", 1), "pos": ("R", 3), "REF_forces": ("R", 3)}
    for name, kind, count in zip(names, kinds, counts, strict=True):
        if allowed.get(name, (kind, count)) != (kind, count):
            raise DoubtError(f"column {name}:{kind}:{count}")
    fields = [row.split() for row in rows]
    if any(len(row) != sum(counts) for row in fields):
        raise DoubtError("number of columns")
    ends = np.cumsum(counts)
    return {
        name: [row[end - count : end] for row in fields]
        for name, end, count in zip(names, ends, counts, strict=True)
    }


def _symbol(text: str) -> str:
    if text.capitalize() not in chemical_symbols[1:]:
        raise DoubtError(f"element {text}")
    return text.capitalize()


def _table(rows: list[list[str]]) -> np.ndarray:
    return np.array([_numbers(" ".join(row), 3) for row in rows])


def _numbers(text: str, n: int) -> np.ndarray:
    fields = text.split()
    if len(fields) != n or not all(NUMBER.fullmatch(field) for field in fields):
        raise DoubtError(f"numbers {text!r}")
    try:
        return np.array([float(field) for field in fields])
    except ValueError as error:
        raise DoubtError(str(error)) from error
