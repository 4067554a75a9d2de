"""What has to be known about ASE's integrators: how to build, heat, save and refresh them.

Most integrators read positions, momenta and forces from the atoms at every step. Some keep their
own copies: `LangevinBAOAB` its accelerations, the Nosé-Hoover chains positions, momenta and
thermostat variables. Whoever changes the atoms or the forces between two steps has to change
those copies too.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.filters import Filter
from ase.md.bussi import Bussi
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.nose_hoover_chain import NoseHooverChainNVT
from ase.md.verlet import VelocityVerlet

INTEGRATORS = ("langevin", "velocity_verlet", "nose_hoover", "bussi", "langevin_baoab")

# Private state of the integrators, by attribute; those that an integrator lacks are skipped.
_STATE = (
    "accel",
    "p_eps",
    "force_eps",
    "_q",
    "_p",
    "_eps",
    "_p_eps",
    "_h",
    "_p_g",
    "transferred_energy",
)
_CHAIN_STATE = {"_thermostat": ("_eta", "_p_eta"), "_barostat": ("_xi", "_p_xi")}


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


def time_step_fs(dyn: Any) -> float | None:
    """Present time step of dynamics in fs; None for a relaxation, which has no time."""
    if not isinstance(dyn, MolecularDynamics):
        return None
    return float(dyn.dt / units.fs)


def save_state(dyn: Any) -> dict[str, Any]:
    """Copy the state that an integrator keeps beside the atoms; empty for most of them."""
    state = {name: copy.deepcopy(getattr(dyn, name)) for name in _STATE if hasattr(dyn, name)}
    for part, names in _CHAIN_STATE.items():
        chain = getattr(dyn, part, None)
        for name in names:
            if hasattr(chain, name):
                state[f"{part}.{name}"] = getattr(chain, name).copy()
    return state


def restore_state(dyn: Any, state: dict[str, Any]) -> None:
    """Put back what `save_state` returned. Temperatures and random generators are left alone."""
    for name, value in state.items():
        part, _, attribute = name.partition(".")
        owner = getattr(dyn, part) if attribute else dyn
        setattr(owner, attribute or name, copy.deepcopy(value))


def refresh_momenta(dyn: Any) -> None:
    """Make an integrator that keeps its own momenta take those of the atoms."""
    if hasattr(dyn, "_p") and hasattr(dyn, "_q"):
        dyn._p = dyn.atoms.get_momenta()


def refresh_forces(dyn: Any) -> None:
    """Make an integrator that keeps accelerations take the forces cached in the calculator.

    Without this, `LangevinBAOAB` starts its next step with half a kick of the old forces.
    """
    if hasattr(dyn, "accel"):
        dyn.accel = dyn.atoms.get_forces() / dyn.atoms.get_masses()[:, None]
    if hasattr(dyn, "force_eps") and "stress" in dyn.atoms.calc.results:
        dyn._update_force_eps()


def draw_velocities(
    atoms: Atoms, temperature_K: float | None, generator: np.random.Generator
) -> None:
    """Give the atoms Maxwell-Boltzmann velocities.

    The motion of the centre of mass stays what it was, unless there are constraints, which are
    applied to the new velocities.

    Parameters
    ----------
    temperature_K : float or None, K
        None keeps the present kinetic energy exactly and draws only the direction, so that the
        total energy of constant-energy dynamics does not change.
    """
    masses = atoms.get_masses()[:, None]
    momenta = atoms.get_momenta()
    free = not atoms.constraints and len(atoms) > 1
    drift = masses * momenta.sum(axis=0) / masses.sum() if free else 0.0
    kT = 1.0 if temperature_K is None else units.kB * temperature_K
    drawn = generator.standard_normal((len(atoms), 3)) * np.sqrt(masses * kT)
    if free:
        drawn -= masses * drawn.sum(axis=0) / masses.sum()
    atoms.set_momenta(drawn)
    if temperature_K is None:
        before = np.sum((momenta - drift) ** 2 / masses)
        drawn = atoms.get_momenta() * np.sqrt(before / (2 * atoms.get_kinetic_energy()))
    else:
        drawn = atoms.get_momenta()
    atoms.set_momenta(drawn + drift)


def make_integrator(
    name: str,
    atoms: Atoms,
    *,
    temperature_K: float,
    time_step_fs: float,
    friction_per_fs: float,
    generator: np.random.Generator,
) -> MolecularDynamics:
    """Build one of `INTEGRATORS`, with its random numbers from `generator`.

    Parameters
    ----------
    temperature_K : float, K
        Not used by ``"velocity_verlet"``.
    friction_per_fs : float, 1/fs
        Coupling to the thermostat: the friction of the Langevin integrators and the inverse time
        constant of ``"bussi"`` and ``"nose_hoover"``.

    Notes
    -----
    Bussi and Nosé-Hoover dynamics conserve the total momentum, but ASE counts all 3N degrees of
    freedom. Where the momentum is zero, their target is lowered by (N - 1)/N, so that the internal
    temperature is `temperature_K`; ``atoms.get_temperature()``, which counts 3N too, then shows
    the lowered value.
    """
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
            target = temperature_K * _internal_share(atoms)
            return NoseHooverChainNVT(atoms, time_step, target, tdamp=time_constant)
        case "bussi":
            target = temperature_K * _internal_share(atoms)
            return Bussi(atoms, time_step, target, taut=time_constant, rng=generator)
        case "langevin_baoab":
            try:
                from ase.md.langevinbaoab import LangevinBAOAB
            except ImportError as error:
                raise ImportError("langevin_baoab needs ASE 3.27 or newer") from error
            return LangevinBAOAB(
                atoms, time_step, temperature_K=temperature_K, T_tau=time_constant, rng=generator
            )
    raise ValueError(f"unknown integrator {name!r}; known: {', '.join(INTEGRATORS)}")


def _internal_share(atoms: Atoms) -> float:
    """Share of the 3N degrees of freedom that is left when the centre of mass is at rest."""
    momenta = atoms.get_momenta()
    at_rest = np.abs(momenta.sum(axis=0)).max() < 1e-8 * max(np.abs(momenta).max(), 1e-12)
    return 1.0 - 1.0 / len(atoms) if at_rest and not atoms.constraints and len(atoms) > 1 else 1.0


def set_temperature(dyn: MolecularDynamics, temperature_K: float) -> None:
    """Change the target temperature (K) of a thermostat.

    Raises
    ------
    ValueError
        If the integrator has no thermostat.
    """
    if hasattr(dyn, "set_temperature"):
        dyn.set_temperature(temperature_K=temperature_K)
    elif isinstance(dyn, Bussi):
        dyn.temp = temperature_K * _internal_share(dyn.atoms) * units.kB
        dyn.target_kinetic_energy = 0.5 * dyn.temp * dyn.ndof
    elif isinstance(dyn, NoseHooverChainNVT):
        thermostat = dyn._thermostat
        target = temperature_K * _internal_share(dyn.atoms) * units.kB
        thermostat._Q *= target / thermostat._kT
        thermostat._kT = target
    else:
        raise ValueError(f"{type(dyn).__name__} has no thermostat to set to {temperature_K} K")
