"""Tables of neighbours, their geometry, and the chain rule back to positions."""

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from e3nn import o3
from tiny import randn

from ase_bayesmlip.graph import batch_graphs, dense_edges, edge_vectors, graph_to, strained
from ase_bayesmlip.nn.angular import SphericalHarmonics
from ase_bayesmlip.nn.stacked.geometry import (
    DenseGeometry,
    forces_from_edges,
    vector_gradients,
    virial_from_edges,
)
from ase_bayesmlip.testing import graph_of

CUTOFF = 4.0
MEMBERS = 3
DEGREES = pytest.mark.parametrize("l_max", [0, 1, 2, 3, 4])


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=3)
    return atoms


def triclinic() -> Atoms:
    """Two atoms in a skewed cell smaller than the cutoff."""
    atoms = bulk("CO", "zincblende", a=4.2)
    skew = np.array([[0.0, 0.1, 0.0], [0.0, 0.0, -0.2], [0.3, 0.0, 0.0]])
    atoms.set_cell(atoms.cell.array + skew, scale_atoms=True)
    atoms.rattle(0.1, seed=1)
    return atoms


def wire() -> Atoms:
    """Periodic in one direction, with a neighbour that is the atom itself."""
    return Atoms("HO", [[0, 0, 0], [0.4, 0.9, 0.3]], cell=[2.5, 9.0, 9.0], pbc=[True, False, False])


def shuffled(graph, seed=0):
    """The same edges in another order."""
    order = torch.randperm(graph.edge_index.shape[1], generator=torch.Generator().manual_seed(seed))
    return graph._replace(edge_index=graph.edge_index[:, order], edge_shift=graph.edge_shift[order])


GRAPHS = {
    "molecule": lambda: graph_of(ethanol(), CUTOFF),
    "crystal": lambda: graph_of(triclinic(), CUTOFF),
    "wire": lambda: graph_of(wire(), CUTOFF),
    "unsorted": lambda: shuffled(graph_of(triclinic(), CUTOFF)),
    "lonely atoms": lambda: graph_of(
        Atoms("OHCOH", [[9, 9, 9], [0, 0, 0], [1, 0, 0], [-9, 0, 0], [0, 1, 1]]), CUTOFF
    ),
    "no edges": lambda: graph_of(Atoms("OH", [[0, 0, 0], [9, 0, 0]]), CUTOFF),
    "batch": lambda: batch_graphs(
        [graph_of(atoms, CUTOFF) for atoms in (wire(), ethanol(), triclinic(), Atoms("H"))]
    ),
    "unsorted batch": lambda: shuffled(
        batch_graphs([graph_of(atoms, CUTOFF) for atoms in (triclinic(), ethanol())])
    ),
}
ALL = pytest.mark.parametrize("name", sorted(GRAPHS))


def places(edges):
    """(n_atoms, width): whether there is a neighbour."""
    return torch.arange(edges.neighbor.shape[1]) < edges.n_neighbors.unsqueeze(1)


def per_edge(values, graph, edges):
    """Columns of a dense table, (..., n_atoms, width, m), in the order of the list of edges."""
    centre, neighbour = graph.edge_index
    same = edges.neighbor[centre] == neighbour.unsqueeze(1)
    same &= (edges.shift[centre] == graph.edge_shift.unsqueeze(1)).all(2)
    same &= places(edges)[centre]
    assert (same.sum(1) == 1).all()
    return values[..., centre, same.to(torch.int64).argmax(1), :]


def in_table(values, graph, edges):
    """Values of the edges, (..., n_edges, m), as a dense table with zeros elsewhere."""
    shape = (*values.shape[:-2], *edges.neighbor.shape, values.shape[-1])
    indices = torch.arange(edges.neighbor.numel()).view(*edges.neighbor.shape, 1)
    flat = per_edge(indices, graph, edges)[:, 0]
    table = values.new_zeros((*values.shape[:-2], edges.neighbor.numel(), values.shape[-1]))
    table[..., flat, :] = values
    return table.view(shape)


# --- the table -----------------------------------------------------------------------------------


def keys(centre, neighbour, shift):
    """Edges as sorted rows (i, j, s_1, s_2, s_3)."""
    return sorted(
        (i, j, *s)
        for i, j, s in zip(centre.tolist(), neighbour.tolist(), shift.tolist(), strict=True)
    )


@ALL
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_table_is_that_of_the_definition(name, dtype):
    graph = graph_to(GRAPHS[name](), torch.device("cpu"), dtype)
    edges = dense_edges(graph)
    neighbor, shift = torch.zeros_like(edges.neighbor), torch.zeros_like(edges.shift)
    for i in range(len(graph.positions)):
        own = torch.nonzero(graph.edge_index[0] == i)[:, 0]
        neighbor[i] = i
        neighbor[i, : len(own)] = graph.edge_index[1, own]
        shift[i, : len(own)] = graph.edge_shift[own]
    assert torch.equal(edges.neighbor, neighbor)
    assert torch.equal(edges.shift, shift)
    assert edges.neighbor.dtype == edges.n_neighbors.dtype == torch.int64
    assert edges.shift.dtype == dtype


@ALL
def test_the_table_holds_every_edge_once(name):
    graph = GRAPHS[name]()
    edges = dense_edges(graph)
    present = places(edges)
    centre = torch.nonzero(present)[:, 0]
    found = keys(centre, edges.neighbor[present], edges.shift[present])
    assert found == keys(*graph.edge_index, graph.edge_shift)
    assert len(set(found)) == len(found)


@ALL
def test_places_without_a_neighbour_name_the_atom_itself(name):
    graph = GRAPHS[name]()
    edges = dense_edges(graph)
    absent = ~places(edges)
    own = torch.arange(len(graph.positions)).unsqueeze(1).expand_as(edges.neighbor)
    assert torch.equal(edges.neighbor[absent], own[absent])
    assert not edges.shift[absent].any()
    assert edges.shift.dtype == graph.edge_shift.dtype


@ALL
@pytest.mark.parametrize("min_width", [1, 2, 60])
def test_the_table_is_as_wide_as_it_must_be(name, min_width):
    graph = GRAPHS[name]()
    edges = dense_edges(graph, min_width)
    counts = [int((graph.edge_index[0] == i).sum()) for i in range(len(graph.positions))]
    assert edges.n_neighbors.tolist() == counts
    width = max([min_width, *counts])
    assert edges.neighbor.shape == (len(counts), width)
    assert edges.shift.shape == (len(counts), width, 3)


def test_the_order_of_edges_does_not_matter_for_an_atom():
    graph = GRAPHS["batch"]()
    one, other = dense_edges(graph), dense_edges(shuffled(graph))
    assert torch.equal(one.n_neighbors, other.n_neighbors)
    assert not torch.equal(one.neighbor, other.neighbor)


# --- geometry ------------------------------------------------------------------------------------


@ALL
@DEGREES
def test_geometry_is_that_of_the_edges(name, l_max):
    graph = GRAPHS[name]()
    edges = dense_edges(graph)
    geometry = DenseGeometry(CUTOFF, l_max).double()
    around = geometry(graph.positions, graph.cell, graph.batch, edges)
    vectors, harmonics, distances = around[:3]
    assert torch.equal(around.neighbor, edges.neighbor)
    assert torch.equal(around.n_neighbors, edges.n_neighbors)
    assert harmonics.shape == (*edges.neighbor.shape, (l_max + 1) ** 2)
    expected = edge_vectors(graph)
    length = torch.sqrt((expected * expected).sum(1, keepdim=True))
    pairs = [
        (vectors, expected),
        (distances.unsqueeze(2), length),
        (harmonics, SphericalHarmonics(l_max)(expected / length)),
    ]
    for found, reference in pairs:
        torch.testing.assert_close(per_edge(found, graph, edges), reference, rtol=0.0, atol=1e-13)


@ALL
def test_absent_neighbours_lie_beyond_the_cutoff(name):
    graph = GRAPHS[name]()
    edges = dense_edges(graph, min_width=40)
    geometry = DenseGeometry(CUTOFF, 2).double()
    around = geometry(graph.positions, graph.cell, graph.batch, edges)
    absent = ~places(edges)
    assert absent.any()
    assert (around.distances[absent] >= CUTOFF).all()
    assert torch.isfinite(around.harmonics).all()
    assert torch.isfinite(around.slopes).all()


def test_differences_come_before_the_loss_of_precision():
    graph = GRAPHS["molecule"]()
    far = graph._replace(positions=graph.positions + 1e5)
    edges = dense_edges(graph)
    geometry = DenseGeometry(CUTOFF, 2).float()
    near_by, far_away = (geometry(g.positions, g.cell, g.batch, edges)[:4] for g in (graph, far))
    assert [part.dtype for part in far_away] == [torch.float64, *[torch.float32] * 3]
    for one, other in zip(near_by, far_away, strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=2e-6)


# --- the way back --------------------------------------------------------------------------------


def solid_harmonics(vectors, l_max):
    """S_lm(r) = rˡ Y_lm(r/r), polynomials, from e3nn."""
    degrees = list(range(l_max + 1))
    return o3.spherical_harmonics(degrees, vectors, normalize=False, normalization="component")


@DEGREES
def test_slopes_of_solid_harmonics(l_max):
    geometry = DenseGeometry(CUTOFF, l_max).double()
    vectors = randn(20, 3)
    solid = solid_harmonics(vectors, l_max)
    expected = torch.autograd.functional.jacobian(
        lambda x: solid_harmonics(x, l_max).sum(0), vectors
    ).permute(2, 1, 0)
    found = torch.stack([solid @ geometry.solid_slopes[a] for a in range(3)])
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-11)


def test_slopes_of_vectors_in_closed_form():
    """Y_1 = √3 (x, y, z) and Y_00 = 1: ∂_a S_1b = √3 δ_ab."""
    slopes = DenseGeometry(CUTOFF, 1).solid_slopes
    expected = torch.zeros(3, 4, 4, dtype=torch.float64)
    for a in range(3):
        expected[a, 0, 1 + a] = math.sqrt(3.0)
    torch.testing.assert_close(slopes, expected, rtol=0.0, atol=1e-14)


def way_back(geometry, graph, edges, by_harmonics, by_distances):
    """Vectors and the gradients by them."""
    around = geometry(graph.positions, graph.cell, graph.batch, edges)
    return around.vectors, vector_gradients(by_harmonics, by_distances, around.slopes)


def random_slopes(edges, l_max, dtype=torch.float64):
    shape = (MEMBERS, *edges.neighbor.shape)
    return randn(*shape, (l_max + 1) ** 2).to(dtype), randn(*shape, seed=1).to(dtype)


@pytest.mark.parametrize("name", ["molecule", "batch", "no edges"])
@DEGREES
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_vector_gradients_are_those_of_autograd(name, l_max, dtype, tolerance):
    """Of any linear function of harmonics and distances, for each member."""
    graph = GRAPHS[name]()
    edges = dense_edges(graph)
    by_harmonics, by_distances = random_slopes(edges, l_max)
    geometry = DenseGeometry(CUTOFF, l_max).to(dtype)
    vectors, found = way_back(
        geometry, graph, edges, by_harmonics.to(dtype), by_distances.to(dtype)
    )
    leaf = vectors.clone().requires_grad_(True)
    distances = torch.sqrt((leaf * leaf).sum(2))
    units = (leaf / distances.unsqueeze(2)).view(-1, 3)
    harmonics = SphericalHarmonics(l_max)(units).view(*distances.shape, -1)
    assert found.shape == (MEMBERS, *vectors.shape)
    for k in range(MEMBERS):
        value = (by_harmonics[k] * harmonics).sum() + (by_distances[k] * distances).sum()
        (expected,) = torch.autograd.grad(value, leaf, retain_graph=True)
        torch.testing.assert_close(found[k].double(), expected, rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("l_max", [1, 3])
def test_directions_have_no_slope_along_themselves(l_max):
    """r · ∂Y/∂r = 0: harmonics of the direction do not change with the length."""
    graph = GRAPHS["molecule"]()
    edges = dense_edges(graph)
    by_harmonics, by_distances = random_slopes(edges, l_max)
    geometry = DenseGeometry(CUTOFF, l_max).double()
    vectors, found = way_back(geometry, graph, edges, by_harmonics, 0.0 * by_distances)
    assert found.abs().max() > 0.1
    along = (found * vectors).sum(3)
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0.0, atol=1e-12)


def slopes_by_autograd(graph, per_edge_gradients):
    """-dE/dR and dE/dε of E = Σ_e g_e · r_e for one member."""
    positions = graph.positions.clone().requires_grad_(True)
    strain = torch.zeros_like(graph.cell).requires_grad_(True)
    vectors = edge_vectors(strained(graph._replace(positions=positions), strain))
    energy = (per_edge_gradients * vectors).sum()
    by_positions, by_strain = torch.autograd.grad(energy, [positions, strain])
    return -by_positions, by_strain


@ALL
def test_forces_and_virials_are_those_of_autograd(name):
    graph = GRAPHS[name]()
    edges = dense_edges(graph)
    listed = randn(MEMBERS, graph.edge_index.shape[1], 3)
    gradients = in_table(listed, graph, edges)
    vectors = in_table(edge_vectors(graph), graph, edges)
    forces = forces_from_edges(gradients, edges)
    virial = virial_from_edges(gradients, vectors, graph.batch, graph.n_graphs)
    assert forces.shape == (MEMBERS, *graph.positions.shape)
    assert virial.shape == (MEMBERS, graph.n_graphs, 3, 3)
    for k in range(MEMBERS):
        expected_forces, expected_virial = slopes_by_autograd(graph, listed[k])
        torch.testing.assert_close(forces[k], expected_forces, rtol=0.0, atol=1e-12)
        torch.testing.assert_close(virial[k], expected_virial, rtol=0.0, atol=1e-11)


def test_forces_of_a_structure_add_up_to_nothing():
    graph = GRAPHS["batch"]()
    edges = dense_edges(graph)
    gradients = in_table(randn(MEMBERS, graph.edge_index.shape[1], 3), graph, edges)
    forces = forces_from_edges(gradients, edges)
    assert forces.abs().max() > 1.0
    for k in range(graph.n_graphs):
        total = forces[:, graph.batch == k].sum(1)
        torch.testing.assert_close(total, torch.zeros_like(total), rtol=0.0, atol=1e-12)


def test_virials_are_summed_in_double_precision():
    graph = GRAPHS["crystal"]()
    edges = dense_edges(graph)
    listed = randn(MEMBERS, graph.edge_index.shape[1], 3).float()
    gradients = in_table(listed, graph, edges)
    vectors = in_table(edge_vectors(graph), graph, edges)
    found = virial_from_edges(gradients, vectors, graph.batch, graph.n_graphs)
    expected = virial_from_edges(gradients.double(), vectors, graph.batch, graph.n_graphs)
    assert found.dtype == torch.float64
    assert torch.equal(found, expected)


def test_single_precision_graphs_have_tables_too():
    graph = graph_to(GRAPHS["batch"](), torch.device("cpu"), torch.float32)
    edges = dense_edges(graph)
    assert edges.shift.dtype == torch.float32
    around = DenseGeometry(CUTOFF, 2).float()(graph.positions, graph.cell, graph.batch, edges)
    assert {part.dtype for part in around[:4]} == {torch.float32}
    found = per_edge(around.vectors, graph, edges)
    torch.testing.assert_close(found, edge_vectors(graph), rtol=0.0, atol=1e-6)
