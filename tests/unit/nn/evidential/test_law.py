"""Evidential forces: closed forms, scipy's laws, Monte Carlo, equivariance, scripting."""

import io
import math
import warnings

import numpy as np
import pytest
import torch
from e3nn import o3
from evidential_laws import epistemic_covariance, predictive_scale, sample_predictive
from scipy.stats import binom, invwishart, kstest, multivariate_t
from tiny import randn

from ase_bayesmlip.metrics import (
    chi_squared_law,
    ellipsoid_confidence,
    mahalanobis_squared,
    student_t_law,
)
from ase_bayesmlip.nn.angular import SphericalHarmonics
from ase_bayesmlip.nn.evidential.law import (
    NormalInverseWishart,
    aleatoric_covariance,
    epistemic_deviation,
    evidence_penalty,
    initial_raw,
    niw_parameters,
    predictive_dof,
    scale_matrix,
    student_t_nll,
    total_deviation,
)
from ase_bayesmlip.nn.evidential.tensor_source import VectorProductTensor
from ase_bayesmlip.nn.exponential import traceless_symmetric

UNIT = torch.tensor(0.09, dtype=torch.float64)
IDENTITY = torch.eye(3, dtype=torch.float64)


def tensors_of_norm(norm: float, n: int, seed: int = 0) -> torch.Tensor:
    return norm * torch.nn.functional.normalize(randn(n, 5, seed=seed), dim=1)


def random_niw(n: int, seed: int = 0, coupling: float = 0.0) -> NormalInverseWishart:
    """Laws as a trained network may give them, anisotropic and with ν from 5 to about 20."""
    raw = randn(n, 3, seed=seed) * torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64)
    return niw_parameters(raw, 2.0 * randn(n, 5, seed=seed + 1), coupling)


def same_niw(n: int, dof: float, evidence: float, seed: int = 0) -> NormalInverseWishart:
    """One anisotropic law, n times."""
    s, t = 0.3 * randn(1, seed=seed), randn(1, 5, seed=seed + 1)
    full = torch.full((n,), 1.0, dtype=torch.float64)
    return NormalInverseWishart(s.expand(n), t.expand(n, 5), dof * full, evidence * full)


def cast(niw: NormalInverseWishart, dtype: torch.dtype) -> NormalInverseWishart:
    return NormalInverseWishart(*[value.to(dtype) for value in niw])


def rotations(n: int, seed: int = 0) -> torch.Tensor:
    """Orthogonal matrices, proper and improper in turn."""
    found = torch.linalg.qr(randn(n, 3, 3, seed=seed))[0]
    found = found * torch.linalg.det(found).view(-1, 1, 1)
    sign = torch.ones(n, dtype=torch.float64)
    sign[1::2] = -1.0
    return found * sign.view(-1, 1, 1)


def representation(irrep: str, rotation: torch.Tensor) -> torch.Tensor:
    """e3nn's matrix of an orthogonal one, from the harmonics: its own come in single precision."""
    harmonics = SphericalHarmonics(2).double()
    directions = torch.nn.functional.normalize(randn(20, 3, seed=9), dim=1)
    block = slice(1, 4) if irrep[0] == "1" else slice(4, 9)
    before, after = harmonics(directions)[:, block], harmonics(directions @ rotation.T)[:, block]
    found = torch.linalg.lstsq(before, after).solution.T
    # Harmonics have parity (-1)^l.
    found = found * (torch.linalg.det(rotation) if irrep == "1e" else 1.0)
    published = o3.Irrep(irrep).D_from_matrix(rotation)
    torch.testing.assert_close(found, published, rtol=0.0, atol=1e-5)
    return found


# --- the exponential -----------------------------------------------------------------------------


def test_tensor_components_rotate_into_rotated_matrices():
    for rotation in rotations(20):
        c = randn(10, 5)
        rotated = traceless_symmetric(c @ representation("2e", rotation).T)
        expected = rotation @ traceless_symmetric(c) @ rotation.T
        assert float((rotated - expected).abs().max()) < 1e-12


# --- parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize("coupling", [0.0, 5.0])
def test_parameters_in_closed_form(coupling):
    raw = torch.tensor([[0.5, 1.0, -2.0], [4.5, 140.0, 30.0]], dtype=torch.float64)
    t = torch.tensor([[0.0, 0.0, 3.0, 0.0, 0.0], [4.5, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    found = niw_parameters(raw, t, coupling)
    dof = [5.0 + math.log1p(math.e), 145.0]
    kappa = [nu / 5.0 for nu in dof] if coupling else [math.log1p(math.exp(-2.0)) + 1e-6, 30 + 1e-6]
    np.testing.assert_allclose(found.dof.numpy(), dof, rtol=1e-9)
    np.testing.assert_allclose(found.evidence.numpy(), kappa, rtol=1e-9)
    np.testing.assert_allclose(found.log_scale.numpy(), [0.5, 4.0 + math.tanh(0.5)], rtol=1e-14)
    np.testing.assert_allclose(found.tensor[:, 2].numpy(), [3.0, 0.0])
    np.testing.assert_allclose(found.tensor[1, 0], 4.0 + math.tanh(0.5), rtol=1e-14)


def test_degrees_of_freedom_are_bounded_smoothly():
    raw = torch.zeros(4001, 3, dtype=torch.float64)
    raw[:, 1] = torch.linspace(-50.0, 1000.0, 4001, dtype=torch.float64)
    raw.requires_grad_(True)
    dof = niw_parameters(raw, raw[:, :0], 0.0).dof
    values = dof.detach()
    assert float(values.min()) >= 5.0
    assert float(values.max()) <= 200.0
    assert (values[1:] >= values[:-1]).all()
    (slope,) = torch.autograd.grad(dof.sum(), raw)
    # A clamp would leave none beyond 195.
    assert (slope[raw[:, 1].detach().abs() < 300.0, 1] > 0.0).all()


def test_without_a_tensor_covariances_are_isotropic():
    niw = niw_parameters(randn(4, 3), torch.zeros(4, 0, dtype=torch.float64), 0.0)
    expected = UNIT * torch.exp(niw.log_scale).view(-1, 1, 1) * IDENTITY
    torch.testing.assert_close(scale_matrix(niw, UNIT), expected, rtol=1e-14, atol=0.0)


def test_coupled_parameters_need_no_channel_of_the_evidence():
    raw, t = randn(4, 3), randn(4, 5)
    both = niw_parameters(raw, t, 2.0), niw_parameters(raw[:, :2], t, 2.0)
    for full, short in zip(*both, strict=True):
        assert torch.equal(full, short)


@pytest.mark.parametrize("size", [1.0, 30.0, 1e3])
def test_scale_is_positive_and_well_conditioned_whatever_the_network_says(size):
    raw = size * (2.0 * torch.rand(10000, 8, generator=torch.Generator().manual_seed(0)) - 1.0)
    niw = niw_parameters(raw[:, :3], raw[:, 3:], 0.0)
    # In units of σ_F², for the bound is one of the shape.
    eigenvalues = torch.linalg.eigvalsh(scale_matrix(niw, torch.ones(())).double())
    assert float(eigenvalues[:, 0].min()) > 0.0
    assert float((eigenvalues[:, 2] / eigenvalues[:, 0]).max()) < 1.01 * 1177.4
    for value in (*niw, epistemic_deviation(niw, UNIT), student_t_nll(raw[:, :3], niw, UNIT)):
        assert torch.isfinite(value).all()
        assert value.dtype == torch.float32


@pytest.mark.parametrize("coupling", [0.0, 5.0])
def test_the_first_law_has_the_measured_errors(coupling):
    raw = torch.tensor([initial_raw(10.0, coupling)], dtype=torch.float64)
    niw = niw_parameters(raw, raw[:, :0], coupling)
    assert float(niw.dof) == pytest.approx(10.0, rel=1e-12)
    assert float(niw.evidence) == pytest.approx(2.0 if coupling else 1.0, rel=1e-12)
    assert float(total_deviation(niw, UNIT)) ** 2 == pytest.approx(float(UNIT), rel=1e-12)


def test_the_first_law_in_closed_form():
    expected = [math.log(0.3), math.log(math.expm1(5.0)), math.log(math.expm1(1.0))]
    np.testing.assert_allclose(initial_raw(10.0, 0.0), expected, rtol=1e-5)


def test_a_ratio_that_leaves_no_evidence_is_refused():
    with pytest.raises(ValueError, match=r"ratio 318 leaves .* choose one of at most 317"):
        initial_raw(10.0, 318.0)
    assert initial_raw(10.0, 317.0)[0] == pytest.approx(-4.0, abs=0.01)


# --- moments -------------------------------------------------------------------------------------


def test_moments_are_those_of_the_hierarchy():
    """E[Σ], Cov[μ] and Cov[y] against draws of Σ, μ | Σ and y | μ, Σ, within standard errors."""
    niw, n = same_niw(1, 14.0, 1.7), 40000
    sigma0 = scale_matrix(niw, UNIT)[0].numpy()
    generator = np.random.default_rng(1)
    sigma = invwishart.rvs(df=14.0, scale=14.0 * sigma0, size=n, random_state=generator)
    root = np.linalg.cholesky(sigma)
    mu = np.einsum("nab,nb->na", root, generator.normal(size=(n, 3))) / math.sqrt(1.7)
    y = mu + np.einsum("nab,nb->na", root, generator.normal(size=(n, 3)))
    aleatoric, epistemic = aleatoric_covariance(niw, UNIT), epistemic_covariance(niw, UNIT)
    for draws, expected in (
        (sigma, aleatoric),
        (np.einsum("na,nb->nab", mu, mu), epistemic),
        (np.einsum("na,nb->nab", y, y), aleatoric + epistemic),
    ):
        error = draws.std(axis=0) / math.sqrt(n)
        # The largest of six entries exceeds 4 standard errors once in 2600 draws of the test.
        assert (np.abs(draws.mean(axis=0) - expected[0].numpy()) < 4.0 * error).all()


@pytest.mark.parametrize("coupling", [0.0, 5.0])
def test_total_covariance_is_that_of_the_student_t(coupling):
    niw = random_niw(50, coupling=coupling)
    total = aleatoric_covariance(niw, UNIT) + epistemic_covariance(niw, UNIT)
    eta = predictive_dof(niw).view(-1, 1, 1)
    law = eta / (eta - 2.0) * predictive_scale(niw, UNIT)
    torch.testing.assert_close(total, law, rtol=1e-12, atol=1e-12)
    if coupling:
        share = epistemic_covariance(niw, UNIT)[:, 0, 0] / total[:, 0, 0]
        torch.testing.assert_close(share, coupling / (coupling + niw.dof), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("per_atom", [False, True])
def test_deviations_are_traces_of_the_matrices(per_atom):
    niw = random_niw(50)
    unit = torch.rand(50, dtype=torch.float64) + 0.1 if per_atom else UNIT
    aleatoric, epistemic = aleatoric_covariance(niw, unit), epistemic_covariance(niw, unit)
    for found, covariance in (
        (epistemic_deviation(niw, unit), epistemic),
        (total_deviation(niw, unit), aleatoric + epistemic),
    ):
        expected = torch.sqrt(covariance.diagonal(dim1=1, dim2=2).sum(1) / 3.0)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)


def test_sampler_has_the_total_covariance():
    niw = same_niw(1, 7.5, 0.8)
    draws = sample_predictive(niw, UNIT, 200000, torch.Generator().manual_seed(0))[0]
    expected = (aleatoric_covariance(niw, UNIT) + epistemic_covariance(niw, UNIT))[0]
    found = draws.T @ draws / len(draws)
    # η = 5.5, so that a fourth moment exists.
    assert float((found - expected).norm() / expected.norm()) < 0.02


def test_sampler_takes_its_generator_and_no_gradient():
    niw = NormalInverseWishart(*[value.requires_grad_(True) for value in random_niw(4)])
    first, second, other = (
        sample_predictive(niw, UNIT, 6, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert first.shape == (4, 6, 3)
    assert not first.requires_grad
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    single = sample_predictive(cast(niw, torch.float32), UNIT, 6, torch.Generator().manual_seed(0))
    assert single.dtype == torch.float32


def test_own_samples_have_uniform_confidence():
    """P-values of a uniformity test over seeds are themselves what chance allows."""
    n, seeds = 1000, 40
    rejected, rejected_as_gaussian = 0, 0
    for seed in range(seeds):
        niw = random_niw(n, seed=7 * seed, coupling=2.0)
        draws = sample_predictive(niw, UNIT, 1, torch.Generator().manual_seed(seed))[:, 0].numpy()
        distance = mahalanobis_squared(draws, predictive_scale(niw, UNIT).numpy())
        confidence = ellipsoid_confidence(distance, student_t_law(predictive_dof(niw).numpy()))
        rejected += kstest(confidence, "uniform").pvalue < 0.05
        total = (aleatoric_covariance(niw, UNIT) + epistemic_covariance(niw, UNIT)).numpy()
        gaussian = ellipsoid_confidence(mahalanobis_squared(draws, total), chi_squared_law(3))
        rejected_as_gaussian += kstest(gaussian, "uniform").pvalue < 0.05
    low, high = binom.ppf([5e-4, 1.0 - 5e-4], seeds, 0.05)
    assert low <= rejected <= high
    # The same test sees that the total covariance does not make the law a Gaussian.
    assert rejected_as_gaussian > seeds // 2


# --- likelihood ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dof", [None, 5.0, 41.9, 42.0, 42.1, 103.0, 200.0])
def test_likelihood_is_that_of_scipy(dof):
    niw, residual = random_niw(100), randn(100, 3, seed=5)
    if dof is not None:
        niw = niw._replace(dof=torch.full_like(niw.dof, dof))
    found = student_t_nll(residual, niw, UNIT).numpy()
    scale, eta = predictive_scale(niw, UNIT).numpy(), predictive_dof(niw).numpy()
    expected = [
        -multivariate_t(loc=np.zeros(3), shape=a, df=nu).logpdf(r)
        for r, a, nu in zip(residual.numpy(), scale, eta, strict=True)
    ]
    assert np.abs(found - expected).max() < 1e-9


def test_likelihood_becomes_gaussian_with_much_evidence():
    niw = random_niw(200)._replace(
        dof=torch.full((200,), 1e8, dtype=torch.float64),
        evidence=torch.full((200,), 1e8, dtype=torch.float64),
    )
    scale = scale_matrix(niw, UNIT)
    residual = (torch.linalg.cholesky(scale) @ randn(200, 3, 1, seed=5)).squeeze(2)
    law = torch.distributions.MultivariateNormal(torch.zeros_like(residual), scale)
    found = student_t_nll(residual, niw, UNIT)
    assert float((found + law.log_prob(residual)).abs().max()) < 1e-4


def test_likelihood_in_single_precision():
    niw = random_niw(5000)
    spread = niw._replace(dof=5.0 + 195.0 * torch.rand(5000, dtype=torch.float64))
    draws = sample_predictive(spread, UNIT, 1, torch.Generator().manual_seed(0))[:, 0]
    expected = student_t_nll(draws, spread, UNIT)
    found = student_t_nll(draws.float(), cast(spread, torch.float32), UNIT)
    assert found.dtype == torch.float32
    assert float((found.double() - expected).abs().max()) < 1e-3


def test_likelihood_does_not_see_how_covariance_divides():
    """Multiplying κ is undone by a scale: nothing in the data tells epistemic from aleatoric."""
    niw, residual = random_niw(100), randn(100, 3, seed=5)
    niw = niw._replace(evidence=torch.ones_like(niw.evidence))
    kappa = 37.0 * niw.evidence
    shift = torch.log((1.0 + 1.0 / niw.evidence) / (1.0 + 1.0 / kappa))
    other = niw._replace(evidence=kappa, log_scale=niw.log_scale + shift)
    first, second = student_t_nll(residual, niw, UNIT), student_t_nll(residual, other, UNIT)
    assert float((first - second).abs().max()) < 1e-10
    # Of the total, 1/2 was epistemic, and 1/38 is now.
    ratio = epistemic_deviation(niw, UNIT) / epistemic_deviation(other, UNIT)
    torch.testing.assert_close(ratio, torch.full_like(ratio, math.sqrt(19.0)))
    torch.testing.assert_close(total_deviation(niw, UNIT), total_deviation(other, UNIT))


def special_tensors() -> torch.Tensor:
    """T = 0, T = diag(1, 1, -2) and a generic one."""
    t = torch.zeros(3, 5, dtype=torch.float64)
    t[1, 2], t[1, 4] = math.sqrt(1.5), -3.0 / math.sqrt(2.0)
    expected = torch.diag(torch.tensor([1.0, 1.0, -2.0], dtype=torch.float64))
    torch.testing.assert_close(traceless_symmetric(t[1:2])[0], expected, rtol=1e-14, atol=1e-14)
    t[2] = randn(5)
    return t


def test_likelihood_has_all_its_derivatives():
    """By finite differences, where eigenvalues coincide too, on both sides of the series."""
    inputs = (
        randn(3, 3),
        randn(3, seed=1),
        special_tensors(),
        torch.tensor([6.0, 41.0, 90.0], dtype=torch.float64),
        torch.tensor([0.3, 1.0, 20.0], dtype=torch.float64),
        UNIT.clone(),
    )

    def function(residual, s, t, dof, evidence, unit):
        return student_t_nll(residual, NormalInverseWishart(s, t, dof, evidence), unit)

    assert torch.autograd.gradcheck(function, [x.requires_grad_(True) for x in inputs])


@pytest.mark.parametrize("coupling", [0.0, 5.0])
def test_everything_has_finite_gradients_where_eigenvalues_coincide(coupling):
    raw, residual = torch.zeros(3, 3, dtype=torch.float64), randn(3, 3)
    residual[0] = 0.0
    for function in (
        lambda niw: student_t_nll(residual, niw, UNIT),
        lambda niw: evidence_penalty(residual, niw, UNIT),
        lambda niw: epistemic_deviation(niw, UNIT),
        lambda niw: predictive_scale(niw, UNIT),
    ):
        t = special_tensors().requires_grad_(True)
        leaf = raw.clone().requires_grad_(True)
        function(niw_parameters(leaf, t, coupling)).sum().backward()
        assert torch.isfinite(leaf.grad).all()
        assert t.grad is None or torch.isfinite(t.grad).all()


def test_a_tensor_of_zeros_is_no_dead_start():
    t = torch.zeros(4, 5, dtype=torch.float64, requires_grad=True)
    niw = niw_parameters(torch.zeros(4, 3, dtype=torch.float64), t, 0.0)
    student_t_nll(randn(4, 3), niw, UNIT).sum().backward()
    assert (t.grad.norm(dim=1) > 1e-2).all()


def test_penalty_in_closed_form_and_without_a_pull_on_forces():
    niw, residual = random_niw(5), randn(5, 3).requires_grad_(True)
    found = evidence_penalty(residual, niw, UNIT)
    expected = (niw.dof + niw.evidence) * residual.square().sum(1) / UNIT
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0.0)
    stopped = evidence_penalty(residual, niw, UNIT, stop_residual=True)
    assert torch.equal(stopped, found.detach())
    assert not stopped.requires_grad
    # Units of force do not matter.
    scaled = evidence_penalty(1e3 * residual, niw, 1e6 * UNIT)
    torch.testing.assert_close(scaled, found, rtol=1e-12, atol=0.0)


# --- products of vectors -------------------------------------------------------------------------


def make_product(size: float = 1.0, channels: int = 6, rank: int = 4) -> VectorProductTensor:
    generator = torch.Generator().manual_seed(3)
    return VectorProductTensor(channels, rank, generator, size)


# Gates of ten atoms for its four products.
GATE = torch.sigmoid(torch.linspace(-2.0, 2.0, 40, dtype=torch.float64).view(10, 4))


@pytest.mark.parametrize("irrep", ["1o", "1e"])
def test_products_of_vectors_are_equivariant(irrep):
    product, vectors = make_product().requires_grad_(False), randn(10, 3, 6)
    for rotation in rotations(20):
        turned = torch.einsum("ab,nbc->nac", representation(irrep, rotation), vectors)
        expected = product(vectors, GATE) @ representation("2e", rotation).T
        assert float((product(turned, GATE) - expected).abs().max()) < 1e-12


def test_products_of_vectors_in_closed_form():
    product, vectors = make_product(), randn(10, 3, 6)
    mixed = vectors @ product.mixing.detach() / math.sqrt(6)
    weight = GATE * product.weight.detach() / math.sqrt(4)
    outer = torch.einsum("nak,nbk,nk->nab", mixed, mixed, weight)
    trace = outer.diagonal(dim1=1, dim2=2).sum(1).view(-1, 1, 1)
    found = traceless_symmetric(product(vectors, GATE))
    torch.testing.assert_close(found, outer - trace / 3.0 * IDENTITY, rtol=1e-12, atol=1e-12)


def test_law_of_rotated_vectors_is_the_rotated_law():
    product, vectors, raw = make_product(2.0).requires_grad_(False), randn(10, 3, 6), randn(10, 3)
    niw = niw_parameters(raw, product(vectors, GATE), 0.0)
    scale, residual = scale_matrix(niw, UNIT), randn(10, 3, seed=5)
    # Anisotropic enough for the test to mean something.
    assert float(niw.tensor.norm(dim=1).max()) > 2.0
    for rotation in rotations(10):
        turned = niw_parameters(raw, product(torch.matmul(rotation, vectors), GATE), 0.0)
        expected = rotation @ scale @ rotation.T
        assert float((scale_matrix(turned, UNIT) - expected).abs().max()) < 1e-12
        torch.testing.assert_close(
            student_t_nll(residual @ rotation.T, turned, UNIT),
            student_t_nll(residual, niw, UNIT),
            rtol=1e-11,
            atol=1e-11,
        )


def test_weights_of_zero_are_no_dead_start():
    product = make_product(size=0.0)
    t = product(randn(10, 3, 6), GATE)
    assert torch.equal(t, torch.zeros_like(t))
    niw = niw_parameters(torch.zeros(10, 3, dtype=torch.float64), t, 0.0)
    student_t_nll(randn(10, 3, seed=5), niw, UNIT).sum().backward()
    assert float(product.weight.grad.abs().min()) > 1e-3


# --- TorchScript ---------------------------------------------------------------------------------


class Head(torch.nn.Module):
    """Everything from features to covariances, as a served model may have it."""

    def __init__(self, coupling: float):
        super().__init__()
        self.product = make_product()
        self.coupling = coupling
        self.register_buffer("gate", GATE[:7].clone())
        self.register_buffer("unit", UNIT.clone())

    def forward(
        self, raw: torch.Tensor, vectors: torch.Tensor, residual: torch.Tensor
    ) -> list[torch.Tensor]:
        niw = niw_parameters(raw, self.product(vectors, self.gate), self.coupling)
        return [
            niw.log_scale,
            niw.tensor,
            niw.dof,
            niw.evidence,
            aleatoric_covariance(niw, self.unit),
            epistemic_covariance(niw, self.unit),
            predictive_scale(niw, self.unit),
            predictive_dof(niw),
            epistemic_deviation(niw, self.unit),
            total_deviation(niw, self.unit),
            student_t_nll(residual, niw, self.unit),
            evidence_penalty(residual, niw, self.unit, True),
        ]


@pytest.mark.parametrize("coupling", [0.0, 5.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_scripted_saved_loaded_and_frozen_are_eager(coupling, dtype):
    head = Head(coupling).to(dtype).eval().requires_grad_(False)
    arguments = [x.to(dtype) for x in (randn(7, 3), randn(7, 3, 6), randn(7, 3, seed=5))]
    expected, buffer = head(*arguments), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(head)
        torch.jit.save(scripted, buffer)
        buffer.seek(0)
        loaded = torch.jit.load(buffer)
        modules = [scripted, loaded, torch.jit.freeze(loaded)]
    for module in modules:
        # A program is rewritten after its first runs.
        for _ in range(3):
            for found, wanted in zip(module(*arguments), expected, strict=True):
                assert torch.equal(found, wanted)


def test_scripted_sampler_draws_the_same():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(sample_predictive)
    niw = random_niw(4)
    for _ in range(3):
        found, expected = (
            function(niw, UNIT, 5, torch.Generator().manual_seed(0))
            for function in (scripted, sample_predictive)
        )
        assert torch.equal(found, expected)
