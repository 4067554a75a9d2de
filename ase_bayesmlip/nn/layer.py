"""What the layers of all backbones have in common: messages of the neighbours, then an update.

Of a large structure, the edges are taken in parts, since what the autograd graph of all of them
keeps would not fit in memory. The graph then ends at the density of each layer, and `Cut` holds
what joins its pieces.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ase_bayesmlip.graph import Part
from ase_bayesmlip.nn.angular import Irrep
from ase_bayesmlip.nn.derivatives import gradients
from ase_bayesmlip.nn.interaction import Convolution, EquivariantLinear


class Cut(NamedTuple):
    """What joins the pieces of an autograd graph that ends at the densities.

    Attributes
    ----------
    harmonics : Tensor, (n_edges, (l_max + 1)²)
    radial : Tensor, (n_edges, n_radial)
        Both depend on the positions.
    sources : list of Tensor, each (n_atoms, components, channels)
        What each layer sends; depends on the densities of the layers before.
    densities : list of Tensor, each (n_atoms, components, channels)
        What arrives in each layer; leaves.
    """

    harmonics: Tensor
    radial: Tensor
    sources: list[Tensor]
    densities: list[Tensor]


class MessageLayer(nn.Module):
    """D_i = convolution(W_up A)_i, then A'_i = update(D_i, A_i, z_i), which a backbone defines.

    Parameters
    ----------
    irreps_in, density : list of Irrep
        Of A and of D.

    Attributes
    ----------
    numbers_per_edge : int
        About what the autograd graph keeps of an edge, measured: it is in proportion to the
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

    def in_parts(
        self, features: Tensor, species: Tensor, edge_index: Tensor, parts: list[Part], cut: Cut
    ) -> Tensor:
        """As `forward`, with the autograd graph cut, which is noted in `cut`."""
        source = self.up(features)
        density = self.convolution.in_parts(source, cut.harmonics, cut.radial, edge_index, parts)
        density.requires_grad_(True)
        cut.sources.append(source)
        cut.densities.append(density)
        return self.update(density, features, species)

    def back(
        self, by_density: Tensor, cut: Cut, index: int, edge_index: Tensor, parts: list[Part]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Derivatives by the sources of this layer, the index-th, by harmonics and by radial.

        See `Convolution.back`.
        """
        source = cut.sources[index]
        return self.convolution.back(
            source, cut.harmonics, cut.radial, edge_index, parts, by_density
        )

    def update(self, density: Tensor, features: Tensor, species: Tensor) -> Tensor:
        """New features of every atom, (n_atoms, components out, channels)."""
        raise NotImplementedError


def slopes_by_density(energies: Tensor, cut: Cut, by_sources: list[Tensor]) -> Tensor:
    """Derivatives of K sums of energies by the density of one layer.

    Parameters
    ----------
    energies : Tensor, (K, n_atoms), eV
    by_sources : list of Tensor, each (K, n_atoms, components, channels)
        Derivatives by what all later layers send, which decides the layer.

    Returns
    -------
    Tensor, (K, n_atoms, components, channels)
    """
    later = len(cut.densities) - len(by_sources)
    slopes: list[Tensor] = []
    for k in range(energies.shape[0]):
        total = energies[k].sum()
        for source, by_source in zip(cut.sources[later:], by_sources):  # noqa: B905 (TorchScript)
            total = total + (source * by_source[k]).sum()
        slopes.append(gradients(total, [cut.densities[later - 1]], False)[0])
    return torch.stack(slopes)
