"""What error bars are made of, and the law that follows from it: decided here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ase_bayesmlip.metrics.laws import PredictiveLaw

# Smallest over largest eigenvalue of a matrix that is flat, and the share of flat ones from which
# they are no accident: errors that lie in a plane, as in every molecule of three atoms. Of four
# members, the fewest for an ellipsoid, one matrix in 7,000 is as flat by chance.
_FLAT = 1e-9
_SHARE = 0.01
# As `ellipsoids`: round-off, in units of d eps.
_SINGULAR = 2.0 * np.finfo(np.float64).eps


@dataclass(frozen=True)
class Origin:
    """Where the epistemic covariances of a file come from.

    Attributes
    ----------
    n_members : int or None
        Exchangeable members whose spread (over S - 1) they are. None if they are something else.
    n_draws : int
        Draws about a known mean whose mean square those of the forces are; 0 if they are not.
        Variances of energies are then known in closed form.
    spherical : bool or None
        Whether forces are judged by spheres. None: where there is no other way, see `law_of`.
    """

    n_members: int | None = None
    n_draws: int = 0
    spherical: bool | None = None


class Card(Protocol):
    """What is read here of a `ModelCard`."""

    @property
    def origin(self) -> Mapping[str, Any]:
        """Fields of `Origin`."""


def origin_of(card: Card) -> Origin:
    """What the card of a served file says, see `ModelCard.origin`."""
    return Origin(**card.origin)


def law_of(
    origin: Origin,
    covariance: np.ndarray,
    is_spread: bool,
    dof: np.ndarray | None = None,
) -> tuple[PredictiveLaw | None, str]:
    """The law of errors with these covariances, or None and the reason.

    * degrees of freedom given for each item: the Student-t of an evidential model;
    * a noise part, or a covariance of unknown origin: a Gaussian;
    * the spread of members or draws alone: Hotelling's law, and that of spheres where they are too
      few for an inverse, or where errors lie in planes, so that there is none.

    Parameters
    ----------
    covariance : ndarray, (n, d, d)
    is_spread : bool
        Whether the covariance is the epistemic part alone.
    dof : ndarray or None, (n,)
    """
    d = covariance.shape[1]
    if dof is not None:
        return PredictiveLaw(dof=dof), ""
    if not is_spread:
        return PredictiveLaw(spherical=d > 1 and bool(origin.spherical)), ""
    draws = origin.n_draws if d > 1 else 0
    members = None if draws else origin.n_members
    if members is not None and members < 2:
        return None, f"{members} member(s) have no spread, and so no law"
    spherical = False
    if d > 1:
        too_few = (draws and draws < d) or (members is not None and members <= d)
        spherical = bool(too_few) or _are_flat(covariance)
        spherical = spherical if origin.spherical is None else origin.spherical or bool(too_few)
    return PredictiveLaw(None, members, draws, spherical), ""


def _are_flat(covariance: np.ndarray) -> bool:
    """Whether some of the matrices, (n, d, d), are singular, or too many nearly so for chance."""
    if not np.isfinite(covariance).all():
        return False  # which is found, and said, elsewhere
    eigenvalues = np.linalg.eigvalsh(covariance)
    ratio = eigenvalues[:, 0] / np.maximum(eigenvalues[:, -1], np.finfo(np.float64).tiny)
    singular = ratio <= _SINGULAR * covariance.shape[1]
    return bool(singular.any() or np.mean(ratio < _FLAT) > _SHARE)
