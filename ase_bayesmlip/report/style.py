"""What all figures have in common: colours and sizes."""

from __future__ import annotations

from typing import Any

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
