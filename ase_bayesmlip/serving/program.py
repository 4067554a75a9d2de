"""The served mixture as one program of tensors, arranged for a compiler.

Same numbers as `ServedModel`, from stacked members that share geometry, with neighbours in a dense
table and radial networks in tables. It is traced by `compiler` and never run eagerly in production.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ase_bayesmlip.graph import AtomicGraph, DenseEdges
from ase_bayesmlip.nn.dense_geometry import DenseGeometry, forces_from_edges, virial_from_edges
from ase_bayesmlip.nn.derivatives import stress_from_strain_gradient
from ase_bayesmlip.nn.last_layer import LastLayerPotential, all_as_noise
from ase_bayesmlip.nn.potential import Potential, set_readout_weights
from ase_bayesmlip.nn.stacked import StackedPotential
from ase_bayesmlip.prediction import MemberOutput, Prediction
from ase_bayesmlip.serving.mixture import Means, OwnSpread, mix
from ase_bayesmlip.serving.variance_scaling import VarianceScaling

# Slopes of a table are less accurate than its values: forces are off by several times as much.
TABLE_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-8}


class MixtureProgram(nn.Module):
    """A mixture of potentials: tensors -> the known fields of a `Prediction`.

    Parameters
    ----------
    members : sequence of Potential or of LastLayerPotential
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
        self,
        members: Sequence[Potential | LastLayerPotential],
        reference_energies: Tensor,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.n_members, self.n_draws = len(members), 0
        networks, factors = [], []
        drawn: list[Potential] = []
        for member in members:
            if isinstance(member, LastLayerPotential):
                networks.append(member.potential)
                factors.append(member.factor)
                drawn += _drawn_readouts(member)
            else:
                networks.append(member)
        self.n_draws = len(drawn) // self.n_members
        tolerance = TABLE_TOLERANCE[dtype]
        stacked = StackedPotential([*networks, *drawn], tolerance, n_heads=self.n_members)
        self.table_error = stacked.table_error
        self.stacked = stacked.to(dtype)
        first = networks[0]
        self.geometry = DenseGeometry(first.cutoff, first.angular.l_max).to(dtype)
        self.register_buffer("reference_energies", reference_energies)
        self.variance_scaling = VarianceScaling()
        self.register_buffer("factor", torch.stack(factors).to(dtype) if factors else None)

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
        shared = geometry(graph.positions, graph.cell, graph.batch, edges)
        # One view of the vectors per network, so that each has its own derivatives.
        n_networks = self.n_members * (1 + self.n_draws)
        rounded = shared.vectors.to(shared.distances.dtype)
        own = rounded.expand(n_networks, *rounded.shape).detach().requires_grad_(True)
        species = self.stacked.get_buffer("one_hot").index_select(0, graph.atomic_numbers)
        output, basis = self.stacked(species, shared._replace(vectors=own), graph.batch, n_graphs)
        (gradients,) = torch.autograd.grad(output.atomic_energies.sum(), own)
        virial = virial_from_edges(gradients, shared.vectors, graph.batch, n_graphs)
        stresses = stress_from_strain_gradient(
            virial.flatten(0, 1), graph.cell.repeat(n_networks, 1, 1)
        ).view(n_networks, n_graphs, 3, 3)
        energies = output.atomic_energies.detach().to(torch.float64)
        forces = forces_from_edges(gradients, edges).to(torch.float64)
        n = self.n_members
        energy_noise, force_noise = output.atomic_energies_var, output.forces_cov
        spread = _of_laws(output)
        if self.n_draws > 0:
            energy_noise, force_noise = all_as_noise(output)
            drawn = energies[n:], forces[n:], stresses[n:]
            spread = self._own_spread(output.directions, *drawn, basis[:n])
        prediction = mix(
            graph,
            self.reference_energies,
            Means(energies[:n], forces[:n], stresses[:n]),
            spread,
            self._mean(energy_noise),
            self._mean(force_noise),
            members=True,
        )
        return self.variance_scaling(graph.atomic_numbers, prediction)

    def _mean(self, noise: Tensor | None) -> Tensor | None:
        """Average over the members; drawn readouts repeat their noise."""
        if noise is None:
            return None
        return noise[: self.n_members].detach().to(torch.float64).mean(dim=0)

    def _own_spread(
        self,
        coherent: Tensor | None,
        energies: Tensor,
        forces: Tensor,
        stresses: Tensor,
        basis: Tensor,
    ) -> OwnSpread:
        """What the drawn readouts say, (members · draws, ...), and the closed form."""
        directions = torch.bmm(basis.detach(), self.get_buffer("factor")).transpose(1, 2)
        if coherent is not None:
            directions = torch.cat([directions, coherent.unsqueeze(1)], dim=1)
        energies, forces, stresses = (
            x.view(self.n_members, self.n_draws, *x.shape[1:]) for x in (energies, forces, stresses)
        )
        return OwnSpread(
            directions=directions.to(torch.float64),
            independent=None,
            forces_cov=None,
            forces_trace=None,
            forces_dof=None,
            draw_energies=energies,
            draw_forces=forces,
            draw_stresses=stresses,
        )


def _of_laws(output: MemberOutput) -> OwnSpread | None:
    """The epistemic part of the laws of evidential members; None for others."""
    if output.forces_trace_epistemic is None:
        return None
    coherent = output.directions
    return OwnSpread(
        directions=None if coherent is None else coherent.unsqueeze(1).to(torch.float64),
        independent=_wide(output.atomic_energies_var_epistemic),
        forces_cov=_wide(output.forces_cov_epistemic),
        forces_trace=_wide(output.forces_trace_epistemic),
        forces_dof=_wide(output.forces_dof),
        draw_energies=None,
        draw_forces=None,
        draw_stresses=None,
    )


def _wide(field: Tensor | None) -> Tensor | None:
    return None if field is None else field.to(torch.float64)


def _drawn_readouts(member: LastLayerPotential) -> list[Potential]:
    """One potential for each draw, whose energy is the deviation: readouts are linear.

    The network below is the same, but a compiled program that evaluates copies of it side by side
    takes less time than derivatives one after another.
    """
    potentials = []
    for deviation in member.deviations.unbind(1):
        potential = copy.deepcopy(member.potential)
        set_readout_weights(potential, deviation)
        potential.bias.data[:, 0] = 0.0
        potentials.append(potential)
    return potentials
