"""The input of every potential: atoms and their neighbours as tensors.

`AtomicGraph` is a NamedTuple so that it passes into TorchScript unchanged. Several structures are
batched by concatenation; `batch` says which structure an atom belongs to.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class AtomicGraph(NamedTuple):
    """A batch of atomic structures with their neighbour lists.

    Attributes
    ----------
    positions : Tensor, (n_atoms, 3), Å
    atomic_numbers : Tensor of int64, (n_atoms,)
    cell : Tensor, (n_graphs, 3, 3), Å
        Rows are the lattice vectors, as in ASE; zero where there is no lattice.
    edge_index : Tensor of int64, (2, n_edges)
        ``edge_index[0]`` is the centre i, ``edge_index[1]`` its neighbour j.
    edge_shift : Tensor, (n_edges, 3)
        Lattice translation of the neighbour in units of the cell vectors (integers).
    batch : Tensor of int64, (n_atoms,)
        Index of the structure that each atom belongs to.
    n_graphs : int
    """

    positions: Tensor
    atomic_numbers: Tensor
    cell: Tensor
    edge_index: Tensor
    edge_shift: Tensor
    batch: Tensor
    n_graphs: int


class DenseEdges(NamedTuple):
    """Neighbours as a table with one row per atom; every edge is there in both directions.

    Attributes
    ----------
    neighbor : Tensor of int64, (n_atoms, width)
        Rows are filled from the left; places without a neighbour name the atom itself.
    shift : Tensor, (n_atoms, width, 3)
        See `AtomicGraph.edge_shift`.
    n_neighbors : Tensor of int64, (n_atoms,)
    """

    neighbor: Tensor
    shift: Tensor
    n_neighbors: Tensor


def dense_edges(graph: AtomicGraph, min_width: int = 2) -> DenseEdges:
    """The edges of a graph as a table, on the CPU.

    In numpy: its calls cost a fraction of torch's, which counts at every step of small systems.

    Parameters
    ----------
    min_width : int
        Least number of columns: compiled programs treat sizes 0 and 1 as special.
    """
    centre, neighbour = graph.edge_index.numpy(force=True)
    shift = graph.edge_shift.numpy(force=True)
    if (centre[1:] < centre[:-1]).any():
        order = centre.argsort(kind="stable")
        centre, neighbour, shift = centre[order], neighbour[order], shift[order]
    n_atoms = len(graph.positions)
    count = np.bincount(centre, minlength=n_atoms)
    width = max(int(count.max()), min_width)
    # Row by row, the places that are filled come in the order of the edges.
    present = np.arange(width) < count[:, None]
    table = np.arange(n_atoms).repeat(width).reshape(n_atoms, width)
    table[present] = neighbour
    shifts = np.zeros((n_atoms, width, 3), dtype=shift.dtype)
    if shift.any():
        shifts[present] = shift
    return DenseEdges(*(torch.from_numpy(item) for item in (table, shifts, count)))


class Part(NamedTuple):
    """A range of atoms and that of the edges around them, in a graph sorted by centre.

    Attributes
    ----------
    first_atom, end_atom : int
    first_edge, end_edge : int
        Ends are exclusive.
    """

    first_atom: int
    end_atom: int
    first_edge: int
    end_edge: int


def split_edges(centre: Tensor, n_atoms: int, size: int) -> list[Part]:
    """Cut a structure into parts of about `size` edges; no atom is in two of them.

    Parameters
    ----------
    centre : Tensor of int64, (n_edges,), ascending, at least one
    size : int
        A part exceeds it by less than the neighbours of its first atom that has any.
    """
    atoms = torch.unique_consecutive(centre[::size])
    atoms[:1] = 0
    edges: list[int] = torch.searchsorted(centre, atoms).tolist()
    starts: list[int] = atoms.tolist()
    starts.append(n_atoms)
    edges.append(centre.shape[0])
    return [Part(starts[k], starts[k + 1], edges[k], edges[k + 1]) for k in range(len(starts) - 1)]


def sorted_by_centre(graph: AtomicGraph) -> AtomicGraph:
    """The same graph with its edges in the order of their centres."""
    order = torch.argsort(graph.edge_index[0], stable=True)
    return AtomicGraph(
        positions=graph.positions,
        atomic_numbers=graph.atomic_numbers,
        cell=graph.cell,
        edge_index=graph.edge_index[:, order],
        edge_shift=graph.edge_shift[order],
        batch=graph.batch,
        n_graphs=graph.n_graphs,
    )


def edge_vectors(graph: AtomicGraph) -> Tensor:
    """Vectors from each centre to its neighbour: r_ij = R_j - R_i + S_ij · cell.

    Returns
    -------
    Tensor, (n_edges, 3), Å
    """
    centre, neighbour = graph.edge_index[0], graph.edge_index[1]
    difference = graph.positions.index_select(0, neighbour) - graph.positions.index_select(
        0, centre
    )
    lattice = graph.cell.index_select(0, graph.batch.index_select(0, centre))
    return difference + torch.bmm(graph.edge_shift.unsqueeze(1), lattice).squeeze(1)


def strained(graph: AtomicGraph, strain: Tensor) -> AtomicGraph:
    """Deform positions and cell of every structure by a symmetric strain: R -> R (1 + ε).

    Parameters
    ----------
    strain : Tensor, (n_graphs, 3, 3), dimensionless
        Symmetrised here, so that the derivative with respect to it is symmetric.
    """
    symmetric = 0.5 * (strain + strain.transpose(1, 2))
    per_atom = symmetric.index_select(0, graph.batch)
    positions = graph.positions + torch.bmm(graph.positions.unsqueeze(1), per_atom).squeeze(1)
    return AtomicGraph(
        positions=positions,
        atomic_numbers=graph.atomic_numbers,
        cell=graph.cell + torch.bmm(graph.cell, symmetric),
        edge_index=graph.edge_index,
        edge_shift=graph.edge_shift,
        batch=graph.batch,
        n_graphs=graph.n_graphs,
    )


def batch_graphs(graphs: list[AtomicGraph]) -> AtomicGraph:
    """Concatenate structures into one graph; edges never cross structures.

    Raises
    ------
    ValueError
        If the list is empty.
    """
    if not graphs:
        raise ValueError("batch_graphs needs at least one graph; got an empty list")
    if len(graphs) == 1:
        return graphs[0]
    atom_offset, graph_offset = 0, 0
    edge_index, batch = [], []
    for graph in graphs:
        edge_index.append(graph.edge_index + atom_offset)
        batch.append(graph.batch + graph_offset)
        atom_offset += graph.positions.shape[0]
        graph_offset += graph.n_graphs
    return AtomicGraph(
        positions=torch.cat([graph.positions for graph in graphs]),
        atomic_numbers=torch.cat([graph.atomic_numbers for graph in graphs]),
        cell=torch.cat([graph.cell for graph in graphs]),
        edge_index=torch.cat(edge_index, dim=1),
        edge_shift=torch.cat([graph.edge_shift for graph in graphs]),
        batch=torch.cat(batch),
        n_graphs=graph_offset,
    )


def graph_to(graph: AtomicGraph, device: torch.device, dtype: torch.dtype) -> AtomicGraph:
    """Move a graph to a device and its floating-point fields to a dtype."""
    return AtomicGraph(
        positions=graph.positions.to(device, dtype),
        atomic_numbers=graph.atomic_numbers.to(device),
        cell=graph.cell.to(device, dtype),
        edge_index=graph.edge_index.to(device),
        edge_shift=graph.edge_shift.to(device, dtype),
        batch=graph.batch.to(device),
        n_graphs=graph.n_graphs,
    )


def sum_by_graph(values: Tensor, batch: Tensor, n_graphs: int) -> Tensor:
    """Sum (..., n_atoms) over the atoms of each structure, in float64: (..., n_graphs)."""
    shape = list(values.shape)
    shape[-1] = n_graphs
    zeros = torch.zeros(shape, dtype=torch.float64, device=values.device)
    return zeros.index_add(-1, batch, values.to(torch.float64))
