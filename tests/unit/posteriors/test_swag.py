"""SWAG: moments of snapshots, and draws with the covariance that they promise."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from tiny import randn, seeded, tiny_config, tiny_potential

from ase_bayesmlip.posteriors import RunOptions, swag
from ase_bayesmlip.posteriors.members import TrainedMembers
from ase_bayesmlip.posteriors.swag import Moments
from ase_bayesmlip.training.data import load_training_data

P = 5


def moments_of(snapshots, rank=20):
    moments = Moments.empty(snapshots.shape[1])
    for snapshot in snapshots:
        moments = moments.updated(snapshot, rank)
    return moments


def draws_of(moments, n, scale=1.0, diagonal=False, seed=0):
    generator = seeded(seed)
    return torch.stack([moments.sample(scale, diagonal, generator) for _ in range(n)]).numpy()


# --- moments


@pytest.mark.parametrize("n", [1, 2, 3, 30])
def test_moments_are_those_of_numpy(n):
    snapshots = randn(n, P, seed=n)
    moments = moments_of(snapshots, rank=4)
    x = snapshots.numpy()
    assert moments.n == n
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(moments.squares / n, x.var(0), rtol=1e-12, atol=1e-14)
    # Of the last four, each from the mean at its time.
    expected = [x[t] - x[: t + 1].mean(0) for t in range(n)][-4:]
    np.testing.assert_allclose(moments.deviations, expected, rtol=1e-12, atol=1e-14)


def test_a_far_mean_costs_no_digits():
    """Deviations of 1 around 1e8: a sum of squares would have lost all of them."""
    snapshots = 1e8 + randn(40, P, seed=1)
    moments = moments_of(snapshots)
    # A snapshot is rounded to 1e8 ε of its deviation.
    rounding = 1e8 * np.finfo(float).eps
    expected = (snapshots - 1e8).numpy().var(0)
    np.testing.assert_allclose(moments.squares / 40, expected, rtol=100 * rounding)


def test_moments_do_not_change_in_place():
    before = moments_of(randn(3, P, seed=2))
    copy = Moments(before.n, before.mean.clone(), before.squares.clone(), before.deviations.clone())
    before.updated(randn(P, seed=3), 20)
    before.sample(1.0, False, seeded(0))
    for name in ("mean", "squares", "deviations"):
        assert torch.equal(getattr(before, name), getattr(copy, name))


def test_moments_of_single_precision_weights_are_in_double():
    moments = moments_of(randn(6, P, seed=4).float())
    assert {moments.mean.dtype, moments.squares.dtype, moments.deviations.dtype} == {torch.float64}


# --- draws

N_DRAWS = 40_000


def assert_gaussian(draws, mean, covariance):
    """Mean and covariance of n draws, each entry to 4.5 of its standard errors.

    √(Σ_ii/n) for a mean and √((Σ_ii Σ_jj + Σ_ij²)/n) for a covariance of Gaussian draws.
    """
    n = len(draws)
    variances = np.diag(covariance)
    assert (np.abs(draws.mean(0) - mean) < 4.5 * np.sqrt(variances / n)).all()
    error = np.sqrt((np.outer(variances, variances) + covariance**2) / n)
    assert (np.abs(np.cov(draws.T) - covariance) < 4.5 * error).all()


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("diagonal", [False, True])
def test_draws_have_the_promised_mean_and_covariance(scale, diagonal):
    mixing = randn(P, P, seed=5)
    moments = moments_of(randn(12, P, seed=6) @ mixing.T + 3.0, rank=7)
    d = moments.deviations.numpy()
    covariance = np.diag((moments.squares / moments.n).numpy())
    if not diagonal:
        covariance = covariance + d.T @ d / (7 - 1)
    assert np.abs(d.T @ d / 6).max() > 0.3 * np.abs(covariance).max()  # both parts are seen
    draws = draws_of(moments, N_DRAWS, scale, diagonal)
    assert_gaussian(draws, moments.mean.numpy(), scale * covariance)


def test_draws_repeat_and_differ():
    moments = moments_of(randn(6, P, seed=7))
    one, same, other = (draws_of(moments, 3, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert len(np.unique(np.concatenate([one, other]), axis=0)) == 6


def test_scale_stretches_a_draw():
    moments = moments_of(randn(6, P, seed=8))
    one, four = (moments.sample(scale, False, seeded(3)) - moments.mean for scale in (1.0, 4.0))
    torch.testing.assert_close(four, 2.0 * one, rtol=1e-14, atol=0.0)


def test_half_the_scale_has_the_covariance_of_the_snapshots():
    """Both parts estimate it: of many snapshots, the trace of Σ at scale ½ is theirs."""
    n = 400
    snapshots = randn(n, P, seed=9) @ randn(P, P, seed=10).T
    moments = moments_of(snapshots, rank=n)
    trace = float(snapshots.var(0).sum())
    d = moments.deviations
    total = 0.5 * float((moments.squares / n).sum() + (d**2).sum() / (n - 1))
    # The deviations are from the mean of their time: that of t snapshots makes them 1/t smaller.
    assert total == pytest.approx(trace, rel=(1 + math.log(n)) / n)


# --- a posterior that is known


def test_iterates_of_stochastic_gradient_descent_give_their_stationary_covariance():
    """θ ← θ - η (H θ - noise) on a quadratic: an AR(1) process with a covariance in closed form.

    With a_i = 1 - η h_i and noise of covariance C, Σ_ij = η² C_ij/(1 - a_i a_j). Of n iterates the
    variance has the standard error Σ_ii √(2τ_i/n), τ_i = (1 + a_i²)/(1 - a_i²) the time between
    independent squares, and the mean √(Σ_ii (1 + a_i)/((1 - a_i) n)).
    """
    n, rate = 60_000, 0.2
    curvature = np.array([0.5, 1.0, 2.0, 3.0, 4.0])
    root = randn(P, P, seed=11).numpy()
    a = 1.0 - rate * curvature
    stationary = rate**2 * (root @ root.T) / (1.0 - np.outer(a, a))
    theta = np.linalg.cholesky(stationary) @ randn(P, seed=12).numpy()
    moments = Moments.empty(P)
    for kick in rate * randn(n, P, seed=13).numpy() @ root.T:
        theta = a * theta + kick
        moments = moments.updated(torch.from_numpy(theta), 3000)
    variances = np.diag(stationary)
    mean_error = np.sqrt(variances * (1 + a) / ((1 - a) * n))
    assert (np.abs(moments.mean.numpy()) < 4 * mean_error).all()
    times = (1 + a**2) / (1 - a**2)
    found = (moments.squares / n).numpy()
    assert (np.abs(found - variances) < 4 * variances * np.sqrt(2 * times / n)).all()
    d = moments.deviations.numpy()
    low_rank = d.T @ d / (len(d) - 1)
    product = np.outer(a, a)
    error = np.sqrt(
        (np.outer(variances, variances) + stationary**2) * (1 + product) / (1 - product) / len(d)
    )
    assert (np.abs(low_rank - stationary) < 4.5 * error).all()


# --- from a run


def state_of(n_members, moments, **settings):
    """A posterior around members that are all alike, with moments made by hand."""
    config = tiny_config(posterior={"kind": "swag", "members": n_members, **settings})
    record = load_training_data(config).record()
    weights = tuple(tiny_potential(config, seed).state_dict() for seed in range(n_members))
    return swag.State(TrainedMembers(config, record, weights), moments)


def flat(potential):
    return torch.cat([p.flatten() for p in potential.parameters()])


def test_members_take_turns():
    state = state_of(2, ())
    n_weights = len(flat(state.run.potentials()[0]))
    moments = tuple(moments_of(10.0 * k + 1e-3 * randn(4, n_weights, seed=k)) for k in range(2))
    state = swag.State(state.run, moments)
    drawn = swag.draw(state, 5, seeded(0))
    nearest = [int((flat(potential).mean() / 10).round()) for potential in drawn]
    assert nearest == [0, 1, 0, 1, 0]
    assert len(swag.draw(state, None, seeded(0))) == state.config.posterior.samples == 8
    for potential, again in zip(drawn, swag.draw(state, 5, seeded(0)), strict=True):
        assert torch.equal(flat(potential), flat(again))
    assert not any(p.requires_grad for potential in drawn for p in potential.parameters())
    with pytest.raises(ValueError, match="1 samples asked of a posterior of kind swag; at least 2"):
        swag.draw(state, 1, seeded(0))


def test_a_draw_uses_the_settings_of_the_run():
    state = state_of(1, ())
    snapshots = randn(3, len(flat(state.run.potentials()[0])), seed=20)
    results = {}
    for scale, diagonal in ((1.0, False), (0.5, False), (1.0, True)):
        chosen = state_of(1, (moments_of(snapshots),), scale=scale, diagonal=diagonal)
        results[scale, diagonal] = flat(swag.draw(chosen, 2, seeded(0))[0])
        expected = chosen.moments[0].sample(scale, diagonal, seeded(0))
        assert torch.equal(results[scale, diagonal], expected)
    assert len({float(value.sum()) for value in results.values()}) == 3


def test_the_diagonal_of_draws_of_a_potential_is_that_of_the_moments():
    """χ² of all weights over draws: a mean of (θ - θ̄)²/σ² of 1 to its standard error."""
    state = state_of(1, (), diagonal=True, scale=0.5)
    n_weights = len(flat(state.run.potentials()[0]))
    moments = moments_of(randn(4, n_weights, seed=21))
    state = swag.State(state.run, (moments,))
    drawn = torch.stack([flat(potential) for potential in swag.draw(state, 40, seeded(1))])
    variance = 0.5 * moments.squares / moments.n
    total = float(((drawn - moments.mean) ** 2 / variance).sum())
    low, high = chi2.ppf([5e-4, 1 - 5e-4], drawn.numel())
    assert low < total < high


@pytest.mark.parametrize(("epochs", "every", "n"), [(1, 1, 1), (5, 3, 1), (4, 5, 0)])
def test_fewer_than_two_snapshots_are_refused_before_anything_is_trained(
    tmp_path, epochs, every, n
):
    posterior = {"kind": "swag", "epochs": epochs, "snapshot_every": every}
    with pytest.raises(ValueError, match=rf"gives {n} snapshots; at least 2"):
        swag.fit(tiny_config(posterior=posterior), tmp_path / "run", RunOptions(progress=False))
    assert not (tmp_path / "run").exists()
