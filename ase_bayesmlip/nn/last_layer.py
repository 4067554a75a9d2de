"""A potential whose readout of the energy is uncertain: w ~ N(w̄, L Lᵀ) in its last layer.

Energies are linear in w, e_i = φ_i · w, so everything follows without another network:

    Var(e_i) = |φ_i L|²,   Var(E) = |Σ_i φ_i L|²,   Cov(F_i) = J_i L Lᵀ J_iᵀ with J_i = -∂Φ/∂r_i.

The first two are in closed form. The third needs one derivative per column of L, or an average
over a few drawn combinations of the columns.
"""

from torch import Tensor, nn

from ase_bayesmlip.graph import AtomicGraph
from ase_bayesmlip.nn.potential import Potential
from ase_bayesmlip.prediction import MemberOutput


class LastLayerPotential(nn.Module):
    """`Potential` with a Gaussian over its `readout_weights`.

    Parameters
    ----------
    potential : Potential
        With the mean weights.
    factor : Tensor, (P, R)
        L.
    draws : Tensor, (P, D)
        Deviations of the weights whose average outer product stands for L Lᵀ in the forces.
    """

    factor: Tensor
    deviations: Tensor

    def __init__(self, potential: Potential, factor: Tensor, draws: Tensor) -> None:
        super().__init__()
        self.potential = potential
        self.has_energy_noise = potential.has_energy_noise
        self.covariance = potential.covariance
        self.register_buffer("factor", factor)
        self.register_buffer("deviations", draws)

    def forward(self, graph: AtomicGraph) -> MemberOutput:
        """Output of the potential, with `directions` and `draws`."""
        output, basis = self.potential.with_basis(graph)
        return MemberOutput(
            output.atomic_energies,
            output.atomic_energies_var,
            output.forces_cov,
            (basis @ self.factor).transpose(0, 1),
            (basis @ self.deviations).transpose(0, 1),
        )
