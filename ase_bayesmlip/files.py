"""Files that are written whole or not at all: to disk first, then under their name."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader finds the old content or the new one, never a part.

    The content is on the disk before the file takes its name: neither an interruption, nor a full
    disk, nor a power failure leaves half a file.

    Raises
    ------
    OSError
        With the name of the file, and what the system says: "No space left on device".
    """
    path = Path(path)
    # A name of this thread's own: two that write the same file must not mix their halves.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    with naming(path):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                temporary.chmod(path.stat().st_mode & 0o777)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


def append_whole(path: Path, content: bytes) -> None:
    """Add to a file all of the content or nothing.

    Raises
    ------
    OSError
        With the name of the file; it is as it was.
    """
    with naming(path), path.open("ab") as file:
        length = file.tell()
        try:
            file.write(content)
            file.flush()
        except BaseException:
            with suppress(OSError):  # closed first: that writes what is still in the buffer
                file.close()
            with suppress(OSError):
                os.truncate(path, length)
            raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the name of the file into an `OSError` that has none, or that of a temporary file."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _sync_folder(folder: Path) -> None:
    """Put the new name on the disk, too, where folders can be synchronised."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
