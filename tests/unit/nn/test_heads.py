"""Noise heads: the forms of the force covariance."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from noise import wake_readout

from ase_bayesmlip.nn.angular import Irrep
from ase_bayesmlip.nn.exponential import linear_tanh, traceless_symmetric
from ase_bayesmlip.nn.heads import (
    LayerReadout,
    NoiseHeads,
    cholesky_covariance,
    spd_covariance,
)

RAW_SCALARS = {"spd": 1, "iso": 1, "cholesky": 6}


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def tensors_of_norm(norm: float, n: int = 20, seed: int = 0) -> torch.Tensor:
    return norm * torch.nn.functional.normalize(randn(n, 5, seed=seed), dim=1)


# --- covariances ---------------------------------------------------------------------------------


@given(log_scale=st.floats(-10.0, 10.0), norm=st.floats(0.0, 20.0), seed=st.integers(0, 1000))
def test_spd_covariance_is_spd_with_the_trace_identity(log_scale, norm, seed):
    s = torch.full((5,), log_scale, dtype=torch.float64)
    covariance = spd_covariance(s, tensors_of_norm(norm, 5, seed))
    torch.testing.assert_close(covariance, covariance.transpose(1, 2), rtol=1e-15, atol=0.0)
    assert float(torch.linalg.eigvalsh(covariance).min()) > 0.0
    # log det Σ = tr log Σ = 3 s: the 2e part is traceless.
    logdet = torch.linalg.slogdet(covariance)[1]
    torch.testing.assert_close(logdet, 3.0 * linear_tanh(s), rtol=0.0, atol=1e-9)


def test_spd_covariance_is_the_exponential_of_its_generator():
    s, t = randn(10), 0.5 * randn(10, 5, seed=1)
    generator = s.view(-1, 1, 1) * torch.eye(3, dtype=torch.float64) + traceless_symmetric(t)
    expected = torch.linalg.matrix_exp(generator)
    torch.testing.assert_close(spd_covariance(s, t), expected, rtol=1e-12, atol=1e-12)


def test_spd_covariance_is_positive_semidefinite_in_single_precision():
    s, t = 5.0 * randn(200).float(), tensors_of_norm(20.0, 200).float()
    covariance = spd_covariance(s, t)
    assert torch.equal(covariance, covariance.transpose(1, 2))
    eigenvalues = torch.linalg.eigvalsh(covariance.double())
    assert (eigenvalues[:, 0] > -1e-6 * eigenvalues[:, 2]).all()
    assert torch.isfinite(covariance).all()


def test_cholesky_covariance_is_in_the_documented_order():
    q = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]], dtype=torch.float64)
    factor = np.array([[np.exp(0.1), 0.0, 0.0], [0.6, np.exp(0.2), 0.0], [0.5, 0.4, np.exp(0.3)]])
    found = cholesky_covariance(q)[0]
    np.testing.assert_allclose(found.numpy(), factor @ factor.T, rtol=1e-14)
    np.testing.assert_allclose(torch.linalg.cholesky(found).numpy(), factor, rtol=1e-12)


@pytest.mark.parametrize("covariance", sorted(RAW_SCALARS))
def test_raw_zeros_stand_for_the_scales(covariance):
    heads = NoiseHeads(covariance).double()
    heads.set_scales(0.3, 0.02)
    raw = torch.zeros(2, RAW_SCALARS[covariance], dtype=torch.float64)
    found = heads.force_covariance(raw, torch.zeros(2, 5, dtype=torch.float64))
    floor = 1e-3 if covariance == "cholesky" else 0.0
    expected = (0.02 + floor) * torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0.0)
    energy = heads.energy_variance(torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(energy, torch.full((2,), 0.3, dtype=torch.float64))


def test_isotropic_covariance_and_energy_variance_in_closed_form():
    heads = NoiseHeads("iso").double()
    heads.set_scales(2.0, 3.0)
    raw = torch.tensor([[-1.0], [7.0]], dtype=torch.float64)
    variances = [3.0 * math.exp(-1.0), 3.0 * math.exp(4.0 + math.tanh(3.0))]
    expected = torch.stack([v * torch.eye(3, dtype=torch.float64) for v in variances])
    torch.testing.assert_close(heads.force_covariance(raw, raw[:, :0]), expected)
    torch.testing.assert_close(
        heads.energy_variance(raw[:, 0]), torch.tensor(variances, dtype=torch.float64) / 1.5
    )


@pytest.mark.parametrize("covariance", sorted(RAW_SCALARS))
def test_scales_are_kept_in_the_state(covariance):
    heads = NoiseHeads(covariance)
    heads.set_scales(0.3, 0.02)
    other = NoiseHeads(covariance)
    other.load_state_dict(heads.state_dict())
    assert float(other.energy_scale) == pytest.approx(0.3)
    assert float(other.force_scale) == pytest.approx(0.02)


# --- readout -------------------------------------------------------------------------------------


def make_readout(irreps, has_tensor):
    generator = torch.Generator().manual_seed(0)
    readout = LayerReadout(irreps, 4, 8, 3, has_tensor, generator).double()
    wake_readout(readout, generator)
    return readout


def test_readout_sees_even_scalars_and_even_tensors_alone():
    irreps = [Irrep(0, -1), Irrep(0, 1), Irrep(1, -1), Irrep(2, -1), Irrep(2, 1)]
    readout = make_readout(irreps, True)
    features = randn(3, 15, 4).requires_grad_(True)
    scalars, tensor, _ = readout(features)
    assert scalars.shape == (3, 3)
    assert tensor.shape == (3, 5)
    (by_scalar,) = torch.autograd.grad(scalars.sum(), features, retain_graph=True)
    (by_tensor,) = torch.autograd.grad(tensor.sum(), features)
    assert by_scalar.abs().sum((0, 2)).nonzero().flatten().tolist() == [1]
    assert by_tensor.abs().sum((0, 2)).nonzero().flatten().tolist() == [10, 11, 12, 13, 14]


def test_readout_without_a_tensor():
    for irreps, wanted in (([Irrep(0, 1)], True), ([Irrep(0, 1), Irrep(2, 1)], False)):
        n_components = sum(irrep.dim for irrep in irreps)
        scalars, tensor, _ = make_readout(irreps, wanted)(randn(3, n_components, 4))
        assert scalars.shape == (3, 3)
        assert tensor.shape == (3, 0)
