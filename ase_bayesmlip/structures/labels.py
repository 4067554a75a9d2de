"""Labels of a frame: found under their names, checked, and in the units and shapes of the package.

What cannot be meant is an error that names frame and key: logical values, texts, complex numbers,
wrong shapes, sizes beyond any calculation, names that differ from those asked for in their case.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from ase import Atoms

from ase_bayesmlip.config import KeysConfig
from ase_bayesmlip.structures.reading import DataError

# Beyond these no label is meant: a force of a structure that has flown apart, and the energy of an
# atom with all its electrons, are far below.
MAX_FORCE, MAX_ENERGY_PER_ATOM, MAX_STRESS = 1e6, 1e7, 1e4  # eV/Å, eV, eV/Å³

# A stress above this, eV/Å³ (80 GPa), is often one in GPa, or a virial.
HIGH_STRESS = 0.5

# An energy per atom further from the free energy than this, eV, is another one.
FREE_ENERGY_GAP = 1e-5

# Relative: programs leave more than round-off between xy and yx, but not this much.
ASYMMETRY = 0.1


def find_label(atoms: Atoms, key: str, name: str, source: str, per_atom: bool = False) -> Any:
    """A label of a frame, or of the calculator that it carries; None where there is none.

    Parameters
    ----------
    key : str
        The name in the file.
    name : str
        What it is the name of under ``data.keys``, for messages.

    Raises
    ------
    DataError
        If there is none of that name, but one that differs in upper and lower case alone, or a
        text that swallowed it.
    """
    computed = atoms.calc.results if atoms.calc is not None else {}
    own = atoms.arrays if per_atom else atoms.info
    if key in own or key in computed:
        return own[key] if key in own else computed[key]
    for other, value in atoms.info.items():
        if isinstance(value, str) and re.search(rf"(^|\s){re.escape(key)}\s*=", value):
            raise DataError(
                f"{source}: no label '{key}', but the text of '{other}' holds it: {value[:60]!r}; "
                "correct the quotes"
            )
    for other in map(str, (*own, *computed)):
        if other.lower() == key.lower():
            raise DataError(
                f"{source}: no label '{key}', but '{other}': upper and lower case differ. Name the "
                f"right one under data.keys.{name}"
            )
    return None


def needed_label(atoms: Atoms, key: str, name: str, source: str, per_atom: bool = False) -> Any:
    """As `find_label`; a missing one is a `DataError` that lists those that are there."""
    value = find_label(atoms, key, name, source, per_atom)
    if value is None:
        computed: Mapping[str, Any] = atoms.calc.results if atoms.calc is not None else {}
        known = {str(other) for store in (atoms.info, atoms.arrays, computed) for other in store}
        listed = ", ".join(sorted(known - {"numbers", "positions"}))
        raise DataError(
            f"{source}: no label '{key}'; the frame has: {listed or 'no labels'}. Name the right "
            f"one under data.keys.{name}"
        )
    return value


def checked_number(value: Any, key: str, source: str, limit: float = np.inf) -> float:
    """A label as a finite number, or a `DataError` that names frame and key."""
    try:
        array = _numeric(value, key, source)
    except DataError as error:
        raise DataError(f"{source}: '{key}' is {value!r}, not a number") from error
    if array.shape != ():
        raise DataError(f"{source}: '{key}' is {value!r}, not a number")
    number = float(array)
    if not np.isfinite(number):
        raise DataError(f"{source}: '{key}' is {number}")
    if abs(number) > limit:
        raise DataError(f"{source}: '{key}' is {number:.3g}, beyond any calculation ({limit:.0e})")
    return number


def checked_array(
    value: Any, shape: tuple[int, ...], key: str, source: str, limit: float = np.inf
) -> np.ndarray:
    """A label as finite numbers of that shape, or a `DataError` that names frame and key."""
    array = _numeric(value, key, source).astype(np.float64)
    if array.shape != shape:
        raise DataError(f"{source}: '{key}' has shape {array.shape}; expected {shape}")
    if not np.isfinite(array).all():
        where = np.argwhere(~np.isfinite(array))[0].tolist()
        raise DataError(f"{source}: '{key}' is not finite at {where}")
    if np.abs(array).max(initial=0.0) > limit:
        where = list(map(int, np.unravel_index(np.abs(array).argmax(), shape)))
        raise DataError(
            f"{source}: '{key}' is {np.abs(array).max():.3g} at {where}, beyond any calculation "
            f"({limit:.0e})"
        )
    return array


def _numeric(value: Any, key: str, source: str) -> np.ndarray:
    """Real numbers as they are: no logical values, texts, complex numbers or ragged lists."""
    try:
        array = np.asarray(value)
    except ValueError:  # ragged
        array = np.array(None)
    kind = array.dtype.kind
    if kind in "iuf":
        return array
    what = {"b": "logical, T or F", "c": "complex", "U": "text"}.get(kind, "no list of numbers")
    raise DataError(f"{source}: '{key}' is not numeric ({what})")


def energy_of(atoms: Atoms, value: Any, key: str, source: str) -> float:
    """The energy of a frame, eV."""
    return checked_number(value, key, source, MAX_ENERGY_PER_ATOM * len(atoms))


def free_energy_gap(atoms: Atoms, key: str) -> float:
    """How far a calculator's `energy`, if that is the label, is from its free energy, eV/atom."""
    computed: Mapping[str, Any] = atoms.calc.results if atoms.calc is not None else {}
    free = computed.get("free_energy")
    if key != "energy" or key in atoms.info or not isinstance(free, float) or not np.isfinite(free):
        return 0.0
    return abs(float(computed[key]) - free) / len(atoms)


def forces_of(atoms: Atoms, value: Any, key: str, source: str) -> np.ndarray:
    """The forces of a frame, (n_atoms, 3), eV/Å."""
    return checked_array(value, (len(atoms), 3), key, source, MAX_FORCE)


def stress_of(atoms: Atoms, keys: KeysConfig, source: str) -> np.ndarray | None:
    """The stress of a frame, (3, 3), eV/Å³, from its stress or its virial; None without either.

    Raises
    ------
    DataError
        If both are there, for a wrong shape, or if the cell has no volume.
    """
    key = keys.stress_or_default
    stress = find_label(atoms, key, "stress", source)
    virial = None if keys.virial is None else find_label(atoms, keys.virial, "virial", source)
    if stress is None and virial is None:
        return None
    if stress is not None and virial is not None:
        raise DataError(
            f"{source}: has both '{key}' and '{keys.virial}'; keep one of them, and name it under "
            "data.keys"
        )
    if virial is not None:
        key = str(keys.virial)
    tensor = full_tensor(stress if virial is None else virial, key, source)
    if atoms.cell.rank < 3:
        raise DataError(f"{source}: '{key}' is given, but the cell has no volume")
    if virial is not None:
        tensor = -tensor / atoms.get_volume()
    return checked_array(tensor, (3, 3), key, source, MAX_STRESS)


def full_tensor(value: Any, key: str, source: str) -> np.ndarray:
    """A symmetric tensor as (3, 3), from nine numbers or six in Voigt order."""
    array = _numeric(value, key, source).astype(np.float64)
    flat = array.ravel()
    if array.shape == (6,):
        xx, yy, zz, yz, xz, xy = flat
        flat = np.array([xx, xy, xz, xy, yy, yz, xz, yz, zz])
    elif array.shape not in ((9,), (3, 3)):
        raise DataError(
            f"{source}: '{key}' has {flat.size} numbers; expected 9 or 6 (Voigt), and it has the "
            f"shape {array.shape}"
        )
    tensor = checked_array(flat.reshape(3, 3), (3, 3), key, source)
    twist = np.abs(tensor - tensor.T).max()
    if twist > ASYMMETRY * np.abs(tensor).max() + 1e-3:
        raise DataError(
            f"{source}: '{key}' is not symmetric: {tensor.tolist()}; give xx xy xz yx yy yz zx zy "
            "zz, or six numbers xx yy zz yz xz xy"
        )
    return tensor
