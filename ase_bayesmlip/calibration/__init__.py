"""Recalibration: what calibration frames say of error bars, and what is done about it.

`observations` gathers errors and covariances of calibration frames; `scaling` fits the factors by
which a served file multiplies its variances; `levels` turns a probability into the size of an
interval or ellipsoid, by isotonic recalibration and by split conformal prediction; `fit` does it
all and says how good it was before and after; `regions` is what a user asks for intervals and
ellipsoids of a served file. Free of torch: everything here works on results and model cards.
"""

from __future__ import annotations

from ase_bayesmlip.calibration.fit import METHODS, Calibration, calibrate
from ase_bayesmlip.calibration.observations import Observations, observe
from ase_bayesmlip.calibration.regions import (
    energy_interval,
    force_distances,
    force_radii,
)
from ase_bayesmlip.calibration.scaling import Factors, scaled_results

__all__ = [
    "METHODS",
    "Calibration",
    "Factors",
    "Observations",
    "calibrate",
    "energy_interval",
    "force_distances",
    "force_radii",
    "observe",
    "scaled_results",
]
