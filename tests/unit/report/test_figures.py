"""Every figure of an evaluation is drawn, and what cannot be drawn is left out."""

import pytest
from evaluation_data import make_comparison

from ase_bayesmlip.evaluation import Bootstrap, Comparison, evaluate
from ase_bayesmlip.report.figures import evaluation_figures, render
from ase_bayesmlip.report.html import html_report

ALL_FIGURES = [
    "error_against_sigma",
    "calibration",
    "intervals",
    "coverage",
    "error_retention",
    "ood_detection",
    "structure",
]


@pytest.fixture(scope="module")
def evaluation():
    known, foreign = make_comparison(12), make_comparison(9, 1, width=0.4)
    return evaluate(
        known,
        foreign,
        make_comparison(12, width=2.0),
        make_comparison(9, 1, width=2.0),
        names={"model": "<b>model</b>.pt", "test": "cold", "ood": "hot"},
        notes=["a note with <tags> & more"],
        bootstrap=Bootstrap(60),
    )


def test_every_figure_is_drawn(evaluation):
    figures = evaluation_figures(evaluation)
    assert list(figures) == ALL_FIGURES
    for figure in figures.values():
        content = render(figure, "png")
        assert content.startswith(b"\x89PNG")
        assert len(content) > 5000
    assert render(figures["coverage"], "pdf").startswith(b"%PDF")
    lines = figures["calibration"].axes[1].get_legend_handles_labels()[1]
    assert [line.partition(":")[0] for line in lines] == [
        "cold, before",
        "cold, after",
        "hot, before",
        "hot, after",
    ]


def test_figures_without_error_bars_or_labels():
    bare = [{key: r[key] for key in ("energy", "forces")} for r in make_comparison(4).results]
    evaluation = evaluate(Comparison(make_comparison(4).frames, bare), bootstrap=Bootstrap(60))
    assert evaluation_figures(evaluation) == {}
    assert "Force RMSE" in html_report(evaluation, {})
