"""Figures of monitored simulations (`simulation`) and of evaluations (`evaluation`).

Each panel is a function ``(ax, data) -> ax``. Figures are made without pyplot, so that no global
state and no backend is touched. Colours are those of Okabe and Ito, which remain distinct for
colour-blind readers.
"""

from __future__ import annotations

from ase_bayesmlip.report.simulation import (
    monitored_md_figure,
    plot_energy,
    plot_force_error,
    plot_score,
    read_log,
)

__all__ = [
    "monitored_md_figure",
    "plot_energy",
    "plot_force_error",
    "plot_score",
    "read_log",
]
