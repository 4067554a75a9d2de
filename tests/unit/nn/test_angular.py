"""Irreps, couplings and spherical harmonics against closed forms and e3nn."""

import math

import numpy as np
import pytest
import torch
from e3nn import o3
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial import Legendre
from tiny import randn

from ase_bayesmlip.nn.angular import (
    Irrep,
    SphericalHarmonics,
    component_irrep,
    component_positions,
    component_slices,
    coupling,
    coupling_paths,
    edge_irreps,
    n_components,
    parse_irreps,
)


def text(irrep: Irrep) -> str:
    return f"{irrep.degree}{'e' if irrep.parity == 1 else 'o'}"


# --- irreps --------------------------------------------------------------------------------------


def test_irreps_are_sorted_by_degree():
    irreps, channels = parse_irreps("16x2e + 16x1o + 16x0e + 16x0o")
    assert channels == 16
    assert irreps == [Irrep(0, -1), Irrep(0, 1), Irrep(1, -1), Irrep(2, 1)]
    assert n_components(irreps) == 10


@pytest.mark.parametrize(
    ("notation", "message"),
    [
        ("banana", "not in e3nn notation"),
        ("8x0e,8x1o", "not in e3nn notation"),
        ("8x0e + 4x1o", "same multiplicity"),
        ("8x0e + 8x1o + 8x0e", "must appear once"),
        ("", "must appear once"),
        ("8x1o + 8x2e", "lacks 0e"),
        ("8x0o", "lacks 0e"),
        ("0x0e", "multiplicity must be at least 1"),
    ],
)
def test_irreps_that_cannot_be_used(notation, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_irreps(notation)
    assert repr(notation) in str(caught.value)


def test_components_know_their_irrep():
    irreps, _ = parse_irreps("1x0e + 1x1o + 1x2e")
    assert component_irrep(irreps).tolist() == [0, 1, 1, 1, 2, 2, 2, 2, 2]
    assert component_slices(irreps) == [slice(0, 1), slice(1, 4), slice(4, 9)]
    assert component_positions([Irrep(2, 1), Irrep(0, 1)], irreps).tolist() == [4, 5, 6, 7, 8, 0]


def test_paths_are_those_of_e3nn():
    left, _ = parse_irreps("1x0o + 1x0e + 1x1o + 1x1e + 1x2o + 1x2e")
    right, out = edge_irreps(3), left
    found = {(left[p.left], right[p.right], out[p.out]) for p in coupling_paths(left, right, out)}
    expected = {
        (a, b, c)
        for a in left
        for b in right
        for c in out
        if o3.Irrep(text(c)) in list(o3.Irrep(text(a)) * o3.Irrep(text(b)))
    }
    assert found == expected


# --- couplings and harmonics ---------------------------------------------------------------------


@given(
    left=st.integers(0, 3), right=st.integers(0, 3), out=st.integers(0, 4), seed=st.integers(0, 99)
)
def test_coupling_agrees_with_the_tensor_product_of_e3nn(left, right, out, seed):
    if not abs(left - right) <= out <= left + right:
        return
    a, b = Irrep(left, (-1) ** left), Irrep(right, (-1) ** right)
    c = Irrep(out, a.parity * b.parity)
    x, y = randn(4, a.dim, seed=seed), randn(4, b.dim, seed=seed + 100)
    product = o3.FullTensorProduct(text(a), text(b), [text(c)]).double()
    found = torch.einsum("ni,nj,ijk->nk", x, y, coupling(a, b, c))
    torch.testing.assert_close(found, product(x, y), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_coupling_with_a_scalar_is_the_identity(degree):
    # Makes the concatenation of uncoupled features redundant: the path through Y_00 = 1 is it.
    irrep = Irrep(degree, (-1) ** degree)
    found = coupling(irrep, Irrep(0, 1), irrep)[:, 0]
    expected = torch.eye(irrep.dim, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-14)
    directions = torch.nn.functional.normalize(randn(5, 3), dim=1)
    harmonics = SphericalHarmonics(2).double()(directions)
    torch.testing.assert_close(harmonics[:, 0], torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("l_max", [0, 1, 2, 3, 4])
def test_harmonics_obey_the_addition_theorem(l_max):
    """Σ_m Y_lm(a) Y_lm(b) = (2l + 1) P_l(a · b): component norm and rotation at once."""
    harmonics = SphericalHarmonics(l_max).double()
    directions = torch.nn.functional.normalize(randn(10, 3), dim=1)
    values = harmonics(directions)
    assert values.shape == (10, (l_max + 1) ** 2)
    cosines = (directions @ directions.T).numpy()
    for degree, block in enumerate(component_slices(edge_irreps(l_max))):
        found = (values[:, block] @ values[:, block].T).numpy()
        expected = (2 * degree + 1) * Legendre.basis(degree)(cosines)
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_harmonics_have_the_parity_of_their_degree_and_the_axes_of_ase():
    harmonics = SphericalHarmonics(3).double()
    directions = torch.nn.functional.normalize(randn(10, 3), dim=1)
    values, mirrored = harmonics(directions), harmonics(-directions)
    for irrep, block in zip(edge_irreps(3), component_slices(edge_irreps(3)), strict=True):
        torch.testing.assert_close(mirrored[:, block], irrep.parity * values[:, block])
    torch.testing.assert_close(values[:, 1:4], math.sqrt(3.0) * directions)
