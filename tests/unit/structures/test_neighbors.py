"""Neighbour lists against ASE's, and the skin against a fresh search."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.neighborlist import neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_bayesmlip.graph import edge_vectors
from ase_bayesmlip.structures.neighbors import (
    NeighborList,
    atomic_graph,
    complete_cell,
    find_lone_atoms,
    has_lattice,
    neighbor_edges,
)

FAST = settings(max_examples=40, deadline=None)


def edge_set(edges) -> set[tuple[int, ...]]:
    edge_index, edge_shift = edges
    rows = [(*pair, *shift) for pair, shift in zip(edge_index.T, edge_shift, strict=True)]
    found = {tuple(int(x) for x in row) for row in rows}
    assert len(found) == len(rows), "an edge appears twice"
    return found


def ase_edges(atoms: Atoms, cutoff: float) -> set[tuple[int, ...]]:
    i, j, shift = neighbor_list("ijS", atoms, cutoff)
    return edge_set((np.stack([i, j]), shift))


def search(atoms: Atoms, cutoff: float):
    return neighbor_edges(atoms.positions, complete_cell(atoms), atoms.pbc, cutoff)


def random_atoms(seed: int, n_atoms: int, size: float, pbc) -> Atoms:
    """Atoms in and around a random triclinic cell of the given size."""
    generator = np.random.default_rng(seed)
    cell = size * (np.eye(3) + generator.uniform(-0.3, 0.3, size=(3, 3)))
    positions = generator.uniform(-0.5, 1.5, size=(n_atoms, 3)) @ cell
    return Atoms(f"H{n_atoms}", positions=positions, cell=cell, pbc=pbc)


@FAST
@given(seed=st.integers(0, 10**6), n_atoms=st.integers(1, 12), cutoff=st.floats(0.5, 3.0))
def test_lone_atoms_have_no_distance_within_the_cutoff(seed, n_atoms, cutoff):
    positions = np.random.default_rng(seed).uniform(0.0, 6.0, size=(n_atoms, 3))
    atoms = Atoms(f"H{n_atoms}", positions=positions)
    distances = atoms.get_all_distances() + 100.0 * np.eye(n_atoms)
    expected = np.flatnonzero(distances.min(axis=1) >= cutoff)
    np.testing.assert_array_equal(find_lone_atoms(search(atoms, cutoff)[0], n_atoms), expected)


@FAST
@given(seed=st.integers(0, 10**6), n_atoms=st.integers(1, 12), cutoff=st.floats(0.5, 6.0))
def test_molecules_agree_with_ase(seed, n_atoms, cutoff):
    positions = np.random.default_rng(seed).uniform(0.0, 6.0, size=(n_atoms, 3))
    atoms = Atoms(f"H{n_atoms}", positions=positions)
    assert edge_set(search(atoms, cutoff)) == ase_edges(atoms, cutoff)


@FAST
@given(
    seed=st.integers(0, 10**6),
    n_atoms=st.integers(1, 4),
    size=st.floats(1.5, 5.0),
    pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_triclinic_cells_smaller_than_the_cutoff_agree_with_ase(seed, n_atoms, size, pbc):
    atoms = random_atoms(seed, n_atoms, size, pbc)
    assert edge_set(search(atoms, 5.0)) == ase_edges(atoms, 5.0)


@FAST
@given(seed=st.integers(0, 10**6), open_axis=st.integers(0, 2), cutoff=st.floats(2.0, 6.0))
def test_slabs_without_a_third_cell_vector_agree_with_ase(seed, open_axis, cutoff):
    generator = np.random.default_rng(seed)
    cell = 3.0 * np.eye(3) + generator.uniform(-0.5, 0.5, size=(3, 3))
    cell[open_axis] = 0.0
    pbc = [axis != open_axis for axis in range(3)]
    positions = generator.uniform(0.0, 8.0, size=(4, 3))
    atoms = Atoms("H4", positions=positions, cell=cell, pbc=pbc)
    assert edge_set(search(atoms, cutoff)) == ase_edges(atoms, cutoff)


def test_wire_without_two_cell_vectors_agrees_with_ase():
    atoms = Atoms("H2", [[0, 0, 0], [0.5, 3.0, 1.0]], cell=[2.0, 0, 0], pbc=[True, False, False])
    assert edge_set(search(atoms, 5.0)) == ase_edges(atoms, 5.0)


def test_one_atom_neighbours_its_own_images():
    atoms = bulk("Cu", "fcc", a=3.6)
    edge_index, edge_shift = search(atoms, 3.6 / np.sqrt(2.0) + 0.01)
    assert edge_index.shape == (2, 12)
    assert not edge_index.any()
    assert edge_shift.any(axis=1).all()


def test_isolated_atom_has_no_edges():
    edge_index, edge_shift = search(Atoms("H"), 5.0)
    assert edge_index.shape == (2, 0)
    assert edge_shift.shape == (0, 3)
    assert edge_index.dtype == edge_shift.dtype == np.int64


def test_edges_are_sorted_by_centre():
    edge_index, _ = search(bulk("NaCl", "rocksalt", a=5.6) * (2, 1, 1), 5.0)
    assert (np.diff(edge_index[0]) >= 0).all()


@pytest.mark.parametrize("periodic", [False, True])
def test_skin_gives_a_fresh_search_along_a_random_walk(periodic):
    atoms = bulk("Cu", "fcc", a=3.6) * (2, 1, 1) if periodic else molecule("CH3CH2OH")
    neighbors = NeighborList(cutoff=3.0, skin=0.5)
    generator = np.random.default_rng(0)
    changes, last = 0, None
    for _ in range(200):
        atoms.positions += 0.02 * generator.normal(size=atoms.positions.shape)
        found = edge_set(neighbors(atoms))
        assert found == ase_edges(atoms, 3.0)
        changes += found != last
        last = found
    assert changes > 10  # the walk does cross the cutoff
    assert 2 <= neighbors.n_builds < 60


def random_structure(seed: int, n_periodic: int, n_atoms: int, size: float) -> Atoms:
    """A molecule, wire, slab or crystal; open directions may have no cell vector."""
    generator = np.random.default_rng(seed)
    pbc = generator.permutation(np.arange(3) < n_periodic)
    cell = size * (np.eye(3) + generator.uniform(-0.3, 0.3, size=(3, 3)))
    positions = generator.uniform(-0.5, 1.5, size=(n_atoms, 3)) @ cell
    if generator.integers(2):
        cell[~pbc] = 0.0
    return Atoms(f"H{n_atoms}", positions=positions, cell=cell, pbc=pbc)


@FAST
@given(
    seed=st.integers(0, 10**6),
    n_periodic=st.integers(0, 3),
    n_atoms=st.integers(1, 6),
    size=st.floats(1.5, 6.0),
    skin=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_skin_leaves_no_trace_along_a_walk(seed, n_periodic, n_atoms, size, skin):
    """The list is that of a fresh search in the same order, sorted and exactly symmetric."""
    atoms = random_structure(seed, n_periodic, n_atoms, size)
    neighbors = NeighborList(cutoff=4.0, skin=skin)
    generator = np.random.default_rng(seed + 1)
    # Mostly straight on, so that atoms meet, part and cross the skin.
    drift = 0.05 * generator.normal(size=atoms.positions.shape)
    for _ in range(10):
        atoms.positions += drift + 0.01 * generator.normal(size=drift.shape)
        edge_index, edge_shift, squared = neighbors.measured(atoms)
        fresh_index, fresh_shift = search(atoms, 4.0)
        np.testing.assert_array_equal(edge_index, fresh_index)
        np.testing.assert_array_equal(edge_shift, fresh_shift)
        assert edge_index.dtype == edge_shift.dtype == np.int64

        rows = [tuple(row) for row in np.column_stack([*edge_index, edge_shift]).tolist()]
        assert rows == sorted(rows)
        place = {row: k for k, row in enumerate(rows)}
        opposite = [place[j, i, -x, -y, -z] for i, j, x, y, z in rows]
        vectors = edge_vectors(atomic_graph(atoms, (edge_index, edge_shift))).numpy()
        np.testing.assert_array_equal(vectors[opposite], -vectors)
        np.testing.assert_array_equal(squared[opposite], squared)
        np.testing.assert_allclose(squared, (vectors**2).sum(axis=1), rtol=1e-12)


def test_skin_rebuilds_only_beyond_half_of_it():
    atoms = molecule("H2O")
    neighbors = NeighborList(cutoff=3.0, skin=0.5)
    neighbors(atoms)
    atoms.positions[0, 0] += 0.249
    neighbors(atoms)
    assert neighbors.n_builds == 1
    atoms.positions[0, 0] += 0.002
    neighbors(atoms)
    assert neighbors.n_builds == 2


def test_without_skin_every_move_rebuilds():
    atoms = molecule("H2O")
    neighbors = NeighborList(cutoff=3.0, skin=0.0)
    for step in range(1, 4):
        atoms.positions[0, 0] += 1e-9
        assert edge_set(neighbors(atoms)) == ase_edges(atoms, 3.0)
        assert neighbors.n_builds == step


def test_changes_of_cell_boundaries_or_size_rebuild():
    atoms = bulk("Cu", "fcc", a=3.6, cubic=True)
    neighbors = NeighborList(cutoff=4.0, skin=1.0)

    def check(expected_builds: int) -> None:
        assert edge_set(neighbors(atoms)) == ase_edges(atoms, 4.0)
        assert neighbors.n_builds == expected_builds

    check(1)
    check(1)
    atoms.cell[0, 0] += 1e-6
    check(2)
    atoms.pbc = [True, True, False]
    check(3)
    del atoms[0]
    check(4)
    atoms += Atoms("H", [[1.0, 1.0, 1.0]])
    check(5)


def test_wrapping_an_atom_rebuilds():
    atoms = bulk("Cu", "fcc", a=3.6, cubic=True)
    atoms.positions += 0.01 - np.array([0.0, 0.0, 1.0])
    neighbors = NeighborList(cutoff=4.0, skin=0.5)
    neighbors(atoms)
    atoms.wrap()
    assert edge_set(neighbors(atoms)) == ase_edges(atoms, 4.0)


def test_caller_may_change_its_own_arrays():
    atoms = molecule("H2O")
    neighbors = NeighborList(cutoff=3.0, skin=0.5)
    edge_index, _ = neighbors(atoms)
    edge_index[:] = 0
    assert edge_set(neighbors(atoms)) == ase_edges(atoms, 3.0)


@pytest.mark.parametrize(("cutoff", "skin"), [(0.0, 0.5), (-1.0, 0.5), (3.0, -0.1)])
def test_unusable_cutoff_or_skin(cutoff, skin):
    with pytest.raises(ValueError, match="cutoff must be positive"):
        NeighborList(cutoff, skin)


@pytest.mark.parametrize(
    "cell", [None, [9, 9, 9], [9, 9, 0], [0, 9, 0], [[1, 1, 0], [0, 0, 0], [0, 0, 2]]]
)
def test_a_lattice_has_three_vectors(cell):
    atoms = Atoms("H", cell=cell)
    assert has_lattice(atoms) == (atoms.cell.rank == 3)


def test_a_cell_that_is_not_a_number_is_never_taken_for_the_last_one():
    neighbors = NeighborList(cutoff=3.0)
    still = np.zeros((1, 3)), np.full((3, 3), np.nan), np.zeros(3, dtype=bool)
    neighbors._positions, neighbors._cell, neighbors._pbc = still
    assert neighbors._is_stale(*still)


def test_cell_is_completed_only_where_something_is_periodic():
    assert not complete_cell(molecule("H2O")).any()
    slab = fcc111("Cu", (1, 1, 2))
    assert slab.cell.rank == 2
    completed = complete_cell(slab)
    assert abs(np.linalg.det(completed)) > 0
    np.testing.assert_array_equal(completed[:2], slab.cell.array[:2])


def test_graph_holds_the_structure():
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    graph = atomic_graph(atoms, search(atoms, 4.0))
    assert graph.n_graphs == 1
    assert graph.positions.dtype == graph.cell.dtype == graph.edge_shift.dtype == torch.float64
    np.testing.assert_array_equal(graph.positions.numpy(), atoms.positions)
    np.testing.assert_array_equal(graph.cell[0].numpy(), atoms.cell.array)
    assert graph.atomic_numbers.tolist() == [11, 17]
    lengths = torch.linalg.vector_norm(edge_vectors(graph), dim=1)
    assert 0.0 < float(lengths.min()) <= float(lengths.max()) < 4.0


def test_graph_does_not_share_memory_with_the_atoms():
    atoms = molecule("H2O")
    graph = atomic_graph(atoms, search(atoms, 4.0))
    before = graph.positions.clone()
    atoms.positions += 1.0
    assert torch.equal(graph.positions, before)
