"""The table of metrics that a training run leaves behind."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.csv"


def append_metrics(path: Path, row: dict[str, Any]) -> None:
    """Add a row; the first one writes the header."""
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, row)
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def truncate_metrics(path: Path, epoch: int) -> None:
    """Drop rows after `epoch`: a run continued from there writes them again."""
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= epoch]
    shorter = path.with_name(path.name + ".tmp")
    shorter.unlink(missing_ok=True)
    for row in rows:
        append_metrics(shorter, row)
    # In one step, so that an interruption loses no row.
    if rows:
        shorter.replace(path)
    else:
        path.unlink()
