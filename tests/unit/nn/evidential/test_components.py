"""eIP: closed forms, the law of scipy that it is, Monte Carlo, and that it does not rotate."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import randn

from ase_bayesmlip.nn.evidential.components import (
    eip_aleatoric_variance,
    eip_epistemic_variance,
    eip_nll,
    eip_parameters,
    eip_regulariser,
    eip_student_t,
)

QUANTILES = pytest.mark.parametrize("quantile", [0.4, 0.5, 0.6])


def test_components_in_closed_form():
    raw = randn(4, 3, 3)
    nig = eip_parameters(raw)
    positive = np.log1p(np.exp(raw.numpy()))
    np.testing.assert_allclose(nig.alpha.numpy(), positive[..., 0] + 1.00001, rtol=1e-12)
    np.testing.assert_allclose(nig.beta.numpy(), positive[..., 1], rtol=1e-12)
    np.testing.assert_allclose(nig.evidence.numpy(), positive[..., 2] + 1e-5, rtol=1e-12)


@QUANTILES
def test_eip_likelihood_is_a_student_t(quantile):
    """In the form of the paper and as the law of scipy that it is equivalent to."""
    nig, residual = eip_parameters(randn(30, 3, 3)), randn(30, 3, seed=1)
    found = eip_nll(residual, nig, quantile).numpy()
    dof, shift, scale = (x.numpy() for x in eip_student_t(nig, quantile))
    expected = -stats.t.logpdf(residual.numpy(), dof, loc=shift, scale=scale)
    assert np.abs(found - expected).max() < 1e-9
    tau = (1.0 - 2.0 * quantile) / (quantile * (1.0 - quantile))
    omega = 2.0 / (quantile * (1.0 - quantile))
    nu, alpha, beta = nig
    z = beta / (alpha - 1.0)
    large = 4.0 * beta * (1.0 + omega * z * nu)
    e = residual - tau * z
    published = (
        0.5 * torch.log(math.pi / nu)
        - alpha * torch.log(large)
        + (alpha + 0.5) * torch.log(nu * e * e + large)
        + torch.lgamma(alpha)
        - torch.lgamma(alpha + 0.5)
    )
    assert np.abs(found - published.numpy()).max() < 1e-9


@QUANTILES
def test_eip_likelihood_has_its_derivatives(quantile):
    raw, residual = randn(2, 3, 3).requires_grad_(True), randn(2, 3, seed=1).requires_grad_(True)

    def function(raw, residual):
        nig = eip_parameters(raw)
        return eip_nll(residual, nig, quantile), eip_regulariser(residual, nig, quantile)

    assert torch.autograd.gradcheck(function, [raw, residual])


def test_eip_variances_are_those_of_the_hierarchy():
    """E[σ²] and Var[μ] of a normal-inverse-gamma law against draws, within standard errors."""
    raw = torch.full((1, 3, 3), 5.0, dtype=torch.float64)
    nig, n, generator = eip_parameters(raw), 40000, np.random.default_rng(0)
    nu, alpha, beta = (float(x[0, 0]) for x in nig)
    sigma = stats.invgamma.rvs(alpha, scale=beta, size=n, random_state=generator)
    mu = generator.normal(size=n) * np.sqrt(sigma / nu)
    for draws, expected in (
        (sigma, eip_aleatoric_variance(nig)),
        (mu * mu, eip_epistemic_variance(nig)),
    ):
        error = draws.std() / math.sqrt(n)
        assert abs(draws.mean() - float(expected[0, 0])) < 4.0 * error


def test_eip_regulariser_penalises_either_sign():
    nig = eip_parameters(randn(1, 3, 3))
    weight = 2.0 * nig.evidence + nig.alpha + 1.0 / nig.beta
    residual = torch.tensor([[2.0, -2.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[0.8, 1.2, 0.0]], dtype=torch.float64) * weight
    torch.testing.assert_close(eip_regulariser(residual, nig, 0.4), expected)


def test_component_laws_do_not_rotate():
    """Why eIP is a baseline: a network that acts on components sees the frame."""
    vectors = randn(50, 3, 4)
    rotation = torch.linalg.qr(randn(3, 3, seed=2))[0]
    weight = randn(4, 3, seed=3)

    def total(v):
        return eip_epistemic_variance(eip_parameters(v @ weight)).sum(1)

    change = total(torch.matmul(rotation, vectors)) / total(vectors) - 1.0
    assert float(change.abs().mean()) > 0.01


def everything(raw: torch.Tensor, residual: torch.Tensor) -> list[torch.Tensor]:
    nig = eip_parameters(raw)
    return [
        eip_nll(residual, nig, 0.4),
        eip_regulariser(residual, nig, 0.4),
        eip_aleatoric_variance(nig),
        eip_epistemic_variance(nig),
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_scripted_is_eager(dtype):
    arguments = randn(12, 3, 3).to(dtype), randn(12, 3, seed=5).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(everything)
    expected = everything(*arguments)
    for _ in range(3):
        for found, wanted in zip(scripted(*arguments), expected, strict=True):
            assert torch.equal(found, wanted)
            assert torch.isfinite(found).all()
