"""Linear-Gaussian regression against normal equations, dense densities and a general optimiser."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from ase_bayesmlip.posteriors.linear_gaussian import (
    Gaussian,
    maximise_evidence,
    posterior_precision,
)

P = 6


def randn(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def prior_of(tau=0.7):
    return Gaussian(torch.zeros(P, dtype=torch.float64), tau * torch.eye(P).double(), tau)


def conditioned(gaussian, rows, labels):
    """After labels given as such rather than as residuals."""
    return gaussian.observed(rows, labels - rows @ gaussian.mean)


def assert_equal(one, other, tolerance=1e-8):
    np.testing.assert_allclose(one.mean, other.mean, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(one.precision, other.precision, rtol=tolerance, atol=tolerance)


# --- the posterior of the weights


@pytest.mark.parametrize("n_labels", [1, 4, 6, 50])
def test_observed_solves_the_normal_equations(n_labels):
    rows, labels, tau = randn(n_labels, P, seed=1), randn(n_labels, seed=2), 0.7
    found = conditioned(prior_of(tau), rows, labels)
    x, y = rows.numpy(), labels.numpy()
    precision = x.T @ x + tau * np.eye(P)
    np.testing.assert_allclose(found.precision, precision, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.mean, np.linalg.solve(precision, x.T @ y), rtol=1e-8)
    assert (found.prior, found.energy_noise, found.forces_noise) == (tau, 1.0, 1.0)


def test_observed_is_the_conditional_of_the_joint_density():
    """Schur complement of the joint covariance of weights and labels, never a normal equation."""
    rows, labels = randn(9, P, seed=3), randn(9, seed=4)
    root = randn(P, P, seed=5)
    before = Gaussian(randn(P, seed=6), torch.eye(P).double() + root @ root.T, 1.0)
    covariance, x = np.linalg.inv(before.precision.numpy()), rows.numpy()
    gain = covariance @ x.T @ np.linalg.inv(x @ covariance @ x.T + np.eye(9))
    mean = before.mean.numpy() + gain @ (labels.numpy() - x @ before.mean.numpy())
    found = conditioned(before, rows, labels)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-8)
    remaining = covariance - gain @ x @ covariance
    np.testing.assert_allclose(np.linalg.inv(found.precision.numpy()), remaining, atol=1e-10)


@settings(deadline=None, max_examples=40)
@given(order=st.permutations(range(12)), cuts=st.sets(st.integers(1, 11)), seed=st.integers(0, 99))
def test_blocks_and_their_order_do_not_matter(order, cuts, seed):
    rows, labels = randn(12, P, seed=seed), randn(12, seed=seed + 100)
    at_once = conditioned(prior_of(), rows, labels)
    parts = prior_of()
    for block in np.split(np.array(order), sorted(cuts)):
        parts = conditioned(parts, rows[block], labels[block])
    assert_equal(parts, at_once)


def test_observed_leaves_the_gaussian_before_it_alone():
    before = prior_of()
    conditioned(before, randn(5, P, seed=7), randn(5, seed=8))
    assert_equal(before, prior_of(), 0.0)


def test_factor_is_a_root_of_the_covariance():
    root = randn(P, 2 * P, seed=9)
    gaussian = Gaussian(torch.zeros(P).double(), root @ root.T, 1.0)
    factor = gaussian.factor()
    identity = factor @ factor.T @ gaussian.precision
    np.testing.assert_allclose(identity, np.eye(P), atol=1e-12)
    diagonal = Gaussian(gaussian.mean, gaussian.precision.diagonal(), 1.0)
    np.testing.assert_allclose(diagonal.factor() ** -2, diagonal.precision, rtol=1e-14)


def test_precision_is_the_sum_of_its_parts():
    one, two = (randn(3, P, seed=seed) for seed in (10, 11))
    curvatures = [one.T @ one, two.T @ two]
    expected = curvatures[0] / 2.0 + curvatures[1] / 0.5 + 3.0 * torch.eye(P)
    np.testing.assert_allclose(posterior_precision(curvatures, [2.0, 0.5], 3.0), expected)
    diagonals = [curvature.diagonal() for curvature in curvatures]
    found = posterior_precision(diagonals, (2.0, 0.5), 3.0)
    np.testing.assert_allclose(found, expected.diagonal())


# --- the evidence


class Problem:
    """Two kinds of labels of weights from N(0, 1/τ), with noise s_k times the assumed one."""

    def __init__(self, n=(80, 300), tau=2.0, noise=(0.5, 3.0), p=P, seed=0):
        self.n, self.p = n, p
        self.true = randn(p, seed=seed) / math.sqrt(tau)
        self.rows = [randn(m, p, seed=seed + 20 + k) for k, m in enumerate(n)]
        self.labels = [
            x @ self.true + math.sqrt(s) * randn(m, seed=seed + 40 + k)
            for k, (x, m, s) in enumerate(zip(self.rows, n, noise, strict=True))
        ]
        self.curvatures = [x.T @ x for x in self.rows]

    def chi2(self, weights):
        return [
            float(((y - x @ weights) ** 2).sum())
            for x, y in zip(self.rows, self.labels, strict=True)
        ]

    def best_weights(self, noise, tau):
        right = sum(x.T @ y / s for x, y, s in zip(self.rows, self.labels, noise, strict=True))
        return torch.linalg.solve(posterior_precision(self.curvatures, noise, tau), right)

    def evidence(self, weights, fitted=(True, True), diagonal=False):
        curvatures = [c.diagonal() if diagonal else c for c in self.curvatures]
        return maximise_evidence(
            curvatures, self.chi2(weights), list(self.n), list(fitted), weights
        )

    def log_evidence(self, logarithms, weights):
        """That of log τ, log s_1, log s_2 at fixed weights, in numpy."""
        tau, *noise = np.exp(logarithms)
        precision = tau * np.eye(self.p)
        value = self.p * math.log(tau) - tau * float(weights @ weights)
        chi2 = self.chi2(weights)
        for g, c, n, s in zip(self.curvatures, chi2, self.n, noise, strict=True):
            precision = precision + g.numpy() / s
            value -= c / s + n * math.log(s)
        return 0.5 * (value - np.linalg.slogdet(precision)[1])

    def log_marginal(self, logarithms):
        """log p(labels) of log τ, log s_1, log s_2: a dense Gaussian without any weights."""
        tau, *noise = np.exp(logarithms)
        x = torch.cat(self.rows).numpy()
        covariance = x @ x.T / tau + np.diag(np.repeat(noise, self.n))
        return multivariate_normal.logpdf(torch.cat(self.labels).numpy(), cov=covariance)


def test_the_maximum_is_a_stationary_point_of_the_evidence():
    problem = Problem()
    weights = problem.best_weights((0.5, 3.0), 2.0)
    found = problem.evidence(weights)
    point, h = np.log([found.prior, *found.noise]), 1e-4
    value = problem.log_evidence(point, weights)
    assert found.log_evidence == pytest.approx(value, rel=1e-12)
    for axis in np.eye(3):
        above, below = (problem.log_evidence(point + sign * h * axis, weights) for sign in (1, -1))
        # Errors of a central difference: round-off |value| ε/h, and h²/6 times a third derivative
        # of the order of the number of labels.
        assert abs(above - below) / (2 * h) < 10 * (
            abs(value) * 2.2e-16 / h + sum(problem.n) * h**2
        )
        assert above < value
        assert below < value


@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 1e3])
def test_the_prior_is_found_for_weights_of_any_size(size):
    """Six labels of unit curvature: τ |w|² = 6/(1 + τ), a quadratic equation."""
    weights = torch.full((P,), size / math.sqrt(P), dtype=torch.float64)
    found = maximise_evidence([torch.eye(P).double()], [1.0], [P], [False], weights)
    expected = 0.5 * (math.sqrt(1.0 + 4.0 * P / size**2) - 1.0)
    assert found.prior == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("fitted", [(True, True), (True, False), (False, True), (False, False)])
def test_the_maximum_is_that_of_a_general_optimiser(fitted):
    problem = Problem(seed=1)
    weights = problem.best_weights((1.0, 1.0), 1.0)
    found = problem.evidence(weights, fitted)
    free = np.array([True, *fitted])

    def loss(free_logarithms):
        logarithms = np.zeros(3)  # a factor that is not fitted is 1
        logarithms[free] = free_logarithms
        return -problem.log_evidence(logarithms, weights)

    best = minimize(loss, np.zeros(free.sum()), method="Nelder-Mead", options={"xatol": 1e-7})
    assert best.success
    assert found.log_evidence == pytest.approx(-best.fun, rel=1e-9)
    # A maximum is found to the root of the precision of its value.
    logarithms = np.log([found.prior, *found.noise])
    np.testing.assert_allclose(logarithms[free], best.x, atol=1e-5)
    assert [s == 1.0 for s in found.noise] == [not fit for fit in fitted]


def test_with_the_weights_that_follow_it_is_the_marginal_likelihood():
    """Alternate with the mean of the weights: the maximum over τ and s of the dense density."""
    problem = Problem(n=(30, 60), seed=2)
    noise, tau = (1.0, 1.0), 1.0
    for _ in range(100):
        weights = problem.best_weights(noise, tau)
        tau, noise, value = problem.evidence(weights)
    point = np.log([tau, *noise])
    exact = problem.log_marginal(point)
    constant = 0.5 * sum(problem.n) * math.log(2 * math.pi)
    assert value == pytest.approx(exact + constant, rel=1e-9)
    best = minimize(
        lambda x: -problem.log_marginal(x),
        point + 0.3,
        method="Nelder-Mead",
        options={"xatol": 1e-7},
    )
    np.testing.assert_allclose(point, best.x, atol=1e-5)


def test_known_noise_and_prior_are_recovered():
    """Over 30 data sets, to four standard errors: s √(2/(n - P)) and τ √(2/P) for one of them."""
    n_sets, p, true = 30, 20, {"tau": 2.0, "noise": (0.5, 3.0)}
    found = []
    for seed in range(n_sets):
        problem = Problem(n=(60, 200), p=p, seed=1000 * seed, **true)
        noise, tau = (1.0, 1.0), 1.0
        for _ in range(15):
            tau, noise, _ = problem.evidence(problem.best_weights(noise, tau))
        found.append(np.log([tau, *noise]))
    mean = np.mean(found, axis=0)
    deviation = np.sqrt([2 / p, 2 / (60 - p), 2 / (200 - p)])
    # The logarithm of a mean square of m numbers lies 1/m below its own, on average.
    expected = np.log([2.0, 0.5, 3.0]) + np.array([1 / p, -1 / (60 - p), -1 / (200 - p)])
    assert (np.abs(mean - expected) < 4 * deviation / math.sqrt(n_sets)).all()


def test_diagonals_give_what_matrices_give_for_an_orthogonal_design():
    problem = Problem(n=(40, 90), seed=3)
    problem.rows = [
        torch.linalg.qr(x)[0] * torch.arange(1, P + 1, dtype=torch.float64) for x in problem.rows
    ]
    problem.labels = [
        x @ problem.true + randn(n, seed=60 + n)
        for x, n in zip(problem.rows, problem.n, strict=True)
    ]
    problem.curvatures = [x.T @ x for x in problem.rows]
    weights = problem.best_weights((1.0, 1.0), 1.0)
    full, diagonal = (problem.evidence(weights, diagonal=flag) for flag in (False, True))
    assert diagonal.prior == pytest.approx(full.prior, rel=1e-8)
    assert diagonal.noise == pytest.approx(full.noise, rel=1e-8)
    assert diagonal.log_evidence == pytest.approx(full.log_evidence, rel=1e-8)


def test_units_of_the_noise_are_arbitrary():
    """Curvature and χ² for a noise c times larger: factors c times smaller, the same prior."""
    problem, c = Problem(seed=4), 7.0
    weights = problem.best_weights((1.0, 1.0), 1.0)
    one = problem.evidence(weights)
    problem.rows = [x / math.sqrt(c) for x in problem.rows]
    problem.labels = [y / math.sqrt(c) for y in problem.labels]
    problem.curvatures = [g / c for g in problem.curvatures]
    other = problem.evidence(weights)
    assert other.prior == pytest.approx(one.prior, rel=1e-7)
    assert [c * s for s in other.noise] == pytest.approx(one.noise, rel=1e-7)
