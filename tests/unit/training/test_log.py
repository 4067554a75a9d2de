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
