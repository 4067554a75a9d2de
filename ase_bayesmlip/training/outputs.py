"""What a potential says of a training batch: energies, forces and stress with their noise."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from ase_bayesmlip.graph import AtomicGraph, sum_by_graph
from ase_bayesmlip.nn.derivatives import (
    gradients,
    stress_from_strain_gradient,
    with_derivative_inputs,
)
from ase_bayesmlip.nn.evidential.components import ComponentEvidence
from ase_bayesmlip.nn.evidential.head import Evidence
from ase_bayesmlip.nn.evidential.potential import EvidentialPotential
from ase_bayesmlip.nn.last_layer import all_as_noise
from ase_bayesmlip.prediction import MemberOutput


class Outputs(NamedTuple):
    """Predictions of one potential for a training batch.

    Attributes
    ----------
    energy : Tensor of float64, (n_graphs,), eV, reference energies not included
    forces : Tensor, (n_atoms, 3), eV/Å
    stress : Tensor or None, (n_graphs, 3, 3), eV/Å³
    energy_var : Tensor or None, (n_graphs,), eV²
    forces_cov : Tensor or None, (n_atoms, 3, 3), (eV/Å)²
        Of the law of the labels; for evidential laws both of its parts.
    evidence : Evidence, ComponentEvidence or None
        Parameters of evidential laws.
    """

    energy: Tensor
    forces: Tensor
    stress: Tensor | None
    energy_var: Tensor | None
    forces_cov: Tensor | None
    evidence: Evidence | ComponentEvidence | None = None


def evaluate(potential: nn.Module, graph: AtomicGraph, stress: bool, create_graph: bool) -> Outputs:
    """Energy, forces, stress and noise of a batch; `create_graph` for a loss on forces."""
    leaf, positions, strain = with_derivative_inputs(graph, stress)
    leaves = [positions, strain] if stress else [positions]
    if not isinstance(potential, EvidentialPotential):
        return outputs_of(potential(leaf), leaves, graph, create_graph)
    output, evidence = potential.with_evidence(leaf)
    outputs = outputs_of(output, leaves, graph, create_graph)
    return outputs._replace(evidence=evidence)


def outputs_of(
    output: MemberOutput, leaves: list[Tensor], graph: AtomicGraph, create_graph: bool
) -> Outputs:
    """Energies to forces, and to stress if the leaves are positions and strain.

    The leaves are in float64; forces and stress have the precision of the potential.
    """
    energies = output.atomic_energies[0]
    slopes = gradients(energies.sum(), leaves, create_graph)
    sigma = None
    if len(leaves) > 1:
        sigma = stress_from_strain_gradient(slopes[1], graph.cell).to(energies.dtype)
    variance, covariance = all_as_noise(output)
    energy_var = None
    if variance is not None:
        energy_var = sum_by_graph(variance[0], graph.batch, graph.n_graphs)
        if output.directions is not None:  # errors that atoms have in common
            common = sum_by_graph(output.directions, graph.batch, graph.n_graphs)
            energy_var = energy_var + (common**2).sum(dim=0)
    return Outputs(
        energy=sum_by_graph(energies, graph.batch, graph.n_graphs),
        forces=-slopes[0].to(energies.dtype),
        stress=sigma,
        energy_var=energy_var,
        forces_cov=None if covariance is None else covariance[0],
    )
