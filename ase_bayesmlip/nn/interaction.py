"""Linear maps and products of features of shape (n, components, channels).

All maps are equivariant: they mix channels, and mix components only through Clebsch-Gordan
couplings. Weights have unit variance and the fan-in factor stands in the forward pass.
"""

import math

import torch
from torch import Tensor, nn

from ase_bayesmlip.nn.angular import (
    Irrep,
    Path,
    component_irrep,
    component_slices,
    coupling,
    coupling_paths,
    n_components,
)


class EquivariantLinear(nn.Module):
    """One matrix per irrep over channels: h'_m = h_m W_l, the same for all m of an irrep."""

    irrep_of: Tensor

    def __init__(
        self, irreps: list[Irrep], n_in: int, n_out: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(len(irreps), n_in, n_out, generator=generator, dtype=torch.float64)
        )
        self.factor = 1.0 / math.sqrt(n_in)
        self.register_buffer("irrep_of", component_irrep(irreps), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """(n, components, n_in) to (n, components, n_out)."""
        weight = (self.weight * self.factor).index_select(0, self.irrep_of)
        return torch.bmm(features.transpose(0, 1), weight).transpose(0, 1)


class SpeciesLinear(nn.Module):
    """An equivariant linear map with separate weights for each element: h'_i = h_i W_l[z_i].

    Written as one product with the features spread over a one-hot species axis, which costs
    n_species times the arithmetic of a plain map and no gather of weights per atom.
    """

    irrep_of: Tensor

    def __init__(
        self,
        irreps: list[Irrep],
        n_species: int,
        n_in: int,
        n_out: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.randn(
                len(irreps), n_species, n_in, n_out, generator=generator, dtype=torch.float64
            )
        )
        self.factor = 1.0 / math.sqrt(n_in)
        self.register_buffer("irrep_of", component_irrep(irreps), persistent=False)

    def forward(self, features: Tensor, species: Tensor) -> Tensor:
        """(n, components, n_in) and one-hot (n, n_species) to (n, components, n_out)."""
        spread = (features.unsqueeze(2) * species.unsqueeze(1).unsqueeze(3)).flatten(2)
        weight = (self.weight.flatten(1, 2) * self.factor).index_select(0, self.irrep_of)
        return torch.bmm(spread.transpose(0, 1), weight).transpose(0, 1)


class PathLinear(nn.Module):
    """Mix channels and coupling paths of a tensor product into the irreps of its output.

    Parameters
    ----------
    columns : list of (out component, path)
        Meaning of each row of the tensor product, in its order.
    """

    gather: Tensor
    mask: Tensor
    irrep_of: Tensor

    def __init__(
        self,
        paths: list[Path],
        columns: list[tuple[int, int]],
        irreps_out: list[Irrep],
        channels: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        n_paths = [sum(path.out == k for path in paths) for k in range(len(irreps_out))]
        width = max(n_paths)
        # Irreps reached by fewer paths are padded: their surplus slots read row 0 with weight 0.
        gather = torch.zeros(n_components(irreps_out), width, dtype=torch.int64)
        mask = torch.zeros(len(irreps_out), width, 1, 1, dtype=torch.float64)
        irrep_of = component_irrep(irreps_out)
        filled = [0] * n_components(irreps_out)
        for row, (component, _) in enumerate(columns):
            gather[component, filled[component]] = row
            filled[component] += 1
        for k, count in enumerate(n_paths):
            mask[k, :count] = 1.0 / math.sqrt(max(count, 1) * channels)
        self.weight = nn.Parameter(
            torch.randn(
                len(irreps_out), width, channels, channels, generator=generator, dtype=torch.float64
            )
        )
        self.n_components = n_components(irreps_out)
        self.register_buffer("gather", gather.flatten(), persistent=False)
        self.register_buffer("mask", mask, persistent=False)
        self.register_buffer("irrep_of", irrep_of, persistent=False)

    def forward(self, product: Tensor) -> Tensor:
        """(n, rows, channels) to (n, components, channels)."""
        rows = product.index_select(1, self.gather).view(product.shape[0], self.n_components, -1)
        weight = (self.weight * self.mask).flatten(1, 2).index_select(0, self.irrep_of)
        return torch.bmm(rows.transpose(0, 1), weight).transpose(0, 1)


class ChannelProduct(nn.Module):
    """Tensor product of two features of the same atom, channel by channel, then mixed.

    P_i = W [x_i ⊗ y_i]: raises the body order by that of y.
    """

    coupling: Tensor

    def __init__(
        self,
        irreps_left: list[Irrep],
        irreps_right: list[Irrep],
        irreps_out: list[Irrep],
        channels: int,
        symmetric: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        paths = coupling_paths(irreps_left, irreps_right, irreps_out)
        if symmetric:
            paths = [path for path in paths if _survives_square(path, irreps_out)]
        left_slices, right_slices = component_slices(irreps_left), component_slices(irreps_right)
        out_slices = component_slices(irreps_out)
        blocks, columns = [], []
        for number, path in enumerate(paths):
            left, right = irreps_left[path.left], irreps_right[path.right]
            out = irreps_out[path.out]
            block = torch.zeros(
                out.dim, n_components(irreps_left), n_components(irreps_right), dtype=torch.float64
            )
            block[:, left_slices[path.left], right_slices[path.right]] = coupling(
                left, right, out
            ).permute(2, 0, 1)
            blocks.append(block.flatten(1))
            columns += [(out_slices[path.out].start + m, number) for m in range(out.dim)]
        self.irreps_left, self.irreps_right = irreps_left, irreps_right
        self.irreps_out, self.paths = irreps_out, paths
        self.register_buffer("coupling", torch.cat(blocks), persistent=False)
        self.mix = PathLinear(paths, columns, irreps_out, channels, generator)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """(n, components left, channels) x (n, components right, channels) -> (n, out, channels)"""
        n_atoms, channels = left.shape[0], left.shape[2]
        # Components first: the coupling of all atoms and channels is then one matrix product.
        outer = left.transpose(0, 1).unsqueeze(1) * right.transpose(0, 1).unsqueeze(0)
        rows = self.coupling @ outer.reshape(-1, n_atoms * channels)
        return self.mix(rows.view(-1, n_atoms, channels).transpose(0, 1))


def _survives_square(path: Path, out: list[Irrep]) -> bool:
    """Whether a path of x ⊗ x is neither a repetition of another nor zero by antisymmetry."""
    if path.left == path.right:
        return out[path.out].degree % 2 == 0
    return path.left < path.right
