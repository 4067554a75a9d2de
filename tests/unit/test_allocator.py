"""Freed memory stays with the process, unless its user decided otherwise."""

import os
import subprocess
import sys

import pytest

from ase_bayesmlip.allocator import keep_freed_memory

# Touch 64 MiB again and again and count the pages that the system had to hand out for it. The
# first rounds are not counted: an aligned piece does not fit in where the last one was.
FAULTS = """
import resource
import torch
from ase_bayesmlip.allocator import keep_freed_memory
taken = keep_freed_memory()
for _ in range(8):
    torch.empty(1 << 24).fill_(0.0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(16):
    torch.empty(1 << 24).fill_(0.0)
print(int(taken), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 16 * (1 << 26) // 4096

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not keep_freed_memory(), reason="needs glibc"
)


def faults(**environment):
    """Whether the policy was taken, and page faults of sixteen allocations, in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    taken, count = done.stdout.split()
    return bool(int(taken)), int(count)


def test_pages_are_used_again():
    taken, count = faults()
    assert taken
    assert count < PAGES / 2


@pytest.mark.parametrize(
    "own",
    [
        {"MALLOC_MMAP_THRESHOLD_": "131072"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"},
    ],
    ids=["variable", "tunable"],
)
def test_the_users_own_policy_stands(own):
    taken, _ = faults(**own)
    assert not taken
