"""Axes that can be read."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from ase_bayesmlip.report.style import label_log_axis


@given(st.floats(-12, 12), st.floats(0.01, 9))
def test_a_logarithmic_axis_has_two_labels_or_more(start, decades):
    low, high = 10.0**start, 10.0 ** (start + decades)
    ax = Figure().subplots()
    ax.set(yscale="log", ylim=(low, high))
    label_log_axis(ax.yaxis, low, high)
    ticks = ax.yaxis.get_majorticklocs()
    texts = [text for text in ax.yaxis.get_major_formatter().format_ticks(ticks) if text]
    assert 2 <= len(texts) <= 10
    assert len(set(texts)) == len(texts)
    assert ((ticks >= low) & (ticks <= high)).all()


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.5, 2000, [1, 10, 100, 1000]), (3, 60, [3, 10, 30]), (1.1, 4, [2, 3, 4])],
)
def test_labels_are_round(low, high, expected):
    ax = Figure().subplots()
    ax.set_xscale("log")
    label_log_axis(ax.xaxis, low, high)
    np.testing.assert_allclose(ax.xaxis.get_majorticklocs(), expected)
