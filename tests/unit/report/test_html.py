"""The report: one file, every table with n; and the figures it holds."""

import re

import numpy as np
import pytest
from evaluation_data import make_comparison
from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ase_bayesmlip import report
from ase_bayesmlip.evaluation import Bootstrap, Comparison, Estimate, evaluate
from ase_bayesmlip.report.figures import evaluation_figures, render
from ase_bayesmlip.report.html import html_report, number_with_interval
from ase_bayesmlip.report.panels import (
    plot_calibration,
    plot_error_against_sigma,
    plot_error_retention,
    plot_intervals,
    plot_roc,
    plot_scores,
)
from ase_bayesmlip.report.structure import plot_structure

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


def axes():
    return Figure().subplots()


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


def test_report_is_one_file(evaluation):
    images = {"calibration": b"\x89PNG one", "structure": b"\x89PNG two"}
    text = html_report(evaluation, images)
    assert text.startswith("<!DOCTYPE html>")
    assert not re.findall(r"https?:|<script|<link|@import|url\(", text)
    sources = re.findall(r'src="([^"]*)"', text)
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "&lt;b&gt;model&lt;/b&gt;.pt" in text
    assert "a note with &lt;tags&gt; &amp; more" in text
    assert "<b>" not in text


def test_every_table_states_n_and_intervals(evaluation):
    tables = re.findall(r"<table>.*?</table>", html_report(evaluation, {}), flags=re.DOTALL)
    assert len(tables) == 5  # facts, numbers, detection, elements, kinds of frame
    assert "12 frames" in tables[0]
    for table, n in zip(tables[1:], ("n frames with energy", "n = 12", "n atoms", "n atoms"),
                        strict=True):  # fmt: skip
        assert n in table
        assert re.search(r"\d \[-?[\d.]+, -?[\d.]+\]", table)


@pytest.mark.parametrize(
    ("value", "interval", "text"),
    [
        (11.6307, (9.4337, 14.628), "11.6 [9.4, 14.6]"),
        (0.99167, (0.98444, 0.99722), "0.992 [0.984, 0.997]"),
        (21.557, (21.397, 21.772), "21.6 [21.4, 21.8]"),
        (-9.058, (-9.153, -8.936), "-9.06 [-9.15, -8.94]"),
        (217.3, (134.2, 291.4), "217 [134, 291]"),
        (1.0, (1.0, 1.0), "1 [1, 1]"),
        (0.5, None, "0.5"),
    ],
)
def test_digits_are_those_that_the_interval_supports(value, interval, text):
    estimate = Estimate(value, None if interval is None else np.array(interval))
    assert number_with_interval(estimate) == text


# --- panels ---


def test_calibration_panel_draws_what_it_is_given():
    curve = {
        "expected": np.linspace(0, 1, 5),
        "observed": np.linspace(0, 1, 5) ** 2,
        "band": None,
        "label": "x",
        "color": "blue",
        "linestyle": "-",
    }
    ax = axes()
    assert plot_calibration(ax, {"curves": [curve]}) is ax
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), curve["observed"])


def test_interval_panel_counts_all_and_marks_those_beyond():
    error = np.concatenate([np.full(80, 0.5), np.full(18, 2.0), [1000.0, -1000.0]])
    data = {"error": error, "half_width": np.ones(100), "level": 0.9, "what": "energies"}
    ax = plot_intervals(axes(), data | {"unit": "eV", "color": "#0072B2", "max_points": 50})
    assert ax.texts[0].get_text() == "80.0 % of 100 inside"
    _, top = ax.get_ylim()
    assert 2.0 < top < 10.0
    drawn = np.concatenate([c.get_offsets()[:, 1] for c in ax.collections[1:]])
    assert len(drawn) == 50
    assert np.abs(drawn).max() < top


@pytest.mark.parametrize("n", [50, 5000])
def test_error_panel_shows_points_or_bins(n):
    generator = np.random.default_rng(0)
    sigma = np.exp(generator.standard_normal(n))
    data = {"sigma": sigma, "error": np.abs(sigma * generator.standard_normal(n))}
    data |= {"bands": {0.9: (0.06, 1.96)}, "color": "#0072B2", "unit": "eV"}
    ax = plot_error_against_sigma(axes(), data | {"limits": (0.01, 50.0, 0.001, 100.0)})
    assert ax.get_xscale() == ax.get_yscale() == "log"
    (cloud,) = [c for c in ax.collections if len(c.get_offsets()) > 1]
    assert (len(cloud.get_offsets()) == n) == (n == 50)


def test_other_panels_return_their_axes():
    curve = {"fraction": [0, 1], "error": [0, 1], "best": [0, 1], "label": "x", "color": "red"}
    roc = {"false_positive": [0, 1], "true_positive": [0, 1], "label": "x", "color": "red"}
    for panel, data in (
        (plot_error_retention, {"curves": [curve]}),
        (plot_roc, {"curves": [roc | {"linewidth": 1}]}),
        (plot_scores, {"sets": [{"scores": np.ones(3), "label": "x", "color": "red"}],
                       "unit": "eV"}),
    ):  # fmt: skip
        ax = axes()
        assert panel(ax, data) is ax
    bars = plot_scores(
        axes(), {"sets": [{"scores": np.r_[1.0, 9.0], "label": "x", "color": "r"}], "unit": ""}
    )
    assert bars.get_xscale() == "log"


@pytest.mark.parametrize("name", ["ethanol", "strained_co2"])
def test_structure_panel_colours_every_atom(name, request):
    atoms = request.getfixturevalue(name)
    values = np.linspace(1.0, 10.0, len(atoms))
    norm, cmap = LogNorm(1, 10), colormaps["YlOrRd"]
    ax = plot_structure(axes(), {"atoms": atoms, "values": values, "norm": norm, "cmap": cmap})
    assert len(ax.patches) == len(atoms)
    faces = sorted(patch.get_facecolor() for patch in ax.patches)
    assert faces == sorted(tuple(cmap(norm(value))) for value in values)
    if name == "ethanol":
        assert len(ax.lines) == 8
    else:  # the bonds of four molecules that no face of the cell divides, and 12 edges
        atoms.wrap()
        bonds = np.triu(np.abs(atoms.get_all_distances() - 1.2) < 0.4).sum()
        assert 0 < bonds < 8
        assert len(ax.lines) == bonds + 12


def test_figures_of_simulations_are_where_they_were():
    assert {"monitored_md_figure", "read_log"} <= set(report.__all__)
