"""Actions: files, warnings, stops, reference calculations and rewinds."""

import csv
import warnings
from typing import ClassVar

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.io import read
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from fake_potential import (
    ANCHORS,
    FakePotential,
    ScriptedDynamics,
    make_atoms,
    make_card,
    uncertainties,
)
from odd_references import Answers, Exits

from ase_bayesmlip.md.actions import (
    Call,
    LogCSV,
    Recalculate,
    Rewind,
    Stop,
    TrajectoryWriter,
    UncertaintyWarning,
    Warn,
    WriteFrame,
)
from ase_bayesmlip.md.monitor import UncertaintyMonitor


def play(actions, deviations, atoms=None, **settings):
    dyn = ScriptedDynamics(make_atoms(FakePotential()) if atoms is None else atoms)
    monitor = UncertaintyMonitor(dyn, threshold=1.0, actions=actions, **settings)
    dyn.play(monitor, deviations)
    return dyn, monitor


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


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


def test_recalculation_records_errors_beside_predictions(tmp_path):
    path = tmp_path / "recalculated.extxyz"
    reference = FakePotential(stiffness=7.0)
    recalculate = Recalculate(reference, path)
    dyn, _ = play([recalculate], [0.5, 2.0], log=tmp_path / "log.csv")
    displacement = dyn.atoms.positions - ANCHORS
    squares = np.sum(displacement**2, axis=1)
    (record,) = recalculate.records
    assert reference.n_evaluations == 1
    assert record.failure == ""
    assert record.energy == pytest.approx(2.5 * squares.sum(), rel=1e-12)
    assert record.reference_energy == pytest.approx(3.5 * squares.sum(), rel=1e-12)
    assert record.energy_error == pytest.approx(squares.sum(), rel=1e-12)
    assert record.force_rmse == pytest.approx(2.0 * np.sqrt(np.mean(displacement**2)), rel=1e-12)
    assert record.force_max_error == pytest.approx(2.0 * np.sqrt(squares.max()), rel=1e-12)
    deviations = 2.0 * np.array([0.5, 1.0, 0.25, 0.75])
    assert record.force_rms_uncertainty == pytest.approx(np.sqrt(np.mean(deviations**2)))
    assert record.force_max_uncertainty == pytest.approx(2.0 * np.sqrt(3))
    assert record.energy_uncertainty == pytest.approx(np.sqrt(np.sum(deviations**2)))
    first, second = rows(tmp_path / "log.csv")
    assert first["reference_energy"] == first["force_rmse"] == ""
    for name in ("reference_energy", "energy_error", "force_rmse", "force_max_uncertainty"):
        assert float(second[name]) == getattr(record, name)
    frame = read(path)
    assert frame.info["REF_energy"] == pytest.approx(record.reference_energy, rel=1e-12)
    assert frame.info["predicted_energy"] == pytest.approx(record.energy, rel=1e-12)
    np.testing.assert_allclose(frame.arrays["REF_forces"], -7.0 * displacement, atol=1e-7)
    np.testing.assert_allclose(frame.arrays["predicted_forces"], -5.0 * displacement, atol=1e-7)
    assert frame.arrays["predicted_forces_cov_epistemic"].shape == (4, 9)
    assert frame.calc is None, "a prediction must not be mistaken for a label"


def test_recalculation_leaves_the_simulation_alone():
    atoms = make_atoms(FakePotential())
    calc = atoms.calc
    play([Recalculate(FakePotential(stiffness=7.0))], [2.0], atoms=atoms)
    assert atoms.calc is calc
    np.testing.assert_array_equal(calc.results["forces"], -5.0 * (atoms.positions - ANCHORS))
    assert not calc.calculation_required(atoms, ["energy", "forces"])


def test_recalculation_of_a_crystal_writes_stress(tmp_path):
    class UncertainEMT(EMT):
        def calculate(self, *args, **kwargs):
            super().calculate(*args, **kwargs)
            self.results |= uncertainties(np.full(4, 2.0))
            self.results |= {"stress_cov": np.diag(np.arange(1.0, 7)), "stress_var": np.ones(6)}

    atoms = bulk("Cu", cubic=True, a=3.7)
    atoms.rattle(0.05, seed=1)
    atoms.calc = UncertainEMT()
    dyn = VelocityVerlet(atoms, units.fs)
    monitor = UncertaintyMonitor(
        dyn,
        threshold=1.0,
        actions=[
            WriteFrame(tmp_path / "flagged.extxyz"),
            Recalculate(EMT(), tmp_path / "cu.extxyz", continue_on_reference=True),
        ],
    )
    dyn.attach(monitor)
    atoms.get_stress()
    dyn.run(0)
    frame = read(tmp_path / "cu.extxyz")
    stress = frame.info["REF_stress"]
    np.testing.assert_allclose(
        np.reshape(stress, (3, 3)), atoms.get_stress(voigt=False), rtol=1e-10, atol=1e-12
    )
    flagged = read(tmp_path / "flagged.extxyz")
    np.testing.assert_allclose(flagged.get_stress(), atoms.get_stress(), rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(flagged.info["stress_cov"], np.diag(np.arange(1.0, 7)))
    np.testing.assert_array_equal(flagged.info["stress_var"], np.ones(6))
    np.testing.assert_array_equal(frame.info["predicted_stress"], atoms.get_stress())


class Broken(Calculator):
    implemented_properties: ClassVar = ["energy", "forces"]

    def __init__(self, answer=None):
        super().__init__()
        self.answer = answer

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        if self.answer is None:
            raise RuntimeError("SCF did not converge")
        self.results = {"energy": self.answer, "forces": np.zeros((4, 3))}


@pytest.mark.parametrize(
    ("reference", "text"),
    [(Broken(), "RuntimeError: SCF did not"), (Broken(np.nan), "reference energy is not finite")],
)
def test_failing_reference_does_not_end_the_run(reference, text, tmp_path):
    recalculate = Recalculate(reference, tmp_path / "r.extxyz", continue_on_reference=True)
    with pytest.warns(UncertaintyWarning, match="the reference calculator failed") as caught:
        dyn, monitor = play([recalculate], [2.0, 0.5])
    assert len(caught) == 1
    (record,) = recalculate.records
    assert text in record.failure
    assert (record.step, record.score) == (0, pytest.approx(2.0))
    assert np.isnan(record.force_rmse)
    assert monitor.n_observed == 2
    assert not (tmp_path / "r.extxyz").exists()
    np.testing.assert_array_equal(dyn.atoms.get_forces(), -5.0 * (dyn.atoms.positions - ANCHORS))


def test_failing_reference_may_raise():
    recalculate = Recalculate(Broken(), on_error="raise")
    with pytest.raises(RuntimeError, match="SCF did not converge"):
        play([recalculate], [2.0])
    assert "SCF" in recalculate.records[0].failure


ODD = {
    "one row": Answers(forces=np.ones((1, 3))),
    "one number": Answers(forces=np.ones(3)),
    "transposed": Answers(forces=np.ones((3, 4))),
    "complex": Answers(forces=np.ones((4, 3), dtype=complex)),
    "objects": Answers(forces=np.ones((4, 3), dtype=object)),
    "huge": Answers(forces=np.full((4, 3), 1e6)),
    "energy of two": Answers(energy=np.ones(2)),
    "exits": Exits(),
}


@pytest.mark.parametrize("reference", ODD.values(), ids=ODD)
def test_an_odd_answer_is_a_failure_and_never_a_label(reference, tmp_path):
    """In spite of what NumPy would broadcast; the run goes on with the prediction."""
    path = tmp_path / "r.extxyz"
    recalculate = Recalculate(reference, path, continue_on_reference=True)
    with pytest.warns(UncertaintyWarning, match="the reference calculator failed"):
        dyn, monitor = play([recalculate], [2.0, 0.5])
    assert monitor.n_observed == 2
    assert recalculate.records[0].failure
    assert not path.exists()
    np.testing.assert_array_equal(dyn.atoms.get_forces(), -5.0 * (dyn.atoms.positions - ANCHORS))
    with pytest.raises((ValueError, SystemExit)):
        play([Recalculate(reference, on_error="raise")], [2.0])


def test_limits_of_labels_follow_from_the_card_or_the_user(tmp_path):
    """Forces of FakePotential(700) are below 100 eV/Å here, those of the training below 1."""
    card = make_card()
    card.training = {"label_limits": {"force_max": 1.0, "energy_per_atom": [-1.0, 1.0]}}
    card.reference_energies = {}
    with pytest.warns(UncertaintyWarning, match="above the limit of 30 eV/Å"):
        play([Recalculate(FakePotential(700.0))], [2.0], make_atoms(FakePotential(card=card)))
    for limit in (None, 90.0):
        wide = Recalculate(FakePotential(700.0), force_limit=limit, energy_limit=None)
        play([wide], [2.0], make_atoms(FakePotential(card=card)))
        assert wide.records[0].failure == ""
    tight = Recalculate(FakePotential(7.0), energy_limit=(-9.0, -8.0))
    with pytest.warns(UncertaintyWarning, match="outside the limits -9 to -8 eV"):
        play([tight], [2.0], make_atoms(FakePotential(card=card)))
    with pytest.raises(ValueError, match="force_limit must be"):
        Recalculate(FakePotential(), force_limit="no")


def test_a_model_does_not_label_its_own_predictions():
    """As a reference it would, with errors of zero."""
    atoms = make_atoms(FakePotential())
    with pytest.raises(ValueError, match="is the calculator of the simulation"):
        UncertaintyMonitor(
            ScriptedDynamics(atoms), threshold=1.0, actions=[Recalculate(atoms.calc)]
        )


@pytest.mark.parametrize("wrong", [(1.0, 2.0), "3", True, -1.0, float("nan")])
def test_limits_of_another_type_are_named(wrong):
    with pytest.raises(ValueError, match="force_limit must be 'training', None or above 0"):
        Recalculate(EMT(), force_limit=wrong)
    with pytest.raises(ValueError, match="timeout_s must be a positive number"):
        Recalculate(EMT(), timeout_s="5")


def test_an_interruption_of_the_reference_ends_the_run():
    class Interrupted(Calculator):
        implemented_properties: ClassVar = ["energy", "forces"]

        def calculate(self, *args, **kwargs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play([Recalculate(Interrupted())], [2.0])


def test_a_prediction_of_another_shape_goes_through_on_error():
    def shorten(event, _monitor):
        event.results["forces"] = event.results["forces"][:2]

    recalculate = Recalculate(FakePotential())
    with pytest.warns(UncertaintyWarning, match="the reference calculator failed"):
        play([shorten, recalculate], [2.0])
    assert "ValueError" in recalculate.records[0].failure


def test_labels_are_spaced_and_counted(tmp_path):
    reference = FakePotential(stiffness=7.0)
    path = tmp_path / "r.extxyz"
    recalculate = Recalculate(reference, path, spacing=3, max_labels=2)
    play([recalculate], [2.0, 2.0, 0.5, 0.5, 2.0, 2.0, 2.0, 2.0])
    assert [record.step for record in recalculate.records] == [0, 4]
    plan = recalculate.plan
    assert (plan.n_labels, plan.n_correlated, plan.n_over_budget) == (2, 1, 3)
    frames = read(path, ":")
    assert [frame.info["step"] for frame in frames] == [0, 4]
    assert {frame.info["reference"] for frame in frames} == {"FakePotential"}


def test_a_reference_by_name_is_named_in_the_labels(tmp_path):
    path = tmp_path / "r.extxyz"
    recalculate = Recalculate("odd_references:lennard_jones", path)
    play([recalculate], [2.0])
    frame = read(path)
    assert frame.info["reference"] == "odd_references:lennard_jones"
    expected = LennardJones().get_forces(frame)
    np.testing.assert_allclose(frame.arrays["REF_forces"], expected, rtol=1e-12)
    with pytest.raises(ValueError, match="known: gfn2"):
        Recalculate("ccsdt")


def test_a_reference_that_hangs_costs_its_time_limit_and_no_run(tmp_path, monkeypatch):
    monkeypatch.setenv("ODD_REFERENCES_LOG", str(tmp_path / "log"))
    recalculate = Recalculate("odd_references:Sleeps", tmp_path / "r.extxyz", timeout_s=1.0)
    atoms = make_atoms(FakePotential())
    atoms.positions[1] = atoms.positions[0] + [0.0, 0.0, 1.2]
    with pytest.warns(UncertaintyWarning, match="TimeoutError: the reference gave no answer"):
        dyn, _ = play([recalculate], [2.0], atoms)
    atoms.positions[1] = ANCHORS[1]  # far from the first: the reference answers
    monitor = UncertaintyMonitor(dyn, threshold=1.0, actions=[recalculate])
    dyn.play(monitor, [2.0])
    assert [bool(record.failure) for record in recalculate.records] == [True, False]
    (frame,) = read(tmp_path / "r.extxyz", ":")
    np.testing.assert_allclose(
        frame.arrays["REF_forces"], LennardJones().get_forces(atoms), rtol=1e-12
    )


def test_unphysical_frames_are_never_recalculated(tmp_path):
    reference = FakePotential()
    recalculate = Recalculate(reference, tmp_path / "r.extxyz")
    play([recalculate], [6.0], upper_limit=5.0, on_unphysical=[recalculate])
    assert reference.n_evaluations == 0
    assert recalculate.records == []


def verlet(velocity=0.02, **settings):
    """An oscillator whose score grows with the displacement, above the threshold after a while."""
    atoms = Atoms("C2O2", positions=ANCHORS.copy(), calculator=FakePotential())
    atoms.set_velocities(velocity * np.array([[1.0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]))
    dyn = VelocityVerlet(atoms, 1.0 * units.fs)
    monitor = UncertaintyMonitor(dyn, **settings)
    dyn.attach(monitor)
    return dyn, monitor


def test_rewind_restores_the_last_trusted_frame():
    rewind = Rewind(max_rewinds=1)
    states: list = []
    dyn, monitor = verlet(threshold=0.0105, actions=[rewind])
    atoms = dyn.atoms
    dyn.attach(lambda: states.append((atoms.get_positions(), atoms.get_momenta())))
    dyn.run(100)
    flagged = np.flatnonzero(monitor.history.flagged)
    first = int(flagged[0])
    assert rewind.rewinds == [(first, first - 1), (first + 1, first - 1)]
    for rewound in (first, first + 1):
        np.testing.assert_array_equal(states[rewound], states[first - 1])
    assert "after 1 attempts to get past it from step" in monitor.stop_reason
    assert dyn.nsteps == first + 1


def test_rewound_calculator_is_as_if_it_had_just_evaluated():
    dyn, monitor = verlet(threshold=0.0105, actions=[Rewind(max_rewinds=1)])
    dyn.run(100)
    calc, atoms = dyn.atoms.calc, dyn.atoms
    assert not calc.calculation_required(atoms, ["energy", "forces"])
    assert calc.n_evaluations == monitor.n_observed
    np.testing.assert_array_equal(calc.results["forces"], -5.0 * (atoms.positions - ANCHORS))
    fresh = FakePotential()
    assert fresh.get_potential_energy(atoms) == calc.results["energy"]


def test_rewind_by_more_than_one_frame():
    rewind = Rewind(n_frames=3, max_rewinds=1)
    dyn, monitor = verlet(threshold=0.0105, actions=[rewind])
    dyn.run(100)
    first = int(np.flatnonzero(monitor.history.flagged)[0])
    # Steps first - 3 ... first - 1 are trusted; the second attempt meets the same wall.
    assert rewind.rewinds == [(first, first - 3), (first + 3, first - 3)]


def test_rewind_from_the_first_frame_stops():
    dyn, monitor = verlet(threshold=0.001, actions=[Rewind()])
    dyn.run(5)
    assert "no trusted frame before it" in monitor.stop_reason
    assert dyn.nsteps == dyn.max_steps == 0


def test_rewind_keeps_no_snapshot_of_flagged_frames():
    rewind = Rewind(n_frames=5)
    scores = iter([0.5, 2.0])
    dyn, _ = verlet(threshold=1.0, score=lambda _r, _a: next(scores), actions=[rewind], patience=2)
    dyn.run(1)
    assert len(rewind._snapshots) == 1


@pytest.mark.parametrize("temperature_K", [None, 200.0])
def test_rewind_with_new_velocities(temperature_K):
    rewind = Rewind(rethermalise=True, temperature_K=temperature_K, rng=3, max_rewinds=1)
    seen: dict = {}

    def note(event, monitor):
        seen["momenta"] = monitor.atoms.get_momenta()
        seen["kinetic"] = monitor.atoms.get_kinetic_energy()

    dyn, _ = verlet(threshold=0.0105, actions=[rewind, note, Stop()])
    energies: list = []
    total = []
    dyn.attach(lambda: energies.append(dyn.atoms.get_kinetic_energy()))
    dyn.attach(lambda: total.append(dyn.atoms.get_momenta().sum(axis=0)))
    dyn.run(100)
    trusted = rewind.rewinds[0][1]
    np.testing.assert_allclose(seen["momenta"].sum(axis=0), total[trusted], atol=1e-12)
    assert np.count_nonzero(np.abs(seen["momenta"]) > 1e-6) == 12
    if temperature_K is None:
        assert seen["kinetic"] == pytest.approx(energies[trusted], rel=1e-12)


def test_rewind_puts_a_relaxation_back_and_stops_it():
    atoms = make_atoms(FakePotential(), displacement=0.3)
    start = atoms.get_positions()
    dyn = BFGS(atoms, logfile=None)
    calls = iter([0.5, 0.5, 2.0])
    monitor = UncertaintyMonitor(
        dyn, threshold=1.0, score=lambda _results, _atoms: next(calls), actions=[Rewind()]
    )
    positions = []
    dyn.attach(lambda: positions.append(atoms.get_positions()))
    dyn.attach(monitor)
    dyn.run(fmax=1e-6, steps=10)
    assert dyn.nsteps == 2
    assert "the relaxation was put back to step 1" in monitor.stop_reason
    np.testing.assert_array_equal(atoms.positions, positions[1])
    assert not np.array_equal(positions[1], start)


@pytest.mark.parametrize(
    "settings", [{"n_frames": 0}, {"max_rewinds": 0}, {"temperature_K": 300.0}]
)
def test_bad_rewind_settings(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Rewind(**settings)


def test_trajectory_leaves_out_rewound_frames_and_keeps_predictions(tmp_path):
    reference = FakePotential(stiffness=7.0)
    dyn, monitor = verlet(
        threshold=0.0105, actions=[Recalculate(reference, continue_on_reference=True)]
    )
    dyn.attach(TrajectoryWriter(monitor, tmp_path / "a.extxyz"))
    dyn.run(20)
    frames = read(tmp_path / "a.extxyz", ":")
    assert [frame.info["step"] for frame in frames] == list(range(21))
    flags = [frame.info["flagged"] for frame in frames]
    assert flags == list(monitor.history.flagged)
    assert any(flags)
    for frame in frames:
        np.testing.assert_allclose(
            frame.get_forces(), -5.0 * (frame.positions - ANCHORS), atol=1e-6
        )
        assert ("reference_energy" in frame.info) == frame.info["flagged"]

    rewind = Rewind(max_rewinds=2)
    dyn, monitor = verlet(threshold=0.0105, actions=[rewind])
    dyn.attach(TrajectoryWriter(monitor, tmp_path / "b.extxyz"))
    dyn.run(50)
    steps = [frame.info["step"] for frame in read(tmp_path / "b.extxyz", ":")]
    assert steps == list(np.flatnonzero(~monitor.history.flagged))


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
