"""The figures of an evaluation, put together from the panels of `evaluation` and `structure`."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ase_bayesmlip import metrics
from ase_bayesmlip.evaluation import Errors, Evaluation, SetEvaluation
from ase_bayesmlip.evaluation.estimates import CURVE_LEVELS
from ase_bayesmlip.report.panels import (
    plot_calibration,
    plot_coverage,
    plot_error_against_sigma,
    plot_error_retention,
    plot_intervals,
    plot_roc,
    plot_scores,
)
from ase_bayesmlip.report.structure import structures_figure
from ase_bayesmlip.report.style import BLUE, GREEN, GREY, ORANGE, PURPLE, STYLE, VERMILLION
from ase_bayesmlip.scores import SCORE_UNITS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BANDS = (0.70, 0.90, 0.99)
LEVEL = 0.9
MAX_INTERVALS = 400
SCORE_COLORS = (VERMILLION, BLUE, GREEN, PURPLE, ORANGE)
INCH = 2.75


def evaluation_figures(evaluation: Evaluation) -> dict[str, Figure]:
    """Every figure that the evaluation has data for, by name.

    Returns
    -------
    dict of str to Figure
        ``error_against_sigma``, ``calibration``, ``intervals``, ``coverage``, ``error_retention``,
        ``ood_detection`` and ``structure``; draw them with `render`.
    """
    import matplotlib as mpl

    makers: dict[str, Callable[[Evaluation], Figure | None]] = {
        "error_against_sigma": _error_against_sigma,
        "calibration": _calibration,
        "intervals": _intervals,
        "coverage": _coverage,
        "error_retention": _error_retention,
        "ood_detection": _ood_detection,
        "structure": _structure,
    }
    figures = {}
    with mpl.rc_context(STYLE):
        for name, make in makers.items():
            figure = make(evaluation)
            if figure is not None:
                figures[name] = figure
    return figures


def render(figure: Figure, form: str) -> bytes:
    """A figure as the content of a file: ``"png"``, ``"pdf"`` or ``"svg"``."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    # No dates inside: the same numbers make the same file.
    stamp = {"png": "Software", "pdf": "CreationDate", "svg": "Date"}[form]
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format=form, dpi=200, metadata={stamp: None})
    return buffer.getvalue()


def _axes(n_rows: int, n_columns: int, width: float = INCH, height: float = INCH) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(n_columns * width, n_rows * height), layout="constrained")
    return figure, figure.subplots(n_rows, n_columns, squeeze=False)


def _sets(evaluation: Evaluation) -> list[tuple[str, str, SetEvaluation]]:
    """Name, colour and content of the sets of the model itself."""
    sets = [(evaluation.names["test"], BLUE, evaluation.test)]
    if evaluation.ood is not None:
        sets.append((evaluation.names["ood"], VERMILLION, evaluation.ood))
    return sets


def _components(errors: Errors, what: str) -> tuple[np.ndarray, np.ndarray, str]:
    """Scalar errors and deviations of energies per atom (meV) or of force components (meV/Å)."""
    covariance = errors.covariance
    assert covariance is not None
    if errors.law is not None:
        covariance = errors.law.shape(covariance)
    deviation = np.sqrt(np.einsum("ncc->nc", covariance))
    scale = np.float64(1e3) if errors.n_atoms is None else 1e3 / errors.n_atoms[:, None]
    unit = "meV/atom" if what == "energy" else "meV/Å"
    return (scale * errors.error).ravel(), (scale * deviation).ravel(), unit


def _with_error_bars(evaluation: Evaluation, what: str) -> list[tuple[str, str, Errors]]:
    found = []
    for name, color, part in _sets(evaluation):
        errors = part.energies if what == "energy" else part.forces
        if errors is not None and errors.covariance is not None and (errors.std > 0).all():
            found.append((name, color, errors))
    return found


def _rows(evaluation: Evaluation) -> list[tuple[str, list[tuple[str, str, Errors]]]]:
    rows = [(what, _with_error_bars(evaluation, what)) for what in ("energy", "forces")]
    return [(what, sets) for what, sets in rows if sets]


def _error_against_sigma(evaluation: Evaluation) -> Figure | None:
    rows = _rows(evaluation)
    if not rows:
        return None
    figure, axes = _axes(len(rows), max(len(sets) for _, sets in rows))
    for (what, sets), row in zip(rows, axes, strict=True):
        numbers = [_components(errors, what) for _, _, errors in sets]
        sigma = np.concatenate([deviation for _, deviation, _ in numbers])
        error = np.abs(np.concatenate([e for e, _, _ in numbers]))
        limits = (
            *(float(sigma.min()) / 1.15, float(sigma.max()) * 1.15),
            *(float(np.median(error)) / 60, float(max(error.max(), sigma.max())) * 1.5),
        )
        for (name, color, errors), (e, deviation, unit), ax in zip(
            sets, numbers, row, strict=False
        ):
            bands = {} if errors.law is None else _bands(errors)
            data = {"sigma": deviation, "error": np.abs(e), "bands": bands, "color": color}
            plot_error_against_sigma(ax, data | {"unit": unit, "limits": limits})
            subject = "energies" if what == "energy" else "force components"
            ax.set_title(name, fontsize=9)
            ax.text(0.03, 0.97, f"{len(e)} {subject}", transform=ax.transAxes, va="top", fontsize=8)
        if bands:
            _legend_of_bands(row[0])
        for ax in row[len(sets) :]:
            ax.set_axis_off()
    return figure


def _legend_of_bands(ax: Axes) -> None:
    legend = ax.legend(
        loc="lower right", title="expected", title_fontsize=8, handlelength=1.2,
        frameon=True, framealpha=0.7, edgecolor="none",
    )  # fmt: skip
    for patch in legend.get_patches():
        patch.set_edgecolor(GREY)  # the lightest band is hardly seen on white
        patch.set_linewidth(0.5)


def _bands(errors: Errors) -> dict[float, tuple[float, float]]:
    """Central intervals of |e|/σ: the half-normal, or its like for another law."""
    assert errors.law is not None
    return {
        p: (
            float(errors.law.interval_factor(0.5 * (1 - p))),
            float(errors.law.interval_factor(0.5 * (1 + p))),
        )
        for p in BANDS
    }


def _calibration(evaluation: Evaluation) -> Figure | None:
    test, before = evaluation.test, evaluation.before
    panels = [w for w in ("energy", "forces") if w in test.curves or _in(evaluation.ood, w)]
    if not panels:
        return None
    n_curves = sum(
        part is not None for part in (test, evaluation.ood, before, evaluation.before_ood)
    )
    figure, axes = _axes(1, len(panels), 3.1, 3.3 + 0.18 * n_curves)  # legends stand below
    after = ", after" if before is not None else ""
    parts = [
        (evaluation.names["test"] + ", before", BLUE, "--", before),
        (evaluation.names["test"] + after, BLUE, "-", test),
        (evaluation.names["ood"] + ", before", VERMILLION, "--", evaluation.before_ood),
        (evaluation.names["ood"] + after, VERMILLION, "-", evaluation.ood),
    ]
    for what, ax in zip(panels, axes[0], strict=True):
        curves = []
        for name, color, line, part in parts:
            if part is None or what not in part.curves:
                continue
            ce = float(part.numbers[f"calibration_error_{what}"].value)
            curve = part.curves[what]
            curves.append(
                {"expected": CURVE_LEVELS, "observed": curve.value, "band": curve.interval}
                | {"label": f"{name}: CE {ce:.2g}", "color": color, "linestyle": line}
            )
        plot_calibration(ax, {"curves": curves})
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=8, handlelength=2)
        ax.set_title("energies" if what == "energy" else "forces (3D regions)", fontsize=9)
    return figure


def _in(part: SetEvaluation | None, what: str) -> bool:
    return part is not None and what in part.curves


def _intervals(evaluation: Evaluation) -> Figure | None:
    rows = [(what, [s for s in sets if s[2].law is not None]) for what, sets in _rows(evaluation)]
    rows = [(what, sets) for what, sets in rows if sets]
    if not rows:
        return None
    figure, axes = _axes(len(rows), max(len(sets) for _, sets in rows), 3.1, 2.4)
    for (what, sets), row in zip(rows, axes, strict=True):
        for (name, color, errors), ax in zip(sets, row, strict=False):
            assert errors.law is not None
            e, deviation, unit = _components(errors, what)
            half = deviation * float(errors.law.interval_factor(LEVEL))
            subject = "energies" if what == "energy" else "force components"
            data = {"error": e, "half_width": half, "level": LEVEL, "what": subject, "unit": unit}
            plot_intervals(ax, data | {"color": color, "max_points": MAX_INTERVALS})
            ax.set_title(f"{name}: {100 * LEVEL:g} % intervals", fontsize=9)
        for ax in row[len(sets) :]:
            ax.set_axis_off()
    return figure


def _coverage(evaluation: Evaluation) -> Figure | None:
    rows = []
    key = f"coverage_{100 * LEVEL:g}_forces"
    for name, color, part in _sets(evaluation):
        kinds = part.per_config_type if len(part.per_config_type) > 1 else []
        for group in [*part.per_element, *kinds]:
            if key in group.numbers:
                found = group.numbers[key]
                label = f"{name}, {group.name} (n = {group.n_atoms})"
                rows.append(
                    {"label": label, "value": found.value, "interval": found.interval}
                    | {"color": color}
                )
    if not rows:
        return None
    figure, axes = _axes(1, 1, 5.2, 0.9 + 0.24 * len(rows))
    plot_coverage(axes[0, 0], {"rows": rows, "level": LEVEL})
    return figure


def _error_retention(evaluation: Evaluation) -> Figure | None:
    sets = _with_error_bars(evaluation, "forces")
    if not sets:
        return None
    curves = []
    for name, color, errors in sets:
        size = np.linalg.norm(errors.error, axis=1)
        fraction, error = metrics.error_retention_curve(size, errors.std)
        _, best = metrics.error_retention_curve(size, size)
        curves.append(
            {"fraction": fraction, "error": error / size.mean(), "best": best / size.mean()}
            | {"label": name, "color": color}
        )
    figure, axes = _axes(1, 1, 3.1, 2.9)
    plot_error_retention(axes[0, 0], {"curves": curves})
    axes[0, 0].legend(loc="upper left", handlelength=1.6)
    return figure


def _ood_detection(evaluation: Evaluation) -> Figure | None:
    if not evaluation.detections:
        return None
    figure, axes = _axes(1, 2, 3.3, 3.9)
    curves = []
    for k, found in enumerate(evaluation.detections):
        false_positive, true_positive = metrics.roc_curve(found.known, found.foreign)
        area = float(found.numbers["auroc_ood"].value)
        curves.append(
            {"false_positive": false_positive, "true_positive": true_positive}
            | {"label": f"{found.score}: AUROC {area:.3f}", "color": SCORE_COLORS[k % 5]}
            | {"linewidth": 2.0 if k == 0 else 1.1}
        )
    plot_roc(axes[0, 1], {"curves": curves})
    figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside lower right", ncols=2)
    first = evaluation.detections[0]
    unit, scale = SCORE_UNITS.get(first.score, "eV" if "energy" in first.score else "eV/Å"), 1.0
    if unit == "eV/Å":
        unit, scale = "meV/Å", 1e3
    sets = [
        {"scores": scale * first.known, "label": evaluation.names["test"], "color": BLUE},
        {"scores": scale * first.foreign, "label": evaluation.names["ood"], "color": VERMILLION},
    ]
    plot_scores(axes[0, 0], {"sets": sets, "unit": unit})
    axes[0, 0].set_title(first.score, fontsize=9)
    axes[0, 0].legend(loc="upper right")
    return figure


def _structure(evaluation: Evaluation) -> Figure | None:
    """A typical frame of each set; of the foreign ones also the least certain."""
    chosen = []
    for name, _, part in _sets(evaluation):
        results = part.comparison.results
        if any("forces_cov" not in result for result in results):
            return None
        values = [_atom_sigma(result) for result in results]
        worst = np.array([np.max(value) for value in values])
        order = np.argsort(worst, kind="stable")
        picks = [("median", order[(len(order) - 1) // 2])]
        if part is evaluation.ood and len(order) > 2:
            picks.append(("largest", order[-1]))
        for word, k in picks:
            chosen.append((f"{name}, {word}", part.comparison.frames[k].atoms, 1e3 * values[k]))
    return structures_figure(chosen)


def _atom_sigma(result: Any) -> np.ndarray:
    """√(tr Σ/3) of each atom, (n_atoms,), eV/Å."""
    return np.asarray(np.sqrt(np.trace(result["forces_cov"], axis1=1, axis2=2) / 3.0))
