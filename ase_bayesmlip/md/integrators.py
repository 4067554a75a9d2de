"""ASE's integrators: how to build, watch and heat them; `barostat` has those of the pressure.

What they keep beside the atoms is in `integrator_state`, the constraints that they keep in
`constraints`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms, units
from ase.filters import Filter
from ase.md.bussi import Bussi
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.nose_hoover_chain import NoseHooverChainNVT
from ase.md.verlet import VelocityVerlet

from ase_bayesmlip.md.barostat import BAROSTATS, make_barostat, set_barostat_temperature
from ase_bayesmlip.md.constraints import check_constraints, degrees_of_freedom, holding_constraints
from ase_bayesmlip.md.temperature import is_at_rest, target_temperature_K

CONSTANT_VOLUME = ("langevin", "velocity_verlet", "nose_hoover", "bussi", "langevin_baoab")
INTEGRATORS = (*CONSTANT_VOLUME, *BAROSTATS)


def observed_structure(dyn: Any) -> Atoms:
    """Return the atoms that dynamics or a relaxation moves, without a cell filter around them.

    Raises
    ------
    TypeError
        If there is not one structure, as in a nudged elastic band.
    """
    atoms = getattr(dyn, "atoms", None)
    while isinstance(atoms, Filter):
        atoms = atoms.atoms
    if not isinstance(atoms, Atoms):
        raise TypeError(
            "a monitor watches dynamics or a relaxation of one structure; "
            f"{type(dyn).__name__} has {type(atoms).__name__}"
        )
    return atoms


def check_attached_once(dyn: Any, monitor: Any) -> None:
    """Refuse a monitor that its dynamics hold twice.

    Raises
    ------
    RuntimeError
    """
    held = [entry[0] for entry in getattr(dyn, "observers", ())]
    if sum(each is monitor or getattr(each, "__self__", None) is monitor for each in held) > 1:
        raise RuntimeError(
            "the monitor is attached twice and would count every frame twice; call "
            "dyn.attach(monitor) once"
        )


def time_step_fs(dyn: Any) -> float | None:
    """Present time step of dynamics in fs; None for a relaxation, which has no time."""
    if not isinstance(dyn, MolecularDynamics):
        return None
    return float(dyn.dt / units.fs)


def make_integrator(
    name: str,
    atoms: Atoms,
    *,
    temperature_K: float,
    time_step_fs: float,
    friction_per_fs: float,
    generator: np.random.Generator,
    pressure_GPa: float = 0.0,
) -> MolecularDynamics:
    """Build one of `INTEGRATORS`, with its random numbers from `generator`.

    Parameters
    ----------
    temperature_K : float, K
        Not used by ``"velocity_verlet"``.
    friction_per_fs : float, 1/fs
        Coupling to the thermostat: the friction of the Langevin integrators and the inverse time
        constant of the others; that of the barostats is ten times as long.
    pressure_GPa : float, GPa
        Used by ``"npt"``, which changes the volume, and ``"npt_full"``, which changes the shape
        of the cell too.

    Raises
    ------
    ValueError
        If there is no integrator of that name, if it would not keep the constraints of the atoms
        (see `constraints`), or if the pressure of these atoms cannot be held.

    Notes
    -----
    ASE's Bussi and Nosé-Hoover dynamics conserve the total momentum, but count all 3N degrees of
    freedom. Where the momentum is zero, 3N - 3 are counted here, so that the internal temperature
    is `temperature_K`; ``atoms.get_temperature()``, which counts 3N too, then shows (N - 1)/N of
    it. `temperature.Thermometer`, which a monitor reads, shows it all.
    """
    if name in BAROSTATS:
        time_constant = units.fs / friction_per_fs
        step = time_step_fs * units.fs
        dyn = make_barostat(name, atoms, step, temperature_K, pressure_GPa, time_constant)
    else:
        dyn = _build(name, atoms, temperature_K, time_step_fs, friction_per_fs, generator)
    _count_internal_motion(dyn)
    check_constraints(dyn)
    return dyn


def _build(
    name: str,
    atoms: Atoms,
    temperature_K: float,
    time_step_fs: float,
    friction_per_fs: float,
    generator: np.random.Generator,
) -> MolecularDynamics:
    time_step = time_step_fs * units.fs
    time_constant = units.fs / friction_per_fs
    match name:
        case "langevin":
            return Langevin(
                atoms,
                time_step,
                temperature_K=temperature_K,
                friction=1 / time_constant,
                fixcm=False,
                rng=generator,
            )
        case "velocity_verlet":
            return VelocityVerlet(atoms, time_step)
        case "nose_hoover":
            return NoseHooverChainNVT(atoms, time_step, temperature_K, tdamp=time_constant)
        case "bussi":
            try:
                return Bussi(atoms, time_step, temperature_K, taut=time_constant, rng=generator)
            except NotImplementedError as error:
                raise ValueError(
                    "ASE cannot count what these constraints leave free, which Bussi dynamics "
                    "needs; take 'langevin'"
                ) from error
        case "langevin_baoab":
            try:
                from ase.md.langevinbaoab import LangevinBAOAB
            except ImportError as error:
                raise ImportError("langevin_baoab needs ASE 3.27 or newer") from error
            return LangevinBAOAB(
                atoms, time_step, temperature_K=temperature_K, T_tau=time_constant, rng=generator
            )
    raise ValueError(f"unknown integrator {name!r}; known: {', '.join(INTEGRATORS)}")


def _count_internal_motion(dyn: Any) -> None:
    """Give a thermostat that counts the degrees of freedom that its dynamics really move."""
    if not isinstance(dyn, Bussi) and not hasattr(dyn, "_thermostat"):
        return
    n_free = degrees_of_freedom(dyn.atoms)
    if n_free > 3 and not holding_constraints(dyn.atoms) and is_at_rest(dyn.atoms):
        n_free -= 3
    if isinstance(dyn, Bussi):
        dyn.ndof = n_free
        dyn.target_kinetic_energy = 0.5 * dyn.temp * n_free
    else:
        thermostat = dyn._thermostat
        # Everywhere in it the number of atoms stands for a third of the degrees of freedom.
        thermostat._Q[0] *= n_free / (3 * thermostat._num_atoms_global)
        thermostat._num_atoms_global = n_free / 3
        if hasattr(dyn, "_barostat"):
            dyn._num_atoms_global = n_free / 3


def set_temperature(dyn: MolecularDynamics, temperature_K: float) -> None:
    """Change the target temperature (K) of a thermostat.

    Raises
    ------
    ValueError
        If the integrator has no thermostat, or one whose target cannot be changed.
    """
    if hasattr(dyn, "set_temperature"):
        dyn.set_temperature(temperature_K=temperature_K)
    elif isinstance(dyn, Bussi):
        dyn.temp = temperature_K * units.kB
        dyn.target_kinetic_energy = 0.5 * dyn.temp * dyn.ndof
    elif hasattr(dyn, "_barostat"):
        set_barostat_temperature(dyn, temperature_K)
    elif isinstance(dyn, NoseHooverChainNVT):
        thermostat = dyn._thermostat
        target = temperature_K * units.kB
        thermostat._Q *= target / thermostat._kT
        thermostat._kT = target
    else:
        kind, present = type(dyn).__name__, target_temperature_K(dyn)
        if present is not None:
            raise ValueError(
                f"{kind} cannot go from {present:g} K to {temperature_K} K: make it anew"
            )
        raise ValueError(f"{kind} has no thermostat to set to {temperature_K} K")
