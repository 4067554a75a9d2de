"""Moments of mixtures and Gaussian likelihoods: pure functions of tensors.

Everything here scripts, because the served model uses it.
"""

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
