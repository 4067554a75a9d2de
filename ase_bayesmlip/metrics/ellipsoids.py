"""Squared Mahalanobis distances, the laws they follow, and the ellipsoids they bound.

Which law a distance d² = eᵀ Σ⁻¹ e follows depends on what Σ is:

================================================  ========================
Σ is                                              law of d²
================================================  ========================
the covariance of a Gaussian error                `chi_squared_law`
the sample covariance of S members (over S - 1)   `hotelling_law`
the scale matrix of a multivariate Student-t      `student_t_law`
================================================  ========================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import chdtr, fdtr

from ase_bayesmlip.metrics.checks import (
    FloatArray,
    finite,
    finite_1d,
    not_negative,
    positive,
    probability,
    whole,
)

# Cumulative distribution function of the squared Mahalanobis distance: (n,) -> (n,).
Law = Callable[[FloatArray], FloatArray]

# In units of d eps. For d = 3, round-off leaves the zero eigenvalues of a sum of outer products at
# up to 4 eps of the largest. The smallest eigenvalue of four members, the fewest that give rank 3,
# comes within 6 eps for about one atom in a million, and fewer if the covariances are isotropic.
_RANK_TOLERANCE = 2.0


def vectors_and_spectrum(
    error: ArrayLike, matrix: ArrayLike, name: str = "covariance", definite: bool = True
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Components of errors along the principal axes of their covariances, and the variances there.

    Parameters
    ----------
    error : array_like, (n, d)
    matrix : array_like, (n, d, d)
    name : str
        What an error message calls the matrix.
    definite : bool
        Whether a singular matrix is refused. Otherwise it need be positive semi-definite only.

    Returns
    -------
    components, eigenvalues : ndarray, (n, d)
    axes : ndarray, (n, d, d)
        Eigenvectors in columns.

    Raises
    ------
    ValueError
        If shapes do not match, or a matrix is not symmetric or not positive (semi-)definite.
    """
    e, sigma = finite("error", error), finite(name, matrix)
    if e.ndim != 2 or sigma.shape != (*e.shape, e.shape[1]):
        raise ValueError(
            f"error must have shape (n, d) and {name} (n, d, d), not {e.shape} and {sigma.shape}"
        )
    transposed = sigma.swapaxes(1, 2)
    asymmetry = np.abs(sigma - transposed).max(axis=(1, 2))
    if (asymmetry > 1e-6 * np.abs(sigma).max(axis=(1, 2))).any():
        worst = int(asymmetry.argmax())
        raise ValueError(
            f"{name} must be symmetric; number {worst} differs from its transpose by "
            f"{asymmetry[worst]:.3g}"
        )
    eigenvalues, axes = np.linalg.eigh(0.5 * (sigma + transposed))
    _check_rank(eigenvalues, _precision(matrix), name, definite)
    components = np.einsum("na,nak->nk", e, axes)
    return components, np.maximum(eigenvalues, 0.0), axes


def _precision(matrix: ArrayLike) -> np.finfo[Any]:
    """Floating-point type that a matrix comes in; integers count as float64."""
    given = np.asarray(matrix).dtype
    return np.finfo(given if given.kind == "f" else np.float64)


def _check_rank(
    eigenvalues: FloatArray, precision: np.finfo[Any], name: str, definite: bool
) -> None:
    """Refuse negative eigenvalues and, if definite, those that vanish to round-off."""
    n, d = eigenvalues.shape
    tolerance = _RANK_TOLERANCE * d * float(precision.eps) * np.abs(eigenvalues).max(axis=1)
    smallest = eigenvalues[:, 0]
    bad = smallest <= tolerance if definite else smallest < -tolerance
    if not bad.any():
        return
    first = int(bad.argmax())
    given = f"{np.count_nonzero(bad)} of {n} are not; number {first} has the eigenvalues " + (
        ", ".join(f"{value:.3g}" for value in eigenvalues[first])
    )
    if not definite:
        raise ValueError(f"{name} must be positive semi-definite, and {given}")
    raise ValueError(
        f"{name} must be positive definite in {precision.dtype}, and {given}. The sample "
        f"covariance of S members has rank S - 1 at most, so that {d} dimensions need {d + 1} "
        f"members or more; of {d + 1}, a rare one is singular to round-off"
    )


def mahalanobis_squared(error: ArrayLike, covariance: ArrayLike) -> FloatArray:
    """Squared Mahalanobis distance

        d²ᵢ = eᵢᵀ Σᵢ⁻¹ eᵢ.

    Parameters
    ----------
    error : array_like, (n, d), any unit u
    covariance : array_like, (n, d, d), u²
        Symmetric and positive definite. For the law of a Student-t it is the *scale* matrix A,
        which is ``(dof - 2) / dof`` times the covariance.

    Returns
    -------
    ndarray, (n,), dimensionless

    Raises
    ------
    ValueError
        If a matrix is singular to round-off: it has no inverse, and d² has no law.
    """
    components, eigenvalues, _ = vectors_and_spectrum(error, covariance)
    return (components**2 / eigenvalues).sum(axis=1)


def chi_squared_law(dimension: int = 3) -> Law:
    """Law of d² for a Gaussian error whose covariance is known: d² ~ χ²(d)."""
    d = whole("dimension", dimension, 1)

    def cumulative(d2: FloatArray) -> FloatArray:
        return np.asarray(chdtr(d, d2))

    return cumulative


def hotelling_law(n_members: int, dimension: int = 3) -> Law:
    """Law of d² for the sample covariance of S members that are exchangeable with the label.

    Let the members Y₁ ... Y_S and the label y be independent draws of one Gaussian N(μ, Σ) in d
    dimensions, with the mean Ȳ and the sample covariance C = Σₖ (Yₖ - Ȳ)(Yₖ - Ȳ)ᵀ / (S - 1). The
    error of the mean is e = y - Ȳ, and

        e ~ N(0, (1 + 1/S) Σ),      (S - 1) C ~ Wishart(Σ, S - 1),      independent of each other,

    because y is independent of all members, and the mean of a Gaussian sample of its covariance.
    Hence d² / (1 + 1/S), with d² = eᵀ C⁻¹ e, is Hotelling's T² with S - 1 degrees of freedom
    (Anderson, An Introduction to Multivariate Statistical Analysis, chapter 5),

        T²(d, S - 1) = d (S - 1) / (S - d) F(d, S - d),

        d² ~ (1 + 1/S) d (S - 1) / (S - d) F(d, S - d).

    The factor 1 + 1/S belongs to the prediction of *one new observation*: the error of the mean as
    an estimate of μ would have 1/S in its place. The law holds for C alone. It does not hold when
    an aleatoric covariance has been added to C.

    Parameters
    ----------
    n_members : int
        S, at least d + 1. With fewer, C has rank S - 1 < d and no inverse.
    dimension : int
        3 for forces; 1 for a scalar, where the law is that of Student's t squared.

    Raises
    ------
    ValueError
        If there are too few members for the dimension.
    """
    d, n = whole("dimension", dimension, 1), whole("n_members", n_members, 1)
    if n <= d:
        raise ValueError(
            f"the sample covariance of {n} members has rank {n - 1} and no inverse in {d} "
            f"dimensions, so that d² has no law; give {d + 1} members or more"
        )
    scale = (1.0 + 1.0 / n) * d * (n - 1) / (n - d)

    def cumulative(d2: FloatArray) -> FloatArray:
        return np.asarray(fdtr(d, n - d, d2 / scale))

    return cumulative


def student_t_law(dof: ArrayLike, dimension: int = 3) -> Law:
    """Law of d² = eᵀ A⁻¹ e for a multivariate Student-t with scale matrix A: d²/d ~ F(d, ν).

    With e = √(ν/w) A^½ z, z ~ N(0, 1) and w ~ χ²(ν), d²/d = (|z|²/d) / (w/ν), which is F(d, ν) by
    definition (Kotz and Nadarajah, Multivariate t Distributions and Their Applications, 2004).

    Parameters
    ----------
    dof : array_like, () or (n,)
        Degrees of freedom ν > 0, one for all vectors or one for each.
    dimension : int
    """
    d, nu = whole("dimension", dimension, 1), positive("dof", dof)

    def cumulative(d2: FloatArray) -> FloatArray:
        if nu.ndim > 0 and nu.shape != d2.shape:
            raise ValueError(f"dof has shape {nu.shape} and d2 {d2.shape}; give one dof or as many")
        return np.asarray(fdtr(d, nu, d2 / d))

    return cumulative


def ellipsoid_confidence(d2: ArrayLike, law: Law) -> FloatArray:
    """Probability of the smallest ellipsoid of the law that holds the label: u = P(D² ≤ d²).

    A label lies in the ellipsoid of probability p when d² is at most the p-quantile of the law,
    which is to say when u ≤ p. If the law is right, u is uniform on [0, 1].

    Parameters
    ----------
    d2 : array_like, (n,), dimensionless
    law : callable
        Cumulative distribution function of d².

    Returns
    -------
    ndarray, (n,)
        To be given to `calibration.calibration_curve` and the functions beside it.
    """
    distances = not_negative("d2", finite_1d("d2", d2))
    confidence = probability("the values of the law", law(distances))
    if confidence.shape != distances.shape:
        raise ValueError(f"the law turned shape {distances.shape} into {confidence.shape}")
    return confidence
