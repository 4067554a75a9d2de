"""RACE (arXiv 2510.03046), in the folded form.

One layer maps features A to

    u_j = W_up A_j
    D_i = W_down (1/N̄) Σ_j R(r_ij) ∘ [u_j ⊗ Y(r_ij)]
    A'_i = M[z_i] D_i + W_skip[z_i] A_i

The published layer forms the outer product of D_i with a learned vector of the element and maps
it back; since that vector depends on the element alone, the two steps are the species-indexed
matrix M[z]. The layer is linear in the features, so after t layers they are exactly (t+1)-body.
"""

import torch
from torch import Tensor, nn

from ase_bayesmlip.nn.angular import Irrep, component_positions, n_components
from ase_bayesmlip.nn.interaction import SpeciesLinear
from ase_bayesmlip.nn.layer import MessageLayer


class RaceLayer(MessageLayer):
    """One message-passing iteration of the linear chain."""

    def __init__(
        self,
        irreps_in: list[Irrep],
        irreps_out: list[Irrep],
        channels: int,
        n_species: int,
        l_max: int,
        radial_widths: list[int],
        avg_n_neighbors: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__(
            irreps_in, irreps_out, channels, l_max, radial_widths, avg_n_neighbors, generator
        )
        self.product = SpeciesLinear(irreps_out, n_species, channels, channels, generator)
        self.skip = Skip(irreps_in, irreps_out, n_species, channels, generator)

    def update(self, density: Tensor, features: Tensor, species: Tensor) -> Tensor:
        """M[z_i] D_i + W_skip[z_i] A_i."""
        return self.product(density, species) + self.skip(features, species)


class Skip(nn.Module):
    """Species-indexed linear map of the irreps that input and output share, zero elsewhere."""

    take: Tensor
    put: Tensor

    def __init__(
        self,
        irreps_in: list[Irrep],
        irreps_out: list[Irrep],
        n_species: int,
        channels: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = irreps_in, irreps_out
        shared = [irrep for irrep in irreps_out if irrep in irreps_in]
        self.linear = SpeciesLinear(shared, n_species, channels, channels, generator)
        self.register_buffer("take", component_positions(shared, irreps_in), persistent=False)
        self.register_buffer("put", component_positions(shared, irreps_out), persistent=False)
        self.n_out = n_components(irreps_out)

    def forward(self, features: Tensor, species: Tensor) -> Tensor:
        """(n, components in, channels) to (n, components out, channels)."""
        mapped = self.linear(features.index_select(1, self.take), species)
        if mapped.shape[1] == self.n_out:
            return mapped
        zeros = mapped.new_zeros((mapped.shape[0], self.n_out, mapped.shape[2]))
        return zeros.index_add(1, self.put, mapped)
