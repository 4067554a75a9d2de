"""Bring a structure into a small box in which the same atoms are neighbours.

A native search lays a grid over the box: atoms that are far apart, or cells that are small or large
beyond reason, make it crawl or end the process. Here periodic directions are wrapped and empty
space is taken out before it runs; what is left to refuse is refused.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Beyond this, Å, neighbouring float64 numbers are 1e-8 Å apart: distances lose their digits.
MAX_COORDINATE = 1e8

# Pairs of atoms in one cell of the grid, images included: above it memory runs out.
MAX_PAIRS = 5e7

# A periodic vector shorter than this, Å, is none.
MIN_VECTOR = 1e-6

# Empty space is kept this much wider than the cutoff, so that round-off makes no neighbours.
MARGIN = 1e-6


class Compact(NamedTuple):
    """A structure periodic in three directions with the neighbours of another one.

    Attributes
    ----------
    points : ndarray, (n_atoms, 3), Å
    box : ndarray, (3, 3), Å, rows are lattice vectors
    image : ndarray of int64, (n_atoms, 3)
        Lattice translation that was taken from each atom.
    """

    points: np.ndarray
    box: np.ndarray
    image: np.ndarray


def compact(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float) -> Compact:
    """Wrap the periodic directions and shorten empty space to the cutoff.

    Layers parallel to two lattice vectors that have nothing between them for more than the cutoff
    are moved together along the third. Atoms with such a gap between them are no neighbours before
    and after; between all others nothing moves. An open direction ends in a gap without end, so
    that its images are out of reach.

    Parameters
    ----------
    positions : ndarray, (n_atoms, 3), Å
    cell : ndarray, (3, 3), Å
        Rows of open directions are not used.
    pbc : ndarray of bool, (3,)
    cutoff : float, Å

    Raises
    ------
    ValueError
        If positions or cell are not finite or too large for float64, if the periodic directions
        have no volume, or if there are more pairs than memory has room for.
    """
    pbc = np.asarray(pbc, dtype=bool)
    _check_size(positions, cell[pbc])
    basis = _basis(cell, pbc)
    inverse = np.linalg.inv(basis)
    heights = 1.0 / np.sqrt((inverse * inverse).sum(axis=0))
    fractional = positions @ inverse
    image = np.where(pbc, np.floor(fractional), 0.0)
    along = (fractional - image) * heights
    periods = np.where(pbc, heights, np.inf)
    moved, lengths = _without_gaps(along, periods, (1.0 + MARGIN) * cutoff)
    _check_pairs(along - moved, lengths, np.maximum(2.0 * cutoff / heights[pbc], 1.0), cutoff)
    points = positions - (image + moved / heights) @ basis
    box = (lengths / heights)[:, None] * basis
    return Compact(points, box, image.astype(np.int64))


def _check_size(positions: np.ndarray, vectors: np.ndarray) -> None:
    # Written so that NaN is refused.
    if not np.abs(vectors).max(initial=0.0) <= MAX_COORDINATE:
        raise ValueError(
            f"the periodic cell vectors {vectors.tolist()} Å are not finite, or longer than "
            f"{MAX_COORDINATE:.0e} Å, beyond which float64 loses distances; correct the cell"
        )
    if not np.abs(positions).max(initial=0.0) <= MAX_COORDINATE:
        extent = np.abs(positions).max(axis=1)
        atom = int(np.argmax(np.where(np.isnan(extent), np.inf, extent)))
        raise ValueError(
            f"atom {atom} is at {positions[atom].tolist()} Å: not finite, or more than "
            f"{MAX_COORDINATE:.0e} Å from the origin, where float64 loses distances; move the "
            "structure to the origin, or look for the step at which it exploded"
        )


def _basis(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Periodic lattice vectors, and unit vectors normal to them in the open directions."""
    vectors = cell[pbc]
    lengths = np.linalg.norm(vectors, axis=1)
    # Of unit vectors, so that long ones do not hide a flat cell.
    _, widths, normals = np.linalg.svd(vectors / np.maximum(lengths, MIN_VECTOR)[:, None])
    if lengths.min(initial=1.0) < MIN_VECTOR or widths.min(initial=1.0) < 1e-12:
        raise ValueError(
            f"the cell {cell.tolist()} Å has no volume along its periodic directions "
            f"(pbc {pbc.tolist()}); set the cell, or pbc=False"
        )
    basis = np.empty((3, 3))
    basis[pbc] = vectors
    basis[~pbc] = normals[len(vectors) :]
    return basis


def _without_gaps(
    along: np.ndarray, periods: np.ndarray, reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """How far each atom moves so that no gap is wider than `reach`, and the periods then, Å.

    Parameters
    ----------
    along : ndarray, (n_atoms, 3), Å
        Distance from the lattice planes of each direction, within the period.
    periods : ndarray, (3,), Å
        Infinite where the direction is open.
    """
    order = along.argsort(axis=0)
    ascending = np.take_along_axis(along, order, axis=0)
    gaps = np.empty_like(ascending)
    gaps[:-1] = ascending[1:] - ascending[:-1]
    gaps[-1] = periods + ascending[0] - ascending[-1]
    kept = np.minimum(gaps, reach)
    excess = gaps - kept
    below = np.zeros_like(excess)
    below[1:] = excess[:-1].cumsum(axis=0)
    moved = np.empty_like(along)
    np.put_along_axis(moved, order, ascending[0] + below, axis=0)
    # A period without gaps stays what it is, to the last bit.
    return moved, np.where(excess.any(axis=0), kept.sum(axis=0), periods)


def _check_pairs(along: np.ndarray, lengths: np.ndarray, images: np.ndarray, cutoff: float) -> None:
    """Raise `ValueError` if a grid of the size of the cutoff holds too many pairs.

    `images` is how many of its own an atom has within reach in each periodic direction.
    """
    n_images = float(images.prod())
    if len(along) ** 2 * n_images <= MAX_PAIRS:
        return
    n_cells = np.maximum(np.floor(lengths / cutoff), 1.0)
    place = np.minimum(np.floor(along / lengths * n_cells), n_cells - 1.0).astype(np.int64)
    stride = np.array([1, n_cells[0], n_cells[0] * n_cells[1]]).astype(np.int64)
    _, first, count = np.unique(place @ stride, return_index=True, return_counts=True)
    n_pairs = float((count.astype(float) ** 2).sum()) * n_images
    if n_pairs > MAX_PAIRS:
        fullest = int(count.argmax())
        raise ValueError(
            f"atom {first[fullest]} alone has about {count[fullest] * n_images:.1e} neighbours "
            f"within {cutoff:g} Å, the structure {n_pairs:.1e} pairs (at most {MAX_PAIRS:.0e}): "
            f"{len(along)} atoms in a space of {lengths.round(6).tolist()} Å; look for atoms on "
            "top of each other, or for a cell in another unit"
        )
