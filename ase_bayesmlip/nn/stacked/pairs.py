"""What depends on the distances of pairs alone, for several potentials at once."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ase_bayesmlip.nn.pairs import (
    PairFunctions,
    PairTable,
    bond,
    bond_slope,
    bonded,
    bonded_slope,
    held,
    held_slope,
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
        r, pairs = around.distances, self._pairs(species, around)
        bonds = bond(r, pairs).sum(dim=1)
        binding = self.get_buffer("binding") @ species.T
        energies = binding * bonded(bonds) + zbl(r, pairs).sum(dim=1)
        by_bonds = (binding * bonded_slope(bonds)).unsqueeze(2)
        slopes = by_bonds * bond_slope(r, pairs) + zbl_slope(r, pairs)
        return energies, slopes, presence(self.pairs.nearness(r).sum(dim=1))

    def _pairs(self, species: Tensor, around: Surroundings) -> PairTable:
        kind = species.argmax(dim=1)
        return self.pairs.of_pairs(species.shape[1] * kind.unsqueeze(1) + kind[around.neighbor])

    def seen(self, species: Tensor, around: Surroundings) -> Surroundings:
        """What the network is shown: distances, and their derivatives, which lag behind."""
        r, pairs = around.distances, self._pairs(species, around)
        lag = held_slope(r, pairs).unsqueeze(2).unsqueeze(3)
        slopes = torch.cat([lag * around.slopes[:, :, :1], around.slopes[:, :, 1:]], dim=2)
        return around._replace(distances=held(r, pairs), slopes=slopes)
