"""`Rewind`: go back to the last frame that was trusted and continue from there."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.optimize.optimize import Optimizer

from ase_bayesmlip.md.events import Event, Monitor, copy_results
from ase_bayesmlip.md.integrator_state import (
    check_rewindable,
    refresh_momenta,
    restore_state,
    save_state,
)
from ase_bayesmlip.md.temperature import draw_velocities


@dataclass(eq=False)
class Snapshot:
    """A trusted frame with everything that is needed to continue from it without an evaluation.

    Attributes
    ----------
    step : int
    atoms : Atoms
        Copy with cell, boundary conditions and everything that is kept for each atom.
    results : dict
        Of the calculator.
    lone_atoms : tuple of int or None
        Of the calculator, if it tells.
    state : dict
        Of the integrator.
    n_rewinds : int
        How often the run has come back to this frame.
    """

    step: int
    atoms: Atoms
    results: dict[str, Any]
    state: dict[str, Any]
    lone_atoms: tuple[int, ...] | None = None
    n_rewinds: int = 0


class Rewind:
    """Go back to a trusted frame: all that the atoms hold, results and integrator state.

    Trusted frames are observed frames that were neither flagged nor unphysical. The calculator is
    left as if it had just evaluated the frame, so that no evaluation is wasted. The step counter
    is not turned back: it counts the steps that were integrated, discarded ones included, and a
    run of n steps ends. Put this action after those that look at the live atoms.

    Deterministic dynamics (velocity Verlet, Nosé-Hoover) would run into the same frame again; give
    ``rethermalise=True`` to draw new velocities. Langevin and Bussi dynamics continue with new
    random numbers and take another path by themselves. A relaxation would repeat its step, so it
    is put back to the trusted frame and stopped.

    Dynamics whose state is not known (see `integrator_state`) are refused when the monitor is
    made. When the atoms are no longer those of the trusted frame, because some were added, removed
    or became another element, nothing is put back and the run is stopped.

    Parameters
    ----------
    n_frames : int
        1 is the last trusted frame, 2 the one before; the oldest known if there are fewer.
    rethermalise : bool
        Draw new Maxwell-Boltzmann velocities; the motion of the centre of mass is kept.
    temperature_K : float or None
        Of the new velocities. None keeps the kinetic energy of the trusted frame exactly, so that
        the total energy of constant-energy dynamics does not change.
    rng : int, numpy Generator or None
        Seed or generator for the new velocities.
    max_rewinds : int
        When the run has come back to one frame more often than this, it is stopped there.

    Attributes
    ----------
    rewinds : list of (int, int)
        Step of the event and step of the frame gone back to.
    """

    def __init__(
        self,
        n_frames: int = 1,
        rethermalise: bool = False,
        temperature_K: float | None = None,
        rng: int | np.random.Generator | None = None,
        max_rewinds: int = 5,
    ) -> None:
        if n_frames < 1:
            raise ValueError(f"n_frames must be at least 1, not {n_frames}")
        if max_rewinds < 1:
            raise ValueError(f"max_rewinds must be at least 1, not {max_rewinds}")
        if temperature_K is not None and not rethermalise:
            raise ValueError("temperature_K is used only with rethermalise=True")
        self.rethermalise = rethermalise
        self.temperature_K = temperature_K
        self.generator = np.random.default_rng(rng)
        self.max_rewinds = max_rewinds
        self.rewinds: list[tuple[int, int]] = []
        self._snapshots: deque[Snapshot] = deque(maxlen=n_frames)

    def __repr__(self) -> str:
        return (
            f"<Rewind to {self._snapshots.maxlen} trusted frame(s) ago: {len(self.rewinds)} done>"
        )

    def check_dynamics(self, dyn: Any) -> None:
        """Refuse dynamics that cannot be put back."""
        check_rewindable(dyn)

    def on_frame(self, monitor: Monitor) -> None:
        """Keep a copy of the present frame if it is trusted."""
        if not monitor.row["flagged"]:
            self._snapshots.append(take_snapshot(monitor.atoms, monitor.dyn))

    def __call__(self, event: Event, monitor: Monitor) -> None:
        """Go back, or stop the run with a reason if that is no use."""
        where = f"{event.kind} frame at step {event.step} ({event.reason})"
        if not self._snapshots:
            monitor.stop(f"{where}, and no trusted frame before it to go back to")
            return
        snapshot = self._snapshots[0]
        if not np.array_equal(snapshot.atoms.numbers, monitor.atoms.numbers):
            monitor.stop(
                f"{where}, and the atoms are no longer those of the trusted frame at step "
                f"{snapshot.step} ({snapshot.atoms.symbols} then, {monitor.atoms.symbols} now): "
                "nothing was put back"
            )
            return
        self._snapshots.clear()
        self._snapshots.append(snapshot)
        snapshot.n_rewinds += 1
        restore_snapshot(snapshot, monitor.atoms, monitor.dyn)
        self.rewinds.append((event.step, snapshot.step))
        monitor.note(rewound_to=snapshot.step)
        if isinstance(monitor.dyn, Optimizer):
            monitor.stop(f"{where}; the relaxation was put back to step {snapshot.step}")
        elif snapshot.n_rewinds > self.max_rewinds:
            monitor.stop(
                f"{where}, after {self.max_rewinds} attempts to get past it from step "
                f"{snapshot.step}"
            )
        elif self.rethermalise:
            draw_velocities(monitor.atoms, self.temperature_K, self.generator)
            refresh_momenta(monitor.dyn)


def take_snapshot(atoms: Atoms, dyn: Any) -> Snapshot:
    """Copy what `restore_snapshot` puts back."""
    return Snapshot(
        dyn.nsteps,
        atoms.copy(),
        copy_results(atoms.calc.results),
        save_state(dyn),
        getattr(atoms.calc, "lone_atoms", None),
    )


def restore_snapshot(snapshot: Snapshot, atoms: Atoms, dyn: Any) -> None:
    """Put atoms, calculator cache and integrator back to the state of a snapshot.

    The atoms must be the same; arrays that were added since are left as they are.
    """
    atoms.set_cell(snapshot.atoms.cell, scale_atoms=False, apply_constraint=False)
    atoms.pbc = snapshot.atoms.pbc
    for name, values in snapshot.atoms.arrays.items():
        atoms.set_array(name, values)
    calc = atoms.calc
    calc.atoms = snapshot.atoms.copy()
    calc.results = copy_results(snapshot.results)
    if snapshot.lone_atoms is not None:
        calc.lone_atoms = snapshot.lone_atoms
    restore_state(dyn, snapshot.state)
