"""The law that a label should follow, given what its error bar is made of.

==========================================  =================================================
the covariance C is                         law of the error e of a label, in d dimensions
==========================================  =================================================
a total with a noise part, or of unknown    Gaussian N(0, C)
origin
a total of an evidential model              Student-t with η degrees of freedom and the scale
                                            matrix A = (η - 2)/η C
the spread of S members and no noise        Student-t with S - d degrees of freedom and
                                            A = (1 + 1/S) (S - 1)/(S - d) C
==========================================  =================================================

The last line is Hotelling's: eᵀ A⁻¹ e / d follows F(d, S - d), which is what
`metrics.hotelling_law` says of d² = eᵀ C⁻¹ e (its docstring has the derivation), and so the label
is predicted by that Student-t. It needs S > d: in fewer than 4 members no force has a law.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

from ase_bayesmlip import metrics


@dataclass(frozen=True, eq=False)
class PredictiveLaw:
    """How errors of labels should be distributed around a prediction.

    Attributes
    ----------
    dof : ndarray or None, (n,)
        Degrees of freedom η > 2 of a multivariate Student-t, one for each item.
    n_members : int or None
        S, where the covariance is nothing but the spread of S exchangeable members.

    With neither, errors are Gaussian and the covariance counts as known.
    """

    dof: np.ndarray | None = None
    n_members: int | None = None

    @property
    def name(self) -> str:
        """``"gaussian"``, ``"student_t"`` or ``"hotelling"``."""
        if self.dof is not None:
            return "student_t"
        return "gaussian" if self.n_members is None else "hotelling"

    def confidence(self, error: np.ndarray, covariance: np.ndarray) -> np.ndarray:
        """Probability of the smallest ellipsoid that holds the label, (n,).

        Parameters
        ----------
        error : ndarray, (n, d), any unit u
        covariance : ndarray, (n, d, d), u²
        """
        d = error.shape[1]
        if self.dof is not None:
            distance = metrics.mahalanobis_squared(error, self._scale(covariance))
            return metrics.ellipsoid_confidence(distance, metrics.student_t_law(self.dof, d))
        law = (
            metrics.chi_squared_law(d)
            if self.n_members is None
            else metrics.hotelling_law(self.n_members, d)
        )
        return metrics.ellipsoid_confidence(metrics.mahalanobis_squared(error, covariance), law)

    def nll(self, error: np.ndarray, covariance: np.ndarray) -> float:
        """Mean negative log-likelihood of the labels, nats per vector; shapes as `confidence`."""
        dof = self._degrees_of_freedom(error.shape[1])
        if dof is None:
            return metrics.multivariate_gaussian_nll(error, covariance)
        return metrics.student_t_nll(error, self._scale(covariance), dof)

    def interval_factor(self, probability: np.ndarray | float) -> np.ndarray:
        """Half-width of the centred interval of a component, in units of its deviation √C_cc.

        Where every item has degrees of freedom of its own, those of their median.
        """
        upper = 0.5 * (1.0 + np.asarray(probability, dtype=np.float64))
        if self.dof is not None:
            eta = float(np.median(self.dof))
            return np.asarray(stdtrit(eta, upper) * np.sqrt((eta - 2.0) / eta))
        if self.n_members is not None:
            s = self.n_members
            return np.asarray(np.sqrt(1.0 + 1.0 / s) * stdtrit(s - 1, upper))
        return np.asarray(ndtri(upper))

    def draws(
        self, covariance: np.ndarray, n_draws: int, generator: np.random.Generator
    ) -> Iterator[np.ndarray]:
        """Errors as the law would have them, (n, d) each, for covariances (n, d, d)."""
        n, d = covariance.shape[:2]
        dof = self._degrees_of_freedom(d)
        eigenvalues, axes = np.linalg.eigh(covariance if dof is None else self._scale(covariance))
        deviations = np.sqrt(np.maximum(eigenvalues, 0.0))
        for _ in range(n_draws):
            normal = deviations * generator.standard_normal((n, d))
            error = np.einsum("nak,nk->na", axes, normal)
            if dof is not None:
                chi_squared = generator.chisquare(np.broadcast_to(dof, n))
                error *= np.sqrt(dof / chi_squared)[:, None]
            yield error

    def take(self, items: np.ndarray | slice) -> PredictiveLaw:
        """The law of some of the items."""
        return self if self.dof is None else PredictiveLaw(dof=self.dof[items])

    def _degrees_of_freedom(self, dimension: int) -> np.ndarray | float | None:
        if self.n_members is not None:
            return float(self.n_members - dimension)
        return self.dof

    def _scale(self, covariance: np.ndarray) -> np.ndarray:
        if self.dof is not None:
            return ((self.dof - 2.0) / self.dof)[:, None, None] * covariance
        s, d = float(self.n_members or 0), covariance.shape[1]
        return (1.0 + 1.0 / s) * (s - 1) / (s - d) * covariance
