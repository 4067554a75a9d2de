"""Freed memory stays with a process that serves models, unless its user decided otherwise."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from ase_bayesmlip.serving import runtime

# Older versions of glibc take no limit above 32 MiB: blocks below that show the policy everywhere.
BYTES, ROUNDS = 16 << 20, 16

# Touch a block again and again and count the pages that the system had to hand out for it. The
# first rounds are not counted: an aligned block does not fit in where the last one was.
FAULTS = f"""
import resource, sys, torch
from ase_bayesmlip.nn.allocator import keep_freed_memory
taken = keep_freed_memory() if sys.argv[1] == "policy" else None
def touch(n):
    for _ in range(n):
        torch.empty({BYTES}, dtype=torch.uint8).fill_(0)
touch(8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch({ROUNDS})
print(taken, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


def faults(policy, **environment):
    """Whether the policy was taken, and the pages that were handed out, in a fresh process.

    Settings of this process are not handed on: a policy in them would stand.
    """
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, "policy" if policy else "control"],
        env={**own, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    taken, count = done.stdout.split()
    return taken, int(count)


@pytest.mark.slow
def test_pages_are_used_again():
    taken, count = faults(policy=True)
    _, control = faults(policy=False, MALLOC_MMAP_THRESHOLD_="131072")
    assert taken == "True"
    if control < 100:
        pytest.skip("pages of this system are so large that there is nothing to count")
    assert count < control / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "own",
    [
        {"MALLOC_MMAP_THRESHOLD_": "131072"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"},
    ],
    ids=["variable", "tunable"],
)
def test_the_users_own_policy_stands(own):
    taken, _ = faults(policy=True, **own)
    assert taken == "False"


@pytest.mark.slow
def test_loading_a_model_for_the_cpu_takes_it(monkeypatch, data_folder):
    calls = []
    monkeypatch.setattr(runtime, "keep_freed_memory", lambda: calls.append("taken"))
    runtime.load_model(data_folder / "ethanol_ensemble.pt")
    assert calls == ["taken"]
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="cuda"):
            runtime.load_model(data_folder / "ethanol_ensemble.pt", device="cuda")
    assert calls == ["taken"]
