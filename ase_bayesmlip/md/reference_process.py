"""A reference in a process of its own, which is ended when it does not answer in time.

Some references cannot be interrupted: compiled code that hangs, a program that waits for another.
The calculator is made inside the process, which serves one label after the other. Process and
everything it starts form a process group with a guard: a shell that waits for the end of its
input, which comes when this process closes it or dies, however it dies, and then kills the group.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from ase import Atoms
from ase.calculators.calculator import BaseCalculator

from ase_bayesmlip.md.periodicity import packages_of
from ase_bayesmlip.md.references import evaluate, reference_calculator

# Imports and the making of the calculator may take this long, s, or the time of a label if longer.
START_S = 60.0


class ReferenceFailure(RuntimeError):  # noqa: N818
    """What a reference in a process of its own raised, or how it ended."""


class ReferenceProcess:
    """Ask a reference that may hang or kill its process.

    Parameters
    ----------
    reference : str or Calculator
        A name for `reference_calculator`, made inside the process, or a calculator that can be
        pickled, as it is now.
    timeout_s : float, s
        For one label. When it is over, the process and what it started are killed, and the next
        label gets a fresh one.

    Attributes
    ----------
    packages : list of str
        See `periodicity.packages_of`.

    Raises
    ------
    ValueError
        If the reference cannot be made in a process of its own; found out at once.
    """

    def __init__(self, reference: str | BaseCalculator, timeout_s: float) -> None:
        if isinstance(timeout_s, str | bool) or not 0 < timeout_s < math.inf:
            raise ValueError(f"timeout_s must be a positive number of seconds, not {timeout_s!r}")
        if os.name != "posix":
            raise ValueError("timeout_s needs a POSIX system (Linux, macOS)")
        self.timeout_s = float(timeout_s)
        self.packages: list[str] = []
        self._recipe = _recipe(reference)
        self._worker: _Worker | None = None
        try:
            self._started()
        except (ReferenceFailure, TimeoutError) as error:
            raise ValueError(str(error)) from error

    def ask(self, atoms: Atoms) -> dict[str, Any]:
        """What `references.evaluate` gives for a structure.

        Raises
        ------
        TimeoutError
        ReferenceFailure
            With the error that the reference raised, or the way its process ended.
        """
        worker = self._started()
        bare = atoms.copy()
        bare.calc = None
        try:
            kind, answer = worker.exchange(bare, self.timeout_s)
        except BaseException:  # a late answer must not be taken for that of the next structure
            self.close()
            raise
        if kind == "error":
            raise ReferenceFailure(answer)
        return answer

    def close(self) -> None:
        """End the process and everything it started."""
        if self._worker is not None:
            self._worker.end()
            self._worker = None

    def _started(self) -> _Worker:
        if self._worker is not None and self._worker.is_alive():
            return self._worker
        self.close()
        worker = _Worker()
        try:
            kind, answer = worker.exchange(self._recipe, max(self.timeout_s, START_S))
            if kind == "error":
                raise ReferenceFailure(answer)
        except BaseException:
            worker.end()
            raise
        self._worker, self.packages = worker, answer
        return worker


class _Worker:
    """The process, its guard and the line to it."""

    def __init__(self) -> None:
        self._line, theirs = Pipe()
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", "read line; kill -KILL 0"], stdin=subprocess.PIPE, process_group=0
        )
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from ase_bayesmlip.md.reference_process import serve; serve({theirs.fileno()})"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            process_group=self._guard.pid,
        )
        theirs.close()
        # Also when this object is forgotten, and at the end of the interpreter.
        self.end = weakref.finalize(self, _end, self._guard, self._process, self._line)

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def exchange(self, question: Any, timeout_s: float) -> tuple[str, Any]:
        """Send a question and wait for its answer, or for the text of an error."""
        try:
            self._line.send(question)
            if not self._line.poll(timeout_s):
                raise TimeoutError(
                    f"the reference gave no answer within {timeout_s:g} s; its process was killed"
                )
            kind, answer = self._line.recv()
        except (EOFError, ConnectionError) as error:
            raise ReferenceFailure(self._how_it_ended()) from error
        return kind, answer

    def _how_it_ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        code = self._process.returncode
        if code is None:
            return "the process of the reference closed its line"
        how = f"by signal {-code}" if code < 0 else f"with exit status {code}"
        return f"the process of the reference ended {how}"


def _end(
    guard: subprocess.Popen[bytes], process: subprocess.Popen[bytes], line: Connection
) -> None:
    line.close()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(guard.pid, signal.SIGKILL)
    if guard.stdin is not None:
        guard.stdin.close()
    guard.wait()
    process.wait()


def _recipe(reference: str | BaseCalculator) -> str | bytes:
    """The name of a reference, or a calculator in bytes."""
    if isinstance(reference, str):
        return reference
    advice = (
        "give its name (gfn2) or package.module:factory, from which it is made in a process of "
        "its own, or leave out timeout_s"
    )
    try:
        recipe = bytes(ForkingPickler.dumps(reference))
    except Exception as error:
        raise ValueError(
            f"{type(reference).__name__} cannot be sent to another process "
            f"({type(error).__name__}: {error}); {advice}"
        ) from error
    if type(reference).__module__ == "__main__":
        raise ValueError(
            f"{type(reference).__name__} is defined in the script itself, which another process "
            f"does not see; move it into a module, or {advice}"
        )
    return recipe


def serve(descriptor: int) -> None:
    """Answer questions until the line is closed: what the process does."""
    with Connection(descriptor) as line, contextlib.suppress(EOFError, ConnectionError):
        made: list[Any] = []

        def make(recipe: str | bytes) -> list[str]:
            made.append(_make(recipe))
            return packages_of(made[0])

        _answer(line, make)
        while True:
            _answer(line, lambda atoms: evaluate(made[0], atoms))


def _make(recipe: str | bytes) -> Any:
    return reference_calculator(recipe) if isinstance(recipe, str) else ForkingPickler.loads(recipe)


def _answer(line: Connection, function: Callable[[Any], Any]) -> None:
    question = line.recv()
    try:
        line.send(("answer", function(question)))
    except Exception as error:
        line.send(("error", f"{type(error).__name__}: {error}"))
