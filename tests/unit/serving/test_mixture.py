"""Variances of energies and their shares against the dense covariance of the atoms' energies."""

import pytest
import torch
from tiny import randn

from ase_bayesmlip.graph import AtomicGraph
from ase_bayesmlip.serving.mixture import Means, OwnSpread, mix

BATCH = torch.tensor([0] * 4 + [1] * 1 + [2] * 7)
N, N_GRAPHS = len(BATCH), 3


def graph_of_energies():
    """Structures without edges."""
    return AtomicGraph(
        positions=randn(N, 3),
        atomic_numbers=torch.ones(N, dtype=torch.int64),
        cell=torch.zeros(N_GRAPHS, 3, 3, dtype=torch.float64),
        edge_index=torch.zeros(2, 0, dtype=torch.int64),
        edge_shift=torch.zeros(0, 3, dtype=torch.float64),
        batch=BATCH,
        n_graphs=N_GRAPHS,
    )


def mixture(n_samples, directions, independent, noise):
    """Prediction of a mixture of which energies alone matter."""
    graph = graph_of_energies()
    means = Means(randn(n_samples, N, seed=1), randn(n_samples, N, 3, seed=2), None)
    own = None
    if directions is not None:
        own = OwnSpread(directions, independent)
    return means, mix(graph, torch.zeros(119).double(), means, own, noise, None, False)


@pytest.mark.parametrize("n_samples", [1, 3])
@pytest.mark.parametrize("with_own", [True, False])
@pytest.mark.parametrize("with_noise", [True, False])
def test_shares_are_the_rows_of_the_covariance_of_atoms(n_samples, with_own, with_noise):
    if n_samples == 1 and not with_own and not with_noise:
        pytest.skip("one sample that knows nothing of itself has no variance")
    directions = randn(n_samples, 2, N, seed=3) if with_own else None
    independent = randn(n_samples, N, seed=4).exp() if with_own else None
    noise = randn(N, seed=5).exp() if with_noise else None
    means, found = mixture(n_samples, directions, independent, noise)
    epistemic = torch.zeros(N, N, dtype=torch.float64)
    if n_samples > 1:
        epistemic += torch.cov(means.energies.T)
    if with_own:
        epistemic += torch.einsum("sri,srj->ij", directions, directions) / n_samples
        epistemic += torch.diag(independent.mean(dim=0))
    total = epistemic if noise is None else epistemic + torch.diag(noise)
    for graph in range(N_GRAPHS):
        mask = torch.eq(BATCH, graph)
        block = total[mask][:, mask]
        torch.testing.assert_close(found.energy_shares[mask], block.sum(1), rtol=1e-12, atol=1e-12)
        if n_samples > 1 or with_own:
            own = epistemic[mask][:, mask]
            torch.testing.assert_close(found.energy_var_epistemic[graph], own.sum())
            diagonal = found.atomic_energies_var_epistemic[mask]
            torch.testing.assert_close(diagonal, own.diagonal())
        variance = torch.zeros(1, dtype=torch.float64)
        for part in (found.energy_var_epistemic, found.energy_var_aleatoric):
            variance = variance if part is None else variance + part[graph]
        torch.testing.assert_close(variance[0], found.energy_shares[mask].sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("n_samples", [1, 2])
def test_a_mixture_of_student_t_laws_is_none(n_samples):
    """Degrees of freedom are those of one network; those of several have no common law."""
    graph = graph_of_energies()
    means = Means(randn(n_samples, N), randn(n_samples, N, 3), None)
    dof = 5.0 + randn(n_samples, N).exp()
    trace = randn(n_samples, N, seed=1).exp()
    own = OwnSpread(None, None, None, trace, dof, None, None, None)
    found = mix(graph, torch.zeros(119).double(), means, own, None, None, False)
    if n_samples == 1:
        assert torch.equal(found.forces_dof, dof[0])
        assert torch.equal(found.forces_trace_epistemic, trace[0])
    else:
        assert found.forces_dof is None
        assert found.forces_trace_epistemic is None
