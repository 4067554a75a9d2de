"""Every figure of an evaluation is drawn, and what cannot be drawn is left out."""

import numpy as np
import pytest
from evaluation_data import make_comparison, small_evaluation

from ase_bayesmlip.evaluation import Bootstrap, Comparison, evaluate
from ase_bayesmlip.report.figures import evaluation_figures, render
from ase_bayesmlip.report.html import html_report

ALL_FIGURES = [
    "parity",
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
    return small_evaluation()


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
    assert list(evaluation_figures(evaluation)) == ["parity"]
    assert "Force RMSE" in html_report(evaluation, {})


def test_on_a_narrow_screen_panels_stand_below_each_other(evaluation):
    for figure in evaluation_figures(evaluation, columns=1).values():
        assert figure.get_figwidth() < 4.5
        lefts = {round(ax.get_subplotspec().colspan.start) for ax in figure.axes
                 if ax.get_subplotspec() is not None}  # fmt: skip
        assert lefts == {0}


def test_parity_shows_labels_against_predictions(evaluation):
    """Energies of the test set, from their mean on."""
    (panel, *_) = evaluation_figures(evaluation)["parity"].axes
    x, y = np.array(panel.collections[0].get_offsets()).T
    comparison = evaluation.test.comparison
    n = len(comparison.frames[0].atoms)
    label = np.array([frame.energy for frame in comparison.frames]) / n
    prediction = np.array([result["energy"] for result in comparison.results]) / n
    np.testing.assert_allclose(x, 1e3 * (label - label.mean()), atol=1e-9)
    np.testing.assert_allclose(y, 1e3 * (prediction - label.mean()), atol=1e-9)


def test_several_foreign_sets_have_their_own_curves():
    sets = {name: make_comparison(6, k) for k, name in enumerate(("hot", "bent", "cut"), 1)}
    figures = evaluation_figures(evaluate(make_comparison(8), sets, bootstrap=Bootstrap(60)))
    for ax in figures["ood_detection"].axes:
        names = {text.partition(":")[0] for text in ax.get_legend_handles_labels()[1]}
        assert {"hot", "bent", "cut"} <= names
    titles = [ax.get_title() for ax in figures["parity"].axes if ax.get_title()]
    assert titles == ["test", "hot", "bent", "cut"] * 2
