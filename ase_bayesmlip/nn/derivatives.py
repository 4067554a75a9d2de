"""Energies to forces and stress by reverse-mode differentiation.

Free functions of tensors, written so that they script: the served model and the training loop
share them.
"""

import torch
from torch import Tensor

from ase_bayesmlip.graph import AtomicGraph, strained
from ase_bayesmlip.prediction import MemberOutput


def with_derivative_inputs(graph: AtomicGraph, stress: bool) -> tuple[AtomicGraph, Tensor, Tensor]:
    """The graph as a differentiable function of positions and of a homogeneous strain.

    Returned with both, the leaves to differentiate by: (n_atoms, 3), and (n_graphs, 3, 3) of
    zeros, which the graph does not depend on without `stress`.
    """
    positions = graph.positions.detach().requires_grad_(True)
    strain = torch.zeros_like(graph.cell)
    leaf = AtomicGraph(
        positions=positions,
        atomic_numbers=graph.atomic_numbers,
        cell=graph.cell,
        edge_index=graph.edge_index,
        edge_shift=graph.edge_shift,
        batch=graph.batch,
        n_graphs=graph.n_graphs,
    )
    if stress:
        strain = strain.requires_grad_(True)
        leaf = strained(leaf, strain)
    return leaf, positions, strain


def gradients(total: Tensor, leaves: list[Tensor], create_graph: bool) -> list[Tensor]:
    """Derivatives of a scalar by each leaf, zero where it does not depend on the leaf.

    `create_graph` keeps the graph for a second derivative, which a loss on forces needs.
    """
    found = torch.autograd.grad(
        [total], leaves, retain_graph=True, create_graph=create_graph, allow_unused=True
    )
    filled: list[Tensor] = []
    for grad, leaf in zip(found, leaves):  # noqa: B905 (TorchScript)
        filled.append(torch.zeros_like(leaf) if grad is None else grad)
    return filled


def stress_from_strain_gradient(strain_gradient: Tensor, cell: Tensor) -> Tensor:
    """σ = (1/V) dE/dε, (n_graphs, 3, 3), eV/Å³; zero where the volume is zero."""
    # The triple product rather than a determinant, which compiles to a factorisation.
    areas = torch.linalg.cross(cell[:, 0], cell[:, 1])
    volume = (areas * cell[:, 2]).sum(dim=1).abs().view(-1, 1, 1)
    safe = torch.where(volume > 0, volume, torch.ones_like(volume))
    return torch.where(volume > 0, strain_gradient / safe, torch.zeros_like(strain_gradient))


def as_leaf(value: Tensor) -> Tensor:
    """A copy to differentiate by."""
    return _unattached(value).requires_grad_(True)


def without_graph(output: MemberOutput) -> MemberOutput:
    """A copy outside the autograd graph, which then keeps nothing of it alive."""
    return MemberOutput(
        _unattached(output.atomic_energies),
        _copied(output.atomic_energies_var),
        _copied(output.forces_cov),
        _copied(output.directions),
        _copied(output.draws),
        _copied(output.atomic_energies_var_epistemic),
        _copied(output.forces_cov_epistemic),
        _copied(output.forces_trace_epistemic),
        _copied(output.forces_dof),
    )


def _copied(value: Tensor | None) -> Tensor | None:
    return None if value is None else _unattached(value)


def _unattached(value: Tensor) -> Tensor:
    """Freezing a program drops detach(), but not this."""
    with torch.no_grad():
        copied = value.clone()
    return copied
