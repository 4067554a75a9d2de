"""Which atoms count in a score."""

import warnings

import numpy as np
import pytest
from ase.constraints import FixAtoms, FixCom
from fake_potential import FakePotential, ScriptedDynamics, make_atoms, make_card

from ase_bayesmlip.md.monitor import UncertaintyMonitor
from ase_bayesmlip.scores import SCORES, Score

# Deviations of the four atoms, in units of the value that is played, see `ScriptedDynamics`.
SHARES = np.array([0.5, 1.0, 0.25, 0.75])


def played(value=2.0, constraint=None, card=None, **settings):
    atoms = make_atoms(FakePotential(card=card))
    atoms.set_constraint(constraint)
    dyn = ScriptedDynamics(atoms)
    monitor = UncertaintyMonitor(dyn, **{"threshold": 0.1} | settings)
    dyn.play(monitor, [value])
    return monitor


@pytest.mark.parametrize(
    ("settings", "counted"),
    [
        ({}, [0, 1, 2, 3]),
        ({"constraint": FixAtoms([1])}, [0, 2, 3]),
        ({"constraint": [FixAtoms([1]), FixAtoms([3])]}, [0, 2]),
        ({"constraint": FixAtoms([1]), "atoms": "all"}, [0, 1, 2, 3]),
        ({"constraint": FixAtoms(range(4))}, [0, 1, 2, 3]),
        ({"constraint": FixCom()}, [0, 1, 2, 3]),
        ({"atoms": [2, 0]}, [0, 2]),
        ({"atoms": [-1]}, [3]),
        ({"atoms": np.array([True, False, True, False])}, [0, 2]),
        ({"constraint": FixAtoms([1]), "atoms": [1, 2]}, [1, 2]),
    ],
)
def test_atoms_that_count(settings, counted):
    deviations = 2.0 * SHARES[counted]
    order = sorted(counted, key=lambda i: -SHARES[i])
    for name, expected in [
        ("forces_epistemic_max", deviations.max()),
        ("forces_epistemic_mean", deviations.mean()),
        ("atomic_energy_var_max", deviations.max() ** 2),
    ]:
        monitor = played(score=name, **settings)
        assert monitor.history.score[0] == pytest.approx(expected)
        event = monitor.events[0]
        assert event.worst_atoms == tuple(order[:3])
        assert event.score == pytest.approx(expected)


def test_worst_atoms_are_those_of_the_whole_structure_and_no_more_than_count():
    event = played(atoms=[3], n_worst=3).events[0]
    assert event.worst_atoms == (3,)
    assert event.worst_scores == pytest.approx((1.5,))


def test_scores_of_the_whole_structure_see_all_atoms():
    """The variance of the energy does not divide into atoms; a user's function chooses itself."""
    total = 4.0 * np.sum(SHARES**2)
    monitor = played(score="energy_var", constraint=FixAtoms([1]))
    assert monitor.history.score[0] == pytest.approx(total)

    def own(results, atoms):
        return Score(3.0, np.arange(len(atoms)) + 0.5)

    monitor = played(score=own, constraint=FixAtoms([3]))
    assert monitor.events[0].worst_atoms == (3, 2, 1)
    for score in ("energy_var", own):
        with pytest.raises(ValueError, match=r"does not divide into atoms.*forces_epistemic_max"):
            played(score=score, atoms=[0])


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        ([4], r"names \[4\], and there are 4 atoms"),
        ([-5], r"names \[-5\]"),
        ([], "not float64 of shape"),
        (np.zeros(4, dtype=bool), "leaves no atom"),
        ([True, False], "a mask of 4 booleans"),
        ("none", "must be None, 'all', a mask"),
        ([0.5], "must be None"),
        ([[0, 1]], "must be None"),
    ],
)
def test_wrong_choices(atoms, message):
    with pytest.raises(ValueError, match=message):
        played(atoms=atoms)


def test_a_maximum_over_fewer_atoms_keeps_the_false_alarm_rate():
    """The score is at most that over all atoms, which the calibration scores are of."""
    generator = np.random.default_rng(0)
    frames = generator.gamma(2.0, size=(4000, 4))
    rate = 0.1
    calibration = frames[:2000].max(axis=1)
    card = make_card({"forces_epistemic_max": sorted(calibration)})
    settings = {"threshold": None, "false_alarm_rate": rate, "card": card}
    threshold = played(**settings).threshold
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert played(**settings, constraint=FixAtoms([1]), value=0.1).threshold == threshold
    alarms = np.mean(frames[2000:, [0, 2, 3]].max(axis=1) > threshold)
    assert alarms <= rate + 3 * np.sqrt(rate * (1 - rate) / 2000)


def test_a_mean_over_fewer_atoms_does_not_and_says_so():
    card = make_card({name: [0.1 * k for k in range(200)] for name in SCORES})
    settings = {"threshold": None, "false_alarm_rate": 0.1, "card": card, "value": 0.1}
    with pytest.warns(UserWarning, match=r"mean over 3 of 4 atoms .* rate is not kept"):
        played(**settings, score="forces_epistemic_mean", constraint=FixAtoms([1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        played(**settings, score="forces_epistemic_mean")
        played(score="forces_epistemic_mean", constraint=FixAtoms([1]), value=0.01)
        for name in ("forces_epistemic_max", "atomic_energy_var_max"):
            played(**settings, score=name, constraint=FixAtoms([1]))
        scores = np.linspace(0.0, 1.0, 200)
        played(**settings, score="forces_epistemic_mean", atoms=[0], calibration_scores=scores)


def test_another_number_of_atoms_is_an_error():
    atoms = make_atoms(FakePotential())
    dyn = ScriptedDynamics(atoms)
    monitor = UncertaintyMonitor(dyn, threshold=1.0, atoms=[0, 1])
    atoms.get_forces()
    results = {key: np.asarray(value) for key, value in atoms.calc.results.items()}
    del atoms[-1]
    atoms.calc.results = results
    atoms.calc.atoms = atoms.copy()
    dyn.nsteps = 0
    with pytest.raises(ValueError, match=r"has 3 atoms.*chosen among 4.*new monitor"):
        monitor()


def test_constraints_set_after_the_monitor_was_made_are_heeded():
    """Held atoms stop counting, and what the dynamics would lose is refused at the next frame."""
    atoms = make_atoms(FakePotential())
    dyn = ScriptedDynamics(atoms)
    monitor = UncertaintyMonitor(dyn, threshold=1.0)
    atoms.get_forces()
    monitor()
    before = monitor._counted
    atoms.set_constraint(FixAtoms([1]))
    dyn.nsteps += 1
    monitor()
    assert before is None
    assert np.flatnonzero(~monitor._counted).tolist() == [1]
