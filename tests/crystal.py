"""A crystal of springs: fast, anharmonic, with stress, and the same for every translation."""

from typing import Any, ClassVar

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.neighborlist import neighbor_list

TEMPERATURE_K = 500.0
TIME_STEP = 2.0 * units.fs
COUPLING = 20.0 * units.fs


class Springs(Calculator):
    """Springs k (x²/2 - x³/2 + x⁴/2) between the nearest neighbours of a structure."""

    implemented_properties: ClassVar = ["energy", "free_energy", "forces", "stress"]

    def __init__(self, atoms: Atoms, stiffness: float = 1.5) -> None:
        super().__init__()
        self.stiffness = stiffness
        first, second, shift, length = neighbor_list("ijSd", atoms, 2.8)
        once = [
            (i, tuple(-s)) < (j, tuple(s)) for i, j, s in zip(first, second, shift, strict=True)
        ]
        self.first, self.second, self.shift = first[once], second[once], shift[once]
        self.length = length[once]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Any = ("energy",),
        system_changes: Any = all_changes,
    ) -> None:
        """Energy, forces and stress."""
        super().calculate(atoms, properties, system_changes)
        positions, cell = self.atoms.positions, self.atoms.cell.array
        vectors = positions[self.second] - positions[self.first] + self.shift @ cell
        lengths = np.linalg.norm(vectors, axis=1)
        x = lengths - self.length
        energy = self.stiffness * float(np.sum(0.5 * x**2 - 0.5 * x**3 + 0.5 * x**4))
        pulls = (self.stiffness * (x - 1.5 * x**2 + 2 * x**3) / lengths)[:, None] * vectors
        forces = np.zeros_like(positions)
        np.add.at(forces, self.first, pulls)
        np.add.at(forces, self.second, -pulls)
        stress = vectors.T @ pulls / self.atoms.get_volume()
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": forces,
            "stress": stress.ravel()[[0, 4, 8, 5, 2, 1]],
        }


def crystal(constraint: Any = None, temperature_K: float = TEMPERATURE_K, repeat: int = 2) -> Atoms:
    """Copper, 32 atoms, moving, with a centre of mass at rest."""
    atoms = bulk("Cu", cubic=True) * repeat
    atoms.calc = Springs(atoms)
    momenta = np.random.default_rng(3).standard_normal((len(atoms), 3))
    momenta *= np.sqrt(atoms.get_masses()[0] * units.kB * temperature_K)
    if constraint is not None:
        atoms.set_constraint(constraint)
    atoms.set_momenta(momenta - momenta.mean(axis=0))
    return atoms
