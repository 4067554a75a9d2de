"""Evidential forces: a normal-inverse-Wishart law of every atom's force error (e²IP).

The force of an atom is y ~ N(μ, Σ), and mean and covariance are uncertain themselves,

    Σ ~ IW(ν Σ₀, ν),    μ | Σ ~ N(F, Σ/κ),    Σ₀ = σ_F² exp(s + T),

with F = -dE/dr, T traceless symmetric and σ_F² the argument `unit_squared` of the functions below,
() or (n,), in (eV/Å)². Integrated over μ and Σ this is a Student-t law (arXiv 2602.10419;
Meinert and Lavin, arXiv 2104.06135).

The likelihood sees κ and Σ₀ as (1 + 1/κ) Σ₀ alone. How the total covariance divides into aleatoric
and epistemic is therefore no property of the data. Either κ has a meaning of its own, that of the
leverage of features (`leverage`), or it is a convention: of the coupling ν = r κ if there is one,
otherwise of the start, the penalty and the length of the training. The total is what can be
calibrated; the epistemic part ranks.

Pure functions of tensors that script, in the precision of their input.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ase_bayesmlip.nn.exponential import (
    damp_tensor,
    exp_half,
    exp_symmetric,
    exp_traceless_trace,
    linear_tanh,
)
from ase_bayesmlip.statistics import log_gamma_half_step

# ν lies in [5, 200]: above 4 covariances exist, and 5 keeps E[Σ] below 5 Σ₀; by 200 the law is a
# Gaussian but for far tails. Up to 150 the bound changes nothing.
DOF_MIN = 5.0
DOF_LINEAR = 150.0
DOF_MAX = 200.0
EVIDENCE_MIN = 1e-6
# Up to here the damper of the logarithm of a scale changes nothing.
LOG_SCALE_LINEAR = 4.0


class NormalInverseWishart(NamedTuple):
    """Law of the mean and the covariance of n force errors.

    Attributes
    ----------
    log_scale : Tensor, (n,)
        s = tr ln(Σ₀/σ_F²)/3, damped.
    tensor : Tensor, (n, 5)
        Traceless part of ln(Σ₀/σ_F²), e3nn 2e components, damped.
    dof : Tensor, (n,)
        ν > 4, degrees of freedom of the inverse Wishart.
    evidence : Tensor, (n,)
        κ > 0: the mean is known as well as from κ observations.
    """

    log_scale: Tensor
    tensor: Tensor
    dof: Tensor
    evidence: Tensor


def _bounded_dof(
    raw: Tensor, least: float = DOF_MIN, linear: float = DOF_LINEAR, most: float = DOF_MAX
) -> Tensor:
    # Constants as defaults: TorchScript knows no others.
    return least + linear_tanh(functional.softplus(raw), linear - least, most - least)


def _positive_evidence(raw: Tensor, least: float = EVIDENCE_MIN) -> Tensor:
    return functional.softplus(raw) + least


def niw_parameters(
    raw: Tensor, tensor: Tensor, coupling: float, evidence: Tensor | None = None
) -> NormalInverseWishart:
    """Raw outputs of a network to a law of force errors.

    ν = 5 + softplus, bounded at 200 by the damper that bounds s. Unlike a clamp it leaves a
    gradient everywhere short of round-off.

    Parameters
    ----------
    raw : Tensor, (n, 3)
        [s, ν, κ] before dampers and softplus. With coupling κ is not read and may be missing.
    tensor : Tensor, (n, 5) or (n, 0)
        2e components before the damper; without any, covariances are isotropic.
    coupling : float
        0: κ = softplus + 1e-6 of its own (arXiv 2602.10419). r > 0: κ = ν/r, which removes the
        direction that the likelihood does not see (arXiv 2104.06135).
    evidence : Tensor or None, (n,)
        κ from elsewhere (`nn.evidential.leverage`); the coupling is not read then.
    """
    dof = _bounded_dof(raw[:, 1])
    if evidence is None:
        evidence = dof / coupling if coupling > 0.0 else _positive_evidence(raw[:, 2])
    if tensor.shape[1] == 0:
        damped = torch.zeros((raw.shape[0], 5), dtype=raw.dtype, device=raw.device)
    else:
        damped = damp_tensor(tensor)
    return NormalInverseWishart(linear_tanh(raw[:, 0]), damped, dof, evidence)


def initial_raw(dof: float, coupling: float, given: float | None = None) -> list[float]:
    """Raw channels [s, ν, κ] of a law of total variance σ_F², with κ = 1 where it is free.

    `given` is κ where it comes from elsewhere.

    Raises
    ------
    ValueError
        If the damper would change s.
    """
    evidence = given or (dof / coupling if coupling > 0.0 else 1.0)
    # (1 + 1/κ) ν/(ν - 4) eˢ σ_F² is the total variance of a component.
    log_scale = math.log(1.0 / ((1.0 + 1.0 / evidence) * dof / (dof - 4.0)))
    if abs(log_scale) > LOG_SCALE_LINEAR:
        most = math.floor((dof - 4.0) * math.exp(LOG_SCALE_LINEAR) - dof)
        raise ValueError(
            f"loss.evidence.ratio {coupling:g} leaves too little evidence to start from; choose "
            f"one of at most {most}"
        )
    unread = coupling > 0.0 or given is not None
    raw_evidence = 0.0 if unread else _inverse_softplus(evidence - EVIDENCE_MIN)
    return [log_scale, _inverse_softplus(dof - DOF_MIN), raw_evidence]


def _inverse_softplus(value: float) -> float:
    # ln(eˣ - 1), written so that large x do not overflow.
    return value + math.log(-math.expm1(-value))


def _aleatoric_factor(niw: NormalInverseWishart) -> Tensor:
    """E[Σ] = ν/(ν - d - 1) Σ₀, d = 3."""
    return niw.dof / (niw.dof - 4.0)


def scale_matrix(niw: NormalInverseWishart, unit_squared: Tensor) -> Tensor:
    """Σ₀ = σ_F² exp(s + T), (n, 3, 3), (eV/Å)², as H Hᵀ."""
    unit = unit_squared.to(niw.log_scale.dtype).reshape(-1, 1, 1)
    return unit * exp_symmetric(niw.log_scale, niw.tensor)


def aleatoric_covariance(niw: NormalInverseWishart, unit_squared: Tensor) -> Tensor:
    """E[Σ] = ν/(ν - 4) Σ₀, (n, 3, 3), (eV/Å)²."""
    return _aleatoric_factor(niw).view(-1, 1, 1) * scale_matrix(niw, unit_squared)


def predictive_dof(niw: NormalInverseWishart) -> Tensor:
    """η = ν - d + 1 = ν - 2 of the Student-t law of a force, (n,)."""
    return niw.dof - 2.0


def _mean_scale(niw: NormalInverseWishart, unit_squared: Tensor) -> Tensor:
    """Trace of Σ₀ over 3, (n,), (eV/Å)²."""
    unit = unit_squared.to(niw.log_scale.dtype)
    return unit * torch.exp(niw.log_scale) * exp_traceless_trace(niw.tensor) / 3.0


def epistemic_deviation(niw: NormalInverseWishart, unit_squared: Tensor) -> Tensor:
    """√(tr Cov[μ] / 3), (n,), eV/Å, without building a matrix (arXiv 2602.10419, fig. 2)."""
    factor = _aleatoric_factor(niw) / niw.evidence
    return torch.sqrt(factor * _mean_scale(niw, unit_squared))


def total_deviation(niw: NormalInverseWishart, unit_squared: Tensor) -> Tensor:
    """√(tr Cov[y] / 3), (n,), eV/Å, without building a matrix."""
    factor = (1.0 + 1.0 / niw.evidence) * _aleatoric_factor(niw)
    return torch.sqrt(factor * _mean_scale(niw, unit_squared))


def scale_distance(residual: Tensor, niw: NormalInverseWishart, unit_squared: Tensor) -> Tensor:
    """M = rᵀ Σ₀⁻¹ r = |exp(-(s + T)/2) r|²/σ_F², (n,), of force errors r, (n, 3), eV/Å.

    The half exponent leaves it a square: neither a factorisation nor a negative distance can
    occur.
    """
    whitened = torch.bmm(exp_half(niw.log_scale, niw.tensor, -1.0), residual.unsqueeze(2))
    return (whitened * whitened).sum(dim=(1, 2)) / unit_squared


def student_t_nll(residual: Tensor, niw: NormalInverseWishart, unit_squared: Tensor) -> Tensor:
    """Negative log-likelihood of force errors, (n,), nats, with its constants.

    With c = ν (1 + 1/κ) and M = rᵀ Σ₀⁻¹ r the Student-t law reads

        ln Γ((ν - 2)/2) - ln Γ((ν + 1)/2) + 3/2 ln(π c) + 3/2 (s + ln σ_F²)
            + (ν + 1)/2 ln(1 + M/c),

    where ln det Σ₀ = 3 (s + ln σ_F²) because T is traceless. The value may well be negative.

    Parameters
    ----------
    residual : Tensor, (n, 3), eV/Å
        Label - prediction.
    """
    unit = unit_squared.to(niw.log_scale.dtype)
    distance = scale_distance(residual, niw, unit)
    spread = niw.dof * (1.0 + 1.0 / niw.evidence)
    x = 0.5 * (niw.dof - 2.0)
    # ln Γ(x + 3/2) - ln Γ(x), in which the log-gammas do not cancel.
    gammas = log_gamma_half_step(x) + torch.log(x + 0.5)
    return (
        1.5 * (torch.log(math.pi * spread) + niw.log_scale + torch.log(unit))
        - gammas
        + 0.5 * (niw.dof + 1.0) * torch.log1p(distance / spread)
    )


def evidence_penalty(
    residual: Tensor,
    niw: NormalInverseWishart,
    unit_squared: Tensor,
    stop_residual: bool = False,
) -> Tensor:
    """(ν + κ) |r|²/σ_F², (n,): evidence is penalised where the error, (n, 3), eV/Å, is large.

    That of arXiv 2602.10419 but for the division by σ_F², so that its weight does not depend on
    the unit of force. With free κ any weight drives κ towards zero, for the likelihood does not
    resist. With `stop_residual` it shapes the evidence alone and does not pull on the forces.
    """
    squared = (residual * residual).sum(dim=1) / unit_squared.to(residual.dtype)
    if stop_residual:
        squared = squared.detach()
    return (niw.dof + niw.evidence) * squared
