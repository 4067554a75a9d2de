"""The mixture of posterior samples that a served file holds: graph -> `Prediction`.

It mixes concrete potentials by the law of total variance (`mixture`) and does not know how the
samples were obtained.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ase_bayesmlip.graph import AtomicGraph, Part, sorted_by_centre, split_edges
from ase_bayesmlip.nn.derivatives import (
    gradients,
    stress_from_strain_gradient,
    with_derivative_inputs,
    without_graph,
)
from ase_bayesmlip.nn.last_layer import LastLayerPotential
from ase_bayesmlip.nn.leverage import Leverage, invariant_starts, invariants
from ase_bayesmlip.nn.potential import MAX_ATOMIC_NUMBER, Potential
from ase_bayesmlip.prediction import MemberOutput, Prediction
from ase_bayesmlip.serving.mixture import Means, OwnSpread, mix
from ase_bayesmlip.serving.variance_scaling import VarianceScaling

# Numbers that a step may hold for the derivatives of a member: 8 GiB in float32. Beyond it edges
# are taken in parts of an eighth, which takes 1.2 to 1.5 times as long.
NUMBERS_AT_ONCE = 2**31


class ServedModel(nn.Module):
    """A mixture of potentials: graph -> `Prediction`.

    Parameters
    ----------
    members : sequence of Potential or LastLayerPotential
        Samples of the posterior, in float64.
    reference_energies : dict of int to float, eV
    leverage : Leverage or None
        Of the features of the first member; None where distances of features are unknown.
    """

    reference_energies: Tensor

    def __init__(
        self,
        members: Sequence[Potential | LastLayerPotential],
        reference_energies: dict[int, float],
        leverage: Leverage | None = None,
    ) -> None:
        super().__init__()
        networks = [m.potential if isinstance(m, LastLayerPotential) else m for m in members]
        for network in networks:
            network.fold()
        self.leverage, self.invariant_starts = leverage, invariant_starts(networks[0])
        self.members = nn.ModuleList(members)
        table = torch.zeros(MAX_ATOMIC_NUMBER + 1, dtype=torch.float64)
        for number, energy in reference_energies.items():
            table[number] = energy
        self.register_buffer("reference_energies", table)
        self.numbers_at_once = NUMBERS_AT_ONCE
        self.numbers_per_edge = members[0].numbers_per_edge
        self.variance_scaling = VarianceScaling()

    def forward(
        self, graph: AtomicGraph, stress: bool, members: bool, force_spread: bool = True
    ) -> Prediction:
        """Mean and covariance of the posterior for a batch of structures.

        Parameters
        ----------
        graph : AtomicGraph
        stress : bool
            Whether to compute stress; structures without a volume get zero.
        members : bool
            Whether to return each sample's energies, forces and stress.
        force_spread : bool, the opposite of `lazy` elsewhere: files know it so
            Whether to compute the epistemic covariance of forces and stress where that takes
            derivatives of its own (`MemberOutput.draws`), and the matrices of evidential laws;
            elsewhere it is always there.
        """
        outputs: list[MemberOutput] = []
        forces: list[Tensor] = []
        stresses: list[Tensor] = []
        draw_forces: list[Tensor] = []
        draw_stresses: list[Tensor] = []
        distance: Tensor | None = None
        graph, parts = self.divided(graph)
        for member in self.members:
            leaf, positions, strain = with_derivative_inputs(graph, stress)
            leaves = [positions, strain] if stress else [positions]
            strata = member.strata(leaf, parts)  # type: ignore[operator]
            output = member.output(strata, leaf, not force_spread)  # type: ignore[operator]
            if distance is None:
                distance = self.distance(strata.features, strata.species)
            wanted, draws = output.atomic_energies, output.draws
            if draws is not None and force_spread:
                wanted = torch.cat([wanted, draws])
            totals, cut = wanted.sum(dim=1), strata.cut
            if cut is not None:
                totals = member.rejoined(wanted, cut)  # type: ignore[operator]
            force, sigma = derivatives(totals, leaves, graph.cell)
            forces.append(force[:1])
            stresses.append(sigma[:1])
            if draws is not None and force_spread:
                draw_forces.append(force[1:])
                draw_stresses.append(sigma[1:])
            # Nothing that is kept may keep the activations of a member alive.
            outputs.append(without_graph(output))
            del output, strata, cut, wanted, draws, totals, leaf
        energies = torch.cat([output.atomic_energies for output in outputs])
        energy_noise: list[Tensor | None] = [output.atomic_energies_var for output in outputs]
        force_noise: list[Tensor | None] = [output.forces_cov for output in outputs]
        all_stresses = torch.cat(stresses) if stress else None
        prediction = mix(
            graph,
            self.reference_energies,
            Means(energies.to(torch.float64), torch.cat(forces), all_stresses),
            own_spread(outputs, draw_forces, draw_stresses, stress),
            mean_noise(energy_noise),
            mean_noise(force_noise),
            members,
            distance,
        )
        return self.variance_scaling(graph.atomic_numbers, prediction)

    def distance(self, features: list[Tensor], species: Tensor) -> Tensor | None:
        """√h of every atom, (n_atoms,), float64; None without a leverage."""
        if self.leverage is None:
            return None
        x = invariants(features, self.invariant_starts).detach()
        return torch.sqrt(self.leverage(x, species)).to(torch.float64)

    def divided(self, graph: AtomicGraph) -> tuple[AtomicGraph, list[Part] | None]:
        """The graph, and in which parts to take its edges, which it has in order then.

        None where memory is enough for all of them.
        """
        kept = graph.edge_index.shape[1] * self.numbers_per_edge
        if kept <= self.numbers_at_once:
            return graph, None
        graph = sorted_by_centre(graph)
        size = max(self.numbers_at_once // (8 * self.numbers_per_edge), 1)
        return graph, split_edges(graph.edge_index[0], graph.positions.shape[0], size)


def derivatives(totals: Tensor, leaves: list[Tensor], cell: Tensor) -> tuple[Tensor, Tensor]:
    """Of K sums of energies: forces (K, n_atoms, 3) and stress (K, n_graphs, 3, 3).

    Without a strain among the leaves the second tensor is empty.
    """
    forces: list[Tensor] = []
    stresses: list[Tensor] = []
    for k in range(totals.shape[0]):
        slopes = gradients(totals[k], leaves, False)
        forces.append(-slopes[0])
        if len(leaves) > 1:
            stresses.append(stress_from_strain_gradient(slopes[1], cell))
    stress = torch.stack(stresses) if len(stresses) > 0 else cell[:0]
    return torch.stack(forces), stress


def own_spread(
    outputs: list[MemberOutput], forces: list[Tensor], stresses: list[Tensor], stress: bool
) -> OwnSpread | None:
    """What the members know of their own uncertainty, stacked; None if they know nothing."""
    # With their types, at which TorchScript would have a word to say otherwise.
    directions: list[Tensor | None] = [o.directions for o in outputs]
    independent: list[Tensor | None] = [_first(o.atomic_energies_var_epistemic) for o in outputs]
    covariances: list[Tensor | None] = [_first(o.forces_cov_epistemic) for o in outputs]
    traces: list[Tensor | None] = [_first(o.forces_trace_epistemic) for o in outputs]
    dofs: list[Tensor | None] = [_first(o.forces_dof) for o in outputs]
    draws: list[Tensor | None] = [o.draws for o in outputs]
    all_directions, all_traces = stacked(directions), stacked(traces)
    if all_directions is None and all_traces is None:
        return None
    drawn = len(forces) > 0
    return OwnSpread(
        all_directions,
        stacked(independent),
        stacked(covariances),
        all_traces,
        stacked(dofs),
        stacked(draws),
        torch.stack(forces) if drawn else None,
        torch.stack(stresses) if drawn and stress else None,
    )


def _first(heads: Tensor | None) -> Tensor | None:
    """Of the one head that every potential has."""
    return None if heads is None else heads[0]


def stacked(parts: list[Tensor | None]) -> Tensor | None:
    """Tensors of all members in float64, (S, ...); None where they are unknown."""
    known: list[Tensor] = []
    for part in parts:
        if part is not None:
            known.append(part.detach().to(torch.float64))
    return torch.stack(known) if len(known) > 0 else None


def mean_noise(parts: list[Tensor | None]) -> Tensor | None:
    """Average of the members' (K, ...) noise in float64; None where it is not trained."""
    known = stacked(parts)
    return None if known is None else known.mean(dim=(0, 1))
