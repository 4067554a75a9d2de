"""Unrolled tensor products against the Clebsch-Gordan tensors themselves."""

import math

import pytest
import torch
from e3nn import o3

from ase_bayesmlip.nn.angular import (
    Irrep,
    component_slices,
    coupling,
    coupling_paths,
    edge_irreps,
    n_components,
    parse_irreps,
)
from ase_bayesmlip.nn.interaction import ChannelProduct
from ase_bayesmlip.nn.stacked.couplings import couplings

# Left, right and out irreps: natural parity, both parities, one irrep that no path reaches.
PRODUCTS = {
    "scalars": ("1x0e", 0, "1x0e"),
    "l1": ("1x0e + 1x1o", 1, "1x0e + 1x1o + 1x2e"),
    "l2": ("1x0e + 1x1o + 1x2e", 2, "1x0e + 1x1o + 1x2e"),
    "l3": ("1x0e + 1x1o", 3, "1x0e + 1x1o + 1x2e + 1x3o"),
    "parities": ("1x0o + 1x0e + 1x1o + 1x1e", 2, "1x0o + 1x0e + 1x1e + 1x2o"),
    "unreached": ("1x0e", 1, "1x0e + 1x1o + 1x2e"),
}
ALL = pytest.mark.parametrize("case", sorted(PRODUCTS))


def make(case):
    """Irreps of both factors and of the output, the paths, and their couplings."""
    left_text, l_max, out_text = PRODUCTS[case]
    left, right, out = parse_irreps(left_text)[0], edge_irreps(l_max), parse_irreps(out_text)[0]
    paths = coupling_paths(left, right, out)
    return left, right, out, paths, couplings(left, right, out, paths)


def dense(table):
    """Coefficients of every row as a tensor, (rows, n_left, n_right)."""
    found = torch.zeros(len(table.rows), table.n_left, table.n_right, dtype=torch.float64)
    for number, row in enumerate(table.rows):
        for term in row.terms:
            assert found[number, term.a, term.b] == 0.0
            found[number, term.a, term.b] = term.coefficient
    return found


def expected_rows(left, right, out, paths):
    """Path and coefficients of every row, from whole Clebsch-Gordan tensors."""
    left_slices, right_slices = component_slices(left), component_slices(right)
    numbers, tensors = [], []
    for k, irrep in enumerate(out):
        for m in range(irrep.dim):
            for number, path in enumerate(paths):
                if path.out != k:
                    continue
                tensor = torch.zeros(n_components(left), n_components(right), dtype=torch.float64)
                tensor[left_slices[path.left], right_slices[path.right]] = coupling(
                    left[path.left], right[path.right], irrep
                )[:, :, m]
                numbers.append(number)
                tensors.append(tensor)
    return numbers, torch.stack(tensors)


@ALL
def test_rows_are_the_clebsch_gordan_tensors(case):
    *parts, table = make(case)
    numbers, tensors = expected_rows(*parts)
    assert [row.path for row in table.rows] == numbers
    torch.testing.assert_close(dense(table), tensors, rtol=0.0, atol=1e-12)


@ALL
def test_terms_are_the_coefficients_that_are_not_zero(case):
    *parts, table = make(case)
    _, tensors = expected_rows(*parts)
    n_terms = [len(row.terms) for row in table.rows]
    assert n_terms == (tensors.abs() > 1e-9).sum(dim=(1, 2)).tolist()
    assert min(n_terms) > 0


@ALL
def test_sizes_and_blocks_describe_the_rows(case):
    left, right, out, paths, table = make(case)
    assert (table.n_left, table.n_right) == (n_components(left), n_components(right))
    assert table.n_paths == len(paths)
    assert [dim for dim, _ in table.blocks] == [irrep.dim for irrep in out]
    start = 0
    for k, (dim, n_paths) in enumerate(table.blocks):
        own = [number for number, path in enumerate(paths) if path.out == k]
        block = table.rows[start : start + dim * n_paths]
        assert [row.path for row in block] == own * dim
        start += dim * n_paths
    assert start == len(table.rows)


def test_an_irrep_that_no_path_reaches_has_no_rows():
    *_, table = make("unreached")
    assert table.blocks == ((1, 1), (3, 1), (5, 0))


def random_pair(table, n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, components, generator=generator, dtype=torch.float64)
        for components in (table.n_left, table.n_right)
    )


def representation(irreps, matrix):
    """Matrix by which components turn when vectors turn by an orthogonal matrix.

    From the harmonics of many directions, in full precision: e3nn's Wigner matrices have 7 digits.
    """
    generator = torch.Generator().manual_seed(2)
    vectors = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    sign = torch.sign(torch.linalg.det(matrix))
    blocks = []
    for degree, parity in irreps:
        before, after = (
            o3.spherical_harmonics(degree, x, normalize=True)
            for x in (vectors, vectors @ (sign * matrix).T)
        )
        turned = torch.linalg.lstsq(before, after).solution.T
        blocks.append(turned if sign > 0 else parity * turned)
    return torch.block_diag(*blocks)


@ALL
def test_rows_turn_as_their_irreps(case):
    """Rows of rotated and reflected factors are the rotated and reflected rows."""
    left, right, out, _, table = make(case)
    x, y = random_pair(table)
    matrix = -o3.angles_to_matrix(*torch.tensor([0.3, 1.1, -0.7], dtype=torch.float64))
    coefficients = dense(table)
    before = torch.einsum("rab,na,nb->nr", coefficients, x, y)
    turned = x @ representation(left, matrix).T, y @ representation(right, matrix).T
    after = torch.einsum("rab,na,nb->nr", coefficients, *turned)
    start = 0
    for irrep, (dim, n_paths) in zip(out, table.blocks, strict=True):
        rows = slice(start, start + dim * n_paths)
        block = before[:, rows].view(len(x), dim, n_paths)
        expected = torch.einsum("km,nmp->nkp", representation([irrep], matrix), block)
        torch.testing.assert_close(after[:, rows], expected.flatten(1), rtol=0.0, atol=1e-12)
        start += dim * n_paths


@ALL
def test_edge_matrix_sums_over_the_right_factor(case):
    *_, table = make(case)
    x, y = random_pair(table)
    entries = table.entries()
    assert len(set(entries)) == len(entries)
    matrix = table.edge_matrix()
    assert matrix.shape == (table.n_right, len(entries))
    assert matrix.any(dim=0).all()
    sums = y @ matrix
    found = torch.zeros(len(x), len(table.rows), dtype=torch.float64)
    for column, (number, a) in enumerate(entries):
        found[:, number] += sums[:, column] * x[:, a]
    expected = torch.einsum("rab,na,nb->nr", dense(table), x, y)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-12)


@ALL
def test_parity_is_the_sign_along_the_reverse_edge(case):
    _, right, _, _, table = make(case)
    assert list(table.right_degrees) == [irrep.degree for irrep in right for _ in range(irrep.dim)]
    x, y = random_pair(table)
    degrees = torch.tensor(table.right_degrees)
    reverse = y * torch.where(degrees % 2 == 0, 1.0, -1.0)
    signs = torch.tensor([table.parity(row) for row in table.rows], dtype=torch.float64)
    coefficients = dense(table)
    forth = torch.einsum("rab,na,nb->nr", coefficients, x, y)
    back = torch.einsum("rab,na,nb->nr", coefficients, x, reverse)
    torch.testing.assert_close(back, forth * signs, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("symmetric", [True, False])
def test_couplings_of_a_channel_product_are_its_dense_matrix(symmetric):
    """The same rows as `ChannelProduct`, in the order of out components instead of paths."""
    density = edge_irreps(2)
    generator = torch.Generator().manual_seed(0)
    product = ChannelProduct(density, density, density, 1, symmetric, generator)
    table = couplings(density, density, density, product.paths)
    assert table.n_paths == len(product.paths)
    found = dense(table).flatten(1)
    columns = product.mix.gather.view(9, -1)
    start = 0
    for irrep, components, (dim, n_paths) in zip(
        density, component_slices(density), table.blocks, strict=True
    ):
        rows = columns[components][:, :n_paths].flatten()
        assert irrep.dim == dim
        block = found[start : start + dim * n_paths]
        torch.testing.assert_close(block, product.coupling[rows], rtol=0.0, atol=1e-12)
        start += dim * n_paths


def test_vectors_couple_as_dot_and_cross_product():
    """1o ⊗ 1o in closed form: the scalar is x · y/√3, the pseudovector ± x × y/√2."""
    vector = [Irrep(1, -1)]
    out = [Irrep(0, 1), Irrep(1, 1)]
    table = couplings(vector, vector, out, coupling_paths(vector, vector, out))
    x, y = random_pair(table)
    rows = torch.einsum("rab,na,nb->nr", dense(table), x, y)
    dot = (x * y).sum(1, keepdim=True) / math.sqrt(3.0)
    cross = torch.linalg.cross(x, y) / math.sqrt(2.0)
    for found, expected in ((rows[:, :1], dot), (rows[:, 1:], cross)):
        sign = torch.sign((found[0] * expected[0]).sum())
        torch.testing.assert_close(found, sign * expected, rtol=0.0, atol=1e-12)
