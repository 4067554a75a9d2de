"""The table of metrics that a training run leaves behind."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ase_bayesmlip.files import append_whole, write_whole

METRICS_FILE = "metrics.csv"


def append_metrics(path: Path, row: dict[str, Any]) -> None:
    """Add a row; the first one writes the header."""
    values = list(row.values())
    append_whole(path, _text([values] if path.exists() else [list(row), values]))


def truncate_metrics(path: Path, epoch: int) -> None:
    """Drop rows after `epoch`: a run continued from there writes them again.

    Raises
    ------
    ValueError
        If the file is not a table of this kind.
    """
    if not path.exists():
        return
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file))
            column = header.index("epoch")
            kept = [row for row in rows if int(row[column]) <= epoch]
    except (IndexError, ValueError, csv.Error) as error:
        raise ValueError(
            f"{path} is not a table of metrics with an epoch in each row ({error}); delete it, or "
            "move it away, and go on with --resume: it is a record only"
        ) from error
    if kept:
        write_whole(path, _text([header, *kept]))
    else:
        path.unlink()


def best_errors(path: Path) -> tuple[float, float]:
    """Validation RMSE of forces, meV/Å, and energies, meV/atom, where a training was at its best.

    That is the lowest loss of the last phase, whose losses alone compare.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    best = min(
        (row for row in rows if row["phase"] == rows[-1]["phase"]),
        key=lambda row: float(row["valid_loss"]),
    )
    names = ("valid_forces_rmse_meV_per_A", "valid_energy_rmse_meV_per_atom")
    return float(best[names[0]]), float(best[names[1]])


def _text(rows: Sequence[Sequence[Any]]) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows(rows)
    return buffer.getvalue().encode()
