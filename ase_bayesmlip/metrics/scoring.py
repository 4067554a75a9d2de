"""Errors, and proper scoring rules, which are least when the stated distribution is the true one.

Scores are means over items; less is better. Background: Gneiting and Raftery, Strictly Proper
Scoring Rules, Prediction, and Estimation, doi:10.1198/016214506000001437.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaln, gammaln, ndtr

from ase_bayesmlip.metrics.checks import FloatArray, finite, positive, same_shape, whole
from ase_bayesmlip.metrics.ellipsoids import vectors_and_spectrum


def rmse(error: ArrayLike) -> float:
    """Root mean square error √(mean e²), over all components.

    Parameters
    ----------
    error : array_like, any shape, any unit
    """
    return math.sqrt(np.mean(finite("error", error) ** 2))


def mae(error: ArrayLike) -> float:
    """Mean absolute error, mean |e|, over all components.

    Parameters
    ----------
    error : array_like, any shape, any unit
    """
    return float(np.mean(np.abs(finite("error", error))))


def gaussian_nll(error: ArrayLike, variance: ArrayLike) -> float:
    """Mean negative log-likelihood of a Gaussian, with its constant,

        ½ (e²/σ² + ln σ² + ln 2π).

    Parameters
    ----------
    error : array_like, any shape, any unit u
    variance : array_like, same shape, u²

    Returns
    -------
    float, nats per component
        Of a density per u: if values in u turn into c times as many of another unit, ln c is added.
    """
    e, var = finite("error", error), positive("variance", variance)
    same_shape("error", e, "variance", var)
    return 0.5 * float(np.mean(e**2 / var + np.log(var))) + 0.5 * math.log(2.0 * math.pi)


def multivariate_gaussian_nll(error: ArrayLike, covariance: ArrayLike) -> float:
    """Mean negative log-likelihood of a multivariate Gaussian, with its constant,

        ½ (eᵀ Σ⁻¹ e + ln det Σ + d ln 2π).

    Parameters
    ----------
    error : array_like, (n, d), any unit u
    covariance : array_like, (n, d, d), u²
        Symmetric and positive definite.

    Returns
    -------
    float, nats per vector

    Raises
    ------
    ValueError
        If a covariance is singular, as that of 3 or fewer members is in three dimensions.
    """
    components, eigenvalues, _ = vectors_and_spectrum(error, covariance)
    terms = components**2 / eigenvalues + np.log(eigenvalues) + math.log(2.0 * math.pi)
    return 0.5 * float(terms.sum(axis=1).mean())


def student_t_nll(error: ArrayLike, scale: ArrayLike, dof: ArrayLike) -> float:
    """Mean negative log-likelihood of a multivariate Student-t, with its constants,

        ln Γ(ν/2) - ln Γ((ν + d)/2) + (d/2) ln(νπ) + ½ ln det A + ((ν + d)/2) ln(1 + eᵀ A⁻¹ e / ν).

    The difference of log-gammas is evaluated as ln B(ν/2, d/2) - ln Γ(d/2), which loses no digits
    when ν is large.

    Parameters
    ----------
    error : array_like, (n, d), any unit u
        Label - location.
    scale : array_like, (n, d, d), u²
        The scale matrix A, which is no covariance: that is ν / (ν - 2) A, and only for ν > 2.
    dof : array_like, () or (n,)
        Degrees of freedom ν > 0, one for all vectors or one for each.

    Returns
    -------
    float, nats per vector
    """
    components, eigenvalues, _ = vectors_and_spectrum(error, scale, "scale")
    n, d = components.shape
    nu = positive("dof", dof)
    if nu.shape not in ((), (n,)):
        raise ValueError(f"dof must have shape () or ({n},), not {nu.shape}")
    distance = (components**2 / eigenvalues).sum(axis=1)
    constant = betaln(0.5 * nu, 0.5 * d) - gammaln(0.5 * d) + 0.5 * d * np.log(math.pi * nu)
    logdet = np.log(eigenvalues).sum(axis=1)
    return float(np.mean(constant + 0.5 * logdet + 0.5 * (nu + d) * np.log1p(distance / nu)))


def crps_gaussian(error: ArrayLike, std: ArrayLike) -> float:
    """Mean continuous ranked probability score ∫ (F(x) - 1[x ≥ y])² dx of a Gaussian,

        σ [z (2Φ(z) - 1) + 2φ(z) - 1/√π],    z = e/σ

    (Gneiting et al., doi:10.1175/MWR2904.1). For σ → 0 it becomes the mean absolute error.

    Parameters
    ----------
    error : array_like, any shape, any unit u
    std : array_like, same shape, u

    Returns
    -------
    float, u
    """
    e, sigma = finite("error", error), positive("std", std)
    same_shape("error", e, "std", sigma)
    z = e / sigma
    density = np.exp(-0.5 * z**2) / math.sqrt(2.0 * math.pi)
    score = sigma * (z * (2.0 * ndtr(z) - 1.0) + 2.0 * density - 1.0 / math.sqrt(math.pi))
    return float(np.mean(score))


def energy_score(label: ArrayLike, samples: ArrayLike) -> float:
    """Mean energy score of vectors from samples, by the unbiased estimator

        (1/S) Σₖ |Yₖ - y| - 1/(2 S (S - 1)) Σ_{k≠l} |Yₖ - Yₗ|

    of E|Y - y| - ½ E|Y - Y'| (Gneiting and Raftery, section 4.3). The CRPS is its case d = 1.

    Parameters
    ----------
    label : array_like, (n, d), any unit u
    samples : array_like, (n, S, d), u
        S ≥ 2 independent draws for each vector.

    Returns
    -------
    float, u
        Small samples may make it negative.
    """
    y, drawn = finite("label", label), finite("samples", samples)
    if y.ndim != 2 or drawn.ndim != 3 or drawn.shape[::2] != y.shape:
        raise ValueError(
            f"label must have shape (n, d) and samples (n, S, d), not {y.shape} and {drawn.shape}"
        )
    n, n_samples, _ = drawn.shape
    if n_samples < 2:
        raise ValueError("the energy score needs 2 samples or more of each vector, and has 1")
    to_label = np.linalg.norm(drawn - y[:, None], axis=2).sum() / n_samples
    # Each pair once: samples and themselves, moved on by 1, 2, ...
    apart = sum(
        float(np.linalg.norm(drawn[:, shift:] - drawn[:, :-shift], axis=2).sum())
        for shift in range(1, n_samples)
    )
    return float(to_label - apart / (n_samples * (n_samples - 1))) / n


def energy_score_gaussian(
    error: ArrayLike,
    covariance: ArrayLike,
    n_samples: int = 100,
    *,
    generator: np.random.Generator,
) -> float:
    """Mean energy score of Gaussian vectors, by drawing Z ~ N(0, Σ) and averaging

        |Z - e| - |Z|/√2.

    Two independent draws differ by N(0, 2Σ), so that ½ E|Y - Y'| = E|Z|/√2: the estimate is
    unbiased, costs S distances rather than S² and needs no memory for the samples.

    Parameters
    ----------
    error : array_like, (n, d), any unit u
    covariance : array_like, (n, d, d), u²
        Symmetric and positive semi-definite: this score does not need an inverse, and compares
        small ensembles, whose covariances are singular, with others.
    n_samples : int
        S, draws for each vector.
    generator : numpy.random.Generator

    Returns
    -------
    float, u
    """
    draws = whole("n_samples", n_samples, 1)
    components, eigenvalues, _ = vectors_and_spectrum(error, covariance, definite=False)
    # Lengths do not depend on the frame: draw along the principal axes.
    std = np.sqrt(eigenvalues)
    total = 0.0
    for _ in range(draws):
        z: FloatArray = std * generator.standard_normal(components.shape)
        lengths = np.linalg.norm(z - components, axis=1) - np.linalg.norm(z, axis=1) / math.sqrt(2)
        total += float(lengths.sum())
    return total / (draws * len(components))
