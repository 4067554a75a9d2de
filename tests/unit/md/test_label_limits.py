"""Which reference labels are too large to be believed."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ase import Atoms

from ase_bayesmlip.card import read_card
from ase_bayesmlip.md.label_limits import limits_for, training_limits
from ase_bayesmlip.md.references import Label

ATOMS = Atoms("CO", [[0, 0, 0], [0, 0, 1.1]])


def card(**record):
    return SimpleNamespace(training=record, reference_energies={"C": -100.0, "O": -300.0})


def label(energy=-410.0, force=1.0):
    return Label(energy, np.array([[0, 0, force], [0, 0, -force]]), None)


def test_limits_follow_from_the_training_labels():
    limits = training_limits(card(label_limits={"force_max": 8.0, "energy_per_atom": [-6.0, -4.0]}))
    assert limits.force_max == 80.0
    assert limits.energy_per_atom == (-26.0, 16.0)
    # -410 eV are -5 eV per atom beyond the isolated atoms.
    limits.check(label(), ATOMS)
    limits.check(label(energy=-400.0 + 2 * 15.9, force=79.9), ATOMS)
    with pytest.raises(ValueError, match=r"force of 80.1 eV/Å is above the limit of 80 eV/Å"):
        limits.check(label(force=80.1), ATOMS)
    for energy in (-400.0 + 2 * 16.1, -400.0 - 2 * 26.1):
        with pytest.raises(ValueError, match="outside the limits -26 to 16 eV"):
            limits.check(label(energy), ATOMS)


def test_narrow_training_sets_leave_room():
    limits = training_limits(card(label_limits={"force_max": 0.1, "energy_per_atom": [-5.0, -5.0]}))
    assert limits.force_max == 30.0
    assert limits.energy_per_atom == (-15.0, 5.0)


@pytest.mark.parametrize("known", [None, card(), card(n_train=3)])
def test_without_a_record(known):
    limits = training_limits(known)
    limits.check(label(force=99.0), ATOMS)
    with pytest.raises(ValueError, match="limit of 100 eV/Å"):
        limits.check(label(force=1e6), ATOMS)
    with pytest.raises(ValueError, match="per atom"):
        limits.check(label(energy=1e9), ATOMS)


def test_a_file_without_a_record_knows_the_zero_of_energy_from_its_probe():
    """Interaction energies per atom: -5 eV of the probe; wrong zeros are 195 eV away."""
    known = card()
    known.probe = {"numbers": [6, 8], "expected": {"energy": [-410.0]}}
    assert training_limits(known).energy_per_atom == (-15.0, 5.0)
    training_limits(known).check(label(), ATOMS)
    for energy in (0.0, -410.0 / 27.2114):
        with pytest.raises(ValueError, match="zero of energy"):
            training_limits(known).check(label(energy), ATOMS)
    # Without energies of isolated atoms, which say how compositions differ, as much again.
    known.reference_energies = {}
    assert training_limits(known).energy_per_atom == (-410.0, 0.0)


def test_the_shipped_file_refuses_energies_of_another_zero():
    shipped = read_card(Path(__file__).parents[3] / "data" / "ethanol_ensemble.pt")
    low, high = training_limits(shipped).energy_per_atom
    assert -20.0 < low < -4.0 < high < 10.0


def test_limits_of_the_user():
    limits = limits_for(card(), 5.0, (-6.0, -4.0))
    limits.check(label(), ATOMS)
    with pytest.raises(ValueError, match="above the limit of 5 eV/Å"):
        limits.check(label(force=5.1), ATOMS)
    with pytest.raises(ValueError, match="outside the limits -6 to -4 eV"):
        limits.check(label(energy=-300.0), ATOMS)
    limits_for(card(), None, None).check(label(1e12, 1e12), ATOMS)
    limits_for(card(), None, np.array([-6.0, -4.0])).check(label(force=1e12), ATOMS)


@pytest.mark.parametrize("limit", [0.0, -1.0, np.nan, "train"])
def test_bad_force_limits(limit):
    with pytest.raises(ValueError, match="force_limit must be"):
        limits_for(None, limit, None)


@pytest.mark.parametrize("limit", [1.0, (1.0, 1.0), (2.0, 1.0), (1.0, 2.0, 3.0), "ab", (0, np.nan)])
def test_bad_energy_limits(limit):
    with pytest.raises(ValueError, match="energy_limit must be"):
        limits_for(None, None, limit)
