"""The served mixture as one program of tensors, arranged for a compiler.

Same numbers as `ServedModel`, from stacked members that share geometry, with neighbours in a dense
table and radial networks in tables. It is traced by `compiler` and never run eagerly in production.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ase_bayesmlip.graph import AtomicGraph, DenseEdges
from ase_bayesmlip.nn.dense_geometry import DenseGeometry, forces_from_edges, virial_from_edges
from ase_bayesmlip.nn.derivatives import stress_from_strain_gradient
from ase_bayesmlip.nn.potential import Potential
from ase_bayesmlip.nn.stacked import StackedPotential
from ase_bayesmlip.prediction import Prediction
from ase_bayesmlip.serving.mixture import Means, mix

# Slopes of a table are less accurate than its values: forces are off by several times as much.
TABLE_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-8}


class MixtureProgram(nn.Module):
    """A mixture of potentials: tensors -> the known fields of a `Prediction`.

    Parameters
    ----------
    members : sequence of Potential
        Of one architecture, in float64.
    reference_energies : Tensor of float64, (119,), eV
    dtype : torch.dtype
        Precision of the networks; coordinates and moments stay in float64.

    Attributes
    ----------
    table_error : float
        See `radial_table.tabulate`.
    """

    reference_energies: Tensor

    def __init__(
        self, members: Sequence[Potential], reference_energies: Tensor, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.n_members = len(members)
        stacked = StackedPotential(members, TABLE_TOLERANCE[dtype])
        self.table_error = stacked.table_error
        self.stacked = stacked.to(dtype)
        self.geometry = DenseGeometry(members[0].cutoff, members[0].angular.l_max).to(dtype)
        self.register_buffer("reference_energies", reference_energies)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """`program_inputs` to those fields of a `Prediction` that are known, in order."""
        return tuple(value for value in self.prediction(*inputs) if value is not None)

    def prediction(
        self,
        positions: Tensor,
        atomic_numbers: Tensor,
        cell: Tensor,
        batch: Tensor,
        neighbor: Tensor,
        shift: Tensor,
        count: Tensor,
    ) -> Prediction:
        """The same with names; see `AtomicGraph` and `DenseEdges` for the arguments."""
        no_edges = neighbor.new_zeros((2, 0)), shift[:0, 0]
        graph = AtomicGraph(positions, atomic_numbers, cell, *no_edges, batch, cell.shape[0])
        return self.predict(graph, DenseEdges(neighbor, shift, count))

    def predict(self, graph: AtomicGraph, edges: DenseEdges) -> Prediction:
        """Everything the posterior knows: stress and members are no extra work here."""
        n_graphs = graph.n_graphs
        geometry: DenseGeometry = self.geometry
        vectors, harmonics, distances = geometry(graph.positions, graph.cell, graph.batch, edges)
        # One view of the geometry per member, so that each has its own derivatives.
        own_harmonics = harmonics.expand(self.n_members, *harmonics.shape).detach()
        own_distances = distances.expand(self.n_members, *distances.shape).detach()
        leaves = [own_harmonics.requires_grad_(True), own_distances.requires_grad_(True)]
        species = self.stacked.get_buffer("one_hot").index_select(0, graph.atomic_numbers)
        output = self.stacked(
            species, *leaves, edges.neighbor, edges.n_neighbors, graph.batch, n_graphs
        )
        slopes = torch.autograd.grad(output.atomic_energies.sum(), leaves)
        gradients = geometry.edge_gradients(vectors, harmonics, distances, *slopes)
        virial = virial_from_edges(gradients, vectors, graph.batch, n_graphs)
        stresses = stress_from_strain_gradient(
            virial.flatten(0, 1), graph.cell.repeat(self.n_members, 1, 1)
        )
        variance, covariance = output.atomic_energies_var, output.forces_cov
        return mix(
            graph,
            self.reference_energies,
            Means(
                output.atomic_energies.detach().to(torch.float64),
                forces_from_edges(gradients, edges).to(torch.float64),
                stresses.view(self.n_members, n_graphs, 3, 3),
            ),
            None,
            None if variance is None else variance.detach().to(torch.float64).mean(dim=0),
            None if covariance is None else covariance.detach().to(torch.float64).mean(dim=0),
            True,
        )
