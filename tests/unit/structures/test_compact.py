"""Structures brought into a small box: the same neighbours, and no search of what is absurd."""

import itertools
import time

import numpy as np
import pytest
import vesin
from ase import Atoms
from ase.build import fcc111, molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_bayesmlip.structures import neighbors
from ase_bayesmlip.structures.compact import compact
from ase_bayesmlip.structures.neighbors import complete_cell, graph_of, neighbor_edges

CUTOFF = 4.0


def edge_set(edges):
    edge_index, edge_shift = edges
    rows = [tuple(row) for row in np.column_stack([*edge_index, edge_shift]).tolist()]
    assert len(set(rows)) == len(rows), "an edge appears twice"
    return set(rows)


def search(atoms, cutoff=CUTOFF):
    return neighbor_edges(atoms.positions, complete_cell(atoms), atoms.pbc, cutoff)


def brute_force(atoms, cutoff=CUTOFF):
    """Every pair in every image that may be in reach, one by one."""
    cell, positions = complete_cell(atoms), atoms.positions
    reach = np.zeros(3, dtype=int)
    if atoms.pbc.any():
        inverse = np.linalg.inv(cell)
        # Of the box around all atoms and their cutoff.
        size = cutoff + np.linalg.norm(np.ptp(positions, axis=0))
        reach = np.where(atoms.pbc, np.ceil(size * np.linalg.norm(inverse, axis=0)), 0).astype(int)
    found = set()
    for shift in itertools.product(*(range(-n, n + 1) for n in reach)):
        vectors = positions[None] - positions[:, None] + np.array(shift) @ cell
        close = np.linalg.norm(vectors, axis=2) < cutoff
        if not any(shift):
            np.fill_diagonal(close, False)
        found |= {(int(i), int(j), *shift) for i, j in zip(*np.nonzero(close), strict=True)}
    return found


def random_structure(seed, n_periodic, n_atoms, size, spread):
    """Groups of atoms in, around and far from an oblique cell of either hand."""
    generator = np.random.default_rng(seed)
    pbc = generator.permutation(np.arange(3) < n_periodic)
    cell = size * (np.eye(3) + generator.uniform(-0.7, 0.7, size=(3, 3)))
    cell *= generator.choice([1.0, 1.0, 2.0], size=(3, 1))
    centres = generator.uniform(-1.0, 1.0, size=(3, 3)) * spread
    positions = centres[generator.integers(3, size=n_atoms)]
    positions = positions + generator.uniform(-1.0, 1.0, size=(n_atoms, 3)) * 3.0
    if generator.integers(2):
        cell[~pbc] = 0.0
    return Atoms(f"H{n_atoms}", positions=positions, cell=cell, pbc=pbc)


@settings(max_examples=50)
@given(
    seed=st.integers(0, 10**6),
    n_periodic=st.integers(0, 3),
    n_atoms=st.integers(1, 8),
    size=st.floats(2.0, 9.0),
    spread=st.sampled_from([0.0, 3.0, 10.0]),
)
def test_the_edges_are_those_of_brute_force(seed, n_periodic, n_atoms, size, spread):
    atoms = random_structure(seed, n_periodic, n_atoms, size, spread)
    vectors = complete_cell(atoms)[atoms.pbc]
    if len(vectors) and np.linalg.svd(vectors)[1].min() < 1.5:
        return  # brute force would take for ever
    assert edge_set(search(atoms)) == brute_force(atoms)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), n_periodic=st.integers(0, 3), spread=st.floats(0.0, 30.0))
def test_the_edges_are_those_of_an_unwrapped_search(seed, n_periodic, spread):
    """Where the native search can take a structure as it is."""
    atoms = random_structure(seed, n_periodic, 6, 6.0, spread)
    cell = complete_cell(atoms)
    if np.abs(np.linalg.det(cell)) < 20.0 < atoms.pbc.sum():
        return
    pairs, shift = vesin.NeighborList(cutoff=CUTOFF, full_list=True).compute(
        points=atoms.positions.copy(), box=cell, periodic=atoms.pbc.tolist(), quantities="PS"
    )
    assert edge_set(search(atoms)) == edge_set((pairs.T.astype(int), shift))


@pytest.mark.parametrize("height", [1e2, 1e4, 1e6, 9e7])
def test_an_atom_far_above_a_slab_takes_no_time(height):
    slab = fcc111("Cu", (3, 3, 3))
    expected = edge_set(search(slab))
    slab += Atoms("H2", [[1.0, 2.0, height], [1.5, 2.5, height + 0.5]])
    started = time.monotonic()
    found = edge_set(search(slab))
    assert time.monotonic() - started < 0.5
    n = len(slab)
    assert found == expected | {(n - 2, n - 1, 0, 0, 0), (n - 1, n - 2, 0, 0, 0)}


@pytest.mark.parametrize("distance", [1e4, 1e6, 9e7])
@pytest.mark.parametrize(
    ("cell", "pbc"),
    [
        (None, False),
        ([[0, 0, 5.0], [0] * 3, [0] * 3], [1, 0, 0]),
        ([[0] * 3, [3.0, 4.0, 0], [0] * 3], [0, 1, 0]),
        ([[0] * 3, [3.0, 4.0, 1.0], [0, 1.0, 5.0]], [0, 1, 1]),
        ([[6.0, 0, 0], [0, 6.0, 0], [0, 0, 9e7]], True),
        ([[6.0, 0, 2e7], [0, 6.0, 0], [1e7, 0, 9e7]], True),
    ],
)
def test_explosions_have_the_edges_of_what_holds_together(cell, pbc, distance):
    """Along every axis and diagonal, in every kind of cell, two molecules fly apart."""
    for direction in itertools.product((0, 1), repeat=3):
        water = molecule("H2O", cell=cell, pbc=pbc)
        atoms = water.copy()
        other = molecule("H2O")
        other.positions += distance * np.array(direction) * 0.9 + [0, 0, 30.0]
        atoms += other
        started = time.monotonic()
        edge_index, edge_shift = search(atoms, 3.0)
        assert time.monotonic() - started < 0.5
        assert edge_set((edge_index, edge_shift)) >= edge_set(search(water, 3.0))
        vectors = atoms.positions[edge_index[1]] - atoms.positions[edge_index[0]]
        vectors = vectors + edge_shift @ complete_cell(atoms)
        assert np.linalg.norm(vectors, axis=1).max() < 3.0 + 1e-6


def test_atoms_many_cells_away_have_the_edges_of_wrapped_ones():
    atoms = fcc111("Cu", (2, 2, 2), vacuum=4.0)
    atoms.pbc = True
    moved = atoms.copy()
    shift = np.array([[100_000 * k, -40_000 * k, 0] for k in range(len(atoms))])
    moved.positions += shift @ atoms.cell.array
    index, edge_shift = search(moved)
    wrapped = edge_shift + shift[index[1]] - shift[index[0]]
    assert edge_set((index, wrapped)) == edge_set(search(atoms))
    assert np.abs(edge_shift).max() > np.iinfo(np.int16).max
    rows = np.column_stack([*index, edge_shift]).tolist()
    assert rows == sorted(rows)


def far(axis):
    positions = np.zeros((3, 3))
    positions[:, 0] = [0.0, 1.0, 2.0]
    positions[1, axis] = 3e8
    return positions


CUBE = 6.0 * np.eye(3)
ABSURD = {
    "x": (far(0), CUBE, False, "atom 1 is at"),
    "z": (-far(2), CUBE, True, "atom 1 is at"),
    "huge": (1e25 * np.eye(3), CUBE, False, "atom 0 is at"),
    "nan": ([[0, 0, 0], [np.nan, 1e30, 0]], CUBE, False, "atom 1 is at"),
    "infinite": ([[0, 0, 0], [1, np.inf, 0]], CUBE, True, "atom 1 is at"),
    "cell of nan": (np.zeros((1, 3)), np.nan * CUBE, True, "not finite"),
    "long cell": (np.zeros((1, 3)), 1e200 * CUBE, True, "longer than 1e"),
    "short cell": (np.zeros((1, 3)), 1e-3 * np.eye(3), True, "atom 0 alone has about 5.1e.11"),
    "short vector": (np.zeros((1, 3)), np.diag([6, 6, 1e-9]), True, "no volume"),
    "tiny": (np.zeros((1, 3)), 1e-200 * np.eye(3), True, "no volume"),
    "no vector": (np.zeros((1, 3)), np.diag([6, 0, 6]), True, "no volume"),
    "flat": (np.zeros((1, 3)), np.ones((3, 3)), True, "no volume"),
    "heap": (np.zeros((8000, 3)), CUBE, False, "atom 0 alone has about 8.0e.03"),
    "heap in a cell": (np.zeros((8000, 3)), CUBE, True, "pairs"),
    "heap in a crowd": (np.arange(9000)[:, None] // 8000 * [4.0, 0, 0], CUBE, False, "atom 0"),
}


@pytest.mark.parametrize("name", ABSURD)
def test_what_is_absurd_never_reaches_the_search(name, monkeypatch):
    def called(*args, **options):
        raise AssertionError("the native search was called")

    monkeypatch.setattr(neighbors.vesin, "NeighborList", called)
    positions, cell, periodic, message = ABSURD[name]
    pbc = np.array([periodic] * 3)
    with pytest.raises(ValueError, match=message):
        neighbor_edges(np.asarray(positions, dtype=float), cell, pbc, CUTOFF)


def test_no_atoms_have_no_edges():
    edge_index, edge_shift = search(Atoms())
    assert edge_index.shape == (2, 0)
    assert edge_shift.shape == (0, 3)


def test_dense_crystals_are_not_taken_for_heaps():
    """A hundred thousand atoms at the density of metals, and a long cutoff."""
    generator = np.random.default_rng(0)
    positions = generator.uniform(0.0, 93.0, size=(100_000, 3))
    points, box, _ = compact(positions, 93.0 * np.eye(3), np.ones(3, bool), 11.0)
    np.testing.assert_allclose(box, 93.0 * np.eye(3))
    np.testing.assert_allclose(points - points[0], positions - positions[0], atol=1e-10)


def test_a_structure_without_empty_space_is_left_alone():
    atoms = Atoms("H2", [[0.5, 0.5, 0.5], [2.0, 2.0, 2.0]], cell=[3.0] * 3, pbc=True)
    points, box, image = compact(atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF)
    np.testing.assert_allclose(np.ptp(points, axis=0), [1.5] * 3)
    np.testing.assert_array_equal(box, atoms.cell.array)
    assert not image.any()


@pytest.mark.parametrize("rows", [[0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]])
def test_every_tensor_of_a_graph_is_in_rows(rows):
    """Whatever order `Cell.complete` or the owner of the positions chose."""
    cell = np.zeros((3, 3))
    cell[rows] = np.array([[3.0, 4.0, 0.0], [0.5, 4.0, 1.0], [1.0, 0.0, 5.0]])[rows]
    pbc = [k in rows for k in range(3)]
    atoms = Atoms("H2", cell=cell, pbc=pbc)
    atoms.arrays["positions"] = np.asfortranarray([[0.0, 0.0, 0.0], [0.5, 0.6, 0.7]])
    atoms.arrays["numbers"] = np.array([1, 0, 1, 0])[::2]
    graph = graph_of(atoms, CUTOFF)
    for name, value in graph._asdict().items():
        if name != "n_graphs":
            assert value.is_contiguous(), name
