"""Every class of dynamics that ASE has repeats bit for bit after a rewind, or is refused."""

import numpy as np
import pytest
from ase import units
from ase.constraints import FixAtoms
from ase.md.md import MolecularDynamics
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from crystal import TIME_STEP, crystal
from dynamics import MD_CLASSES, SETTINGS, build

from ase_bayesmlip.md.actions import Rewind, Stop
from ase_bayesmlip.md.integrator_state import STATE, refresh_forces, refresh_momenta, state_names
from ase_bayesmlip.md.monitor import UncertaintyMonitor
from ase_bayesmlip.md.rewind import restore_snapshot, take_snapshot

KNOWN = [name for name in [*SETTINGS, "ContourExploration"] if name in MD_CLASSES]
STOCHASTIC = {"Langevin", "LangevinBAOAB", "Bussi", "Andersen"}
CONSTANT_ENERGY = {"temperature_K": None, "T_tau": None, "rng": None}
DETERMINISTIC = [(name, {}) for name in KNOWN if name not in STOCHASTIC]
if "LangevinBAOAB" in KNOWN:
    constant_pressure = {**CONSTANT_ENERGY, "externalstress": 0.0, "P_tau": 200 * units.fs}
    DETERMINISTIC += [
        ("LangevinBAOAB", CONSTANT_ENERGY),
        ("LangevinBAOAB", constant_pressure),
        ("LangevinBAOAB", {**constant_pressure, "hydrostatic": True}),
    ]
if "MelchionnaNPT" in KNOWN:
    DETERMINISTIC += [("MelchionnaNPT", {"pfactor": None}), ("MelchionnaNPT", {"ttime": None})]


def frame(dyn):
    """All numbers of a frame, the conserved quantity among them where there is one."""
    atoms = dyn.atoms
    found = [atoms.positions, atoms.get_momenta(), atoms.cell.array, atoms.pbc]
    for name in ("get_conserved_energy", "get_gibbs_free_energy"):
        if hasattr(dyn, name):
            found.append(np.array(getattr(dyn, name)()))
    return [array.tobytes() for array in found]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "changes"), DETERMINISTIC)
def test_deterministic_dynamics_repeat_bit_for_bit(name, changes):
    dyn = build(name, crystal(), **changes)
    dyn.run(3)
    snapshot = take_snapshot(dyn.atoms, dyn)
    before = frame(dyn)
    dyn.run(3)
    first = frame(dyn)
    assert first[0] != before[0]
    restore_snapshot(snapshot, dyn.atoms, dyn)
    assert frame(dyn) == before
    dyn.run(3)
    assert frame(dyn) == first


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in KNOWN if name in STOCHASTIC])
def test_stochastic_dynamics_start_again_from_the_same_frame(name):
    dyn = build(name, crystal())
    dyn.run(2)
    snapshot = take_snapshot(dyn.atoms, dyn)
    before = frame(dyn)
    dyn.run(2)
    first = frame(dyn)
    restore_snapshot(snapshot, dyn.atoms, dyn)
    assert frame(dyn) == before
    dyn.run(2)
    assert frame(dyn) != first


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in KNOWN if name not in STOCHASTIC])
def test_a_rewind_in_a_run_leads_back(name):
    """One detour from step 4 to step 3: after one step more the frame is that of a plain run."""
    plain = build(name, crystal())
    plain.run(6)
    dyn = build(name, crystal())
    marks = iter([0.0] * 4 + [2.0] + [0.0] * 3)
    rewind = Rewind()
    monitor = UncertaintyMonitor(dyn, threshold=1.0, score=lambda *_: next(marks), actions=[rewind])
    dyn.attach(monitor)
    dyn.run(7)
    assert rewind.rewinds == [(4, 3)]
    assert not monitor.stop_reason
    assert frame(dyn) == frame(plain)


def test_every_class_of_ase_is_known_or_refused():
    bases = {"Dynamics", "MolecularDynamics", "BaseDynamics"}
    assert set(MD_CLASSES) - bases - {"SwitchLangevin"} == set(KNOWN)


class Own(MolecularDynamics):
    def step(self):
        self.atoms.positions += 0.001


class Better(VelocityVerlet):
    pass


def test_unknown_dynamics_are_refused_beside_a_rewind_only():
    dyn = Own(crystal(), TIME_STEP)
    with pytest.raises(ValueError, match=r"what Own keeps .* is not known.*Langevin.*Stop"):
        UncertaintyMonitor(dyn, threshold=1.0, score=lambda *_: 0.0, actions=[Rewind()])
    with pytest.raises(ValueError, match="Own"):
        UncertaintyMonitor(dyn, threshold=1.0, score=lambda *_: 0.0, on_unphysical=[Rewind()])
    UncertaintyMonitor(dyn, threshold=1.0, score=lambda *_: 0.0, actions=[Stop()])
    for accepted in (Better(crystal(), TIME_STEP), BFGS(crystal())):
        UncertaintyMonitor(accepted, threshold=1.0, score=lambda *_: 0.0, actions=[Rewind()])
    assert state_names(Better(crystal(), TIME_STEP)) == STATE["VelocityVerlet"]


def rewinding(change, score=(0.0, 0.0, 2.0, 0.0)):
    """Dynamics of which an observer changes the atoms before the frame that is rewound."""
    dyn = VelocityVerlet(crystal(), TIME_STEP)
    dyn.atoms.set_tags(range(32))
    marks = iter(score)
    monitor = UncertaintyMonitor(
        dyn, threshold=1.0, score=lambda *_: next(marks), actions=[Rewind()]
    )
    dyn.attach(lambda: change(dyn.atoms) if dyn.nsteps == 2 else None)
    dyn.attach(monitor)
    dyn.run(2)
    return dyn.atoms, monitor


def test_boundary_conditions_and_arrays_are_restored():
    def change(atoms):
        atoms.pbc = [True, False, True]
        atoms.set_cell(1.01 * atoms.cell, scale_atoms=True)
        atoms.set_tags(5)
        atoms.get_forces()

    atoms, monitor = rewinding(change)
    assert not monitor.stop_reason
    assert atoms.pbc.all()
    np.testing.assert_array_equal(atoms.get_tags(), range(32))
    np.testing.assert_array_equal(atoms.cell.array, crystal().cell.array)
    assert atoms.calc.check_state(atoms) == []


def remove(atoms):
    from crystal import Springs

    del atoms[-1]
    atoms.calc = Springs(atoms)
    atoms.get_forces()


def transmute(atoms):
    atoms.symbols[0] = "Ag"
    atoms.get_forces()


@pytest.mark.parametrize("change", [remove, transmute])
def test_other_atoms_stop_the_run_and_restore_nothing(change):
    changed = []

    def note(atoms):
        change(atoms)
        changed.append(atoms.copy())

    atoms, monitor = rewinding(note)
    assert "no longer those of the trusted frame at step 1" in monitor.stop_reason
    assert "nothing was put back" in monitor.stop_reason
    assert atoms == changed[0]
    np.testing.assert_array_equal(atoms.get_momenta(), changed[0].get_momenta())


def test_lone_atoms_are_restored_with_the_results():
    atoms = crystal(FixAtoms([0]))
    dyn = VelocityVerlet(atoms, TIME_STEP)
    atoms.get_forces()
    atoms.calc.lone_atoms = (3,)
    snapshot = take_snapshot(atoms, dyn)
    atoms.calc.lone_atoms = ()
    restore_snapshot(snapshot, atoms, dyn)
    assert atoms.calc.lone_atoms == (3,)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif("MelchionnaNPT" not in MD_CLASSES, reason="new in ASE 3.27")
def test_melchionna_follows_new_momenta_and_forces():
    """The next positions are those of Verlet's formula, with what is in the atoms now."""
    dyn = build("MelchionnaNPT", crystal(), ttime=None, pfactor=None)
    dyn.run(2)
    atoms = dyn.atoms
    momenta = np.random.default_rng(5).standard_normal((32, 3))
    atoms.set_momenta(momenta - momenta.mean(axis=0))
    velocities, start = atoms.get_velocities(), atoms.get_positions()
    forces, masses = atoms.get_forces(), atoms.get_masses()[:, None]
    refresh_momenta(dyn)
    kick = np.random.default_rng(6).standard_normal((32, 3))
    atoms.calc.results["forces"] = forces + kick
    refresh_forces(dyn)
    dyn.run(1)
    expected = TIME_STEP * velocities + TIME_STEP**2 * (forces / 2 + kick) / masses
    np.testing.assert_allclose(atoms.positions - start, expected, atol=1e-9)
