"""Dynamics keep the constraints and the temperature of what is free, or are refused."""

import re

import numpy as np
import pytest
from ase import Atoms, units
from ase.constraints import (
    FixAtoms,
    FixBondLengths,
    FixCartesian,
    FixCom,
    FixedLine,
    FixedMode,
    FixedPlane,
    FixInternals,
    FixScaled,
    FixSubsetCom,
    Hookean,
)
from ase.md.bussi import Bussi
from ase.md.verlet import VelocityVerlet
from crystal import COUPLING, TEMPERATURE_K, TIME_STEP, crystal
from dynamics import MD_CLASSES, SETTINGS, build

from ase_bayesmlip.md.barostat import BAROSTATS
from ase_bayesmlip.md.constraints import degrees_of_freedom, held_atoms
from ase_bayesmlip.md.integrators import INTEGRATORS, make_integrator
from ase_bayesmlip.md.monitor import UncertaintyMonitor
from ase_bayesmlip.md.temperature import Thermometer

NEAR = [int(k) for k in np.argsort(crystal().get_distances(0, range(32)))[1:3]]
MODE = np.random.default_rng(1).standard_normal((32, 3))
SIX = range(6)


def fix_internals():
    bond = [crystal().get_distance(0, NEAR[0]), [0, NEAR[0]]]
    return FixInternals(bonds=[bond])


CONSTRAINTS = {
    "FixAtoms": lambda: FixAtoms(range(20)),
    "FixCom": FixCom,
    "FixSubsetCom": lambda: FixSubsetCom(range(10)),
    "FixCartesian": lambda: FixCartesian(list(SIX), (True, False, True)),
    "FixScaled": lambda: FixScaled(list(SIX), (True, False, True)),
    "FixedPlane": lambda: FixedPlane(list(SIX), (1, 1, 0)),
    "FixedLine": lambda: FixedLine(list(SIX), (1, 1, 0)),
    "FixedMode": lambda: FixedMode(MODE),
    "FixBondLengths": lambda: FixBondLengths([[0, NEAR[0]], [0, NEAR[1]]]),
    "FixInternals": fix_internals,
}
HOLDING = {"none": list, "FixAtoms": lambda: FixAtoms(range(8)), "FixCom": FixCom}
NONLINEAR = {"FixBondLengths", "FixInternals"}


def deviation(name, atoms, start):
    """How far a frame is from keeping a constraint, Å."""
    moved = atoms.positions - start
    match name:
        case "FixAtoms":
            return np.abs(moved[:20]).max()
        case "FixCom" | "FixSubsetCom":
            return np.abs(
                moved[:10].mean(axis=0) if name == "FixSubsetCom" else moved.mean(0)
            ).max()
        case "FixCartesian" | "FixScaled":
            return np.abs(moved[:6, [0, 2]]).max()
        case "FixedPlane":
            return np.abs(moved[:6] @ [1, 1, 0]).max()
        case "FixedLine":
            return max(np.abs(moved[:6, 0] - moved[:6, 1]).max(), np.abs(moved[:6, 2]).max())
        case "FixedMode":
            return abs(np.vdot(moved, MODE)) / np.linalg.norm(MODE)
        case _:
            pairs = [[0, NEAR[0]]] + ([[0, NEAR[1]]] if name == "FixBondLengths" else [])
            lengths = [
                [np.linalg.norm(x[i] - x[j]) for i, j in pairs] for x in (atoms.positions, start)
            ]
            return np.abs(np.subtract(*lengths)).max()


def accepted(name, atoms):
    """Dynamics that a monitor takes, or None and the refusal."""
    try:
        dyn = build(name, atoms)
        watched(dyn)
    except (ValueError, NotImplementedError) as error:
        return str(error), None
    return "", dyn


def watched(dyn):
    return UncertaintyMonitor(dyn, threshold=1.0, score=lambda *_: 0.0)


@pytest.mark.prints  # Melchionna's dynamics do
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", CONSTRAINTS)
@pytest.mark.parametrize("name", [name for name in SETTINGS if name in MD_CLASSES])
def test_constraints_are_kept_or_refused(name, kind):
    atoms = crystal(CONSTRAINTS[kind]())
    start = atoms.get_positions()
    refusal, dyn = accepted(name, atoms)
    if dyn is None:
        # By ASE itself, or with the name of a class that keeps them.
        assert re.search(rf"not support constraints|{kind}.*(Langevin|bussi)", refusal)
        return
    dyn.run(25)
    assert deviation(kind, atoms, start) < 1e-6


# What a user needs must not be refused as well.
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        *((name, set(CONSTRAINTS)) for name in ("VelocityVerlet", "Langevin", "Andersen")),
        *((name, set(CONSTRAINTS) - {"FixedMode"}) for name in ("Bussi", "NVTBerendsen")),
        ("LangevinBAOAB", set(CONSTRAINTS) - NONLINEAR),
        *((name, set()) for name in ("NoseHooverChainNVT", "MelchionnaNPT", "NPTBerendsen")),
    ],
)
@pytest.mark.prints
@pytest.mark.filterwarnings("ignore")
def test_accepted_constraints(name, kinds):
    if name not in MD_CLASSES:
        pytest.skip("not in this ASE")
    found = {kind for kind, make in CONSTRAINTS.items() if accepted(name, crystal(make()))[1]}
    assert found == kinds


@pytest.mark.skipif("LangevinBAOAB" not in MD_CLASSES, reason="new in ASE 3.27")
@pytest.mark.parametrize("kind", sorted(NONLINEAR))
def test_what_is_refused_would_be_lost(kind):
    atoms = crystal(CONSTRAINTS[kind]())
    start = atoms.get_positions()
    dyn = build("LangevinBAOAB", atoms)
    with pytest.raises(ValueError, match=rf"LangevinBAOAB does not keep .*{kind}.*'langevin'"):
        watched(dyn)
    dyn.run(40)
    assert deviation(kind, atoms, start) > 1e-5


@pytest.mark.slow
@pytest.mark.prints  # Melchionna's dynamics do
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [n for n in SETTINGS if n in MD_CLASSES and n != "VelocityVerlet"])
@pytest.mark.parametrize("kind", HOLDING)
def test_free_atoms_have_the_temperature_or_the_dynamics_are_refused(name, kind):
    """Within 10 %, which is 3.5 standard errors or more."""
    atoms = crystal(HOLDING[kind]())
    _, dyn = accepted(name, atoms)
    if dyn is None:
        assert kind != "none"
        return
    n_steps = 300 if "MTK" in name else 500  # slow steps
    assert mean_temperature(dyn, n_steps) == pytest.approx(TEMPERATURE_K, rel=0.1)


@pytest.mark.parametrize("name", [name for name in INTEGRATORS if name != "velocity_verlet"])
@pytest.mark.parametrize("kind", HOLDING)
def test_integrators_we_build_have_the_temperature_or_are_refused(name, kind):
    if name == "langevin_baoab":
        pytest.importorskip("ase.md.langevinbaoab", reason="new in ASE 3.27")
    atoms = crystal(HOLDING[kind]())
    settings = {
        "temperature_K": TEMPERATURE_K,
        "time_step_fs": TIME_STEP / units.fs,
        "friction_per_fs": units.fs / COUPLING,
        "generator": np.random.default_rng(4),
    }
    if name in ("nose_hoover", *BAROSTATS) and kind != "none":
        with pytest.raises(ValueError, match=rf"constraints of these atoms \({kind}\).*'bussi'"):
            make_integrator(name, atoms, **settings)
        return
    dyn = make_integrator(name, atoms, **settings)
    watched(dyn)
    assert mean_temperature(dyn) == pytest.approx(TEMPERATURE_K, rel=0.1)


def mean_temperature(dyn, n_steps=500):
    thermometer, values = Thermometer(dyn.atoms), []
    dyn.attach(lambda: values.append(thermometer()), interval=3)
    dyn.run(n_steps)
    return np.mean(values[len(values) // 6 :])


def test_andersen_at_rest_is_refused_beside_held_atoms():
    """It cools them: 431 K for 500 K asked, with 20 of 32 atoms held."""
    dyn = build("Andersen", crystal(FixAtoms(range(20))), fixcm=True)
    with pytest.raises(ValueError, match=r"Andersen .* fixcm=False"):
        watched(dyn)
    watched(build("Andersen", crystal(FixCom()), fixcm=True))


def test_constraints_that_contradict_each_other_are_refused():
    both = [[FixCom(), FixAtoms([0])], [FixAtoms([0]), FixBondLengths([[0, NEAR[0]]])]]
    for constraints in both:
        with pytest.raises(ValueError, match="contradict each other"):
            watched(VelocityVerlet(crystal(constraints), TIME_STEP))
    apart = [FixAtoms([30]), FixBondLengths([[0, NEAR[0]]]), FixedPlane([29], (0, 0, 1))]
    watched(VelocityVerlet(crystal(apart), TIME_STEP))


def test_a_thermostat_that_counts_wrong_is_refused():
    """ASE counts a coordinate twice that two constraints hold."""
    atoms = crystal([FixAtoms(range(12)), FixAtoms(range(6, 18))])
    with pytest.raises(ValueError, match=r"counts 24 degrees .* leave 42.*make_integrator"):
        watched(Bussi(atoms, TIME_STEP, TEMPERATURE_K, COUPLING))
    dyn = make_integrator(
        "bussi",
        atoms,
        temperature_K=TEMPERATURE_K,
        time_step_fs=2.0,
        friction_per_fs=0.025,
        generator=np.random.default_rng(0),
    )
    assert dyn.ndof == 42


def test_a_thermostat_has_something_to_hold_at_a_temperature():
    for build_it in (
        lambda atoms: watched(Bussi(atoms, TIME_STEP, TEMPERATURE_K, COUPLING)),
        lambda atoms: make_integrator(
            "bussi",
            atoms,
            temperature_K=TEMPERATURE_K,
            time_step_fs=2.0,
            friction_per_fs=0.025,
            generator=np.random.default_rng(0),
        ),
    ):
        atoms = crystal()
        momenta = atoms.get_momenta()
        atoms.set_constraint(FixAtoms(range(32)))
        atoms.arrays["momenta"] = momenta
        with pytest.raises(ValueError, match="leave no motion"):
            build_it(atoms)


def test_springs_are_no_constraint():
    spring = Hookean(0, NEAR[0], 5.0, rt=2.6)
    watched(build("NoseHooverChainNVT", crystal(spring)))
    assert degrees_of_freedom(crystal(spring)) == 96
    assert not held_atoms(crystal(spring)).any()


@pytest.mark.parametrize(
    ("constraints", "n_free"),
    [
        ([], 96),
        ([FixAtoms(range(20))], 36),
        ([FixAtoms(range(20)), FixAtoms(range(10, 30))], 6),
        ([FixAtoms([0, 1]), FixCartesian([1, 2], (True, False, False))], 89),
        ([FixCom()], 93),
        ([FixedMode(MODE)], 95),
        ([FixBondLengths([[0, 1], [0, 2]])], 94),
        ([FixedPlane([0, 1], (0, 0, 1)), FixedLine([2], (1, 0, 0))], 92),
        ([FixAtoms(range(32))], 0),
    ],
)
def test_degrees_of_freedom(constraints, n_free):
    assert degrees_of_freedom(crystal(constraints)) == n_free


class PlaneOfMyOwn:
    """Knows no number of degrees of freedom, as ASE's `FixSymmetry`."""

    def adjust_positions(self, atoms, new):
        new[:2, 2] = atoms.positions[:2, 2]

    def adjust_momenta(self, _atoms, momenta):
        momenta[:2, 2] = 0.0

    def adjust_forces(self, atoms, forces):
        self.adjust_momenta(atoms, forces)


def test_degrees_of_freedom_of_an_unknown_constraint_are_counted():
    atoms = Atoms("Cu3", positions=np.eye(3), constraint=PlaneOfMyOwn())
    assert degrees_of_freedom(atoms) == 7


def test_held_atoms():
    constraints = [
        FixAtoms([1]),
        FixCartesian([2], (True, True, True)),
        FixCartesian([3], (True, True, False)),
        FixCartesian([4], (True, False, False)),
        FixedLine([4], (1, 0, 0)),
    ]
    held = held_atoms(crystal(constraints))
    np.testing.assert_array_equal(np.flatnonzero(held), [1, 2, 4])
    assert not held_atoms(crystal(FixCom())).any()
