"""Tensor products without edge-wise intermediates, and their derivatives, for stacked members.

Neighbours are a dense table, (n_atoms, width), so that a sum over neighbours needs no scatter: the
neighbour list is symmetric, and the reverse of an edge has the same distance and (-1)^l times the
harmonics, so that what an atom sends is gathered like what it receives. Derivatives are written
out for the same reason. Features carry a leading axis of members. Gradients have one entry for each
member, or several: gradient q is one of member q % members.

On the CPU the products run in kernels of their own (`kernels`). The formulas in torch below define
what those compute; they are slow eagerly and serve tests, and compilers for other devices. A
`kernel` of None takes the formula.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ase_bayesmlip.nn.stacked import operators  # noqa: F401 (defines the operators)
from ase_bayesmlip.nn.stacked.couplings import Couplings
from ase_bayesmlip.nn.stacked.geometry import Surroundings, vector_gradients
from ase_bayesmlip.nn.stacked.radial_table import interpolate


def channel_rows(left: Tensor, right: Tensor, table: Couplings, kernel: str | None) -> Tensor:
    """Rows of left ⊗ right, channel by channel.

    (members, n_atoms, components, channels) each, to (members, n_atoms, rows, channels).
    """
    if kernel is not None:
        rows: Tensor = torch.ops.ase_bayesmlip.channel_forward(left, right, len(table.rows), kernel)
        return rows
    x, y = left.unbind(2), right.unbind(2)
    sums = _Sums()
    for number, row in enumerate(table.rows):
        for term in row.terms:
            sums.add(number, (term.coefficient * x[term.a]) * y[term.b])
    return sums.stack(len(table.rows), x[0], 2)


def channel_slopes(
    left: Tensor, right: Tensor, grad: Tensor, table: Couplings, kernel: str | None
) -> tuple[Tensor, Tensor]:
    """Derivatives of Σ grad · rows by both factors, (gradients, n_atoms, components, channels)."""
    if kernel is not None:
        slopes: tuple[Tensor, Tensor] = torch.ops.ase_bayesmlip.channel_backward(
            left, right, grad, kernel
        )
        return slopes
    x, y = _for_each(left, grad).unbind(2), _for_each(right, grad).unbind(2)
    g = grad.unbind(2)
    to_left, to_right = _Sums(), _Sums()
    for number, row in enumerate(table.rows):
        for term in row.terms:
            scaled = term.coefficient * g[number]
            to_left.add(term.a, scaled * y[term.b])
            to_right.add(term.b, scaled * x[term.a])
    return to_left.stack(table.n_left, x[0], 2), to_right.stack(table.n_right, y[0], 2)


def neighbor_rows(
    features: Tensor,
    edge: Tensor,
    around: Surroundings,
    radial: Tensor,
    table: Couplings,
    cutoff: float,
    kernel: str | None,
) -> Tensor:
    """Rows of Σ_j R(r_ij) ∘ [h_j ⊗ Y(r_ij)], see `Convolution`.

    Parameters
    ----------
    features : Tensor, (members, n_atoms, components, channels)
    edge : Tensor, (n_atoms, width, n_entries)
        The harmonics times `Couplings.edge_matrix`.
    radial : Tensor, (members, n_intervals + 2, 3, n_paths · channels)
        Tabulated radial networks.

    Returns
    -------
    Tensor, (members, n_atoms, rows, channels)
    """
    if kernel is not None:
        neighbors = around.distances, around.neighbor, around.n_neighbors
        found: Tensor = torch.ops.ase_bayesmlip.neighbor_forward(
            features, edge, *neighbors, radial, len(table.rows), kernel
        )
        return found
    weights, _ = _radial_weights(radial, around.distances, cutoff, features.shape[3])
    entry = _entries(edge, table)
    sender = features[:, around.neighbor].unbind(3)
    rows = []
    for number, row in enumerate(table.rows):
        sums = _Sums()
        for a in row.left_components():
            sums.add(0, entry[number, a] * sender[a])
        rows.append((sums.values[0] * weights[row.path]).sum(2))
    return torch.stack(rows, 2)


def neighbor_slopes(
    features: Tensor,
    edge: Tensor,
    around: Surroundings,
    radial: Tensor,
    grad: Tensor,
    table: Couplings,
    cutoff: float,
    kernel: str | None,
    by_features: bool = True,
) -> tuple[Tensor | None, Tensor]:
    """Derivatives of Σ grad · rows by features, if asked for, and by the vectors to neighbours.

    Returns
    -------
    to_features : Tensor, (gradients, n_atoms, components, channels), or None
    to_vectors : Tensor, (gradients, n_atoms, width, 3)
    """
    if kernel is not None:
        neighbors = around.distances, around.neighbor, around.n_neighbors
        geometry = around.harmonics, around.slopes
        to_features, to_vectors = torch.ops.ase_bayesmlip.neighbor_backward(
            features, edge, *neighbors, radial, *geometry, grad, by_features, kernel
        )
    else:
        to_features, by_harmonics, by_distances = _neighbor_slopes(
            _for_each(features, grad),
            edge,
            around.distances,
            around.neighbor,
            _for_each(radial, grad),
            grad,
            table,
            cutoff,
        )
        to_vectors = vector_gradients(by_harmonics, by_distances, around.slopes)
    return to_features if by_features else None, to_vectors


def _for_each(value: Tensor, grad: Tensor) -> Tensor:
    """The members' values once for every block of gradients."""
    blocks = grad.shape[0] // value.shape[0]
    return value if blocks == 1 else value.repeat(blocks, *[1] * (value.dim() - 1))


def _neighbor_slopes(
    features: Tensor,
    edge: Tensor,
    distances: Tensor,
    neighbor: Tensor,
    radial: Tensor,
    grad: Tensor,
    table: Couplings,
    cutoff: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives by features, harmonics and distances."""
    weights, slopes = _radial_weights(radial, distances, cutoff, features.shape[3])
    entry = _entries(edge, table)
    sender, others = features[:, neighbor].unbind(3), grad[:, neighbor].unbind(3)
    own = [g.unsqueeze(2) for g in grad.unbind(2)]
    to_features, to_harmonics, to_distances = _Sums(), _Sums(), _Sums()
    for number, row in enumerate(table.rows):
        weight = weights[row.path]
        for a in row.left_components():
            sent = (table.parity(row) * entry[number, a]) * others[number] * weight
            to_features.add(a, sent.sum(2))
            stretched = entry[number, a] * (own[number] * sender[a]) * slopes[row.path]
            to_distances.add(0, stretched.sum(-1))
        for term in row.terms:
            turned = term.coefficient * (own[number] * sender[term.a]) * weight
            to_harmonics.add(term.b, turned.sum(-1))
    like = to_distances.values[0]
    return (
        to_features.stack(table.n_left, features[:, :, 0], 2),
        to_harmonics.stack(table.n_right, like, -1),
        like,
    )


class _Sums:
    """Sums of terms by number; a sum begins with its first term."""

    def __init__(self) -> None:
        self.values: dict[int, Tensor] = {}

    def add(self, number: int, value: Tensor) -> None:
        known = self.values.get(number)
        self.values[number] = value if known is None else known + value

    def stack(self, n: int, like: Tensor, dim: int) -> Tensor:
        """Sums 0 … n-1 along a new axis, zeros of the shape of `like` where there is none."""
        return torch.stack([self.values.get(k, torch.zeros_like(like)) for k in range(n)], dim)


def _radial_weights(
    radial: Tensor, distances: Tensor, cutoff: float, channels: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Radial weights and their slopes by path, each (members, n_atoms, width, channels)."""
    value, slope = interpolate(radial, distances, cutoff)
    return list(value.split(channels, dim=-1)), list(slope.split(channels, dim=-1))


def _entries(edge: Tensor, table: Couplings) -> dict[tuple[int, int], Tensor]:
    """Columns of the edge matrices by (row, left component), each (1, n_atoms, width, 1)."""
    return {entry: edge[None, :, :, column, None] for column, entry in enumerate(table.entries())}
