"""Messages of the neighbours, for all edges at once or for one part of them after the other."""

import torch
from torch import Tensor, nn

from ase_bayesmlip.graph import Part
from ase_bayesmlip.nn.angular import (
    Irrep,
    Path,
    component_slices,
    coupling,
    coupling_paths,
    edge_irreps,
    n_components,
)
from ase_bayesmlip.nn.cut import Cut
from ase_bayesmlip.nn.derivatives import as_leaf, gradients
from ase_bayesmlip.nn.interaction import PathLinear
from ase_bayesmlip.nn.radial import DenseNetwork


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
        """Features (n_atoms, components, channels) to (n_atoms, components out, channels).

        Edges have harmonics (n_edges, (l_max + 1)²) and radial functions (n_edges, n_radial).
        """
        senders = features.index_select(0, edge_index[1])
        return self._aggregate(senders, harmonics, radial, edge_index[0], features.shape[0])

    def in_parts(self, features: Tensor, cut: Cut) -> Tensor:
        """As `forward`, outside the autograd graph and with the edges of one part at a time."""
        densities: list[Tensor] = []
        with torch.no_grad():
            for part in cut.parts:
                a, b = part.first_edge, part.end_edge
                centre = cut.edge_index[0, a:b] - part.first_atom
                senders = features.index_select(0, cut.edge_index[1, a:b])
                n_centres = part.end_atom - part.first_atom
                densities.append(
                    self._aggregate(senders, cut.harmonics[a:b], cut.radial[a:b], centre, n_centres)
                )
            density = torch.cat(densities)
        return density

    def back(
        self,
        by_density: Tensor,
        features: Tensor,
        cut: Cut,
        by_harmonics: Tensor,
        by_radial: Tensor,
    ) -> Tensor:
        """Chain rule through `in_parts`, which is evaluated once more.

        From derivatives of K numbers by the result, (K, n_atoms, components out, channels), to
        those by the features, zero where these do not depend on the positions. Those by the
        harmonics, (K, n_edges, (l_max + 1)²), and the radial functions, (K, n_edges, n_radial),
        are added to what is given.
        """
        by_features = torch.stack([torch.zeros_like(features)] * by_density.shape[0])
        for part in cut.parts:
            self._back_of_part(
                part, by_density, features, cut, by_features, by_harmonics, by_radial
            )
        return by_features

    def _back_of_part(
        self,
        part: Part,
        by_density: Tensor,
        features: Tensor,
        cut: Cut,
        by_features: Tensor,
        by_harmonics: Tensor,
        by_radial: Tensor,
    ) -> None:
        """Add what one part has to say; its autograd graph ends with the call."""
        a, b = part.first_edge, part.end_edge
        centre, sender = cut.edge_index[0, a:b] - part.first_atom, cut.edge_index[1, a:b]
        harmonics, radial = as_leaf(cut.harmonics[a:b]), as_leaf(cut.radial[a:b])
        senders = features.index_select(0, sender)
        leaves = [harmonics, radial]
        if features.requires_grad:
            senders = as_leaf(senders)
            leaves.append(senders)
        n_centres = part.end_atom - part.first_atom
        density = self._aggregate(senders, harmonics, radial, centre, n_centres)
        for k in range(by_density.shape[0]):
            total = (density * by_density[k, part.first_atom : part.end_atom]).sum()
            slopes = gradients(total, leaves, False)
            by_harmonics[k, a:b] += slopes[0]
            by_radial[k, a:b] += slopes[1]
            if features.requires_grad:
                by_features[k].index_add_(0, sender, slopes[2])

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
    Returns the matrix, ((l_max + 1)², Σ rows · dim), (out component, path) of each row, and dims
    and rows of the edge matrix of each input irrep.
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
