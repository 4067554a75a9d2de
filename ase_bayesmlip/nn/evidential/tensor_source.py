"""Where a head takes the 2e components of a covariance from: vectors, 2e features or nothing."""

import math

import torch
from torch import Tensor, nn

from ase_bayesmlip.nn.angular import Irrep, component_slices


def starts_of(irreps: list[list[Irrep]], irrep: Irrep) -> list[int]:
    """First component of an irrep in the features of each layer, -1 where they lack it."""
    found = []
    for layer in irreps:
        slices = dict(zip(layer, component_slices(layer), strict=True))
        found.append(slices[irrep].start if irrep in slices else -1)
    return found


def directed_irrep(irreps: list[list[Irrep]]) -> Irrep | None:
    """Features to read a tensor from: 2e where there are any, otherwise vectors."""
    for irrep in (Irrep(2, 1), Irrep(1, -1)):
        if any(irrep in layer for layer in irreps):
            return irrep
    return None


def joined(features: list[Tensor], starts: list[int], n_components: int) -> Tensor:
    """Features of one irrep from all layers that have it: (n, components, all channels)."""
    found: list[Tensor] = []
    for x, start in zip(features, starts):  # noqa: B905 (TorchScript)
        if start >= 0:
            found.append(x[:, start : start + n_components])
    if len(found) == 0:
        return features[0][:, :0]
    return torch.cat(found, dim=2)


class TensorMix(nn.Module):
    """2e components as a gated linear map of 2e features, T = Σ_k w_k g_k Σ_c m_ck t_c.

    Weights w_k of zero are no dead start, since their derivative is not.

    Parameters
    ----------
    channels, rank : int
        Numbers of features c and of their combinations k.
    generator : torch.Generator
    size : float
        Standard deviation of the initial weights w_k √rank.
    """

    def __init__(
        self, channels: int, rank: int, generator: torch.Generator, size: float = 0.1
    ) -> None:
        super().__init__()
        mixing = torch.randn(channels, rank, generator=generator, dtype=torch.float64)
        weight = size * torch.randn(rank, generator=generator, dtype=torch.float64)
        self.mixing, self.weight = nn.Parameter(mixing), nn.Parameter(weight)
        self.mixing_factor = 1.0 / math.sqrt(channels)
        self.weight_factor = 1.0 / math.sqrt(rank)

    def mixed(self, features: Tensor) -> Tensor:
        """(n, components, channels) to (n, components, rank)."""
        return (features @ self.mixing) * self.mixing_factor

    def gated_sum(self, tensors: Tensor, gate: Tensor) -> Tensor:
        """(n, 5, rank) and g, (n, rank), to (n, 5)."""
        weights = (gate * self.weight).unsqueeze(1)
        return (tensors * weights).sum(dim=2) * self.weight_factor

    def forward(self, features: Tensor, gate: Tensor) -> Tensor:
        """(n, 5, channels) and g, (n, rank), to (n, 5)."""
        return self.gated_sum(self.mixed(features), gate)


class VectorProductTensor(TensorMix):
    """2e components from products of vectors, for features that have no 2e of their own.

    T = Σ_k w_k g_k (u_k u_kᵀ - |u_k|²/3) with u_k = Σ_c m_ck v_c: the weights of v_c v_dᵀ form a
    symmetric matrix of rank `rank`. Products of two vectors are even under inversion, whatever the
    parity of the vectors. Parameters as for `TensorMix`.
    """

    def forward(self, features: Tensor, gate: Tensor) -> Tensor:
        """(n, 3, channels) in e3nn order, which is (x, y, z), and g, (n, rank), to (n, 5)."""
        mixed = self.mixed(features)
        x, y, z = mixed[:, 0], mixed[:, 1], mixed[:, 2]
        r2, r6 = math.sqrt(2.0), math.sqrt(1.0 / 6.0)
        # Inverse of `traceless_symmetric`: projections of u uᵀ onto its five basis matrices.
        squares = [
            r2 * x * z,
            r2 * x * y,
            r6 * (2.0 * y * y - x * x - z * z),
            r2 * y * z,
            (z * z - x * x) / r2,
        ]
        return self.gated_sum(torch.stack(squares, dim=1), gate)


class NoTensor(nn.Module):
    """No components: covariances are isotropic, or their logarithms come from invariants."""

    def forward(self, directed: Tensor, gate: Tensor) -> Tensor:
        """(n, 0), whatever is given."""
        return gate[:, :0] + directed[:, :0, 0]
