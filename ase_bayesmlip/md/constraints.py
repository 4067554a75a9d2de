"""Which constraints ASE's dynamics keep, which atoms they hold, and what motion they leave.

ASE applies constraints where a class calls `Atoms.set_positions` and `Atoms.set_momenta`. Not all
dynamics do, measured on ASE 3.29 with a crystal of 32 atoms at 500 K (20 held atoms, or the
constraint named; deviation from it, and mean temperature of what is free):

    class                                    FixAtoms  FixCom   linear   bond lengths, internals
    VelocityVerlet, Langevin, Bussi,         kept      kept     kept     kept
      NVTBerendsen, Andersen with
      fixcm=False, ContourExploration
    Andersen with fixcm=True                 431 K     kept     refused  refused: too cold
    LangevinBAOAB at constant volume         kept      kept     kept     lost: positions are moved
                                                                         past the constraint
    NoseHooverChainNVT                       202 K     refused  refused  refused: the chain keeps
                                                                         momenta of its own
    IsotropicMTKNPT, MTKNPT, MaskedMTKNPT    refused by ASE
    MelchionnaNPT, NPT                       1292 K    refused  refused  refused: it keeps positions
                                                                         of its own
    NPTBerendsen and its kin, LangevinBAOAB  lost: 0.01 Å to 0.3 Å, atoms are moved with the cell
      at constant pressure

Without constraints all have 478 K to 507 K, with a standard error of about 3 %; what is kept above
is kept at 474 K to 533 K.

*Linear* are constraints on the coordinates of single atoms and on sums of coordinates (`_LINEAR`).
What is not kept is refused by `check_constraints` when the dynamics or a monitor is made.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms

# Constraints that hold combinations of coordinates: velocities that obey them keep them.
_LINEAR = {
    "FixAtoms",
    "FixCartesian",
    "FixCom",
    "FixScaled",
    "FixSubsetCom",
    "FixedLine",
    "FixedMode",
    "FixedPlane",
}

# Forces on top of those of the calculator: they hold nothing.
_FORCES = {"ExternalForce", "Hookean"}

# Dynamics that cannot keep a constraint, and why.
_IGNORING = {
    "NoseHooverChainNVT": "it keeps momenta of its own, to which constraints are never applied",
    "IsotropicMTKNPT": "it keeps momenta of its own, to which constraints are never applied",
    "MTKNPT": "it keeps momenta of its own, to which constraints are never applied",
    "MelchionnaNPT": "it keeps positions of its own, to which constraints are never applied",
    "NPT": "it keeps positions of its own, to which constraints are never applied",
    "NPTBerendsen": "it moves all atoms with the cell",
}

# Of two ways to the same positions, Å.
_ROUND_OFF = 1e-9


def ase_names(kind: type) -> list[str]:
    """Names of the classes of ASE that a class derives from, itself first."""
    return [base.__name__ for base in kind.__mro__ if base.__module__.startswith("ase.")]


def check_constraints(dyn: Any) -> None:
    """Refuse dynamics that would not keep the constraints of their atoms.

    Raises
    ------
    ValueError
        With the name of a class that keeps them.
    """
    atoms = getattr(dyn, "atoms", None)
    if not hasattr(dyn, "dt") or not isinstance(atoms, Atoms):
        return  # a relaxation, which moves atoms by `set_positions`
    holding = holding_constraints(atoms)
    if not holding:
        return
    names = ", ".join(type(constraint).__name__ for constraint in holding)
    kind = type(dyn).__name__
    reason = why_constraints_are_lost(dyn, holding)
    if reason:
        raise ValueError(
            f"{kind} does not keep the constraints of these atoms ({names}): {reason}. Langevin, "
            "Bussi and VelocityVerlet keep them ('langevin', 'bussi' and 'velocity_verlet'), at "
            "constant volume"
        )
    counted = _counted_by_thermostat(dyn)
    free = degrees_of_freedom(atoms)
    if counted is not None and free < 1:
        raise ValueError(
            f"the constraints of these atoms ({names}) leave no motion that {kind} could hold at a "
            "temperature; leave some atoms free"
        )
    if counted is not None and abs(counted - free) > 0.1 * free:
        raise ValueError(
            f"the thermostat of {kind} counts {counted} degrees of freedom where the constraints "
            f"of these atoms ({names}) leave {free}, and would hold another temperature; Langevin "
            "counts none, and make_integrator('bussi', ...) counts right"
        )
    broken = _conflict(atoms)
    if broken:
        raise ValueError(
            f"the constraints of these atoms ({names}) contradict each other: ASE applies one "
            f"after the other, and the last one undoes {broken}. Leave one of them out"
        )


def _counted_by_thermostat(dyn: Any) -> int | None:
    """Degrees of freedom that a thermostat of ASE believes in; None if it needs no count."""
    classes = ase_names(type(dyn))
    if "Bussi" in classes:
        return int(dyn.ndof)
    if "NVTBerendsen" in classes:
        return int(dyn.atoms.get_number_of_degrees_of_freedom())
    return None


def why_constraints_are_lost(dyn: Any, constraints: list[Any]) -> str:
    """Say why dynamics would not keep constraints, or the temperature; empty if they do."""
    classes = ase_names(type(dyn))
    for name, reason in _IGNORING.items():
        if name in classes:
            return reason
    if "LangevinBAOAB" in classes:
        if dyn.externalstress is not None:
            return "it moves all atoms with the cell"
        others = [c for c in constraints if not _LINEAR.intersection(ase_names(type(c))[:1])]
        if others:
            return (
                "it moves positions past constraints, and velocities alone keep only those that "
                f"are linear, not {type(others[0]).__name__}"
            )
    if (
        "Andersen" in classes
        and dyn.fix_com
        and [type(c).__name__ for c in constraints] != ["FixCom"]
    ):
        return (
            "it brings the centre of mass of all atoms to rest, held ones included, which cools "
            "the others: give it fixcm=False"
        )
    return ""


def holding_constraints(atoms: Atoms) -> list[Any]:
    """Constraints that take away degrees of freedom; springs such as `Hookean` do not."""
    return [c for c in atoms.constraints if not _FORCES.intersection(ase_names(type(c)))]


def _conflict(atoms: Atoms) -> str:
    """Name of a constraint that is not kept when all are applied in turn; empty if none is."""
    if len(holding_constraints(atoms)) < 2:
        return ""
    before, after = atoms.copy(), atoms.copy()
    shift = 1.0 + np.random.default_rng(0).standard_normal(before.positions.shape)
    after.set_positions(before.positions + 1e-4 * shift)
    for constraint in holding_constraints(before):
        again = after.get_positions()
        constraint.adjust_positions(before, again)
        if np.abs(again - after.positions).max() > _ROUND_OFF:
            return type(constraint).__name__
    return ""


def held_atoms(atoms: Atoms) -> np.ndarray:
    """Atoms that constraints hold in all three coordinates, ndarray of bool, (n_atoms,).

    Found by applying the constraints to random momenta.
    """
    if not holding_constraints(atoms):
        return np.zeros(len(atoms), dtype=bool)
    trial = atoms.copy()
    momenta = np.random.default_rng(0).standard_normal((len(atoms), 3))
    trial.set_momenta(momenta)
    return np.asarray(np.abs(trial.get_momenta()).max(axis=1) < 1e-10)


def degrees_of_freedom(atoms: Atoms) -> int:
    """Degrees of freedom that constraints leave of 3 n_atoms.

    A coordinate that two constraints hold counts once. `Atoms.get_number_of_degrees_of_freedom`
    counts it twice, takes n_atoms for the one of a `FixedMode`, and fails for `FixSymmetry`.
    """
    held = np.zeros((len(atoms), 3), dtype=bool)
    removed = 0
    for constraint in holding_constraints(atoms):
        match type(constraint).__name__:
            case "FixAtoms":
                held[constraint.index] = True
            case "FixCartesian":
                held[constraint.index] |= constraint.mask
            case "FixedMode":
                removed += 1
            case _:
                removed += _removed(constraint, atoms)
    return held.size - int(np.count_nonzero(held)) - removed


def _removed(constraint: Any, atoms: Atoms) -> int:
    try:
        return int(constraint.get_removed_dof(atoms))
    except (AttributeError, NotImplementedError):
        return _counted(constraint, atoms)


def _counted(constraint: Any, atoms: Atoms) -> int:
    """Degrees of freedom that a constraint removes: 3 n_atoms less the trace of its projection."""
    trial, size = atoms.copy(), 3 * len(atoms)
    left = 0.0
    for k in range(size):
        momenta = np.zeros(size)
        momenta[k] = 1.0
        momenta.shape = (-1, 3)
        constraint.adjust_momenta(trial, momenta)
        left += momenta.ravel()[k]
    return size - round(left)
