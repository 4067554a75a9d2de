"""Building blocks of `stacked`: the maps of several potentials of one architecture as one.

Features are lists with one tensor per irrep, (members, n_atoms, dim, channels); weights carry a
leading axis of members, so that channel mixing is one batched matrix product for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ase_bayesmlip.nn.angular import Irrep
from ase_bayesmlip.nn.couplings import Couplings, couplings
from ase_bayesmlip.nn.dense_geometry import Surroundings
from ase_bayesmlip.nn.fused import ChannelCoupling, NeighborCoupling
from ase_bayesmlip.nn.heads import LayerReadout
from ase_bayesmlip.nn.interaction import (
    ChannelProduct,
    Convolution,
    EquivariantLinear,
    PathLinear,
    SpeciesLinear,
)
from ase_bayesmlip.nn.potential import Potential
from ase_bayesmlip.nn.race import Skip
from ase_bayesmlip.nn.radial_table import tabulate

Features = list[Tensor]


def stack(values: Sequence[Tensor]) -> Tensor:
    """Weights of the members along a leading axis, detached."""
    return torch.stack([value.detach() for value in values])


def _channel_mix(features: Tensor, weight: Tensor) -> Tensor:
    """(members, n, dim, n_in) times (members, n_in, n_out)."""
    members, n_atoms, dim, n_in = features.shape
    mixed = torch.bmm(features.reshape(members, n_atoms * dim, n_in), weight)
    return mixed.view(members, n_atoms, dim, weight.shape[2])


class StackedLinear(nn.Module):
    """`EquivariantLinear` of every member."""

    def __init__(self, linears: Sequence[EquivariantLinear]) -> None:
        super().__init__()
        self.register_buffer("weight", stack([item.weight * item.factor for item in linears]))

    def forward(self, features: Features) -> Features:
        """One matrix per irrep."""
        weight = self.get_buffer("weight")
        return [_channel_mix(x, weight[:, k]) for k, x in enumerate(features)]


class StackedSpeciesLinear(nn.Module):
    """`SpeciesLinear` of every member: all elements' maps, then the one of the atom."""

    def __init__(self, linears: Sequence[SpeciesLinear]) -> None:
        super().__init__()
        # (members, irreps, species, in, out) to (members, irreps, in, species · out)
        weight = stack([item.weight * item.factor for item in linears]).transpose(2, 3)
        self.n_out = weight.shape[-1]
        self.register_buffer("weight", weight.flatten(3).contiguous())

    def forward(self, features: Features, species: Tensor) -> Features:
        """One-hot species are (n_atoms, n_species)."""
        mixed = []
        for k, x in enumerate(features):
            every = _channel_mix(x, self.get_buffer("weight")[:, k])
            every = every.view(*every.shape[:3], species.shape[1], self.n_out)
            mixed.append((every * species[None, :, None, :, None]).sum(3))
        return mixed


class StackedPaths(nn.Module):
    """`PathLinear` of every member, for rows in the order of `Couplings`."""

    def __init__(self, mixes: Sequence[PathLinear], table: Couplings, factor: float) -> None:
        super().__init__()
        self.blocks = table.blocks
        weight = stack([item.weight * item.mask for item in mixes]) * factor
        self.weights = nn.ParameterList(
            nn.Parameter(weight[:, k, :n_paths].flatten(1, 2).contiguous(), requires_grad=False)
            for k, (_, n_paths) in enumerate(table.blocks)
        )

    def forward(self, rows: Tensor) -> Features:
        """(members, n_atoms, rows, channels) to one tensor per irrep."""
        members, n_atoms, _, channels = rows.shape
        mixed, start = [], 0
        for (dim, n_paths), weight in zip(self.blocks, self.weights, strict=True):
            block = rows[:, :, start : start + dim * n_paths]
            block = block.reshape(members, n_atoms, dim, n_paths * channels)
            mixed.append(_channel_mix(block, weight))
            start += dim * n_paths
        return mixed


class StackedConvolution(nn.Module):
    """`Convolution` of every member with tabulated radial networks."""

    def __init__(self, members: Sequence[Potential], layer: int, table_tolerance: float) -> None:
        super().__init__()
        convolutions: list[Convolution] = [m.layers[layer].convolution for m in members]  # type: ignore[union-attr,misc]
        first = convolutions[0]
        self.cutoff = members[0].cutoff
        self.table = couplings(first.irreps_in, first.harmonics, first.irreps_out, first.paths)
        functions = [_radial_function(m, c) for m, c in zip(members, convolutions, strict=True)]
        tables, self.error = tabulate(functions, self.cutoff, table_tolerance)
        self.kernel: str | None = None
        self.register_buffer("radial", tables)
        self.register_buffer("matrix", self.table.edge_matrix())
        self.mix = StackedPaths([c.mix for c in convolutions], self.table, first.normalisation)

    def forward(self, features: Features, surroundings: Surroundings) -> Features:
        """See `NeighborCoupling`."""
        rows = NeighborCoupling.apply(
            torch.cat(features, dim=2),
            *surroundings,
            self.get_buffer("radial"),
            self.get_buffer("matrix"),
            self.table,
            self.cutoff,
            self.kernel,
        )
        return self.mix(rows)


def _radial_function(member: Potential, convolution: Convolution) -> Callable[[Tensor], Tensor]:
    return lambda distances: convolution.radial(member.basis(distances))


class StackedProduct(nn.Module):
    """`ChannelProduct` of every member."""

    def __init__(self, products: Sequence[ChannelProduct]) -> None:
        super().__init__()
        first = products[0]
        self.table = couplings(first.irreps_left, first.irreps_right, first.irreps_out, first.paths)
        self.kernel: str | None = None
        self.mix = StackedPaths([item.mix for item in products], self.table, 1.0)

    def forward(self, left: Features, right: Features) -> Features:
        """Channel-wise tensor product of two features of the same atom."""
        rows = ChannelCoupling.apply(
            torch.cat(left, 2), torch.cat(right, 2), self.table, self.kernel
        )
        return self.mix(rows)


class StackedSkip(nn.Module):
    """`Skip` of every member."""

    def __init__(self, skips: Sequence[Skip]) -> None:
        super().__init__()
        self.linear = StackedSpeciesLinear([item.linear for item in skips])
        self.irreps_in, self.irreps_out = skips[0].irreps_in, skips[0].irreps_out

    def forward(self, features: Features, species: Tensor) -> dict[Irrep, Tensor]:
        """The irreps that input and output share."""
        shared = [irrep for irrep in self.irreps_out if irrep in self.irreps_in]
        chosen = [features[self.irreps_in.index(irrep)] for irrep in shared]
        return dict(zip(shared, self.linear(chosen, species), strict=True))


class StackedReadout(nn.Module):
    """`LayerReadout` of every member."""

    def __init__(self, readouts: Sequence[LayerReadout], irreps: list[Irrep]) -> None:
        super().__init__()
        networks = [item.network for item in readouts]
        factors = networks[0].factors
        self.last_factor = factors[-1]
        self.weights = nn.ParameterList(
            nn.Parameter(stack([n.weights[k] * factors[k] for n in networks]), requires_grad=False)
            for k in range(len(factors))
        )
        self.scalar = irreps.index(Irrep(0, 1))
        has_tensor = readouts[0].tensor_start >= 0
        self.tensor = irreps.index(Irrep(2, 1)) if has_tensor else -1
        weight = stack([item.tensor_weight * item.factor for item in readouts])
        self.register_buffer("tensor_weight", weight.unsqueeze(2))

    def forward(self, features: Features) -> tuple[Tensor, Tensor | None, Tensor]:
        """Scalars (members, n_atoms, n_scalars), tensor (members, n_atoms, 5) and basis.

        The basis, (members, n_atoms, hidden), is that of `LayerReadout`.
        """
        basis = x = features[self.scalar][:, :, 0]
        for k, weight in enumerate(self.weights):
            if k > 0:
                x = nn.functional.silu(x)
            basis = x
            x = torch.bmm(x, weight)
        basis = basis * self.last_factor
        if self.tensor < 0:
            return x, None, basis
        tensor = _channel_mix(features[self.tensor], self.get_buffer("tensor_weight"))[..., 0]
        return x, tensor, basis
