"""The watch for contacts says what a full search says, and seldom searches."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from ase_bayesmlip.md.threshold import ContactWatch, close_contact


def gas(n_atoms: int, size: float, pbc) -> Atoms:
    positions = np.random.default_rng(n_atoms).uniform(0, size, (n_atoms, 3))
    numbers = np.tile([1, 6, 55], n_atoms)[:n_atoms]
    return Atoms(numbers, positions=positions, cell=size * np.eye(3), pbc=pbc)


@pytest.mark.parametrize("pbc", [False, True, [True, True, False]])
@pytest.mark.parametrize(("n_atoms", "size"), [(5, 4.0), (12, 9.0)])
def test_contact_watch_says_what_a_full_search_says(n_atoms, size, pbc):
    atoms = gas(n_atoms, size, pbc)
    generator = np.random.default_rng(0)
    watch = ContactWatch()
    said = []
    for step in range(60):
        atoms.positions += 0.2 * generator.normal(size=(n_atoms, 3))
        if step == 30:
            atoms.numbers[:] = atoms.numbers[::-1]
        if step == 45:
            atoms.set_cell(1.1 * atoms.cell, scale_atoms=True)
        for ratio in (0.3, 0.6):
            expected = close_contact(atoms, ratio)
            assert watch(atoms, ratio) == expected
            said.append(expected)
    assert 5 < said.count("") < 115  # both answers occur


def test_contact_watch_at_the_limit():
    """Half the sum of the radii of two hydrogen atoms is 0.31 Å."""
    watch = ContactWatch()
    for length in (0.31 - 1e-12, 0.31, 0.31 + 1e-12, np.nextafter(0.31, 0), np.nextafter(0.31, 1)):
        atoms = Atoms("H2", [[0, 0, 0], [0, 0, length]])
        assert watch(atoms, 0.5) == close_contact(atoms, 0.5)


@pytest.mark.parametrize("atoms", [molecule("CH3CH2OH"), bulk("Cu"), Atoms("H"), Atoms()])
@pytest.mark.parametrize("ratio", [0.5, 0.0])
def test_contact_watch_on_ordinary_structures(atoms, ratio):
    assert ContactWatch()(atoms, ratio) == ""


@pytest.fixture
def watched(monkeypatch):
    """A watch, and a list that grows with every frame that is measured."""
    watch, measured = ContactWatch(), []

    def smallest_gap(atoms, ratio):
        measured.append(len(atoms))
        return ContactWatch._smallest_gap(watch, atoms, ratio)

    monkeypatch.setattr(watch, "_smallest_gap", smallest_gap)
    return watch, measured


def test_contact_watch_measures_when_an_atom_has_moved_by_half_the_gap(watched):
    """At a ratio of 0.5 two hydrogen atoms touch at 0.31 Å: a gap of 0.69 Å."""
    watch, measured = watched
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 1.0]])
    for distance, n_measured in [(1.0, 1), (0.66, 1), (1.34, 1), (0.65, 2), (0.49, 2), (0.47, 3)]:
        atoms.positions[1, 2] = distance
        assert watch(atoms, 0.5) == ""
        assert len(measured) == n_measured
    atoms.positions[1, 2] = 0.3
    for n_measured in (4, 5):  # in contact, every frame is measured
        assert watch(atoms, 0.5) == close_contact(atoms, 0.5) != ""
        assert len(measured) == n_measured


def heavier(atoms):
    atoms.numbers[:] = 55


def smaller(atoms):
    atoms.set_cell([9, 9, 1.2])


def periodic(atoms):
    atoms.pbc = [False, False, True]


def one_more(atoms):
    atoms += Atoms("H", [atoms.positions[0] + [0, 0.1, 0]])


@pytest.mark.parametrize("change", [heavier, smaller, periodic, one_more])
def test_contact_watch_sees_contacts_that_come_without_motion(change):
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 1.0]], cell=[9, 9, 1.2])
    atoms.pbc = [False, False, change is smaller]
    if change is smaller:
        atoms.set_cell([9, 9, 9])
    watch = ContactWatch()
    assert watch(atoms, 0.5) == ""
    change(atoms)
    assert watch(atoms, 0.5) == close_contact(atoms, 0.5) != ""


def test_contact_watch_is_not_lulled_by_positions_that_are_not_finite(watched):
    watch, measured = watched
    atoms = Atoms("H2", [[0, 0, 0], [0, 0, 1.0]])
    watch(atoms, 0.5)
    atoms.positions[1] = np.nan
    watch(atoms, 0.5)
    atoms.positions[1] = [0, 0, 0.1]
    assert watch(atoms, 0.5) == close_contact(atoms, 0.5) != ""
    assert len(measured) == 3


def test_contact_watch_seldom_searches():
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    watch = ContactWatch()
    for step in range(50):
        atoms.rattle(0.02, seed=step)
        assert watch(atoms, 0.5) == ""
    assert watch._neighbors.n_builds == 1
