"""A potential whose readout of the energy is uncertain: w ~ N(w̄, L Lᵀ) in its last layer.

Energies are linear in w, e_i = φ_i · w, so everything follows without another network:

    Var(e_i) = |φ_i L|²,   Var(E) = |Σ_i φ_i L|²,   Cov(F_i) = J_i L Lᵀ J_iᵀ with J_i = -∂Φ/∂r_i.

The first two are in closed form. The third needs one derivative per column of L, or an average
over a few drawn combinations of the columns.

By element, w holds P weights for each of them and φ_i stands in the block of the element of atom i,
zeros elsewhere (`by_element`): all of the above holds as it is.
"""

import torch
from torch import Tensor, nn

from ase_bayesmlip.graph import AtomicGraph, Part
from ase_bayesmlip.nn.cut import Cut
from ase_bayesmlip.nn.potential import Potential, Strata
from ase_bayesmlip.prediction import MemberOutput, sum_of_known


class LastLayerPotential(nn.Module):
    """`Potential` with a Gaussian over its `readout_weights`.

    Parameters
    ----------
    potential : Potential
        With the mean weights, but for `shift`.
    factor : Tensor, (P, R), or by element (n_species · P, R)
        L.
    draws : Tensor, (P, D) or (n_species · P, D)
        Deviations of the weights whose average outer product stands for L Lᵀ in the forces.
    shift : Tensor, (P,) or (n_species · P,), optional
        What the mean weights are beside those of the potential: elements may differ.
    """

    factor: Tensor
    deviations: Tensor
    shift: Tensor

    def __init__(
        self, potential: Potential, factor: Tensor, draws: Tensor, shift: Tensor | None = None
    ) -> None:
        super().__init__()
        self.potential = potential
        self.has_energy_noise = potential.has_energy_noise
        self.has_force_noise = potential.has_force_noise
        self.numbers_per_edge = potential.numbers_per_edge
        self.register_buffer("factor", factor)
        self.register_buffer("deviations", draws)
        self.register_buffer("shift", torch.zeros_like(factor[:, 0]) if shift is None else shift)

    def forward(self, graph: AtomicGraph, lazy: bool = False) -> MemberOutput:
        """Output of the potential, with `directions` and `draws`."""
        return self.output(self.strata(graph), graph, lazy)

    def strata(self, graph: AtomicGraph, parts: list[Part] | None = None) -> Strata:
        """Those of the potential."""
        return self.potential.strata(graph, parts)

    def output(
        self,
        strata: Strata,
        graph: AtomicGraph,
        lazy: bool = False,  # noqa: ARG002 (matrices of a law are noise here, always wanted)
    ) -> MemberOutput:
        """What the strata of a graph mean."""
        output = self.potential.output(strata, graph)
        basis = strata.basis
        if self.factor.shape[0] > basis.shape[1]:
            basis = by_element(basis, strata.species)
        return with_uncertain_readout(output, basis, self.factor, self.deviations, self.shift)

    def rejoined(self, energies: Tensor, cut: Cut) -> Tensor:
        """See `Potential.rejoined`."""
        return self.potential.rejoined(energies, cut)


def by_element(basis: Tensor, species: Tensor) -> Tensor:
    """(..., n_atoms, P) in the block of each atom's element, (..., n_atoms, n_species · P)."""
    return (species.unsqueeze(2) * basis.unsqueeze(-2)).flatten(-2)


def with_uncertain_readout(
    output: MemberOutput, basis: Tensor, factor: Tensor, deviations: Tensor, shift: Tensor
) -> MemberOutput:
    """An output of one potential with `directions` and `draws` of its last layer."""
    energy_noise, force_noise = all_as_noise(output)
    energies = output.atomic_energies + (basis @ shift).unsqueeze(0)
    directions = (basis @ factor).transpose(0, 1)
    coherent = output.directions
    if coherent is not None:
        directions = torch.cat([directions, coherent])
    draws = (basis @ deviations).transpose(0, 1)
    return MemberOutput(energies, energy_noise, force_noise, directions, draws)


def all_as_noise(output: MemberOutput) -> tuple[Tensor | None, Tensor | None]:
    """Variance of atomic energies and covariance of forces, both parts of an evidential law.

    How an evidential potential divides its uncertainty is a convention, and beside an epistemic
    part that is none all of it counts as noise, but for what the errors of atoms have in common.
    """
    energies = sum_of_known(output.atomic_energies_var, output.atomic_energies_var_epistemic)
    return energies, sum_of_known(output.forces_cov, output.forces_cov_epistemic)
