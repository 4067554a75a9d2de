"""Structures with their results as extended XYZ, which keeps what other formats drop."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.outputs import all_outputs

LABEL_PREFIX = "REF_"


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
        if name.endswith("_ensemble"):
            continue
        if not prefix and name in all_outputs:
            frame.info.pop(name, None)
            frame.arrays.pop(name, None)
            standard[name] = value
        elif name.startswith(("forces", "energies")):
            frame.arrays[prefix + name] = _columns(np.asarray(value))
        else:
            frame.info[prefix + name] = value
    if standard:
        frame.calc = SinglePointCalculator(frame, **standard)
    return frame


def append_frame(path: str | Path, frame: Atoms) -> None:
    """Append one structure to an extended XYZ file in a single write.

    The text is complete before the file is opened, so that an interrupted run leaves whole frames
    behind.
    """
    text = io.StringIO()
    write(text, frame, format="extxyz")
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(text.getvalue())


def _columns(values: np.ndarray) -> np.ndarray:
    """Per-atom values with every axis after the second merged into it, as extended XYZ needs."""
    return values if values.ndim < 3 else values.reshape(len(values), -1)


def _drop_labels(frame: Atoms) -> None:
    for store in (frame.info, frame.arrays):
        for name in [name for name in store if str(name).startswith(LABEL_PREFIX)]:
            del store[name]
