"""Going back to the last trusted frame: positions, velocities, and the calculator."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.io import read
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from fake_potential import (
    ANCHORS,
    FakePotential,
    make_atoms,
)

from ase_bayesmlip.md.actions import (
    Recalculate,
    Rewind,
    Stop,
    TrajectoryWriter,
)
from ase_bayesmlip.md.monitor import UncertaintyMonitor


def verlet(velocity=0.02, **settings):
    """An oscillator whose score grows with the displacement, above the threshold after a while."""
    atoms = Atoms("C2O2", positions=ANCHORS.copy(), calculator=FakePotential())
    atoms.set_velocities(velocity * np.array([[1.0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]))
    dyn = VelocityVerlet(atoms, 1.0 * units.fs)
    monitor = UncertaintyMonitor(dyn, **settings)
    dyn.attach(monitor)
    return dyn, monitor


def test_rewind_restores_the_last_trusted_frame():
    rewind = Rewind(max_rewinds=1)
    states: list = []
    dyn, monitor = verlet(threshold=0.0105, actions=[rewind])
    atoms = dyn.atoms
    dyn.attach(lambda: states.append((atoms.get_positions(), atoms.get_momenta())))
    dyn.run(100)
    flagged = np.flatnonzero(monitor.history.flagged)
    first = int(flagged[0])
    assert rewind.rewinds == [(first, first - 1), (first + 1, first - 1)]
    for rewound in (first, first + 1):
        np.testing.assert_array_equal(states[rewound], states[first - 1])
    assert "after 1 attempts to get past it from step" in monitor.stop_reason
    assert dyn.nsteps == first + 1


def test_rewound_calculator_is_as_if_it_had_just_evaluated():
    dyn, monitor = verlet(threshold=0.0105, actions=[Rewind(max_rewinds=1)])
    dyn.run(100)
    calc, atoms = dyn.atoms.calc, dyn.atoms
    assert not calc.calculation_required(atoms, ["energy", "forces"])
    assert calc.n_evaluations == monitor.n_observed
    np.testing.assert_array_equal(calc.results["forces"], -5.0 * (atoms.positions - ANCHORS))
    fresh = FakePotential()
    assert fresh.get_potential_energy(atoms) == calc.results["energy"]


def test_lone_atoms_are_those_of_the_frame_gone_back_to():
    """Otherwise the next check would take the trusted frame for one that has blown apart."""
    scores = iter([0.5, 2.0])
    dyn, monitor = verlet(threshold=1.0, score=lambda _r, _a: next(scores), actions=[Rewind()])
    calc = dyn.atoms.calc
    calc.lone_atoms = ()
    monitor.actions = (lambda _event, _monitor: setattr(calc, "lone_atoms", (1,)), *monitor.actions)
    dyn.run(1)
    assert calc.lone_atoms == ()


def test_rewind_by_more_than_one_frame():
    rewind = Rewind(n_frames=3, max_rewinds=1)
    dyn, monitor = verlet(threshold=0.0105, actions=[rewind])
    dyn.run(100)
    first = int(np.flatnonzero(monitor.history.flagged)[0])
    # Steps first - 3 ... first - 1 are trusted; the second attempt meets the same wall.
    assert rewind.rewinds == [(first, first - 3), (first + 3, first - 3)]


def test_frames_of_an_abandoned_path_are_never_gone_back_to():
    """Flagged at once after a rewind of three frames: what lay between is of the path given up."""
    rewind = Rewind(n_frames=3)
    scores = iter([0.5, 0.5, 0.5, 2.0, 2.0])
    dyn, _ = verlet(threshold=1.0, score=lambda _r, _a: next(scores), actions=[rewind])
    dyn.run(4)
    assert rewind.rewinds == [(3, 0), (4, 0)]


def test_rewind_from_the_first_frame_stops():
    dyn, monitor = verlet(threshold=0.001, actions=[Rewind()])
    dyn.run(5)
    assert "no trusted frame before it" in monitor.stop_reason
    assert dyn.nsteps == dyn.max_steps == 0


def test_rewind_keeps_no_snapshot_of_flagged_frames():
    rewind = Rewind(n_frames=5)
    scores = iter([0.5, 2.0])
    dyn, _ = verlet(threshold=1.0, score=lambda _r, _a: next(scores), actions=[rewind], patience=2)
    dyn.run(1)
    assert len(rewind._snapshots) == 1


@pytest.mark.parametrize("temperature_K", [None, 200.0])
def test_rewind_with_new_velocities(temperature_K):
    rewind = Rewind(rethermalise=True, temperature_K=temperature_K, rng=3, max_rewinds=1)
    seen: dict = {}

    def note(event, monitor):
        seen["momenta"] = monitor.atoms.get_momenta()
        seen["kinetic"] = monitor.atoms.get_kinetic_energy()

    dyn, _ = verlet(threshold=0.0105, actions=[rewind, note, Stop()])
    energies: list = []
    total = []
    dyn.attach(lambda: energies.append(dyn.atoms.get_kinetic_energy()))
    dyn.attach(lambda: total.append(dyn.atoms.get_momenta().sum(axis=0)))
    dyn.run(100)
    trusted = rewind.rewinds[0][1]
    np.testing.assert_allclose(seen["momenta"].sum(axis=0), total[trusted], atol=1e-12)
    assert np.count_nonzero(np.abs(seen["momenta"]) > 1e-6) == 12
    if temperature_K is None:
        assert seen["kinetic"] == pytest.approx(energies[trusted], rel=1e-12)


def test_rewind_puts_a_relaxation_back_and_stops_it():
    atoms = make_atoms(FakePotential(), displacement=0.3)
    start = atoms.get_positions()
    dyn = BFGS(atoms, logfile=None)
    calls = iter([0.5, 0.5, 2.0])
    monitor = UncertaintyMonitor(
        dyn, threshold=1.0, score=lambda _results, _atoms: next(calls), actions=[Rewind()]
    )
    positions = []
    dyn.attach(lambda: positions.append(atoms.get_positions()))
    dyn.attach(monitor)
    dyn.run(fmax=1e-6, steps=10)
    assert dyn.nsteps == 2
    assert "the relaxation was put back to step 1" in monitor.stop_reason
    np.testing.assert_array_equal(atoms.positions, positions[1])
    assert not np.array_equal(positions[1], start)


@pytest.mark.parametrize(
    "settings", [{"n_frames": 0}, {"max_rewinds": 0}, {"temperature_K": 300.0}]
)
def test_bad_rewind_settings(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Rewind(**settings)


def test_trajectory_leaves_out_rewound_frames_and_keeps_predictions(tmp_path):
    reference = FakePotential(stiffness=7.0)
    dyn, monitor = verlet(
        threshold=0.0105, actions=[Recalculate(reference, continue_on_reference=True)]
    )
    dyn.attach(TrajectoryWriter(monitor, tmp_path / "a.extxyz"))
    dyn.run(20)
    frames = read(tmp_path / "a.extxyz", ":")
    assert [frame.info["step"] for frame in frames] == list(range(21))
    flags = [frame.info["flagged"] for frame in frames]
    assert flags == list(monitor.history.flagged)
    assert any(flags)
    for frame in frames:
        np.testing.assert_allclose(
            frame.get_forces(), -5.0 * (frame.positions - ANCHORS), atol=1e-6
        )
        assert ("reference_energy" in frame.info) == frame.info["flagged"]

    rewind = Rewind(max_rewinds=2)
    dyn, monitor = verlet(threshold=0.0105, actions=[rewind])
    dyn.attach(TrajectoryWriter(monitor, tmp_path / "b.extxyz"))
    dyn.run(50)
    steps = [frame.info["step"] for frame in read(tmp_path / "b.extxyz", ":")]
    assert steps == list(np.flatnonzero(~monitor.history.flagged))
