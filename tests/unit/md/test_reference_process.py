"""References in a process of their own: time limits, deaths, and nothing that is left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import odd_references
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones

from ase_bayesmlip.md.reference_process import ReferenceFailure, ReferenceProcess
from ase_bayesmlip.md.references import evaluate

CLOSE, APART = Atoms("H2", [[0, 0, 0], [0, 0, 1.2]]), Atoms("H2", [[0, 0, 0], [0, 0, 1.8]])


@pytest.fixture
def start():
    """Function that starts a process which ends with the test."""
    started = []

    def make(reference, timeout_s=60.0):
        started.append(ReferenceProcess(reference, timeout_s))
        return started[-1]

    yield make
    for process in started:
        process.close()


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(*pids):
    for _ in range(200):
        if not any(map(is_running, pids)):
            return
        time.sleep(0.05)
    raise AssertionError(f"still running: {pids}")


@pytest.mark.parametrize("reference", ["lj", LennardJones(sigma=1.1)], ids=["name", "pickled"])
def test_answers_are_those_of_the_calculator(start, reference):
    process = start(reference)
    here = LennardJones() if isinstance(reference, str) else LennardJones(sigma=1.1)
    for atoms in (CLOSE, APART, CLOSE):
        found, expected = process.ask(atoms), evaluate(here, atoms)
        assert found["energy"] == expected["energy"]
        np.testing.assert_array_equal(found["forces"], expected["forces"])
    with pytest.raises(ReferenceFailure, match="ValueError: the structure has no atoms"):
        process.ask(Atoms())


def test_a_reference_that_hangs_is_killed_with_what_it_started(start, tmp_path, monkeypatch):
    monkeypatch.setenv("ODD_REFERENCES_LOG", str(tmp_path / "log"))
    process = start("odd_references:Sleeps", timeout_s=1.0)
    before = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer within 1 s"):
        process.ask(CLOSE)
    assert time.monotonic() - before < 20
    pids = [int(pid) for pid in (tmp_path / "log").read_text().split()]
    assert len(pids) == 2
    wait_until_gone(*pids)
    # The next label gets a fresh process, and its own answer.
    assert process.ask(APART)["energy"] == evaluate(LennardJones(), APART)["energy"]


def test_a_reference_that_dies_is_made_again(start):
    process = start("odd_references:Dies")
    with pytest.raises(ReferenceFailure, match="ended by signal 9"):
        process.ask(CLOSE)
    assert process.ask(APART)["energy"] == evaluate(LennardJones(), APART)["energy"]


def test_an_error_of_the_reference_is_told_and_the_process_kept(start):
    process = start("odd_references:Raises")
    worker = process._worker
    for _ in range(2):
        with pytest.raises(ReferenceFailure, match="SCF did not converge"):
            process.ask(CLOSE)
    assert process._worker is worker
    assert worker.is_alive()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("ccsdt", "known: gfn2"),
        ("odd_references:needs_an_argument", "making it, without arguments, failed"),
        (odd_references.CarriesLambda(), "cannot be sent to another process"),
    ],
    ids=["unknown", "fails", "not to be pickled"],
)
def test_what_cannot_be_made_there_is_refused_at_once(reference, message):
    with pytest.raises(ValueError, match=message):
        ReferenceProcess(reference, 60.0)


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, np.inf, np.nan])
def test_time_limits(timeout_s):
    with pytest.raises(ValueError, match="timeout_s must be a positive number"):
        ReferenceProcess("lj", timeout_s)


def test_an_interruption_is_not_taken_for_an_answer(start, monkeypatch):
    process = start("lj")
    line = process._worker._line
    monkeypatch.setattr(type(line), "poll", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        process.ask(CLOSE)
    monkeypatch.undo()
    assert process.ask(APART)["energy"] == evaluate(LennardJones(), APART)["energy"]


SCRIPT = """
import sys
sys.path[:] = {path!r}
from ase import Atoms
from ase_bayesmlip.md.reference_process import ReferenceProcess
ReferenceProcess("odd_references:Sleeps", 500.0).ask(Atoms("H2", [[0, 0, 0], [0, 0, 1.2]]))
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_the_process_ends_when_its_parent_is_killed(tmp_path):
    log = tmp_path / "log"
    parent = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(path=sys.path)],
        env={**os.environ, "ODD_REFERENCES_LOG": str(log)},
    )
    try:
        for _ in range(600):
            if log.exists() and len(log.read_text().split()) == 2:
                break
            time.sleep(0.05)
        pids = [int(pid) for pid in log.read_text().split()]
        assert all(map(is_running, pids))
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_until_gone(*pids)
