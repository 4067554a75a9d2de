"""Frames that cannot be of nature: atoms without neighbours, absurd extents."""

from types import SimpleNamespace

import numpy as np
import pytest
from fake_potential import FakePotential, ScriptedDynamics, make_atoms

from ase_bayesmlip.md.actions import Rewind
from ase_bayesmlip.md.monitor import UncertaintyMonitor
from ase_bayesmlip.md.physical import unphysical_results


class Lonely(FakePotential):
    """Says that atoms have no neighbours, as `BayesianCalculator` does."""

    lone_atoms: tuple[int, ...] = ()


def watched(training=None, lone=(), **settings):
    card = SimpleNamespace(kind="ensemble", calibration={}, cutoff=5.0)
    if training is not None:
        card.training = training
    calc = Lonely(card=card)
    dyn = ScriptedDynamics(make_atoms(calc))
    monitor = UncertaintyMonitor(dyn, **{"threshold": 1.0} | settings)
    dyn.play(monitor, [0.5])
    calc.lone_atoms = lone
    dyn.play(monitor, [0.5])
    return monitor


@pytest.mark.parametrize("training", [None, {}, {"has_lone_atoms": False}])
def test_a_lone_atom_is_unphysical_where_training_had_none(training):
    monitor = watched(training, lone=(2,), actions=[])
    assert [event.kind for event in monitor.events] == ["unphysical"]
    assert "atom 2 (O) has no neighbour within the cutoff of 5 Å" in monitor.stop_reason
    assert monitor.dyn.max_steps == monitor.dyn.nsteps == 1
    assert list(monitor.history.flagged) == [False, True]
    assert monitor.history.score[1] == pytest.approx(0.5)


def test_a_lone_atom_of_another_element_is_unphysical():
    """Training had lone carbon: that says nothing of oxygen."""
    known = {"has_lone_atoms": True, "lone_elements": [6]}
    assert watched(known, lone=(0, 1), actions=[]).n_flagged == 0
    assert "atom 2 (O) has no neighbour" in watched(known, lone=(1, 2), actions=[]).stop_reason
    none = {"has_lone_atoms": False, "lone_elements": []}
    assert "atom 1 (C)" in watched(none, lone=(1,), actions=[]).stop_reason


def test_many_lone_atoms_are_named():
    monitor = watched(lone=(0, 1, 2, 3), actions=[])
    assert "atoms 0 (C), 1 (C), 2 (O), 3 (O) have no neighbour" in monitor.stop_reason


@pytest.mark.parametrize(
    ("training", "settings"),
    [({"has_lone_atoms": True}, {}), (None, {"lone_atoms": "ignore"})],
)
def test_lone_atoms_that_are_known_or_ignored(training, settings):
    monitor = watched(training, lone=(2,), **settings)
    assert monitor.n_flagged == 0
    assert not monitor.stop_reason


def test_a_start_structure_with_lone_atoms_is_told_what_to_do():
    calc = Lonely()
    calc.lone_atoms = (1,)
    dyn = ScriptedDynamics(make_atoms(calc))
    monitor = UncertaintyMonitor(dyn, threshold=1.0)
    dyn.play(monitor, [0.5])
    assert "the start structure is like that already" in monitor.stop_reason
    assert "lone_atoms='ignore'" in monitor.stop_reason
    later = watched(lone=(1,))
    assert "start structure" not in later.stop_reason


def test_calculators_that_do_not_tell_are_not_judged():
    dyn = ScriptedDynamics(make_atoms(FakePotential()))
    monitor = UncertaintyMonitor(dyn, threshold=1.0)
    dyn.play(monitor, [0.5])
    assert monitor.n_flagged == 0


def test_unknown_switch():
    with pytest.raises(ValueError, match="lone_atoms must be one of unphysical, ignore: 'no'"):
        watched(lone_atoms="no")


def test_contacts_that_cannot_be_searched_are_unphysical(monkeypatch):
    """Atoms so far apart that the neighbour search refuses them."""

    def refuse(*_):
        raise ValueError("the structure is too large to search")

    monkeypatch.setattr("ase_bayesmlip.md.threshold.ContactWatch._smallest_gap", refuse)
    monitor = watched()
    assert "too large to search" in monitor.stop_reason


def test_unphysical_frames_are_not_trusted_for_a_rewind():
    rewind = Rewind()
    from ase.md.verlet import VelocityVerlet

    calc = Lonely()
    atoms = make_atoms(calc)
    atoms.set_momenta(np.zeros((4, 3)))
    dyn = VelocityVerlet(atoms, 0.1)
    monitor = UncertaintyMonitor(dyn, threshold=1e9, actions=[rewind])

    def part():
        calc.lone_atoms = (0,) if dyn.nsteps == 3 else ()

    dyn.attach(part)
    dyn.attach(monitor)
    dyn.run(9)
    assert dyn.nsteps == 3
    assert [snapshot.step for snapshot in rewind._snapshots] == [2]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_results_that_are_not_finite(bad):
    forces = np.zeros((2, 3))
    assert unphysical_results({"energy": 1.0, "forces": forces}) == ""
    assert unphysical_results({"energy": bad, "forces": forces}).startswith("energy (eV)")
    forces[1, 2] = bad
    assert "1 of 6 numbers" in unphysical_results({"energy": 1.0, "forces": forces})
