"""Uncertainty of energies beside evidential forces, and the component-wise baseline eIP.

Pure functions of tensors that script. Sums over atoms are taken in float64.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ase_bayesmlip.nn.derivatives import sum_by_graph
from ase_bayesmlip.nn.evidential.law import NormalInverseWishart
from ase_bayesmlip.statistics import univariate_student_t_nll


class EnergyStudentT(NamedTuple):
    """Student-t law of the energies of structures from laws of independent atoms, float64.

    Attributes
    ----------
    variance : Tensor, (n_graphs,), eV²
    dof : Tensor, (n_graphs,)
        η > 4. The scale squared of the law is `variance` (η - 2)/η.
    aleatoric, epistemic : Tensor, (n,), eV²
        Variances of the atoms' energies; without a coherent part they sum to `variance`.
    """

    variance: Tensor
    dof: Tensor
    aleatoric: Tensor
    epistemic: Tensor


def evidential_energy(
    scale_squared: Tensor,
    niw: NormalInverseWishart,
    batch: Tensor,
    n_graphs: int,
    coherent: Tensor | None = None,
) -> EnergyStudentT:
    """Law of the energy if each atom's has a normal-inverse-gamma law with the ν, κ of its force.

    In one dimension E[σ²] = ν/(ν - 2) s² and Var[μ] = E[σ²]/κ, and the atom's energy follows a
    Student-t with ν degrees of freedom. A sum of them is none, but nearly the one that matches its
    second and fourth moment: the fourth cumulant of a Student-t is 6 v²/(η - 4).

    Parameters
    ----------
    scale_squared : Tensor, (n,), eV²
        s².
    niw : NormalInverseWishart
        ν > 4, for a fourth moment to exist.
    coherent : Tensor or None, (n,), eV
        δ of a Gaussian error that atoms have in common, Cov(εᵢ, εⱼ) = δᵢ δⱼ: it adds (Σ δ)² to the
        variance. With δ = 0 the error per atom falls as N^-1/2, which is too optimistic for errors
        that atoms share.
    """
    dof, evidence = niw.dof.to(torch.float64), niw.evidence.to(torch.float64)
    aleatoric = dof / (dof - 2.0) * scale_squared.to(torch.float64)
    epistemic = aleatoric / evidence
    each = aleatoric + epistemic
    variance = sum_by_graph(each, batch, n_graphs)
    if coherent is not None:
        common = sum_by_graph(coherent, batch, n_graphs)
        variance = variance + common * common
    fourth = sum_by_graph(each * each / (dof - 4.0), batch, n_graphs)
    return EnergyStudentT(variance, 4.0 + variance * variance / fourth, aleatoric, epistemic)


def energy_student_t_nll(residual: Tensor, variance: Tensor, dof: Tensor) -> Tensor:
    """Negative log-likelihood of energies, (n_graphs,), nats, by a Student-t of given variance.

    Parameters
    ----------
    residual : Tensor, (n_graphs,), eV
    variance : Tensor, (n_graphs,), eV²
    dof : Tensor, () or (n_graphs,), η > 2
    """
    return univariate_student_t_nll(residual, variance * (dof - 2.0) / dof, dof)


class ComponentNIG(NamedTuple):
    """Normal-inverse-gamma laws of Cartesian force components, as in eIP: not equivariant.

    Attributes
    ----------
    evidence : Tensor, (n, 3), ν > 0
    alpha : Tensor, (n, 3), α > 1
    beta : Tensor, (n, 3), β > 0, (eV/Å)²
    """

    evidence: Tensor
    alpha: Tensor
    beta: Tensor


def eip_parameters(raw: Tensor) -> ComponentNIG:
    """Raw outputs (n, 3, 3), component by [α, β, ν], to laws: the offsets of the official code."""
    positive = functional.softplus(raw)
    return ComponentNIG(
        evidence=positive[:, :, 2] + 1e-5,
        alpha=positive[:, :, 0] + 1.0 + 1e-5,
        beta=positive[:, :, 1],
    )


def eip_aleatoric_variance(nig: ComponentNIG) -> Tensor:
    """E[σ²] = β/(α - 1), (n, 3), (eV/Å)²."""
    return nig.beta / (nig.alpha - 1.0)


def eip_epistemic_variance(nig: ComponentNIG) -> Tensor:
    """Var[μ] = β/(ν (α - 1)), (n, 3), (eV/Å)²."""
    return nig.beta / (nig.evidence * (nig.alpha - 1.0))


def eip_student_t(nig: ComponentNIG, quantile: float) -> tuple[Tensor, Tensor, Tensor]:
    """Law that the likelihood of eIP gives a force error, each component by itself.

    The likelihood is that of quantile regression, an asymmetric Laplace law as a mixture of
    Gaussians, with z = β/(α - 1) in the place of the mixing variable. With τ = (1 - 2q)/(q(1 - q)),
    ω = 2/(q(1 - q)) and Ω = 4β (1 + ω z ν) it is a Student-t with 2α degrees of freedom at τ z, its
    scale squared Ω/(2αν). Its variance is not the sum of the aleatoric and the epistemic one,
    which are those of the normal-inverse-gamma law.

    Parameters
    ----------
    quantile : float
        q in (0, 1); ½ leaves the law unshifted.

    Returns
    -------
    dof : Tensor, (n, 3)
    shift : Tensor, (n, 3), eV/Å
        Location - prediction.
    scale : Tensor, (n, 3), eV/Å
    """
    inverse = 1.0 / (quantile * (1.0 - quantile))
    mean = eip_aleatoric_variance(nig)
    omega = 4.0 * nig.beta * (1.0 + 2.0 * inverse * mean * nig.evidence)
    scale = torch.sqrt(omega / (2.0 * nig.alpha * nig.evidence))
    return 2.0 * nig.alpha, (1.0 - 2.0 * quantile) * inverse * mean, scale


def eip_nll(residual: Tensor, nig: ComponentNIG, quantile: float) -> Tensor:
    """Negative log-likelihood of force errors, (n, 3), nats, in the form of the paper of eIP.

    Parameters
    ----------
    residual : Tensor, (n, 3), eV/Å
        Label - prediction.
    """
    dof, shift, scale = eip_student_t(nig, quantile)
    return univariate_student_t_nll(residual - shift, scale * scale, dof)


def eip_regulariser(residual: Tensor, nig: ComponentNIG, quantile: float) -> Tensor:
    """max(q r, (q - 1) r) (2ν + α + 1/β), (n, 3): evidence where the quantile is missed."""
    pinball = torch.maximum(quantile * residual, (quantile - 1.0) * residual)
    return pinball * (2.0 * nig.evidence + nig.alpha + 1.0 / nig.beta)
