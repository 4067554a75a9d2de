"""Geometry of a dense table of neighbours, and forces from what members say about it.

Members share one geometry. Each returns the derivatives of its energy by the vectors; the way from
those to positions is the same linear map for all of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ase_bayesmlip.graph import DenseEdges
from ase_bayesmlip.nn.angular import Irrep, SphericalHarmonics, coupling, edge_irreps


class Surroundings(NamedTuple):
    """All neighbours of all atoms: who they are and where.

    Attributes
    ----------
    vectors : Tensor, (n_atoms, width, 3), Å, in the precision of the positions
    harmonics : Tensor, (n_atoms, width, (l_max + 1)²)
    distances : Tensor, (n_atoms, width), Å
    slopes : Tensor, (n_atoms, width, (l_max + 1)², 3)
        Derivatives of the harmonics by the vectors, 1/Å. Y_00 is a constant: row 0 is the
        derivative of the distance, the unit vector.
    neighbor : Tensor of int64, (n_atoms, width)
    n_neighbors : Tensor of int64, (n_atoms,)
        Places beyond it have a distance of at least the cutoff.
    """

    vectors: Tensor
    harmonics: Tensor
    distances: Tensor
    slopes: Tensor
    neighbor: Tensor
    n_neighbors: Tensor


class DenseGeometry(nn.Module):
    """Positions -> `Surroundings`.

    Parameters
    ----------
    cutoff : float, Å
    l_max : int
    """

    degrees: Tensor
    solid_slopes: Tensor

    def __init__(self, cutoff: float, l_max: int) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.angular = SphericalHarmonics(l_max)
        degrees = [irrep.degree for irrep in edge_irreps(l_max) for _ in range(irrep.dim)]
        self.register_buffer("degrees", torch.tensor(degrees, dtype=torch.float64))
        self.register_buffer("solid_slopes", _solid_slopes(l_max, self.angular))

    def forward(
        self, positions: Tensor, cell: Tensor, batch: Tensor, edges: DenseEdges
    ) -> Surroundings:
        """Where the neighbours are; places without a neighbour lie at the cutoff."""
        n_atoms, width = edges.neighbor.shape
        vectors = positions[edges.neighbor] - positions.unsqueeze(1)
        vectors = vectors + torch.bmm(edges.shift, cell.index_select(0, batch))
        place = torch.arange(width, device=positions.device)
        present = place.unsqueeze(0) < edges.n_neighbors.unsqueeze(1)
        absent = torch.full_like(vectors, self.cutoff)
        vectors = torch.where(present.unsqueeze(2), vectors, absent)
        rounded = vectors.to(self.degrees.dtype)
        distances = torch.sqrt((rounded * rounded).sum(dim=2))
        units = rounded / distances.unsqueeze(2)
        harmonics = self.angular(units.view(-1, 3)).view(n_atoms, width, -1)
        slopes = self._slopes(units, harmonics, distances)
        return Surroundings(
            vectors, harmonics, distances, slopes, edges.neighbor, edges.n_neighbors
        )

    def _slopes(self, units: Tensor, harmonics: Tensor, distances: Tensor) -> Tensor:
        """See `Surroundings.slopes`.

        With solid harmonics S_lm(r) = rˡ Y_lm(r/r), whose slopes are harmonics of degree l - 1,

            ∂Y_lm/∂r_a = (1/r) [(∂_a S_lm)(r/r) - l (r_a/r) Y_lm].
        """
        solid = torch.stack([harmonics @ self.solid_slopes[a] for a in range(3)], dim=3)
        outward = (self.degrees * harmonics).unsqueeze(3) * units.unsqueeze(2)
        turned = (solid - outward) / distances[:, :, None, None]
        return torch.cat([units.unsqueeze(2), turned[:, :, 1:]], dim=2)


def vector_gradients(by_harmonics: Tensor, by_distances: Tensor, slopes: Tensor) -> Tensor:
    """Chain rule to the vectors: (members, n_atoms, width, 3).

    From derivatives by the harmonics, (members, n_atoms, width, (l_max + 1)²), of which that by
    Y_00, a constant, is not used, and by the distances, (members, n_atoms, width), with the
    `slopes` of `Surroundings`.
    """
    members, n_atoms, width, n_harmonics = by_harmonics.shape
    by = torch.cat([by_distances.unsqueeze(3), by_harmonics[..., 1:]], dim=3)
    # One small product per edge, (members, harmonics) x (harmonics, 3).
    turned = torch.bmm(
        by.permute(1, 2, 0, 3).reshape(n_atoms * width, members, n_harmonics),
        slopes.reshape(n_atoms * width, n_harmonics, 3),
    )
    return turned.view(n_atoms, width, members, 3).permute(2, 0, 1, 3)


def forces_from_edges(gradients: Tensor, edges: DenseEdges) -> Tensor:
    """F_i = Σ_j (∂E/∂r_ij - ∂E/∂r_ji): (members, n_atoms, 3)."""
    members, n_atoms, width, _ = gradients.shape
    pulled = gradients.sum(dim=2)
    received = gradients.permute(1, 2, 0, 3).reshape(n_atoms * width, members * 3)
    zeros = received.new_zeros((n_atoms, members * 3))
    pushed = zeros.index_add(0, edges.neighbor.view(-1), received)
    return pulled - pushed.view(n_atoms, members, 3).transpose(0, 1)


def virial_from_edges(gradients: Tensor, vectors: Tensor, batch: Tensor, n_graphs: int) -> Tensor:
    """dE/dε = Σ r_a ∂E/∂r_b, symmetric: (members, n_graphs, 3, 3), eV, in float64."""
    members, n_atoms, width, _ = gradients.shape
    right = gradients.to(torch.float64).permute(1, 2, 0, 3).reshape(n_atoms, width, members * 3)
    per_atom = torch.bmm(vectors.to(torch.float64).transpose(1, 2), right)
    zeros = per_atom.new_zeros((n_graphs, 3, members * 3))
    virial = zeros.index_add(0, batch, per_atom).view(n_graphs, 3, members, 3)
    virial = virial.permute(2, 0, 1, 3)
    return 0.5 * (virial + virial.transpose(2, 3))


def _solid_slopes(l_max: int, angular: SphericalHarmonics) -> Tensor:
    """Matrices with ∂_a S = S · slopes[a]: (3, (l_max + 1)², (l_max + 1)²), float64.

    A slope of a solid harmonic of degree l is a combination of those of degree l - 1 with
    Clebsch-Gordan coefficients. Their factor is fixed by Euler's theorem, r · ∇S_lm = l S_lm.
    """
    size = (l_max + 1) ** 2
    slopes = torch.zeros(3, size, size, dtype=torch.float64)
    direction = torch.nn.functional.normalize(
        torch.tensor([[0.3, -0.5, 0.7]], dtype=torch.float64), dim=1
    )
    harmonics = angular(direction)[0]
    for degree in range(1, l_max + 1):
        lower, upper = slice((degree - 1) ** 2, degree**2), slice(degree**2, (degree + 1) ** 2)
        vector = Irrep(1, -1)
        block = coupling(
            Irrep(degree - 1, (-1) ** (degree - 1)), vector, Irrep(degree, (-1) ** degree)
        )
        euler = torch.einsum("lam,l,a->m", block, harmonics[lower], direction[0])
        factor = degree * harmonics[upper] @ euler / (euler @ euler)
        slopes[:, lower, upper] = factor * block.permute(1, 0, 2)
    return slopes
