"""Neighbour lists: `Atoms` -> edges, with a skin so that most MD steps rebuild nothing."""

from __future__ import annotations

import numpy as np
import torch
import vesin
from ase import Atoms

from ase_bayesmlip.graph import AtomicGraph
from ase_bayesmlip.structures.compact import compact


def neighbor_edges(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray]:
    """All directed pairs within the cutoff, periodic images included.

    They are sorted by centre, then neighbour, then shift, so that the order says nothing of how
    they were found; each pair is there in both directions. Cells smaller than the cutoff are
    handled: an atom may neighbour its own images.

    Parameters
    ----------
    positions : ndarray, (n_atoms, 3), Å
    cell : ndarray, (3, 3), Å, rows are lattice vectors
        Rows of open directions are not used.
    pbc : ndarray of bool, (3,)
    cutoff : float, Å

    Returns
    -------
    edge_index : ndarray of int64, (2, n_edges)
    edge_shift : ndarray of int64, (n_edges, 3)
        Lattice translation of the neighbour.

    Raises
    ------
    ValueError
        Before the search, for a structure that it could not take, see `compact`.
    """
    if len(positions) == 0:
        return np.zeros((2, 0), dtype=np.int64), np.zeros((0, 3), dtype=np.int64)
    points, box, image = compact(positions, cell, pbc, cutoff)
    search = vesin.NeighborList(cutoff=cutoff, full_list=False)
    pairs, shift = search.compute(
        points=np.ascontiguousarray(points),
        box=np.ascontiguousarray(box),
        periodic=True,
        quantities="PS",
    )
    shift = shift + image.take(pairs[:, 0], axis=0) - image.take(pairs[:, 1], axis=0)
    pairs = np.concatenate([pairs, pairs[:, ::-1]]).T
    shift = np.concatenate([shift, -shift])
    # Numbers of 16 bits are sorted digit by digit, several times faster than wide ones.
    narrow = pairs.astype(np.min_scalar_type(len(positions)))
    fits = np.abs(shift).max(initial=0) <= np.iinfo(np.int16).max
    narrow_shift = shift.astype(np.int16 if fits else np.int64)
    order = np.lexsort((*narrow_shift.T[::-1], *narrow[::-1]))
    edge_index = pairs.take(order, axis=1).astype(np.int64)
    return edge_index, shift.take(order, axis=0).astype(np.int64)


def _translations(edge_shift: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """T_ij = S_ij · cell, (3, n_edges), Å.

    Summed by hand: a matrix product may round a translation and its opposite differently.
    """
    return np.asarray(
        sum(count * vector[:, None] for count, vector in zip(edge_shift.T, cell, strict=True))
    )


def _squared_lengths(
    positions: np.ndarray, edge_index: np.ndarray, translations: np.ndarray
) -> np.ndarray:
    """|R_j - R_i + T_ij|², (n_edges,), Å²; the same to the last bit in both directions.

    One coordinate at a time: gathering from a short column is several times faster than
    gathering rows of three.
    """
    centre, neighbour = edge_index
    squared = np.zeros(len(centre))
    for column, translation in zip(np.ascontiguousarray(positions.T), translations, strict=True):
        difference = column.take(neighbour)
        difference -= column.take(centre)
        difference += translation
        difference *= difference
        squared += difference
    return squared


def find_lone_atoms(edge_index: np.ndarray, n_atoms: int) -> np.ndarray:
    """Indices of the atoms that have no neighbour, ascending.

    Parameters
    ----------
    edge_index : ndarray of int, (2, n_edges)
        Every pair in both directions, as `neighbor_edges` returns them.
    """
    lone = np.ones(n_atoms, dtype=bool)
    lone[edge_index[0]] = False
    return np.flatnonzero(lone)


class NeighborList:
    """Neighbours of a structure that moves a little between calls.

    Pairs are searched within ``cutoff + skin`` and kept until an atom has moved by more than half
    the skin, or cell, boundary conditions or number of atoms change. Each call returns the pairs
    within the cutoff alone.

    Parameters
    ----------
    cutoff, skin : float, Å
    """

    def __init__(self, cutoff: float, skin: float = 0.5) -> None:
        if not (0 < cutoff < np.inf and 0 <= skin < np.inf):
            raise ValueError(f"cutoff must be positive and skin not negative: {cutoff}, {skin}")
        self.cutoff = cutoff
        self.skin = skin
        self.n_builds = 0
        self._positions: np.ndarray | None = None
        self._cell = np.zeros((3, 3))
        self._pbc = np.zeros(3, dtype=bool)
        self._edges: tuple[np.ndarray, np.ndarray] = (np.zeros((2, 0)), np.zeros((0, 3)))
        self._translations = np.zeros((3, 0))

    def __call__(self, atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
        """Edges of the structure, as `neighbor_edges` returns them."""
        edge_index, edge_shift, _ = self.measured(atoms)
        return edge_index, edge_shift

    def measured(self, atoms: Atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Edges of the structure, and their squared lengths, (n_edges,), Å²."""
        positions = atoms.positions
        cell = complete_cell(atoms)
        if self._is_stale(positions, cell, atoms.pbc):
            self._edges = neighbor_edges(positions, cell, atoms.pbc, self.cutoff + self.skin)
            self._translations = _translations(self._edges[1], cell)
            self._positions, self._cell = positions.copy(), cell.copy()
            self._pbc = atoms.pbc.copy()
            self.n_builds += 1
        edge_index, edge_shift = self._edges
        squared = _squared_lengths(positions, edge_index, self._translations)
        inside = squared < self.cutoff**2
        return (
            edge_index.compress(inside, axis=1),
            edge_shift.compress(inside, axis=0),
            squared.compress(inside),
        )

    def _is_stale(self, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> bool:
        if self._positions is None or self._positions.shape != positions.shape:
            return True
        # Written so that NaN counts as a change.
        if not ((self._cell == cell).all() and (self._pbc == pbc).all()):
            return True
        moved = positions - self._positions
        moved *= moved
        return bool(moved.sum(axis=1).max(initial=0.0) > (0.5 * self.skin) ** 2)


def has_lattice(atoms: Atoms) -> bool:
    """Whether the cell has three vectors: what `Cell.rank` says, several times faster."""
    return bool(atoms.cell.array.any(axis=1).all())


def complete_cell(atoms: Atoms) -> np.ndarray:
    """The cell, (3, 3), with missing vectors filled in where some directions are periodic.

    A slab or wire with a zero vector along its open direction still needs three independent
    vectors to place its images; the filled ones carry no periodicity.
    """
    if atoms.pbc.any() and not has_lattice(atoms):
        return _in_rows(atoms.cell.complete().array)
    return _in_rows(atoms.cell.array)


def _in_rows(values: np.ndarray, dtype: type = np.float64) -> np.ndarray:
    """A copy whose rows follow each other in memory: `Cell.complete` gives columns for a wire."""
    return np.array(values, dtype=dtype, order="C")


def graph_of(atoms: Atoms, cutoff: float) -> AtomicGraph:
    """A structure with its neighbours within the cutoff, Å, found afresh, on the CPU."""
    edges = neighbor_edges(atoms.positions, complete_cell(atoms), atoms.pbc, cutoff)
    return atomic_graph(atoms, edges)


def atomic_graph(atoms: Atoms, edges: tuple[np.ndarray, np.ndarray]) -> AtomicGraph:
    """One structure and its edges as an `AtomicGraph` on the CPU.

    Always in float64: a network of less precision rounds the differences of coordinates, not the
    coordinates, which may be far from the origin.
    """
    edge_index, edge_shift = edges
    # Copied and converted by numpy, whose calls cost a fraction of torch's.
    return AtomicGraph(
        positions=torch.from_numpy(_in_rows(atoms.positions)),
        atomic_numbers=torch.from_numpy(_in_rows(atoms.numbers, np.int64)),
        cell=torch.from_numpy(complete_cell(atoms)[None]),
        edge_index=torch.from_numpy(edge_index),
        edge_shift=torch.from_numpy(_in_rows(edge_shift)),
        batch=torch.from_numpy(np.zeros(len(atoms), dtype=np.int64)),
        n_graphs=1,
    )
