"""Panels of an evaluation: functions ``(ax, data) -> ax`` of plain arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ase_bayesmlip.report.style import GREY, VERMILLION, label_log_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Data = Mapping[str, Any]

# Above so many points a cloud hides what it is made of, and bins show it.
MAX_POINTS = 3000


def plot_error_against_sigma(ax: Axes, data: Data) -> Axes:
    """Size of the error against the error bar, with the bands that the law promises.

    Parameters
    ----------
    ax : Axes
    data : mapping
        ``sigma``, ``error`` (n,): standard deviations and absolute errors of scalars, in one unit;
        ``bands``: probability -> (low, high), the central interval of |e|/σ under the law, or
        nothing; ``color``; ``unit``; ``limits``: (sigma_min, sigma_max, error_min, error_max).
    """
    sigma, error = np.asarray(data["sigma"]), np.asarray(data["error"])
    low_x, high_x, low_y, high_y = data["limits"]
    x = np.array([low_x, high_x])
    for (probability, (low, high)), shade in zip(
        sorted(data["bands"].items(), reverse=True), ("#E9E9E9", "#D3D3D3", "#B8B8B8"), strict=False
    ):
        label = f"{100 * probability:g} %"
        ax.fill_between(x, low * x, high * x, color=shade, linewidth=0, label=label, zorder=0)
    ax.plot(x, x, color="black", linestyle="--", linewidth=0.9, zorder=3)
    shown = np.maximum(error, low_y)
    extent = (low_x, high_x, low_y, high_y)
    _cloud(ax, sigma, shown, data["color"], extent=extent, logarithmic=True)
    ax.set(xscale="log", yscale="log", xlim=(low_x, high_x), ylim=(low_y, high_y))
    ax.set_xlabel(f"error bar σ ({data['unit']})")
    ax.set_ylabel(f"|error| ({data['unit']})")
    label_log_axis(ax.xaxis, low_x, high_x)
    label_log_axis(ax.yaxis, low_y, high_y)
    return ax


def legend_of_bands(ax: Axes) -> None:
    """What the bands of `plot_error_against_sigma` are."""
    legend = ax.legend(
        loc="lower right", title="expected", title_fontsize=8, handlelength=1.2,
        frameon=True, framealpha=0.7, edgecolor="none",
    )  # fmt: skip
    for patch in legend.get_patches():
        patch.set_edgecolor(GREY)  # the lightest band is hardly seen on white
        patch.set_linewidth(0.5)


def plot_parity(ax: Axes, data: Data) -> Axes:
    """Predictions against labels, with the diagonal.

    Parameters
    ----------
    data : mapping
        ``label``, ``prediction`` (n,), in one unit; ``limits``: (low, high) of both; ``what``;
        ``unit``; ``color``.
    """
    label, prediction = np.asarray(data["label"]), np.asarray(data["prediction"])
    low, high = data["limits"]
    ax.plot([low, high], [low, high], color="black", linewidth=0.8, zorder=3)
    _cloud(ax, label, prediction, data["color"], extent=(low, high, low, high))
    ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    ax.locator_params(nbins=4)
    rmse = float(np.sqrt(np.mean((label - prediction) ** 2)))
    text = f"{len(label)} {data['what']}\nRMSE {rmse:.4g} {data['unit']}"
    ax.text(0.03, 0.97, text, transform=ax.transAxes, va="top", fontsize=8)
    ax.set_xlabel(f"label ({data['unit']})")
    ax.set_ylabel(f"prediction ({data['unit']})")
    return ax


def _cloud(
    ax: Axes,
    x: np.ndarray,
    y: np.ndarray,
    color: str,
    extent: tuple[float, float, float, float],
    logarithmic: bool = False,
) -> None:
    """Points, or bins where there are too many to be seen; a single colour does for both."""
    if len(x) <= MAX_POINTS:
        alpha = float(np.clip(40 / np.sqrt(len(x)) / 3, 0.25, 0.8))
        ax.scatter(x, y, s=5, color=color, alpha=alpha, linewidth=0, zorder=2)
        return
    from matplotlib.colors import LinearSegmentedColormap

    scale: Any = "log" if logarithmic else "linear"
    ax.hexbin(
        x, y, xscale=scale, yscale=scale, bins="log", gridsize=(55, 40), mincnt=1,
        cmap=LinearSegmentedColormap.from_list("tint", [color + "30", color]),
        extent=tuple(np.log10(extent)) if logarithmic else extent, linewidths=0.1, zorder=2,
    )  # fmt: skip


def plot_calibration(ax: Axes, data: Data) -> Axes:
    """Observed against expected confidence level, with bands; above the diagonal is too careful.

    Parameters
    ----------
    data : mapping
        ``curves``: list of mappings with ``expected`` and ``observed`` (m,), ``band`` (2, m) or
        None, ``label``, ``color`` and ``linestyle``.
    """
    ax.plot([0, 1], [0, 1], color="black", linewidth=0.8, zorder=1)
    for curve in data["curves"]:
        style = {"color": curve["color"], "linestyle": curve["linestyle"]}
        ax.plot(curve["expected"], curve["observed"], linewidth=1.5, label=curve["label"], **style)
        if curve["band"] is not None:
            lower, upper = curve["band"]
            ax.fill_between(
                curve["expected"], lower, upper, color=curve["color"], alpha=0.22, linewidth=0
            )
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ticks = [0, 0.25, 0.5, 0.75, 1]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_xlabel("expected confidence level")
    ax.set_ylabel("observed confidence level")
    return ax


def plot_intervals(ax: Axes, data: Data) -> Axes:
    """Signed errors within the intervals of one level, in the order of their width.

    Parameters
    ----------
    data : mapping
        ``error``, ``half_width`` (n,), in one unit; ``level``; ``what``; ``unit``; ``color``;
        ``max_points``: so many are drawn, evenly spaced in the order; the count is of all.
    """
    error, half = np.asarray(data["error"]), np.asarray(data["half_width"])
    order = np.argsort(half, kind="stable")
    n = len(order)
    if n > data["max_points"]:
        order = order[np.linspace(0, n - 1, data["max_points"]).round().astype(int)]
    rank = (np.arange(len(order)) + 0.5) / len(order)
    width, drawn = half[order], error[order]
    ax.fill_between(rank, -width, width, color=data["color"], alpha=0.2, linewidth=0, zorder=0)
    ax.plot(rank, width, color=data["color"], linewidth=0.8)
    ax.plot(rank, -width, color=data["color"], linewidth=0.8)
    # A few large errors must not squeeze the rest into a line: they sit at the edge, as triangles.
    limit = 1.2 * max(float(np.quantile(np.abs(drawn), 0.97)), float(np.quantile(width, 0.97)))
    inside, beyond = np.abs(drawn) <= width, np.abs(drawn) > limit
    for chosen, color, size in ((inside, GREY, 5), (~inside & ~beyond, VERMILLION, 9)):
        ax.scatter(rank[chosen], drawn[chosen], s=size, color=color, linewidth=0, zorder=2)
    for marker, chosen in (("^", drawn > limit), ("v", drawn < -limit)):
        edge = 0.98 * limit * np.sign(drawn[chosen])
        ax.scatter(rank[chosen], edge, s=14, marker=marker, color=VERMILLION, lw=0, zorder=2)
    ax.axhline(0, color="black", linewidth=0.6, zorder=1)
    ax.set(xlim=(0, 1), ylim=(-limit, limit))
    covered = float(np.mean(np.abs(error) <= half))
    ax.text(
        0.03, 1.0, f"{100 * covered:.1f} % of {n} inside", transform=ax.transAxes, va="top",
        fontsize=8, bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 1},
    )  # fmt: skip
    ax.set_xlabel(f"{data['what']}, narrow to wide")
    ax.set_ylabel(f"label − prediction ({data['unit']})")
    return ax


def plot_error_retention(ax: Axes, data: Data) -> Axes:
    """Mean error left when a reference answers for the least certain part.

    Parameters
    ----------
    data : mapping
        ``curves``: list of mappings with ``fraction`` and ``error`` (n + 1,), ``best`` (n + 1,),
        ``label`` and ``color``; errors as multiples of the mean error.
    """
    ax.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.2, label="no order")
    for curve in data["curves"]:
        ax.plot(curve["fraction"], curve["error"], color=curve["color"], label=curve["label"])
        ax.plot(
            curve["fraction"], curve["best"], color=curve["color"], linestyle="--", linewidth=0.9
        )
    ax.plot([], [], color="black", linestyle="--", linewidth=0.9, label="best order")
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.set_xlabel("fraction of forces not recalculated")
    ax.set_ylabel("remaining mean error (of all)")
    return ax


def plot_roc(ax: Axes, data: Data) -> Axes:
    """True against false positives of each score, OOD as the positive class.

    Parameters
    ----------
    data : mapping
        ``curves``: list of mappings with ``false_positive`` and ``true_positive`` (m,), ``label``,
        ``color`` and ``linewidth``.
    """
    ax.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    ax.axhline(0.95, color=GREY, linewidth=0.6)
    for curve in data["curves"]:
        ax.plot(
            curve["false_positive"], curve["true_positive"], color=curve["color"],
            linewidth=curve["linewidth"], label=curve["label"],
        )  # fmt: skip
    ax.set(xlim=(-0.015, 1), ylim=(0, 1.015), aspect="equal")
    ax.set_xlabel("known frames flagged")
    ax.set_ylabel("foreign frames flagged")
    return ax


def plot_scores(ax: Axes, data: Data) -> Axes:
    """Distributions of the score of known and foreign frames, as steps that add up to 1.

    Parameters
    ----------
    data : mapping
        ``sets``: list of mappings with ``scores`` (n,), ``label`` and ``color``; ``unit``.
    """
    values = np.concatenate([part["scores"] for part in data["sets"]])
    logarithmic = values.min() > 0 and values.max() > 5 * values.min()
    if logarithmic:
        bins = np.geomspace(values.min() * 0.95, values.max() * 1.05, 41).tolist()
    else:
        margin = 0.02 * max(float(np.ptp(values)), 1e-12 + 1e-6 * abs(float(values.max())))
        bins = np.linspace(values.min() - margin, values.max() + margin, 41).tolist()
    for part in data["sets"]:
        scores = np.asarray(part["scores"])
        weights = np.full(len(scores), 1 / len(scores))
        ax.hist(scores, bins, weights=weights, color=part["color"], alpha=0.35)
        ax.hist(
            scores, bins, weights=weights, color=part["color"], histtype="step", linewidth=1.2,
            label=part["label"],
        )  # fmt: skip
    if logarithmic:
        ax.set_xscale("log")
        label_log_axis(ax.xaxis, bins[0], bins[-1])
    ax.set_xlim(bins[0], bins[-1])
    ax.set_xlabel(f"score ({data['unit']})")
    ax.set_ylabel("fraction of frames")
    return ax


def plot_coverage(ax: Axes, data: Data) -> Axes:
    """Coverage of groups with its interval, against the nominal one.

    Parameters
    ----------
    data : mapping
        ``rows``: list of mappings with ``label``, ``value``, ``interval`` (2,) or None and
        ``color``, drawn from top to bottom; ``level``.
    """
    ax.axvline(data["level"], color="black", linestyle="--", linewidth=0.9)
    for height, row in enumerate(reversed(data["rows"])):
        if row["interval"] is not None:
            ax.plot(row["interval"], [height, height], color=row["color"], linewidth=1.6)
        ax.plot(row["value"], height, "o", color=row["color"], markersize=4.5)
    ax.set_yticks(range(len(data["rows"])), [row["label"] for row in reversed(data["rows"])])
    lowest = min(
        np.min(r["value"] if r["interval"] is None else r["interval"]) for r in data["rows"]
    )
    ax.set(xlim=(max(0.0, min(lowest - 0.05, data["level"] - 0.1)), 1.02))
    ax.set_ylim(-0.6, len(data["rows"]) - 0.4)
    ax.set_xlabel(f"coverage of the {100 * data['level']:g} % regions")
    return ax
