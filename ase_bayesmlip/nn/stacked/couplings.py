"""Tensor products unrolled into sums over their non-zero Clebsch-Gordan coefficients."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ase_bayesmlip.nn.angular import Irrep, Path, component_slices, coupling, n_components


@dataclasses.dataclass(frozen=True)
class Term:
    """One non-zero coupling of a path: out[row] += coefficient · left[a] · right[b]."""

    a: int
    b: int
    coefficient: float


@dataclasses.dataclass(frozen=True)
class Row:
    """One component of the output of one path."""

    path: int
    terms: tuple[Term, ...]

    def left_components(self) -> list[int]:
        """Components of the left factor that the row reads."""
        return sorted({term.a for term in self.terms})


@dataclasses.dataclass(frozen=True)
class Couplings:
    """All rows of a tensor product, ordered by (output irrep, component, path).

    Attributes
    ----------
    rows : tuple of Row
    n_left, n_right : int
        Components of the two factors.
    blocks : tuple of (dim, n_paths)
        Of each output irrep: its rows are a (dim, n_paths) block.
    right_degrees : tuple of int
        Degree of each component of the right factor.
    """

    rows: tuple[Row, ...]
    n_left: int
    n_right: int
    blocks: tuple[tuple[int, int], ...]
    right_degrees: tuple[int, ...]

    @property
    def n_paths(self) -> int:
        """Number of coupling paths."""
        return 1 + max(row.path for row in self.rows)

    def entries(self) -> list[tuple[int, int]]:
        """(row, left component) of every sum over the right factor that is not empty."""
        return [(n, a) for n, row in enumerate(self.rows) for a in row.left_components()]

    def edge_matrix(self) -> Tensor:
        """From the right factor to those sums: (n_right, n_entries), float64."""
        place = {entry: column for column, entry in enumerate(self.entries())}
        matrix = torch.zeros(self.n_right, len(place), dtype=torch.float64)
        for number, row in enumerate(self.rows):
            for term in row.terms:
                matrix[term.b, place[number, term.a]] += term.coefficient
        return matrix

    def parity(self, row: Row) -> float:
        """(-1)^l of the right factor of a row: the sign it takes along the reverse edge."""
        return (-1.0) ** self.right_degrees[row.terms[0].b]


def couplings(
    left: list[Irrep], right: list[Irrep], out: list[Irrep], paths: list[Path]
) -> Couplings:
    """Unroll the paths of a tensor product into rows."""
    left_slices, right_slices = component_slices(left), component_slices(right)
    rows, blocks = [], []
    for k, irrep in enumerate(out):
        own = [number for number, path in enumerate(paths) if path.out == k]
        for m in range(irrep.dim):
            for number in own:
                path = paths[number]
                tensor = coupling(left[path.left], right[path.right], irrep)[:, :, m]
                terms = tuple(
                    Term(
                        left_slices[path.left].start + a,
                        right_slices[path.right].start + b,
                        float(tensor[a, b]),
                    )
                    for a, b in torch.nonzero(tensor.abs() > 1e-12).tolist()
                )
                rows.append(Row(number, terms))
        blocks.append((irrep.dim, len(own)))
    degrees = tuple(irrep.degree for irrep in right for _ in range(irrep.dim))
    return Couplings(tuple(rows), n_components(left), n_components(right), tuple(blocks), degrees)
