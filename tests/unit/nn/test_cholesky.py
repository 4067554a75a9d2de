"""The published force covariance, from six invariants."""

import numpy as np
import torch

from ase_bayesmlip.nn.cholesky import cholesky_covariance


def test_cholesky_covariance_is_in_the_documented_order():
    q = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]], dtype=torch.float64)
    factor = np.array([[np.exp(0.1), 0.0, 0.0], [0.6, np.exp(0.2), 0.0], [0.5, 0.4, np.exp(0.3)]])
    found = cholesky_covariance(q)[0]
    np.testing.assert_allclose(found.numpy(), factor @ factor.T, rtol=1e-14)
    np.testing.assert_allclose(torch.linalg.cholesky(found).numpy(), factor, rtol=1e-12)
