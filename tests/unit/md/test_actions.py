"""Observers of a run: what they write, and what they do not disturb."""

import warnings

import numpy as np
import pytest
from ase import Atoms, units
from ase.io import read
from ase.md.verlet import VelocityVerlet
from fake_potential import (
    ANCHORS,
    FakePotential,
    ScriptedDynamics,
    make_atoms,
)
from scripted_runs import play, rows

from ase_bayesmlip.md.actions import (
    Call,
    LogCSV,
    Recalculate,
    Stop,
    TrajectoryWriter,
    UncertaintyWarning,
    Warn,
    WriteFrame,
)
from ase_bayesmlip.md.monitor import UncertaintyMonitor


def test_log_holds_every_frame(tmp_path):
    dyn, _ = play([], [0.5, 2.0, 0.25], log=tmp_path / "log.csv")
    written = rows(tmp_path / "log.csv")
    assert [row["step"] for row in written] == ["0", "1", "2"]
    assert [row["flagged"] for row in written] == ["0", "1", "0"]
    assert [row["event"] for row in written] == ["", "uncertain", ""]
    assert [float(row["score"]) for row in written] == pytest.approx([0.5, 2.0, 0.25])
    assert {row["threshold"] for row in written} == {"1.0"}
    assert float(written[0]["energy"]) == dyn.atoms.get_potential_energy()
    assert written[0]["time_fs"] == written[0]["reference_energy"] == ""
    assert tuple(written[0]) == LogCSV.COLUMNS


def test_log_is_complete_after_every_frame(tmp_path):
    log = LogCSV(tmp_path / "log.csv")
    dyn = ScriptedDynamics(make_atoms(FakePotential()))
    monitor = UncertaintyMonitor(dyn, threshold=1.0, log=log)
    for count in range(1, 4):
        dyn.play(monitor, [0.5])
        text = log.path.read_text()
        assert text.endswith("\n")
        assert len(rows(log.path)) == count


def test_log_is_continued_after_a_row_that_was_cut_short(tmp_path):
    path = tmp_path / "log.csv"
    play([], [0.5, 0.5], log=path)
    whole = path.read_text()
    path.write_text(whole + "2,1.0,30")
    play([], [2.0], log=path)
    assert path.read_text().startswith(whole)
    written = rows(path)
    assert [row["step"] for row in written] == ["0", "1", "0"]
    assert written[-1]["flagged"] == "1"


def test_log_refuses_another_file(tmp_path):
    path = tmp_path / "notes.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="exists and is not a log"):
        play([], [0.5], log=path)
    assert path.read_text() == "a,b\n1,2\n"


def test_written_frame_keeps_everything(tmp_path):
    path = tmp_path / "flagged.extxyz"
    atoms = make_atoms(FakePotential())
    atoms.set_momenta(np.arange(12.0).reshape(4, 3))
    atoms.info["REF_energy"] = -1.0
    atoms.arrays["REF_forces"] = np.ones((4, 3))
    _, monitor = play([WriteFrame(path)], [0.5, 2.0, 3.0], atoms=atoms)
    frames = read(path, ":")
    assert [frame.info["step"] for frame in frames] == [1, 2]
    frame, event = frames[0], monitor.events[0]
    results = event.results
    assert frame.get_potential_energy() == pytest.approx(results["energy"], rel=1e-12)
    np.testing.assert_allclose(frame.get_forces(), results["forces"], atol=1e-7)
    np.testing.assert_allclose(frame.positions, event.atoms.positions, atol=1e-7)
    np.testing.assert_allclose(frame.get_momenta(), event.atoms.get_momenta(), atol=1e-7)
    assert frame.arrays["forces_cov_epistemic"].shape == (4, 9)
    np.testing.assert_allclose(
        frame.arrays["forces_cov"].reshape(4, 3, 3), results["forces_cov"], atol=1e-7
    )
    np.testing.assert_allclose(frame.arrays["forces_std"], results["forces_std"], atol=1e-7)
    assert frame.info["energy_uncertainty"] == pytest.approx(results["energy_uncertainty"])
    assert frame.info["event"] == "uncertain"
    assert frame.info["score"] == pytest.approx(2.0)
    # Labels of the start structure do not belong to this frame.
    assert "REF_energy" not in frame.info
    assert "REF_forces" not in frame.arrays


def test_stop():
    dyn, monitor = play([Stop()], [0.5, 2.0])
    assert dyn.max_steps == 1
    assert monitor.stop_reason.startswith("uncertain frame at step 1: score forces_epistemic_max")


@pytest.mark.parametrize("filters", ["default", "once", "always"])
def test_one_warning_per_event(filters):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(filters)
        play([Warn()], [2.0, 0.5, 2.0, 2.0])
    texts = [str(warning.message) for warning in caught]
    assert [text.split(":")[0] for text in texts] == [
        f"uncertain frame at step {step}" for step in (0, 2, 3)
    ]
    assert all(warning.category is UncertaintyWarning for warning in caught)
    assert texts[0].endswith("(atoms 1, 3, 0)")


def test_call_receives_the_event():
    seen: list = []
    _, monitor = play([Call(seen.append)], [2.0])
    assert seen == list(monitor.events)


def verlet(velocity=0.02, **settings):
    """An oscillator whose score grows with the displacement, above the threshold after a while."""
    atoms = Atoms("C2O2", positions=ANCHORS.copy(), calculator=FakePotential())
    atoms.set_velocities(velocity * np.array([[1.0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]))
    dyn = VelocityVerlet(atoms, 1.0 * units.fs)
    monitor = UncertaintyMonitor(dyn, **settings)
    dyn.attach(monitor)
    return dyn, monitor


@pytest.mark.parametrize("kind", ["trajectory", "flagged", "recalculated"])
def test_a_start_structure_that_extended_xyz_cannot_carry(tmp_path, kind):
    """Blank residue names, as of a PDB file, cost one warning and no frame."""
    atoms = make_atoms(FakePotential())
    atoms.arrays["residuenames"] = np.array(["   ", "ETH", "ETH", "ETH"])
    atoms.arrays["tensors"] = np.arange(36.0).reshape(4, 3, 3)
    atoms.info |= {"note": "", "title": "one two", "virial": np.eye(3)}
    path = tmp_path / "a.extxyz"
    actions = {"flagged": WriteFrame(path), "recalculated": Recalculate(FakePotential(4.0), path)}
    dyn = ScriptedDynamics(atoms)
    monitor = UncertaintyMonitor(
        dyn, threshold=1.0, actions=list(filter(None, [actions.get(kind)]))
    )
    writer = TrajectoryWriter(monitor, path) if kind == "trajectory" else lambda: None

    def observe():
        monitor()
        writer()

    with pytest.warns(UserWarning, match=r"info\['note'\], arrays\['residuenames'\]"):
        dyn.play(observe, [0.5])
    assert path.exists() == (kind == "trajectory")
    dyn.play(observe, [2.0])
    frame = read(path)
    np.testing.assert_array_equal(frame.positions, atoms.positions)
    np.testing.assert_array_equal(frame.arrays["tensors"], atoms.arrays["tensors"].reshape(4, 9))
    assert frame.info["title"] == "one two"
    np.testing.assert_array_equal(frame.info["virial"], np.eye(3))
    prefix = "predicted_" if kind == "recalculated" else ""
    for name in ("forces_cov", "energies_var_epistemic"):
        found = np.reshape(frame.arrays[prefix + name], np.shape(atoms.calc.results[name]))
        np.testing.assert_array_equal(found, atoms.calc.results[name])
    assert frame.info[f"{prefix}energy_var_epistemic"] == atoms.calc.results["energy_var_epistemic"]


def test_a_first_frame_that_is_shown_again_is_written_once(tmp_path):
    dyn, monitor = verlet(threshold=1.0, log=tmp_path / "log.csv")
    dyn.attach(TrajectoryWriter(monitor, tmp_path / "a.extxyz"))
    for _ in range(3):
        dyn.run(0)
    dyn.run(2)
    assert [row["step"] for row in rows(tmp_path / "log.csv")] == ["0", "1", "2"]
    frames = read(tmp_path / "a.extxyz", ":")
    assert [frame.info["step"] for frame in frames] == [0, 1, 2]
