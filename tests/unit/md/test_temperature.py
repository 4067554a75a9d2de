"""Temperatures: of what is free, of thermostats, and above which a frame is unphysical."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.constraints import FixAtoms, FixCom
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from crystal import TEMPERATURE_K, TIME_STEP, crystal
from dynamics import MD_CLASSES, SETTINGS, build
from fake_potential import FakePotential, make_atoms

from ase_bayesmlip.md.actions import Recalculate, Rewind
from ase_bayesmlip.md.integrators import make_integrator, set_temperature
from ase_bayesmlip.md.monitor import UncertaintyMonitor
from ase_bayesmlip.md.temperature import (
    TemperatureWatch,
    Thermometer,
    draw_velocities,
    target_temperature_K,
)


def test_thermometer_counts_what_is_free():
    atoms = crystal()
    kinetic = 2 * atoms.get_kinetic_energy() / units.kB
    assert Thermometer(atoms)() == pytest.approx(kinetic / 93)  # at rest
    read = Thermometer(atoms)
    atoms.arrays["momenta"][0] += 1.0
    assert read() == pytest.approx(atoms.get_temperature())  # drifting: 96
    atoms.set_constraint(FixAtoms(range(20)))
    atoms.set_momenta(atoms.get_momenta())
    assert read() == pytest.approx(2 * atoms.get_kinetic_energy() / units.kB / 36)
    atoms.set_constraint(FixAtoms(range(32)))
    assert read() == 0.0
    assert Thermometer(Atoms("H", momenta=[[1.0, 0, 0]]))() > 0.0
    assert Thermometer(Atoms("H2", positions=np.eye(3)[:2]))() == 0.0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in SETTINGS if name in MD_CLASSES])
def test_target_of_every_thermostat(name):
    dyn = build(name, crystal())
    if name == "VelocityVerlet":
        assert target_temperature_K(dyn) is None
        return
    assert target_temperature_K(dyn) == pytest.approx(TEMPERATURE_K)
    set_temperature(dyn, 900.0)
    assert target_temperature_K(dyn) == pytest.approx(900.0)


def heated(temperature_K, **settings):
    """A watch that has seen a first frame of 500 K, and what it says of another temperature."""
    atoms = crystal()
    dyn = VelocityVerlet(atoms, TIME_STEP)
    watch = TemperatureWatch(dyn, atoms, **{"limit_K": "auto"} | settings)
    assert watch() == ""
    atoms.set_momenta(atoms.get_momenta() * np.sqrt(temperature_K / watch.temperature_K))
    return watch()


def test_limit_of_the_temperature():
    assert heated(9_999.0) == ""
    assert "1.001e+04 K is above the limit of 1e+04 K" in heated(10_010.0)
    assert heated(1e6, limit_K=None) == ""
    assert "limit of 700 K" in heated(701.0, limit_K=700.0)
    for wrong in ("hot", 0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="max_temperature_K must be"):
            heated(300.0, limit_K=wrong)


def test_limit_follows_what_was_asked_for():
    atoms = crystal(temperature_K=3_000.0)
    watch = TemperatureWatch(VelocityVerlet(atoms, TIME_STEP), atoms, "auto")
    watch()
    assert watch.limit_K == pytest.approx(10 * watch.temperature_K)
    assert watch.limit_K > 20_000.0
    dyn = build("Langevin", crystal())
    watch = TemperatureWatch(dyn, dyn.atoms, "auto")
    watch()
    assert watch.limit_K == 10_000.0
    for target in (4_000.0, 300.0):  # what was asked for once stays
        dyn.set_temperature(temperature_K=target)
        assert watch.limit_K == pytest.approx(40_000.0)


@pytest.mark.parametrize("spoil", [np.nan, np.inf, 1e6])
def test_hot_frames_are_neither_trusted_nor_recalculated(spoil):
    atoms = make_atoms(FakePotential())
    draw_velocities(atoms, 300.0, np.random.default_rng(0))
    dyn = VelocityVerlet(atoms, 1.0 * units.fs)
    reference, rewind = Recalculate(FakePotential()), Rewind()
    monitor = UncertaintyMonitor(dyn, threshold=1e-9, actions=[reference])
    calm = UncertaintyMonitor(dyn, threshold=1e9, actions=[rewind])

    def disturb():
        if dyn.nsteps == 2:
            atoms.arrays["momenta"][1] = spoil

    for observer in (disturb, monitor, calm):
        dyn.attach(observer)
    dyn.run(9)
    assert dyn.nsteps == 2
    assert [event.kind for event in monitor.events] == ["uncertain", "uncertain", "unphysical"]
    assert ("temperature" if spoil == 1e6 else "momenta of atoms [1]") in monitor.stop_reason
    assert len(reference.records) == 2
    assert [snapshot.step for snapshot in rewind._snapshots] == [1]
    assert (monitor.row["temperature_K"] is None) == (spoil != 1e6)


def test_a_relaxation_has_no_temperature():
    atoms = make_atoms(FakePotential(), displacement=0.2)
    atoms.set_momenta(np.full((4, 3), 1e6))
    dyn = BFGS(atoms, logfile=None)
    monitor = UncertaintyMonitor(dyn, threshold=1.0)
    dyn.attach(monitor)
    dyn.run(fmax=1e-3, steps=3)
    assert monitor.n_flagged == 0
    assert monitor.row["temperature_K"] is None


@pytest.mark.parametrize("temperature_K", [None, 800.0])
def test_velocities_are_drawn_for_what_is_free(temperature_K):
    """Momenta that held atoms are said to have count for nothing, and are removed."""
    atoms = crystal(FixAtoms(range(20)))
    before = Thermometer(atoms)()
    atoms.arrays["momenta"][:20] = 50.0
    draw_velocities(atoms, temperature_K, np.random.default_rng(0))
    assert not atoms.get_momenta()[:20].any()
    if temperature_K is None:
        assert Thermometer(atoms)() == pytest.approx(before, rel=1e-12)
    else:  # 36 degrees of freedom: four standard errors
        error = 4 * np.sqrt(2 / 36)
        assert Thermometer(atoms)() == pytest.approx(temperature_K, rel=error)


def test_velocities_of_atoms_that_are_all_held():
    atoms = crystal(FixAtoms(range(32)))
    draw_velocities(atoms, None, np.random.default_rng(0))
    assert not atoms.get_momenta().any()


def test_velocities_have_the_temperature_beside_a_fixed_centre_of_mass():
    values = []
    for seed in range(40):
        atoms = crystal(FixCom())
        draw_velocities(atoms, 300.0, np.random.default_rng(seed))
        np.testing.assert_allclose(atoms.get_momenta().sum(axis=0), 0.0, atol=1e-10)
        values.append(Thermometer(atoms)())
    assert np.mean(values) == pytest.approx(300.0, rel=4 * np.sqrt(2 / 93 / 40))


@pytest.mark.parametrize("name", ["bussi", "nose_hoover"])
def test_thermostats_count_what_they_move(name):
    """A small molecule: 24 of 27 degrees of freedom, where ASE counts 27."""
    atoms = Atoms("H9", positions=np.arange(27.0).reshape(9, 3), calculator=None)
    draw_velocities(atoms, 300.0, np.random.default_rng(0))
    settings = {"temperature_K": 300.0, "time_step_fs": 1.0, "friction_per_fs": 0.01}
    dyn = make_integrator(name, atoms, generator=np.random.default_rng(0), **settings)
    set_temperature(dyn, 400.0)
    if name == "bussi":
        assert dyn.target_kinetic_energy == pytest.approx(12 * units.kB * 400.0)
    else:
        thermostat = dyn._thermostat
        assert 3 * thermostat._num_atoms_global == pytest.approx(24)
        assert thermostat._Q[0] == pytest.approx(24 * units.kB * 400.0 * (100 * units.fs) ** 2)
        assert thermostat._Q[1] == pytest.approx(units.kB * 400.0 * (100 * units.fs) ** 2)
    assert target_temperature_K(dyn) == pytest.approx(400.0)
