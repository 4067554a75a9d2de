"""The law that a label should follow, given what its error bar is made of.

Every law is a Student-t of η degrees of freedom (a Gaussian for η → ∞) around the prediction, whose
scale matrix A is a multiple c of the covariance C, or of the sphere (tr C/d) 1 in its place:

======================================  ==============  ===========  =============================
the covariance C is                     C enters as     η            c
======================================  ==============  ===========  =============================
a total with a noise part, or of        C               ∞            1
unknown origin
a total of an evidential model          C               η            (η - 2)/η
the spread of S members over S - 1      C               S - d        (1 + 1/S) (S - 1)/(S - d)
                                        (tr C/d) 1      d (S - 1)    1 + 1/S
the mean square of D draws about a      C               D - d + 1    D/(D - d + 1)
mean that is known                      (tr C/d) 1      d D          1
======================================  ==============  ===========  =============================

**Members.** The S members and the label are taken for independent draws of one Gaussian N(μ, Σ).
The error of their mean is e ~ N(0, (1 + 1/S) Σ), and (S - 1) C ~ Wishart(Σ, S - 1) does not depend
on it, so that eᵀ C⁻¹ e / (1 + 1/S) is Hotelling's T², d (S - 1)/(S - d) F(d, S - d), whatever Σ is
(`ellipsoids.hotelling_law`). It needs S > d.

**Draws.** With the mean known, e ~ N(0, Σ) and D C ~ Wishart(Σ, D): eᵀ C⁻¹ e is T² with D degrees
of freedom, d D/(D - d + 1) F(d, D - d + 1) (Anderson, An Introduction to Multivariate Statistical
Analysis, theorem 5.2.2). It needs D ≥ d.

**Spheres**, for samples too small to have an inverse, or whose errors lie in a plane. If Σ = σ² 1,
then |e|²/(1 + 1/S) ~ σ² χ²(d) and (S - 1) tr C ~ σ² χ²(d (S - 1)), independent of each other, and
|e|²/tr C ~ (1 + 1/S) F(d, d (S - 1)): all d (S - 1) numbers of an atom go into one variance, and
two members are enough. With a known mean D stands for S - 1, and 1 for 1 + 1/S. It is exact where Σ
has no direction, and an approximation with too few tails elsewhere.

In one dimension sphere and ellipsoid are the same, and the law of members is Student's t.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import chdtri, fdtri, ndtri, stdtrit

from ase_bayesmlip.metrics.ellipsoids import (
    chi_squared_law,
    ellipsoid_confidence,
    mahalanobis_squared,
    student_t_law,
)
from ase_bayesmlip.metrics.scoring import multivariate_gaussian_nll, student_t_nll


@dataclass(frozen=True, eq=False)
class PredictiveLaw:
    """How errors of labels should be distributed around a prediction.

    Attributes
    ----------
    dof : ndarray or None, (n,)
        Degrees of freedom η > 2 of a multivariate Student-t with the covariance C, one for each
        item.
    n_members : int or None
        S, where C is nothing but the spread of S exchangeable members.
    n_draws : int
        D, where C is nothing but the mean square of D draws about a known mean; else 0.
    spherical : bool
        Whether (tr C/d) 1 stands in for C.

    With none of them, errors are Gaussian and the covariance counts as known.
    """

    dof: np.ndarray | None = None
    n_members: int | None = None
    n_draws: int = 0
    spherical: bool = False

    @property
    def name(self) -> str:
        """``"gaussian"``, ``"student_t"``, ``"hotelling"`` or, on spheres, ``"spherical"``.

        A Gaussian on spheres, the law of files calibrated by an early version, is
        ``"spherical_gaussian"``.
        """
        if self.dof is not None:
            return "student_t"
        if self.n_members is None and not self.n_draws:
            return "spherical_gaussian" if self.spherical else "gaussian"
        return "spherical" if self.spherical else "hotelling"

    def to_record(self) -> dict[str, Any]:
        """Plain data for a model card; degrees of freedom of single items are not kept."""
        content = asdict(self)
        del content["dof"]
        return {"name": self.name, **content}

    @classmethod
    def from_record(cls, content: dict[str, Any], dof: np.ndarray | None = None) -> PredictiveLaw:
        """The law of a record; `dof` where its name is ``"student_t"``."""
        return cls(dof, content["n_members"], content["n_draws"], content["spherical"])

    # --- the Student-t ---

    def degrees_of_freedom(self, dimension: int) -> np.ndarray | float | None:
        """η in d dimensions; None for a Gaussian.

        Raises
        ------
        ValueError
            If the members or draws are too few for an ellipsoid.
        """
        if self.dof is not None:
            return self.dof
        d = dimension
        if self.n_draws:
            found = d * self.n_draws if self.spherical else self.n_draws - d + 1
        elif self.n_members is not None:
            found = d * (self.n_members - 1) if self.spherical else self.n_members - d
        else:
            return None
        if found < 1:
            raise ValueError(
                f"the covariance of {self.n_draws or self.n_members} "
                f"{'draws' if self.n_draws else 'members'} has no inverse in {d} dimensions; take "
                "spheres, or more of them"
            )
        return float(found)

    def factor(self, dimension: int) -> np.ndarray | float:
        """The c of the table, by which the covariance becomes the scale matrix."""
        eta = self.degrees_of_freedom(dimension)
        if self.dof is not None:
            return (self.dof - 2.0) / self.dof
        if self.n_draws:
            return 1.0 if self.spherical else self.n_draws / float(eta)  # type: ignore[arg-type]
        if self.n_members is None:
            return 1.0
        s = self.n_members
        return (1.0 + 1.0 / s) * (1.0 if self.spherical else (s - 1) / float(eta))  # type: ignore[arg-type]

    def shape(self, covariance: np.ndarray) -> np.ndarray:
        """What stands for C: itself or, on spheres, (tr C/d) 1; (n, d, d)."""
        if not self.spherical:
            return covariance
        d = covariance.shape[1]
        trace = np.trace(covariance, axis1=1, axis2=2)
        return np.asarray(trace[:, None, None] / d * np.eye(d))

    def scale(self, covariance: np.ndarray) -> np.ndarray:
        """The scale matrices A of the law, (n, d, d)."""
        factor = np.asarray(self.factor(covariance.shape[1]))
        return self.shape(covariance) * (factor[:, None, None] if factor.ndim else factor)

    @property
    def mean_square(self) -> float:
        """Mean of |e|² over that of tr C: 1 + 1/S for members, whose mean has its own error."""
        return 1.0 if self.n_members is None or self.n_draws else 1.0 + 1.0 / self.n_members

    # --- what it says of errors ---

    def distances(self, error: np.ndarray, covariance: np.ndarray) -> np.ndarray:
        """√(eᵀ C⁻¹ e), (n,), with a sphere for C if need be: sizes of errors for regions."""
        return np.asarray(np.sqrt(mahalanobis_squared(error, self.shape(covariance))))

    def confidence(self, error: np.ndarray, covariance: np.ndarray) -> np.ndarray:
        """Probability of the smallest region that holds the label, (n,).

        Parameters
        ----------
        error : ndarray, (n, d), any unit u
        covariance : ndarray, (n, d, d), u²
        """
        d = error.shape[1]
        eta = self.degrees_of_freedom(d)
        law = chi_squared_law(d) if eta is None else student_t_law(eta, d)
        distance = mahalanobis_squared(error, self.scale(covariance))
        return ellipsoid_confidence(distance, law)

    def nll(self, error: np.ndarray, covariance: np.ndarray) -> float:
        """Mean negative log-likelihood of the labels, nats per vector; shapes as `confidence`."""
        eta = self.degrees_of_freedom(error.shape[1])
        if eta is None:
            return multivariate_gaussian_nll(error, self.shape(covariance))
        return student_t_nll(error, self.scale(covariance), eta)

    def radius(self, probability: float, dimension: int) -> np.ndarray | float:
        """The `distances` within which a label lies with a probability; one for all, or (n,)."""
        eta = self.degrees_of_freedom(dimension)
        if eta is None:
            return float(np.sqrt(chdtri(dimension, 1.0 - probability)))
        squared = self.factor(dimension) * dimension * fdtri(dimension, eta, probability)
        return np.sqrt(squared) if np.ndim(squared) else float(np.sqrt(squared))

    def interval_factor(self, probability: np.ndarray | float, dimension: int = 3) -> np.ndarray:
        """Half-width of the centred interval of a component, in units of √C_cc, see `shape`.

        Where every item has degrees of freedom of its own, those of their median. `dimension` is
        that of the vector, which matters on spheres.
        """
        upper = 0.5 * (1.0 + np.asarray(probability, dtype=np.float64))
        if self.dof is not None:
            eta = float(np.median(self.dof))
            return np.asarray(stdtrit(eta, upper) * np.sqrt((eta - 2.0) / eta))
        if self.n_members is None and not self.n_draws:
            return np.asarray(ndtri(upper))
        # One component of a sample covariance is a sample variance: the law in one dimension.
        d = dimension if self.spherical else 1
        return np.asarray(np.sqrt(self.factor(d)) * stdtrit(self.degrees_of_freedom(d), upper))

    def draws(
        self, covariance: np.ndarray, n_draws: int, generator: np.random.Generator
    ) -> Iterator[np.ndarray]:
        """Errors as the law would have them, (n, d) each, for covariances (n, d, d)."""
        n, d = covariance.shape[:2]
        eta = self.degrees_of_freedom(d)
        eigenvalues, axes = np.linalg.eigh(self.scale(covariance))
        deviations = np.sqrt(np.maximum(eigenvalues, 0.0))
        for _ in range(n_draws):
            normal = deviations * generator.standard_normal((n, d))
            error = np.einsum("nak,nk->na", axes, normal)
            if eta is not None:
                chi_squared = generator.chisquare(np.broadcast_to(eta, n))
                error *= np.sqrt(eta / chi_squared)[:, None]
            yield error

    def take(self, items: np.ndarray | slice) -> PredictiveLaw:
        """The law of some of the items."""
        return self if self.dof is None else PredictiveLaw(dof=self.dof[items])
