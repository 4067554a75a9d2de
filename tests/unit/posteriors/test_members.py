"""Processes that train members end with the process that started them."""

import os
import signal
import subprocess
import sys
import time

import pytest
from tiny import tiny_config

from ase_bayesmlip.posteriors.members import seconds_for

# Workers import this as their main module, and their function from it.
SCRIPT = """
import os, sys, time
from pathlib import Path
from ase_bayesmlip.posteriors import RunOptions
from ase_bayesmlip.posteriors.members import run_members

def train(folder, index, progress, position):
    folder.joinpath(f"{index}.tmp").write_text(str(os.getpid()))
    folder.joinpath(f"{index}.tmp").rename(folder / f"{index}.pid")
    while True:
        sum(range(10**5))  # a worker is busy, not asleep

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    run_members(train, [(folder, 0), (folder, 1)], RunOptions(jobs=2, progress=False))
"""


def is_alive(process):
    """Whether it runs: a dead one that nobody has waited for does not."""
    try:
        with open(f"/proc/{process}/stat") as file:  # noqa: PTH123
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    parent = subprocess.Popen([sys.executable, script, tmp_path], stderr=subprocess.DEVNULL)
    try:
        files = [tmp_path / f"{index}.pid" for index in range(2)]
        assert wait_for(lambda: all(file.exists() for file in files), 120)
        workers = [int(file.read_text()) for file in files]
        assert all(map(is_alive, workers))
        parent.kill()
        parent.wait()
        assert wait_for(lambda: not any(map(is_alive, workers)), 30)
    finally:
        parent.kill()
        for file in tmp_path.glob("*.pid"):
            if is_alive(int(file.read_text())):
                os.kill(int(file.read_text()), signal.SIGKILL)


@pytest.mark.parametrize(
    ("posterior", "jobs", "shares"),
    [
        ({"kind": "point"}, 1, (600, None)),
        ({"kind": "ensemble", "members": 4}, 1, (150, None)),
        ({"kind": "ensemble", "members": 4}, 2, (300, None)),
        ({"kind": "ensemble", "members": 4}, 3, (300, None)),  # two rounds
        ({"kind": "ensemble", "members": 4}, 9, (600, None)),
        ({"kind": "swag", "epochs": 20}, 1, (400, 200)),
        ({"kind": "swag", "epochs": 20, "members": 2}, 1, (200, 100)),
        ({"kind": "ivon", "epochs": 20, "start_from": "run"}, 1, (None, 600)),
        ({"kind": "laplace", "start_from": "run"}, 1, (600, None)),
    ],
)
def test_members_and_what_follows_them_share_the_time(posterior, jobs, shares):
    config = tiny_config(training={"epochs": 40, "time_limit": 10}, posterior=posterior)
    for epochs, seconds in zip((40, 20), shares, strict=True):
        if seconds is not None:
            assert seconds_for(config, epochs, jobs) == pytest.approx(seconds, rel=1e-12)
    assert seconds_for(tiny_config(posterior=posterior), 40, jobs) is None
