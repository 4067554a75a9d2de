"""What tests run in processes of their own.

A spawned process imports the module of its function by name. It finds those in `tests/`, which is
on the path, but no test file, which pytest imports under a name of its own.
"""

import signal

from ase_bayesmlip.posteriors.lock import folder_lock


def hold(folder, held):
    """Take the lock, say so, and wait to be killed."""
    with folder_lock(folder):
        held.set()
        signal.pause()


def forces(atoms):
    """Forces of a structure that came with its calculator."""
    return atoms.get_forces()
