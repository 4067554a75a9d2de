"""The gauge of atomic energies: how members divide a total over the atoms.

Labels fix totals alone. Constants c_z for the elements z with Σ_z n_z c_z = 0 in every training
composition n change none of them, and each member takes its own, so that atomic energies differ
between members where totals agree. Here every member is given those constants with which atomic
energies spread least over the members: with ē_z the mean energy of an atom of element z at home,
of which there are w_z, and d the deviation of ē from its mean over the members,

    c = argmin Σ_z w_z (d_z - c_z)²  where N c = 0,      N the compositions, one a row.

Means over members stay what they were everywhere, and so do totals of training compositions, forces
and stress of every member; where energies are anchored (`nn.pairs`), as long as no atom loses its
bonds, with which it loses its constant.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ase_bayesmlip.nn.last_layer import LastLayerPotential
from ase_bayesmlip.nn.potential import Potential
from ase_bayesmlip.serving.home import BATCH_SIZE, Home

Floats = NDArray[np.float64]


def fix_gauge(members: Sequence[Potential | LastLayerPotential], home: Home) -> str:
    """Give members, in float64, the gauge in which their atomic energies agree best at home.

    Returns
    -------
    str
        What was done, for people.
    """
    networks = [m.potential if isinstance(m, LastLayerPotential) else m for m in members]
    sums, counts = element_energies(members, networks[0].atomic_numbers, home)
    free = free_constants(home.compositions)
    if free.shape[1] == 0:
        return "none to choose: totals of the training fix the mean energy of every element"
    constants = least_spread(sums / np.maximum(counts, 1), counts, free)
    for network, shift in zip(networks, constants, strict=True):
        with torch.no_grad():
            network.bias[:, 0] -= torch.from_numpy(shift) / network.scale
    return (
        f"members agree best on the energy of the atoms of {len(home.train)} training frames; "
        f"{free.shape[1]} of {len(free)} constants of elements are free"
    )


def element_energies(
    members: Sequence[Potential | LastLayerPotential], elements: Tensor, home: Home
) -> tuple[Floats, Floats]:
    """Sum of the interaction energies of atoms of each element, (S, n_elements), eV, and counts."""
    sums = torch.zeros(len(members), len(elements), dtype=torch.float64)
    counts = torch.zeros(len(elements), dtype=torch.float64)
    for graph, _ in home.train.batches(range(len(home.train)), BATCH_SIZE):
        place = torch.searchsorted(elements, graph.atomic_numbers)
        counts.index_add_(0, place, torch.ones(len(place), dtype=torch.float64))
        with torch.no_grad():
            for row, member in zip(sums, members, strict=True):
                row.index_add_(0, place, member(graph, True).atomic_energies[0])
    return sums.numpy(), counts.numpy()


def free_constants(compositions: NDArray[np.int_]) -> Floats:
    """Orthonormal basis, (n_elements, n_free), of the c with N c = 0 for N (n, n_elements)."""
    triangle = np.linalg.qr(compositions.astype(np.float64), mode="r")
    _, singular, axes = np.linalg.svd(triangle)
    tolerance = singular.max() * max(compositions.shape) * np.finfo(np.float64).eps
    return np.asarray(axes[np.sum(singular > tolerance) :].T)


def least_spread(means: Floats, counts: Floats, free: Floats) -> Floats:
    """The constants, (S, n_elements), eV, to be subtracted.

    Parameters
    ----------
    means : ndarray, (S, n_elements), eV
    counts : ndarray, (n_elements,)
    free : ndarray, (n_elements, n_free)
    """
    weights = np.sqrt(counts)
    deviations = means - means.mean(axis=0)
    found = np.linalg.lstsq(weights[:, None] * free, (weights * deviations).T, rcond=None)[0]
    return np.asarray((free @ found).T)
