"""RACE with a product of densities in place of the species-indexed matrix.

In RACE the density D_i is multiplied by a learned vector of the element. Here it is also
multiplied by itself,

    Q_i = W_2 [D_i ⊗ D_i],   R_i = W_3 [Q_i ⊗ D_i]
    A'_i = M[z_i] (D_i, Q_i, R_i) + W_skip[z_i] A_i,

so that one layer is four-body instead of two-body and two layers suffice (the idea of MACE,
arXiv 2206.07697, with the symmetric contraction replaced by two successive products).
"""

import torch
from torch import Tensor

from ase_bayesmlip.nn.angular import Irrep, component_positions, edge_irreps
from ase_bayesmlip.nn.interaction import ChannelProduct, SpeciesLinear
from ase_bayesmlip.nn.layer import MessageLayer
from ase_bayesmlip.nn.race import Skip


class RacePlusLayer(MessageLayer):
    """One message-passing iteration with density products up to third order."""

    take: Tensor

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
        density = edge_irreps(l_max)
        if not set(irreps_out) <= set(density):
            raise ValueError(
                "race_plus needs hidden_irreps of natural parity, (-1)^l, and of degree at most "
                f"l_max = {l_max}, such as '32x0e + 32x1o'; choose those or the backbone 'race'"
            )
        super().__init__(
            irreps_in, density, channels, l_max, radial_widths, avg_n_neighbors, generator
        )
        self.square = ChannelProduct(density, density, density, channels, True, generator)
        self.cube = ChannelProduct(density, density, irreps_out, channels, False, generator)
        self.register_buffer("take", component_positions(irreps_out, density), persistent=False)
        self.product = SpeciesLinear(irreps_out, n_species, 3 * channels, channels, generator)
        self.skip = Skip(irreps_in, irreps_out, n_species, channels, generator)

    def update(self, density: Tensor, features: Tensor, species: Tensor) -> Tensor:
        """M[z_i] (D_i, Q_i, R_i) + W_skip[z_i] A_i."""
        square = self.square(density, density)
        cube = self.cube(square, density)
        low_orders = torch.cat([density, square], dim=2).index_select(1, self.take)
        products = torch.cat([low_orders, cube], dim=2)
        return self.product(products, species) + self.skip(features, species)
