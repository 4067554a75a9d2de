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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_folder_with_a_run_is_not_overwritten(tmp_path, capsys):
    arguments = ("--out", str(tmp_path / "run"), "--steps", "2")
    assert run(*arguments) == 0
    capsys.readouterr()
    assert run(*arguments) == 2
    assert "choose another folder" in capsys.readouterr().err
    assert run(*arguments, "--overwrite") == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('2\nlattice="9 0 0 0 9 0 0 0 9"\nO 0 0 0\nH 0 0 1\n', "'lattice' is no name"),
        ('2\nnote= Lattice="9 0 0 0 9 0 0 0 9"\nO 0 0 0\nH 0 0 1\n', "takes 'Lattice' for a part"),
        ("2\n\nO 0 0 0\nQ 0 0 1\n", "ASE cannot read it"),
        ("", "ASE cannot read it"),
    ],
)
def test_a_start_structure_is_read_as_strictly_as_labels(tmp_path, capsys, text, message):
    start = tmp_path / "start.extxyz"
    start.write_text(text)
    assert main(["md", MODEL, str(start), "--out", str(tmp_path / "run"), "--steps", "1"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert str(start) in said


@pytest.mark.slow
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


@pytest.mark.slow
def test_demo_tells_its_story(tmp_path, monkeypatch):
    pytest.importorskip("tblite")
    monkeypatch.setattr(demo, "N_COLD", 60)
    monkeypatch.setattr(demo, "N_HOT", 140)
    summary = demo.run_demo(tmp_path / "demo", progress=False)
    assert "300 K" in summary
    assert "1200 K" in summary
    for name in ("figure.png", "trajectory.extxyz", "monitor.csv"):
        assert (tmp_path / "demo" / name).stat().st_size > 1000


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("--score", "vibes"),
        ("--reference", "no_such_module:make"),
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_overwriting_checks_everything_before_it_touches_the_earlier_run(
    tmp_path, capsys, arguments
):
    out = tmp_path / "run"
    out.mkdir()
    for name in ("trajectory.extxyz", "monitor.csv", "recalculated.extxyz", "figure.png"):
        (out / name).write_text(f"62 labels in {name}")
    before = snapshot(out)
    assert run("--out", str(out), "--overwrite", "--steps", "2", *arguments) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert snapshot(out) == before


@pytest.mark.slow
def test_overwriting_replaces_all_of_the_earlier_run(tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    for name in ("trajectory.extxyz", "monitor.csv", "recalculated.extxyz", "notes.txt"):
        (out / name).write_text("old")
    assert run("--out", str(out), "--overwrite", "--steps", "2") == 0
    capsys.readouterr()
    left = snapshot(out)
    assert left.keys() - {"flagged.extxyz"} == {
        *("trajectory.extxyz", "monitor.csv", "figure.png", "notes.txt")
    }
    assert left["notes.txt"] == b"old"
    assert len(read_log(out / "monitor.csv")["step"]) == 3


@pytest.mark.slow
def test_any_calculator_is_a_reference_with_a_budget_and_a_spacing(tmp_path, capsys, monkeypatch):
    """Every frame is flagged; the calculator is one of a file in the present folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_reference.py").write_text(
        "from ase.calculators.lj import LennardJones\n"
        "def make():\n    return LennardJones(sigma=0.5, epsilon=0.01)\n"
    )
    arguments = ("--threshold", "0", "--steps", "40", "--reference", "own_reference:make")
    # Lennard-Jones has another zero of energy than the model.
    limits = ("--max-labels", "2", "--label-timeout-s", "100", "--energy-limit", "-1000", "1000")
    assert run("--out", "run", *arguments, *limits) == 0
    text = capsys.readouterr().out
    log = read_log(tmp_path / "run" / "monitor.csv")
    assert log["flagged"].all()
    steps = log["step"][np.isfinite(log["force_rmse"])]
    assert steps[0] == 0
    assert np.diff(steps).min() >= 10
    assert "2 asked for, 0 of them failed" in text
    assert len(steps) == 2
    frames = ase.io.read(tmp_path / "run" / "recalculated.extxyz", ":")
    assert {frame.info["reference"] for frame in frames} == {"own_reference:make"}


@pytest.mark.slow
def test_a_slab_is_refused_before_the_run_by_a_reference_that_takes_it_for_a_crystal(
    tmp_path, capsys
):
    pytest.importorskip("tblite")
    atoms = ase.io.read(DATA / "ethanol_test.extxyz", 0)
    atoms.calc = None
    atoms.cell = [20, 20, 20]
    atoms.pbc = (True, True, False)
    ase.io.write(tmp_path / "slab.extxyz", atoms)
    out = ("--out", str(tmp_path / "run"), "--steps", "1", "--quiet")
    arguments = ["md", MODEL, str(tmp_path / "slab.extxyz"), *out, "--reference", "gfn2"]
    assert main([*arguments, "--label-timeout-s", "60"]) == 2
    assert "or pbc=False for a cluster" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_start_structure_from_a_pdb_file_with_blank_residue_names(tmp_path, capsys):
    atoms = ase.io.read(DATA / "ethanol_test.extxyz", 0)
    pdb = "".join(
        f"ATOM  {k + 1:>5} {atom.symbol:<4}       1    "
        f"{atom.x:8.3f}{atom.y:8.3f}{atom.z:8.3f}  1.00  0.00          {atom.symbol:>2}\n"
        for k, atom in enumerate(atoms)
    )
    (tmp_path / "start.pdb").write_text(pdb + "END\n")
    out = tmp_path / "run"
    arguments = ["md", MODEL, str(tmp_path / "start.pdb"), "--out", str(out), "--steps", "3"]
    with pytest.warns(UserWarning, match="cannot carry arrays"):
        assert main([*arguments, "--threshold", "0", "--quiet"]) == 0
    capsys.readouterr()
    log = read_log(out / "monitor.csv")
    flagged = ase.io.read(out / "flagged.extxyz", ":")
    assert [frame.info["step"] for frame in flagged] == [0, 1, 2, 3]
    assert flagged[0].arrays["forces_cov"].shape == (9, 9)
    np.testing.assert_array_equal(
        [frame.get_potential_energy() for frame in flagged], log["energy"]
    )
    assert len(ase.io.read(out / "trajectory.extxyz", ":")) == 1


@pytest.mark.slow
def test_limit_of_the_temperature(tmp_path, capsys):
    """A start at 300 K is above a limit of 100 K."""
    assert run("--out", str(tmp_path / "a"), "--steps", "5", "--max-temperature-K", "100") == 0
    assert "ended early: unphysical frame at step 0: the temperature" in capsys.readouterr().out
    for limit in ("none", "auto", "5000"):
        out = ("--out", str(tmp_path / limit), "--steps", "1", "--lone-atoms", "ignore")
        assert run(*out, "--max-temperature-K", limit) == 0
        assert "ended early" not in capsys.readouterr().out
