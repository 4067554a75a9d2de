"""The table of metrics: rows after an epoch are dropped in one step."""

import os

import pytest

from ase_bayesmlip.training import log


def test_rows_after_an_epoch_are_dropped(tmp_path):
    path = tmp_path / log.METRICS_FILE
    log.truncate_metrics(path, 3)
    assert not path.exists()
    for epoch in (1, 2, 3):
        log.append_metrics(path, {"epoch": epoch, "loss": 0.5})
    log.truncate_metrics(path, 2)
    assert path.read_text().split() == ["epoch,loss", "1,0.5", "2,0.5"]
    log.truncate_metrics(path, 0)
    assert not path.exists()
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_loses_no_row(tmp_path, monkeypatch):
    path = tmp_path / log.METRICS_FILE
    for epoch in (1, 2, 3):
        log.append_metrics(path, {"epoch": epoch, "loss": 0.5})
    before = path.read_bytes()

    def interrupted(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        log.truncate_metrics(path, 2)
    assert path.read_bytes() == before
    monkeypatch.undo()
    log.truncate_metrics(path, 2)
    assert path.read_text().split() == ["epoch,loss", "1,0.5", "2,0.5"]


def test_the_best_errors_are_those_of_the_last_phase(tmp_path):
    """Losses of the warm-up are of another kind: a lower one there says nothing."""
    path = tmp_path / log.METRICS_FILE
    rows = [("mse", -9.0, 1.0), ("nll_jef", 0.5, 3.0), ("nll_jef", 0.2, 2.0), ("nll_jef", 0.3, 4.0)]
    for epoch, (phase, loss, error) in enumerate(rows):
        errors = {
            "valid_forces_rmse_meV_per_A": error,
            "valid_energy_rmse_meV_per_atom": 10 * error,
        }
        log.append_metrics(path, {"epoch": epoch, "phase": phase, "valid_loss": loss, **errors})
    assert log.best_errors(path) == (2.0, 20.0)
