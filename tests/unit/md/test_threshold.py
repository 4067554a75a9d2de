"""Contacts in structures that a search for neighbours could not take as they are."""

import time

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list

from ase_bayesmlip.md.threshold import ContactWatch, close_contact


@pytest.mark.parametrize("height", [1e4, 1e6])
@pytest.mark.parametrize("watched", [close_contact, ContactWatch()])
def test_an_evaporated_atom_takes_no_time(height, watched):
    slab = fcc111("Cu", (3, 3, 3)) + Atoms("Cu", [[0.0, 0.0, height]])
    started = time.monotonic()
    assert watched(slab, 0.5) == ""
    assert time.monotonic() - started < 0.5
    slab += Atoms("H", [[0.0, 0.7, height]])
    assert "atoms 27 (Cu) and 28 (H) are 0.700 Å apart" in watched(slab, 0.5)


@pytest.mark.parametrize("seed", range(5))
def test_contacts_are_those_that_ase_finds(seed):
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True) * (2, 1, 1)
    atoms.pbc = np.random.default_rng(seed).permutation([True, True, False])
    atoms.rattle(0.6, seed=seed)
    for ratio in (0.5, 0.7, 0.9, 1.2):
        distances = neighbor_list("d", atoms, ratio * covalent_radii[atoms.numbers])
        expected = f"{distances.min():.3f} Å" if len(distances) else ""
        text = close_contact(atoms, ratio)
        assert (expected in text) if expected else text == ""


@pytest.mark.parametrize("n_atoms", [2, 400])
@pytest.mark.parametrize("place", [1e12, np.nan, np.inf])
def test_where_no_search_is_possible_the_watch_says_why(n_atoms, place):
    atoms = Atoms(f"H{n_atoms}", np.arange(n_atoms)[:, None] * [2.0, 0.0, 0.0])
    atoms.positions[1, 2] = place
    assert "atom 1 is at" in ContactWatch()(atoms, 0.5)
