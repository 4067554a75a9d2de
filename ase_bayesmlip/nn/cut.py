"""Energies of large structures without an autograd graph of all their edges.

What derivatives keep of every edge would not fit in memory. So the autograd graph ends at the
density of each layer, densities are made from one part of the edges after the other, and the
derivatives are put together layer by layer, from the last to the first (`Potential.rejoined`).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ase_bayesmlip.graph import Part
from ase_bayesmlip.nn.derivatives import gradients


class Cut(NamedTuple):
    """What joins the pieces of an autograd graph that ends at the densities.

    Attributes
    ----------
    edge_index : Tensor of int64, (2, n_edges), sorted by centre
    parts : list of Part
        The edges that are taken at once.
    harmonics : Tensor, (n_edges, (l_max + 1)²)
    radial : Tensor, (n_edges, n_radial)
    direct : Tensor, (n_atoms,), eV
        The part of the energies that depends on distances alone. All three depend on the positions.
    sources : list of Tensor, each (n_atoms, components, channels)
        What each layer sends; depends on the densities of the layers before.
    densities : list of Tensor, each (n_atoms, components, channels)
        What arrives in each layer; leaves.
    """

    edge_index: Tensor
    parts: list[Part]
    harmonics: Tensor
    radial: Tensor
    direct: Tensor
    sources: list[Tensor]
    densities: list[Tensor]


def slopes_by_density(energies: Tensor, cut: Cut, by_sources: list[Tensor]) -> Tensor:
    """Derivatives of K sums of energies (K, n_atoms), eV, by the density of one layer.

    `by_sources` holds the derivatives by what all later layers send, each (K, n_atoms, components,
    channels), as is the result: their number says which layer.
    """
    later = len(cut.densities) - len(by_sources)
    slopes: list[Tensor] = []
    for k in range(energies.shape[0]):
        total = energies[k].sum()
        for source, by_source in zip(cut.sources[later:], by_sources):  # noqa: B905 (TorchScript)
            total = total + (source * by_source[k]).sum()
        slopes.append(gradients(total, [cut.densities[later - 1]], False)[0])
    return torch.stack(slopes)
