"""Labels from a reference: beside predictions, in trajectories, never from what failed."""

import contextlib
from typing import ClassVar

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.io import read
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.verlet import VelocityVerlet
from fake_potential import (
    ANCHORS,
    FakePotential,
    ScriptedDynamics,
    make_atoms,
    make_card,
    uncertainties,
)
from odd_references import Answers, Exits
from scripted_runs import play, rows

from ase_bayesmlip.md.actions import (
    Recalculate,
    UncertaintyWarning,
    WriteFrame,
)
from ase_bayesmlip.md.monitor import UncertaintyMonitor


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


class UncertainEMT(EMT):
    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.results |= uncertainties(np.full(4, 2.0))
        self.results |= {"stress_cov": np.diag(np.arange(1.0, 7)), "stress_var": np.ones(6)}


def test_recalculation_of_a_crystal_writes_stress(tmp_path):
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


def test_a_cell_that_moves_needs_the_stress_of_the_reference():
    class WithoutStress(EMT):
        implemented_properties: ClassVar = ["energy", "forces"]

    atoms = bulk("Cu", cubic=True, a=3.7)
    atoms.rattle(0.05, seed=1)
    for reference, refused in ((EMT(), False), (WithoutStress(), True)):
        atoms.calc = UncertainEMT()
        dyn = IsotropicMTKNPT(atoms, units.fs, 300, 0.0, 50 * units.fs, 500 * units.fs)
        recalculate = Recalculate(reference, continue_on_reference=True)
        monitor = UncertaintyMonitor(dyn, threshold=1.0, actions=[recalculate])
        dyn.attach(monitor)
        atoms.get_stress()
        outcome = pytest.raises(ValueError, match="moves the cell by the stress")
        with outcome if refused else contextlib.nullcontext():
            dyn.run(0)


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
