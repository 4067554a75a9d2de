"""Checks of a structure that need no model: geometry and overlaps."""

import subprocess
import sys

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from ase_bayesmlip.structures.checks import MIN_DISTANCE, check_geometry, check_overlaps
from ase_bayesmlip.structures.neighbors import complete_cell, neighbor_edges


def water(**changes) -> Atoms:
    atoms = molecule("H2O")
    for name, value in changes.items():
        setattr(atoms, name, value)
    return atoms


FLAT = [[5, 0, 0], [10, 0, 0], [0, 0, 5]]
PARALLEL = [[5, 0, 0], [10, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (Atoms(), "no atoms"),
        (Atoms("X", pbc=False), r"atoms \[0\] have the atomic number 0.*1 to 118"),
        (water(numbers=[8, 1, 119]), r"atoms \[2\] have the atomic number 119"),
        (water(numbers=[8, -1, 1]), r"atoms \[1\] have the atomic number -1"),
        (water(positions=np.full((3, 3), np.nan)), r"positions of atoms \[0, 1, 2\] are not fin"),
        (water(cell=[5, 5, np.inf]), "the cell is not finite"),
        (water(cell=[5, 5, np.nan], pbc=True), "the cell is not finite"),
        (water(pbc=True), r"pbc is \[True, True, True\].*no volume.*Lattice="),
        (water(pbc=[False, False, True]), "no volume along the periodic"),
        (water(pbc=[True, True, False], cell=[5, 0, 5]), "no volume along the periodic"),
        (water(pbc=True, cell=FLAT), "no volume along the periodic"),
        (water(pbc=[True, False, False], cell=FLAT), "no volume along the periodic"),
        (water(pbc=[True, True, False], cell=PARALLEL), "no volume along the periodic"),
        (water(pbc=[True, False, False], cell=PARALLEL), "no volume along the periodic"),
        (water(pbc=False, cell=FLAT), "no volume .its vectors lie in a plane"),
    ],
)
def test_refused(atoms, message):
    with pytest.raises(ValueError, match=message):
        check_geometry(atoms)


@pytest.mark.parametrize(
    "atoms",
    [
        water(),
        water(cell=[9, 9, 9]),
        water(cell=PARALLEL),
        water(pbc=[True, True, False], cell=[9, 9, 0]),
        water(pbc=[False, True, False], cell=[[0, 0, 0], [3, 4, 0], [0, 0, 0]]),
        water(pbc=True, cell=[[9, 0, 0], [0, 0, 9], [0, 9, 0]]),
        Atoms("H"),
        bulk("Cu"),
    ],
)
def test_accepted(atoms):
    check_geometry(atoms)
    check_overlaps(atoms)


def shortest(atoms) -> float:
    """Smallest distance of the neighbour search, Å, an independent way to it."""
    cell = complete_cell(atoms)
    (i, j), shift = neighbor_edges(atoms.positions, cell, atoms.pbc, 3.0)
    vectors = atoms.positions[j] - atoms.positions[i] + shift @ cell
    return float(np.linalg.norm(vectors, axis=1).min(initial=np.inf))


@pytest.mark.parametrize("pbc", [(0, 0, 0), (1, 0, 0), (0, 1, 1), (1, 1, 1)])
def test_overlaps_are_those_of_the_neighbour_search(pbc):
    generator = np.random.default_rng(3)
    n_overlapping = 0
    for _ in range(60):
        cell = 2.0 * np.eye(3) + generator.normal(size=(3, 3), scale=0.8)
        positions = generator.normal(size=(5, 3), scale=4.0)
        # A pair close to the limit, through the faces of the cell.
        direction = generator.normal(size=3)
        step = generator.uniform(0.1, 0.3) * direction / np.linalg.norm(direction)
        positions[4] = positions[0] + step + (generator.integers(-2, 3, size=3) * pbc) @ cell
        atoms = Atoms("H5", positions, cell=cell, pbc=pbc)
        expected = shortest(atoms)
        if expected >= MIN_DISTANCE:
            check_overlaps(atoms)
            continue
        n_overlapping += 1
        with pytest.raises(ValueError, match=f"{expected:.3f} Å"):
            check_overlaps(atoms)
    assert 10 < n_overlapping < 50


def test_oblique_cell_of_the_same_lattice():
    atoms = bulk("Cu", cubic=True)
    atoms.cell[1] += 20 * atoms.cell[0]
    check_overlaps(atoms)
    atoms.positions[1] = atoms.positions[0] + 7 * atoms.cell[1] - 3 * atoms.cell[0]
    with pytest.raises(ValueError, match=r"atoms 0 and 1 overlap: they are 0\.000 Å apart"):
        check_overlaps(atoms)


def test_an_atom_beside_its_own_image():
    atoms = Atoms("H", cell=[5, 5, 0.1], pbc=[False, False, True])
    with pytest.raises(ValueError, match=r"atom 0 overlap: it is 0\.100 Å from its own"):
        check_overlaps(atoms)


def test_a_cell_as_thin_as_paper():
    atoms = Atoms("H", cell=[5, 5, 1e-4], pbc=True)
    with pytest.raises(ValueError, match=r"1\.0e-04 Å apart along direction 2"):
        check_overlaps(atoms)


def test_atoms_without_positions():
    with pytest.raises(ValueError, match="all atoms are at one place: were positions given"):
        check_overlaps(Atoms("H9"))


def test_far_from_the_origin_and_far_apart():
    atoms = molecule("CH4")
    atoms.positions[0] += 1e12
    check_overlaps(atoms)


def test_checks_need_no_torch():
    code = (
        "import sys, ase_bayesmlip.structures.checks, ase_bayesmlip.structures.labelled;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
