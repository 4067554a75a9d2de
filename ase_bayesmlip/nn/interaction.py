"""Building blocks of message passing on features of shape (n, components, channels).

All maps are equivariant: they mix channels, and mix components only through Clebsch-Gordan
couplings. Weights have unit variance and the fan-in factor stands in the forward pass.
"""

import math

import torch
from torch import Tensor, nn

from ase_bayesmlip.graph import Part
from ase_bayesmlip.nn.angular import (
    Irrep,
    Path,
    component_irrep,
    component_slices,
    coupling,
    coupling_paths,
    edge_irreps,
    n_components,
)
from ase_bayesmlip.nn.derivatives import as_leaf, gradients
from ase_bayesmlip.nn.radial import DenseNetwork


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


class Convolution(nn.Module):
    """Messages from neighbours: D_i = W_down (1/N̄) Σ_j R(r_ij) ∘ [h_j ⊗ Y(r_ij)].

    Every coupling path and channel has its own radial weight R, the output of a network that sees
    the distance alone. The published layer also concatenates the uncoupled h_j; the path through
    Y_00 = 1 is the same thing, so it is left out.
    """

    coupling: Tensor
    path_of: Tensor

    def __init__(
        self,
        irreps_in: list[Irrep],
        irreps_out: list[Irrep],
        channels: int,
        l_max: int,
        radial_widths: list[int],
        avg_n_neighbors: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        harmonics = edge_irreps(l_max)
        paths = coupling_paths(irreps_in, harmonics, irreps_out)
        matrices, columns, self.block_dims, self.block_rows = _edge_couplings(
            irreps_in, harmonics, irreps_out, paths
        )
        self.irreps_in, self.harmonics, self.irreps_out = irreps_in, harmonics, irreps_out
        self.paths = paths
        self.channels = channels
        self.n_paths = len(paths)
        self.normalisation = 1.0 / avg_n_neighbors
        self.radial = DenseNetwork([*radial_widths, len(paths) * channels], generator)
        self.mix = PathLinear(paths, columns, irreps_out, channels, generator)
        self.register_buffer("coupling", matrices, persistent=False)
        self.register_buffer(
            "path_of", torch.tensor([path for _, path in columns]), persistent=False
        )

    def forward(
        self, features: Tensor, harmonics: Tensor, radial: Tensor, edge_index: Tensor
    ) -> Tensor:
        """Aggregate messages of the neighbours.

        Parameters
        ----------
        features : Tensor, (n_atoms, components, channels)
        harmonics : Tensor, (n_edges, (l_max + 1)²)
        radial : Tensor, (n_edges, n_radial)
        edge_index : Tensor, (2, n_edges)

        Returns
        -------
        Tensor, (n_atoms, components out, channels)
        """
        senders = features.index_select(0, edge_index[1])
        return self._aggregate(senders, harmonics, radial, edge_index[0], features.shape[0])

    def in_parts(
        self,
        features: Tensor,
        harmonics: Tensor,
        radial: Tensor,
        edge_index: Tensor,
        parts: list[Part],
    ) -> Tensor:
        """As `forward`, outside the autograd graph and with the edges of one part at a time."""
        densities: list[Tensor] = []
        with torch.no_grad():
            for part in parts:
                a, b = part.first_edge, part.end_edge
                first, end = part.first_atom, part.end_atom
                senders = features.index_select(0, edge_index[1, a:b])
                centre = edge_index[0, a:b] - first
                densities.append(
                    self._aggregate(senders, harmonics[a:b], radial[a:b], centre, end - first)
                )
            density = torch.cat(densities)
        return density

    def back(
        self,
        features: Tensor,
        harmonics: Tensor,
        radial: Tensor,
        edge_index: Tensor,
        parts: list[Part],
        by_density: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Chain rule through `in_parts`, which is evaluated once more.

        Parameters
        ----------
        by_density : Tensor, (K, n_atoms, components out, channels)
            Derivatives of K numbers by the result.

        Returns
        -------
        by_features : Tensor, (K, n_atoms, components, channels)
        by_harmonics : Tensor, (K, n_edges, (l_max + 1)²)
        by_radial : Tensor, (K, n_edges, n_radial)
        """
        n = by_density.shape[0]
        by_features = torch.stack([torch.zeros_like(features)] * n)
        by_harmonics = torch.stack([torch.zeros_like(harmonics)] * n)
        by_radial = torch.stack([torch.zeros_like(radial)] * n)
        for part in parts:
            a, b = part.first_edge, part.end_edge
            first, end = part.first_atom, part.end_atom
            sender = edge_index[1, a:b]
            leaves = [
                as_leaf(features.index_select(0, sender)),
                as_leaf(harmonics[a:b]),
                as_leaf(radial[a:b]),
            ]
            centre = edge_index[0, a:b] - first
            density = self._aggregate(leaves[0], leaves[1], leaves[2], centre, end - first)
            for k in range(n):
                total = (density * by_density[k, first:end]).sum()
                slopes = gradients(total, leaves, False)
                by_features[k].index_add_(0, sender, slopes[0])
                by_harmonics[k, a:b] = slopes[1]
                by_radial[k, a:b] = slopes[2]
        return by_features, by_harmonics, by_radial

    def _aggregate(
        self, senders: Tensor, harmonics: Tensor, radial: Tensor, centre: Tensor, n_centres: int
    ) -> Tensor:
        """Messages from neighbours with features (n_edges, components, channels)."""
        n_edges = harmonics.shape[0]
        matrices = harmonics @ self.coupling
        products: list[Tensor] = []
        start_matrix, start = 0, 0
        for dim, rows in zip(self.block_dims, self.block_rows):  # noqa: B905 (TorchScript)
            block = matrices[:, start_matrix : start_matrix + rows * dim].view(n_edges, rows, dim)
            products.append(torch.bmm(block, senders[:, start : start + dim]))
            start_matrix += rows * dim
            start += dim
        weights = self.radial(radial).view(n_edges, self.n_paths, self.channels)
        messages = torch.cat(products, dim=1) * weights.index_select(1, self.path_of)
        total = torch.zeros(
            (n_centres, messages.shape[1], self.channels),
            dtype=messages.dtype,
            device=messages.device,
        ).index_add(0, centre, messages)
        return self.mix(total * self.normalisation)


def _edge_couplings(
    irreps_in: list[Irrep],
    harmonics: list[Irrep],
    irreps_out: list[Irrep],
    paths: list[Path],
) -> tuple[Tensor, list[tuple[int, int]], list[int], list[int]]:
    """Clebsch-Gordan tensors as one matrix from the harmonics of an edge to its edge matrices.

    For each input irrep the edge matrix has a row for every output component it can reach and a
    column for every component of the input irrep: no arithmetic is spent on forbidden couplings.

    Returns
    -------
    matrix : Tensor, ((l_max + 1)², Σ rows · dim)
    columns : list of (out component, path) for each row
    dims, rows : list of int
        Shape of the edge matrix of each input irrep.
    """
    harmonic_slices, out_slices = component_slices(harmonics), component_slices(irreps_out)
    blocks, columns, dims, rows = [], [], [], []
    for i, left in enumerate(irreps_in):
        own = [(number, path) for number, path in enumerate(paths) if path.left == i]
        n_rows = sum(irreps_out[path.out].dim for _, path in own)
        block = torch.zeros(n_components(harmonics), n_rows, left.dim, dtype=torch.float64)
        start = 0
        for number, path in own:
            out = irreps_out[path.out]
            tensor = coupling(left, harmonics[path.right], out)
            block[harmonic_slices[path.right], start : start + out.dim] = tensor.permute(1, 2, 0)
            first = out_slices[path.out].start
            columns += [(first + m, number) for m in range(out.dim)]
            start += out.dim
        blocks.append(block.flatten(1))
        dims.append(left.dim)
        rows.append(n_rows)
    return torch.cat(blocks, dim=1), columns, dims, rows


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
