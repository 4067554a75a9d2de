"""The figures of an evaluation, put together from `panels` and `structure`."""

from __future__ import annotations

import io
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.units import GPa

from ase_bayesmlip import metrics
from ase_bayesmlip.evaluation import Errors, Evaluation, SetEvaluation
from ase_bayesmlip.evaluation.estimates import CURVE_LEVELS
from ase_bayesmlip.metrics.errors import VOIGT
from ase_bayesmlip.report.grid import COLORS, colors_of, grid, titled
from ase_bayesmlip.report.panels import (
    legend_of_bands,
    plot_calibration,
    plot_coverage,
    plot_error_against_sigma,
    plot_error_retention,
    plot_intervals,
    plot_parity,
    plot_roc,
    plot_scores,
)
from ase_bayesmlip.report.structure import structures_figure
from ase_bayesmlip.report.style import STYLE
from ase_bayesmlip.scores import SCORE_UNITS

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

BANDS = (0.70, 0.90, 0.99)
LEVEL = 0.9
MAX_INTERVALS = 400
# In a row of panels.
COLUMNS = 3

# Of each quantity: what it is called, and its unit where it is drawn.
WORDS = {
    "energy": ("energies", "meV/atom"),
    "forces": ("force components", "meV/Å"),
    "stress": ("stress components", "GPa"),
}


def evaluation_figures(evaluation: Evaluation, columns: int = COLUMNS) -> dict[str, Figure]:
    """Every figure that the evaluation has data for, by name, with so many panels in a row.

    Returns
    -------
    dict of str to Figure
        ``parity``, ``error_against_sigma``, ``calibration``, ``intervals``, ``coverage``,
        ``error_retention``, ``ood_detection`` and ``structure``; draw them with `render`.
    """
    import matplotlib as mpl

    makers: dict[str, Callable[[Evaluation, int], Figure | None]] = {
        "parity": _parity,
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
            figure = make(evaluation, columns)
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


def _parity(evaluation: Evaluation, columns: int) -> Figure | None:
    panels = []
    for what, (words, unit) in WORDS.items():
        for name, part in evaluation.sets.items():
            if part.errors[what] is None:
                continue
            label, prediction = _labels_and_predictions(part, what)
            values = np.concatenate([label, prediction])
            margin = 0.04 * max(float(np.ptp(values)), 1e-9)
            limits = (float(values.min()) - margin, float(values.max()) + margin)
            data = {"label": label, "prediction": prediction, "limits": limits, "what": words}
            data |= {"unit": unit, "color": colors_of(evaluation)[name]}
            panels.append(partial(titled, name, plot_parity, data))
    return grid(panels, columns)


def _labels_and_predictions(part: SetEvaluation, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Of one quantity, (n,) each; energies per atom from the mean of the labels on."""
    frames, results = part.comparison.frames, part.comparison.results
    errors = part.errors[what]
    assert errors is not None
    known = np.unique(errors.frame)
    if what == "stress":
        label = np.concatenate([np.asarray(frames[k].stress)[VOIGT] for k in known]) / GPa
        return label, np.concatenate([results[k]["stress"] for k in known]) / GPa
    if what == "forces":
        label = np.concatenate([np.ravel(frames[k].forces) for k in known])
    else:
        assert errors.n_atoms is not None
        label = np.array([frames[k].energy for k in known]) / errors.n_atoms
    error = _components(errors)[0]
    label = 1e3 * (label - label.mean() * (what == "energy"))
    return label, label - error


def _components(errors: Errors) -> tuple[np.ndarray, np.ndarray]:
    """Scalar errors, and deviations if there are any, in the units of `WORDS`; (n,) each."""
    scale = np.float64(1e3) if errors.n_atoms is None else 1e3 / errors.n_atoms[:, None]
    covariance = errors.covariance
    if covariance is None:
        return (scale * errors.error).ravel(), np.zeros(0)
    if errors.law is not None:
        covariance = errors.law.shape(covariance)
    deviation = np.sqrt(np.einsum("ncc->nc", covariance))
    return (scale * errors.error).ravel(), (scale * deviation).ravel()


def _with_error_bars(evaluation: Evaluation, what: str) -> list[tuple[str, str, Errors]]:
    """Name, colour and errors of the sets that have error bars."""
    return [
        (name, colors_of(evaluation)[name], errors)
        for name, part in evaluation.sets.items()
        if (errors := part.errors[what]) is not None
        and errors.covariance is not None
        and (errors.std > 0).all()
    ]


def _error_against_sigma(evaluation: Evaluation, columns: int) -> Figure | None:
    panels = []
    for what in ("energy", "forces"):
        sets = _with_error_bars(evaluation, what)
        if not sets:
            continue
        numbers = [_components(errors) for _, _, errors in sets]
        sigma = np.concatenate([deviation for _, deviation in numbers])
        error = np.abs(np.concatenate([e for e, _ in numbers]))
        limits = (
            *(float(sigma.min()) / 1.15, float(sigma.max()) * 1.15),
            *(float(np.median(error)) / 60, float(max(error.max(), sigma.max())) * 1.5),
        )
        words, unit = WORDS[what]
        for (name, color, errors), (e, deviation) in zip(sets, numbers, strict=True):
            bands = {} if errors.law is None else _bands(errors)
            data = {"sigma": deviation, "error": np.abs(e), "bands": bands, "color": color}
            data |= {"unit": unit, "limits": limits}
            title = f"{name}\n{len(e)} {words}"
            panels.append(partial(titled, title, plot_error_against_sigma, data))
    figure = grid(panels, columns)
    if figure is not None and figure.axes[0].get_legend_handles_labels()[0]:
        legend_of_bands(figure.axes[0])
    return figure


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


def _calibration(evaluation: Evaluation, columns: int) -> Figure | None:
    panels = []
    for what, title in (("energy", "energies"), ("forces", "forces (3D regions)")):
        curves = [
            _curve(what, f"{name}, {stage}" if stage else name, part)
            | {
                "color": colors_of(evaluation)[name],
                "linestyle": "--" if stage == "before" else "-",
            }
            for name, stage, part in evaluation.columns()
            if what in part.curves
        ]
        if curves:
            panels.append(partial(titled, title, plot_calibration, {"curves": curves}))
    figure = grid(panels, columns, 3.1, 3.3 + 0.18 * len(evaluation.columns()))
    for ax in () if figure is None else figure.axes:  # legends stand below
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=8, handlelength=2)
    return figure


def _curve(what: str, name: str, part: SetEvaluation) -> dict[str, Any]:
    curve, ce = part.curves[what], float(part.numbers[f"calibration_error_{what}"].value)
    values = {"expected": CURVE_LEVELS, "observed": curve.value, "band": curve.interval}
    return {**values, "label": f"{name}: CE {ce:.2g}"}


def _intervals(evaluation: Evaluation, columns: int) -> Figure | None:
    panels = []
    for what in ("energy", "forces"):
        for name, color, errors in _with_error_bars(evaluation, what):
            if errors.law is None:
                continue
            e, deviation = _components(errors)
            half = deviation * float(errors.law.interval_factor(LEVEL))
            data = {"error": e, "half_width": half, "level": LEVEL, "what": WORDS[what][0]}
            data |= {"unit": WORDS[what][1], "color": color, "max_points": MAX_INTERVALS}
            title = f"{name}: {100 * LEVEL:g} % intervals"
            panels.append(partial(titled, title, plot_intervals, data))
    return grid(panels, columns, 3.1, 2.4)


def _coverage(evaluation: Evaluation, columns: int) -> Figure | None:
    rows = []
    key = f"coverage_{100 * LEVEL:g}_forces"
    for name, part in evaluation.sets.items():
        kinds = part.per_config_type if len(part.per_config_type) > 1 else []
        for group in [*part.per_element, *kinds]:
            if key in group.numbers:
                found = group.numbers[key]
                label = f"{name}, {group.name} (n = {group.n_atoms})"
                rows.append(
                    {"label": label, "value": found.value, "interval": found.interval}
                    | {"color": colors_of(evaluation)[name]}
                )
    draw = partial(plot_coverage, data={"rows": rows, "level": LEVEL})
    return grid([draw] if rows else [], 1, 5.2 if columns > 1 else 4.2, 0.9 + 0.24 * len(rows))


def _error_retention(evaluation: Evaluation, columns: int) -> Figure | None:  # noqa: ARG001
    sets = _with_error_bars(evaluation, "forces")
    curves = []
    for name, color, errors in sets:
        size = np.linalg.norm(errors.error, axis=1)
        fraction, error = metrics.error_retention_curve(size, errors.std)
        _, best = metrics.error_retention_curve(size, size)
        curves.append(
            {"fraction": fraction, "error": error / size.mean(), "best": best / size.mean()}
            | {"label": name, "color": color}
        )
    figure = grid([partial(plot_error_retention, data={"curves": curves})] if sets else [], 1, 3.1)
    if figure is not None:
        figure.axes[0].legend(loc="upper left", handlelength=1.6)
    return figure


def _ood_detection(evaluation: Evaluation, columns: int) -> Figure | None:
    detections = {name: found for name, found in evaluation.detections.items() if found}
    if not detections:
        return None
    # Of one foreign set every score; of several the headline score of each.
    if len(detections) == 1:
        found = next(iter(detections.values()))
        curves = {d.score: (d, COLORS[k % len(COLORS)]) for k, d in enumerate(found)}
    else:
        curves = {name: (d[0], colors_of(evaluation)[name]) for name, d in detections.items()}
    drawn = []
    for k, (label, (found_by, color)) in enumerate(curves.items()):
        false_positive, true_positive = metrics.roc_curve(found_by.known, found_by.foreign)
        area = float(found_by.numbers["auroc_ood"].value)
        drawn.append(
            {"false_positive": false_positive, "true_positive": true_positive, "color": color}
            | {"label": f"{label}: {area:.3f}", "linewidth": 2.0 if k == 0 else 1.1}
        )
    first = next(iter(detections.values()))[0]
    unit, scale = SCORE_UNITS.get(first.score, "eV" if "energy" in first.score else "eV/Å"), 1.0
    if unit == "eV/Å":
        unit, scale = "meV/Å", 1e3
    scores = {evaluation.names["test"]: first.known}
    scores |= {name: found[0].foreign for name, found in detections.items()}
    sets = [
        {"scores": scale * values, "label": name, "color": colors_of(evaluation)[name]}
        for name, values in scores.items()
    ]
    panels = [
        partial(titled, first.score, plot_scores, {"sets": sets, "unit": unit}),
        partial(titled, "area under the curve below", plot_roc, {"curves": drawn}),
    ]
    figure = grid(panels, columns, 3.3, 3.1 + 0.18 * len(drawn))
    assert figure is not None
    for ax in figure.axes:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=8, handlelength=1.6)
    return figure


def _structure(evaluation: Evaluation, columns: int) -> Figure | None:
    """A typical frame of each set; of the foreign ones also the least certain."""
    chosen = []
    for name, part in evaluation.sets.items():
        results = part.comparison.results
        if any("forces_cov" not in result for result in results):
            return None
        values = [_atom_sigma(result) for result in results]
        worst = np.array([np.max(value) for value in values])
        order = np.argsort(worst, kind="stable")
        picks = [("median", order[(len(order) - 1) // 2])]
        if part is not evaluation.test and len(order) > 2:
            picks.append(("largest", order[-1]))
        for word, k in picks:
            chosen.append((f"{name}, {word}", part.comparison.frames[k].atoms, 1e3 * values[k]))
    return structures_figure(chosen, columns)


def _atom_sigma(result: Any) -> np.ndarray:
    """√(tr Σ/3) of each atom, (n_atoms,), eV/Å."""
    return np.asarray(np.sqrt(np.trace(result["forces_cov"], axis1=1, axis2=2) / 3.0))
