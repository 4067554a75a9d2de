"""Correlation times of processes whose correlation is known."""

import math

import numpy as np
import pytest
from scipy.signal import lfilter

from ase_bayesmlip.md.correlation import RESIDUAL, autocorrelation_time, independent_stride


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
