"""What all figures have in common: colours and sizes."""

from __future__ import annotations

from typing import Any

import numpy as np

BLUE, VERMILLION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#595959"
ORANGE, PURPLE, SKY = "#E69F00", "#CC79A7", "#56B4E9"
SHADE = "#F0E4C0"

STYLE: Any = {
    "font.size": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "legend.frameon": False,
    "svg.fonttype": "none",
}


def label_log_axis(axis: Any, low: float, high: float) -> None:
    """Give a logarithmic axis plain numbers: two at the least, and no crowd.

    Parameters
    ----------
    axis : matplotlib.axis.Axis
    low, high : float
        What it shows.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

    if not 0.0 < low < high < np.inf:
        return  # an axis without data
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for mantissas in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
        ticks = np.outer(decades, mantissas).ravel()
        ticks = ticks[(ticks >= low) & (ticks <= high)]
        if len(ticks) > 2:
            break
    else:
        ticks = np.asarray(MaxNLocator(3, min_n_ticks=3).tick_values(low, high))
        ticks = ticks[(ticks >= low) & (ticks <= high)]
    axis.set_major_locator(FixedLocator(ticks[:: -(-len(ticks) // 7)].tolist()))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
    axis.set_minor_formatter(NullFormatter())
