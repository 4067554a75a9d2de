"""Predictive laws of force errors, for benchmarks: confidence values, likelihood, draws.

Each law is for n atoms; an error is label minus prediction, (n, 3), eV/Å.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.optimize import minimize_scalar
from scipy.special import gammaln

from ase_bayesmlip.metrics import (
    chi_squared_law,
    ellipsoid_confidence,
    mahalanobis_squared,
    student_t_law,
)


def _roots(matrices: np.ndarray) -> np.ndarray:
    """Symmetric square roots; eigenvalues below round-off are zero."""
    values, vectors = np.linalg.eigh(matrices)
    return np.einsum("nab,nb,ncb->nac", vectors, np.sqrt(values.clip(min=0.0)), vectors)


def _log_determinant(matrices: np.ndarray) -> np.ndarray:
    return np.linalg.slogdet(matrices)[1]


@dataclass(frozen=True)
class GaussianLaw:
    """N(0, Σ) of each atom.

    Attributes
    ----------
    covariance : ndarray, (n, 3, 3), (eV/Å)²
    """

    covariance: np.ndarray

    def confidence(self, error: np.ndarray) -> np.ndarray:
        """Probability of the smallest ellipsoid that holds the label, (n,)."""
        distance = mahalanobis_squared(error, self.covariance)
        return ellipsoid_confidence(distance, chi_squared_law())

    def nll(self, error: np.ndarray) -> np.ndarray:
        """-log p, (n,), nats."""
        distance = mahalanobis_squared(error, self.covariance)
        return 0.5 * (distance + _log_determinant(self.covariance) + 3.0 * np.log(2.0 * np.pi))

    def sample(self, n: int, generator: np.random.Generator) -> np.ndarray:
        """Draws, (n atoms, n, 3), eV/Å."""
        normal = generator.standard_normal((len(self.covariance), n, 3))
        return normal @ _roots(self.covariance)


@dataclass(frozen=True)
class StudentLaw:
    """Multivariate Student-t of each atom.

    Attributes
    ----------
    scale : ndarray, (n, 3, 3), (eV/Å)²
        No covariance: that is η/(η - 2) times it, for η > 2.
    dof : ndarray, (n,)
    """

    scale: np.ndarray
    dof: np.ndarray

    @classmethod
    def of_covariance(cls, covariance: np.ndarray, dof: np.ndarray) -> "StudentLaw":
        """The law that has the covariance."""
        return cls(covariance * ((dof - 2.0) / dof)[:, None, None], dof)

    @classmethod
    def of_members(cls, covariance: np.ndarray, n_members: int) -> "StudentLaw":
        """The law of a label that is exchangeable with the members, from their sample covariance.

        Its ellipsoids are those of Hotelling's T² (`metrics.hotelling_law`).
        """
        dof = n_members - 3.0
        factor = (1.0 + 1.0 / n_members) * (n_members - 1.0) / dof
        return cls(factor * covariance, np.full(len(covariance), dof))

    def confidence(self, error: np.ndarray) -> np.ndarray:
        """Probability of the smallest ellipsoid that holds the label, (n,)."""
        distance = mahalanobis_squared(error, self.scale)
        return ellipsoid_confidence(distance, student_t_law(self.dof))

    def nll(self, error: np.ndarray) -> np.ndarray:
        """-log p, (n,), nats."""
        return self._nll(mahalanobis_squared(error, self.scale), 1.0)

    def _nll(self, distance: np.ndarray, factor: float) -> np.ndarray:
        nu = self.dof
        constant = gammaln(0.5 * nu) - gammaln(0.5 * (nu + 3.0)) + 1.5 * np.log(np.pi * nu)
        determinant = _log_determinant(self.scale) + 3.0 * np.log(factor)
        tail = 0.5 * (nu + 3.0) * np.log1p(distance / (nu * factor))
        return constant + 0.5 * determinant + tail

    def most_likely_factor(self, error: np.ndarray) -> float:
        """The factor of all scale matrices that suits the errors best."""
        distance = mahalanobis_squared(error, self.scale)
        found = minimize_scalar(
            lambda x: float(np.mean(self._nll(distance, np.exp(x)))), bracket=(-1.0, 1.0)
        )
        return float(np.exp(found.x))

    def sample(self, n: int, generator: np.random.Generator) -> np.ndarray:
        """Draws, (n atoms, n, 3), eV/Å."""
        normal = generator.standard_normal((len(self.scale), n, 3))
        chi_squared = generator.chisquare(self.dof[:, None], (len(self.dof), n))
        return (normal @ _roots(self.scale)) * np.sqrt(self.dof[:, None] / chi_squared)[..., None]


@dataclass(frozen=True)
class ComponentLaw:
    """Independent Student-t of each Cartesian component, as eIP has it.

    Attributes
    ----------
    dof, shift, scale : ndarray, (n, 3)
        The last two in eV/Å.
    """

    dof: np.ndarray
    shift: np.ndarray
    scale: np.ndarray

    def confidence(self, error: np.ndarray) -> np.ndarray:
        """Probability of the smallest interval around the centre that holds a component, (3 n,)."""
        below = stats.t.cdf(error, self.dof, self.shift, self.scale)
        return np.abs(2.0 * below - 1.0).ravel()

    def nll(self, error: np.ndarray) -> np.ndarray:
        """-log p of an atom's force, (n,), nats."""
        return -stats.t.logpdf(error, self.dof, self.shift, self.scale).sum(axis=1)

    def sample(self, n: int, generator: np.random.Generator) -> np.ndarray:
        """Draws, (n atoms, n, 3), eV/Å."""
        shape = (len(self.dof), n, 3)
        drawn = generator.standard_t(np.broadcast_to(self.dof[:, None], shape))
        return self.shift[:, None] + self.scale[:, None] * drawn
