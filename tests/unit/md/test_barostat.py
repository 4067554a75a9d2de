"""Constant pressure: who may have it, what it counts, and that it holds the pressure."""

import numpy as np
import pytest
from ase import units
from ase.build import molecule
from ase.constraints import FixAtoms, Hookean
from ase.md.nose_hoover_chain import MTKNPT
from crystal import TEMPERATURE_K, crystal
from fake_potential import FakePotential

from ase_bayesmlip.md.barostat import BAROSTATS, cell_columns
from ase_bayesmlip.md.correlation import autocorrelation_time
from ase_bayesmlip.md.integrators import make_integrator, set_temperature
from ase_bayesmlip.md.simulation import SimulationConfig
from ase_bayesmlip.md.temperature import Thermometer, target_temperature_K

each_barostat = pytest.mark.parametrize("name", BAROSTATS)


def barostat(name, atoms, pressure_GPa=2.0):
    return make_integrator(
        name,
        atoms,
        temperature_K=TEMPERATURE_K,
        time_step_fs=2.0,
        friction_per_fs=0.05,
        generator=np.random.default_rng(0),
        pressure_GPa=pressure_GPa,
    )


@each_barostat
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pbc": False}, r"periodic in three directions, not pbc \[False, False, False\]"),
        ({"pbc": (True, True, False)}, "'langevin' for a molecule or a slab"),
        ({"cell": [8.0, 8.0, 0.0]}, "with 2 cell vectors"),
        ({"calc": FakePotential()}, r"needs the stress, .* \(FakePotential\) does not give"),
        ({"calc": None}, "needs the stress"),
        ({"constraints": FixAtoms([0])}, r"\(FixAtoms\).*'langevin' or 'bussi'"),
        ({"constraints": Hookean(0, 1, 5.0, rt=2.6)}, "Hookean"),
    ],
)
def test_what_has_no_pressure_is_refused(name, change, message):
    atoms = crystal()
    for attribute, value in change.items():
        if attribute == "constraints":
            atoms.set_constraint(value)
        else:
            setattr(atoms, attribute, value)
    with pytest.raises(ValueError, match=message):
        barostat(name, atoms)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pressure_GPa": 1.0}, "langevin has no barostat for a pressure of 1 GPa; take npt or"),
        ({"pressure_GPa": np.nan, "integrator": "npt"}, "pressure_GPa must be finite"),
    ],
)
def test_pressures_that_cannot_be_meant(settings, message):
    with pytest.raises(ValueError, match=message):
        SimulationConfig(temperature_K=300.0, n_steps=1, threshold=1.0, **settings)
    SimulationConfig(300.0, 1, threshold=1.0, integrator="npt", pressure_GPa=-1.0)


@each_barostat
def test_atoms_and_cell_are_counted_as_they_move(name):
    """93 of 96 degrees of freedom of the atoms; one of a volume, six of a symmetric strain."""
    dyn = barostat(name, crystal())
    assert 3 * dyn._num_atoms_global == pytest.approx(93)
    assert 3 * dyn._thermostat._num_atoms_global == pytest.approx(93)
    kT, slow = units.kB * TEMPERATURE_K, 200 * units.fs
    assert dyn._thermostat._Q[0] == pytest.approx(93 * kT * (20 * units.fs) ** 2)
    assert dyn._barostat._R[1] == pytest.approx(kT * slow**2)
    if name == "npt_full":
        assert dyn._barostat._cell_dof == 6
        assert dyn._barostat._R[0] == pytest.approx(6 * kT * slow**2)


@each_barostat
def test_a_new_temperature_keeps_the_time_constants(name):
    dyn, other = barostat(name, crystal()), barostat(name, crystal())
    set_temperature(dyn, 900.0)
    assert target_temperature_K(dyn) == pytest.approx(900.0)
    for part in ("_thermostat", "_barostat"):
        for attribute in ("_kT", "_Q", "_W", "_R"):
            if hasattr(getattr(dyn, part), attribute):
                new, old = (getattr(getattr(each, part), attribute) for each in (dyn, other))
                np.testing.assert_allclose(new, 1.8 * old)


@each_barostat
def test_the_conserved_quantity_is_conserved(name):
    """Of 96 degrees of freedom with 2 eV, while the volume changes by percents."""
    dyn = barostat(name, crystal(), pressure_GPa=4.0)
    values, volumes = [], []
    dyn.attach(lambda: values.append(dyn.get_conserved_energy()))
    dyn.attach(lambda: volumes.append(dyn.atoms.get_volume()))
    dyn.run(150)
    assert np.ptp(volumes) > 5.0
    assert np.ptp(values) < 0.02


def test_pressure_is_that_of_ase_with_the_motion():
    atoms = crystal()
    atoms.set_cell(0.98 * atoms.cell, scale_atoms=True)
    found = cell_columns(atoms, {"stress": atoms.get_stress()})
    expected = -np.trace(atoms.get_stress(voigt=False, include_ideal_gas=True)) / 3 / units.GPa
    assert found == {
        "volume": atoms.get_volume(),
        "pressure_GPa": pytest.approx(expected, rel=1e-12),
    }
    tensor = cell_columns(atoms, {"stress": atoms.get_stress(voigt=False)})
    assert tensor["pressure_GPa"] == pytest.approx(expected, rel=1e-12)
    assert cell_columns(atoms, {}) == {"volume": atoms.get_volume()}
    assert cell_columns(molecule("H2O"), {}) == {}


def sampled(name, pressure_GPa, n_steps):
    """Temperature of atoms and of the cell (K), pressure (GPa), volume (Å³): (n, 4)."""
    atoms = crystal()
    dyn = barostat(name, atoms, pressure_GPa)
    read, rows = Thermometer(atoms), []

    def note():
        moving = np.sum(dyn._p_g**2) / 6 if isinstance(dyn, MTKNPT) else dyn._p_eps**2
        cell = cell_columns(atoms, atoms.calc.results)
        rows.append([read(), moving / dyn._barostat.W / units.kB, *reversed(cell.values())])

    dyn.attach(note)
    dyn.run(n_steps)
    return np.array(rows[n_steps // 10 :])


@pytest.mark.slow
@each_barostat
def test_pressure_and_temperature_are_those_asked_for(name):
    """Within four standard errors; ASE's own count holds the cell of npt_full at 750 K."""
    rows = sampled(name, 2.0, 6000)
    for column, expected in ((0, TEMPERATURE_K), (1, TEMPERATURE_K), (2, 2.0)):
        values = rows[:, column]
        error = values.std() * np.sqrt(autocorrelation_time(values) / len(values))
        assert error < 0.3 * expected
        assert values.mean() == pytest.approx(expected, abs=4 * error)


@pytest.mark.slow
def test_the_volume_fluctuates_as_the_compressibility_says():
    """⟨δV²⟩ = -k_B T d⟨V⟩/dP, with the derivative from two other pressures; 27 Å⁶ here."""
    low, middle, high = (sampled("npt", pressure, 5000)[:, 3] for pressure in (0.0, 2.0, 4.0))
    slope = (high.mean() - low.mean()) / (4.0 * units.GPa)
    expected = -units.kB * TEMPERATURE_K * slope
    assert expected == pytest.approx(27.0, rel=0.05)
    assert middle.var() == pytest.approx(expected, rel=0.3)
