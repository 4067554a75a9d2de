"""Moments and draws of evidential laws of forces that the package itself does not need."""

import torch
from torch import Tensor

from ase_bayesmlip.nn.evidential.law import (
    NormalInverseWishart,
    aleatoric_covariance,
    predictive_dof,
    scale_matrix,
)
from ase_bayesmlip.nn.exponential import exp_half


def epistemic_covariance(niw: NormalInverseWishart, unit_squared: Tensor) -> Tensor:
    """Cov[μ] = E[Σ]/κ, (n, 3, 3), (eV/Å)²."""
    return aleatoric_covariance(niw, unit_squared) / niw.evidence.view(-1, 1, 1)


def predictive_scale(niw: NormalInverseWishart, unit_squared: Tensor) -> Tensor:
    """Scale matrix A = (1 + 1/κ) ν/(ν - 2) Σ₀ of the Student-t law, (n, 3, 3), (eV/Å)².

    It is no covariance: that is η/(η - 2) A, the sum of the aleatoric and the epistemic one.
    """
    factor = (1.0 + 1.0 / niw.evidence) * niw.dof / predictive_dof(niw)
    return factor.view(-1, 1, 1) * scale_matrix(niw, unit_squared)


def sample_predictive(
    niw: NormalInverseWishart, unit_squared: Tensor, n_samples: int, generator: torch.Generator
) -> Tensor:
    """Draws of y - F from the Student-t law, (n, n_samples, 3), eV/Å.

    √(ν (1 + 1/κ)/χ²_η) σ_F exp((s + T)/2) z with z ~ N(0, 1). The draws carry no gradient.
    """
    n, s = niw.log_scale.shape[0], niw.log_scale.detach()
    half = exp_half(s, niw.tensor.detach(), 1.0)
    normal = torch.randn((n, n_samples, 3), generator=generator, dtype=s.dtype, device=s.device)
    shape = 0.5 * predictive_dof(niw).detach()
    # torch.distributions takes no generator; this is the function it calls.
    gamma = torch._standard_gamma(shape.view(-1, 1).expand(n, n_samples).contiguous(), generator)
    spread = unit_squared.to(s.dtype) * niw.dof.detach() * (1.0 + 1.0 / niw.evidence.detach())
    radius = torch.sqrt(spread.view(-1, 1) / (2.0 * gamma))
    # half is symmetric.
    return radius.unsqueeze(2) * torch.bmm(normal, half)
