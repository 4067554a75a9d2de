"""What a reference is and how it is asked: found by name, asked once, its answer checked.

| name | periodicity | from |
|---|---|---|
| gfn2, gfn1 | none or all three directions | tblite (``pip install 'ase-bayesmlip[demo]'``) |
| emt, lj | any | ASE |
| package.module:factory | that of the calculator | the user |
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.stress import voigt_6_to_full_3x3_stress

from ase_bayesmlip.md.periodicity import packages_of, refuse_partial_periodicity
from ase_bayesmlip.structures.checks import check_geometry


class Label(NamedTuple):
    """A checked answer of a reference; stress is None where there is none."""

    energy: float
    forces: np.ndarray
    stress: np.ndarray | None


def _xtb(method: str) -> BaseCalculator:
    try:
        from ase_bayesmlip.md.reference_xtb import xtb_calculator
    except ImportError as error:
        raise ImportError(
            f"the reference {method} needs tblite: pip install 'ase-bayesmlip[demo]'"
        ) from error
    return xtb_calculator(method)


def _emt() -> BaseCalculator:
    from ase.calculators.emt import EMT

    return EMT()


def _lennard_jones() -> BaseCalculator:
    from ase.calculators.lj import LennardJones

    return LennardJones()


REFERENCES: dict[str, Callable[[], BaseCalculator]] = {
    "gfn2": lambda: _xtb("GFN2-xTB"),
    "gfn1": lambda: _xtb("GFN1-xTB"),
    "emt": _emt,
    "lj": _lennard_jones,
}


def reference_calculator(name: str) -> BaseCalculator:
    """Build a reference calculator by name.

    Parameters
    ----------
    name : str
        One of `REFERENCES`, or ``package.module:factory``, an importable ASE calculator or
        callable without arguments that returns one (a class is such a callable).

    Raises
    ------
    ImportError
        If tblite, which ``gfn2`` and ``gfn1`` need, is not installed, or there is no such module.
    ValueError
        If the name is unknown, or what it names is no calculator; the message says which.
    """
    if name.lower() in REFERENCES:
        return REFERENCES[name.lower()]()
    module_name, colon, path = name.partition(":")
    if not (colon and module_name and path):
        raise ValueError(
            f"unknown reference calculator {name!r}; known: {', '.join(REFERENCES)}, or "
            "package.module:factory"
        )
    found: Any = _imported(module_name, name)
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            raise ValueError(f"reference {name!r}: {module_name} has no {path!r}")
        found = getattr(found, attribute)
    if isinstance(found, type) or not _is_calculator(found):
        found = _made(found, name)
    if not _is_calculator(found):
        raise ValueError(
            f"reference {name!r} gives {type(found).__name__}, not an ASE calculator (it has no "
            "get_potential_energy and get_forces)"
        )
    return found


def _imported(module: str, name: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ImportError(f"reference {name!r}: {module} needs {error.name}") from error
        raise ImportError(
            f"reference {name!r}: no module {error.name!r} in the present folder or among the "
            "installed packages"
        ) from error
    except Exception as error:
        raise ImportError(
            f"reference {name!r}: importing {module} failed ({type(error).__name__}: {error})"
        ) from error


def _made(factory: Any, name: str) -> Any:
    if not callable(factory):
        raise ValueError(
            f"reference {name!r} is {type(factory).__name__}, neither an ASE calculator nor a "
            "function that returns one"
        )
    try:
        return factory()
    except Exception as error:
        raise ValueError(
            f"reference {name!r}: making it, without arguments, failed "
            f"({type(error).__name__}: {error})"
        ) from error


def _is_calculator(found: Any) -> bool:
    return all(callable(getattr(found, m, None)) for m in ("get_potential_energy", "get_forces"))


def check_calculator(reference: Any) -> None:
    """Raise `TypeError` for what is neither a name nor a calculator."""
    if isinstance(reference, type) or not (isinstance(reference, str) or _is_calculator(reference)):
        raise TypeError(
            f"a reference is an ASE calculator or the name of one, not {reference!r:.80}"
            + (": call the class" if isinstance(reference, type) else "")
        )


def reference_name(reference: str | BaseCalculator) -> str:
    """What labels of a reference are marked with: its name, or the class of the calculator."""
    return reference if isinstance(reference, str) else type(reference).__name__


def evaluate(calculator: Any, atoms: Atoms) -> dict[str, Any]:
    """Energy, forces and, for a crystal, stress, as the calculator gives them; nothing is checked.

    Raises
    ------
    ValueError
        Before the calculation, if the structure cannot be asked about.
    """
    check_geometry(atoms)
    refuse_partial_periodicity(packages_of(calculator), atoms)
    atoms = atoms.copy()
    atoms.calc = calculator
    # Forces first: programs that are asked for energies alone would have to run twice.
    raw = {"forces": calculator.get_forces(atoms)}
    raw["energy"] = calculator.get_potential_energy(atoms)
    if atoms.pbc.all() and hasattr(calculator, "get_stress"):
        try:
            raw["stress"] = calculator.get_stress(atoms)
        except NotImplementedError:
            return raw
    return raw


def checked_label(raw: dict[str, Any], n_atoms: int) -> Label:
    """An answer as numbers of the right shape; nothing is broadcast.

    Parameters
    ----------
    raw : dict
        Energy: one real number. Forces: exactly (n_atoms, 3). Stress, if there is one: 6 numbers
        in Voigt order, or 9.

    Raises
    ------
    ValueError
        For another shape or type (complex, objects, booleans), and for what is not finite.
    """
    energy = _real("energy", raw["energy"])
    if energy.size != 1:
        raise ValueError(f"the reference energy has shape {energy.shape}; expected one number")
    forces = _real("forces", raw["forces"])
    if forces.shape != (n_atoms, 3):
        raise ValueError(f"the reference forces have shape {forces.shape}, not {(n_atoms, 3)}")
    if "stress" not in raw:
        return Label(float(energy.item()), forces, None)
    stress = _real("stress", raw["stress"])
    if stress.shape == (6,):
        stress = voigt_6_to_full_3x3_stress(stress)
    if stress.shape not in ((9,), (3, 3)):
        raise ValueError(f"the reference stress has shape {stress.shape}; expected (6,) or (3, 3)")
    return Label(float(energy.item()), forces, stress.reshape(3, 3))


def _real(name: str, value: Any) -> np.ndarray:
    """A copy as finite float64."""
    array = np.asarray(value)
    if np.ma.is_masked(value) or array.dtype.kind not in "fiu":
        raise ValueError(
            f"the reference {name} is of type {array.dtype}"
            f"{', with masked values' if np.ma.is_masked(value) else ''}; real numbers are expected"
        )
    if not np.isfinite(array).all():
        wrong = np.count_nonzero(~np.isfinite(array))
        raise ValueError(f"the reference {name} is not finite in {wrong} of {array.size} numbers")
    return array.astype(np.float64)
