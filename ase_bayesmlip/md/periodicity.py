"""Reference programs that take a slab or a wire for a crystal, and what is said to that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ase import Atoms

# Packages whose calculators know none or three periodic directions, and take two for three.
_FULLY_PERIODIC = {"tblite", "dftd4"}


def packages_of(calculator: Any) -> list[str]:
    """Packages that the class of a calculator, or of those that it sums, comes from."""
    found = [base.__module__.partition(".")[0] for base in type(calculator).__mro__]
    for part in getattr(getattr(calculator, "mixer", None), "calcs", []):
        found += packages_of(part)
    return found


def refuse_partial_periodicity(packages: Sequence[str], atoms: Atoms) -> None:
    """Raise `ValueError` for a slab or a wire that calculators of a package take for a crystal."""
    mistaken = [name for name in packages if name in _FULLY_PERIODIC]
    if mistaken and atoms.pbc.any() and not atoms.pbc.all():
        raise ValueError(
            f"{mistaken[0]} cannot be asked about pbc {atoms.pbc.tolist()}: it takes the structure "
            "for a crystal in three directions. Set pbc=True with 10 Å or more of vacuum along "
            "the open directions, or pbc=False for a cluster"
        )
