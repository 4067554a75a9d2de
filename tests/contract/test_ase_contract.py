"""ASE and what builds on it keep working when our results are present."""

import importlib
import json
import pickle
from copy import deepcopy

import numpy as np
import pytest
from ase import units
from ase.calculators.calculator import all_properties
from ase.calculators.fd import FiniteDifferenceCalculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.filters import FrechetCellFilter
from ase.io import Trajectory, read, write
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from ase.outputs import all_outputs

from ase_bayesmlip.calculator import BayesianCalculator

STANDARD = ["energy", "free_energy", "energies", "forces"]


@pytest.fixture
def molecule(calculator, ethanol):
    ethanol.calc = calculator(return_members=True)
    ethanol.get_potential_energy()
    return ethanol


@pytest.fixture
def crystal(calculator, strained_co2):
    strained_co2.calc = calculator(return_members=True)
    strained_co2.get_potential_energy()
    return strained_co2


# --- Forces and stress are derivatives of the energy. ---


def displaced(atoms, step):
    """Structures with each coordinate moved by -2, -1, 1 and 2 steps."""
    for index in np.ndindex(len(atoms), 3):
        for shift in (-2, -1, 1, 2):
            moved = atoms.copy()
            moved.positions[index] += shift * step
            yield moved


def strained(atoms, step):
    """Structures under -2, -1, 1 and 2 steps of each strain in Voigt order."""
    for a, b in [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]:
        for shift in (-2, -1, 1, 2):
            deformation = np.eye(3)
            deformation[a, b] += 0.5 * shift * step
            deformation[b, a] += 0.5 * shift * step
            moved = atoms.copy()
            moved.set_cell(atoms.cell @ deformation, scale_atoms=True)
            yield moved


def derivative(values, step):
    """First derivative of fourth order from values at -2, -1, 1 and 2 steps, (n, 4, ...)."""
    values = np.moveaxis(values, 1, 0)
    return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)


@pytest.mark.parametrize("name", ["ensemble", "race"])
@pytest.mark.parametrize("structure", ["ethanol", "small_cell"])
def test_forces_and_stress_by_finite_differences(request, calculator, structure, name):
    atoms = request.getfixturevalue(structure)
    atoms.calc = calculator(name)
    step = 3e-4

    def energies(frames):
        results = atoms.calc.evaluate(list(frames), batch_size=36)
        return np.array([result["energy"] for result in results]).reshape(-1, 4)

    forces = atoms.get_forces()
    numerical = -derivative(energies(displaced(atoms, step)), step).reshape(-1, 3)
    assert np.abs(forces).max() > 0.01
    assert np.abs(forces - numerical).max() < 1e-6
    assert np.abs(forces.sum(axis=0)).max() < 1e-9
    if structure == "small_cell":
        stress = atoms.get_stress()
        numerical = derivative(energies(strained(atoms, step)), step) / atoms.get_volume()
        assert np.abs(stress).max() > 1e-3
        assert np.abs(stress - numerical).max() < 1e-6


def test_forces_and_stress_by_the_finite_differences_of_ase(calculator, small_cell):
    calc = calculator("small")
    numerical = FiniteDifferenceCalculator(calc, eps_disp=1e-4, eps_strain=1e-4)
    numerical.calculate(small_cell, ["energy"], [])
    calc.calculate(small_cell)
    for name in ("energy", "forces", "stress"):
        assert np.abs(np.subtract(calc.results[name], numerical.results[name])).max() < 1e-6


def test_stress_of_every_member_is_a_derivative(calculator, small_cell):
    calc = calculator("race", return_members=True)
    calc.calculate(small_cell)
    results = calc.evaluate(list(strained(small_cell, 3e-4)))
    energies = np.array([result["energy_ensemble"] for result in results]).reshape(6, 4, -1)
    numerical = derivative(energies, 3e-4) / small_cell.get_volume()
    assert np.abs(calc.results["stress_ensemble"] - numerical.T).max() < 1e-6


# --- Names that ASE knows pass, others stay out of its way. ---


def test_results_hold_more_than_ase_knows(molecule):
    assert not set(molecule.calc.results) <= set(all_outputs)


@pytest.mark.parametrize("structure", ["molecule", "crystal"])
def test_get_properties_and_export(request, structure):
    atoms = request.getfixturevalue(structure)
    wanted = ["energy", "forces"] + (["stress"] if structure == "crystal" else [])
    properties = atoms.get_properties(wanted)
    exported = atoms.calc.export_properties()
    # ASE's own container adds the number of atoms.
    assert set(exported) - {"natoms"} == {*STANDARD, *wanted} <= set(all_properties)
    for name in exported:
        if name != "natoms":
            assert np.array_equal(exported[name], atoms.calc.results[name])
    for name in wanted:
        assert np.array_equal(properties[name], atoms.calc.results[name])


def test_usual_getters(crystal):
    results = crystal.calc.results
    assert crystal.get_potential_energy() == results["energy"]
    assert crystal.get_potential_energy(force_consistent=True) == results["energy"]
    assert np.array_equal(crystal.get_potential_energies(), results["energies"])
    assert np.array_equal(crystal.get_forces(), results["forces"])
    assert np.array_equal(crystal.get_stress(), results["stress"])
    matrix = crystal.get_stress(voigt=False)
    assert np.array_equal(matrix[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]], results["stress"])


def test_single_point_calculator(crystal):
    exported = dict(crystal.calc.export_properties())
    del exported["natoms"]
    single = SinglePointCalculator(crystal, **exported)
    copy = crystal.copy()
    copy.calc = single
    assert copy.get_potential_energy() == crystal.get_potential_energy()
    assert np.array_equal(copy.get_stress(), crystal.get_stress())


def test_todict_is_serialisable(calculator, served):
    calc = calculator("point", skin=0.25)
    settings = json.loads(json.dumps(calc.todict()))
    assert settings == {
        "model": str(served("point")),
        "device": "cpu",
        "dtype": "float64",
        "backend": "torchscript",
        "skin": 0.25,
        "return_members": False,
        "lazy": False,
    }
    assert calc.name == "bayesiancalculator"
    rebuilt = type(calc)(**settings)
    assert rebuilt.todict() == settings


# --- Files. ---


def assert_same_results(found, atoms, tolerance=0.0):
    """Compare what a file gave back with the original's standard results."""
    expected = atoms.calc.export_properties()
    for name in ("energy", "forces", "stress"):
        if name not in expected:
            continue
        deviation = np.abs(np.subtract(found.calc.results[name], expected[name])).max()
        assert deviation <= tolerance, (name, deviation)


@pytest.mark.parametrize("structure", ["molecule", "crystal"])
@pytest.mark.parametrize(
    ("suffix", "tolerance"), [("extxyz", 1e-8), ("traj", 0.0), ("json", 0.0), ("db", 0.0)]
)
def test_files_keep_the_standard_results(request, tmp_path, structure, suffix, tolerance):
    atoms = request.getfixturevalue(structure)
    path = tmp_path / f"frame.{suffix}"
    write(path, atoms)
    found = read(path)
    assert np.allclose(found.positions, atoms.positions, rtol=0, atol=1e-8)
    assert_same_results(found, atoms, tolerance)


def test_database(crystal, tmp_path):
    with connect(tmp_path / "frames.db") as database:
        row_id = database.write(crystal, source="test")
        row = database.get(id=row_id)
    assert row.energy == crystal.get_potential_energy()
    assert row.calculator == "bayesiancalculator"
    assert row.calculator_parameters["dtype"] == "float64"
    assert np.array_equal(row.forces, crystal.get_forces())


def test_trajectory_attached_to_dynamics(molecule, tmp_path):
    path = tmp_path / "md.traj"
    dyn = VelocityVerlet(molecule, timestep=0.2 * units.fs)
    with Trajectory(path, "w", molecule) as trajectory:
        dyn.attach(trajectory, interval=2)
        dyn.run(6)
    frames = read(path, ":")
    assert len(frames) == 4
    assert_same_results(frames[-1], molecule)
    assert frames[-1].calc.name == "bayesiancalculator"


def test_dynamics_evaluates_once_a_step(counted, ethanol):
    model = counted("race")
    ethanol.calc = BayesianCalculator(model)
    dyn = VelocityVerlet(ethanol, timestep=0.2 * units.fs)
    read_back = []
    dyn.attach(lambda: read_back.append(ethanol.calc.get_property("forces_std", ethanol)))
    dyn.attach(ethanol.get_total_energy)
    dyn.run(5)
    assert model.module.calls == 6
    assert len(read_back) == 6


def test_relaxation_of_positions_and_cell(calculator, small_cell, tmp_path):
    small_cell.calc = calculator("race")
    before = small_cell.get_potential_energy()
    with BFGS(FrechetCellFilter(small_cell), logfile=None) as optimizer:
        optimizer.run(fmax=0.01, steps=4)
    assert small_cell.get_potential_energy() < before


# --- Uncertainties travel in extended XYZ. ---


@pytest.mark.parametrize("prefix", ["", "race_"])
@pytest.mark.parametrize("structure", ["molecule", "crystal"])
def test_attached_uncertainty_survives_extxyz(request, tmp_path, structure, prefix):
    atoms = request.getfixturevalue(structure)
    results = atoms.calc.results
    atoms.calc.attach_uncertainty(atoms, prefix=prefix)
    path = tmp_path / "frame.extxyz"
    write(path, [atoms, atoms])
    assert f"{prefix}forces_cov:R:9" in path.read_text()
    found = read(path, 1)
    assert_same_results(found, atoms, 1e-8)
    for name in ("forces_cov", "forces_cov_epistemic", "forces_cov_aleatoric"):
        matrices = found.arrays[prefix + name].reshape(-1, 3, 3)
        assert np.allclose(matrices, results[name], rtol=0, atol=1e-8), name
    for name in ("energies_var", "forces_var", "forces_uncertainty", "forces_std"):
        assert np.allclose(found.arrays[prefix + name], results[name], rtol=0, atol=1e-8), name
    for name in ("energy_var", "energy_var_epistemic", "energy_uncertainty"):
        assert found.info[prefix + name] == pytest.approx(results[name], rel=1e-12), name
    assert (prefix + "stress_cov" in found.info) == (structure == "crystal")
    if structure == "crystal":
        for name in ("stress_cov", "stress_var"):
            assert np.allclose(found.info[prefix + name], results[name], rtol=1e-12), name


@pytest.mark.parametrize("suffix", ["traj", "json", "db"])
def test_attached_uncertainty_does_not_break_other_formats(crystal, tmp_path, suffix):
    crystal.calc.attach_uncertainty(crystal)
    write(tmp_path / f"frame.{suffix}", crystal)
    assert_same_results(read(tmp_path / f"frame.{suffix}"), crystal)


# --- Copies. ---


def test_copy_of_atoms_leaves_the_calculator(molecule):
    copy = molecule.copy()
    assert copy.calc is None
    copy.calc = molecule.calc
    assert np.array_equal(copy.get_forces(), molecule.get_forces())


def test_deepcopy_is_independent(molecule):
    copy = deepcopy(molecule)
    expected = molecule.get_forces()
    copy.positions[0, 0] += 0.1
    moved = copy.get_forces()
    assert np.array_equal(molecule.get_forces(), expected)
    assert not np.allclose(moved, expected)
    copy.positions[:] = molecule.positions
    assert np.allclose(copy.get_forces(), expected, rtol=0, atol=1e-10)


# --- i-PI drives ASE calculators through `get_properties`. ---


def test_ipi_driver(calculator, strained_co2, tmp_path):
    ipi = pytest.importorskip("ipi.pes._ase", reason="needs i-PI")

    class Driver(ipi.ASEDriver):
        def check_parameters(self):
            super().check_parameters()
            self.ase_calculator = calculator(return_members=True)

    template = tmp_path / "template.extxyz"
    write(template, strained_co2)
    driver = Driver(str(template))
    expected = driver.ase_calculator.evaluate([strained_co2])[0]
    to_atomic = importlib.import_module("ipi.utils.units").unit_to_internal
    potential, force, virial, extras = driver(
        to_atomic("length", "angstrom", strained_co2.cell.array.T),
        to_atomic("length", "angstrom", strained_co2.positions),
    )
    stress = expected["stress"][[0, 5, 4, 5, 1, 3, 4, 3, 2]].reshape(3, 3)
    work = -stress * strained_co2.get_volume()
    energy = to_atomic("energy", "electronvolt", expected["energy"])
    assert potential == pytest.approx(energy, rel=1e-10)
    assert np.allclose(force, to_atomic("force", "ev/ang", expected["forces"]), rtol=0, atol=1e-9)
    wanted = to_atomic("energy", "electronvolt", work)
    assert np.allclose(virial.reshape(3, 3), wanted, rtol=0, atol=1e-9)
    assert set(json.loads(extras)) - {"natoms"} == {"free_energy", "energies"}


def test_results_can_be_pickled(crystal):
    assert pickle.loads(pickle.dumps(crystal.calc.results)).keys() == crystal.calc.results.keys()
