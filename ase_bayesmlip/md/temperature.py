"""Temperatures: of the atoms, of a thermostat, and above which a frame is unphysical."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.md import MolecularDynamics

from ase_bayesmlip.md.constraints import ase_names, degrees_of_freedom, holding_constraints

# The default limit is so many times what was asked for, and not below the second, K.
_FACTOR = 10.0
_LEAST_LIMIT_K = 10_000.0

# Where a thermostat keeps its target, and the unit of it in K.
_TARGETS = {
    "Langevin": ("temp", 1 / units.kB),
    "LangevinBAOAB": ("temperature_K", 1.0),
    "Bussi": ("temp", 1 / units.kB),
    "Andersen": ("temp", 1 / units.kB),
    "NVTBerendsen": ("temperature", 1.0),
    "NoseHooverChainNVT": ("_thermostat._kT", 1 / units.kB),
    "IsotropicMTKNPT": ("_thermostat._kT", 1 / units.kB),
    "MTKNPT": ("_thermostat._kT", 1 / units.kB),
    "MelchionnaNPT": ("temperature", 1 / units.kB),
    "NPT": ("temperature", 1 / units.kB),
}


def target_temperature_K(dyn: Any) -> float | None:  # noqa: N802
    """Target of the thermostat, K; None where there is none, or none that is known."""
    for name in ase_names(type(dyn)):
        if name in _TARGETS:
            path, unit = _TARGETS[name]
            value = dyn
            for attribute in path.split("."):
                value = getattr(value, attribute)
            return None if value is None else float(value) * unit
    return None


def is_at_rest(atoms: Atoms) -> bool:
    """Whether the total momentum of atoms without constraints is zero to round-off."""
    momenta = atoms.get_momenta()
    largest = np.abs(momenta).max(initial=0.0)
    return bool(np.abs(momenta.sum(axis=0)).max() <= 1e-8 * largest) and largest > 0.0


class Thermometer:
    """Temperature of the motion that is free: 2 E_kin / (k_B times degrees of freedom), K.

    Held atoms do not count, nor does the centre of mass where it is at rest without constraints,
    as dynamics that conserve the total momentum leave it. `Atoms.get_temperature` counts 3 n_atoms
    then.
    """

    def __init__(self, atoms: Atoms) -> None:
        self.atoms = atoms
        self._counted_for: tuple[Any, ...] | None = None
        self._n_free = 0
        self._masses = np.zeros((0, 1))

    def __call__(self) -> float:
        """Read it; 0 when nothing is free."""
        atoms = self.atoms
        self._count()
        n_free = self._n_free
        if n_free == 3 * len(atoms) > 3 and is_at_rest(atoms):
            n_free -= 3
        if n_free <= 0:
            return 0.0
        twice_kinetic = float(np.sum(atoms.get_momenta() ** 2 / self._masses))
        return twice_kinetic / (n_free * units.kB)

    def _count(self) -> None:
        """Count what is free again if constraints or masses have changed."""
        atoms = self.atoms
        masses = atoms.get_masses()
        now = (*map(id, atoms.constraints), masses.tobytes())
        if now != self._counted_for:
            self._counted_for = now
            self._n_free = degrees_of_freedom(atoms)
            self._masses = masses[:, None]


class TemperatureWatch:
    """Says why the motion of a frame is unphysical.

    Parameters
    ----------
    limit_K : float, "auto" or None
        "auto": 10 times the largest of the temperature of the first frame and the targets of the
        thermostat so far, and at least 10,000 K. None: only momenta must be finite.
    """

    def __init__(self, dyn: Any, atoms: Atoms, limit_K: float | str | None) -> None:
        if isinstance(limit_K, str) and limit_K != "auto":
            raise ValueError(f"max_temperature_K must be a number, 'auto' or None, not {limit_K!r}")
        if not isinstance(limit_K, str) and limit_K is not None and not limit_K > 0:
            raise ValueError(f"max_temperature_K must be positive, not {limit_K}")
        self._dyn, self._atoms = dyn, atoms
        self._given = limit_K
        self._thermometer = Thermometer(atoms)
        self._moves = isinstance(dyn, MolecularDynamics)
        self._asked_for: float | None = None
        self.temperature_K: float | None = None

    def __call__(self) -> str:
        """Read the temperature of the present frame; a text if it is unphysical."""
        if not self._moves:
            return ""
        finite = np.isfinite(self._atoms.get_momenta()).all(axis=1)
        if not finite.all():
            self.temperature_K = None
            return f"momenta of atoms {np.flatnonzero(~finite)[:10].tolist()} are not finite"
        self.temperature_K = temperature = self._thermometer()
        limit = self.limit_K
        if limit is None or temperature <= limit:
            return ""
        return (
            f"the temperature {temperature:.4g} K is above the limit of {limit:.4g} K (for a limit "
            "of your own, or none, set max_temperature_K)"
        )

    @property
    def limit_K(self) -> float | None:  # noqa: N802
        """Present limit, K."""
        if not isinstance(self._given, str):
            return self._given
        if self._asked_for is None:
            self._asked_for = self.temperature_K or 0.0
        self._asked_for = max(self._asked_for, target_temperature_K(self._dyn) or 0.0)
        return max(_LEAST_LIMIT_K, _FACTOR * self._asked_for)


def draw_velocities(
    atoms: Atoms, temperature_K: float | None, generator: np.random.Generator
) -> None:
    """Give the atoms Maxwell-Boltzmann velocities.

    The motion of the centre of mass stays what it was, unless there are constraints, which are
    applied to the new velocities: held atoms stand still.

    Parameters
    ----------
    temperature_K : float or None, K
        None keeps the present kinetic energy of what is free exactly and draws only the direction,
        so that the total energy of constant-energy dynamics does not change.
    """
    masses = atoms.get_masses()[:, None]
    constrained = bool(holding_constraints(atoms))
    if constrained:
        atoms.set_momenta(
            atoms.get_momenta()
        )  # what held atoms are said to have counts for nothing
    momenta = atoms.get_momenta()
    free = not constrained and len(atoms) > 1
    drift = masses * momenta.sum(axis=0) / masses.sum() if free else 0.0
    kT = 1.0 if temperature_K is None else units.kB * temperature_K
    drawn = generator.standard_normal((len(atoms), 3)) * np.sqrt(masses * kT)
    if free:
        drawn -= masses * drawn.sum(axis=0) / masses.sum()
    atoms.set_momenta(drawn)
    drawn = atoms.get_momenta()
    kinetic = atoms.get_kinetic_energy()
    if temperature_K is None and kinetic > 0.0:
        drawn *= np.sqrt(np.sum((momenta - drift) ** 2 / masses) / (2 * kinetic))
    atoms.set_momenta(drawn + drift)
