"""GFN1-xTB and GFN2-xTB from tblite, with what tblite itself does not refuse."""

from __future__ import annotations

from ase import Atoms
from ase.calculators.calculator import all_changes
from tblite.ase import TBLite

from ase_bayesmlip.md.periodicity import packages_of, refuse_partial_periodicity


class FullyPeriodicTBLite(TBLite):
    """tblite for clusters and for crystals; it takes a slab for a crystal, so slabs are refused."""

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Evaluate, unless the structure is periodic in one or two directions alone."""
        refuse_partial_periodicity(packages_of(self), self.atoms if atoms is None else atoms)
        super().calculate(atoms, properties, system_changes)


def xtb_calculator(method: str) -> TBLite:
    """A quiet calculator, more accurate than tblite's default, whose noise shows in training."""
    return FullyPeriodicTBLite(method=method, accuracy=0.01, verbosity=0)
