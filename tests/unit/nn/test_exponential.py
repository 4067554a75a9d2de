"""The exponential of symmetric 3×3 matrices and the dampers of its exponents."""

import math

import numpy as np
import pytest
import torch
from e3nn import o3
from e3nn.io import CartesianTensor
from hypothesis import given
from hypothesis import strategies as st
from tiny import randn

from ase_bayesmlip.nn.angular import SphericalHarmonics
from ase_bayesmlip.nn.exponential import (
    damp_tensor,
    exp_half,
    exp_symmetric,
    exp_traceless_symmetric,
    exp_traceless_trace,
    linear_tanh,
    traceless_symmetric,
)


def tensors_of_norm(norm: float, n: int = 20, seed: int = 0) -> torch.Tensor:
    return norm * torch.nn.functional.normalize(randn(n, 5, seed=seed), dim=1)


# --- traceless symmetric matrices and their exponential ------------------------------------------


def test_traceless_symmetric_is_that_of_e3nn():
    t = randn(10, 5)
    cartesian = CartesianTensor("ij=ji")
    assert o3.Irreps(cartesian) == o3.Irreps("0e + 2e")
    full = torch.cat([torch.zeros(10, 1, dtype=torch.float64), t], dim=1)
    expected = cartesian.to_cartesian(full.to(torch.float32))
    torch.testing.assert_close(traceless_symmetric(t).float(), expected, rtol=0.0, atol=2e-6)


def test_traceless_symmetric_of_harmonics_is_the_quadrupole():
    """T(Y_2(r)) ∝ r rᵀ - 1/3: fixes order, sign and axes in closed form, and so equivariance."""
    directions = torch.nn.functional.normalize(randn(10, 3), dim=1)
    harmonics = SphericalHarmonics(2).double()(directions)[:, 4:]
    identity = torch.eye(3, dtype=torch.float64)
    quadrupole = directions.unsqueeze(2) * directions.unsqueeze(1) - identity / 3.0
    # |Y_2|² = 5 and tr (r rᵀ - 1/3)² = 2/3.
    expected = math.sqrt(5.0 * 1.5) * quadrupole
    torch.testing.assert_close(traceless_symmetric(harmonics), expected, rtol=0.0, atol=1e-13)


def test_traceless_symmetric_keeps_the_norm():
    t = randn(10, 5)
    matrix = traceless_symmetric(t)
    assert torch.equal(matrix, matrix.transpose(1, 2))
    trace = matrix.diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(trace, torch.zeros_like(trace), rtol=0.0, atol=1e-15)
    torch.testing.assert_close((matrix**2).sum((1, 2)), (t**2).sum(1), rtol=1e-14, atol=0.0)


@given(norm=st.floats(0.0, 5.0), seed=st.integers(0, 1000))
def test_exponential_agrees_with_linalg(norm, seed):
    matrix = traceless_symmetric(tensors_of_norm(norm, 5, seed))
    found, expected = exp_traceless_symmetric(matrix), torch.linalg.matrix_exp(matrix)
    assert float((found - expected).abs().max()) < 1e-9 * float(expected.abs().max())


def test_exponential_in_single_precision():
    matrix = traceless_symmetric(tensors_of_norm(2.5))
    expected = torch.linalg.matrix_exp(matrix)
    found = exp_traceless_symmetric(matrix.float()).double()
    assert float((found - expected).abs().max()) < 2e-6 * float(expected.abs().max())


def test_exponential_of_zero_is_the_identity_to_the_last_bit():
    found = exp_traceless_symmetric(torch.zeros(2, 3, 3, dtype=torch.float64))
    assert torch.equal(found, torch.eye(3, dtype=torch.float64).expand(2, 3, 3))


def degenerate_points() -> list[torch.Tensor]:
    zero = torch.zeros(1, 5, dtype=torch.float64)
    double = zero.clone()
    double[0, 2] = 1.7  # two equal eigenvalues
    return [zero, double, tensors_of_norm(2.0, 2)]


@pytest.mark.parametrize("case", range(3))
def test_exponential_has_two_derivatives_where_eigenvalues_coincide(case):
    t = degenerate_points()[case].requires_grad_(True)

    def function(x):
        return exp_traceless_symmetric(traceless_symmetric(x))

    assert torch.autograd.gradcheck(function, t)
    assert torch.autograd.gradgradcheck(function, t)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str
)
def test_exponential_at_the_orders_of_each_precision(dtype, tolerance):
    t = torch.cat([tensors_of_norm(norm, 300) for norm in (0.0, 1.0, 3.0, 5.0)])
    matrix = traceless_symmetric(t)
    expected, norm = torch.linalg.matrix_exp(matrix), torch.linalg.matrix_norm
    squarings, order = (4, 12) if dtype == torch.float64 else (4, 6)
    found = exp_traceless_symmetric(matrix.to(dtype), squarings, order).double()
    assert float((norm(found - expected) / norm(expected)).max()) < tolerance
    trace = expected.diagonal(dim1=1, dim2=2).sum(1)
    assert float((exp_traceless_trace(t.to(dtype)).double() / trace - 1.0).abs().max()) < tolerance
    for sign in (1.0, -1.0):
        zero = torch.zeros(len(t), dtype=dtype)
        half, expected = (
            exp_half(zero, t.to(dtype), sign),
            torch.linalg.matrix_exp(sign * matrix / 2),
        )
        assert float((norm(half.double() - expected) / norm(expected)).max()) < tolerance


def test_square_of_the_half_exponential_is_positive_at_the_bound():
    """At |t| = 5 the smallest eigenvalue keeps its digits in single precision."""
    t = tensors_of_norm(5.0, 2000)
    expected = torch.linalg.eigvalsh(torch.linalg.matrix_exp(traceless_symmetric(t)))
    found = exp_symmetric(torch.zeros(len(t)), t.float())
    assert torch.equal(found, found.transpose(1, 2))
    error = torch.linalg.eigvalsh(found.double())[:, 0] / expected[:, 0] - 1.0
    assert float(error.abs().max()) < 2e-4


# --- dampers -------------------------------------------------------------------------------------


def test_linear_tanh_in_closed_form():
    x = torch.tensor([-9.0, -4.0, -1.3, 0.0, 2.0, 4.0, 4.5, 100.0], dtype=torch.float64)
    found = linear_tanh(x)
    expected = [-4.0 - math.tanh(5.0), -4.0, -1.3, 0.0, 2.0, 4.0, 4.0 + math.tanh(0.5), 5.0]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-14)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_linear_tanh_is_twice_differentiable_where_it_bends(sign):
    eps = 1e-6
    x = sign * torch.tensor([4.0 - eps, 4.0 + eps], dtype=torch.float64)
    x.requires_grad_(True)
    value = linear_tanh(x)
    (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    assert abs(float((value[1] - value[0]).detach())) == pytest.approx(2.0 * eps, rel=1e-6)
    torch.testing.assert_close(slope, torch.ones_like(slope), rtol=0.0, atol=3.0 * eps**2 + 1e-15)
    (curvature,) = torch.autograd.grad(slope.sum(), x, allow_unused=True)
    assert float(curvature.abs().max()) < 3.0 * eps


@given(x=st.lists(st.floats(-50.0, 50.0), min_size=2, max_size=20))
def test_linear_tanh_is_odd_bounded_and_increasing(x):
    values = torch.tensor(sorted(x), dtype=torch.float64)
    damped = linear_tanh(values)
    assert torch.equal(linear_tanh(-values), -damped)
    assert float(damped.abs().max()) <= 5.0
    assert (damped[1:] >= damped[:-1]).all()


def test_damped_tensor_keeps_its_direction_and_bounds_its_norm():
    for norm in (0.5, 3.9, 4.5, 50.0):
        t = tensors_of_norm(norm)
        damped = damp_tensor(t)
        direction = torch.nn.functional.normalize(t, dim=1)
        expected = linear_tanh(torch.tensor(norm, dtype=torch.float64))
        torch.testing.assert_close(damped, expected * direction, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("norm", [0.0, 1.0, 4.5, 8.0])
def test_damped_tensor_has_two_derivatives(norm):
    t = tensors_of_norm(norm, 2).requires_grad_(True)
    assert torch.autograd.gradcheck(damp_tensor, t)
    assert torch.autograd.gradgradcheck(damp_tensor, t)
