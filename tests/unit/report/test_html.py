"""The report: one file, every table with n and intervals, digits that the interval supports."""

import dataclasses
import re

import numpy as np
import pytest
from evaluation_data import small_evaluation

from ase_bayesmlip import report
from ase_bayesmlip.evaluation import Estimate
from ase_bayesmlip.report.html import html_report, number_with_interval


@pytest.fixture(scope="module")
def evaluation():
    return small_evaluation()


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


def test_figures_of_simulations_are_where_they_were():
    assert {"monitored_md_figure", "read_log"} <= set(report.__all__)


def test_facts_are_words_and_figures_have_headings(evaluation):
    described = dataclasses.replace(evaluation, description={"cutoff": "5 Å"}, model={"n_x": 1})
    text = html_report(described, {"calibration": b"one"}, {"calibration": b"two"})
    assert "<th>cutoff</th><td>5 Å</td>" in text
    assert "n_x" not in text
    assert "<h3>Calibration curves</h3>" in text
    assert 'name="viewport"' in text
    assert '<source media="(max-width: 620px)"' in text
    # On a narrow screen each number stands beside the title of its column.
    assert re.search(r'<td class="n" data-of="hot, after">[-\d.]+ \[', text)
