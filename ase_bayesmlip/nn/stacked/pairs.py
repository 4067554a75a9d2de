"""What depends on the distances of pairs alone, for several potentials at once."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ase_bayesmlip.nn.pairs import (
    PairFunctions,
    bond,
    bond_slope,
    bonded,
    bonded_slope,
    presence,
    zbl,
    zbl_slope,
)
from ase_bayesmlip.nn.potential import Potential
from ase_bayesmlip.nn.stacked.geometry import Surroundings


class StackedPairs(nn.Module):
    """Binding and repulsion of every member, with their derivatives written out; see `nn.pairs`."""

    def __init__(self, pairs: PairFunctions, members: Sequence[Potential]) -> None:
        super().__init__()
        self.pairs = copy.deepcopy(pairs)
        bias = [m.scale * m.bias[:, 0] * float(m.anchored) for m in members]
        self.register_buffer("binding", torch.stack(bias).detach())

    def forward(self, species: Tensor, around: Surroundings) -> tuple[Tensor, Tensor, Tensor]:
        """Energies (members, n_atoms), eV, slopes and presence (n_atoms,).

        The slopes are derivatives of the sum of the energies by the distances, (members, n_atoms,
        width), eV/Å.
        """
        r, kind = around.distances, species.argmax(dim=1)
        pairs = self.pairs.of_pairs(species.shape[1] * kind.unsqueeze(1) + kind[around.neighbor])
        bonds = bond(r, pairs).sum(dim=1)
        binding = self.get_buffer("binding") @ species.T
        energies = binding * bonded(bonds) + zbl(r, pairs).sum(dim=1)
        by_bonds = (binding * bonded_slope(bonds)).unsqueeze(2)
        slopes = by_bonds * bond_slope(r, pairs) + zbl_slope(r, pairs)
        return energies, slopes, presence(self.pairs.nearness(r).sum(dim=1))
