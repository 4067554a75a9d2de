"""What regions of 90 % hold, at home and away: the figure of `calibration.py`.

python examples/benchmarks/plot_calibration.py examples/benchmarks/results/calibration.json \
    examples/figures/calibration_study.png
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from calibration_rows import ROWS
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ase_bayesmlip.report.style import BLUE, STYLE, VERMILLION

TITLES = {"acac": "acetylacetone", "3bpa": "3BPA", "zeolite": "silica", "water": "water"}
KEY = "coverage_90_forces_conformal"
# Foreign sets of a panel, in their order.
MARKS = ("s", "D")


def draw(ax: Axes, rows: dict[str, Any], order: list[str]) -> Axes:
    """One data set: coverage of the conformal regions for each posterior."""
    for y, row in enumerate(order):
        if row not in rows:
            continue
        after = rows[row]["after"]
        values = [100 * content[KEY] for content in after.values()]
        ax.plot([min(values), max(values)], [y, y], color="0.85", zorder=0)
        ax.plot(values[0], y, "o", color=BLUE, ms=5)
        for value, mark in zip(values[1:], MARKS, strict=False):
            ax.plot(value, y, mark, color=VERMILLION, ms=5)
    names = ["known", *list(next(iter(rows.values()))["after"])[1:]]
    for name, mark in zip(names, ("o", *MARKS), strict=False):
        ax.plot([], [], mark, color=BLUE if mark == "o" else VERMILLION, ms=5, label=name)
    ax.axvspan(88, 92, color="0.9", zorder=-1)
    ax.axvline(90, color="0.4", lw=0.8, zorder=-1)
    ax.set_xlim(15, 100)
    ax.set_xlabel("regions of 90 % hold, %")
    ax.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 0.98),
        ncols=3,
        handletextpad=0.1,
        columnspacing=0.8,
    )
    return ax


def main() -> None:
    """Draw and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("numbers", type=Path)
    parser.add_argument("figure", type=Path)
    arguments = parser.parse_args()
    datasets = json.loads(arguments.numbers.read_text(encoding="utf-8"))["datasets"]
    order = list(ROWS)[::-1]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11.0, 3.8), layout="constrained")
        axes = figure.subplots(1, len(TITLES), sharey=True)
        for ax, (dataset, title) in zip(axes, TITLES.items(), strict=True):
            draw(ax, datasets[dataset], order).set_title(title, fontsize=9, pad=20)
        axes[0].set_yticks(range(len(order)), [ROWS[row][0] for row in order])
        figure.savefig(arguments.figure, dpi=160)


if __name__ == "__main__":
    main()
