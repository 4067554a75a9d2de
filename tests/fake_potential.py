"""A closed-form stand-in for a Bayesian calculator, for tests of what happens around one."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

ANCHORS = np.array([[0.0, 0.0, 0.0], [2.5, 0.0, 0.0], [0.0, 2.5, 0.0], [0.0, 0.0, 2.5]])


def make_card(
    scores: dict[str, list[float]] | None = None, kind: str = "ensemble"
) -> SimpleNamespace:
    """The part of a model card that a monitor reads."""
    return SimpleNamespace(kind=kind, calibration={} if scores is None else {"scores": scores})


def make_atoms(calculator: Calculator | None = None, displacement: float = 0.05) -> Atoms:
    """Two carbon and two oxygen atoms near their anchors."""
    generator = np.random.default_rng(7)
    positions = ANCHORS + displacement * generator.standard_normal(ANCHORS.shape)
    atoms = Atoms("C2O2", positions=positions)
    atoms.calc = calculator
    return atoms


class FakePotential(Calculator):
    """Harmonic wells around `ANCHORS`, with an uncertainty that is a function of the positions.

    Parameters
    ----------
    stiffness : float, eV/Å²
    deviation : callable
        Positions (n_atoms, 3) to the epistemic standard deviation of each atom's force
        components, (n_atoms,), eV/Å. Default: 0.01 plus the square of the displacement.
    epistemic : bool
        Without it there are no uncertainties in the results.
    """

    implemented_properties: ClassVar = ["energy", "free_energy", "energies", "forces"]

    def __init__(
        self,
        stiffness: float = 5.0,
        deviation: Callable[[np.ndarray], np.ndarray] | None = None,
        epistemic: bool = True,
        card: SimpleNamespace | None = None,
    ) -> None:
        super().__init__()
        self.stiffness = stiffness
        self.deviation = deviation or _squared_displacement
        self.epistemic = epistemic
        if card is not None:
            self.card = card
        self.n_evaluations = 0

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Any = ("energy",),
        system_changes: Any = all_changes,
    ) -> None:
        """Evaluate and count."""
        super().calculate(atoms, properties, system_changes)
        self.n_evaluations += 1
        displacement = self.atoms.positions - ANCHORS
        energies = 0.5 * self.stiffness * np.sum(displacement**2, axis=1)
        self.results = {
            "energy": float(energies.sum()),
            "free_energy": float(energies.sum()),
            "energies": energies,
            "forces": -self.stiffness * displacement,
        }
        if self.epistemic:
            self.results |= uncertainties(self.deviation(self.atoms.positions))


def uncertainties(deviation: np.ndarray) -> dict[str, Any]:
    """Results with isotropic force covariances and made-up energy variances."""
    covariance = deviation[:, None, None] ** 2 * np.eye(3)
    return {
        "energy_var_epistemic": float(np.sum(deviation**2)),
        "energy_var": float(np.sum(deviation**2)),
        "energy_uncertainty": float(np.sqrt(np.sum(deviation**2))),
        "energies_var_epistemic": deviation**2,
        "energies_var": deviation**2,
        "forces_cov_epistemic": covariance,
        "forces_cov": covariance.copy(),
        "forces_var": np.einsum("icc->ic", covariance).copy(),
        "forces_std": np.sqrt(3) * deviation,
        "forces_uncertainty": np.repeat(deviation[:, None], 3, axis=1),
    }


class ScriptedDynamics:
    """The part of a dynamics object that a monitor uses, driven by a list of deviations."""

    def __init__(self, atoms: Atoms) -> None:
        self.atoms = atoms
        self.nsteps = -1
        self.max_steps = 10**6

    def play(self, monitor: Callable[[], None], deviations: list[float]) -> None:
        """Show the monitor one frame for each deviation (the largest over the atoms, eV/Å)."""
        for value in deviations:
            self.nsteps += 1
            self.atoms.get_forces()
            per_atom = value * np.array([0.5, 1.0, 0.25, 0.75])
            self.atoms.calc.results |= uncertainties(per_atom)
            monitor()


def _squared_displacement(positions: np.ndarray) -> np.ndarray:
    return 0.01 + np.sum((positions - ANCHORS) ** 2, axis=1)
