"""Errors that are drawn from the covariances given with them."""

import numpy as np


def random_spd(generator, n, d=3):
    """Positive definite matrices with eigenvalues between exp(-1) and e in random directions."""
    q = np.linalg.qr(generator.normal(size=(n, d, d)))[0]
    return np.einsum("nab,nb,ncb->nac", q, np.exp(generator.uniform(-1, 1, size=(n, d))), q)


def gaussian_vectors(generator, covariance):
    root = np.linalg.cholesky(covariance)
    return np.einsum("nab,nb->na", root, generator.normal(size=covariance.shape[:2]))


def ensemble_errors(generator, n, n_members):
    """Error of the mean and sample covariance of members that are exchangeable with the label."""
    root = np.linalg.cholesky(random_spd(generator, n))
    drawn = np.einsum("nab,nsb->nsa", root, generator.normal(size=(n, n_members + 1, 3)))
    label, members = drawn[:, 0], drawn[:, 1:]
    centred = members - members.mean(axis=1, keepdims=True)
    covariance = np.einsum("nsa,nsb->nab", centred, centred) / (n_members - 1)
    return label - members.mean(axis=1), covariance
