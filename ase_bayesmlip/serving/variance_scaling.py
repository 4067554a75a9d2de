"""Calibrated variances inside the served program: buffers, and one function that applies them.

A multiple of a symmetric, positive semi-definite and equivariant matrix is one again, and means
are not touched.
"""

from typing import Any

import torch
from ase.data import atomic_numbers as numbers_by_symbol
from ase.data import chemical_symbols
from torch import Tensor, nn

from ase_bayesmlip.calibration.scaling import Factors
from ase_bayesmlip.card import ModelCard
from ase_bayesmlip.nn.potential import MAX_ATOMIC_NUMBER
from ase_bayesmlip.prediction import Prediction


class VarianceScaling(nn.Module):
    """Factors of the variances of a prediction, all one until a file is calibrated.

    Attributes
    ----------
    forces : Tensor of float64, (2, 119)
        Of the epistemic and the aleatoric covariance of an atom's force, by atomic number.
    energy : Tensor of float64, (2,)
        Of the epistemic and the aleatoric variance of energies.
    stress : Tensor of float64, (1,)
        Of the epistemic covariance of the stress.
    """

    forces: Tensor
    energy: Tensor
    stress: Tensor

    def __init__(self) -> None:
        super().__init__()
        shape = (2, MAX_ATOMIC_NUMBER + 1)
        self.register_buffer("forces", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("energy", torch.ones(2, dtype=torch.float64))
        self.register_buffer("stress", torch.ones(1, dtype=torch.float64))

    def forward(self, atomic_numbers: Tensor, prediction: Prediction) -> Prediction:
        """Multiply the variances of a prediction for these atoms, (n_atoms,)."""
        of_atoms = self.forces.index_select(1, atomic_numbers)
        return calibrated(prediction, of_atoms, self.energy, self.stress)


def total_factors(card: ModelCard) -> Factors:
    """All recalibrations of a file one after the other, relative to its posterior as trained."""
    ones = {chemical_symbols[z]: 1.0 for z in card.atomic_numbers}
    total = Factors(dict(ones), dict(ones))
    for record in card.recalibrations:
        total = total * Factors.from_dict(record["factors"])
    return total


def set_factors(scaling: Any, factors: Factors) -> None:
    """Write factors into the buffers of a `VarianceScaling`, scripted or not."""
    for row, by_symbol in enumerate((factors.forces_epistemic, factors.forces_aleatoric)):
        for symbol, factor in by_symbol.items():
            scaling.forces[row, numbers_by_symbol[symbol]] = factor
    scaling.energy[0] = factors.energy_epistemic
    scaling.energy[1] = factors.energy_aleatoric
    scaling.stress[0] = factors.stress_epistemic


def calibrated(
    prediction: Prediction, forces: Tensor, energy: Tensor, stress: Tensor
) -> Prediction:
    """A prediction with variances times (2, n_atoms), (2,) and (1,), the epistemic one first.

    Samples move about their mean with the root of the factor, so that their spread stays the
    epistemic variance (Imbalzano et al., doi:10.1063/5.0036522). Where the factors of energy and
    forces differ, the forces of one sample are then no derivative of its energy.
    """
    p = prediction
    stress_members = p.stress_members
    mean_stress = p.stress
    if stress_members is not None and mean_stress is not None:
        stress_members = about_mean(stress_members, mean_stress, stress)
    return Prediction(
        energy=p.energy,
        atomic_energies=p.atomic_energies,
        forces=p.forces,
        stress=p.stress,
        energy_var_epistemic=times(p.energy_var_epistemic, energy[0]),
        energy_var_aleatoric=times(p.energy_var_aleatoric, energy[1]),
        atomic_energies_var_epistemic=times(p.atomic_energies_var_epistemic, energy[0]),
        atomic_energies_var_aleatoric=times(p.atomic_energies_var_aleatoric, energy[1]),
        forces_cov_epistemic=times(p.forces_cov_epistemic, forces[0].view(-1, 1, 1)),
        forces_cov_aleatoric=times(p.forces_cov_aleatoric, forces[1].view(-1, 1, 1)),
        stress_cov_epistemic=times(p.stress_cov_epistemic, stress),
        energy_members=about_mean(p.energy_members, p.energy, energy[0]),
        forces_members=about_mean(p.forces_members, p.forces, forces[0].view(-1, 1)),
        stress_members=stress_members,
        forces_trace_epistemic=times(p.forces_trace_epistemic, forces[0]),
        # Of the Student-t law of that covariance: its shape, which no factor changes.
        forces_dof=p.forces_dof,
        energy_shares=scaled_shares(p.energy_shares, p.atomic_energies_var_aleatoric, energy),
        feature_distance=p.feature_distance,
    )


def scaled_shares(shares: Tensor | None, noise: Tensor | None, factors: Tensor) -> Tensor | None:
    """Shares of atoms in the total variance of the energy, of which the noise is one part."""
    if shares is None:
        return None
    if noise is None:
        return shares * factors[0]
    # The difference of the factors: with equal ones nothing is subtracted and added again.
    return shares * factors[0] + noise * (factors[1] - factors[0])


def times(variance: Tensor | None, factor: Tensor) -> Tensor | None:
    """A variance that may be unknown, multiplied."""
    if variance is None:
        return None
    return variance * factor


def about_mean(samples: Tensor | None, mean: Tensor, factor: Tensor) -> Tensor | None:
    """Samples with a multiplied variance about the mean; by 1, the same to the bit."""
    if samples is None:
        return None
    return (samples + (torch.sqrt(factor) - 1.0) * (samples - mean)).to(samples.dtype)
