"""``bayesmlip md`` and ``bayesmlip demo``, with the served file that comes with the package."""

from pathlib import Path

import ase.io
import numpy as np
import pytest

from ase_bayesmlip.cli import demo
from ase_bayesmlip.cli.main import main
from ase_bayesmlip.report import read_log

DATA = Path(__file__).parents[2] / "data"
MODEL = str(DATA / "ethanol_ensemble.pt")


def run(*arguments):
    return main(["md", MODEL, str(DATA / "ethanol_ood_1200K.extxyz"), *arguments, "--quiet"])


def test_hot_run_flags_recalculates_and_writes(tmp_path, capsys):
    pytest.importorskip("tblite")
    out = tmp_path / "hot"
    code = run(
        *("--out", str(out), "--temperature-K", "1500", "--steps", "120", "--seed", "3"),
        *("--false-alarm-rate", "0.05", "--reference", "gfn2", "--cooldown", "20"),
        *("--friction-per-fs", "0.05"),
    )
    assert code == 0
    assert "recalculated with the reference" in capsys.readouterr().out
    log = read_log(out / "monitor.csv")
    assert len(log["step"]) == 121
    assert log["flagged"].any()
    frames = ase.io.read(out / "recalculated.extxyz", ":")
    known = np.isfinite(log["force_rmse"])
    assert known.sum() == len(frames) >= 1
    # The recorded error is that of the recorded prediction against the recorded reference.
    difference = frames[0].arrays["predicted_forces"] - frames[0].arrays["REF_forces"]
    assert np.sqrt(np.mean(difference**2)) == pytest.approx(log["force_rmse"][known][0], rel=1e-4)
    assert (out / "figure.png").stat().st_size > 10_000
    trajectory = ase.io.read(out / "trajectory.extxyz", ":")
    assert len(trajectory) == 13
    assert trajectory[0].arrays["forces_cov"].shape == (9, 9)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path, capsys):
    arguments = ("--out", str(tmp_path / "run"), "--steps", "2")
    assert run(*arguments) == 0
    capsys.readouterr()
    assert run(*arguments) == 2
    assert "choose another folder" in capsys.readouterr().err
    assert run(*arguments, "--overwrite") == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--reference", "ccsdt"), "known: gfn2, gfn1, emt, lj"),
        (("--integrator", "leapfrog"), "unknown integrator"),
        (("--false-alarm-rate", "0.0001"), "needs at least 9999 calibration frames"),
        (("--score", "vibes"), "known scores"),
        (("--device", "abacus"), "choose 'cpu' or 'cuda'"),
    ],
)
def test_wrong_arguments_are_explained(tmp_path, capsys, arguments, message):
    assert run("--out", str(tmp_path / "run"), "--steps", "2", *arguments) == 2
    assert message in capsys.readouterr().err


def test_demo_tells_its_story(tmp_path, monkeypatch):
    pytest.importorskip("tblite")
    monkeypatch.setattr(demo, "N_COLD", 60)
    monkeypatch.setattr(demo, "N_HOT", 140)
    summary = demo.run_demo(tmp_path / "demo", progress=False)
    assert "300 K" in summary
    assert "1200 K" in summary
    for name in ("figure.png", "trajectory.extxyz", "monitor.csv"):
        assert (tmp_path / "demo" / name).stat().st_size > 1000
