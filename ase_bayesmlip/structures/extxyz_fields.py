"""What extended XYZ can carry: entries of its comment line and columns of its table.

Every text made here is read with ASE's own parser before it is used, so that what is written comes
back as it was. What cannot come back is named by the caller, never written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from ase.calculators.calculator import all_properties
from ase.io.extxyz import key_val_str_to_dict, per_config_properties

# Entries that describe the frame itself, and results, which belong to the calculator.
_OWN_ENTRIES = {"Lattice", "Properties", "pbc", *per_config_properties}

# Columns that ASE gives a meaning of its own.
_OWN_COLUMNS = {
    *("species", "symbols", "pos", "positions", "Z", "numbers", "charge", "mass", "move_mask"),
    *all_properties,
}

_SIMPLE = re.compile(r"[A-Za-z0-9_.+-]+")
_COLUMN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")

# ASE reads integer columns as 32 bits; a float holds integers of 53 bits.
_INTEGER_LIMIT, _FLOAT_LIMIT = 2**31, 2**53


class Column(NamedTuple):
    """One property of the table: type R, I, L or S, columns, and a text for every atom."""

    name: str
    kind: str
    n_columns: int
    texts: list[str]

    @property
    def fields(self) -> set[str]:
        """Names of the single columns, as ASE makes them; no two may be the same."""
        if self.n_columns == 1:
            return {self.name}
        return {f"{self.name}{index}" for index in range(self.n_columns)}


def entry_text(name: Any, value: Any, own: bool = False) -> str | None:
    """``name=value`` as ASE reads it back, or None if it would come back as something else.

    Numbers, booleans and vectors of them, and strings that look like neither, are written as they
    are; matrices, nested lists, other strings and mappings as ASE's ``_JSON``. An empty value is
    never written: readers take the next entry for it.

    Parameters
    ----------
    own : bool
        Whether the entry is a result of the calculator, which may have a name of ASE's own.
    """
    if not isinstance(name, str) or not name or (name in _OWN_ENTRIES and not own):
        return None
    if value is None or (isinstance(value, str | list | dict) and not value):
        return None
    if isinstance(value, np.ndarray) and not value.size:
        return None
    value = _without_numpy(value)
    for text in (_plain_text(value), _json_text(value)):
        if text and text.isascii() and text.isprintable() and name.isprintable():
            entry = f"{_quoted(name)}={_quoted(text)}"
            if entry.isascii() and _reads_as(entry, name, value):
                return entry
    return None


def column_of(name: Any, values: Any, n_atoms: int, own: bool = False) -> Column | None:
    """A per-atom array as columns, or None if it cannot be had back from a table.

    Axes after the first are merged, so that (n_atoms, 3, 3) becomes nine columns. Real numbers
    have all of their digits. Strings need one or more characters and no blanks.
    """
    if not isinstance(name, str) or not _COLUMN_NAME.fullmatch(name):
        return None
    if np.ma.is_masked(values):
        return None
    values = np.asarray(values)
    if (name in _OWN_COLUMNS and not own) or values.ndim == 0 or len(values) != n_atoms:
        return None
    table = values.reshape(n_atoms, -1) if values.size else values
    if table.ndim != 2 or table.shape[1] == 0:
        return None
    found = _typed(table)
    if found is None:
        return None
    kind, rows = found
    return Column(name, kind, table.shape[1], [" ".join(row) for row in rows])


def _typed(table: np.ndarray) -> tuple[str, list[list[str]]] | None:
    """Type of the columns and their texts, row by row."""
    if table.dtype.kind == "O":
        table = np.array(table.tolist()) if _is_uniform(table) else table
    kind = table.dtype.kind
    if kind in "iu":
        largest = max(abs(int(table.min())), abs(int(table.max())))
        if largest < _INTEGER_LIMIT:
            return "I", [[str(value) for value in row] for row in table.tolist()]
        if largest > _FLOAT_LIMIT:
            return None
        kind = "f"
    if kind == "f":
        return "R", [[repr(value) for value in row] for row in table.astype(float).tolist()]
    if kind == "b":
        return "L", [["T" if value else "F" for value in row] for row in table.tolist()]
    if kind == "U":
        rows = table.tolist()
        whole = all(text.isascii() and text.split() == [text] for row in rows for text in row)
        return ("S", rows) if whole else None
    return None


def _is_uniform(table: np.ndarray) -> bool:
    """Whether the objects are all strings, all booleans or all real numbers."""
    values = table.ravel().tolist()
    kinds = ((str,), (bool, np.bool_), (int, np.integer), (float, np.floating))
    return any(all(isinstance(value, kind) for value in values) for kind in kinds)


def _without_numpy(value: Any) -> Any:
    """Scalars and arrays of other than numbers as Python has them; arrays of numbers as arrays."""
    if isinstance(value, np.generic):
        return float(value) if isinstance(value, np.floating) else value.item()
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "fiub" and value.ndim:
            return value.astype(float) if value.dtype.kind == "f" else value
        return value.tolist()
    return value


def _plain_text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "T" if value else "F"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, np.ndarray) and (value.ndim == 1 or value.shape == (3, 3)):
        # Matrices of names that ASE knows (stress, virial) are read in this order.
        return " ".join(str(_plain_text(item)) for item in value.ravel(order="F").tolist())
    return None


def _json_text(value: Any) -> str | None:
    try:
        return "_JSON " + json.dumps(value.tolist() if isinstance(value, np.ndarray) else value)
    except (TypeError, ValueError, RecursionError):
        return None


def _quoted(text: str) -> str:
    if _SIMPLE.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _reads_as(entry: str, name: str, value: Any) -> bool:
    try:
        found = key_val_str_to_dict(entry)
    except (ValueError, AttributeError):
        return False
    return list(found) == [name] and same_value(value, found[name])


def same_value(value: Any, found: Any) -> bool:
    """Whether what was read is what was written: shapes, numbers (NaN too), booleans, texts."""
    if isinstance(value, str) or isinstance(found, str):
        return type(value) is type(found) and value == found
    if isinstance(value, Mapping):
        return isinstance(found, Mapping) and dict(value) == dict(found)
    try:
        one, other = np.asarray(value), np.asarray(found)
    except ValueError:  # a ragged list
        return bool(value == found)
    kinds = [{"u": "i"}.get(array.dtype.kind, array.dtype.kind) for array in (one, other)]
    if one.shape != other.shape or kinds[0] != kinds[1]:
        return False
    if kinds[0] == "f":
        return np.array_equal(one, other, equal_nan=True)
    return bool(one.tolist() == other.tolist())
