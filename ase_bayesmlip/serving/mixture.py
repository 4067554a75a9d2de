"""The law of total variance over posterior samples.

    mean = ⟨μ_s⟩,   Σ_epistemic = cov_s(μ_s) + ⟨Σ_s,own⟩,   Σ_aleatoric = ⟨Σ_s⟩

The spread over samples divides by S - 1. A sample may also know an epistemic part of its own (a
Laplace approximation inside it), whose draws have a known mean and divide by their number.

A pure function that both backends share; it scripts.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ase_bayesmlip.graph import AtomicGraph, sum_by_graph
from ase_bayesmlip.prediction import Prediction, sum_of_known, to_voigt
from ase_bayesmlip.statistics import sample_covariance, sample_variance


class Means(NamedTuple):
    """What each of S samples predicts.

    Attributes
    ----------
    energies : Tensor of float64, (S, n_atoms), eV, interaction energies
    forces : Tensor, (S, n_atoms, 3), eV/Å
    stresses : Tensor or None, (S, n_graphs, 3, 3), eV/Å³
    """

    energies: Tensor
    forces: Tensor
    stresses: Tensor | None


class OwnSpread(NamedTuple):
    """The epistemic uncertainty that each of S samples has of its own, see `MemberOutput`.

    Fields are None where the samples do not know them, or were not asked.

    Attributes
    ----------
    directions : Tensor of float64 or None, (S, R, n_atoms), eV
    independent : Tensor of float64 or None, (S, n_atoms), eV²
    forces_cov : Tensor of float64 or None, (S, n_atoms, 3, 3), (eV/Å)²
    forces_trace : Tensor of float64 or None, (S, n_atoms), (eV/Å)²
    forces_dof : Tensor of float64 or None, (S, n_atoms)
    draw_energies : Tensor of float64 or None, (S, D, n_atoms), eV
        Drawn deviations.
    draw_forces : Tensor or None, (S, D, n_atoms, 3), eV/Å
    draw_stresses : Tensor or None, (S, D, n_graphs, 3, 3), eV/Å³
    """

    directions: Tensor | None = None
    independent: Tensor | None = None
    forces_cov: Tensor | None = None
    forces_trace: Tensor | None = None
    forces_dof: Tensor | None = None
    draw_energies: Tensor | None = None
    draw_forces: Tensor | None = None
    draw_stresses: Tensor | None = None


class Spread(NamedTuple):
    """Epistemic moments under the names of `Prediction`; None where unknown."""

    energy_var: Tensor | None = None
    atomic_energies_var: Tensor | None = None
    energy_shares: Tensor | None = None
    forces_cov: Tensor | None = None
    stress_cov: Tensor | None = None
    forces_trace: Tensor | None = None


def mix(
    graph: AtomicGraph,
    reference_energies: Tensor,
    means: Means,
    own: OwnSpread | None,
    atomic_noise: Tensor | None,
    force_noise: Tensor | None,
    members: bool,
    feature_distance: Tensor | None = None,
) -> Prediction:
    """Moments of the mixture from what each of S samples says.

    Parameters
    ----------
    reference_energies : Tensor of float64, (119,), eV, by atomic number
    atomic_noise : Tensor of float64 or None, (n_atoms,), eV², averaged over samples
    force_noise : Tensor of float64 or None, (n_atoms, 3, 3), (eV/Å)², averaged over samples
    members : bool
        Whether to return each sample's energies, forces and stress.
    feature_distance : Tensor of float64 or None, (n_atoms,)
    """
    reference = reference_energies.index_select(0, graph.atomic_numbers)
    total = sum_by_graph(means.energies, graph.batch, graph.n_graphs)
    offset = sum_by_graph(reference, graph.batch, graph.n_graphs)
    spread = _between(graph, total, means)
    dof: Tensor | None = None
    if own is not None:
        dof = own.forces_dof
        if dof is not None:
            # A mixture of several laws is no Student-t.
            dof = dof[0] if means.energies.shape[0] < 2 else None
        own_spread = _own_moments(graph, own)
        # Without one of its parts a sum would be too small, so it is then unknown as a whole.
        spread = own_spread if means.energies.shape[0] < 2 else _added(spread, own_spread)
    stresses = means.stresses
    energy_members: Tensor | None = None
    force_members: Tensor | None = None
    stress_members: Tensor | None = None
    if members:
        energy_members, force_members, stress_members = _samples(graph, total, means, own)
        energy_members = energy_members + offset
    return Prediction(
        energy=total.mean(dim=0) + offset,
        atomic_energies=means.energies.mean(dim=0) + reference,
        forces=means.forces.mean(dim=0),
        stress=None if stresses is None else stresses.mean(dim=0),
        energy_var_epistemic=spread.energy_var,
        energy_var_aleatoric=None
        if atomic_noise is None
        else sum_by_graph(atomic_noise, graph.batch, graph.n_graphs),
        atomic_energies_var_epistemic=spread.atomic_energies_var,
        atomic_energies_var_aleatoric=atomic_noise,
        forces_cov_epistemic=spread.forces_cov,
        forces_cov_aleatoric=force_noise,
        stress_cov_epistemic=spread.stress_cov,
        energy_members=energy_members,
        forces_members=force_members,
        stress_members=stress_members,
        forces_trace_epistemic=spread.forces_trace,
        forces_dof=dof,
        energy_shares=sum_of_known(spread.energy_shares, atomic_noise),
        feature_distance=feature_distance,
    )


def _between(graph: AtomicGraph, total: Tensor, means: Means) -> Spread:
    """Spread of the samples' means; nothing is known of it from one sample."""
    if total.shape[0] < 2:
        return Spread()
    stresses = means.stresses
    deviation = (total - total.mean(dim=0)).index_select(1, graph.batch)
    shares = (means.energies * deviation).sum(dim=0) / (total.shape[0] - 1)
    return Spread(
        sample_variance(total),
        sample_variance(means.energies),
        shares,
        sample_covariance(means.forces),
        None if stresses is None else sample_covariance(to_voigt(stresses)),
    )


def _own_moments(graph: AtomicGraph, own: OwnSpread) -> Spread:
    """Averages of the samples' own moments."""
    energy_var: Tensor | None = None
    atomic_var: Tensor | None = None
    shares: Tensor | None = None
    directions, independent = own.directions, own.independent
    if directions is not None:
        n_samples = directions.shape[0]
        sums = sum_by_graph(directions, graph.batch, graph.n_graphs)
        energy_var = (sums * sums).sum(dim=(0, 1)) / n_samples
        atomic_var = (directions * directions).sum(dim=(0, 1)) / n_samples
        shares = (directions * sums.index_select(2, graph.batch)).sum(dim=(0, 1)) / n_samples
        if independent is not None:
            mean = independent.mean(dim=0)
            energy_var = energy_var + sum_by_graph(mean, graph.batch, graph.n_graphs)
            atomic_var, shares = atomic_var + mean, shares + mean
    trace, forces, stresses = own.forces_trace, own.draw_forces, own.draw_stresses
    forces_cov = own.forces_cov
    if forces_cov is not None:
        forces_cov = forces_cov.mean(dim=0)
    if forces is not None:
        forces_cov = _second_moment(forces)
    return Spread(
        energy_var,
        atomic_var,
        shares,
        forces_cov,
        None if stresses is None else _second_moment(to_voigt(stresses)),
        None if trace is None else trace.mean(dim=0),
    )


def _added(one: Spread, other: Spread) -> Spread:
    return Spread(
        _sum_if_both_known(one.energy_var, other.energy_var),
        _sum_if_both_known(one.atomic_energies_var, other.atomic_energies_var),
        _sum_if_both_known(one.energy_shares, other.energy_shares),
        _sum_if_both_known(one.forces_cov, other.forces_cov),
        _sum_if_both_known(one.stress_cov, other.stress_cov),
    )


def _sum_if_both_known(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return None
    return one + other


def _second_moment(deviations: Tensor) -> Tensor:
    """Mean outer product of (S, D, ..., d) deviations from a known mean: (..., d, d), float64."""
    flat = deviations.flatten(0, 1).to(torch.float64)
    return torch.einsum("s...a,s...b->...ab", flat, flat) / flat.shape[0]


def _samples(
    graph: AtomicGraph, total: Tensor, means: Means, own: OwnSpread | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Energies, forces and stress of every sample, and of every draw where samples have draws."""
    forces, stresses = means.forces, means.stresses
    if own is None:
        return total, forces, stresses
    draws = own.draw_energies
    if draws is None:
        return total, forces, stresses
    drawn = sum_by_graph(draws, graph.batch, graph.n_graphs)
    energies = (total.unsqueeze(1) + drawn).flatten(0, 1)
    force_deviations, stress_deviations = own.draw_forces, own.draw_stresses
    if force_deviations is not None:
        forces = (forces.unsqueeze(1) + force_deviations).flatten(0, 1)
    if stresses is not None and stress_deviations is not None:
        stresses = (stresses.unsqueeze(1) + stress_deviations).flatten(0, 1)
    return energies, forces, stresses
