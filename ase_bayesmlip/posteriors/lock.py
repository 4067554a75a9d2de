"""One training at a time in the folder of a run: two would mix their weights without a word."""

from __future__ import annotations

import errno
import functools
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from ase_bayesmlip.config import Config
from ase_bayesmlip.training.distributed import rank

try:
    import fcntl
except ImportError:  # a system without such locks, where nothing is locked
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"

P = ParamSpec("P")
R = TypeVar("R")


def one_at_a_time(
    fit: Callable[Concatenate[Config, Path, P], R],
) -> Callable[Concatenate[Config, Path, P], R]:
    """Hold the lock of the folder while a posterior is fitted there."""

    @functools.wraps(fit)
    def locked(config: Config, folder: Path, *arguments: P.args, **options: P.kwargs) -> R:
        with folder_lock(folder):
            return fit(config, folder, *arguments, **options)

    return locked


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Be the only one who trains into a folder; workers belong to the process that started them.

    The lock is one of the operating system, which ends with the process however that ends: a file
    that a killed process left behind locks nothing. Under torchrun rank 0 holds it for all.

    Raises
    ------
    FileExistsError
        If another process holds it; the message says which.
    """
    if fcntl is None or rank() > 0:
        yield
        return
    folder = Path(folder)
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file; give a folder for the run")
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    handle = _locked(folder / LOCK_FILE)
    try:
        yield
    finally:
        if handle is not None:
            # Removed before it is given up, so that nobody's lock is removed but ours.
            with suppress(OSError):
                (folder / LOCK_FILE).unlink()
                if is_new:
                    folder.rmdir()  # if nothing came of it
            os.close(handle)


def _locked(path: Path) -> int | None:
    """An open file with the lock; None, with a warning, where the file system has no locks."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(handle, 1000).decode(errors="replace").strip()
            os.close(handle)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise FileExistsError(
                    f"another training is at work in {path.parent} ({holder or 'just begun'}); "
                    "wait for it, end it, or train into another folder"
                ) from error
            warnings.warn(
                f"{path} cannot be locked ({error}): see to it that no other training writes there",
                stacklevel=5,
            )
            return None
        if _is_at(handle, path):
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            return handle
        os.close(handle)  # its holder has removed it meanwhile


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
