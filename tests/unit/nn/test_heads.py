"""Noise heads: the forms of the force covariance."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from noise import wake_readout
from tiny import randn

from ase_bayesmlip.nn.angular import Irrep
from ase_bayesmlip.nn.build import FORCE_NOISE
from ase_bayesmlip.nn.exponential import linear_tanh, traceless_symmetric
from ase_bayesmlip.nn.heads import (
    EnergyNoise,
    IsoNoise,
    LayerReadout,
    NoiseHeads,
    SpdNoise,
    spd_covariance,
)

# Of two atoms of one structure.
BATCH = torch.zeros(2, dtype=torch.int64)


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


@pytest.mark.parametrize("covariance", sorted(FORCE_NOISE))
def test_raw_zeros_stand_for_the_scales(covariance):
    heads = NoiseHeads(EnergyNoise(), FORCE_NOISE[covariance]()).double()
    heads.set_scales(0.3, 0.02)
    raw = torch.zeros(2, heads.n_scalars, dtype=torch.float64)
    energy, found = heads(raw, torch.zeros(2, 5, dtype=torch.float64), BATCH, 1)
    floor = 1e-3 if covariance == "cholesky" else 0.0
    expected = (0.02 + floor) * torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=0.0)
    torch.testing.assert_close(energy, torch.full((2,), 0.3, dtype=torch.float64))


def test_isotropic_covariance_and_energy_variance_in_closed_form():
    heads = NoiseHeads(EnergyNoise(), IsoNoise()).double()
    heads.set_scales(2.0, 3.0)
    raw = torch.tensor([[-1.0, -1.0], [7.0, 7.0]], dtype=torch.float64)
    variances = [3.0 * math.exp(-1.0), 3.0 * math.exp(4.0 + math.tanh(3.0))]
    expected = torch.stack([v * torch.eye(3, dtype=torch.float64) for v in variances])
    energy, found = heads(raw, raw[:, :0], BATCH, 1)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(energy, torch.tensor(variances, dtype=torch.float64) / 1.5)


def test_noise_that_is_not_trained_is_not_there():
    raw = randn(2, 1)
    assert NoiseHeads()(raw[:, :0], raw[:, :0], BATCH, 1) == (None, None)
    energy, covariance = NoiseHeads(EnergyNoise()).double()(raw, raw[:, :0], BATCH, 1)
    assert covariance is None
    torch.testing.assert_close(energy, torch.exp(raw[:, 0]))
    energy, covariance = NoiseHeads(None, IsoNoise()).double()(raw, raw[:, :0], BATCH, 1)
    assert energy is None
    torch.testing.assert_close(covariance[:, 0, 0], torch.exp(raw[:, 0]))


def test_scales_are_kept_in_the_state():
    heads = NoiseHeads(EnergyNoise(), SpdNoise())
    heads.set_scales(0.3, 0.02)
    other = NoiseHeads(EnergyNoise(), SpdNoise())
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
