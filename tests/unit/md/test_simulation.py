"""A whole monitored run around a closed-form potential: files, order of checks, labels."""

from contextlib import nullcontext

import numpy as np
import pytest
from ase import units
from ase.calculators.lj import LennardJones
from ase.io import read
from fake_potential import ANCHORS, FakePotential, make_atoms
from odd_references import Answers

from ase_bayesmlip.md.simulation import SimulationConfig, run_simulation
from ase_bayesmlip.report import read_log

OLD = ("trajectory.extxyz", "monitor.csv", "recalculated.extxyz", "flagged.extxyz", "figure.png")


def simulate(out, reference=None, overwrite=False, calculator=None, **settings):
    settings = {
        "temperature_K": 20.0,
        "n_steps": 60,
        "threshold": 0.0,
        "integrator": "velocity_verlet",
        **settings,
    }
    return run_simulation(
        make_atoms(),
        calculator or FakePotential(),
        SimulationConfig(**settings),
        out,
        reference,
        progress=False,
        overwrite=overwrite,
    )


@pytest.fixture
def out(tmp_path):
    """A folder with an earlier run."""
    for name in OLD:
        (tmp_path / name).write_text(f"62 labels in {name}")
    return tmp_path


def snapshot(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


BAD = [
    {"score": "vibes"},
    {"threshold": None, "false_alarm_rate": 0.01},
    {"threshold": np.nan},
    {"upper_limit": -1.0},
    {"budget": -1},
    {"on_budget": "go"},
    {"patience": 0},
    {"cooldown": -1},
    {"integrator": "leapfrog"},
    {"n_steps": 0},
    {"time_step_fs": np.inf},
    {"temperature_K": np.nan},
    {"seed": -1},
    {"action": "jump"},
    {"frames_between_false_alarms": 1e5},
    {"reference": "ccsdt"},
    {"reference": "odd_references:NUMBER"},
    {"reference": "lj", "label_spacing": "often"},
    {"reference": "lj", "label_spacing": 0},
    {"reference": "lj", "max_labels": -1},
    {"reference": "lj", "force_limit": "no"},
    {"reference": "lj", "label_timeout_s": -1.0},
    pytest.param({"calculator": LennardJones()}, id="without uncertainties"),
]


@pytest.mark.parametrize("settings", BAD, ids=str)
def test_nothing_of_an_earlier_run_is_touched_before_all_is_checked(out, settings):
    before = snapshot(out)
    with pytest.raises((ValueError, NotImplementedError)):
        simulate(out, overwrite=True, **settings)
    assert snapshot(out) == before
    with pytest.raises(FileExistsError, match="choose another folder"):
        simulate(out)
    assert snapshot(out) == before


def test_an_earlier_run_makes_place_when_the_new_one_has_ended(out):
    simulate(out, overwrite=True, n_steps=3)
    left = snapshot(out)
    assert left.keys() == {"trajectory.extxyz", "monitor.csv", "flagged.extxyz"}
    assert not any(b"62 labels" in content for content in left.values())


class Breaks(FakePotential):
    """Stands for a simulation that ends in its n-th evaluation."""

    def __init__(self, error, n):
        super().__init__()
        self.error, self.n = error, n

    def calculate(self, *args, **kwargs):
        if self.n_evaluations == self.n:
            raise self.error
        super().calculate(*args, **kwargs)


@pytest.mark.parametrize("error", [ValueError("exploded"), KeyboardInterrupt(), OSError("full")])
def test_an_earlier_run_is_kept_when_the_new_one_ends_early(out, error):
    before = snapshot(out)
    raised = pytest.raises(OSError, match="full") if isinstance(error, OSError) else nullcontext()
    kept = pytest.warns(UserWarning, match="the earlier one is kept in .*earlier_run_1")
    with kept, raised:
        simulate(out, overwrite=True, calculator=Breaks(error, 4))
    assert snapshot(out / "earlier_run_1") == before
    assert len(read(out / "flagged.extxyz", ":")) == 4


def test_labels_are_spaced_by_default_and_counted(tmp_path):
    """Every frame is flagged, and frames of an oscillation are alike for a while."""
    summary = simulate(tmp_path / "a", "odd_references:lennard_jones", n_steps=200)
    frames = read(tmp_path / "a" / "recalculated.extxyz", ":")
    steps = [frame.info["step"] for frame in frames]
    assert steps[0] == 0
    assert np.diff(steps).min() >= 10
    assert {frame.info["reference"] for frame in frames} == {"odd_references:lennard_jones"}
    assert (summary.n_recalculated, summary.n_failed) == (len(frames), 0)
    assert summary.n_correlated == 201 - len(frames)
    assert f"{len(frames)} asked for, 0 of them failed; {summary.n_correlated} flagged" in str(
        summary
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"label_spacing": 7}, [0, 7, 14]),
        ({"label_spacing": 7, "max_labels": 2}, [0, 7]),
        ({"continue_on_reference": True, "max_labels": None}, list(range(21))),
        ({"max_labels": 0}, []),
    ],
)
def test_labels_as_asked_for(tmp_path, settings, expected):
    reference = FakePotential(stiffness=7.0)
    summary = simulate(tmp_path, reference, n_steps=20, **settings)
    assert reference.n_evaluations == len(expected)
    assert summary.n_recalculated + summary.n_correlated + summary.n_over_budget == 21
    if expected:
        frames = read(tmp_path / "recalculated.extxyz", ":")
        assert [frame.info["step"] for frame in frames] == expected
    else:
        assert summary.n_over_budget == 21


def test_failures_count_towards_the_budget(tmp_path):
    with pytest.warns(UserWarning, match="the reference calculator failed"):
        summary = simulate(tmp_path, Answers(forces=np.ones((1, 3))), n_steps=20, max_labels=2)
    assert (summary.n_recalculated, summary.n_failed) == (0, 2)
    assert "2 asked for, 2 of them failed" in str(summary)
    assert not (tmp_path / "recalculated.extxyz").exists()


def test_labels_of_the_file_are_those_of_the_reference(tmp_path):
    simulate(tmp_path, FakePotential(stiffness=7.0), n_steps=20)
    for frame in read(tmp_path / "recalculated.extxyz", ":"):
        np.testing.assert_allclose(frame.arrays["REF_forces"], -7.0 * (frame.positions - ANCHORS))
        assert "reference" in frame.info


def test_a_ramp_sets_the_thermostat_before_every_step(tmp_path, monkeypatch):
    targets = []
    monkeypatch.setattr(
        "ase_bayesmlip.md.simulation.set_temperature", lambda _, target: targets.append(target)
    )
    settings = {"integrator": "langevin", "temperature_K": 100.0, "final_temperature_K": 200.0}
    simulate(tmp_path, n_steps=4, **settings)
    assert targets == pytest.approx([100.0, 125.0, 150.0, 175.0, 200.0])


def test_a_ramp_heats(tmp_path):
    """12 degrees of freedom: the last 300 of 1,500 steps should be at 910 K or so."""
    settings = {"integrator": "langevin", "friction_per_fs": 0.2, "threshold": 99.0}
    simulate(tmp_path, n_steps=1500, final_temperature_K=1000.0, **settings)
    temperature = read_log(tmp_path / "monitor.csv")["temperature_K"]
    assert temperature[:150].mean() < 300.0
    assert temperature[1200:].mean() == pytest.approx(902.0, rel=0.4)


def test_frames_are_written_apart_from_what_is_observed(tmp_path):
    simulate(tmp_path, n_steps=12, interval=2, trajectory_interval=4, threshold=99.0)
    frames = read(tmp_path / "trajectory.extxyz", ":")
    assert [frame.info["step"] for frame in frames] == [0, 4, 8, 12]
    assert list(read_log(tmp_path / "monitor.csv")["step"]) == [0, 2, 4, 6, 8, 10, 12]


def test_a_crystal_at_constant_pressure(tmp_path, calculator, cubic_co2):
    """With a served file: a ramp, a log of volumes and pressures, and a stop."""
    config = SimulationConfig(
        *(50.0, 6), threshold=0.0, integrator="npt", pressure_GPa=1.0, action="rewind"
    )
    summary = run_simulation(cubic_co2, calculator("small"), config, tmp_path, progress=False)
    assert "no trusted frame" in summary.stop_reason  # every frame is flagged
    config = SimulationConfig(
        *(50.0, 6), threshold=99.0, integrator="npt", final_temperature_K=60.0
    )
    run_simulation(cubic_co2, calculator("small"), config, tmp_path, None, False, overwrite=True)
    log = read_log(tmp_path / "monitor.csv")
    assert log["volume"][0] == pytest.approx(5.5**3)
    assert len(set(log["volume"])) == 7
    frame = read(tmp_path / "trajectory.extxyz", 0)
    kinetic = 2 * frame.get_kinetic_energy() / frame.get_volume()
    pressure = (kinetic - frame.get_stress()[:3].sum()) / 3 / units.GPa
    assert log["pressure_GPa"][0] == pytest.approx(pressure, rel=1e-6)


def test_a_molecule_has_no_pressure(tmp_path):
    with pytest.raises(ValueError, match="npt changes the volume of the cell"):
        simulate(tmp_path / "run", integrator="npt")
    assert not (tmp_path / "run").exists()
