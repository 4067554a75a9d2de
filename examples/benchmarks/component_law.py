"""The predictive law of eIP, with the interface of `ase_bayesmlip.evaluation.PredictiveLaw`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True, eq=False)
class ComponentLaw:
    """Independent Student-t of each Cartesian component of n force errors, label - prediction.

    Attributes
    ----------
    dof, shift, scale : ndarray, (n, 3)
        The last two in eV/Å.
    """

    dof: np.ndarray
    shift: np.ndarray
    scale: np.ndarray

    def confidence(self, error: np.ndarray, _: np.ndarray) -> np.ndarray:
        """Probability of the smallest interval around the centre that holds a component, (3 n,)."""
        below = stats.t.cdf(error, self.dof, self.shift, self.scale)
        return np.abs(2.0 * below - 1.0).ravel()

    def nll(self, error: np.ndarray, _: np.ndarray) -> float:
        """Mean -log p of an atom's force, nats."""
        terms = stats.t.logpdf(error, self.dof, self.shift, self.scale)
        return -float(terms.sum(axis=1).mean())

    def draws(
        self, _: np.ndarray, n_draws: int, generator: np.random.Generator
    ) -> Iterator[np.ndarray]:
        """Errors as the law would have them, (n, 3) each."""
        for _number in range(n_draws):
            yield self.shift + self.scale * generator.standard_t(self.dof)

    def take(self, items: np.ndarray | slice) -> ComponentLaw:
        """The law of some of the atoms."""
        return ComponentLaw(self.dof[items], self.shift[items], self.scale[items])
