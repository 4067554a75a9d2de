"""The served mixture as one program of tensors, arranged for a compiler.

Same numbers as `ServedModel`, from stacked members that share geometry, with neighbours in a dense
table and radial networks in tables. `compiler` exports it; it is never run eagerly in production.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ase_bayesmlip.graph import AtomicGraph, DenseEdges
from ase_bayesmlip.nn.derivatives import stress_from_strain_gradient
from ase_bayesmlip.nn.last_layer import LastLayerPotential, all_as_noise, by_element
from ase_bayesmlip.nn.leverage import Leverage
from ase_bayesmlip.nn.potential import Potential
from ase_bayesmlip.nn.stacked.geometry import DenseGeometry, forces_from_edges, virial_from_edges
from ase_bayesmlip.nn.stacked.potential import StackedPotential
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
    leverage : Leverage or None
        See `ServedModel`.

    Attributes
    ----------
    table_error : float
        See `radial_table.tabulate`.
    n_draws : int
        Drawn readouts of each member.
    lazy : bool
        Whether forces and stress of the draws are left out.
    """

    reference_energies: Tensor

    def __init__(
        self,
        members: Sequence[Potential | LastLayerPotential],
        reference_energies: Tensor,
        dtype: torch.dtype,
        leverage: Leverage | None = None,
    ) -> None:
        super().__init__()
        self.leverage = None if leverage is None else leverage.to(dtype)
        uncertain = [member for member in members if isinstance(member, LastLayerPotential)]
        networks = [m.potential if isinstance(m, LastLayerPotential) else m for m in members]
        self.n_members = len(members)
        self.n_draws = uncertain[0].deviations.shape[1] if uncertain else 0
        self.lazy = False
        stacked = StackedPotential(networks, TABLE_TOLERANCE[dtype])
        self.table_error = stacked.table_error
        self.stacked = stacked.to(dtype)
        first = networks[0]
        self.geometry = DenseGeometry(first.cutoff, first.angular.l_max).to(dtype)
        self.register_buffer("reference_energies", reference_energies)
        self.variance_scaling = VarianceScaling()
        if uncertain:
            factors = torch.stack([member.factor for member in uncertain])
            self.register_buffer("factor", factors.to(dtype))
            # (draws, members, P)
            deviations = torch.stack([member.deviations.T for member in uncertain], dim=1)
            self.register_buffer("deviations", deviations.to(dtype))
            shifts = torch.stack([member.shift for member in uncertain])
            self.register_buffer("shift", shifts.to(dtype))

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
        around = geometry(graph.positions, graph.cell, graph.batch, edges)
        species = self.stacked.get_buffer("one_hot").index_select(0, graph.atomic_numbers)
        output, basis, record = self.stacked(species, around, graph.batch, n_graphs)
        combinations = self.stacked.get_buffer("readout_weights")
        if self.n_draws > 0:
            basis, combinations = self._uncertain(basis, combinations, species)
            shift = torch.bmm(basis, self.get_buffer("shift").unsqueeze(2)).squeeze(2)
            output = output._replace(atomic_energies=output.atomic_energies + shift)
        gradients = self.stacked.gradients(combinations, record, species, around)
        virial = virial_from_edges(gradients, around.vectors, graph.batch, n_graphs)
        stresses = stress_from_strain_gradient(
            virial.flatten(0, 1), graph.cell.repeat(len(gradients), 1, 1)
        ).view(-1, n_graphs, 3, 3)
        forces = forces_from_edges(gradients, edges).to(torch.float64)
        energy_noise, force_noise = output.atomic_energies_var, output.forces_cov
        spread, n = _of_laws(output), self.n_members
        if self.n_draws > 0:
            energy_noise, force_noise = all_as_noise(output)
            spread = self._own_spread(output.directions, basis, forces[n:], stresses[n:])
        prediction = mix(
            graph,
            self.reference_energies,
            Means(output.atomic_energies.to(torch.float64), forces[:n], stresses[:n]),
            spread,
            self._mean(energy_noise),
            self._mean(force_noise),
            members=True,
            feature_distance=self._distance(record.invariants, species),
        )
        return self.variance_scaling(graph.atomic_numbers, prediction)

    def _uncertain(self, basis: Tensor, mean: Tensor, species: Tensor) -> tuple[Tensor, Tensor]:
        """The basis that the factor stands for, and all combinations to be differentiated.

        Drawn energies are other combinations of the same basis and share the forward pass.
        """
        rows = self.get_buffer("shift").unsqueeze(0)
        if not self.lazy:
            rows = torch.cat([rows, self.get_buffer("deviations")])
        rows = rows.flatten(0, 1)
        n_members, n_weights = mean.shape
        if rows.shape[1] > n_weights:  # of every atom those of its element
            rows = species @ rows.view(len(rows), -1, n_weights)
            basis, mean = by_element(basis, species), mean.unsqueeze(1)
        return basis, torch.cat([mean + rows[:n_members], rows[n_members:]])

    def _distance(self, invariants: list[Tensor], species: Tensor) -> Tensor | None:
        if self.leverage is None:
            return None
        of_first = torch.cat([x[0] for x in invariants], dim=1)
        return torch.sqrt(self.leverage(of_first, species)).to(torch.float64)

    def _mean(self, noise: Tensor | None) -> Tensor | None:
        """Average over the members."""
        return None if noise is None else noise.to(torch.float64).mean(dim=0)

    def _own_spread(
        self, coherent: Tensor | None, basis: Tensor, forces: Tensor, stresses: Tensor
    ) -> OwnSpread:
        """The closed form, and what the draws say, (draws · members, ...)."""
        directions = torch.bmm(basis, self.get_buffer("factor")).transpose(1, 2)
        if coherent is not None:
            directions = torch.cat([directions, coherent.unsqueeze(1)], dim=1)
        drawn = self.get_buffer("deviations").permute(1, 2, 0)
        energies = torch.bmm(basis, drawn).transpose(1, 2)
        draw_forces, draw_stresses = (
            None
            if self.lazy
            else x.view(self.n_draws, self.n_members, *x.shape[1:]).transpose(0, 1)
            for x in (forces, stresses)
        )
        return OwnSpread(
            directions=directions.to(torch.float64),
            draw_energies=energies.to(torch.float64),
            draw_forces=draw_forces,
            draw_stresses=draw_stresses,
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
    )


def _wide(field: Tensor | None) -> Tensor | None:
    return None if field is None else field.to(torch.float64)
