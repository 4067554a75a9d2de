"""What the layers of all backbones have in common: messages of the neighbours, then an update."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ase_bayesmlip.nn.angular import Irrep
from ase_bayesmlip.nn.convolution import Convolution
from ase_bayesmlip.nn.cut import Cut
from ase_bayesmlip.nn.interaction import EquivariantLinear


class MessageLayer(nn.Module, ABC):
    """D_i = convolution(W_up A)_i, then A'_i = update(D_i, A_i, z_i), which a backbone defines.

    Parameters
    ----------
    irreps_in, density : list of Irrep
        Of A and of D.

    Attributes
    ----------
    numbers_per_edge : int
        About what a step holds for every edge at its peak, measured: it is in proportion to the
        products of features and harmonics.
    """

    def __init__(
        self,
        irreps_in: list[Irrep],
        density: list[Irrep],
        channels: int,
        l_max: int,
        radial_widths: list[int],
        avg_n_neighbors: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.up = EquivariantLinear(irreps_in, channels, channels, generator)
        self.convolution = Convolution(
            irreps_in, density, channels, l_max, radial_widths, avg_n_neighbors, generator
        )
        self.numbers_per_edge = 10 * len(self.convolution.path_of) * channels

    def forward(
        self,
        features: Tensor,
        species: Tensor,
        harmonics: Tensor,
        radial: Tensor,
        edge_index: Tensor,
    ) -> Tensor:
        """(n_atoms, components in, channels) to (n_atoms, components out, channels)."""
        density = self.convolution(self.up(features), harmonics, radial, edge_index)
        return self.update(density, features, species)

    def in_parts(self, features: Tensor, species: Tensor, cut: Cut) -> Tensor:
        """As `forward`, with the autograd graph cut, which is noted in `cut`."""
        source = self.up(features)
        density = self.convolution.in_parts(source, cut).requires_grad_(True)
        cut.sources.append(source)
        cut.densities.append(density)
        return self.update(density, features, species)

    def back(
        self, by_density: Tensor, source: Tensor, cut: Cut, by_harmonics: Tensor, by_radial: Tensor
    ) -> Tensor:
        """Derivatives by what this layer sends; see `Convolution.back`."""
        return self.convolution.back(by_density, source, cut, by_harmonics, by_radial)

    @abstractmethod
    def update(self, density: Tensor, features: Tensor, species: Tensor) -> Tensor:
        """New features of every atom, (n_atoms, components out, channels)."""
