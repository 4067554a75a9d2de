"""An evaluation as one HTML file that needs nothing else: no network, scripts or other files."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from html import escape

import numpy as np

from ase_bayesmlip._version import __version__
from ase_bayesmlip.evaluation import Estimate, Evaluation, SetEvaluation
from ase_bayesmlip.evaluation.estimates import Group
from ase_bayesmlip.evaluation.evaluate import n_frames_of
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
    "stress_rmse_GPa": ("Stress RMSE, GPa", "of components"),
    "stress_sigma_GPa": ("Stress error bar (RMS, epistemic), GPa", "the RMSE, if calibrated"),
    "coverage_50_stress": ("Coverage of 50 % intervals, stress", "0.50"),
    "coverage_90_stress": ("Coverage of 90 % intervals, stress", "0.90"),
    "pressure_rmse_GPa": ("Pressure RMSE, GPa", ""),
    "pressure_sigma_GPa": ("Pressure error bar (RMS, epistemic), GPa", "the RMSE, if calibrated"),
    "coverage_50_pressure": ("Coverage of 50 % intervals, pressure", "0.50"),
    "coverage_90_pressure": ("Coverage of 90 % intervals, pressure", "0.90"),
}
GROUP_COLUMNS = (
    ("forces_rmse_meV_per_A", "force RMSE, meV/Å"),
    ("forces_sigma_meV_per_A", "error bar, meV/Å"),
    ("calibration_error_forces", "CE"),
    ("coverage_50_forces", "coverage of 50 %"),
    ("coverage_90_forces", "coverage of 90 %"),
)
DETECTION_COLUMNS = (("auroc_ood", "AUROC"), ("aupr_ood", "AUPR"), ("fpr95_ood", "FPR95"))

# Figure -> heading and caption.
CAPTIONS = {
    "parity": (
        "Predictions against labels",
        "Energies per atom are counted from the mean of the labels of their set.",
    ),
    "error_against_sigma": (
        "Size of the error against the error bar",
        "Grey: where the central 70, 90 and 99 % of the errors should lie; dashed: error = error "
        "bar. Clouds above the grey mean error bars that are too small.",
    ),
    "calibration": (
        "Calibration curves",
        "What fraction of the labels lies in the regions of each expected confidence level. Above "
        "the diagonal the error bars are too wide, below it too narrow. Bands: bootstrap by frame.",
    ),
    "intervals": (
        "Errors within their 90 % intervals",
        "From the narrowest to the widest. Orange: outside; triangles: beyond the frame. Force "
        "components are a sample, the count is of all.",
    ),
    "coverage": (
        "Coverage by element and kind of frame",
        "Of the 90 % regions of forces, with bootstrap intervals by frame.",
    ),
    "error_retention": (
        "What is left when the least certain atoms are recalculated",
        "Mean force error. Dashed: the best possible order, by the true error.",
    ),
    "ood_detection": (
        "Telling foreign frames from known ones",
        "First the score of the frames; then how many foreign frames a threshold flags for how "
        "many false alarms (grey line: 95 %).",
    ),
    "structure": (
        "Where the error bars are",
        "Atoms coloured by their error bar: the median frame of each set and the least certain "
        "foreign frame.",
    ),
}

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b1b1b; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .2rem; }
table { border-collapse: collapse; font-size: 13.5px; }
th, td { padding: .22rem .8rem .22rem 0; text-align: left; border-bottom: 1px solid #ddd;
         vertical-align: top; overflow-wrap: normal; }
thead th { border-bottom: 2px solid #444; }
td.n { font-variant-numeric: tabular-nums; white-space: nowrap; }
small { color: #666; } figure { margin: .4rem 0 1.6rem; } img { max-width: 100%; }
figcaption { font-size: 13.5px; color: #444; max-width: 50rem; }
ul.notes { background: #fff5e0; border-left: 4px solid #d55e00; padding: .6rem 1rem .6rem 2rem; }
@media (max-width: 620px) {
  table, tbody, tr, th, td { display: block; border: 0; padding: 0; }
  thead { display: none; }
  tr { border-bottom: 1px solid #ddd; padding: .35rem 0; }
  td[data-of] { display: flex; justify-content: space-between; gap: 1rem; }
  td[data-of]::before { content: attr(data-of); color: #666; }
  th { overflow-wrap: anywhere; }
  img { width: 100% !important; }
}
"""


def html_report(
    evaluation: Evaluation,
    images: Mapping[str, bytes],
    narrow: Mapping[str, bytes] | None = None,
) -> str:
    """The whole report as text.

    Parameters
    ----------
    evaluation : Evaluation
    images, narrow : mapping of str to bytes
        PNG content by the name of the figure, see `report.figures`; the latter for narrow screens.

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
    if any(evaluation.detections.values()):
        parts += ["<h2>Foreign frames against known ones</h2>", _detection_table(evaluation)]
    for title, attribute in (("element", "per_element"), ("kind of frame", "per_config_type")):
        groups = [
            (name, getattr(part, attribute)) for name, part in _columns(evaluation) if part.forces
        ]
        if groups:
            parts += [f"<h2>Forces by {title}</h2>", _group_table(groups, title)]
    parts.append("<h2>Figures</h2>")
    small = narrow or {}
    parts += [_figure(name, content, small.get(name)) for name, content in images.items()]
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Evaluation of {escape(names['model'])}</title><style>{STYLE}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _columns(evaluation: Evaluation) -> list[tuple[str, SetEvaluation]]:
    """Title and content of each column of a table."""
    return [
        (f"{name}, {stage}" if stage else name, part) for name, stage, part in evaluation.columns()
    ]


def _facts(evaluation: Evaluation) -> str:
    facts = dict(evaluation.description or {k: str(v) for k, v in evaluation.model.items()})
    for k, (name, part) in enumerate(evaluation.sets.items()):
        title = f"foreign frames {k}" if len(evaluation.ood) > 1 else "foreign frames"
        facts[title if k else "test frames"] = f"{name}, {part.n_frames} frames"
    if evaluation.before is not None:
        facts["compared with"] = evaluation.names["before"]
    facts["made by"] = f"ase_bayesmlip {__version__}"
    rows = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in facts.items())
    return f"<table>{rows}</table>"


def _table(head: list[str], rows: list[list[str]]) -> str:
    """A table of HTML cells; below each other, with their titles, where a screen is narrow."""
    titles = "".join(f"<th>{title}</th>" for title in head)
    lines = []
    for first, *cells in rows:
        named = (
            f'<td class="n" data-of="{re.sub("<[^>]*>", "", title)}">{cell}</td>'
            if cell
            else "<td></td>"
            for title, cell in zip(head[1:], cells, strict=True)
        )
        lines.append(f"<tr><th>{first}</th>{''.join(named)}</tr>")
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _notes(evaluation: Evaluation) -> str:
    if not evaluation.notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in evaluation.notes)
    return f'<ul class="notes">{items}</ul>'


def _main_table(evaluation: Evaluation) -> str:
    columns = _columns(evaluation)
    rows = []
    for words, count in (
        ("n frames with energy", lambda p: n_frames_of(p.energies)),
        ("n frames with forces", lambda p: n_frames_of(p.forces)),
        ("n atoms with forces", lambda p: 0 if p.forces is None else len(p.forces.error)),
        ("n frames with stress", lambda p: n_frames_of(p.stress)),
    ):
        counts = [count(part) for _, part in columns]
        if any(counts):
            rows.append([words, *map(str, counts), ""])
    for key, (words, compare) in ROWS.items():
        if any(key in part.numbers for _, part in columns):
            cells = (_text(part.numbers.get(key)) for _, part in columns)
            rows.append([words, *cells, f"<small>{compare}</small>" * bool(compare)])
    return _table(["", *(escape(title) for title, _ in columns), "compare with"], rows)


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
    rows = [
        [
            f"{escape(name)} (n = {evaluation.ood[name].n_frames}) by {escape(found.score)}",
            *(_text(found.numbers.get(key)) for key, _ in DETECTION_COLUMNS),
        ]
        for name, detections in evaluation.detections.items()
        for found in detections
    ]
    head = f"set and score of its frames; known: n = {evaluation.test.n_frames}"
    return _table([head, *(title for _, title in DETECTION_COLUMNS)], rows)


def _group_table(sets: list[tuple[str, list[Group]]], title: str) -> str:
    columns = [
        (key, words)
        for key, words in GROUP_COLUMNS
        if any(key in group.numbers for _, groups in sets for group in groups)
    ]
    rows = [
        [
            f"{escape(name)}, {escape(group.name)}",
            *(str(group.n_frames), str(group.n_atoms)),
            *(_text(group.numbers.get(key)) for key, _ in columns),
        ]
        for name, groups in sets
        for group in groups
    ]
    head = [f"set and {title}", "n frames", "n atoms", *(words for _, words in columns)]
    return _table(head, rows)


def _text(estimate: Estimate | None) -> str:
    return "–" if estimate is None else number_with_interval(estimate)


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


def _figure(name: str, content: bytes, narrow: bytes | None) -> str:
    heading, caption = CAPTIONS.get(name, (name, ""))
    width = int.from_bytes(content[16:20]) / 200 * 7  # of 200 dots an inch, as the PNG has it
    image = (
        f'<img alt="{escape(heading)}" style="width: {width:.1f}rem" src="{_embedded(content)}">'
    )
    if narrow is not None and narrow != content:
        source = f'<source media="(max-width: 620px)" srcset="{_embedded(narrow)}">'
        image = f"<picture>{source}{image}</picture>"
    return (
        f"<h3>{escape(heading)}</h3><figure>{image}"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _embedded(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
