"""Error bars against errors off the data: the figure of `ood_pages.py`."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ase_bayesmlip.report.style import BLUE, STYLE, VERMILLION

MARKS = {"ethanol": "o", "si": "s", "mo": "D"}
TITLES = {"ethanol": "ethanol", "si": "silicon", "mo": "molybdenum"}


def draw_curve(ax: Axes, content: dict[str, Any], title: str, label: str) -> None:
    """Error and epistemic σ of the energy along a line of structures."""
    x = content["x"]
    # Where the error changes its sign, its logarithm has no end.
    ax.semilogy(x, np.maximum(1e3 * np.array(content["error"]), 0.1), color="0.4", label="error")
    ax.semilogy(x, 1e3 * np.array(content["sigma_epistemic"]), color=BLUE, label="σ epistemic")
    ax.semilogy(x, 1e3 * np.array(content["sigma_total"]), color=VERMILLION, label="σ total")
    ax.set_title(title)
    ax.set_xlabel(label)


def draw_kinds(ax: Axes, pages: dict[str, Any]) -> None:
    """Total σ of the forces against their error, one point a kind of shift."""
    for system, page in pages.items():
        for kind, numbers in page["kinds"].items():
            error, sigma = numbers["forces_rmse_meV_per_A"], numbers["sigma_total_meV_per_A"]
            color = BLUE if kind == "home" else VERMILLION
            ax.loglog(error, sigma, MARKS[system], color=color, ms=5)
            ax.annotate(f" {kind}", (error, sigma), fontsize=7, va="center")
        ax.plot([], [], MARKS[system], color="0.4", ms=5, label=TITLES[system])
    ends = np.array(ax.get_xlim())
    ax.plot(ends, ends, color="0.4", lw=0.8, zorder=-1)
    ax.set_xlabel("force error, meV/Å (root mean square)")
    ax.set_ylabel("σ, meV/Å")
    ax.legend(loc="lower right")


def draw(pages: dict[str, Any], path: Path) -> None:
    """Curves above, kinds of shift below."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 6.2), layout="constrained")
        grid = figure.add_gridspec(2, 1, height_ratios=(1, 1.25))
        curves = [
            (f"{TITLES[system]}, {name}", content, system)
            for system, page in pages.items()
            for name, content in page["curves"].items()
        ]
        axes = grid[0].subgridspec(1, len(curves)).subplots(sharey=True)
        for ax, (title, content, system) in zip(np.atleast_1d(axes), curves, strict=True):
            draw_curve(ax, content, title, "Å" if system == "ethanol" else "strain of a length")
        np.atleast_1d(axes)[0].set_ylabel("energy, meV/atom")
        np.atleast_1d(axes)[0].legend(fontsize=7)
        draw_kinds(figure.add_subplot(grid[1]), pages)
        figure.savefig(path, dpi=150)
