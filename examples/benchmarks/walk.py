"""A structure that moves a little before each evaluation, and the time the evaluation takes.

Needs ASE and NumPy alone: `step_time.py` runs it in MACE's environment too.
"""

import time

import numpy as np
from ase import Atoms

# Å, standard deviation of a coordinate's move: what a hydrogen atom at 300 K moves in 0.5 fs.
MOVE = 0.01

# The walk starts again after so many moves, before the structure falls apart.
LENGTH = 50


class Walk:
    """A random walk of all atoms that evaluates energy and forces after every move.

    Nothing can be cached between two evaluations, and a neighbour list with a skin is rebuilt
    about as often as in molecular dynamics.

    Parameters
    ----------
    atoms : Atoms
        With its calculator.
    """

    def __init__(self, atoms: Atoms, seed: int = 0) -> None:
        self.atoms = atoms
        self._start = atoms.positions.copy()
        self._random = np.random.default_rng(seed)
        self._n_moves = 0
        self._last = 0.0

    def step(self) -> float:
        """Move, evaluate, and return the seconds of the evaluation."""
        if self._n_moves % LENGTH == 0:
            self.atoms.positions = self._start
        self.atoms.positions += MOVE * self._random.standard_normal(self._start.shape)
        self._n_moves += 1
        started = time.perf_counter()
        self.atoms.get_forces()
        self._last = time.perf_counter() - started
        return self._last

    def turn(self, seconds: float = 0.2, at_most: int = 20) -> list[float]:
        """As many steps as fit into `seconds`, at least one, after one that does not count.

        The uncounted step brings the model back into the caches of the processor, where a
        simulation keeps it; a step of more than half a second does not depend on them.
        """
        if self._last < 0.5:
            self.step()
        times = [self.step()]
        while sum(times) + times[-1] < seconds and len(times) < at_most:
            times.append(self.step())
        return times
