"""Constant pressure with ASE's Martyna-Tobias-Klein dynamics: for whom, and how it counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.md import MolecularDynamics
from ase.md.nose_hoover_chain import MTKNPT, IsotropicMTKNPT

# The volume alone, or all of the cell.
BAROSTATS: dict[str, Any] = {"npt": IsotropicMTKNPT, "npt_full": MTKNPT}

# Time constant of the barostat over that of the thermostat.
_SLOWER = 10.0


def make_barostat(
    name: str,
    atoms: Atoms,
    time_step: float,
    temperature_K: float,
    pressure_GPa: float,
    time_constant: float,
) -> MolecularDynamics:
    """Build one of `BAROSTATS`; times in ASE's unit, that of the thermostat is `time_constant`.

    Raises
    ------
    ValueError
        For atoms without three periodic directions, without stress, or with constraints.
    """
    _refuse(name, atoms)
    dyn: MolecularDynamics = BAROSTATS[name](
        atoms,
        time_step,
        temperature_K=temperature_K,
        pressure_au=pressure_GPa * units.GPa,
        tdamp=time_constant,
        pdamp=_SLOWER * time_constant,
    )
    if isinstance(dyn, MTKNPT):
        barostat: Any = dyn._barostat
        if not hasattr(barostat, "_cell_dof"):
            raise ImportError(f"{name} needs ASE 3.28 or newer; 'npt' keeps the shape of the cell")
        # The stress is symmetric and so is the motion of the cell. ASE's thermostat of the cell
        # counts 9, which holds it at 3/2 of the temperature: fluctuations of the volume double.
        barostat._R[0] *= 6 / barostat._cell_dof
        barostat._cell_dof = 6
    return dyn


def _refuse(name: str, atoms: Atoms) -> None:
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        raise ValueError(
            f"{name} changes the volume of the cell, and needs one that is periodic in three "
            f"directions, not pbc {atoms.pbc.tolist()} with {atoms.cell.rank} cell vectors; take "
            "'langevin' for a molecule or a slab"
        )
    if "stress" not in getattr(atoms.calc, "implemented_properties", ()):
        raise ValueError(
            f"{name} needs the stress, which this calculator ({type(atoms.calc).__name__}) does "
            "not give; take a file that serves stress, or 'langevin'"
        )
    if atoms.constraints:
        names = ", ".join(type(constraint).__name__ for constraint in atoms.constraints)
        raise ValueError(
            f"{name} does not keep the constraints of these atoms ({names}): all atoms move with "
            "the cell. Remove them, or take 'langevin' or 'bussi', at constant volume"
        )


def set_barostat_temperature(dyn: Any, temperature_K: float) -> None:
    """Change the target of atoms and cell; all time constants stay."""
    factor = temperature_K * units.kB / dyn._kT
    dyn._kT *= factor
    dyn._temperature_K = temperature_K
    for chain, masses in ((dyn._thermostat, ("_Q",)), (dyn._barostat, ("_W", "_R"))):
        for name in ("_kT", *masses):
            setattr(chain, name, getattr(chain, name) * factor)


def cell_columns(atoms: Atoms, results: Mapping[str, Any]) -> dict[str, float]:
    """Volume (Å³) and pressure (GPa, that of the motion included) of a frame, where it has them."""
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        return {}
    columns = {"volume": atoms.get_volume()}
    if "stress" in results:
        stress = np.asarray(results["stress"])
        static = np.trace(stress) if stress.ndim == 2 else stress[:3].sum()
        moving = 2.0 * atoms.get_kinetic_energy() / columns["volume"]
        columns["pressure_GPa"] = float(moving - static) / (3.0 * units.GPa)
    return columns
