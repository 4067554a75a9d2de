"""The table of neighbours that a compiled program keeps: the same as one made afresh."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from ase_bayesmlip.graph import batch_graphs, dense_edges
from ase_bayesmlip.serving.compiled import EdgeTable, program_inputs
from ase_bayesmlip.structures.neighbors import NeighborList, atomic_graph
from ase_bayesmlip.testing import graph_of

CUTOFF = 4.0
CPU = torch.device("cpu")


def crystal() -> Atoms:
    return bulk("NaCl", "rocksalt", a=5.6)


def assert_afresh(table, graph):
    """The table is `dense_edges` in the types of a program; returns it."""
    found = table(graph)
    for item, expected in zip(found, dense_edges(graph), strict=True):
        floating = expected.is_floating_point()
        assert item.dtype == (torch.float64 if floating else torch.int64)
        assert torch.equal(item, expected.to(item.dtype))
    return found


def test_the_table_is_kept_while_atoms_move_within_reach():
    atoms = molecule("CH3CH2OH")
    table = EdgeTable(CPU)
    first = table(graph_of(atoms, CUTOFF))
    atoms.positions += 3.0
    atoms.rattle(1e-3, seed=0)
    second = assert_afresh(table, graph_of(atoms, CUTOFF))
    assert all(one is other for one, other in zip(first, second, strict=True))


def add_a_lonely_atom(atoms):
    atoms += Atoms("H", [[50.0, 0.0, 0.0]])


def remove(atoms):
    del atoms[0]


def leave(atoms):
    atoms.positions[0] += 30.0


def shrink(atoms):
    atoms.set_cell(0.8 * atoms.cell, scale_atoms=True)


def open_up(atoms):
    atoms.pbc = [True, True, False]


def wrap(atoms):
    atoms.positions[0] += atoms.cell[1]


CHANGES = [
    (molecule("CH3CH2OH"), add_a_lonely_atom),
    (molecule("CH3CH2OH"), remove),
    (molecule("CH3CH2OH"), leave),
    (crystal(), shrink),
    (crystal(), open_up),
    (crystal(), wrap),
]


@pytest.mark.parametrize(
    ("atoms", "change"), CHANGES, ids=lambda item: getattr(item, "__name__", "")
)
def test_other_edges_or_atoms_bring_another_table(atoms, change):
    atoms, table = atoms.copy(), EdgeTable(CPU)
    first = table(graph_of(atoms, CUTOFF))
    change(atoms)
    second = assert_afresh(table, graph_of(atoms, CUTOFF))
    assert not any(one is other for one, other in zip(first, second, strict=True))


def test_a_graph_that_is_changed_in_place_brings_another_table():
    graph = graph_of(crystal(), CUTOFF)
    table = EdgeTable(CPU)
    table(graph)
    graph.edge_shift[0] += 1.0
    assert_afresh(table, graph)
    graph.edge_index[1, 0] = 1 - graph.edge_index[1, 0]
    assert_afresh(table, graph)


def test_batches_and_precisions():
    frames = [molecule("H2O"), crystal(), Atoms("H"), molecule("CH4")]
    graphs = [graph_of(atoms, CUTOFF) for atoms in frames]
    table = EdgeTable(CPU)
    for chosen in (graphs, graphs[::-1], graphs[1:], [graphs[1]], [graphs[2]]):
        batch = batch_graphs(chosen)
        for graph in (batch, batch._replace(edge_shift=batch.edge_shift.float())):
            assert_afresh(table, graph)


def test_a_table_made_in_inference_mode_serves_outside():
    graph = graph_of(crystal(), CUTOFF)
    table = EdgeTable(CPU)
    with torch.inference_mode():
        table(graph)
    assert_afresh(table, graph)


@pytest.mark.parametrize("start", [molecule("CH3CH2OH"), crystal() * 2])
def test_along_a_walk(start):
    """Neighbours kept with a skin and a table kept while it can be, against both afresh."""
    generator = np.random.default_rng(0)
    atoms, neighbors, table = start.copy(), NeighborList(CUTOFF), EdgeTable(CPU)
    tables = []
    for step in range(80):
        atoms.positions += 0.01 * generator.standard_normal((len(atoms), 3))
        if step == 40:
            atoms.set_cell(1.05 * atoms.cell, scale_atoms=True)
        if step == 60:
            del atoms[-1]
        tables.append(table(atomic_graph(atoms, neighbors(atoms))))
        afresh = program_inputs(graph_of(atoms, CUTOFF), CPU)[4:]
        for item, expected in zip(tables[-1], afresh, strict=True):
            assert torch.equal(item, expected)
    kept = sum(one is other for (one, *_), (other, *_) in pairwise(tables))
    assert 0 < kept < 79
    assert 2 <= neighbors.n_builds < 80
