"""Graphs: what the indices mean, strain and batching."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from ase_bayesmlip.graph import batch_graphs, edge_vectors, graph_to, strained
from ase_bayesmlip.testing import graph_of


def triclinic() -> Atoms:
    atoms = bulk("Cu", "fcc", a=3.6)
    atoms.rattle(0.05, seed=1)
    return atoms


def test_edge_vector_points_from_centre_to_neighbour():
    atoms = Atoms("CO", positions=[[0.0, 0.0, 0.0], [1.0, 0.5, 0.2]])
    graph = graph_of(atoms, 2.0)
    expected = {(0, 1): [1.0, 0.5, 0.2], (1, 0): [-1.0, -0.5, -0.2]}
    for (i, j), vector in zip(graph.edge_index.T.tolist(), edge_vectors(graph), strict=True):
        np.testing.assert_array_equal(vector.numpy(), expected[i, j])


def test_edge_vector_adds_lattice_translations_of_row_vectors():
    atoms = triclinic()
    graph = graph_of(atoms, 4.0)
    image = atoms.positions[graph.edge_index[1]] + graph.edge_shift.numpy() @ atoms.cell.array
    expected = image - atoms.positions[graph.edge_index[0]]
    np.testing.assert_allclose(edge_vectors(graph).numpy(), expected, atol=1e-14)


def test_every_edge_has_its_reverse():
    graph = graph_of(triclinic(), 4.0)
    vectors = edge_vectors(graph)
    assert torch.allclose(vectors.sum(0), torch.zeros(3, dtype=vectors.dtype), atol=1e-12)


def test_strain_multiplies_every_edge_vector():
    graph = graph_of(triclinic(), 4.0)
    strain = torch.tensor([[[0.02, 0.01, 0.0], [0.01, -0.03, 0.005], [0.0, 0.005, 0.01]]])
    strain = strain.to(torch.float64)
    deform = torch.eye(3, dtype=torch.float64) + strain[0]
    moved = edge_vectors(strained(graph, strain))
    assert torch.allclose(moved, edge_vectors(graph) @ deform, atol=1e-13)


def test_strain_is_symmetrised():
    graph = graph_of(triclinic(), 4.0)
    rotation_only = torch.zeros(1, 3, 3, dtype=torch.float64)
    rotation_only[0, 0, 1], rotation_only[0, 1, 0] = 0.1, -0.1
    unchanged = strained(graph, rotation_only)
    assert torch.equal(unchanged.positions, graph.positions)
    assert torch.equal(unchanged.cell, graph.cell)


def test_strain_of_a_batch_acts_on_each_structure_alone():
    batch = batch_graphs([graph_of(triclinic(), 4.0), graph_of(triclinic(), 4.0)])
    strain = torch.zeros(2, 3, 3, dtype=torch.float64)
    strain[1] = 0.1 * torch.eye(3)
    moved = strained(batch, strain)
    assert torch.equal(moved.positions[0], batch.positions[0])
    assert torch.equal(moved.cell[0], batch.cell[0])
    assert torch.allclose(moved.cell[1], 1.1 * batch.cell[1])


def test_batch_keeps_structures_apart():
    frames = [molecule("H2O"), triclinic(), molecule("CH4")]
    graphs = [graph_of(atoms, 4.0) for atoms in frames]
    batch = batch_graphs(graphs)
    assert batch.n_graphs == 3
    assert batch.batch.tolist() == [0] * 3 + [1] * len(frames[1]) + [2] * 5
    assert torch.equal(batch.batch[batch.edge_index[0]], batch.batch[batch.edge_index[1]])
    joined = torch.cat([edge_vectors(graph) for graph in graphs])
    assert torch.equal(edge_vectors(batch), joined)


def test_batch_of_batches_is_the_flat_batch():
    graphs = [graph_of(molecule(name), 4.0) for name in ("H2O", "CH4", "CO2")]
    nested = batch_graphs([batch_graphs(graphs[:2]), graphs[2]])
    flat = batch_graphs(graphs)
    assert nested.n_graphs == flat.n_graphs
    for one, other in zip(nested[:-1], flat[:-1], strict=True):
        assert torch.equal(one, other)


def test_batch_of_one_is_that_graph():
    graph = graph_of(molecule("H2O"), 4.0)
    assert batch_graphs([graph]) is graph


def test_empty_batch_is_refused():
    with pytest.raises(ValueError, match="at least one graph"):
        batch_graphs([])


def test_graph_to_changes_floating_point_fields_alone():
    graph = graph_to(graph_of(triclinic(), 4.0), torch.device("cpu"), torch.float32)
    for field in (graph.positions, graph.cell, graph.edge_shift):
        assert field.dtype == torch.float32
    for field in (graph.atomic_numbers, graph.edge_index, graph.batch):
        assert field.dtype == torch.int64
