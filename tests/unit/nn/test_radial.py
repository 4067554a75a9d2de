"""The radial basis and its network against closed forms and e3nn."""

import math

import numpy as np
import pytest
import torch
from e3nn.math import normalize2mom
from numpy.polynomial import Polynomial
from tiny import randn, seeded

from ase_bayesmlip.nn.radial import (
    SILU_NORMALISATION,
    DenseNetwork,
    RadialBasis,
    bessel_basis,
    polynomial_envelope,
)

POWERS = [2, 3, 5, 6, 8]


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
