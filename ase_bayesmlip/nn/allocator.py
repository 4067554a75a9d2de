"""Memory policy of a process that evaluates potentials again and again."""

from __future__ import annotations

import ctypes
import os
import sys

# Names and numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed memory for the next step, instead of returning it to the system.

    A step frees and asks for the same megabytes again; without this the system hands out fresh
    pages each time and clears them. Measured: 17 % of a training step, 45 % of a step of eight
    members with 12,288 atoms. It holds for the whole process, and the process may stay as large as
    it ever was. Where glibc's own variables for this are set (``MALLOC_TRIM_THRESHOLD_``,
    ``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TOP_PAD_``, ``GLIBC_TUNABLES=glibc.malloc...``), they stand
    and nothing is changed.

    Returns
    -------
    bool
        Whether the allocator took it; elsewhere than on glibc nothing happens.
    """
    if not sys.platform.startswith("linux") or _has_own_policy():
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # Older versions of glibc accept at most 32 MiB. Without it the rest would do harm.
    if not any(mallopt(_M_MMAP_THRESHOLD, size) == 1 for size in (1 << 30, 1 << 25)):
        return False
    settings = {_M_TRIM_THRESHOLD: (1 << 31) - 1, _M_TOP_PAD: 64 << 20}
    accepted = [mallopt(name, value) == 1 for name, value in settings.items()]
    return all(accepted)


def _has_own_policy() -> bool:
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")
    return not os.environ.keys().isdisjoint(names) or "glibc.malloc" in os.environ.get(
        "GLIBC_TUNABLES", ""
    )
