"""Moments of samples, Gaussian and Student-t likelihoods: pure functions of tensors.

Everything here scripts, because the served model uses it.
"""

import math

import torch
from torch import Tensor


def sample_variance(samples: Tensor) -> Tensor:
    """Unbiased variance over the first axis (divides by S - 1), in float64.

    Parameters
    ----------
    samples : Tensor, (S, ...), S ≥ 2
    """
    return torch.var(samples.to(torch.float64), dim=0, correction=1)


def sample_covariance(samples: Tensor) -> Tensor:
    """Unbiased covariance over the first axis of vectors on the last, in float64.

    Parameters
    ----------
    samples : Tensor, (S, ..., d), S ≥ 2

    Returns
    -------
    Tensor, (..., d, d)
        A sum of outer products: symmetric and positive semi-definite, of rank S - 1 at most.
    """
    centred = samples.to(torch.float64)
    centred = centred - centred.mean(dim=0, keepdim=True)
    return torch.einsum("s...a,s...b->...ab", centred, centred) / (samples.shape[0] - 1)


def gaussian_nll(residual: Tensor, variance: Tensor, beta: float = 0.0) -> Tensor:
    """Negative log-likelihood ½ (r²/σ² + log σ²) without the constant ½ log 2π.

    Parameters
    ----------
    residual, variance : Tensor, same shape
    beta : float
        β-NLL (arXiv 2203.09168): each term is multiplied by σ^(2β), held constant.
    """
    value = 0.5 * (residual * residual / variance + torch.log(variance))
    if beta > 0.0:
        value = value * variance.detach() ** beta
    return value


def inverse_and_logdet(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse (n, 3, 3) and log-determinant (n,) of positive definite 3×3 matrices by cofactors."""
    a, b, c = matrix[:, 0], matrix[:, 1], matrix[:, 2]
    cofactors = torch.stack(
        [torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=2
    )
    determinant = (a * cofactors[:, :, 0]).sum(dim=1)
    return cofactors / determinant.view(-1, 1, 1), torch.log(determinant)


def mahalanobis(residual: Tensor, covariance: Tensor) -> Tensor:
    """Squared Mahalanobis distance rᵀ Σ⁻¹ r, (n,), evaluated in float64."""
    inverse, _ = inverse_and_logdet(covariance.to(torch.float64))
    r = residual.to(torch.float64)
    return torch.einsum("na,nab,nb->n", r, inverse, r)


def multivariate_nll(residual: Tensor, covariance: Tensor, beta: float = 0.0) -> Tensor:
    """½ (rᵀ Σ⁻¹ r + log det Σ) per vector, evaluated in float64.

    Parameters
    ----------
    residual : Tensor, (n, 3)
    covariance : Tensor, (n, 3, 3), positive definite
    beta : float
        β-NLL with (tr Σ / 3)^β in the place of σ^(2β).
    """
    r, cov = residual.to(torch.float64), covariance.to(torch.float64)
    inverse, logdet = inverse_and_logdet(cov)
    value = 0.5 * (torch.einsum("na,nab,nb->n", r, inverse, r) + logdet)
    if beta > 0.0:
        mean_variance = cov.diagonal(dim1=1, dim2=2).mean(dim=1)
        value = value * mean_variance.detach() ** beta
    return value


def log_gamma_half_step(x: Tensor) -> Tensor:
    """Elementwise ln Γ(x + ½) - ln Γ(x), x > 0.

    The difference of two log-gammas loses its digits as x grows (0.06 is lost at x = 5·10⁵ in
    float32), so that from x = 20 on the asymptotic series stands in (DLMF 5.11.8). Its first
    missing term is 2e-3/x⁹.
    """
    direct = torch.lgamma(x + 0.5) - torch.lgamma(x)
    # The clamp keeps the derivative of the branch that is not taken finite.
    large = torch.clamp(x, min=20.0)
    u = 1.0 / (large * large)
    tail = -1.0 / 8.0 + u * (1.0 / 192.0 + u * (-1.0 / 640.0 + u * (17.0 / 14336.0)))
    return torch.where(x < 20.0, direct, 0.5 * torch.log(large) + tail / large)


def univariate_student_t_nll(residual: Tensor, scale_squared: Tensor, dof: Tensor) -> Tensor:
    """Negative log-likelihood of a Student-t of one dimension, with its constants,

        ln Γ(η/2) - ln Γ((η + 1)/2) + ½ ln(π η a²) + (η + 1)/2 ln(1 + r²/(η a²)).

    Parameters
    ----------
    residual : Tensor, any unit u
    scale_squared : Tensor, u²
        a². It is no variance: that is η/(η - 2) a², and only for η > 2.
    dof : Tensor
        η > 0.
    """
    spread = dof * scale_squared
    return (
        -log_gamma_half_step(0.5 * dof)
        + 0.5 * torch.log(math.pi * spread)
        + 0.5 * (dof + 1.0) * torch.log1p(residual * residual / spread)
    )
