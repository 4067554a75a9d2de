"""Fused tensor products, formula and compiled kernels, against slow loops over edges."""

from __future__ import annotations

import dataclasses
import os
import shutil

import pytest
import torch
from ase import Atoms
from ase.build import bulk
from tiny import randn

from ase_bayesmlip.graph import DenseEdges, batch_graphs, dense_edges
from ase_bayesmlip.nn.angular import (
    SphericalHarmonics,
    component_slices,
    coupling,
    coupling_paths,
    edge_irreps,
    n_components,
    parse_irreps,
)
from ase_bayesmlip.nn.radial import DenseNetwork, RadialBasis
from ase_bayesmlip.nn.stacked import operators
from ase_bayesmlip.nn.stacked.couplings import Couplings, couplings
from ase_bayesmlip.nn.stacked.geometry import Surroundings
from ase_bayesmlip.nn.stacked.kernels import channel_kernels, neighbor_kernels, prelude
from ase_bayesmlip.nn.stacked.products import (
    channel_rows,
    channel_slopes,
    neighbor_slopes,
)
from ase_bayesmlip.nn.stacked.products import neighbor_rows as rows_of_neighbors
from ase_bayesmlip.nn.stacked.radial_table import interpolate, tabulate
from ase_bayesmlip.serving.compiler import build_kernels
from ase_bayesmlip.testing import graph_of

CUTOFF = 3.0
MEMBERS = 2
# Irreps of the features, l_max of the edges, irreps of the rows.
PRODUCTS = {
    "scalars": ("1x0e", 0, "1x0e"),
    "first": ("1x0e", 2, "1x0e + 1x1o + 1x2e"),
    "natural": ("1x0e + 1x1o", 2, "1x0e + 1x1o + 1x2e"),
    "parities": ("1x0o + 1x0e + 1x1o + 1x1e", 1, "1x0e + 1x1e + 1x2o"),
    "unread": ("1x0o + 1x0e + 1x1o", 2, "1x0e"),
}
ALL = pytest.mark.parametrize("case", sorted(PRODUCTS))
CHANNELS = 5


def irreps_of(case):
    left, l_max, out = PRODUCTS[case]
    return parse_irreps(left)[0], edge_irreps(l_max), parse_irreps(out)[0]


def paths_of(case):
    return coupling_paths(*irreps_of(case))


def couplings_of(case) -> Couplings:
    return couplings(*irreps_of(case), paths_of(case))


# --- geometry ------------------------------------------------------------------------------------


def atoms_in_small_cell() -> Atoms:
    """Two atoms in a cell smaller than the cutoff."""
    atoms = bulk("CO", "zincblende", a=4.6)
    atoms.rattle(0.1, seed=1)
    return atoms


def make_graph(atoms=None, cutoff=CUTOFF):
    """A crystal, a molecule of three atoms and an atom without neighbours."""
    molecule = Atoms("OCO", [[0, 0, 0], [1.1, 0.2, 0], [1.5, 1.2, 0.3]])
    frames = [atoms or atoms_in_small_cell(), molecule, Atoms("H")]
    return batch_graphs([graph_of(frame, cutoff) for frame in frames])


@dataclasses.dataclass
class Inputs:
    """Arguments of `neighbor_rows` that are not couplings."""

    features: torch.Tensor
    around: Surroundings
    radial: torch.Tensor

    def to(self, dtype):
        around = [x.to(dtype) if x.is_floating_point() else x for x in self.around]
        return Inputs(self.features.to(dtype), Surroundings(*around), self.radial.to(dtype))

    def leaves(self):
        """Features and vectors, the latter for every member of its own."""
        own = self.around.vectors.expand(len(self.features), *self.around.vectors.shape)
        return [part.clone().requires_grad_(True) for part in (self.features, own)]


def dense_vectors(positions, graph, edges):
    """Vectors of a table of neighbours; absent ones lie beyond the cutoff."""
    vectors = positions[edges.neighbor] - positions.unsqueeze(1)
    vectors = vectors + edges.shift @ graph.cell[graph.batch]
    present = torch.arange(edges.neighbor.shape[1]) < edges.n_neighbors.unsqueeze(1)
    far = torch.tensor([0.0, 0.6, 0.8], dtype=torch.float64) * 1.5 * CUTOFF
    return torch.where(present.unsqueeze(2), vectors, far)


def harmonics_and_distances(vectors, l_max):
    """Functions of vectors (..., 3) that autograd can differentiate."""
    distances = torch.sqrt((vectors * vectors).sum(-1))
    units = (vectors / distances.unsqueeze(-1)).reshape(-1, 3)
    return SphericalHarmonics(l_max)(units).view(*distances.shape, -1), distances


def surroundings(vectors, edges, l_max):
    """The same with slopes, by autograd: one harmonic after the other."""
    leaf = vectors.detach().clone().requires_grad_(True)
    harmonics, distances = harmonics_and_distances(leaf, l_max)
    columns = [distances, *harmonics[..., 1:].unbind(-1)]
    slopes = [torch.autograd.grad(x.sum(), leaf, retain_graph=True)[0] for x in columns]
    return Surroundings(
        vectors,
        harmonics.detach(),
        distances.detach(),
        torch.stack(slopes, dim=-2),
        edges.neighbor,
        edges.n_neighbors,
    )


def radial_tables(width, members=MEMBERS):
    functions = []
    for seed in range(members):
        basis = RadialBasis(CUTOFF, 4, 2)
        network = DenseNetwork([4, 8, width], torch.Generator().manual_seed(seed))
        functions.append(lambda r, basis=basis, network=network: network(basis(r)))
    return tabulate(functions, CUTOFF)[0]


def make_inputs(case, channels=CHANNELS, graph=None) -> Inputs:
    graph = graph or make_graph()
    edges = dense_edges(graph)
    table = couplings_of(case)
    around = surroundings(dense_vectors(graph.positions, graph, edges), edges, PRODUCTS[case][1])
    features = randn(MEMBERS, len(graph.positions), table.n_left, channels)
    return Inputs(features, around, radial_tables(table.n_paths * channels))


# --- the two ways, and the slow one --------------------------------------------------------------


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """Function: case, dtype, channels -> digest of a library with its kernels, built once."""
    built = {}

    def build(case, dtype=torch.float64, channels=CHANNELS):
        if shutil.which(os.environ.get("CXX", "g++")) is None:
            pytest.skip("needs a C++ compiler")
        key = case, dtype, channels
        if key not in built:
            table = couplings_of(case)
            source = (
                prelude("double" if dtype == torch.float64 else "float", channels, CUTOFF)
                + neighbor_kernels("neighbor", table)
                + channel_kernels("channel", table)
            )
            path, built[key] = build_kernels(source, tmp_path_factory.mktemp("kernels"))
            operators.load_kernels(path, built[key])
        return built[key]

    return build


@pytest.fixture(params=["formula", "kernel"])
def kernel(request, library):
    """Function: name, case, ... -> the argument `kernel` of the functions of `fused`."""
    if request.param == "formula":
        return lambda name, *arguments: None
    return lambda name, *arguments: f"{library(*arguments)}:{name}"


class NeighborRows(torch.autograd.Function):
    """`neighbor_rows` with `neighbor_slopes` as its derivative, by features and vectors."""

    @staticmethod
    def forward(ctx, features, vectors, around, radial, *last):
        edge = around.harmonics @ last[0].edge_matrix().to(radial.dtype)
        ctx.given = features, edge, around, radial
        ctx.last = last
        return rows_of_neighbors(*ctx.given, *last)

    @staticmethod
    def backward(ctx, grad):
        by_features = ctx.needs_input_grad[0]
        found = neighbor_slopes(*ctx.given, grad, *ctx.last, by_features=by_features)
        return (*found, *[None] * 5)


class ChannelRows(torch.autograd.Function):
    """`channel_rows` with `channel_slopes` as its derivative."""

    @staticmethod
    def forward(ctx, left, right, table, kernel):
        ctx.given, ctx.last = (left, right), (table, kernel)
        return channel_rows(left, right, table, kernel)

    @staticmethod
    def backward(ctx, grad):
        return (*channel_slopes(*ctx.given, grad, *ctx.last), None, None)


def neighbor_rows(case, inputs, leaves, kernel):
    last = couplings_of(case), CUTOFF, kernel
    return NeighborRows.apply(*leaves, inputs.around, inputs.radial, *last)


def ordered(case, by_path):
    """Outputs of all paths, each (..., dim, channels), as rows in the order of `Couplings`."""
    rows = []
    for k, irrep in enumerate(irreps_of(case)[2]):
        own = [by_path[number] for number, path in enumerate(paths_of(case)) if path.out == k]
        rows += [path[..., m, :] for m in range(irrep.dim) for path in own]
    return torch.stack(rows, dim=-2)


def slow_rows(case, inputs, features, vectors):
    """Σ_j R(r_ij) ∘ [h_j ⊗ Y(r_ij)], one member, atom, neighbour and path after the other."""
    harmonics, distances = harmonics_and_distances(vectors, PRODUCTS[case][1])
    left, right, out = irreps_of(case)
    left_slices, right_slices = component_slices(left), component_slices(right)
    members, n_atoms, _, channels = features.shape
    paths = paths_of(case)
    by_path = [
        torch.zeros(members, n_atoms, out[path.out].dim, channels, dtype=torch.float64)
        for path in paths
    ]
    for member in range(members):
        for i, count in enumerate(inputs.around.n_neighbors.tolist()):
            for k in range(count):
                j = inputs.around.neighbor[i, k]
                weights, _ = interpolate(
                    inputs.radial[member], distances[member, i, k].view(1, 1), CUTOFF
                )
                for number, path in enumerate(paths):
                    message = torch.einsum(
                        "ac,b,abm->mc",
                        features[member, j, left_slices[path.left]],
                        harmonics[member, i, k, right_slices[path.right]],
                        coupling(left[path.left], right[path.right], out[path.out]),
                    )
                    own = weights.view(-1, channels)[number]
                    by_path[number][member, i] += message * own
    return ordered(case, by_path)


def slopes_of(rows, leaves):
    """Derivatives of a fixed combination of the rows."""
    return torch.autograd.grad((rows * randn(*rows.shape, seed=9).to(rows.dtype)).sum(), leaves)


def assert_near(found, expected, tolerance):
    """Deviation relative to the largest value."""
    found, expected = found.detach().double(), expected.detach()
    size = float(expected.abs().max())
    assert size > 1e-3
    assert float((found - expected).abs().max()) <= tolerance * size


def gradcheck(function, *inputs):
    """Against finite differences, along random directions: the exact test is the slow loop."""
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


# --- sums over neighbours ------------------------------------------------------------------------


@ALL
def test_rows_and_their_derivatives_are_those_of_a_loop_over_edges(case, kernel):
    inputs = make_inputs(case)
    assert inputs.around.n_neighbors.min() == 0
    leaves, slow_leaves = inputs.leaves(), inputs.leaves()
    found = neighbor_rows(case, inputs, leaves, kernel("neighbor", case))
    expected = slow_rows(case, inputs, *slow_leaves)
    assert_near(found, expected, 1e-12)
    for slope, slow in zip(slopes_of(found, leaves), slopes_of(expected, slow_leaves), strict=True):
        assert_near(slope, slow, 1e-12)


@ALL
def test_slopes_by_features_are_left_out_where_those_are_constant(case, kernel):
    inputs = make_inputs(case)
    features, vectors = inputs.leaves()
    name = kernel("neighbor", case)
    both = slopes_of(neighbor_rows(case, inputs, [features, vectors], name), [features, vectors])
    rows = neighbor_rows(case, inputs, [features.detach(), vectors], name)
    (alone,) = slopes_of(rows, [vectors])
    assert torch.equal(alone, both[1])


@pytest.mark.parametrize("by_features", [True, False])
@pytest.mark.parametrize("case", ["natural", "parities"])
def test_several_gradients_of_a_member_are_found_one_after_the_other(case, kernel, by_features):
    inputs, table = make_inputs(case), couplings_of(case)
    edge = inputs.around.harmonics @ table.edge_matrix()
    given = inputs.features, edge, inputs.around, inputs.radial
    last = table, CUTOFF, kernel("neighbor", case), by_features
    n_atoms = inputs.features.shape[1]
    blocks = [randn(MEMBERS, n_atoms, len(table.rows), CHANNELS, seed=k) for k in range(3)]
    together = neighbor_slopes(*given, torch.cat(blocks), *last)
    alone = [neighbor_slopes(*given, block, *last) for block in blocks]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        if whole is None:
            assert not by_features
            assert parts == (None,) * 3
        else:
            torch.testing.assert_close(whole, torch.cat(parts), rtol=0.0, atol=1e-14)


@pytest.mark.parametrize("case", ["natural", "parities"])
def test_several_gradients_of_a_product(case, kernel):
    table, factors = couplings_of(case), [x.detach() for x in channel_factors(case)]
    shape = (MEMBERS, factors[0].shape[1], len(table.rows), CHANNELS)
    blocks = [randn(*shape, seed=k) for k in range(3)]
    last = table, kernel("channel", case)
    together = channel_slopes(*factors, torch.cat(blocks), *last)
    alone = [channel_slopes(*factors, block, *last) for block in blocks]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(whole, torch.cat(parts), rtol=0.0, atol=1e-14)


@pytest.mark.parametrize("case", ["natural", "parities"])
def test_gradcheck_by_features(case, kernel):
    graph = make_graph()
    inputs = make_inputs(case, graph=graph)
    features, vectors = inputs.leaves()

    def rows(features):
        leaves = [features, vectors.detach()]
        return neighbor_rows(case, inputs, leaves, kernel("neighbor", case))

    gradcheck(rows, features)


@pytest.mark.parametrize("case", ["natural", "parities"])
def test_gradcheck_by_positions(case, kernel):
    graph = make_graph()
    edges = dense_edges(graph)
    inputs = make_inputs(case, graph=graph)

    def rows(positions):
        vectors = dense_vectors(positions, graph, edges)
        moved = dataclasses.replace(inputs, around=surroundings(vectors, edges, PRODUCTS[case][1]))
        leaves = [inputs.features, vectors.expand(MEMBERS, *vectors.shape)]
        return neighbor_rows(case, moved, leaves, kernel("neighbor", case))

    gradcheck(rows, graph.positions.clone().requires_grad_(True))


@pytest.mark.parametrize("case", ["natural", "parities"])
def test_gradcheck_by_the_vectors_of_one_member(case, kernel):
    """Whose edges move by themselves, without their reverse: rows sum over neighbours alone."""
    inputs = make_inputs(case)
    inputs = dataclasses.replace(inputs, features=inputs.features[:1], radial=inputs.radial[:1])
    features, vectors = inputs.leaves()

    def rows(vectors):
        around = surroundings(vectors[0], inputs.around, PRODUCTS[case][1])
        moved = dataclasses.replace(inputs, around=around)
        return neighbor_rows(case, moved, [features.detach(), vectors], kernel("neighbor", case))

    gradcheck(rows, vectors)


def test_every_member_has_derivatives_of_its_own(kernel):
    inputs = make_inputs("natural")
    leaves = inputs.leaves()
    rows = neighbor_rows("natural", inputs, leaves, kernel("neighbor", "natural"))
    weight = randn(*rows.shape, seed=9)
    together = torch.autograd.grad((rows * weight).sum(), leaves)
    for k in range(MEMBERS):
        one = Inputs(inputs.features[k : k + 1], inputs.around, inputs.radial[k : k + 1])
        own = one.leaves()
        alone = neighbor_rows("natural", one, own, kernel("neighbor", "natural"))
        torch.testing.assert_close(alone[0], rows[k], rtol=0.0, atol=1e-13)
        for part, whole in zip(
            torch.autograd.grad((alone * weight[k]).sum(), own), together, strict=True
        ):
            torch.testing.assert_close(part[0], whole[k], rtol=0.0, atol=1e-12)


def test_an_atom_without_neighbours_has_no_rows_and_no_slopes(kernel):
    inputs = make_inputs("natural")
    lonely = int(inputs.around.n_neighbors.argmin())
    leaves = inputs.leaves()
    rows = neighbor_rows("natural", inputs, leaves, kernel("neighbor", "natural"))
    assert not rows[:, lonely].any()
    assert rows[:, :lonely].any(dim=(2, 3)).all()
    for slope in slopes_of(rows, leaves):
        assert not slope[:, lonely].any()
        assert slope[:, :lonely].flatten(2).any(dim=2).all()


def test_no_edges_at_all(kernel):
    graph = graph_of(Atoms("HCO", [[0, 0, 0], [9, 0, 0], [0, 9, 0]]), CUTOFF)
    inputs = make_inputs("natural", graph=graph)
    leaves = inputs.leaves()
    rows = neighbor_rows("natural", inputs, leaves, kernel("neighbor", "natural"))
    assert rows.shape == (MEMBERS, 3, len(couplings_of("natural").rows), CHANNELS)
    for value in (rows, *slopes_of(rows, leaves)):
        assert not value.any()


@pytest.mark.parametrize("stretch", [1.0, 1.0 + 1e-9, 40.0])
def test_places_beyond_the_count_are_ignored(kernel, stretch):
    inputs = make_inputs("natural")
    absent = torch.arange(inputs.around.neighbor.shape[1]) >= inputs.around.n_neighbors.unsqueeze(1)
    around = inputs.around
    other = dataclasses.replace(
        inputs,
        around=around._replace(
            harmonics=torch.where(absent.unsqueeze(2), 7.0, around.harmonics),
            distances=torch.where(absent, stretch * CUTOFF, around.distances),
            slopes=torch.where(absent[:, :, None, None], 7.0, around.slopes),
            neighbor=around.neighbor.masked_fill(absent, 1),
        ),
    )
    assert absent.any()
    results = []
    for each in (inputs, other):
        leaves = each.leaves()
        rows = neighbor_rows("natural", each, leaves, kernel("neighbor", "natural"))
        slopes = slopes_of(rows, leaves)
        assert not slopes[1][:, absent].any()
        results.append((rows, *slopes))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=0.0, atol=1e-14)


def test_neighbours_in_the_skin_add_nothing(kernel):
    """A list made with a larger cutoff, as in dynamics, gives the same sums."""
    results = []
    for cutoff in (CUTOFF, CUTOFF + 1.0):
        inputs = make_inputs("natural", graph=make_graph(cutoff=cutoff))
        leaves = inputs.leaves()
        rows = neighbor_rows("natural", inputs, leaves, kernel("neighbor", "natural"))
        slopes = slopes_of(rows, leaves)
        results.append((inputs, rows, slopes))
    (_, rows, slopes), (wide, wide_rows, wide_slopes) = results
    assert wide.around.n_neighbors.sum() > results[0][0].around.n_neighbors.sum()
    torch.testing.assert_close(wide_rows, rows, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(wide_slopes[0], slopes[0], rtol=0.0, atol=1e-12)
    assert not wide_slopes[1][:, wide.around.distances >= CUTOFF].any()


# --- products of an atom with itself -------------------------------------------------------------


def channel_factors(case, n_atoms=7, channels=CHANNELS, dtype=torch.float64):
    table = couplings_of(case)
    left = randn(MEMBERS, n_atoms, table.n_left, channels, seed=1)
    right = randn(MEMBERS, n_atoms, table.n_right, channels, seed=2)
    return [factor.to(dtype).requires_grad_(True) for factor in (left, right)]


@ALL
def test_channel_rows_are_the_clebsch_gordan_sums(case, kernel):
    left, right, out = irreps_of(case)
    left_slices, right_slices = component_slices(left), component_slices(right)
    x, y = channel_factors(case)
    assert x.shape[2] == n_components(left)
    expected = ordered(
        case,
        [
            torch.einsum(
                "snac,snbc,abm->snmc",
                x[:, :, left_slices[path.left]],
                y[:, :, right_slices[path.right]],
                coupling(left[path.left], right[path.right], out[path.out]),
            )
            for path in paths_of(case)
        ],
    )
    found = ChannelRows.apply(x, y, couplings_of(case), kernel("channel", case))
    assert_near(found, expected, 1e-13)
    for one, other in zip(slopes_of(found, (x, y)), slopes_of(expected, (x, y)), strict=True):
        assert_near(one, other, 1e-13)


@pytest.mark.parametrize("case", ["natural", "parities"])
def test_gradcheck_of_channel_products(case, kernel):
    table = couplings_of(case)
    factors = channel_factors(case, n_atoms=2)
    name = kernel("channel", case)
    gradcheck(lambda x, y: ChannelRows.apply(x, y, table, name), *factors)


def test_components_that_no_row_reads_have_no_slope(kernel):
    table = couplings_of("unread")
    factors = channel_factors("unread")
    rows = ChannelRows.apply(*factors, table, kernel("channel", "unread"))
    terms = [term for row in table.rows for term in row.terms]
    read = [sorted({term.a for term in terms}), sorted({term.b for term in terms})]
    assert [len(each) for each in read] == [4, 4]
    for slope, components in zip(slopes_of(rows, factors), read, strict=True):
        assert slope.shape[2] > len(components)
        assert slope.any(dim=3).flatten(0, 1).any(dim=0).nonzero().flatten().tolist() == components


# --- kernels -------------------------------------------------------------------------------------

PRECISIONS = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)]
)


@PRECISIONS
@pytest.mark.parametrize("channels", [5, 12, 32])
def test_kernels_are_the_formula(library, dtype, tolerance, channels):
    """In either precision against the formula in float64, for the same rounded inputs."""
    case = "natural"
    digest = library(case, dtype, channels)
    inputs = make_inputs(case, channels).to(dtype)
    exact = inputs.to(torch.float64)
    leaves, exact_leaves = inputs.leaves(), exact.leaves()
    found = neighbor_rows(case, inputs, leaves, f"{digest}:neighbor")
    expected = neighbor_rows(case, exact, exact_leaves, None)
    x, y = channel_factors(case, channels=channels, dtype=dtype)
    exact_factors = [factor.detach().double().requires_grad_(True) for factor in (x, y)]
    table = couplings_of(case)
    product = ChannelRows.apply(x, y, table, f"{digest}:channel")
    expected_product = ChannelRows.apply(*exact_factors, table, None)
    assert found.dtype == product.dtype == dtype
    assert_near(found, expected, tolerance)
    assert_near(product, expected_product, tolerance)
    for one, other in (
        *zip(slopes_of(product, (x, y)), slopes_of(expected_product, exact_factors), strict=True),
        *zip(slopes_of(found, leaves), slopes_of(expected, exact_leaves), strict=True),
    ):
        assert one.dtype == dtype
        assert_near(one, other, tolerance)


def pairs_of_atoms(distances):
    """Inputs of one pair of atoms for each distance, with tables of random numbers."""
    n = len(distances)
    directions = torch.nn.functional.normalize(randn(n, 3, seed=3), dim=1)
    vectors = torch.cat([directions, -directions]) * distances.repeat(2).unsqueeze(1)
    partner = torch.arange(2 * n).roll(n)
    edges = DenseEdges(
        partner.unsqueeze(1), torch.zeros(2 * n, 1, 3), torch.ones(2 * n, dtype=torch.int64)
    )
    table = couplings_of("natural")
    radial = randn(MEMBERS, 40, 3, table.n_paths * CHANNELS, seed=4)
    radial[:, -2:] = 0.0
    features = randn(MEMBERS, 2 * n, table.n_left, CHANNELS)
    return Inputs(features, surroundings(vectors.unsqueeze(1), edges, 2), radial)


def test_kernels_find_every_interval_of_a_table(library):
    """From touching atoms to the last interval and beyond; any table, however rough."""
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(1000, generator=generator, dtype=torch.float64)
    inputs = pairs_of_atoms(1.1 * CUTOFF * shares + 1e-3)
    results = []
    for kernel in (f"{library('natural')}:neighbor", None):
        leaves = inputs.leaves()
        rows = neighbor_rows("natural", inputs, leaves, kernel)
        results.append([rows, *slopes_of(rows, leaves)])
        inside = inputs.around.distances[:, 0] < CUTOFF
        assert torch.equal(rows.flatten(2).any(dim=2)[0], inside)
    for found, expected in zip(*results, strict=True):
        assert_near(found, expected, 1e-12)


def kernel_results(library, inputs, n_atoms=40):
    channels = inputs.features.shape[3]
    digest = library("natural", torch.float64, channels)
    leaves, factors = inputs.leaves(), channel_factors("natural", n_atoms, channels)
    rows = neighbor_rows("natural", inputs, leaves, f"{digest}:neighbor")
    product = ChannelRows.apply(*factors, couplings_of("natural"), f"{digest}:channel")
    return [rows, *slopes_of(rows, leaves), product, *slopes_of(product, factors)]


def test_one_and_two_threads_give_the_same_bits(library):
    # Enough work that the threads overlap even on a busy machine, where races would show.
    graph = make_graph(atoms_in_small_cell() * (10, 8, 8))
    inputs = make_inputs("natural", channels=32, graph=graph)
    # One OpenMP runtime serves torch and the kernels, so torch's setting is theirs.
    runtime = operators._LIBRARIES[library("natural", torch.float64, 32)]
    before = torch.get_num_threads()
    results = []
    try:
        for n_threads in (1, 2, 2, 2):
            torch.set_num_threads(n_threads)
            assert runtime.omp_get_max_threads() == n_threads
            results.append(kernel_results(library, inputs, n_atoms=1000))
    finally:
        torch.set_num_threads(before)
    for one, *two in zip(*results, strict=True):
        assert one.any()
        assert all(torch.equal(one, each) for each in two)


def test_kernels_take_tensors_of_any_layout(library):
    inputs = make_inputs("natural")
    plain = kernel_results(library, inputs)

    def strided(tensor):
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)

    around = inputs.around
    other = Inputs(
        strided(inputs.features),
        around._replace(
            harmonics=strided(around.harmonics),
            distances=strided(around.distances),
            slopes=strided(around.slopes),
            neighbor=strided(around.neighbor),
        ),
        strided(inputs.radial),
    )
    assert not other.features.is_contiguous()
    for one, two in zip(plain, kernel_results(library, other), strict=True):
        assert torch.equal(one, two)


def test_operators_tell_the_tracer_their_shapes(library):
    """Schemas and fake kernels agree with what the kernels return."""
    digest = library("natural")
    inputs, table = make_inputs("natural"), couplings_of("natural")
    rows = len(table.rows)
    _, harmonics, distances, slopes, neighbor, n_neighbors = inputs.around
    edge = harmonics @ table.edge_matrix()
    neighbors = (inputs.features, edge, distances, neighbor, n_neighbors, inputs.radial)
    factors = [factor.detach() for factor in channel_factors("natural")]
    shape = (*inputs.features.shape[:2], rows, CHANNELS)
    grad, product_grad = randn(*shape), randn(MEMBERS, factors[0].shape[1], rows, CHANNELS)
    operators, twice = torch.ops.ase_bayesmlip, torch.cat([grad, grad])
    name, other = f"{digest}:neighbor", f"{digest}:channel"
    for operator, arguments in [
        (operators.neighbor_forward, (*neighbors, rows, name)),
        (operators.neighbor_backward, (*neighbors, harmonics, slopes, grad, True, name)),
        (operators.neighbor_backward, (*neighbors, harmonics, slopes, grad, False, name)),
        (operators.neighbor_backward, (*neighbors, harmonics, slopes, twice, True, name)),
        (operators.channel_forward, (*factors, rows, other)),
        (operators.channel_backward, (*factors, product_grad, other)),
        (operators.channel_backward, (*factors, torch.cat([product_grad] * 2), other)),
    ]:
        tests = ("test_schema", "test_faketensor")
        torch.library.opcheck(operator.default, arguments, test_utils=tests)


def test_a_library_that_is_none_is_refused(tmp_path):
    with pytest.raises(OSError, match="nothing"):
        operators.load_kernels(tmp_path / "nothing.so", "digest of nothing")
    text = tmp_path / "text.so"
    text.write_text("no library")
    with pytest.raises(OSError, match="text"):
        operators.load_kernels(text, "digest of nothing")
    with pytest.raises(KeyError, match="digest of nothing"):
        operators._call("digest of nothing:neighbor", "forward")


def test_a_library_is_loaded_once(library, tmp_path):
    digest = library("natural")
    loaded = operators._LIBRARIES[digest]
    operators.load_kernels(tmp_path / "nothing.so", digest)
    assert operators._LIBRARIES[digest] is loaded
