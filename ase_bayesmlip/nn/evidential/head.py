"""The head of e²IP: from the features of any backbone to the evidential law of every atom.

Invariants give the scale, the degrees of freedom and the evidence; features that rotate give the
anisotropic part of the covariance, so that it rotates with them (arXiv 2602.10419). The head is a
few matrix products on features that are there anyway.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ase_bayesmlip.nn.angular import Irrep
from ase_bayesmlip.nn.evidential.law import (
    NormalInverseWishart,
    aleatoric_covariance,
    epistemic_deviation,
    initial_raw,
    niw_parameters,
    predictive_dof,
)
from ase_bayesmlip.nn.evidential.leverage import EVIDENCE_CAP, LeverageEvidence
from ase_bayesmlip.nn.evidential.tensor_source import (
    NoTensor,
    TensorMix,
    VectorProductTensor,
    directed_irrep,
    joined,
    starts_of,
)
from ase_bayesmlip.nn.heads import energy_variance
from ase_bayesmlip.nn.radial import DenseNetwork
from ase_bayesmlip.prediction import MemberOutput

# Raw channels: s, ν, κ of the forces, then ln σ² and δ of the energy.
N_RAW = 5
HIDDEN, RANK = 32, 16
INITIAL_DOF = 10.0
# softplus(-4) = 0.018: coherent errors start below independent ones up to some hundred atoms.
INITIAL_COHERENT = -4.0


class Evidence(NamedTuple):
    """Laws of the errors of n atoms.

    Attributes
    ----------
    niw : NormalInverseWishart
        Of the forces.
    unit_squared : Tensor, (), (eV/Å)²
        σ_F², the unit of `niw`.
    energy_scale : Tensor, (n,), eV²
        s² of the normal-inverse-gamma law of each atom's energy, which shares ν and κ.
    coherent : Tensor, (n,), eV
        δ ≥ 0, the error that atoms have in common: Cov(ε_i, ε_j) = δ_i δ_j.
    """

    niw: NormalInverseWishart
    unit_squared: Tensor
    energy_scale: Tensor
    coherent: Tensor


class EvidentialHead(nn.Module):
    """Features of all layers to the `Evidence` of every atom.

    Parameters
    ----------
    irreps : list of list of Irrep
        Of the features after each layer.
    channels, n_species : int
    anisotropic : bool
        Whether covariances have a part from features that rotate.
    coupling : float or None
        See `niw_parameters`; None for the evidence of `LeverageEvidence`.

    Raises
    ------
    ValueError
        If `anisotropic` and no features rotate.
    """

    has_energy_noise = True
    n_tensor_scalars = 0

    def __init__(
        self,
        irreps: list[list[Irrep]],
        channels: int,
        n_species: int,
        anisotropic: bool,
        coupling: float | None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.coupling = coupling or 0.0
        n_features = channels * len(irreps)
        self.given = LeverageEvidence(n_species, n_features) if coupling is None else None
        n_raw = N_RAW + self.n_tensor_scalars
        self.invariant_starts = starts_of(irreps, Irrep(0, 1))
        self.network = DenseNetwork([n_features, HIDDEN, n_raw], generator)
        with torch.no_grad():  # the likelihood starts from the measured errors exactly
            self.network.weights[-1].zero_()
        bias = torch.zeros(n_raw, dtype=torch.float64)
        bias[:N_RAW] = torch.tensor(_initial_bias(coupling), dtype=torch.float64)
        self.bias = nn.Parameter(bias.repeat(n_species, 1))
        irrep = directed_irrep(irreps)
        if anisotropic and irrep is None:
            raise ValueError(
                "covariance 'spd' of an evidential potential is read from vectors or 2e features, "
                "but no layer has any that the energy reads; add 1o to hidden_irreps and use two "
                "layers or more, or choose covariance 'iso'"
            )
        self.n_components = 0 if irrep is None else irrep.dim
        self.directed_starts = [-1] * len(irreps) if irrep is None else starts_of(irreps, irrep)
        n_directed = channels * sum(start >= 0 for start in self.directed_starts)
        self.source: nn.Module = NoTensor()
        if anisotropic:
            kind = TensorMix if self.n_components == 5 else VectorProductTensor
            self.source = kind(n_directed, RANK, generator, size=0.0)
        gates = torch.randn(HIDDEN, RANK, generator=generator, dtype=torch.float64)
        self.gates = nn.Parameter(gates / math.sqrt(HIDDEN))

    def forward(
        self, features: list[Tensor], species: Tensor, force_scale: Tensor, energy_scale: Tensor
    ) -> Evidence:
        """The laws of n atoms from the features of all layers, each (n, components, channels).

        Species are one-hot, (n, n_species); the scales, in (eV/Å)² and eV², are the units of the
        raw channels.
        """
        invariants = joined(features, self.invariant_starts, 1)[:, 0]
        given: Tensor | None = None
        if self.given is not None:
            given = self.given(invariants, species)
        raw, hidden = self.network.with_basis(invariants)
        raw = raw + species @ self.bias
        tensor = self.tensor(raw, hidden, features)
        return Evidence(
            niw_parameters(raw[:, :3], tensor, self.coupling, given),
            force_scale,
            energy_variance(raw[:, 3], energy_scale),
            torch.sqrt(energy_scale) * functional.softplus(raw[:, 4]),
        )

    def tensor(self, raw: Tensor, hidden: Tensor, features: list[Tensor]) -> Tensor:  # noqa: ARG002
        """2e components of the logarithm of the scale, (n, 5) or (n, 0)."""
        directed = joined(features, self.directed_starts, self.n_components)
        return self.source(directed, torch.sigmoid(hidden @ self.gates))  # type: ignore[no-any-return]

    def output(self, energies: Tensor, evidence: Evidence, lazy: bool) -> MemberOutput:
        """Moments of the laws beside energies, (n,), eV: aleatoric and epistemic parts.

        A `lazy` call leaves out the covariances of the forces; the epistemic trace needs none.
        """
        niw = evidence.niw
        energy_noise = niw.dof / (niw.dof - 2.0) * evidence.energy_scale
        deviation = epistemic_deviation(niw, evidence.unit_squared)
        noise: Tensor | None = None
        epistemic: Tensor | None = None
        if not lazy:
            covariance = aleatoric_covariance(niw, evidence.unit_squared)
            noise = covariance.unsqueeze(0)
            epistemic = (covariance / niw.evidence.view(-1, 1, 1)).unsqueeze(0)
        return MemberOutput(
            energies.unsqueeze(0),
            energy_noise.unsqueeze(0),
            noise,
            directions=evidence.coherent.unsqueeze(0),
            atomic_energies_var_epistemic=(energy_noise / niw.evidence).unsqueeze(0),
            forces_cov_epistemic=epistemic,
            forces_trace_epistemic=(3.0 * deviation * deviation).unsqueeze(0),
            forces_dof=predictive_dof(niw).unsqueeze(0),
        )


def _initial_bias(coupling: float | None) -> list[float]:
    """Raw channels whose total variances are one in the units of forces and energies."""
    given = EVIDENCE_CAP if coupling is None else None
    evidence = given or (INITIAL_DOF / coupling if coupling else 1.0)
    inflation = INITIAL_DOF / (INITIAL_DOF - 2.0) * (1.0 + 1.0 / evidence)
    return [
        *initial_raw(INITIAL_DOF, coupling or 0.0, given),
        -math.log(inflation),
        INITIAL_COHERENT,
    ]
