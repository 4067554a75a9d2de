"""Energies beside evidential forces: closed forms, scipy's laws, Monte Carlo."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import randn

from ase_bayesmlip.nn.evidential.energies import (
    energy_student_t_nll,
    evidential_energy,
)
from ase_bayesmlip.nn.evidential.law import NormalInverseWishart, niw_parameters

BATCH = torch.tensor([0] * 4 + [1] * 1 + [2] * 7)


def niw_of(dof: torch.Tensor, evidence: torch.Tensor) -> NormalInverseWishart:
    zeros = torch.zeros_like(dof)
    return NormalInverseWishart(zeros, zeros.view(-1, 1).expand(-1, 5), dof, evidence)


def same_atoms(n: int, dof: float, evidence: float) -> NormalInverseWishart:
    ones = torch.ones(n, dtype=torch.float64)
    return niw_of(dof * ones, evidence * ones)


# --- energies ------------------------------------------------------------------------------------


def test_independent_errors_grow_with_the_root_and_coherent_ones_with_the_number():
    """A covariance of atoms with a diagonal and one direction, summed over each structure."""
    niw, sigma, delta = same_atoms(12, 7.0, 0.5), randn(12).exp(), randn(12, seed=1).exp()
    found = evidential_energy(sigma**2, niw, BATCH, 3, delta)
    each = 7.0 / 5.0 * 3.0 * sigma**2  # ν/(ν - 2) (1 + 1/κ) s²
    covariance = torch.diag(each) + torch.outer(delta, delta)
    for graph in range(3):
        mask = torch.eq(BATCH, graph)
        block = covariance[mask][:, mask]
        torch.testing.assert_close(found.variance[graph], block.sum(), rtol=1e-12, atol=0.0)
    ones, tiny = torch.ones(12, dtype=torch.float64), 1e-200 * torch.ones(12, dtype=torch.float64)
    number = torch.tensor([4.0, 1.0, 7.0], dtype=torch.float64)
    alone = evidential_energy(ones, niw, BATCH, 3)
    torch.testing.assert_close(alone.variance, 4.2 * number, rtol=1e-12, atol=0.0)
    together = evidential_energy(tiny, niw, BATCH, 3, ones)
    torch.testing.assert_close(together.variance, number**2, rtol=1e-12, atol=0.0)


def test_law_of_one_atom_and_of_equal_atoms_in_closed_form():
    for n in (1, 2, 9):
        niw, scale = same_atoms(n, 7.0, 0.5), torch.full((n,), 0.2, dtype=torch.float64)
        found = evidential_energy(scale, niw, torch.zeros(n, dtype=torch.int64), 1)
        assert float(found.variance) == pytest.approx(n * 3.0 * 7.0 / 5.0 * 0.2, rel=1e-12)
        assert float(found.dof) == pytest.approx(4.0 + n * 3.0, rel=1e-12)


def test_law_matches_the_second_and_fourth_moment_of_a_sum():
    """Cumulants of independent variables add up; scipy has those of a Student-t."""
    dof, evidence, scale = 5.0 + randn(12).exp(), randn(12, seed=1).exp(), randn(12, seed=2).exp()
    found = evidential_energy(scale, niw_of(dof, evidence), BATCH, 3)
    a = torch.sqrt((1.0 + 1.0 / evidence) * scale).numpy()
    variance = stats.t.var(dof.numpy(), scale=a)
    kurtosis = stats.t.stats(dof.numpy(), moments="k")
    for graph in range(3):
        mask = torch.eq(BATCH, graph).numpy()
        second, fourth = variance[mask].sum(), (kurtosis * variance**2)[mask].sum()
        assert float(found.variance[graph]) == pytest.approx(second, rel=1e-12)
        matched = stats.t.stats(float(found.dof[graph]), moments="k") * second**2
        assert matched == pytest.approx(fourth, rel=1e-10)


@pytest.mark.parametrize("n_atoms", [1, 5])
def test_far_quantiles_of_the_matched_law(n_atoms):
    """Coverage of the 99.9 % interval: that of a Gaussian of the same variance is worse."""
    n, generator = 200000, np.random.default_rng(n_atoms)
    niw, scale = same_atoms(n_atoms, 6.0, 1.0), torch.ones(n_atoms, dtype=torch.float64)
    found = evidential_energy(scale, niw, torch.zeros(n_atoms, dtype=torch.int64), 1)
    draws = math.sqrt(2.0) * stats.t.rvs(6.0, size=(n, n_atoms), random_state=generator).sum(1)
    variance, dof = float(found.variance), float(found.dof)
    limit = stats.t.ppf(0.9995, dof, scale=math.sqrt(variance * (dof - 2.0) / dof))
    coverage = (np.abs(draws) < limit).mean()
    gaussian = (np.abs(draws) < stats.norm.ppf(0.9995, scale=math.sqrt(variance))).mean()
    error = math.sqrt(0.001 * 0.999 / n)
    # One atom is exact; for a sum two moments leave a few parts in ten thousand.
    assert abs(coverage - 0.999) < 4.0 * error + (0.0 if n_atoms == 1 else 4e-4)
    assert abs(gaussian - 0.999) > 2.0 * abs(coverage - 0.999)


@pytest.mark.parametrize("dof", [4.5, 10.0, 41.0, 1e3, 1e6])
def test_energy_likelihood_is_that_of_scipy(dof):
    residual, variance = randn(20), randn(20, seed=1).exp()
    found = energy_student_t_nll(residual, variance, torch.tensor(dof, dtype=torch.float64))
    scale = np.sqrt(variance.numpy() * (dof - 2.0) / dof)
    expected = -stats.t.logpdf(residual.numpy(), dof, scale=scale)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0.0, atol=1e-8 if dof > 1e5 else 1e-9)


def test_energy_likelihood_has_its_derivatives():
    inputs = [randn(3), randn(3, seed=1).exp(), torch.tensor([5.0, 30.0, 300.0]).double()]
    for x in inputs:
        x.requires_grad_(True)
    assert torch.autograd.gradcheck(energy_student_t_nll, inputs)

    def chained(scale, dof, evidence):
        law = evidential_energy(scale, niw_of(dof, evidence), BATCH[:5], 2)
        return energy_student_t_nll(randn(2), law.variance, law.dof)

    inputs = [randn(5).exp(), 5.0 + randn(5, seed=1).exp(), randn(5, seed=2).exp()]
    assert torch.autograd.gradcheck(chained, [x.requires_grad_(True) for x in inputs])


# --- TorchScript ---------------------------------------------------------------------------------


def everything(
    raw: torch.Tensor, tensor: torch.Tensor, residual: torch.Tensor, batch: torch.Tensor
) -> list[torch.Tensor]:
    niw = niw_parameters(raw, tensor, 0.0)
    law = evidential_energy(torch.exp(raw[:, 0]), niw, batch, 3)
    moments = evidential_energy(torch.exp(raw[:, 0]), niw, batch, 3, torch.exp(raw[:, 1]))
    return [
        law.variance,
        law.dof,
        moments.variance,
        moments.dof,
        energy_student_t_nll(residual[:3, 0].to(law.dof.dtype), law.variance, law.dof),
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_scripted_is_eager(dtype):
    arguments = [x.to(dtype) for x in (randn(12, 3), randn(12, 5), randn(12, 3, seed=5))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(everything)
    expected = everything(*arguments, BATCH)
    for _ in range(3):
        for found, wanted in zip(scripted(*arguments, BATCH), expected, strict=True):
            assert torch.equal(found, wanted)
            assert torch.isfinite(found).all()
