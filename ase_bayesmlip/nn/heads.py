"""Readouts of the strata and the mean-variance heads.

Every layer has its own readout. Energies of the layers add up; the variance channels are averaged
over layers before they are exponentiated (arXiv 2510.03046).
"""

import math

import torch
from torch import Tensor, nn

from ase_bayesmlip.nn.angular import Irrep, component_slices
from ase_bayesmlip.nn.exponential import damp_tensor, exp_symmetric, linear_tanh
from ase_bayesmlip.nn.radial import DenseNetwork

# Number of scalars that each form of the force covariance needs beside the energy's two.
COVARIANCE_SCALARS = {"spd": 1, "iso": 1, "cholesky": 6, "none": 0}


class LayerReadout(nn.Module):
    """Scalars by a one-hidden-layer network of the 0e channels, a 2e tensor by a linear map.

    The first scalar is the energy. The others and the tensor belong to the noise: their last
    weights start at zero, so that the likelihood starts from the measured errors exactly.
    """

    def __init__(
        self,
        irreps: list[Irrep],
        channels: int,
        hidden: int,
        n_scalars: int,
        has_tensor: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        slices = dict(zip(irreps, component_slices(irreps), strict=True))
        self.scalar_component = slices[Irrep(0, 1)].start
        self.network = DenseNetwork([channels, hidden, n_scalars], generator)
        with torch.no_grad():
            self.network.weights[-1][:, 1:] = 0.0
        self.factor = 1.0 / math.sqrt(channels)
        tensor = slices.get(Irrep(2, 1)) if has_tensor else None
        self.tensor_start = -1 if tensor is None else int(tensor.start)
        n_weights = channels if tensor is not None else 0
        self.tensor_weight = nn.Parameter(torch.zeros(n_weights))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n, components, channels) to scalars (n, n_scalars), tensor (n, 5) or (n, 0) and basis.

        The basis, (n, hidden), is what the scalars are linear in: `basis` @ last weights.
        """
        scalars, basis = self.network.with_basis(features[:, self.scalar_component])
        if self.tensor_start >= 0:
            block = features[:, self.tensor_start : self.tensor_start + 5]
            tensor = (block @ self.tensor_weight) * self.factor
        else:
            tensor = features.new_zeros((features.shape[0], 0))
        return scalars, tensor, basis * self.network.factors[-1]


def spd_covariance(log_scale: Tensor, tensor: Tensor) -> Tensor:
    """Σ = exp(s + T): symmetric, positive definite and equivariant.

    Parameters
    ----------
    log_scale : Tensor, (n,)
        s = tr(log Σ)/3, damped here.
    tensor : Tensor, (n, 5)
        The 2e part of log Σ, damped here.

    Returns
    -------
    Tensor, (n, 3, 3)
        H Hᵀ with H = exp(T/2) e^{s/2}, positive semi-definite to the last bit.
    """
    return exp_symmetric(linear_tanh(log_scale), damp_tensor(tensor))


def cholesky_covariance(q: Tensor) -> Tensor:
    """The published form from six invariants: Σ = L Lᵀ, L built from (xx, yy, zz, yz, xz, xy).

    It does not rotate with the structure, Σ(QR) = Σ(R): kept to reproduce and to compare.

    Parameters
    ----------
    q : Tensor, (n, 6)

    Returns
    -------
    Tensor, (n, 3, 3)
    """
    zero = torch.zeros_like(q[:, 0])
    diagonal = torch.exp(q[:, :3])
    xx, yy, zz = diagonal[:, 0], diagonal[:, 1], diagonal[:, 2]
    rows = [xx, zero, zero, q[:, 5], yy, zero, q[:, 4], q[:, 3], zz]
    factor = torch.stack(rows, dim=1).view(-1, 3, 3)
    return torch.bmm(factor, factor.transpose(1, 2))


def energy_variance(raw: Tensor, scale: Tensor) -> Tensor:
    """Raw log-variance to eV², in units of `scale`."""
    return scale * torch.exp(linear_tanh(raw))


def force_covariance(kind: str, raw: Tensor, tensor: Tensor, scale: Tensor) -> Tensor:
    """Raw scalars (n, k) and tensor (n, 5) to (n, 3, 3), (eV/Å)².

    Parameters
    ----------
    kind : "spd", "cholesky" or "iso"
    scale : Tensor, () or (n, 1, 1), (eV/Å)²
    """
    if kind == "spd":
        return scale * spd_covariance(raw[:, 0], tensor)
    identity = torch.eye(3, dtype=raw.dtype, device=raw.device)
    if kind == "cholesky":
        # The published floor, 1e-3 (eV/Å)²; the other forms have none.
        return scale * cholesky_covariance(raw) + 1e-3 * identity
    return scale * torch.exp(linear_tanh(raw[:, 0])).view(-1, 1, 1) * identity


class NoiseHeads(nn.Module):
    """Raw variance channels to the aleatoric variance of energies and covariance of forces.

    `energy_scale` and `force_scale` set the zero of the logarithms. Training puts the errors of
    its warm-up there, so that the likelihood starts with error bars of the right size.

    Parameters
    ----------
    covariance : "spd", "cholesky", "iso" or "none"
    """

    energy_scale: Tensor
    force_scale: Tensor

    def __init__(self, covariance: str) -> None:
        super().__init__()
        self.covariance = covariance
        self.register_buffer("energy_scale", torch.ones(()))
        self.register_buffer("force_scale", torch.ones(()))

    def set_scales(self, energy_variance: float, force_variance: float) -> None:
        """Set the variances that raw zeros stand for.

        Parameters
        ----------
        energy_variance : float, eV²
            Of one atom's share, or of the whole energy where its noise is the "mean".
        force_variance : float, (eV/Å)²
            Of a component.
        """
        self.energy_scale.fill_(energy_variance)
        self.force_scale.fill_(force_variance)

    def energy_variance(self, raw: Tensor) -> Tensor:
        """(n,) raw log-variance to (n,) eV²."""
        return energy_variance(raw, self.energy_scale)

    def force_covariance(self, raw: Tensor, tensor: Tensor) -> Tensor:
        """(n, k) raw scalars and (n, 5) tensor to (n, 3, 3), (eV/Å)²."""
        return force_covariance(self.covariance, raw, tensor, self.force_scale)
