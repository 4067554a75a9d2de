"""eIP, a baseline: normal-inverse-gamma laws of the Cartesian force components.

The components are laws of their own, which do not rotate with the structure; energies have none.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ase_bayesmlip.nn.angular import Irrep
from ase_bayesmlip.nn.evidential.head import HIDDEN
from ase_bayesmlip.nn.evidential.tensor_source import joined, starts_of
from ase_bayesmlip.nn.radial import DenseNetwork
from ase_bayesmlip.prediction import MemberOutput
from ase_bayesmlip.statistics import univariate_student_t_nll


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
    """-log p of force errors, label - prediction, (n, 3), eV/Å, in nats: the form of the paper."""
    dof, shift, scale = eip_student_t(nig, quantile)
    return univariate_student_t_nll(residual - shift, scale * scale, dof)


def eip_regulariser(residual: Tensor, nig: ComponentNIG, quantile: float) -> Tensor:
    """max(q r, (q - 1) r) (2ν + α + 1/β), (n, 3): evidence where the quantile is missed."""
    pinball = torch.maximum(quantile * residual, (quantile - 1.0) * residual)
    return pinball * (2.0 * nig.evidence + nig.alpha + 1.0 / nig.beta)


class ComponentEvidence(NamedTuple):
    """Laws of the force components of n atoms in units of σ_F, and σ_F², (), (eV/Å)²."""

    nig: ComponentNIG
    unit_squared: Tensor


class ComponentHead(nn.Module):
    """The head of eIP: Cartesian components of vector features to laws of force components.

    Each component passes the same network by itself (Linear, shifted softplus, Linear), so that
    the laws do not rotate with the structure. Units are σ_F, the error of the warm-up; eIP as
    published has none.

    Parameters
    ----------
    irreps : list of list of Irrep
        Of the features after each layer.
    channels : int

    Raises
    ------
    ValueError
        If no layer has vectors.
    """

    has_energy_noise = False

    def __init__(
        self, irreps: list[list[Irrep]], channels: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.vector_starts = starts_of(irreps, Irrep(1, -1))
        n_layers = sum(start >= 0 for start in self.vector_starts)
        if n_layers == 0:
            raise ValueError(
                "loss.kind eip is read from vectors, but no layer has any that the energy reads; "
                "add 1o to hidden_irreps and use two layers or more"
            )
        self.network = DenseNetwork([channels * n_layers, HIDDEN], generator)
        self.hidden_bias = nn.Parameter(torch.zeros(HIDDEN, dtype=torch.float64))
        self.last = DenseNetwork([HIDDEN, 3], generator)
        self.bias = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(
        self,
        features: list[Tensor],
        species: Tensor,  # noqa: ARG002 (as `EvidentialHead`)
        force_scale: Tensor,
        energy_scale: Tensor,  # noqa: ARG002
    ) -> ComponentEvidence:
        """The laws of all force components; arguments as for `EvidentialHead`."""
        hidden = self.network(joined(features, self.vector_starts, 3)) + self.hidden_bias
        raw = self.last(functional.softplus(hidden) - math.log(2.0)) + self.bias
        return ComponentEvidence(eip_parameters(raw), force_scale)

    def output(self, energies: Tensor, evidence: ComponentEvidence, lazy: bool) -> MemberOutput:
        """Moments of the laws, as `EvidentialHead.output`; energies have none."""
        nig, unit = evidence.nig, evidence.unit_squared
        epistemic = unit * eip_epistemic_variance(nig)
        noise: Tensor | None = None
        covariance: Tensor | None = None
        if not lazy:
            noise = torch.diag_embed(unit * eip_aleatoric_variance(nig)).unsqueeze(0)
            covariance = torch.diag_embed(epistemic).unsqueeze(0)
        return MemberOutput(
            energies.unsqueeze(0),
            None,
            noise,
            forces_cov_epistemic=covariance,
            forces_trace_epistemic=epistemic.sum(dim=1).unsqueeze(0),
        )
