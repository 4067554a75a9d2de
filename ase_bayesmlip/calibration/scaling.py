"""Variance scaling: factors for the epistemic and the aleatoric part, by maximum likelihood.

The errors of a quantity follow the law of the file (`metrics.PredictiveLaw`): a Gaussian or a
Student-t of η degrees of freedom, whose scale matrix is

    A = a A_epistemic + b A_aleatoric,                                                     (1)

and the factors a and b maximise the likelihood of the errors of calibration frames (Levi, Gispan,
Giladi and Fetaya, arXiv:1905.11659, with a = b and a Gaussian). With the Cholesky factor L of
A_aleatoric and the spectrum L⁻¹ A_epistemic L⁻ᵀ = U diag(ρ) Uᵀ, the components y = Uᵀ L⁻¹ e of a
Gaussian are independent with

    y_k ~ N(0, a ρ_k + b),                                                                 (2)

so that vectors and scalars, elements and files all lead to the same problem of two numbers. The
gradient of a Student-t is that of the Gaussian with each y² multiplied by

    w = (η + d) / (η + Σ_k y_k²/(a ρ_k + b)),                                               (3)

which makes little of outliers (η → ∞ gives w = 1).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from ase_bayesmlip.calibration.observations import FloatArray, IntArray
from ase_bayesmlip.metrics.errors import Errors

# A factor beyond these limits is not a correction but a part that the likelihood does not need.
LIMIT = 1e3

# ln a and ln b that are known less well than this cannot be told apart.
UNKNOWN = 1.0

# Of the likelihood per component, and of a factor.
_CONVERGED = 1e-13
_MAX_STEPS = 1000


class Components(NamedTuple):
    """Errors as independent components, see (2).

    Attributes
    ----------
    ratio : ndarray, (n, d)
        ρ; ones if there is no aleatoric part, zeros if there is no epistemic one.
    square : ndarray, (n, d)
        y².
    frame : ndarray of int, (n,)
    parts : tuple of bool
        Whether there is an epistemic part, and an aleatoric one.
    dof : ndarray or None, (n,)
        η; None for a Gaussian.
    """

    ratio: FloatArray
    square: FloatArray
    frame: IntArray
    parts: tuple[bool, bool]
    dof: FloatArray | None = None

    def weights(self, variance: FloatArray) -> FloatArray:
        """The w of (3), (n, 1), for variances a ρ + b."""
        if self.dof is None:
            return np.ones((len(self.square), 1))
        distance = (self.square / variance).sum(axis=1)
        dimension = self.square.shape[1]
        return ((self.dof + dimension) / (self.dof + distance))[:, None]


class Fit(NamedTuple):
    """Factors of the epistemic and the aleatoric part, and the standard errors of their logarithms.

    A part that does not exist has the factor 1. The standard errors count frames, not atoms.
    """

    epistemic: float
    aleatoric: float
    log_errors: tuple[float, float]

    @property
    def tells_parts_apart(self) -> bool:
        """Whether the errors fix each factor to better than a factor of e or so."""
        extreme = max(abs(math.log(factor)) for factor in self[:2]) > math.log(LIMIT) - 1e-6
        return not extreme and max(self.log_errors) < UNKNOWN


def components(errors: Errors) -> Components:
    """Independent components of the errors of one quantity.

    Raises
    ------
    ValueError
        If a matrix that must have an inverse has none.
    """
    law, total = errors.judged
    n, d = errors.error.shape
    eta = law.degrees_of_freedom(d)
    dof = None if eta is None else np.broadcast_to(np.asarray(eta, dtype=np.float64), n)
    parts = (errors.epistemic is not None, errors.aleatoric is not None)
    try:
        root = np.linalg.cholesky(
            law.scale(total if errors.aleatoric is None else errors.aleatoric)
        )
    except np.linalg.LinAlgError as error:
        raise ValueError(
            "the covariance of some calibration atom has no inverse; leave frames out whose forces "
            "lie in a plane or vanish by symmetry"
        ) from error
    whitened = np.linalg.solve(root, errors.error[:, :, None])[:, :, 0]
    if errors.epistemic is None or errors.aleatoric is None:
        ratio = np.full(whitened.shape, float(parts[0]))
        return Components(ratio, whitened**2, errors.frame, parts, dof)
    half = np.linalg.solve(root, law.scale(errors.epistemic))
    relative = np.linalg.solve(root, half.swapaxes(1, 2))
    ratio, axes = np.linalg.eigh(0.5 * (relative + relative.swapaxes(1, 2)))
    square = np.einsum("nk,nkl->nl", whitened, axes) ** 2
    return Components(np.maximum(ratio, 0.0), square, errors.frame, parts, dof)


def fit_one_factor(c: Components) -> Fit:
    """The factor a = b of both parts: the mean of w y²/(ρ + 1).

    In closed form for a Gaussian; else the fixed point of expectation maximisation, from the
    median, because a law of few degrees of freedom has no mean square.
    """
    variance = c.ratio + (1.0 if c.parts[1] else 0.0)
    relative = c.square / variance
    factor = float(relative.mean())
    _check_factor(factor)
    if c.dof is not None:
        factor = float(np.median(relative.mean(axis=1))) or factor
    for _ in range(0 if c.dof is None else _MAX_STEPS):
        before, factor = factor, float((c.weights(factor * variance) * relative).mean())
        if abs(factor / before - 1.0) < _CONVERGED:
            break
    _check_factor(factor)
    scores = 0.5 * (1.0 - c.weights(factor * variance) * relative / factor).sum(axis=1)
    information = _information(c, [np.ones_like(relative)])
    error = _clustered(scores[:, None], information, c.frame)[0]
    return Fit(factor, factor, (error, error))


def fit_two_factors(c: Components) -> Fit:
    """Factors of both parts, between 1/`LIMIT` and `LIMIT`; of a part that is unknown, 1."""
    if not all(c.parts):
        one = fit_one_factor(c)
        known = [factor if part else 1.0 for factor, part in zip(one[:2], c.parts, strict=True)]
        return Fit(known[0], known[1], one.log_errors)
    start = math.log(fit_one_factor(c).epistemic)
    bound = math.log(LIMIT)
    trials = [
        minimize(
            _likelihood,
            np.clip([start + shift, start - shift], -bound, bound),
            args=(c,),
            jac=True,
            method="L-BFGS-B",
            bounds=[(-bound, bound)] * 2,
            options={"ftol": _CONVERGED, "gtol": 1e-9},
        )
        for shift in (0.0, 2.0, -2.0)
    ]
    best = min(trials, key=lambda trial: trial.fun).x
    return Fit(math.exp(best[0]), math.exp(best[1]), _two_errors(best, c))


def _likelihood(logs: FloatArray, c: Components) -> tuple[float, FloatArray]:
    """Negative log-likelihood per component, without its constant, and its gradient."""
    variance, gradients, _ = _terms(logs, c)
    distance = c.square / variance
    value = 0.5 * float(np.mean(np.log(variance)))
    if c.dof is None:
        value += 0.5 * float(distance.mean())
    else:
        tail = np.log1p(distance.sum(axis=1) / c.dof)
        value += 0.5 * float(np.sum((c.dof + c.square.shape[1]) * tail)) / c.square.size
    return value, np.array([gradient.mean() for gradient in gradients])


def _terms(
    logs: FloatArray, c: Components
) -> tuple[FloatArray, list[FloatArray], list[FloatArray]]:
    """Variances a ρ + b, derivatives of each term by ln a and ln b, and the shares of the parts."""
    a, b = np.exp(logs)
    variance = a * c.ratio + b
    shares = [a * c.ratio / variance, b / variance]
    misfit = 1.0 - c.weights(variance) * c.square / variance
    return variance, [0.5 * share * misfit for share in shares], shares


def _two_errors(logs: FloatArray, c: Components) -> tuple[float, float]:
    """Standard errors of ln a and ln b."""
    _, gradients, shares = _terms(logs, c)
    information = _information(c, shares)
    scores = np.stack([gradient.sum(axis=1) for gradient in gradients], axis=1)
    if np.linalg.cond(information) > 1e12:
        return math.inf, math.inf
    found = _clustered(scores, information, c.frame)
    return found[0], found[1]


def _information(c: Components, shares: list[FloatArray]) -> FloatArray:
    """Expected information on logarithms of factors that have these shares in the variances.

    ½ s·t for the shares s and t of a Gaussian vector, ½ [(η + d) s·t - Σs Σt]/(η + d + 2) of a
    Student-t (Lange, Little and Taylor, doi:10.1080/01621459.1989.10478852).
    """
    return np.array([[0.5 * _products(c, s, t).sum() for t in shares] for s in shares])


def _products(c: Components, s: FloatArray, t: FloatArray) -> FloatArray:
    products = (s * t).sum(axis=1)
    if c.dof is None:
        return products
    total = c.dof + s.shape[1]
    return (total * products - s.sum(axis=1) * t.sum(axis=1)) / (total + 2.0)


def _clustered(scores: FloatArray, information: FloatArray, frame: IntArray) -> list[float]:
    """Standard errors from I⁻¹ (Σ_f s_f s_fᵀ) I⁻¹, with one score s_f for each frame f.

    Atoms of a frame may be correlated in any way (Liang and Zeger, doi:10.1093/biomet/73.1.13).
    """
    _, index = np.unique(frame, return_inverse=True)
    sums = np.zeros((index.max() + 1, scores.shape[1]))
    np.add.at(sums, index, scores)
    inverse = np.linalg.inv(information)
    covariance = inverse @ (sums.T @ sums) @ inverse
    return [float(x) for x in np.sqrt(np.diag(covariance))]


def _check_factor(factor: float) -> None:
    if not (math.isfinite(factor) and factor > 0.0):
        raise ValueError(
            f"the errors ask for a variance factor of {factor:.3g}: labels and predictions are "
            "identical, or their covariances vanish; give labels of the reference method"
        )


@dataclasses.dataclass(frozen=True)
class Factors:
    """What a served file multiplies its variances by.

    Attributes
    ----------
    forces_epistemic, forces_aleatoric : dict of str to float
        By chemical symbol: of the covariance of an atom's force.
    energy_epistemic, energy_aleatoric : float
        Of the variances of the energy and of the atomic energies alike: labels fix totals only,
        and the variances of atoms keep adding up.
    stress_epistemic : float
        The factor of the forces over all elements: both are first derivatives of the energy. It
        is not fitted to labels of stress.
    """

    forces_epistemic: dict[str, float]
    forces_aleatoric: dict[str, float]
    energy_epistemic: float = 1.0
    energy_aleatoric: float = 1.0
    stress_epistemic: float = 1.0

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Factors:
        """Factors as a model card keeps them."""
        return cls(**content)

    def __mul__(self, other: Factors) -> Factors:
        """One after the other."""
        product: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            one, two = getattr(self, field.name), getattr(other, field.name)
            if isinstance(one, dict):
                product[field.name] = {symbol: one[symbol] * two[symbol] for symbol in one}
            else:
                product[field.name] = one * two
        return Factors(**product)

    def of_atoms(self, symbols: list[str]) -> tuple[FloatArray, FloatArray]:
        """Factors of the force covariances of atoms, epistemic and aleatoric, each (n_atoms,)."""
        return (
            np.array([self.forces_epistemic[symbol] for symbol in symbols]),
            np.array([self.forces_aleatoric[symbol] for symbol in symbols]),
        )


def scaled_results(
    results: Mapping[str, Any], symbols: list[str], factors: Factors
) -> dict[str, Any]:
    """Results with the parts of their variances multiplied; totals and derived keys are left out.

    Parameters
    ----------
    results : mapping
        Of one structure, as `BayesianCalculator` gives them.
    symbols : list of str, (n_atoms,)
    """
    forces: dict[str, NDArray[np.float64]] = dict(
        zip(("epistemic", "aleatoric"), factors.of_atoms(symbols), strict=True)
    )
    energy = {"epistemic": factors.energy_epistemic, "aleatoric": factors.energy_aleatoric}
    kept = ("energy", "forces", "energies", "forces_dof")
    scaled = {name: results[name] for name in kept if name in results}
    for kind in ("epistemic", "aleatoric"):
        for name in (f"energy_var_{kind}", f"energies_var_{kind}"):
            if name in results:
                scaled[name] = results[name] * energy[kind]
        name = f"forces_cov_{kind}"
        if name in results:
            scaled[name] = results[name] * forces[kind][:, None, None]
    return scaled
