"""Uncertainty of energies beside evidential forces.

Pure functions of tensors that script. Sums over atoms are taken in float64.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ase_bayesmlip.graph import sum_by_graph
from ase_bayesmlip.nn.evidential.law import NormalInverseWishart
from ase_bayesmlip.statistics import univariate_student_t_nll


class EnergyStudentT(NamedTuple):
    """Student-t law of the energies of structures from laws of independent atoms, float64.

    Attributes
    ----------
    variance : Tensor, (n_graphs,), eV²
    dof : Tensor, (n_graphs,)
        η > 4. The scale squared of the law is `variance` (η - 2)/η.
    """

    variance: Tensor
    dof: Tensor


def evidential_energy(
    scale_squared: Tensor,
    niw: NormalInverseWishart,
    batch: Tensor,
    n_graphs: int,
    coherent: Tensor | None = None,
) -> EnergyStudentT:
    """Law of the energy if each atom's has a normal-inverse-gamma law with the ν, κ of its force.

    In one dimension E[σ²] = ν/(ν - 2) s² and Var[μ] = E[σ²]/κ, and the atom's energy follows a
    Student-t with ν degrees of freedom. A sum of them is none, but nearly the one that matches its
    second and fourth moment: the fourth cumulant of a Student-t is 6 v²/(η - 4).

    Parameters
    ----------
    scale_squared : Tensor, (n,), eV²
        s².
    niw : NormalInverseWishart
        ν > 4, for a fourth moment to exist.
    coherent : Tensor or None, (n,), eV
        δ of a Gaussian error that atoms have in common, Cov(εᵢ, εⱼ) = δᵢ δⱼ: it adds (Σ δ)² to the
        variance. With δ = 0 the error per atom falls as N^-1/2, which is too optimistic for errors
        that atoms share.
    """
    dof, evidence = niw.dof.to(torch.float64), niw.evidence.to(torch.float64)
    aleatoric = dof / (dof - 2.0) * scale_squared.to(torch.float64)
    each = aleatoric + aleatoric / evidence
    variance = sum_by_graph(each, batch, n_graphs)
    if coherent is not None:
        common = sum_by_graph(coherent, batch, n_graphs)
        variance = variance + common * common
    fourth = sum_by_graph(each * each / (dof - 4.0), batch, n_graphs)
    return EnergyStudentT(variance, 4.0 + variance * variance / fourth)


def energy_student_t_nll(residual: Tensor, variance: Tensor, dof: Tensor) -> Tensor:
    """-log p of energy errors, (n_graphs,), nats: a Student-t of given variance, eV², and η > 2."""
    return univariate_student_t_nll(residual, variance * (dof - 2.0) / dof, dof)
