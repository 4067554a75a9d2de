"""Figures of monitored simulations.

Each panel is a function ``(ax, log) -> ax``; `monitored_md_figure` stacks them.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ase_bayesmlip.report.style import BLUE, GREEN, GREY, SHADE, STYLE, VERMILLION, label_log_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Log = Mapping[str, np.ndarray]
Region = tuple[float, float, str]

# What a reference says of recalculated frames.
_TRUE: Any = {"linestyle": "none", "marker": "o", "markersize": 3, "color": VERMILLION}


def read_log(path: str | Path) -> dict[str, np.ndarray]:
    """Read the log of a monitor.

    Returns
    -------
    dict of str to ndarray, (n_frames,)
        Columns by name; empty fields are NaN, ``flagged`` is boolean, ``step`` is integer and
        ``event`` is text.

    Raises
    ------
    ValueError
        If the file holds no frames.
    """
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path} holds no frames")
    log = {}
    for name in rows[0]:
        column = [row[name] for row in rows]
        if name == "event":
            log[name] = np.array(column)
        else:
            log[name] = np.array([float(value) if value else np.nan for value in column])
    log["step"] = log["step"].astype(int)
    log["flagged"] = log["flagged"].astype(bool)
    return log


def plot_energy(ax: Axes, log: Log) -> Axes:
    """Potential energy relative to the first frame."""
    ax.plot(_abscissa(log)[0], log["energy"] - log["energy"][0], color=BLUE, linewidth=0.9)
    ax.set_ylabel("$E - E_0$ (eV)")
    return ax


def plot_energy_deviation(ax: Axes, log: Log) -> Axes:
    """Predicted standard deviation of the energy, and the true error of recalculated frames."""
    time, _ = _abscissa(log)
    deviation, error = 1e3 * log["energy_uncertainty"], 1e3 * np.abs(log["energy_error"])
    ax.plot(time, deviation, color=BLUE, linewidth=0.9, label="predicted (σ)")
    if np.isfinite(error).any():
        ax.plot(time, error, **_TRUE, label="true (|error|)")
    ax.set_ylim(0.0, 1.1 * ax.get_ylim()[1])
    ax.set_ylabel("energy error\n(meV)")
    return ax


def plot_volume(ax: Axes, log: Log) -> Axes:
    """Volume of a cell that changes, and its pressure on an axis of its own."""
    time, _ = _abscissa(log)
    ax.plot(time, log["volume"], color=BLUE, linewidth=0.9, label="volume")
    ax.set_ylabel("volume (Å³)")
    if np.isfinite(log["pressure_GPa"]).any():
        other = ax.twinx()
        other.plot(time, log["pressure_GPa"], color=GREEN, linewidth=0.6, alpha=0.7)
        other.set_ylabel("pressure (GPa)", color=GREEN)
        other.spines["right"].set_visible(True)
        ax.plot([], [], color=GREEN, linewidth=0.9, label="pressure")
        ax.set_zorder(other.get_zorder() + 1)
        ax.patch.set_visible(False)
    return ax


def plot_score(ax: Axes, log: Log, unit: str = "eV/Å") -> Axes:
    """Score on a logarithmic scale against its threshold, flagged frames marked."""
    time, _ = _abscissa(log)
    flagged = log["flagged"]
    ax.plot(time, log["score"], color=GREY, linewidth=0.8, label="score")
    ax.plot(
        time[flagged],
        log["score"][flagged],
        linestyle="none",
        marker="o",
        markersize=2.2,
        color=VERMILLION,
        markeredgewidth=0,
        label=f"flagged ({np.count_nonzero(flagged)} of {len(flagged)})",
    )
    ax.plot(time, log["threshold"], color="black", linestyle="--", linewidth=1, label="threshold")
    ax.set_yscale("log")
    label_log_axis(ax.yaxis, *ax.get_ylim())
    ax.set_ylabel(f"uncertainty score\n({unit})")
    return ax


def plot_force_error(ax: Axes, log: Log) -> Axes:
    """True force error of the recalculated frames, over the error that the model predicted."""
    time, _ = _abscissa(log)
    known = np.isfinite(log["force_rmse"])
    ax.plot(
        time[known],
        log["force_rms_uncertainty"][known],
        linestyle="none",
        marker="s",
        markersize=3.2,
        markerfacecolor="none",
        markeredgecolor=GREEN,
        markeredgewidth=0.8,
        label="predicted (RMS of σ)",
    )
    ax.plot(time[known], log["force_rmse"][known], **_TRUE, label="true (RMSE)")
    ax.set_yscale("log")
    label_log_axis(ax.yaxis, *ax.get_ylim())
    ax.set_ylabel("force error\n(eV/Å)")
    return ax


def monitored_md_figure(
    log: Log, path: str | Path, regions: Sequence[Region] = (), unit: str = "eV/Å"
) -> Path:
    """Draw what the log of a simulation holds on one time axis and save the figure.

    Panels: energy, error bar of the energy, volume and pressure where the cell changes, score,
    and the true force error where frames were recalculated.

    Parameters
    ----------
    log : mapping
        From `read_log`.
    path : path
        The ending gives the format: png, pdf or svg.
    regions : sequence of (start, end, text)
        Spans of time in fs to shade and name, for example where the thermostat was hot.
    unit : str
        Of the score.

    Returns
    -------
    Path
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        panels = _panels(log, unit)
        figure = Figure(figsize=(6.3, 0.4 + 1.75 * len(panels)), layout="constrained")
        axes = figure.subplots(len(panels), 1, sharex=True)
        for ax, panel in zip(axes, panels, strict=True):
            panel(ax, log)
        time, label = _abscissa(log)
        _mark_regions(axes, regions, 1e-3 if label == "time (ps)" else 1.0)
        for ax, letter in zip(axes, "abcde", strict=False):
            ax.margins(x=0.01)
            ax.text(-0.12, 1.02, letter, transform=ax.transAxes, fontweight="bold", fontsize=11)
            if ax.get_legend_handles_labels()[0]:
                ax.legend(
                    loc="lower left",
                    bbox_to_anchor=(0, 0.99),
                    ncols=3,
                    borderpad=0.1,
                    handlelength=1.6,
                )
        axes[-1].set_xlabel(label)
        axes[-1].set_xlim(time[0], max(time[-1], time[0] + 1e-9))
        figure.align_ylabels(axes)
        figure.savefig(path, dpi=200)
    return Path(path)


def _panels(log: Log, unit: str) -> list[Callable[[Axes, Log], Axes]]:
    panels: list[Callable[[Axes, Log], Axes]] = [plot_energy]
    if np.isfinite(log["energy_uncertainty"]).any():
        panels.append(plot_energy_deviation)
    if np.ptp(log.get("volume", np.zeros(1))) > 0.0:  # NaN, without a cell, is not
        panels.append(plot_volume)
    panels.append(partial(plot_score, unit=unit))
    if np.isfinite(log["force_rmse"]).any():
        panels.append(plot_force_error)
    return panels


def _mark_regions(axes: Sequence[Axes], regions: Sequence[Region], scale: float) -> None:
    for start, end, text in regions:
        for ax in axes:
            ax.axvspan(scale * start, scale * end, color=SHADE, alpha=0.6, linewidth=0, zorder=0)
        axes[0].annotate(
            text,
            (scale * end, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(-3, 3),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=8,
        )


def _abscissa(log: Log) -> tuple[np.ndarray, str]:
    """Time in fs, or in ps when it is long; steps in a relaxation."""
    if not np.isfinite(log["time_fs"]).all():
        return log["step"].astype(float), "step"
    if log["time_fs"][-1] >= 1000:
        return log["time_fs"] / 1000, "time (ps)"
    return log["time_fs"], "time (fs)"
