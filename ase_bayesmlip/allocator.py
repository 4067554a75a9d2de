"""Memory policy of a process that evaluates potentials again and again."""

from __future__ import annotations

import ctypes
import os
import sys

# Names and numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Ask glibc to keep up to 2 GiB of freed memory for the next step.

    A step frees and asks for the same megabytes again; without this the system hands out fresh
    pages each time and clears them. Measured: 17 % of a training step, 45 % of a step of eight
    members with 12,288 atoms. It holds for the whole process. Whoever sets glibc's own variables
    (``MALLOC_TRIM_THRESHOLD_``, ``GLIBC_TUNABLES=glibc.malloc...`` and their like) is obeyed, and
    nothing is changed.

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
    named = any(name.startswith("MALLOC_") and name.endswith("_") for name in os.environ)
    return named or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
