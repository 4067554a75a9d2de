"""What ASE's dynamics keep beside the atoms: how to save, restore and refresh it.

Many classes read positions, momenta and forces from the atoms at every step. Some keep their own
copies: `LangevinBAOAB` its accelerations, the Nosé-Hoover chains positions, momenta and thermostat
variables, Melchionna's `NPT` the last, present and next positions and cells. Whoever changes the
atoms or the forces between two steps has to change those copies too.
"""

from __future__ import annotations

import copy
from typing import Any

from ase.optimize.optimize import Optimizer

from ase_bayesmlip.md.constraints import ase_names

_THERMOSTAT = ("_thermostat._eta", "_thermostat._p_eta")
_BAROSTAT = ("_barostat._xi", "_barostat._p_xi")
_MELCHIONNA = (
    *("initialized", "h", "h_past", "inv_h", "q", "q_past", "q_future"),
    *("eta", "eta_past", "zeta", "zeta_past", "zeta_integrated"),
)

# State of every class of ASE that can be put back, by attribute; one that an object lacks, because
# it has made no step or has no barostat, is skipped. Classes that derive from these share it.
# Temperatures, random generators and clocks are not state: a rewind leaves them alone.
STATE: dict[str, tuple[str, ...]] = {
    "VelocityVerlet": (),
    "Langevin": (),
    "LangevinBAOAB": ("accel", "p_eps", "force_eps", "gamma_mod"),
    "Bussi": ("transferred_energy",),
    "Andersen": (),
    "NVTBerendsen": (),  # NPTBerendsen and Inhomogeneous_NPTBerendsen as well
    "NoseHooverChainNVT": ("_q", "_p", *_THERMOSTAT),
    "IsotropicMTKNPT": ("_q", "_p", "_eps", "_p_eps", *_THERMOSTAT, *_BAROSTAT),
    "MTKNPT": ("_q", "_p", "_h", "_p_g", *_THERMOSTAT, *_BAROSTAT),
    "MaskedMTKNPT": ("_q", "_p", "_h", "_p_c", *_THERMOSTAT, *_BAROSTAT),
    "MelchionnaNPT": _MELCHIONNA,
    "NPT": _MELCHIONNA,
    "ContourExploration": (
        *("T", "Told", "N", "Nold", "r", "rold", "previous_energies", "step_size", "curvature"),
    ),
}


def state_names(dyn: Any) -> tuple[str, ...] | None:
    """Attributes that hold the state of dynamics; None for a class of which nothing is known."""
    return next((STATE[name] for name in ase_names(type(dyn)) if name in STATE), None)


def check_rewindable(dyn: Any) -> None:
    """Refuse dynamics whose state is not known. A relaxation has none that must be put back.

    Raises
    ------
    ValueError
        With the names of the classes that can be rewound.
    """
    if state_names(dyn) is None and not isinstance(dyn, Optimizer):
        raise ValueError(
            f"what {type(dyn).__name__} keeps beside the atoms is not known, so that it cannot be "
            f"rewound; use {', '.join(sorted(STATE))}, a class that derives from one of them, or "
            "another action (Stop, for example)"
        )


def save_state(dyn: Any) -> dict[str, Any]:
    """Copy the state that dynamics keep beside the atoms; empty for many of them."""
    found = {}
    for name in state_names(dyn) or ():
        owner, attribute = _find(dyn, name)
        if hasattr(owner, attribute):
            found[name] = copy.deepcopy(getattr(owner, attribute))
    return found


def restore_state(dyn: Any, state: dict[str, Any]) -> None:
    """Put back what `save_state` returned."""
    for name, value in state.items():
        owner, attribute = _find(dyn, name)
        setattr(owner, attribute, copy.deepcopy(value))


def refresh_momenta(dyn: Any) -> None:
    """Make dynamics that keep momenta, or positions to come, follow the momenta of the atoms."""
    names = state_names(dyn) or ()
    if "_p" in names:
        dyn._p = dyn.atoms.get_momenta()
    if "q_future" in names and dyn.initialized:
        dyn.initialize()  # past and next positions, from the present ones and the momenta


def refresh_forces(dyn: Any) -> None:
    """Make dynamics that keep accelerations take the forces cached in the calculator.

    Without this, `LangevinBAOAB` starts its next step with half a kick of the old forces, and
    Melchionna's dynamics move to positions that were found with them.
    """
    names = state_names(dyn) or ()
    if hasattr(dyn, "accel"):
        dyn.accel = dyn.atoms.get_forces() / dyn.atoms.get_masses()[:, None]
    if hasattr(dyn, "force_eps") and "stress" in dyn.atoms.calc.results:
        dyn._update_force_eps()
    if "q_future" in names and dyn.initialized:
        dyn._calculate_q_future(dyn.forcecalculator())


def _find(dyn: Any, name: str) -> tuple[Any, str]:
    part, _, attribute = name.partition(".")
    return (getattr(dyn, part, None), attribute) if attribute else (dyn, name)
