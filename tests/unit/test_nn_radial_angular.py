"""Radial and angular bases against closed forms and e3nn."""

import math

import numpy as np
import pytest
import torch
from e3nn import o3
from e3nn.math import normalize2mom
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial import Legendre, Polynomial

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
from ase_bayesmlip.nn.convolution import Convolution
from ase_bayesmlip.nn.interaction import (
    ChannelProduct,
    EquivariantLinear,
    SpeciesLinear,
)
from ase_bayesmlip.nn.radial import (
    SILU_NORMALISATION,
    DenseNetwork,
    RadialBasis,
    bessel_basis,
    polynomial_envelope,
)

POWERS = [2, 3, 5, 6, 8]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


def text(irrep: Irrep) -> str:
    return f"{irrep.degree}{'e' if irrep.parity == 1 else 'o'}"


# --- radial --------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", POWERS)
def test_envelope_and_two_derivatives_vanish_at_the_cutoff(p):
    x = torch.tensor([1.0 - 1e-9], dtype=torch.float64, requires_grad=True)
    value = polynomial_envelope(x, p)
    (slope,) = torch.autograd.grad(value, x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, x)
    # Near 1 the envelope is -p(p+1)(p+2)/6 (x-1)³.
    assert abs(value.item()) < 1e-13
    assert abs(slope.item()) < 1e-13
    assert abs(curvature.item()) < 2e-9 * p * (p + 1) * (p + 2)


@pytest.mark.parametrize("p", POWERS)
def test_envelope_is_the_polynomial_with_a_triple_root(p):
    # The only polynomial 1 + a xᵖ + b xᵖ⁺¹ + c xᵖ⁺² with u(1) = u'(1) = u''(1) = 0.
    rows = [[1, 1, 1], [p, p + 1, p + 2], [p * (p - 1), (p + 1) * p, (p + 2) * (p + 1)]]
    a, b, c = np.linalg.solve(np.array(rows, dtype=float), [-1.0, 0.0, 0.0])
    u = Polynomial([1.0] + [0.0] * (p - 1) + [a, b, c])
    x = np.linspace(0.0, 0.999, 101)
    found = polynomial_envelope(torch.tensor(x), p).numpy()
    np.testing.assert_allclose(found, u(x), atol=1e-12)


def test_envelope_of_the_published_model():
    x = torch.linspace(0.0, 0.999, 50, dtype=torch.float64)
    expected = 1.0 - 6.0 * x**2 + 8.0 * x**3 - 3.0 * x**4
    torch.testing.assert_close(polynomial_envelope(x, 2), expected, rtol=0.0, atol=1e-14)


@pytest.mark.parametrize("p", POWERS)
def test_envelope_decreases_from_one_and_is_zero_beyond(p):
    x = torch.linspace(0.0, 1.0, 200, dtype=torch.float64)
    values = polynomial_envelope(x, p)
    assert values[0] == 1.0
    assert (values[1:] <= values[:-1] + 1e-15).all()
    assert not polynomial_envelope(torch.tensor([1.0, 1.5, 100.0]), p).any()


def test_bessel_functions_in_closed_form():
    x = torch.tensor([0.1, 0.37, 0.9], dtype=torch.float64)
    found = bessel_basis(x, 4)
    for k, n in np.ndindex(3, 4):
        value = x[k].item()
        expected = math.sqrt(2.0) * math.sin((n + 1) * math.pi * value) / value
        assert found[k, n].item() == pytest.approx(expected, rel=1e-13)


def test_bessel_functions_are_orthonormal_in_the_sphere():
    nodes, weights = np.polynomial.legendre.leggauss(64)
    x = 0.5 * (nodes + 1.0)
    basis = bessel_basis(torch.tensor(x), 8).numpy()
    overlap = np.einsum("k,k,kn,km->nm", 0.5 * weights, x**2, basis, basis)
    np.testing.assert_allclose(overlap, np.eye(8), atol=1e-12)


def test_radial_basis_is_bessel_times_envelope_of_the_reduced_distance():
    distances = torch.tensor([0.8, 2.0, 4.9, 5.0, 6.0], dtype=torch.float64)
    found = RadialBasis(5.0, 6, 4)(distances)
    x = distances / 5.0
    expected = bessel_basis(x, 6) * polynomial_envelope(x, 4).unsqueeze(1)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0)
    assert not found[3:].any()


def test_silu_normalisation_is_that_of_e3nn():
    # e3nn estimates it from a million random numbers.
    constant = normalize2mom(torch.nn.functional.silu).cst
    assert pytest.approx(constant, rel=5e-3) == SILU_NORMALISATION
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    silu = nodes / (1.0 + np.exp(-nodes))
    moment = np.sum(weights * silu**2) / math.sqrt(2.0 * math.pi)
    assert pytest.approx(moment**-0.5, rel=1e-6) == SILU_NORMALISATION


def test_dense_network_has_no_bias_and_unit_variance():
    network = DenseNetwork([8, 512, 512, 256], seeded()).double()
    assert not network(torch.zeros(3, 8, dtype=torch.float64)).any()
    out = network(randn(400, 8)).detach()
    # 400 x 256 outputs share weights; the spread of their variance over draws is about 6 %.
    assert float(out.var()) == pytest.approx(1.0, rel=0.25)


def test_dense_network_in_closed_form():
    network = DenseNetwork([2, 3, 1], seeded()).double()
    x = randn(5, 2).numpy()
    first, last = (weight.detach().numpy() for weight in network.weights)
    h = x @ first / math.sqrt(2.0)
    h = SILU_NORMALISATION * h / (1.0 + np.exp(-h))
    expected = h @ last / math.sqrt(3.0)
    np.testing.assert_allclose(network(torch.tensor(x)).detach().numpy(), expected, rtol=1e-13)


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


# --- building blocks against e3nn ----------------------------------------------------------------


def to_e3nn(features: torch.Tensor, irreps: list[Irrep]) -> torch.Tensor:
    """(n, components, channels) to e3nn's (n, Σ channels · dim), multiplicity first."""
    blocks = [features[:, block].transpose(1, 2).flatten(1) for block in component_slices(irreps)]
    return torch.cat(blocks, dim=1)


def e3nn_irreps(irreps: list[Irrep], channels: int) -> o3.Irreps:
    return o3.Irreps([(channels, (irrep.degree, irrep.parity)) for irrep in irreps])


def test_equivariant_linear_is_that_of_e3nn():
    irreps, channels = parse_irreps("4x0e + 4x1o + 4x1e + 4x2e")
    linear = EquivariantLinear(irreps, channels, channels, seeded()).double()
    reference = o3.Linear(e3nn_irreps(irreps, channels), e3nn_irreps(irreps, channels)).double()
    reference.weight.data = linear.weight.detach().flatten()
    features = randn(6, n_components(irreps), channels)
    found = to_e3nn(linear(features), irreps)
    torch.testing.assert_close(found, reference(to_e3nn(features, irreps)), rtol=0.0, atol=1e-6)


def test_species_linear_uses_the_weights_of_the_element():
    irreps, channels = parse_irreps("4x0e + 4x1o")
    linear = SpeciesLinear(irreps, 3, channels, 2, seeded()).double()
    features, elements = randn(5, 4, channels), torch.tensor([2, 0, 1, 1, 2])
    one_hot = torch.nn.functional.one_hot(elements, 3).double()
    found = linear(features, one_hot)
    for atom, element in enumerate(elements.tolist()):
        for component, irrep in enumerate(component_irrep(irreps).tolist()):
            weight = linear.weight[irrep, element] / math.sqrt(channels)
            expected = features[atom, component] @ weight
            torch.testing.assert_close(found[atom, component], expected)


def test_channel_product_is_the_uuu_tensor_product_of_e3nn():
    left, channels = parse_irreps("3x0e + 3x1o + 3x2e")
    right, out = edge_irreps(2), parse_irreps("3x0e + 3x1o + 3x1e + 3x2e")[0]
    product = ChannelProduct(left, right, out, channels, False, seeded()).double()
    paths = coupling_paths(left, right, out)
    x, y = randn(4, 9, channels), randn(4, 9, channels, seed=1)
    uncoupled = torch.zeros(4, n_components(out), channels, dtype=torch.float64)
    counts = [sum(path.out == k for path in paths) for k in range(len(out))]
    slot = [0] * len(out)
    out_slices = component_slices(out)
    for path in paths:
        reference = o3.TensorProduct(
            e3nn_irreps([left[path.left]], channels),
            e3nn_irreps([right[path.right]], channels),
            e3nn_irreps([out[path.out]], channels),
            [(0, 0, 0, "uuu", False)],
        ).double()
        value = reference(
            to_e3nn(x[:, component_slices(left)[path.left]], [left[path.left]]),
            to_e3nn(y[:, component_slices(right)[path.right]], [right[path.right]]),
        ).view(4, channels, -1)
        weight = product.mix.weight[path.out, slot[path.out]]
        norm = math.sqrt(counts[path.out] * channels)
        mixed = torch.einsum("nci,cd->nid", value, weight) / norm
        uncoupled[:, out_slices[path.out]] += mixed.detach()
        slot[path.out] += 1
    torch.testing.assert_close(product(x, y), uncoupled, rtol=0.0, atol=1e-6)


def test_product_of_a_feature_with_itself_leaves_out_nothing():
    # The paths kept for x ⊗ x span what all paths span: same rank of the outputs.
    irreps, channels = parse_irreps("1x0e + 1x1o + 1x2e")
    full = ChannelProduct(irreps, irreps, irreps, channels, False, seeded()).double()
    square = ChannelProduct(irreps, irreps, irreps, channels, True, seeded()).double()
    features = randn(40, 9, 1)
    outer = (features.unsqueeze(2) * features.unsqueeze(1)).flatten(1, 2)
    for component in range(9):
        ranks = []
        for product in (full, square):
            rows = torch.matmul(product.coupling, outer)[:, :, 0]
            n_paths = product.mix.weight.shape[1]
            mask = product.mix.mask[product.mix.irrep_of[component], :, 0, 0] > 0
            chosen = product.mix.gather.view(9, n_paths)[component][mask]
            columns = rows[:, chosen]
            ranks.append((int(torch.linalg.matrix_rank(columns, rtol=1e-9)), columns.shape[1]))
        assert ranks[0][0] == ranks[1][0] == ranks[1][1]
        assert ranks[0][1] >= ranks[1][1]


@pytest.mark.parametrize("l_max", [1, 2, 3])
def test_convolution_is_a_sum_of_tensor_products_over_edges(l_max):
    irreps_in, channels = parse_irreps("3x0e + 3x1o + 3x1e")
    irreps_out, _ = parse_irreps("3x0o + 3x0e + 3x1o + 3x1e + 3x2e")
    convolution = Convolution(
        irreps_in, irreps_out, channels, l_max, [4, 5], 7.0, seeded()
    ).double()
    harmonics_irreps = edge_irreps(l_max)
    paths = coupling_paths(irreps_in, harmonics_irreps, irreps_out)
    edges = torch.tensor([[0, 0, 1, 2, 2, 2], [1, 2, 0, 0, 1, 2]])
    features, radial = randn(3, 7, channels), randn(6, 4, seed=1)
    directions = torch.nn.functional.normalize(randn(6, 3, seed=2), dim=1)
    harmonics = SphericalHarmonics(l_max).double()(directions)
    weights = convolution.radial(radial).view(6, len(paths), channels)
    in_slices, out_slices = component_slices(irreps_in), component_slices(irreps_out)
    sh_slices = component_slices(harmonics_irreps)
    counts = [sum(path.out == k for path in paths) for k in range(len(irreps_out))]
    slot = [0] * len(irreps_out)
    expected = torch.zeros(3, n_components(irreps_out), channels, dtype=torch.float64)
    for number, path in enumerate(paths):
        irrep = irreps_out[path.out]
        tensor = o3.wigner_3j(
            irreps_in[path.left].degree,
            harmonics_irreps[path.right].degree,
            irrep.degree,
            dtype=torch.float64,
        ) * math.sqrt(irrep.dim)
        message = torch.einsum(
            "eic,ej,ijk,ec->ekc",
            features[edges[1], in_slices[path.left]],
            harmonics[:, sh_slices[path.right]],
            tensor,
            weights[:, number],
        )
        density = torch.zeros(3, irrep.dim, channels, dtype=torch.float64)
        density = density.index_add(0, edges[0], message) / 7.0
        matrix = convolution.mix.weight[path.out, slot[path.out]]
        norm = math.sqrt(counts[path.out] * channels)
        expected[:, out_slices[path.out]] += (density @ matrix / norm).detach()
        slot[path.out] += 1
    found = convolution(features, harmonics, radial, edges).detach()
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-12)
