"""The monitor: what it reads, when it fires, what it hands out."""

import dataclasses
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS, FIRE
from fake_potential import FakePotential, ScriptedDynamics, make_atoms, make_card

from ase_bayesmlip.md.actions import Call, LogCSV, UncertaintyWarning
from ase_bayesmlip.md.monitor import UncertaintyMonitor
from ase_bayesmlip.scores import Score


def scripted(**settings):
    """A monitor with threshold 1.0 on scripted dynamics, and the list of events it hands out."""
    dyn = ScriptedDynamics(make_atoms(FakePotential()))
    seen: list = []
    settings = {"threshold": 1.0, "actions": [Call(seen.append)]} | settings
    return dyn, UncertaintyMonitor(dyn, **settings), seen


@pytest.mark.parametrize(
    ("settings", "scores", "steps"),
    [
        ({}, [0.5, 1.5, 0.5, 1.5, 1.5], [1, 3, 4]),
        # A dip down is not a spike; a score at the threshold is not above it.
        ({}, [0.5, 0.0001, 0.5, 1.0, 0.9999], []),
        ({"patience": 2}, [1.5, 0.5, 1.5, 1.5, 1.5, 1.5], [3, 5]),
        ({"patience": 3}, [1.5, 1.5, 0.5, 1.5, 1.5, 0.5], []),
        ({"cooldown": 2}, [1.5, 1.5, 1.5, 1.5, 1.5], [0, 3]),
        ({"patience": 2, "cooldown": 1}, [1.5] * 6, [1, 3, 5]),
        ({"budget": 2}, [1.5] * 5, [0, 1]),
        ({"budget": 0}, [1.5] * 3, []),
        ({"budget": 2, "patience": 2}, [1.5] * 9, [1, 3]),
        ({"upper_limit": 3.0}, [0.5, 1.5, 3.5, 3.0], [1, 3]),
    ],
)
def test_truth_table(settings, scores, steps):
    dyn, monitor, seen = scripted(**{"on_unphysical": ()} | settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncertaintyWarning)
        dyn.play(monitor, scores)
    assert [event.step for event in seen] == steps
    assert all(event.kind == "uncertain" for event in seen)
    np.testing.assert_array_equal(monitor.history.flagged, np.array(scores) > 1.0)
    np.testing.assert_allclose(monitor.history.score, scores, rtol=1e-12)
    assert monitor.n_observed == len(scores)
    assert monitor.n_flagged == np.count_nonzero(np.array(scores) > 1.0)
    assert monitor.n_uncertain == len(steps)


def spoil_energy(atoms):
    atoms.calc.results["energy"] = np.nan


def spoil_forces(atoms):
    atoms.calc.results["forces"][2, 1] = np.inf


def spoil_covariance(atoms):
    atoms.calc.results["forces_cov_epistemic"][0, 0, 0] = np.nan


def enlarge_covariance(atoms):
    atoms.calc.results["forces_cov_epistemic"] *= 1e6


def approach(atoms):
    atoms.positions[1] = atoms.positions[0] + [0.1, 0.0, 0.0]
    results = atoms.calc.results
    atoms.get_forces()
    atoms.calc.results |= {key: results[key] for key in results if "forces_cov" in key}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_energy, "energy (eV) is not finite"),
        (spoil_forces, "forces (eV/Å) is not finite in 1 of 12"),
        (spoil_covariance, "score forces_epistemic_max is nan"),
        (enlarge_covariance, "above the upper limit"),
        (approach, "0.100 Å apart"),
    ],
)
def test_unphysical_frames_stop_the_run_and_reach_no_action(spoil, reason):
    dyn, monitor, seen = scripted(upper_limit=5.0, patience=3, budget=0)

    def observe():
        spoil(dyn.atoms)
        monitor()

    dyn.play(observe, [0.5])
    assert seen == []
    (event,) = monitor.events
    assert event.kind == "unphysical"
    assert reason in event.reason
    assert reason in monitor.stop_reason
    assert dyn.max_steps == dyn.nsteps
    assert monitor.n_uncertain == 0
    assert monitor.n_flagged == 1


def test_unphysical_frames_go_to_their_own_actions():
    rejected: list = []
    dyn, monitor, seen = scripted(upper_limit=5.0, on_unphysical=[Call(rejected.append)])
    dyn.play(monitor, [6.0, 0.5, 2.0])
    assert [event.step for event in rejected] == [0]
    assert [event.step for event in seen] == [2]
    assert monitor.stop_reason == ""


def test_unphysical_frame_restarts_the_patience():
    dyn, monitor, seen = scripted(upper_limit=5.0, on_unphysical=(), patience=2)
    dyn.play(monitor, [2.0, 6.0, 2.0, 2.0])
    assert [event.step for event in seen] == [3]


def test_distance_check_can_be_switched_off():
    dyn, monitor, _ = scripted(min_distance_ratio=None)

    def observe():
        approach(dyn.atoms)
        monitor()

    dyn.play(observe, [0.5])
    assert monitor.n_flagged == 0


def test_exhausted_budget_warns_once_and_goes_on_logging():
    dyn, monitor, seen = scripted(budget=1)
    with pytest.warns(UncertaintyWarning, match="step 1: the budget of 1 ") as caught:
        dyn.play(monitor, [2.0, 2.0, 2.0, 2.0])
    assert len(caught) == 1
    assert len(seen) == 1
    assert monitor.n_flagged == 4
    assert dyn.max_steps == 10**6


def test_exhausted_budget_may_stop_the_run():
    dyn, monitor, seen = scripted(budget=2, on_budget="stop")
    dyn.play(monitor, [2.0, 0.5, 2.0])
    assert monitor.stop_reason == ""
    dyn.play(monitor, [0.5, 2.0])
    assert len(seen) == 2
    assert "budget of 2" in monitor.stop_reason
    assert dyn.max_steps == 4


def test_event_describes_the_frame():
    dyn, monitor, seen = scripted(n_worst=2)
    dyn.play(monitor, [0.5, 2.0])
    (event,) = seen
    assert list(monitor.events) == seen
    assert (event.step, event.time_fs, event.threshold) == (1, None, 1.0)
    assert event.score == pytest.approx(2.0)
    assert event.worst_atoms == (1, 3)
    assert event.worst_scores == pytest.approx((2.0, 1.5))
    assert "forces_epistemic_max = 2 is above the threshold 1" in event.reason
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.step = 5


def test_event_holds_copies():
    dyn, monitor, seen = scripted()
    dyn.play(monitor, [2.0])
    (event,) = seen
    positions, forces = dyn.atoms.get_positions(), dyn.atoms.get_forces()
    dyn.atoms.positions += 1.0
    dyn.atoms.calc.results["forces"] += 1.0
    np.testing.assert_array_equal(event.atoms.positions, positions)
    np.testing.assert_array_equal(event.results["forces"], forces)
    assert event.atoms.calc is None


def test_score_without_atoms_has_no_worst_atoms():
    dyn, monitor, seen = scripted(score="energy_var")
    dyn.play(monitor, [2.0])
    assert seen[0].worst_atoms == seen[0].worst_scores == ()


def test_own_score_function():
    def own(results, atoms):
        return Score(2.0 * results["forces_std"].max(), results["forces_std"])

    dyn, monitor, seen = scripted(score=own, threshold=3.0)
    dyn.play(monitor, [0.8, 1.0])
    assert monitor.score_name == "own"
    assert [event.step for event in seen] == [1]
    assert seen[0].score == pytest.approx(2 * np.sqrt(3))


def test_memory_is_bounded():
    dyn, monitor, _ = scripted(keep_events=3)
    dyn.play(monitor, [2.0] * 10)
    assert [event.step for event in monitor.events] == [7, 8, 9]
    assert monitor.n_events == 10


@pytest.mark.parametrize("interval", [1, 3])
def test_monitor_never_evaluates(interval):
    def evaluations(observe):
        atoms = make_atoms(FakePotential())
        dyn = VelocityVerlet(atoms, 1.0 * units.fs)
        if observe:
            monitor = UncertaintyMonitor(dyn, threshold=0.011, actions=[Call(lambda _: None)])
            dyn.attach(monitor, interval=interval)
        dyn.run(12)
        if observe:
            assert monitor.n_observed == 12 // interval + 1
            assert monitor.n_events > 0
        return atoms.calc.n_evaluations

    assert evaluations(observe=True) == evaluations(observe=False) == 13


def test_step_zero_is_observed():
    dyn = VelocityVerlet(make_atoms(FakePotential()), 1.0 * units.fs)
    monitor = UncertaintyMonitor(dyn, threshold=1.0)
    dyn.attach(monitor)
    dyn.run(2)
    assert list(monitor.history.step) == [0, 1, 2]


def test_time_follows_a_changing_time_step():
    dyn = VelocityVerlet(make_atoms(FakePotential()), 1.0 * units.fs)
    monitor = UncertaintyMonitor(dyn, threshold=1.0)
    dyn.attach(monitor, interval=2)
    dyn.run(4)
    dyn.dt = 0.25 * units.fs
    dyn.run(4)
    np.testing.assert_allclose(monitor.history.time_fs, [0, 2, 4, 4.5, 5], rtol=1e-12)


def test_time_of_a_monitor_that_is_attached_late():
    dyn = VelocityVerlet(make_atoms(FakePotential()), 0.5 * units.fs)
    dyn.run(10)
    monitor = UncertaintyMonitor(dyn, threshold=1.0)
    dyn.attach(monitor)
    dyn.run(1)
    np.testing.assert_allclose(monitor.history.time_fs, [5.5], rtol=1e-12)


@pytest.mark.parametrize("optimizer", [BFGS, FIRE])
def test_relaxations_have_steps_and_no_time(optimizer):
    atoms = make_atoms(FakePotential())
    dyn = optimizer(atoms, logfile=None)
    monitor = UncertaintyMonitor(dyn, threshold=1.0)
    dyn.attach(monitor)
    assert dyn.run(fmax=0.05, steps=50)
    assert np.isnan(monitor.history.time_fs).all()
    assert list(monitor.history.step) == list(range(dyn.nsteps + 1))
    assert monitor.row["time_fs"] is None


def test_relaxation_of_a_cell_sees_the_structure_inside_the_filter():
    class UncertainEMT(EMT):
        def calculate(self, *args, **kwargs):
            super().calculate(*args, **kwargs)
            self.results["forces_cov_epistemic"] = 0.04 * np.tile(np.eye(3), (4, 1, 1))

    atoms = bulk("Cu", cubic=True, a=3.7)
    atoms.rattle(0.05, seed=1)
    atoms.calc = UncertainEMT()
    dyn = BFGS(FrechetCellFilter(atoms), logfile=None)
    monitor = UncertaintyMonitor(dyn, threshold=1.0)
    dyn.attach(monitor)
    dyn.run(fmax=0.1, steps=5)
    assert monitor.atoms is atoms
    np.testing.assert_allclose(monitor.history.score, 0.2, rtol=1e-12)


def test_more_than_one_structure_is_refused():
    with pytest.raises(TypeError, match="one structure; SimpleNamespace has list"):
        UncertaintyMonitor(SimpleNamespace(atoms=[]), threshold=1.0)


def test_results_must_be_fresh():
    atoms = make_atoms(FakePotential())
    dyn = ScriptedDynamics(atoms)
    monitor = UncertaintyMonitor(dyn, threshold=1.0)
    with pytest.raises(RuntimeError, match="holds no results"):
        monitor()
    atoms.get_forces()
    atoms.positions += 0.1
    with pytest.raises(RuntimeError, match=r"another structure \(positions changed\)"):
        monitor()
    atoms.calc = None
    with pytest.raises(RuntimeError, match="no calculator"):
        monitor()
    assert monitor.n_observed == 0


def test_false_alarm_rate_reads_the_model_card():
    scores = {"forces_epistemic_max": list(np.arange(1.0, 100.0)), "energy_var": [1.0] * 9}
    dyn = ScriptedDynamics(make_atoms(FakePotential(card=make_card(scores))))
    assert UncertaintyMonitor(dyn, false_alarm_rate=0.1).threshold == 90.0
    assert UncertaintyMonitor(dyn, false_alarm_rate=0.1, score="energy_var").threshold == 1.0
    given = UncertaintyMonitor(dyn, false_alarm_rate=0.5, calibration_scores=[1.0, 2.0, 3.0])
    assert given.threshold == 2.0
    with pytest.raises(ValueError, match="at least 999 calibration frames"):
        UncertaintyMonitor(dyn, false_alarm_rate=0.001)
    with pytest.raises(ValueError, match=r"'atomic_energy_var_max' \(it holds forces_ep"):
        UncertaintyMonitor(dyn, false_alarm_rate=0.1, score="atomic_energy_var_max")


def test_false_alarm_rate_without_scores():
    dyn = ScriptedDynamics(make_atoms(FakePotential()))
    with pytest.raises(ValueError, match="no calculator with a model card"):
        UncertaintyMonitor(dyn, false_alarm_rate=0.1)
    dyn = ScriptedDynamics(make_atoms(FakePotential(card=make_card())))
    with pytest.raises(ValueError, match=r"\(it holds none\)"):
        UncertaintyMonitor(dyn, false_alarm_rate=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no calculator with a model card"),
        ({"threshold": 1.0, "false_alarm_rate": 0.1}, "not both"),
        ({"threshold": np.nan}, "finite"),
        ({"threshold": 1.0, "upper_limit": 0.5}, "above the threshold"),
        ({"threshold": 1.0, "budget": -1}, "budget"),
        ({"threshold": 1.0, "on_budget": "wait"}, "'ignore' or 'stop', not 'wait'"),
        ({"threshold": 1.0, "patience": 0}, "patience"),
        ({"threshold": 1.0, "cooldown": -1}, "cooldown"),
        ({"threshold": 1.0, "score": "sigma"}, "unknown score"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        UncertaintyMonitor(ScriptedDynamics(make_atoms(FakePotential())), **settings)


def test_log_row_is_written_even_when_an_action_fails(tmp_path):
    def fail(event, monitor):
        raise OSError("disk full")

    dyn, monitor, _ = scripted(actions=[fail], log=tmp_path / "log.csv")
    with pytest.raises(OSError, match="disk full"):
        dyn.play(monitor, [2.0])
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("0,")


def test_a_log_given_twice_writes_once(tmp_path):
    log = LogCSV(tmp_path / "log.csv")
    dyn, monitor, _ = scripted(actions=[log], log=log)
    dyn.play(monitor, [2.0, 0.5])
    assert len(log.path.read_text().splitlines()) == 3


def test_actions_run_in_the_given_order():
    calls: list = []
    actions = [lambda _event, _monitor, name=name: calls.append(name) for name in "abc"]
    dyn, monitor, _ = scripted(actions=actions)
    dyn.play(monitor, [2.0])
    assert calls == ["a", "b", "c"]


def verlet(**settings):
    atoms = make_atoms(FakePotential())
    atoms.set_momenta(np.full((4, 3), 0.5))
    dyn = VelocityVerlet(atoms, 1.0 * units.fs)
    return dyn, UncertaintyMonitor(dyn, **{"threshold": 1.0} | settings)


@pytest.mark.parametrize("second", [lambda m: m, lambda m: m.__call__])
def test_a_monitor_that_is_attached_twice_is_an_error(second):
    dyn, monitor = verlet()
    dyn.attach(monitor, interval=2)
    dyn.attach(second(monitor), interval=3)
    with pytest.raises(RuntimeError, match="attached twice and would count every frame twice"):
        dyn.run(5)
    assert monitor.n_observed == 0


def test_two_monitors_may_watch_one_run():
    dyn, first = verlet()
    second = UncertaintyMonitor(dyn, threshold=0.5)
    dyn.attach(first)
    dyn.attach(second)
    dyn.run(3)
    assert first.n_observed == second.n_observed == 4


def test_a_frame_that_is_shown_again_counts_once():
    """ASE shows the first frame again when a run that made no step is started again."""
    dyn, monitor = verlet(score=lambda *_: 2.0, actions=[Call(lambda event: monitor.stop("now"))])
    dyn.attach(monitor)
    dyn.run(5)
    assert (dyn.nsteps, monitor.n_observed, monitor.n_events) == (0, 1, 1)
    dyn.run(5)  # goes on: the first frame is known
    assert (dyn.nsteps, monitor.n_observed, monitor.n_events) == (1, 2, 2)
    dyn.attach(lambda: monitor(), interval=1)  # hidden, and harmless
    dyn.run(1)
    assert list(monitor.history.step) == [0, 1, 2]


@pytest.mark.parametrize("change", ["positions", "momenta", "results"])
def test_a_first_frame_that_was_changed_counts_again(change):
    dyn, monitor = verlet()
    dyn.attach(monitor)
    dyn.run(0)
    match change:
        case "positions":
            dyn.atoms.positions[0, 0] += 0.01
        case "momenta":
            dyn.atoms.set_momenta(2 * dyn.atoms.get_momenta())
        case _:
            dyn.atoms.calc = FakePotential(stiffness=4.0)
    dyn.run(0)
    assert monitor.n_observed == 2
