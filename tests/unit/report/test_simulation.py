"""Figures of simulations: which panels a log has, and what is drawn in them."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from ase_bayesmlip.report.simulation import (
    _panels,
    monitored_md_figure,
    plot_energy_deviation,
    plot_volume,
)

N = 20


def make_log(**columns):
    """A log of dynamics at constant volume that knows nothing of its errors."""
    nothing = dict.fromkeys(
        ("energy_uncertainty", "energy_error", "volume", "pressure_GPa", "force_rmse"),
        np.full(N, np.nan),
    )
    return {
        "step": np.arange(N),
        "time_fs": 0.5 * np.arange(N),
        "energy": np.linspace(-1.0, 0.0, N),
        "score": np.linspace(0.01, 0.1, N),
        "threshold": np.full(N, 0.05),
        "flagged": np.linspace(0.01, 0.1, N) > 0.05,
        "force_rms_uncertainty": np.full(N, np.nan),
        **nothing,
        **columns,
    }


ONE = np.where(np.arange(N) == 3, 0.004, np.nan)
DEVIATION = {"energy_uncertainty": np.linspace(0.01, 0.02, N)}
VOLUME = {"volume": np.linspace(90.0, 99.0, N), "pressure_GPa": np.linspace(2.0, -2.0, N)}
LABELS = {"force_rmse": ONE, "force_rms_uncertainty": ONE, "energy_error": -ONE}


@pytest.mark.parametrize(
    ("columns", "n_panels"),
    [
        ({}, 2),
        (DEVIATION, 3),
        ({"volume": np.full(N, 90.0), "pressure_GPa": VOLUME["pressure_GPa"]}, 2),
        (VOLUME, 3),
        ({"volume": VOLUME["volume"]}, 3),
        (DEVIATION | VOLUME | LABELS, 5),
    ],
)
def test_panels_are_those_that_a_log_fills(tmp_path, columns, n_panels):
    log = make_log(**columns)
    assert len(_panels(log, "eV/Å")) == n_panels
    path = monitored_md_figure(log, tmp_path / "figure.svg", regions=[(2.0, 5.0, "hot")])
    text = path.read_text(encoding="utf-8")
    assert ("volume" in text) == (np.ptp(log["volume"]) > 0)
    assert ("pressure" in text) == (columns.keys() >= VOLUME.keys() and n_panels > 2)


def test_logs_of_before_there_were_volumes_are_drawn(tmp_path):
    log = make_log()
    del log["volume"], log["pressure_GPa"]
    assert monitored_md_figure(log, tmp_path / "figure.svg").stat().st_size > 0


def lines(ax):
    return {line.get_label(): line.get_ydata() for line in ax.get_lines()}


def test_error_bar_and_error_of_the_energy():
    ax = plot_energy_deviation(Figure().subplots(), make_log(**DEVIATION, **LABELS))
    found = lines(ax)
    np.testing.assert_allclose(found["predicted (σ)"], np.linspace(10.0, 20.0, N))
    assert found["true (|error|)"][3] == pytest.approx(4.0)
    assert ax.get_ylim()[0] == 0.0


def test_volume_and_pressure():
    ax = plot_volume(Figure().subplots(), make_log(**VOLUME))
    np.testing.assert_array_equal(lines(ax)["volume"], VOLUME["volume"])
    (other,) = (each for each in ax.figure.axes if each is not ax)
    np.testing.assert_array_equal(other.get_lines()[0].get_ydata(), VOLUME["pressure_GPa"])
