"""An evaluation as one HTML file that needs nothing else: no network, scripts or other files."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape

import numpy as np

from ase_bayesmlip._version import __version__
from ase_bayesmlip.evaluation import Estimate, Evaluation, SetEvaluation
from ase_bayesmlip.evaluation.estimates import Group
from ase_bayesmlip.metrics import calibration_error_floor

# Key -> words of a row, and what a reader should compare the number with.
ROWS = {
    "energy_rmse_meV_per_atom": ("Energy RMSE, meV/atom", ""),
    "energy_mae_meV_per_atom": ("Energy MAE, meV/atom", ""),
    "energy_bias_meV_per_atom": ("Energy bias, meV/atom", "0: no drift of all energies"),
    "energy_sigma_meV_per_atom": ("Energy error bar (RMS), meV/atom", "the RMSE, if calibrated"),
    "energy_nll": ("Energy NLL, nats per frame (eV)", "less is better"),
    "energy_crps_meV_per_atom": ("Energy CRPS, meV/atom", "less is better"),
    "calibration_error_energy": ("Energy calibration error CE", "floor below; worst 0.33"),
    "coverage_50_energy": ("Coverage of 50 % intervals, energy", "0.50"),
    "coverage_90_energy": ("Coverage of 90 % intervals, energy", "0.90"),
    "spearman_energy": ("Spearman of |error| and error bar, energy", "next row"),
    "spearman_energy_if_exact": ("&emsp;if the error bars were exact", "redrawn errors"),
    "retention_ratio_energy": ("Error-retention ratio, energy", "0: best order, 1: none"),
    "forces_rmse_meV_per_A": ("Force RMSE, meV/Å", ""),
    "forces_mae_meV_per_A": ("Force MAE, meV/Å", ""),
    "forces_sigma_meV_per_A": ("Force error bar (RMS), meV/Å", "the RMSE, if calibrated"),
    "forces_nll": ("Force NLL, nats per atom (eV/Å)", "less is better"),
    "energy_score_forces": ("Energy score of forces, meV/Å", "less is better"),
    "calibration_error_forces": ("Force calibration error CE", "floor below; worst 0.33"),
    "coverage_50_forces": ("Coverage of 50 % regions, forces", "0.50"),
    "coverage_90_forces": ("Coverage of 90 % regions, forces", "0.90"),
    "spearman_forces": ("Spearman of |error| and error bar, forces", "next row"),
    "spearman_forces_if_exact": ("&emsp;if the error bars were exact", "redrawn errors"),
    "retention_ratio_forces": ("Error-retention ratio, forces", "0: best order, 1: none"),
}
GROUP_COLUMNS = (
    ("forces_rmse_meV_per_A", "force RMSE, meV/Å"),
    ("forces_sigma_meV_per_A", "error bar, meV/Å"),
    ("calibration_error_forces", "CE"),
    ("coverage_50_forces", "coverage of 50 %"),
    ("coverage_90_forces", "coverage of 90 %"),
)
DETECTION_COLUMNS = (("auroc_ood", "AUROC"), ("aupr_ood", "AUPR"), ("fpr95_ood", "FPR95"))

CAPTIONS = {
    "error_against_sigma": "Size of the error against the error bar. Grey: where the central 70, "
    "90 and 99 % of the errors should lie; dashed: error = error bar. Clouds above the grey mean "
    "error bars that are too small.",
    "calibration": "Calibration curves: what fraction of the labels lies in the regions of each "
    "expected confidence level. Above the diagonal the error bars are too wide, below it too "
    "narrow. Bands: bootstrap by frame.",
    "intervals": "Errors within their 90 % intervals, from the narrowest to the widest. Orange: "
    "outside; triangles: beyond the frame. Force components are a sample, the count is of all.",
    "coverage": "Coverage of the 90 % regions of forces by element and kind of frame, with "
    "bootstrap intervals by frame.",
    "error_retention": "Mean force error that remains when the least certain atoms are "
    "recalculated. Dashed: the best possible order, by the true error.",
    "ood_detection": "Left: the headline score of known and foreign frames. Right: how many "
    "foreign frames a threshold flags for how many false alarms; grey line: 95 %.",
    "structure": "Atoms coloured by their error bar: the median frame of each set and the least "
    "certain foreign frame.",
}

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b1b1b; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-size: 13.5px; }
th, td { padding: .22rem .8rem .22rem 0; text-align: left; border-bottom: 1px solid #ddd;
         vertical-align: top; }
thead th { border-bottom: 2px solid #444; }
td.n { font-variant-numeric: tabular-nums; white-space: nowrap; }
small { color: #666; } figure { margin: 1rem 0 1.6rem; } img { max-width: 100%; }
figcaption { font-size: 13.5px; color: #444; max-width: 50rem; }
ul.notes { background: #fff5e0; border-left: 4px solid #d55e00; padding: .6rem 1rem .6rem 2rem; }
"""


def html_report(evaluation: Evaluation, images: Mapping[str, bytes]) -> str:
    """The whole report as text.

    Parameters
    ----------
    evaluation : Evaluation
    images : mapping of str to bytes
        PNG content by the name of the figure, see `report.figures`.

    Returns
    -------
    str
        HTML with everything embedded.
    """
    names = evaluation.names
    parts = [
        f"<h1>Evaluation of {escape(names['model'])}</h1>",
        _facts(evaluation),
        _notes(evaluation),
        "<h2>Numbers</h2>",
        _main_table(evaluation),
        _reading_guide(evaluation),
    ]
    if evaluation.detections:
        parts += ["<h2>Foreign frames against known ones</h2>", _detection_table(evaluation)]
    for title, attribute in (("element", "per_element"), ("kind of frame", "per_config_type")):
        groups = [
            (name, getattr(part, attribute)) for name, part in _columns(evaluation) if part.forces
        ]
        if groups:
            parts += [f"<h2>Forces by {title}</h2>", _group_table(groups, title)]
    parts.append("<h2>Figures</h2>")
    parts += [_figure(name, content) for name, content in images.items()]
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>Evaluation of {escape(names['model'])}</title><style>{STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _columns(evaluation: Evaluation) -> list[tuple[str, SetEvaluation]]:
    """Title and content of each column of a table."""
    names = evaluation.names
    after = ", after" if evaluation.before is not None else ""
    columns = [
        (f"{names['test']}, before", evaluation.before),
        (names["test"] + after, evaluation.test),
        (f"{names['ood']}, before", evaluation.before_ood),
        (names["ood"] + after, evaluation.ood),
    ]
    return [(title, part) for title, part in columns if part is not None]


def _facts(evaluation: Evaluation) -> str:
    facts = {name: str(value) for name, value in evaluation.model.items()}
    facts["test set"] = f"{evaluation.names['test']}, {evaluation.test.n_frames} frames"
    if evaluation.ood is not None:
        facts["OOD set"] = f"{evaluation.names['ood']}, {evaluation.ood.n_frames} frames"
    if evaluation.before is not None:
        facts["compared with"] = evaluation.names["before"]
    facts["made by"] = f"ase_bayesmlip {__version__}"
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in facts.items())
    return f"<table>{rows}</table>"


def _notes(evaluation: Evaluation) -> str:
    if not evaluation.notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in evaluation.notes)
    return f'<ul class="notes">{items}</ul>'


def _main_table(evaluation: Evaluation) -> str:
    columns = _columns(evaluation)
    head = "".join(f"<th>{escape(title)}</th>" for title, _ in columns)
    rows = [f"<thead><tr><th></th>{head}<th>compare with</th></tr></thead>"]
    for words, count in (
        ("n frames with energy", lambda p: 0 if p.energies is None else len(p.energies.error)),
        ("n frames with forces", lambda p: 0 if p.forces is None else len(set(p.forces.frame))),
        ("n atoms with forces", lambda p: 0 if p.forces is None else len(p.forces.error)),
    ):
        cells = "".join(f'<td class="n">{count(part)}</td>' for _, part in columns)
        rows.append(f"<tr><td>{words}</td>{cells}<td></td></tr>")
    for key, (words, compare) in ROWS.items():
        if not any(key in part.numbers for _, part in columns):
            continue
        cells = "".join(_cell(part.numbers.get(key)) for _, part in columns)
        rows.append(f"<tr><td>{words}</td>{cells}<td><small>{compare}</small></td></tr>")
    return f"<table>{''.join(rows)}</table>"


def _reading_guide(evaluation: Evaluation) -> str:
    bootstrap, test = evaluation.bootstrap, evaluation.test
    laws = {
        "gaussian": "Gaussian errors (χ² for the ellipsoids of forces)",
        "student_t": "a Student-t (F distribution)",
        "hotelling": "Hotelling's T² for the spread of few members",
    }
    stated = [
        f"{what}: {laws[errors.law.name]}"
        for what, errors in (("energies", test.energies), ("forces", test.forces))
        if errors is not None and errors.law is not None
    ]
    law = f" Law of the regions, {'; '.join(stated)}." if stated else ""
    floor = calibration_error_floor(max(test.n_frames, 1))
    return (
        f"<p><small>In brackets: {100 * bootstrap.level:g} % bootstrap intervals, "
        f"{bootstrap.n_resamples} resamples of whole frames (fewer for ranks). They take frames "
        "for independent: frames from one trajectory may need wider ones; and an interval without "
        "width says only that no resample differs. A perfect model has a "
        f"CE of about {floor:.1g} on {test.n_frames} independent frames, not 0; atoms of a frame "
        f"depend on each other, so for forces this is an upper bound.{law}</small></p>"
    )


def _detection_table(evaluation: Evaluation) -> str:
    n = f"n = {evaluation.test.n_frames} known and "
    n += f"{0 if evaluation.ood is None else evaluation.ood.n_frames} foreign frames"
    head = "".join(f"<th>{title}</th>" for _, title in DETECTION_COLUMNS)
    rows = [f"<thead><tr><th>score of a frame ({n})</th>{head}</tr></thead>"]
    for found in evaluation.detections:
        cells = "".join(_cell(found.numbers.get(key)) for key, _ in DETECTION_COLUMNS)
        rows.append(f"<tr><td>{escape(found.score)}</td>{cells}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _group_table(sets: list[tuple[str, list[Group]]], title: str) -> str:
    columns = [
        (key, words)
        for key, words in GROUP_COLUMNS
        if any(key in group.numbers for _, groups in sets for group in groups)
    ]
    head = "".join(f"<th>{words}</th>" for _, words in columns)
    start = f"<th>set</th><th>{title}</th><th>n frames</th><th>n atoms</th>"
    rows = [f"<thead><tr>{start}{head}</tr></thead>"]
    for name, groups in sets:
        for group in groups:
            cells = "".join(_cell(group.numbers.get(key)) for key, _ in columns)
            rows.append(
                f"<tr><td>{escape(name)}</td><td>{escape(group.name)}</td>"
                f'<td class="n">{group.n_frames}</td><td class="n">{group.n_atoms}</td>{cells}</tr>'
            )
    return f"<table>{''.join(rows)}</table>"


def _cell(estimate: Estimate | None) -> str:
    return f'<td class="n">{"–" if estimate is None else number_with_interval(estimate)}</td>'


def number_with_interval(estimate: Estimate) -> str:
    """``11.6 [9.4, 14.6]``, with the digits that the interval supports, three at most."""
    value = float(estimate.value)
    if estimate.interval is None:
        return f"{value:.3g}"
    low, high = (float(end) for end in estimate.interval)
    width = high - low
    if width <= 0 or not np.isfinite(width):
        return f"{value:.3g} [{low:.3g}, {high:.3g}]"
    supported = 1 - np.floor(np.log10(width))
    readable = 2 - np.floor(np.log10(max(abs(value), width)))
    digits = int(np.clip(min(supported, readable), 0, 6))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _figure(name: str, content: bytes) -> str:
    data = base64.b64encode(content).decode("ascii")
    caption = escape(CAPTIONS.get(name, name))
    return (
        f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
