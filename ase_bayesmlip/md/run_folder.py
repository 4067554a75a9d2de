"""The folder of a simulation: its files, and how a new run takes the place of an earlier one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TRAJECTORY = "trajectory.extxyz"
LOG = "monitor.csv"
RECALCULATED = "recalculated.extxyz"
FLAGGED = "flagged.extxyz"
FIGURE = "figure.png"

_FILES = (TRAJECTORY, LOG, RECALCULATED, FLAGGED, FIGURE)

ASIDE = "earlier_run_{}"


class Replacement:
    """An earlier run while a new one takes its place.

    Attributes
    ----------
    finished : bool
        To be set when the new run has come to its end, so that the earlier one may go.
    """

    def __init__(self) -> None:
        self.finished = False


def refuse_earlier_run(out: Path, overwrite: bool) -> None:
    """Raise `FileExistsError` if a folder holds a run that is not to be replaced."""
    existing = _files(out)
    if existing and not overwrite:
        raise FileExistsError(
            f"{out} holds the files of an earlier run ({existing[0].name}); choose another folder "
            "or overwrite it"
        )


@contextmanager
def replaced_run(out: Path) -> Iterator[Replacement]:
    """Keep the files of an earlier run aside, for the length of a `with` block.

    They lie in a folder ``earlier_run_1`` (2, 3, ...) inside `out`. They are deleted when the block
    has ended with `Replacement.finished`; put back if the new run has left no row in its log; and
    stay there otherwise, with a warning that says where. Nothing is lost if the process dies.
    """
    earlier = _files(out)
    replacement = Replacement()
    if not earlier:
        yield replacement
        return
    number = 1
    while (out / ASIDE.format(number)).exists():
        number += 1
    aside = out / ASIDE.format(number)
    aside.mkdir()
    try:
        for path in earlier:
            path.rename(aside / path.name)
        yield replacement
    finally:
        if replacement.finished:
            _delete(aside)
        elif _has_rows(out / LOG):
            warnings.warn(
                f"the new run did not come to its end; the earlier one is kept in {aside}",
                stacklevel=3,
            )
        else:
            _put_back(aside, out)


def _files(out: Path) -> list[Path]:
    return [out / name for name in _FILES if (out / name).exists()]


def _has_rows(log: Path) -> bool:
    return log.exists() and log.read_bytes().count(b"\n") > 1


def _put_back(aside: Path, out: Path) -> None:
    for path in list(aside.iterdir()):
        path.replace(out / path.name)
    aside.rmdir()


def _delete(aside: Path) -> None:
    for path in _files(aside):
        path.unlink()
    aside.rmdir()
