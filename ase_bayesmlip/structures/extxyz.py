"""Structures with their results as extended XYZ, which keeps what other formats drop."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian
from ase.io.extxyz import per_config_properties
from ase.stress import voigt_6_to_full_3x3_stress

from ase_bayesmlip.files import append_whole
from ase_bayesmlip.structures.extxyz_fields import Column, column_of, entry_text

LABEL_PREFIX = "REF_"

# Results without which a frame is not worth writing.
_NEEDED = ("energy", "forces", "stress")


class FrameFile:
    """An extended XYZ file that frames are appended to, each of them whole or not at all.

    Positions, cell, results and per-atom arrays have all of their digits. Arrays of more than two
    axes are flattened to columns. What the format cannot carry (strings with blanks in a column,
    objects, empty values, names with a meaning of their own) is left out, with one warning for
    the file that names it.

    Parameters
    ----------
    path : path
        Appended to; its folder must exist.

    Attributes
    ----------
    checked : bool
        Whether a frame has been tried in memory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._named: set[str] = set()
        self.checked = False

    def check(self, frame: Atoms) -> None:
        """Write a frame to memory and read it back, once; the frames after it are like it.

        Raises
        ------
        ValueError
            If the frame does not come back as it is.
        OSError
            If the file cannot be written.
        """
        if self.checked:
            return
        folder = self.path.parent
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder} for {self.path.name}; make it first")
        if not os.access(self.path if self.path.exists() else folder, os.W_OK):
            raise PermissionError(f"{self.path} cannot be written")
        text = self._text(frame)
        found = ase.io.read(io.StringIO(text), format="extxyz")
        different = _differences(frame, found)  # type: ignore[arg-type]
        if different:
            raise ValueError(
                f"{', '.join(different)} of a frame would not come back from {self.path}; remove "
                "them from the structure"
            )
        self.checked = True

    def append(self, frame: Atoms) -> None:
        """Append one frame: neither an interruption nor a full disk leaves a part of it."""
        self.check(frame)
        append_whole(self.path, self._text(frame).encode("ascii"))

    def _text(self, frame: Atoms) -> str:
        text, left_out = frame_text(frame)
        new = [name for name in left_out if name not in self._named]
        self._named.update(new)
        if new:
            warnings.warn(
                f"extended XYZ cannot carry {', '.join(new)} of these structures; {self.path} is "
                "written without",
                stacklevel=4,
            )
        return text


def frame_text(frame: Atoms) -> tuple[str, list[str]]:
    """A structure with its results as extended XYZ, and what had to be left out.

    Returns
    -------
    text : str
    left_out : list of str
        ``info['name']`` or ``arrays['name']``, or the results of the calculator.
    """
    results = {} if frame.calc is None else frame.calc.results
    stored: list[tuple[str, str, Any, bool]] = []
    for name, value in results.items():
        if value is not None and name in all_properties:
            store = "info" if name in per_config_properties else "arrays"
            stored.append((store, name, value, True))
    taken = {(store, name) for store, name, _, _ in stored}
    for store, content in (("info", frame.info), ("arrays", frame.arrays)):
        own = ("numbers", "positions") if store == "arrays" else ()
        stored += [
            (store, name, value, False)
            for name, value in content.items()
            if (store, name) not in taken and name not in own
        ]
    columns, entries, left_out = _own_columns(frame), [_lattice(frame)], []
    fields = set.union(*(column.fields for column in columns))
    for store, name, value, own_name in stored:
        if store == "info":
            entry = entry_text(name, _full_stress(name, value), own_name)
            column = None
        else:
            entry, column = None, column_of(name, value, len(frame), own_name)
        if entry is not None:
            entries.append(entry)
        elif column is not None and fields.isdisjoint(column.fields):
            columns.append(column)
            fields |= column.fields
        else:
            left_out.append(f"{store}[{name!r}]")
    table = ":".join(f"{column.name}:{column.kind}:{column.n_columns}" for column in columns)
    entries.insert(1, f"Properties={table}")
    entries.append('pbc="' + " ".join("T" if p else "F" for p in frame.pbc) + '"')
    rows = (" ".join(row) for row in zip(*(column.texts for column in columns), strict=True))
    lines = [str(len(frame)), " ".join(entry for entry in entries if entry), *rows]
    return "\n".join(lines) + "\n", left_out


def _own_columns(frame: Atoms) -> list[Column]:
    """Symbols, positions and, where there is one, which coordinates constraints leave free."""
    positions = column_of("pos", frame.positions, len(frame), own=True)
    columns = [Column("species", "S", 1, frame.get_chemical_symbols())]
    columns.append(positions or Column("pos", "R", 3, []))
    free = np.ones((len(frame), 3), dtype=bool)
    for constraint in frame.constraints:
        if isinstance(constraint, FixAtoms):
            free[constraint.index] = False
        elif isinstance(constraint, FixCartesian):
            free[constraint.index] &= ~constraint.mask
    if not free.all():
        whole = (free == free[:, :1]).all()
        mask = column_of("move_mask", free[:, 0] if whole else free, len(frame), own=True)
        columns += [mask] if mask else []
    return columns


def _lattice(frame: Atoms) -> str:
    if not frame.cell.any():
        return ""
    return 'Lattice="' + " ".join(map(repr, frame.cell.array.ravel().tolist())) + '"'


def _full_stress(name: str, value: Any) -> Any:
    if name != "stress" or np.shape(value) != (6,):
        return value
    return voigt_6_to_full_3x3_stress(value)


def _differences(frame: Atoms, found: Atoms) -> list[str]:
    """Names of what was written and did not come back."""
    before, after = ({} if a.calc is None else a.calc.results for a in (frame, found))
    pairs = {
        "numbers": (frame.numbers, found.numbers),
        "positions": (frame.positions, found.positions),
        "cell": (frame.cell.array, found.cell.array),
        "pbc": (frame.pbc, found.pbc),
        **{name: (frame.arrays.get(name), array) for name, array in found.arrays.items()},
        **{name: (before.get(name), value) for name, value in after.items()},
    }
    different = [name for name, (one, other) in pairs.items() if not _equal(one, other)]
    lost = [name for name in _NEEDED if name in before and name not in after]
    return different + lost + [name for name in found.info if name not in frame.info]


def _equal(one: Any, other: Any) -> bool:
    """Whether two arrays hold the same numbers or texts, whatever their shape and type."""
    one, other = np.ravel(one), np.ravel(other)
    if one.dtype.kind in "fiub" and other.dtype.kind in "fiub":
        return np.array_equal(one, other, equal_nan=True)
    return bool(one.tolist() == other.tolist())


def annotated_frame(atoms: Atoms, results: Mapping[str, Any], prefix: str = "") -> Atoms:
    """Copy of a structure with results and uncertainties in a form that extended XYZ keeps.

    Per-atom results go to ``arrays`` with a 3×3 covariance flattened to 9 columns, results of the
    whole structure to ``info``. Values of single members (``*_ensemble``) are left out. Reference
    labels (``REF_*``) that the structure carries belong to the frame it started from, and are
    dropped.

    Parameters
    ----------
    results : mapping
        Results as the calculator names them.
    prefix : str
        Put before every name. Without one, ASE's own quantities (energy, forces, stress) are
        attached as a calculator, so that a reader finds them where ASE expects them.

    Returns
    -------
    Atoms
    """
    frame = atoms.copy()
    _drop_labels(frame)
    standard = {}
    for name, value in results.items():
        if name.endswith("_ensemble") or value is None:
            continue
        if not prefix and name in all_properties:
            frame.info.pop(name, None)
            frame.arrays.pop(name, None)
            standard[name] = value
        elif name.startswith(("forces", "energies")) and len(np.atleast_1d(value)) == len(frame):
            frame.arrays[prefix + name] = _columns(np.asarray(value))
        else:
            frame.info[prefix + name] = value
    if standard:
        frame.calc = SinglePointCalculator(frame, **standard)
    return frame


def _columns(values: np.ndarray) -> np.ndarray:
    """Per-atom values with every axis after the second merged into it, as extended XYZ needs."""
    return values if values.ndim < 3 else values.reshape(len(values), -1)


def _drop_labels(frame: Atoms) -> None:
    for store in (frame.info, frame.arrays):
        for name in [name for name in store if str(name).startswith(LABEL_PREFIX)]:
            del store[name]
