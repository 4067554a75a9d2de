"""Panels draw what they are given."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from ase_bayesmlip.report.panels import (
    plot_calibration,
    plot_error_against_sigma,
    plot_error_retention,
    plot_intervals,
    plot_roc,
    plot_scores,
)


def axes():
    return Figure().subplots()


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
