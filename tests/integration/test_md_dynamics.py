"""Monitored dynamics with ASE's integrators, and the whole simulation behind the command."""

import csv
import math
import warnings

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.io import read
from fake_potential import ANCHORS, FakePotential, make_atoms, make_card

from ase_bayesmlip.md.actions import Recalculate, Rewind, Stop
from ase_bayesmlip.md.integrator_state import restore_state, save_state
from ase_bayesmlip.md.integrators import CONSTANT_VOLUME, make_integrator, set_temperature
from ase_bayesmlip.md.monitor import UncertaintyMonitor
from ase_bayesmlip.md.simulation import SimulationConfig, reference_calculator, run_simulation
from ase_bayesmlip.md.temperature import draw_velocities
from ase_bayesmlip.report import monitored_md_figure, read_log

LOG = "monitor.csv"
TIME_STEP = 1.0 * units.fs
FRICTION_PER_FS = 0.02


def skip_without(name):
    if name == "langevin_baoab":
        pytest.importorskip("ase.md.langevinbaoab", reason="new in ASE 3.27")


def integrator(name, atoms, seed=5, temperature_K=300.0):
    skip_without(name)
    return make_integrator(
        name,
        atoms,
        temperature_K=temperature_K,
        time_step_fs=TIME_STEP / units.fs,
        friction_per_fs=FRICTION_PER_FS,
        generator=np.random.default_rng(seed),
    )


def moving_atoms(calculator=None, temperature_K=300.0):
    atoms = make_atoms(FakePotential() if calculator is None else calculator)
    draw_velocities(atoms, temperature_K, np.random.default_rng(2))
    return atoms


def force_response(name, masses):
    """Closed-form change of the positions in one step by a change of the force, Å/(eV/Å)."""
    dt, gamma = TIME_STEP, FRICTION_PER_FS / units.fs
    match name:
        case "langevin":
            return (dt / 2 - dt**2 * gamma / 8) * dt / masses
        case "langevin_baoab":
            return 0.5 * dt * (0.5 * dt + 0.5 * dt * math.exp(-gamma * dt)) / masses
    return dt**2 / (2 * masses)


@pytest.mark.parametrize("name", CONSTANT_VOLUME)
def test_next_step_uses_the_reference_force(name):
    """Two runs that differ only in the force after step 3 part by response * difference."""

    def positions_after_step_4(continue_on_reference):
        dyn = integrator(name, moving_atoms())
        reference = FakePotential(stiffness=9.0)
        steps = iter([0.0, 0.0, 0.0, 2.0, 0.0])
        monitor = UncertaintyMonitor(
            dyn,
            threshold=1.0,
            score=lambda _results, _atoms: next(steps),
            actions=[Recalculate(reference, continue_on_reference=continue_on_reference)],
        )
        dyn.attach(monitor)
        before = []
        dyn.attach(lambda: before.append(dyn.atoms.get_positions()))
        dyn.run(4)
        assert reference.n_evaluations == 1
        assert dyn.atoms.calc.n_evaluations == 5
        return before[3], before[4]

    start, predicted = positions_after_step_4(False)
    same_start, referenced = positions_after_step_4(True)
    np.testing.assert_array_equal(start, same_start)
    difference = -(9.0 - 5.0) * (start - ANCHORS)
    response = force_response(name, make_atoms().get_masses()[:, None])
    np.testing.assert_allclose(referenced - predicted, response * difference, rtol=1e-7)


def test_relaxation_continues_on_the_reference_force():
    from ase.optimize import BFGS

    atoms = make_atoms(FakePotential())
    dyn = BFGS(atoms, logfile=None)
    recalculate = Recalculate(FakePotential(stiffness=9.0), continue_on_reference=True)
    monitor = UncertaintyMonitor(dyn, threshold=0.001, actions=[recalculate])
    dyn.attach(monitor)
    start = atoms.get_positions()
    dyn.run(fmax=1e-3, steps=1)
    # The first step of BFGS is along the force, divided by its initial curvature of 70 eV/Å².
    np.testing.assert_allclose(
        atoms.positions - start, -9.0 * (start - ANCHORS) / 70.0, rtol=1e-10, atol=1e-14
    )


@pytest.mark.parametrize("name", CONSTANT_VOLUME)
def test_stop_ends_the_run_and_the_run_can_go_on(name):
    dyn = integrator(name, moving_atoms())
    monitor = UncertaintyMonitor(
        dyn,
        threshold=1.0,
        score=lambda _results, _atoms: 2.0 if dyn.nsteps == 6 else 0.0,
        actions=[Stop()],
    )
    dyn.attach(monitor)
    assert dyn.run(20)
    assert dyn.nsteps == 6
    dyn.run(10)
    assert dyn.nsteps == 16
    assert list(monitor.history.step) == list(range(17))


def test_stop_at_step_zero():
    dyn = integrator("velocity_verlet", moving_atoms())
    dyn.attach(UncertaintyMonitor(dyn, threshold=1e-9, actions=[Stop()]))
    dyn.run(20)
    assert dyn.nsteps == 0


def rewound_run(name, dyn):
    """Run 10 steps, with one detour from step 6 back to step 5."""
    marks = iter([0.0] * 6 + [2.0] + [0.0] * 5)
    rewind = Rewind()
    monitor = UncertaintyMonitor(
        dyn, threshold=1.0, score=lambda _results, _atoms: next(marks), actions=[rewind]
    )
    dyn.attach(monitor)
    dyn.run(11)
    assert rewind.rewinds == [(6, 5)]
    return dyn.atoms


@pytest.mark.parametrize("name", ["velocity_verlet", "nose_hoover", "langevin_baoab"])
def test_rewound_dynamics_repeat_bitwise(name):
    """Deterministic dynamics that were rewound by one step arrive where the others do.

    This checks positions, momenta, forces, accelerations and the thermostat variables at once.
    """

    def build():
        atoms = moving_atoms()
        if name != "langevin_baoab":
            return integrator(name, atoms)
        skip_without(name)
        from ase.md.langevinbaoab import LangevinBAOAB

        return LangevinBAOAB(atoms, TIME_STEP)  # constant energy: no random numbers

    plain = build()
    plain.run(10)
    rewound = rewound_run(name, build())
    np.testing.assert_array_equal(rewound.positions, plain.atoms.positions)
    np.testing.assert_array_equal(rewound.get_momenta(), plain.atoms.get_momenta())
    assert rewound.calc.n_evaluations == plain.atoms.calc.n_evaluations + 1


@pytest.mark.parametrize("name", ["langevin", "bussi", "langevin_baoab"])
def test_rewound_stochastic_dynamics_take_another_path(name):
    plain = integrator(name, moving_atoms())
    plain.run(10)
    rewound = rewound_run(name, integrator(name, moving_atoms()))
    assert not np.allclose(rewound.positions, plain.atoms.positions, atol=1e-8)


@pytest.mark.parametrize("name", CONSTANT_VOLUME)
def test_new_velocities_are_used_after_a_rewind(name):
    """The step after a rewind starts from the momenta that were drawn."""
    dyn = integrator(name, moving_atoms(), temperature_K=300.0)
    marks = iter([0.0, 0.0, 2.0, 0.0])
    seen: dict = {}

    def note(event, monitor):
        seen["positions"] = monitor.atoms.get_positions()
        seen["velocities"] = monitor.atoms.get_velocities()

    rewind = Rewind(rethermalise=True, temperature_K=3e4, rng=1)
    monitor = UncertaintyMonitor(
        dyn, threshold=1.0, score=lambda _results, _atoms: next(marks), actions=[rewind, note],
        min_distance_ratio=None,
    )  # fmt: skip
    dyn.attach(monitor)
    dyn.run(3)
    moved = (dyn.atoms.positions - seen["positions"]) / TIME_STEP
    # Forces and friction are small beside velocities of 30000 K; thermostats rescale all alike.
    scale = np.sum(moved * seen["velocities"]) / np.sum(seen["velocities"] ** 2)
    assert scale == pytest.approx(1.0, abs=0.1)
    np.testing.assert_allclose(moved, scale * seen["velocities"], rtol=0.1, atol=0.05)


def test_state_of_nose_hoover_is_saved_and_restored():
    dyn = integrator("nose_hoover", moving_atoms())
    dyn.run(3)
    state = save_state(dyn)
    eta, momenta = dyn._thermostat._eta.copy(), dyn._p.copy()
    set_temperature(dyn, 900.0)
    dyn.run(3)
    restore_state(dyn, state)
    np.testing.assert_array_equal(dyn._thermostat._eta, eta)
    np.testing.assert_array_equal(dyn._p, momenta)
    assert dyn._thermostat._kT == 900.0 * units.kB
    assert save_state(integrator("velocity_verlet", moving_atoms())) == {}


@pytest.mark.parametrize("name", [name for name in CONSTANT_VOLUME if name != "velocity_verlet"])
def test_changed_temperature_equals_a_new_integrator(name):
    changed = integrator(name, moving_atoms(), temperature_K=200.0)
    set_temperature(changed, 700.0)
    fresh = integrator(name, moving_atoms(), temperature_K=700.0)
    changed.run(5)
    fresh.run(5)
    np.testing.assert_allclose(changed.atoms.positions, fresh.atoms.positions, rtol=1e-12)


def test_temperature_of_constant_energy_dynamics_cannot_be_set():
    with pytest.raises(ValueError, match="VelocityVerlet has no thermostat"):
        set_temperature(integrator("velocity_verlet", moving_atoms()), 300.0)
    with pytest.raises(ValueError, match=r"unknown integrator 'verlet'; known: langevin"):
        integrator("verlet", moving_atoms())


def test_drawn_velocities_have_the_temperature_and_no_drift():
    atoms = Atoms("C2000", positions=np.zeros((2000, 3)))
    draw_velocities(atoms, 300.0, np.random.default_rng(0))
    n = 3 * 2000 - 3
    expected = 300.0 * n / 6000
    assert abs(atoms.get_temperature() - expected) < 4 * 300.0 * math.sqrt(2 * n) / 6000
    np.testing.assert_allclose(atoms.get_momenta().sum(axis=0), 0.0, atol=1e-9)


def test_constraints_are_kept_when_velocities_are_drawn():
    from ase.constraints import FixAtoms

    atoms = moving_atoms()
    atoms.set_constraint(FixAtoms([0]))
    atoms.set_momenta(atoms.get_momenta())
    kinetic = atoms.get_kinetic_energy()
    draw_velocities(atoms, None, np.random.default_rng(0))
    assert atoms.get_kinetic_energy() == pytest.approx(kinetic, rel=1e-12)
    assert not atoms.get_momenta()[0].any()


def read_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


CONFIG = {"temperature_K": 300.0, "n_steps": 60, "trajectory_interval": 20, "time_step_fs": 1.0}


def test_simulation_writes_its_files(tmp_path):
    start = make_atoms()
    start.info["REF_energy"] = 3.0
    config = SimulationConfig(**CONFIG, threshold=0.015, budget=3, label_spacing=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        summary = run_simulation(
            start, FakePotential(), config, tmp_path / "run",
            reference=FakePotential(stiffness=7.0), progress=False,
        )  # fmt: skip
    assert summary.n_steps == 60
    assert summary.n_observed == 61
    assert summary.stop_reason == ""
    assert summary.n_recalculated == summary.n_events == 3
    assert start.calc is None
    assert not start.has("momenta")
    written = read_rows(tmp_path / "run" / LOG)
    assert len(written) == 61
    assert sum(int(row["flagged"]) for row in written) == summary.n_flagged > 3
    assert sum(bool(row["force_rmse"]) for row in written) == 3
    trajectory = read(tmp_path / "run" / "trajectory.extxyz", ":")
    assert [frame.info["step"] for frame in trajectory] == [0, 20, 40, 60]
    assert all("REF_energy" not in frame.info for frame in trajectory)
    assert trajectory[0].arrays["forces_cov_epistemic"].shape == (4, 9)
    labelled = read(tmp_path / "run" / "recalculated.extxyz", ":")
    np.testing.assert_allclose(
        labelled[0].arrays["REF_forces"], -7.0 * (labelled[0].positions - ANCHORS), atol=1e-6
    )
    text = str(summary)
    assert "60 steps (0.06 ps)" in text
    assert "3 frames were recalculated" in text
    np.testing.assert_array_equal(summary.final_atoms.positions.shape, (4, 3))


@pytest.mark.parametrize("name", CONSTANT_VOLUME)
def test_simulation_is_reproducible(name, tmp_path):
    skip_without(name)

    def final(seed, folder):
        config = SimulationConfig(**CONFIG, threshold=1.0, integrator=name, seed=seed)
        summary = run_simulation(
            make_atoms(), FakePotential(), config, tmp_path / folder, progress=False
        )
        return summary.final_atoms.positions

    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = final(1, "a")
    np.testing.assert_array_equal(first, final(1, "b"))
    assert not np.allclose(first, final(2, "c"))
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_schedule_heats(tmp_path):
    config = SimulationConfig(
        temperature_K=100.0,
        n_steps=3000,
        time_step_fs=1.0,
        friction_per_fs=0.05,
        schedule=((1500, 1000.0),),
        threshold=100.0,
        trajectory_interval=1500,
    )
    run_simulation(make_atoms(), FakePotential(), config, tmp_path, progress=False)
    temperature = np.array([float(row["temperature_K"]) for row in read_rows(tmp_path / LOG)])
    # 12 degrees of freedom, correlated over some 20 fs: the standard error is about 8 %.
    assert temperature[500:1500].mean() == pytest.approx(100.0, rel=0.35)
    assert temperature[2000:].mean() == pytest.approx(1000.0, rel=0.35)


@pytest.mark.slow
def test_false_alarms_come_at_the_nominal_rate(tmp_path):
    """Calibrate on one trajectory, observe another at the same temperature, and then hotter.

    The observed frames are 40 fs apart, which with a friction of 0.1/fs leaves them nearly
    independent; the tolerance is four binomial standard errors for both sets together.
    """

    def scores(folder, seed, temperature_K, **trigger):
        config = SimulationConfig(
            temperature_K=temperature_K,
            n_steps=4000,
            time_step_fs=4.0,
            friction_per_fs=0.1,
            interval=10,
            trajectory_interval=4000,
            seed=seed,
            **trigger,
        )
        calc = FakePotential(card=card)
        return run_simulation(make_atoms(), calc, config, tmp_path / folder, progress=False)

    card = None
    scores("calibration", 1, 300.0, threshold=10.0)
    rows = read_rows(tmp_path / "calibration" / LOG)
    calibration = sorted(float(row["score"]) for row in rows[10:])
    card = make_card({"forces_epistemic_max": calibration})
    rate, n = 0.1, len(calibration)
    quiet = scores("quiet", 2, 300.0, false_alarm_rate=rate)
    standard_error = math.sqrt(2 * rate * (1 - rate) / n)
    assert quiet.n_flagged / quiet.n_observed == pytest.approx(rate, abs=4 * standard_error)
    hot = scores("hot", 3, 1200.0, false_alarm_rate=rate)
    assert hot.n_flagged / hot.n_observed > 0.6


def test_stop_and_rewind_actions(tmp_path):
    stopping = SimulationConfig(**CONFIG, threshold=0.015, action="stop")
    summary = run_simulation(
        make_atoms(), FakePotential(), stopping, tmp_path / "s", progress=False
    )
    assert "uncertain frame at step" in summary.stop_reason
    assert summary.n_steps < 60
    assert len(read(tmp_path / "s" / "flagged.extxyz", ":")) == 1
    calc = FakePotential()
    rewinding = SimulationConfig(**CONFIG, threshold=0.016, action="rewind", seed=4)
    summary = run_simulation(make_atoms(), calc, rewinding, tmp_path / "r", progress=False)
    assert summary.n_rewinds == summary.n_flagged > 0
    for frame in read(tmp_path / "r" / "trajectory.extxyz", ":"):
        assert frame.info["score"] <= 0.016
    assert calc.n_evaluations == summary.n_steps + 1
    assert "went back to a trusted frame" in str(summary)


class Interrupting(FakePotential):
    """Ends the run from inside an evaluation."""

    error: BaseException = KeyboardInterrupt()
    after = 20

    def calculate(self, *args, **kwargs):
        if self.n_evaluations == self.after:
            raise self.error
        super().calculate(*args, **kwargs)


def test_interrupted_simulation_keeps_its_files(tmp_path):
    config = SimulationConfig(**CONFIG, threshold=0.011)
    summary = run_simulation(make_atoms(), Interrupting(), config, tmp_path, progress=False)
    assert summary.stop_reason == "interrupted"
    assert summary.n_steps == 19
    assert len(read_rows(tmp_path / LOG)) == 20
    assert len(read(tmp_path / "flagged.extxyz", ":")) == summary.n_events > 0
    assert "ended early: interrupted" in str(summary)


def test_structure_that_the_calculator_refuses(tmp_path):
    class Refusing(Interrupting):
        error = ValueError("atoms 0 and 1 overlap")

    config = SimulationConfig(**CONFIG, threshold=1.0)
    summary = run_simulation(make_atoms(), Refusing(), config, tmp_path / "a", progress=False)
    assert summary.stop_reason == "the step after 19 failed: atoms 0 and 1 overlap"

    Refusing.after = 0
    with pytest.raises(ValueError, match="overlap"):
        run_simulation(make_atoms(), Refusing(), config, tmp_path / "b", progress=False)


def test_exploding_simulation_is_stopped_as_unphysical(tmp_path):
    class Exploding(FakePotential):
        def calculate(self, *args, **kwargs):
            super().calculate(*args, **kwargs)
            if self.n_evaluations > 10:
                self.results["forces"][:] = np.nan

    config = SimulationConfig(**CONFIG, threshold=0.0001, label_spacing=1)
    reference = FakePotential()
    summary = run_simulation(make_atoms(), Exploding(), config, tmp_path, reference, progress=False)
    assert "unphysical frame at step 10: forces" in summary.stop_reason
    assert reference.n_evaluations == 10
    assert len(read(tmp_path / "recalculated.extxyz", ":")) == 10


def test_earlier_run_is_not_overwritten_by_accident(tmp_path):
    config = SimulationConfig(**(CONFIG | {"n_steps": 2}), threshold=1.0)
    for _ in range(2):
        run_simulation(
            make_atoms(), FakePotential(), config, tmp_path, progress=False, overwrite=True
        )
    assert len(read_rows(tmp_path / LOG)) == 3
    with pytest.raises(FileExistsError, match="files of an earlier run"):
        run_simulation(make_atoms(), FakePotential(), config, tmp_path, progress=False)


def test_progress_bar_goes_to_stderr(tmp_path, capsys):
    config = SimulationConfig(**(CONFIG | {"n_steps": 5}), threshold=1.0)
    run_simulation(make_atoms(), FakePotential(), config, tmp_path)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "MD" in captured.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature_K": -1.0}, "temperature_K must be positive"),
        ({"n_steps": 0}, "n_steps must be positive"),
        ({"interval": 0}, "interval must be positive"),
        ({"trajectory_interval": 0}, "trajectory_interval must be positive"),
        ({"integrator": "verlet"}, "unknown integrator"),
        ({"action": "panic"}, "action must be"),
        ({"schedule": ((100, 500.0),)}, "between 0 and 60"),
        ({"schedule": ((20, 500.0), (10, 600.0))}, "must increase"),
        ({"schedule": ((20, 0.0),)}, "must be positive"),
        ({"schedule": ((20, 500.0),), "integrator": "velocity_verlet"}, "needs a thermostat"),
        ({"final_temperature_K": 9.0, "integrator": "velocity_verlet"}, "needs a thermostat"),
        ({"final_temperature_K": np.inf}, "positive and finite, not \\[inf\\]"),
        ({"final_temperature_K": 9.0, "schedule": ((20, 500.0),)}, "not both"),
    ],
)
def test_bad_configuration(change, message):
    with pytest.raises(ValueError, match=message):
        SimulationConfig(**(CONFIG | change))


@pytest.mark.parametrize("name", ["emt", "lj", "LJ"])
def test_reference_calculators(name):
    assert isinstance(reference_calculator(name), Calculator)


def test_tblite_reference():
    pytest.importorskip("tblite")
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.75]], calculator=reference_calculator("gfn2"))
    assert -30 < atoms.get_potential_energy() < -20


def test_reference_that_is_unknown_or_not_installed(monkeypatch):
    with pytest.raises(ValueError, match=r"'dft'; known: gfn2, gfn1, emt, lj"):
        reference_calculator("dft")
    modules = __import__("sys").modules
    monkeypatch.setitem(modules, "tblite.ase", None)
    monkeypatch.delitem(modules, "ase_bayesmlip.md.reference_xtb", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'ase-bayesmlip\[demo\]'"):
        reference_calculator("gfn1")


def test_log_makes_a_figure(tmp_path):
    config = SimulationConfig(**CONFIG, threshold=0.015, label_spacing=1)
    run_simulation(
        make_atoms(), FakePotential(), config, tmp_path, FakePotential(7.0), progress=False
    )
    log = read_log(tmp_path / LOG)
    assert log["step"].shape == (61,)
    assert log["flagged"].dtype == bool
    assert np.isnan(log["force_rmse"]).sum() == (~log["flagged"]).sum()
    path = monitored_md_figure(log, tmp_path / "figure.png", regions=[(30.0, 60.0, "1200 K")])
    assert path.read_bytes().startswith(b"\x89PNG")


def test_figure_of_a_relaxation_without_reference(tmp_path):
    from ase.optimize import BFGS

    dyn = BFGS(make_atoms(FakePotential()), logfile=None)
    dyn.attach(UncertaintyMonitor(dyn, threshold=1.0, log=tmp_path / LOG))
    dyn.run(fmax=0.01, steps=10)
    assert monitored_md_figure(read_log(tmp_path / LOG), tmp_path / "figure.svg").stat().st_size > 0
