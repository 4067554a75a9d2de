"""Correlation times of processes whose correlation is known."""

import math

import numpy as np
import pytest
from scipy.signal import lfilter

from ase_bayesmlip.md.correlation import (
    RESIDUAL,
    autocorrelation_time,
    effective_number,
    independent_stride,
)


def autoregressive(n, phi, generator):
    """A stationary AR(1) process of unit variance."""
    noise = math.sqrt(1 - phi**2) * generator.standard_normal(n)
    noise[0] = generator.standard_normal()
    return lfilter([1.0], [1.0, -phi], noise)


def standard_errors(found, expected):
    return (found.mean() - expected) / (found.std(ddof=1) / math.sqrt(len(found)))


@pytest.mark.parametrize("phi", [0.3, 0.5, 0.9])
def test_autocorrelation_time_of_an_ar1_process(phi):
    expected = (1 + phi) / (1 - phi)
    n, repeats = 20000, 40
    found = [
        autocorrelation_time(autoregressive(n, phi, np.random.default_rng([3, seed])))
        for seed in range(repeats)
    ]
    # The window of 5 τ leaves out exp(-10) of the sum; the rest is noise.
    assert abs(standard_errors(np.array(found), expected)) < 4
    assert np.std(found) < 1.5 * expected * math.sqrt(20 * expected / n)


def test_stride_leaves_the_residual_correlation():
    for phi in (0.1, 0.5, 0.9, 0.99):
        stride = independent_stride((1 + phi) / (1 - phi))
        assert phi**stride <= RESIDUAL < phi ** (stride - 1)
    assert independent_stride(1.0) == 1
    independent = np.random.default_rng(0).standard_normal(20000)
    assert independent_stride(autocorrelation_time(independent)) <= 2


def test_a_constant_series_and_one_that_is_none():
    assert autocorrelation_time(np.ones(50)) == 1.0
    for values in ([1.0], [[1.0, 2.0]], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="finite values"):
            autocorrelation_time(values)
    with pytest.raises(ValueError, match="1 or more"):
        independent_stride(0.5)


@pytest.mark.parametrize("n", [7, 40, 41])
def test_the_sum_is_that_of_the_definition(n):
    """Of a drifting series, whose ends would meet if it were taken for a period of one."""
    x = np.linspace(0.0, 3.0, n) + np.random.default_rng(n).standard_normal(n)
    deviation = x - x.mean()
    rho = [deviation[: n - t] @ deviation[t:] / (deviation @ deviation) for t in range(n)]
    times = [1.0 + 2.0 * sum(rho[1 : m + 1]) for m in range(n)]
    window = next((m for m in range(n) if m >= 5.0 * times[m]), n - 1)
    assert autocorrelation_time(x) == pytest.approx(max(1.0, times[window]), rel=1e-10)


def test_trajectories_are_independent_of_each_other():
    """The sums of both, of one mean; frames of trajectories of their own are independent."""
    x = autoregressive(400, 0.9, np.random.default_rng(1))
    owner = np.repeat([0, 1], 200)
    y = x - x.mean()
    sums = [sum(part[: 200 - t] @ part[t:] for part in (y[:200], y[200:])) for t in range(200)]
    times = 2.0 * np.cumsum(np.array(sums) / sums[0]) - 1.0
    window = next(m for m in range(200) if m >= 5.0 * times[m])
    assert autocorrelation_time(x, owner) == pytest.approx(times[window], rel=1e-10)
    assert effective_number(x) < effective_number(x, np.arange(400)) == 400.0
    shuffled = np.random.default_rng(2).permutation(400)
    # Frames of two trajectories that take turns in the file.
    woven = x.reshape(2, 200).T.ravel()
    assert effective_number(woven, np.tile([0, 1], 200)) == pytest.approx(
        effective_number(x, owner), rel=1e-9
    )
    assert effective_number(x[shuffled]) == 400.0
    with pytest.raises(ValueError, match="400 values need the trajectory of each"):
        effective_number(x, owner[:-1])


def test_independent_and_sorted_values_count_in_full():
    for seed in range(50):
        x = np.random.default_rng(seed).standard_exponential(150)
        assert effective_number(x) == effective_number(np.sort(x)) == 150.0
    for values in (np.ones(30), [1.0, 2.0], [2.0, 1.0, 3.0]):
        assert effective_number(values) == len(values)


@pytest.mark.parametrize("phi", [0.8, 0.9, 0.96])
def test_effective_number_is_on_the_safe_side_and_not_far(phi):
    """On average τ is 1 to 1.7 times the true one, from 6 to 33 of its lengths."""
    tau = (1 + phi) / (1 - phi)
    series = [autoregressive(300, phi, np.random.default_rng([8, k])) for k in range(200)]
    found = np.array([300.0 / effective_number(np.exp(x)) for x in series])
    error = found.std() / math.sqrt(200)
    assert tau - 4 * error < found.mean() < 1.7 * tau + 4 * error
    # Sokal's sum alone is too small.
    assert phi < 0.9 or np.mean([autocorrelation_time(x) for x in series]) < 0.75 * tau
