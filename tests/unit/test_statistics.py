"""Moments and likelihoods against numpy, torch.linalg and closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import digamma, gammaln
from scipy.stats import multivariate_normal, norm
from scipy.stats import t as student_t

from ase_bayesmlip.statistics import (
    gaussian_nll,
    inverse_and_logdet,
    log_gamma_half_step,
    multivariate_nll,
    sample_covariance,
    sample_variance,
    univariate_student_t_nll,
)


def random_spd(seed: int, n: int, spread: float = 1.0) -> torch.Tensor:
    """Positive definite matrices with eigenvalues exp(±spread) in random directions."""
    generator = np.random.default_rng(seed)
    q = np.linalg.qr(generator.normal(size=(n, 3, 3)))[0]
    eigenvalues = np.exp(generator.uniform(-spread, spread, size=(n, 3)))
    return torch.tensor(np.einsum("nab,nb,ncb->nac", q, eigenvalues, q))


@given(seed=st.integers(0, 10**6), n_samples=st.integers(2, 8))
def test_moments_agree_with_numpy(seed, n_samples):
    samples = np.random.default_rng(seed).normal(size=(n_samples, 5, 3))
    variance = sample_variance(torch.tensor(samples)).numpy()
    covariance = sample_covariance(torch.tensor(samples)).numpy()
    expected = np.var(samples, axis=0, ddof=1)
    np.testing.assert_allclose(variance, expected, rtol=1e-12, atol=1e-14)
    for atom in range(5):
        expected = np.cov(samples[:, atom], rowvar=False)
        np.testing.assert_allclose(covariance[atom], expected, rtol=1e-12, atol=1e-14)


def test_moments_are_reduced_in_float64():
    # In float32 one part in 1e7 of the mean is lost; the spread below survives only in float64.
    samples = torch.tensor([[1000.0], [1000.0625], [1000.125]], dtype=torch.float32)
    assert sample_variance(samples).dtype == torch.float64
    assert sample_variance(samples).item() == pytest.approx(0.0625**2, rel=1e-12)
    assert sample_covariance(samples).item() == pytest.approx(0.0625**2, rel=1e-12)


@pytest.mark.parametrize("n_samples", [2, 3, 4, 8])
def test_covariance_is_positive_semidefinite_of_rank_samples_minus_one(n_samples):
    generator = torch.Generator().manual_seed(n_samples)
    samples = torch.randn(n_samples, 10, 3, generator=generator)
    covariance = sample_covariance(samples)
    assert torch.equal(covariance, covariance.transpose(1, 2))
    eigenvalues = torch.linalg.eigvalsh(covariance)
    assert float(eigenvalues.min()) > -1e-14
    ranks = torch.linalg.matrix_rank(covariance, hermitian=True)
    assert (ranks == min(n_samples - 1, 3)).all()


def test_diagonal_of_covariance_is_variance():
    samples = torch.randn(4, 7, 3, generator=torch.Generator().manual_seed(0))
    diagonal = sample_covariance(samples).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(diagonal, sample_variance(samples), rtol=1e-13, atol=0.0)


@given(seed=st.integers(0, 10**6), spread=st.floats(0.0, 3.6))
def test_inverse_and_logdet_agree_with_linalg(seed, spread):
    matrices = random_spd(seed, 4, spread)
    inverse, logdet = inverse_and_logdet(matrices)
    # The damped covariance heads reach a condition number of exp(5√2) = 1200, spread 3.6.
    size = 10.0 * float(torch.linalg.cond(matrices).max())
    identity = torch.eye(3, dtype=torch.float64).expand(4, 3, 3)
    torch.testing.assert_close(inverse @ matrices, identity, rtol=0.0, atol=1e-14 * size)
    torch.testing.assert_close(
        logdet, torch.linalg.slogdet(matrices)[1], rtol=0.0, atol=1e-14 * size
    )


def test_inverse_of_a_nonsymmetric_matrix():
    matrix = torch.tensor([[[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.0, 4.0]]])
    inverse, logdet = inverse_and_logdet(matrix)
    torch.testing.assert_close(inverse, torch.linalg.inv(matrix))
    assert logdet.item() == pytest.approx(math.log(25.0), rel=1e-6)


def test_gaussian_nll_is_the_density_up_to_its_constant():
    residual = torch.tensor([-1.0, 0.2, 3.0], dtype=torch.float64)
    variance = torch.tensor([0.5, 2.0, 4.0], dtype=torch.float64)
    found = gaussian_nll(residual, variance) + 0.5 * math.log(2.0 * math.pi)
    expected = -norm.logpdf(residual.numpy(), scale=variance.sqrt().numpy())
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-14)


def test_multivariate_nll_is_the_density_up_to_its_constant():
    covariance = random_spd(0, 5)
    residual = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = multivariate_nll(residual, covariance) + 1.5 * math.log(2.0 * math.pi)
    for k in range(5):
        density = multivariate_normal(cov=covariance[k].numpy())
        assert found[k].item() == pytest.approx(-density.logpdf(residual[k].numpy()), rel=1e-13)


def test_multivariate_nll_of_an_isotropic_covariance_is_three_gaussians():
    residual = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    variance = torch.full((6, 3), 0.3, dtype=torch.float64)
    covariance = torch.diag_embed(variance)
    for beta in (0.0, 0.5):
        found = multivariate_nll(residual, covariance, beta)
        expected = gaussian_nll(residual, variance, beta).sum(1)
        torch.testing.assert_close(found, expected, rtol=1e-13, atol=0.0)


def test_multivariate_nll_is_rotation_invariant():
    covariance = random_spd(2, 4)
    residual = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    q = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    rotated = multivariate_nll(residual @ q.T, q @ covariance @ q.T, 0.5)
    torch.testing.assert_close(rotated, multivariate_nll(residual, covariance, 0.5))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_beta_multiplies_the_gradient_by_the_held_variance(beta):
    residual = torch.tensor([0.7], dtype=torch.float64)
    variance = torch.tensor([0.4], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(gaussian_nll(residual, variance, beta).sum(), variance)
    expected = 0.4**beta * 0.5 * (1.0 / 0.4 - 0.7**2 / 0.4**2)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_single_precision_residuals_are_evaluated_in_double():
    covariance = random_spd(3, 2, spread=4.0).to(torch.float32)
    residual = torch.ones(2, 3)
    value = multivariate_nll(residual, covariance)
    assert value.dtype == torch.float64
    torch.testing.assert_close(
        value, multivariate_nll(residual.double(), covariance.double()), rtol=1e-14, atol=0.0
    )


# --- Student-t -----------------------------------------------------------------------------------


def test_log_gamma_half_step_agrees_with_scipy():
    x = np.geomspace(0.3, 200.0, 2000)
    found = log_gamma_half_step(torch.tensor(x)).numpy()
    np.testing.assert_allclose(found, gammaln(x + 0.5) - gammaln(x), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_two_half_steps_of_log_gamma_are_one_logarithm(dtype, tolerance):
    """Γ(x + 1) = x Γ(x), on both sides of the switch to the series and far beyond it."""
    x = torch.cat([torch.linspace(1.0, 40.0, 1001), torch.logspace(1.0, 8.0, 1001)]).to(dtype)
    found = log_gamma_half_step(x) + log_gamma_half_step(x + 0.5)
    # Relative to the logarithm: that is as far as digits reach.
    error = (found - torch.log(x)).abs() / torch.clamp(torch.log(x), min=1.0)
    assert float(error.max()) < tolerance


def test_log_gamma_half_step_is_continuous_with_its_derivative_at_the_switch():
    x = torch.tensor([20.0 - 1e-9, 20.0, 20.0 + 1e-9], dtype=torch.float64, requires_grad=True)
    value = log_gamma_half_step(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    expected = gammaln(20.5) - gammaln(20.0)
    np.testing.assert_allclose(value.detach().numpy(), expected, rtol=0.0, atol=1e-9)
    np.testing.assert_allclose(slope.numpy(), digamma(20.5) - digamma(20.0), rtol=0.0, atol=1e-11)


@pytest.mark.parametrize("dof", [0.7, 4.5, 41.0, 1e3])
def test_univariate_student_t_nll_is_that_of_scipy(dof):
    residual, scale = np.linspace(-30.0, 30.0, 61), 1.7
    found = univariate_student_t_nll(
        torch.tensor(residual),
        torch.tensor(scale**2, dtype=torch.float64),
        torch.tensor(dof, dtype=torch.float64),
    )
    expected = -student_t.logpdf(residual, dof, scale=scale)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0.0, atol=1e-11)
