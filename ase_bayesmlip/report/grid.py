"""Panels in rows, and a colour for each set of frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ase_bayesmlip.evaluation import Evaluation
from ase_bayesmlip.report.style import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of foreign sets.
COLORS = (VERMILLION, GREEN, PURPLE, ORANGE, SKY)
INCH = 2.75


def grid(
    panels: Sequence[Callable[[Axes], Any]],
    columns: int,
    width: float = INCH,
    height: float = INCH,
) -> Figure | None:
    """Panels in rows; None if there are none."""
    from matplotlib.figure import Figure

    if not panels:
        return None
    n_columns = min(columns, len(panels))
    n_rows = -(-len(panels) // n_columns)
    figure = Figure(figsize=(n_columns * width, n_rows * height), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    for draw, ax in zip(panels, axes, strict=False):
        draw(ax)
    return figure


def colors_of(evaluation: Evaluation) -> dict[str, str]:
    """Colour of each set."""
    known, *foreign = evaluation.sets
    return {known: BLUE} | {name: COLORS[k % len(COLORS)] for k, name in enumerate(foreign)}


def titled(title: str, plot: Callable[..., Any], data: dict[str, Any], ax: Axes) -> None:
    """A panel under its title."""
    plot(ax, data)
    ax.set_title(title, fontsize=9)
