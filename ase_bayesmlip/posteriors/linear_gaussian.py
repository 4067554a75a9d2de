"""Bayesian regression with labels that are linear in the weights, and Gaussian noise.

The posterior of P weights is exact, N(w̄, H⁻¹) with H = Σ_k G_k/s_k + τ: G_k the curvature of the
likelihood of labels of kind k, s_k a factor on their noise variance, τ the precision of the prior.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """N(mean, precision⁻¹) over P weights, in float64.

    Attributes
    ----------
    mean : Tensor, (P,)
    precision : Tensor, (P, P) or, where only the diagonal is known, (P,)
    prior : float
        τ, which is part of the precision.
    energy_noise, forces_noise : float
        s_E and s_F.
    """

    mean: Tensor
    precision: Tensor
    prior: float
    energy_noise: float = 1.0
    forces_noise: float = 1.0

    def factor(self) -> Tensor:
        """L with L Lᵀ the covariance: (P, P), or the standard deviations (P,)."""
        if self.precision.ndim == 1:
            return self.precision.rsqrt()
        lower = torch.linalg.cholesky(self.precision)
        identity = torch.eye(len(lower), dtype=lower.dtype)
        return torch.linalg.solve_triangular(lower, identity, upper=False).T

    def observed(self, rows: Tensor, residuals: Tensor) -> Gaussian:
        """After m labels that are linear in the weights: exact, whatever their number.

        Parameters
        ----------
        rows : Tensor, (m, P)
            Derivatives of the predictions, in units of the noise.
        residuals : Tensor, (m,)
            Labels minus predictions at the mean, in units of the noise.
        """
        precision = self.precision + rows.T @ rows
        mean = self.mean + torch.linalg.solve(precision, rows.T @ residuals)
        return dataclasses.replace(self, mean=mean, precision=precision)


class Evidence(NamedTuple):
    """What maximises the evidence of a linear-Gaussian model.

    Attributes
    ----------
    prior : float
        Precision τ of the prior N(0, 1/τ) of the weights.
    noise : tuple of float
        Factor s_k on the assumed noise variance of each kind of label; 1 where it was not fitted.
    log_evidence : float
        log p(labels), up to a constant.
    """

    prior: float
    noise: tuple[float, ...]
    log_evidence: float


def maximise_evidence(
    curvatures: list[Tensor],
    chi2: list[float],
    n_labels: list[int],
    fitted: list[bool],
    weights: Tensor,
    tolerance: float = 1e-10,
) -> Evidence:
    """Prior precision and noise of the most probable linear-Gaussian model (MacKay 1992).

    With the posterior precision H = Σ_k G_k/s_k + τ and γ_k = tr(H⁻¹ G_k)/s_k, the number of
    weights that labels of kind k determine, the maximum satisfies

        τ = Σ_k γ_k/|w|²,    s_k = χ²_k/(n_k - γ_k),

    which is iterated (doi:10.1162/neco.1992.4.3.415, section 5).

    Parameters
    ----------
    curvatures : list of Tensor, (P, P) or diagonals (P,)
        G_k for the assumed noise.
    chi2 : list of float
        Squared residuals at the weights, in units of the assumed noise.
    n_labels : list of int
    fitted : list of bool
        Whether s_k is fitted or 1.
    weights : Tensor, (P,)
    """
    squared_norm = max(float((weights * weights).sum()), 1e-300)
    prior, noise = 1.0, [1.0] * len(curvatures)
    for _ in range(10_000):
        precision = posterior_precision(curvatures, noise, prior)
        covariance = precision.reciprocal() if precision.ndim == 1 else torch.inverse(precision)
        determined = [
            float((covariance * g).sum()) / s for g, s in zip(curvatures, noise, strict=True)
        ]
        before = [prior, *noise]
        # The mean of old and new, in logarithms: Σγ/|w|² falls at most as fast as τ rises, so the
        # step itself may oscillate for ever and half of it contracts.
        prior = math.sqrt(prior * max(sum(determined), 1e-12) / squared_norm)
        # At least a thousandth of the labels must be left to tell the noise from.
        noise = [
            c / max(n - gamma, 1e-3 * n) if fit else 1.0
            for c, n, gamma, fit in zip(chi2, n_labels, determined, fitted, strict=True)
        ]
        changes = [
            abs(math.log(new / old)) for new, old in zip([prior, *noise], before, strict=True)
        ]
        if max(changes) < tolerance:
            break
    precision = posterior_precision(curvatures, noise, prior)
    logdet = precision.log().sum() if precision.ndim == 1 else torch.linalg.slogdet(precision)[1]
    log_evidence = 0.5 * (len(weights) * math.log(prior) - prior * squared_norm - float(logdet))
    for c, n, s in zip(chi2, n_labels, noise, strict=True):
        log_evidence -= 0.5 * (c / s + n * math.log(s))
    return Evidence(prior, tuple(noise), log_evidence)


def posterior_precision(
    curvatures: list[Tensor], noise: list[float] | tuple[float, ...], prior: float
) -> Tensor:
    """H = Σ_k G_k/s_k + τ, a matrix or, for diagonals, a diagonal."""
    total = torch.zeros_like(curvatures[0])
    for curvature, factor in zip(curvatures, noise, strict=True):
        total = total + curvature / factor
    ones = torch.ones(len(total), dtype=total.dtype, device=total.device)
    return total + prior * (ones if total.ndim == 1 else torch.diag(ones))
