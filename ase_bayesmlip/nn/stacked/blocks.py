"""Building blocks of `stacked`: the maps of several potentials of one architecture as one.

Features are lists with one tensor per irrep, (members, n_atoms, dim, channels); weights carry a
leading axis of members, so that channel mixing is one batched matrix product for all of them.

Every block has its derivative written out in `back`: from the slopes of a sum by its output to
those by its input. One forward pass then serves several such sums, as drawn readouts need them:
slopes q are of member q % members, and None where they are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ase_bayesmlip.nn.angular import Irrep
from ase_bayesmlip.nn.convolution import Convolution
from ase_bayesmlip.nn.heads import LayerReadout
from ase_bayesmlip.nn.interaction import (
    ChannelProduct,
    EquivariantLinear,
    PathLinear,
    SpeciesLinear,
)
from ase_bayesmlip.nn.potential import Potential
from ase_bayesmlip.nn.race import Skip
from ase_bayesmlip.nn.stacked.couplings import Couplings, couplings
from ase_bayesmlip.nn.stacked.geometry import Surroundings
from ase_bayesmlip.nn.stacked.products import (
    channel_rows,
    channel_slopes,
    neighbor_rows,
    neighbor_slopes,
)
from ase_bayesmlip.nn.stacked.radial_table import tabulate

Features = list[Tensor]
Slopes = list[Tensor | None]
SavedTensors = tuple[Tensor, ...]


def stack(values: Sequence[Tensor]) -> Tensor:
    """Weights of the members along a leading axis, detached."""
    return torch.stack([value.detach() for value in values])


def _channel_mix(features: Tensor, weight: Tensor) -> Tensor:
    """(blocks · members, n, dim, n_in) times (members, n_in, n_out)."""
    networks, n_atoms, dim, n_in = features.shape
    members, _, n_out = weight.shape
    if members == 1:
        mixed = torch.mm(features.reshape(networks * n_atoms * dim, n_in), weight[0])
    else:
        each = weight if members == networks else weight.repeat(networks // members, 1, 1)
        mixed = torch.bmm(features.reshape(networks, n_atoms * dim, n_in), each)
    return mixed.view(networks, n_atoms, dim, n_out)


def _mix_back(slopes: Tensor, weight: Tensor) -> Tensor:
    """Slopes by the features of `_channel_mix`."""
    return _channel_mix(slopes, weight.transpose(1, 2))


def added(one: Slopes, other: Slopes) -> Slopes:
    """Their sum."""
    return [b if a is None else a if b is None else a + b for a, b in zip(one, other, strict=True)]


class StackedLinear(nn.Module):
    """`EquivariantLinear` of every member."""

    def __init__(self, linears: Sequence[EquivariantLinear]) -> None:
        super().__init__()
        self.register_buffer("weight", stack([item.weight * item.factor for item in linears]))

    def forward(self, features: Features) -> Features:
        """One matrix per irrep."""
        weight = self.get_buffer("weight")
        return [_channel_mix(x, weight[:, k]) for k, x in enumerate(features)]

    def back(self, slopes: Slopes) -> Slopes:
        """Slopes by the features."""
        weight = self.get_buffer("weight")
        return [None if x is None else _mix_back(x, weight[:, k]) for k, x in enumerate(slopes)]


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

    def back(self, slopes: Slopes, species: Tensor) -> Slopes:
        """Slopes by the features."""
        found: Slopes = []
        for k, x in enumerate(slopes):
            if x is not None:
                every = x.unsqueeze(3) * species[None, :, None, :, None]
                x = _mix_back(every.flatten(3), self.get_buffer("weight")[:, k])
            found.append(x)
        return found


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

    def back(self, slopes: Slopes) -> Tensor:
        """Slopes by the rows."""
        like = next(x for x in slopes if x is not None)
        networks, n_atoms = like.shape[:2]
        rows = []
        for (dim, n_paths), weight, x in zip(self.blocks, self.weights, slopes, strict=True):
            if n_paths == 0:  # nothing couples to this irrep
                continue
            shape = (networks, n_atoms, dim * n_paths, weight.shape[1] // n_paths)
            rows.append(like.new_zeros(shape) if x is None else _mix_back(x, weight).view(shape))
        return torch.cat(rows, dim=2)


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
        self.dims = [irrep.dim for irrep in first.irreps_in]

    def forward(self, features: Features, around: Surroundings) -> tuple[Features, SavedTensors]:
        """See `neighbor_rows`."""
        joined = torch.cat(features, dim=2)
        edge = around.harmonics @ self.get_buffer("matrix")
        radial = self.get_buffer("radial")
        rows = neighbor_rows(joined, edge, around, radial, self.table, self.cutoff, self.kernel)
        return self.mix(rows), (joined, edge)

    def back(
        self, slopes: Slopes, saved: SavedTensors, around: Surroundings, by_features: bool
    ) -> tuple[Slopes, Tensor]:
        """Slopes by the features, none unless asked for, and by the vectors to neighbours."""
        features, edge = saved
        joined, by_vectors = neighbor_slopes(
            features,
            edge,
            around,
            self.get_buffer("radial"),
            self.mix.back(slopes),
            self.table,
            self.cutoff,
            self.kernel,
            by_features,
        )
        return ([] if joined is None else list(joined.split(self.dims, dim=2))), by_vectors


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
        self.dims = [[i.dim for i in side] for side in (first.irreps_left, first.irreps_right)]

    def forward(self, left: Features, right: Features) -> tuple[Features, SavedTensors]:
        """Channel-wise tensor product of two features of the same atom."""
        x, y = torch.cat(left, 2), torch.cat(right, 2)
        return self.mix(channel_rows(x, y, self.table, self.kernel)), (x, y)

    def back(self, slopes: Slopes, saved: SavedTensors) -> tuple[Slopes, Slopes]:
        """Slopes by both factors."""
        left, right = saved
        found = channel_slopes(left, right, self.mix.back(slopes), self.table, self.kernel)
        by_left, by_right = (
            list(x.split(dims, dim=2)) for x, dims in zip(found, self.dims, strict=True)
        )
        return by_left, by_right


class StackedSkip(nn.Module):
    """`Skip` of every member."""

    def __init__(self, skips: Sequence[Skip]) -> None:
        super().__init__()
        self.linear = StackedSpeciesLinear([item.linear for item in skips])
        self.irreps_in, self.irreps_out = skips[0].irreps_in, skips[0].irreps_out
        self.shared = [irrep for irrep in self.irreps_out if irrep in self.irreps_in]

    def forward(self, features: Features, species: Tensor) -> dict[Irrep, Tensor]:
        """The irreps that input and output share."""
        chosen = [features[self.irreps_in.index(irrep)] for irrep in self.shared]
        return dict(zip(self.shared, self.linear(chosen, species), strict=True))

    def back(self, slopes: Slopes, species: Tensor) -> Slopes:
        """From slopes by all outputs to those by all features."""
        chosen = [slopes[self.irreps_out.index(irrep)] for irrep in self.shared]
        known = dict(zip(self.shared, self.linear.back(chosen, species), strict=True))
        return [known.get(irrep) for irrep in self.irreps_in]


class StackedReadout(nn.Module):
    """`LayerReadout` of every member."""

    def __init__(self, readouts: Sequence[LayerReadout], irreps: list[Irrep]) -> None:
        super().__init__()
        networks = [item.network for item in readouts]
        factors = networks[0].factors
        self.last_factor, self.n_basis = factors[-1], len(networks[0].weights[-1])
        self.weights = nn.ParameterList(
            nn.Parameter(stack([n.weights[k] * factors[k] for n in networks]), requires_grad=False)
            for k in range(len(factors))
        )
        self.scalar = irreps.index(Irrep(0, 1))
        has_tensor = readouts[0].tensor_start >= 0
        self.tensor = irreps.index(Irrep(2, 1)) if has_tensor else -1
        weight = stack([item.tensor_weight * item.factor for item in readouts])
        self.register_buffer("tensor_weight", weight.unsqueeze(2))

    def forward(self, features: Features) -> tuple[Tensor, Tensor | None, Tensor, SavedTensors]:
        """Scalars (members, n_atoms, n_scalars), tensor (members, n_atoms, 5), basis and saved.

        The basis, (members, n_atoms, hidden), is that of `LayerReadout`.
        """
        basis = x = features[self.scalar].squeeze(2)
        saved = []
        for k, weight in enumerate(self.weights):
            if k > 0:
                saved.append(x)
                x = nn.functional.silu(x)
            basis = x
            x = torch.bmm(x, weight)
        basis = basis * self.last_factor
        if self.tensor < 0:
            return x, None, basis, tuple(saved)
        tensor = _channel_mix(features[self.tensor], self.get_buffer("tensor_weight"))[..., 0]
        return x, tensor, basis, tuple(saved)

    def back(self, combinations: Tensor, saved: SavedTensors) -> Tensor:
        """Slopes of Σ_atoms combination · basis by the scalars the readout sees.

        (blocks · members, n_atoms or 1, hidden) to (blocks · members, n_atoms, 1, channels).
        """
        slopes = (combinations * self.last_factor).unsqueeze(2)
        for weight, x in zip(reversed(self.weights[:-1]), reversed(saved), strict=True):
            gate = torch.sigmoid(x)
            silu_slope = (gate * (1.0 + x * (1.0 - gate))).unsqueeze(2)
            blocks = slopes.shape[0] // x.shape[0]
            slopes = _mix_back(slopes * silu_slope.repeat(blocks, 1, 1, 1), weight)
        return slopes
