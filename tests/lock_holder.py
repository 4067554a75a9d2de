"""A process that holds the lock of a folder: of a module that a spawned process finds."""

import signal

from ase_bayesmlip.posteriors.lock import folder_lock


def hold(folder, held):
    """Take the lock, say so, and wait to be killed."""
    with folder_lock(folder):
        held.set()
        signal.pause()
