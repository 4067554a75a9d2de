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
    """Σ = exp(s + T), (n, 3, 3): symmetric, positive semi-definite to the last bit and equivariant.

    s = tr(log Σ)/3, (n,), and the 2e part of log Σ, (n, 5), are damped here.
    """
    return exp_symmetric(linear_tanh(log_scale), damp_tensor(tensor))


def energy_variance(raw: Tensor, scale: Tensor) -> Tensor:
    """Raw log-variance to eV², in units of `scale`."""
    return scale * torch.exp(linear_tanh(raw))


class SpdNoise(nn.Module):
    """Covariances exp(s + T) of forces, from a scalar and the 2e tensor."""

    n_scalars, has_tensor = 1, True

    def forward(self, raw: Tensor, tensor: Tensor, scale: Tensor) -> Tensor:
        """Raw scalars (n, 1), tensor (n, 5) and scale, () or (n, 1, 1), to (n, 3, 3), (eV/Å)²."""
        return scale * spd_covariance(raw[:, 0], tensor)


class IsoNoise(nn.Module):
    """Covariances σ² 1 of forces, from a scalar."""

    n_scalars, has_tensor = 1, False

    def forward(self, raw: Tensor, tensor: Tensor, scale: Tensor) -> Tensor:  # noqa: ARG002
        """As `SpdNoise`; the tensor is not read."""
        identity = torch.eye(3, dtype=raw.dtype, device=raw.device)
        return scale * torch.exp(linear_tanh(raw[:, 0])).view(-1, 1, 1) * identity


class EnergyNoise(nn.Module):
    """Variances of atoms, which sum to that of their structure."""

    def forward(self, raw: Tensor, scale: Tensor, batch: Tensor, n_graphs: int) -> Tensor:  # noqa: ARG002
        """Raw log-variance (n,) and scale, () or (n,), to (n,) eV²."""
        return energy_variance(raw, scale)


class NoiseHeads(nn.Module):
    """Raw variance channels to the aleatoric variance of energies and covariance of forces.

    What they learn from labels without noise is the misfit of the potential at home.

    `energy_scale` and `force_scale` set the zero of the logarithms. Training puts the errors of
    its warm-up there, so that the likelihood starts with error bars of the right size.

    Parameters
    ----------
    energy : module like `EnergyNoise`, or None where no noise of energies is trained
    forces : module like `SpdNoise`, or None
    """

    energy_scale: Tensor
    force_scale: Tensor

    def __init__(self, energy: nn.Module | None = None, forces: nn.Module | None = None) -> None:
        super().__init__()
        self.energy, self.forces = energy, forces
        self.n_scalars = int(energy is not None) + getattr(forces, "n_scalars", 0)
        self.has_tensor = getattr(forces, "has_tensor", False)
        self.register_buffer("energy_scale", torch.ones(()))
        self.register_buffer("force_scale", torch.ones(()))

    def set_scales(self, energy_variance: float, force_variance: float) -> None:
        """Set the variances that raw zeros stand for.

        In eV², of one atom's share, or of the whole energy where its noise is the "mean", and in
        (eV/Å)², of a component.
        """
        self.energy_scale.fill_(energy_variance)
        self.force_scale.fill_(force_variance)

    def forward(
        self, raw: Tensor, tensor: Tensor, batch: Tensor, n_graphs: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Scalars (n, n_scalars), tensor (n, 5) or (n, 0), to (n,) eV² and (n, 3, 3) (eV/Å)².

        `batch`, (n,), is the structure of each atom. What is not trained is None.
        """
        return self.with_scales(raw, tensor, self.energy_scale, self.force_scale, batch, n_graphs)

    def with_scales(
        self,
        raw: Tensor,
        tensor: Tensor,
        energy_scale: Tensor,
        force_scale: Tensor,
        batch: Tensor,
        n_graphs: int,
    ) -> tuple[Tensor | None, Tensor | None]:
        """The same with other scales, which may differ from atom to atom."""
        variance: Tensor | None = None
        covariance: Tensor | None = None
        if self.energy is not None:
            variance = self.energy(raw[:, 0], energy_scale, batch, n_graphs)
            raw = raw[:, 1:]
        if self.forces is not None:
            covariance = self.forces(raw, tensor, force_scale)
        return variance, covariance
