"""Measures of errors and of error bars: numpy arrays in, numbers out.

One convention holds everywhere: **error = label - prediction**. Forces enter as (n_atoms, 3) with
covariances (n_atoms, 3, 3), energies as (n_frames,) with variances (n_frames,). A result carries
the unit of its input; nothing is converted.

`scoring` has errors and proper scoring rules; `ellipsoids` the squared Mahalanobis distance and
the laws it follows; `calibration` compares nominal with observed coverage, for error bars and for
ellipsoids alike; `ranking` asks whether uncertainty finds large errors and foreign frames;
`bootstrap` gives any of these numbers an interval that knows that atoms of a frame are not
independent. `errors` puts errors beside the covariances that were stated for them, `laws` has the
distributions that they should follow, and `origin` decides which: one answer for everything that
fits, measures or draws.

Every function raises `ValueError` for input that is empty, not finite, of the wrong shape or out of
range. None returns NaN.
"""

from __future__ import annotations

from ase_bayesmlip.metrics.bootstrap import bootstrap_interval, bootstrap_interval_two_sets
from ase_bayesmlip.metrics.calibration import (
    calibration_curve,
    calibration_error,
    calibration_error_floor,
    coverage,
    interval_confidence,
    miscalibration_area,
    pit_gaussian,
    sharpness,
)
from ase_bayesmlip.metrics.ellipsoids import (
    Law,
    chi_squared_law,
    ellipsoid_confidence,
    hotelling_law,
    mahalanobis_squared,
    student_t_law,
)
from ase_bayesmlip.metrics.errors import Errors
from ase_bayesmlip.metrics.laws import PredictiveLaw
from ase_bayesmlip.metrics.origin import Origin, origin_of
from ase_bayesmlip.metrics.ranking import (
    aupr,
    auroc,
    error_retention_area,
    error_retention_curve,
    fpr95,
    roc_curve,
    spearman,
)
from ase_bayesmlip.metrics.scoring import (
    crps_gaussian,
    energy_score,
    energy_score_gaussian,
    gaussian_nll,
    mae,
    multivariate_gaussian_nll,
    rmse,
    student_t_nll,
)

__all__ = [
    "Errors",
    "Law",
    "Origin",
    "PredictiveLaw",
    "aupr",
    "auroc",
    "bootstrap_interval",
    "bootstrap_interval_two_sets",
    "calibration_curve",
    "calibration_error",
    "calibration_error_floor",
    "chi_squared_law",
    "coverage",
    "crps_gaussian",
    "ellipsoid_confidence",
    "energy_score",
    "energy_score_gaussian",
    "error_retention_area",
    "error_retention_curve",
    "fpr95",
    "gaussian_nll",
    "hotelling_law",
    "interval_confidence",
    "mae",
    "mahalanobis_squared",
    "miscalibration_area",
    "multivariate_gaussian_nll",
    "origin_of",
    "pit_gaussian",
    "rmse",
    "roc_curve",
    "sharpness",
    "spearman",
    "student_t_law",
    "student_t_nll",
]
