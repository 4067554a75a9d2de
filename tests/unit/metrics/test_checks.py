"""Input that metrics refuse, and in which words."""

import numpy as np
import pytest

from ase_bayesmlip import metrics

GENERATOR = np.random.default_rng(50)


EYE = np.eye(3)[None]


SKEW = np.array([[[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])


CHI2 = metrics.chi_squared_law()


REFUSED = {
    "nothing": (lambda: metrics.rmse([]), "error is empty"),
    "NaN": (lambda: metrics.mae([1.0, np.nan]), "1 of 2 numbers are not"),
    "infinity": (lambda: metrics.gaussian_nll([np.inf], [1.0]), "error must be finite"),
    "variance 0": (lambda: metrics.gaussian_nll([1.0], [0.0]), "variance must be positive"),
    "shape": (
        lambda: metrics.gaussian_nll([1.0, 2.0], [1.0]),
        r"same shape, not \(2,\) and \(1,\)",
    ),
    "negative std": (lambda: metrics.crps_gaussian([1.0], [-1.0]), "std must be .* -1"),
    "shape of std": (lambda: metrics.interval_confidence([1.0], [[1.0]]), "same shape"),
    "negative variance": (lambda: metrics.sharpness([1.0, -2.0]), "smallest number is -2"),
    "vectors": (lambda: metrics.mahalanobis_squared([1.0], EYE), r"error must have shape \(n, d\)"),
    "matrices": (
        lambda: metrics.mahalanobis_squared(np.ones((2, 3)), EYE),
        r"not \(2, 3\) and \(1, 3, 3\)",
    ),
    "not symmetric": (lambda: metrics.mahalanobis_squared([[1.0] * 3], SKEW), "symmetric.*0.5"),
    "indefinite": (
        lambda: metrics.energy_score_gaussian([[1.0] * 3], -EYE, generator=GENERATOR),
        "positive semi-definite, and 1 of 1",
    ),
    "scale": (lambda: metrics.student_t_nll([[1.0] * 3], 0 * EYE, 5.0), "scale must be positive"),
    "dof": (lambda: metrics.student_t_nll([[1.0] * 3], EYE, 0.0), "dof must be positive"),
    "dof shape": (lambda: metrics.student_t_nll([[1.0] * 3], EYE, [5.0, 5.0]), r"not \(2,\)"),
    "dof of law": (lambda: metrics.student_t_law(-1.0), "dof must be positive"),
    "dof shape of law": (
        lambda: metrics.ellipsoid_confidence([1.0, 2.0, 3.0], metrics.student_t_law([5.0])),
        r"dof has shape \(1,\)",
    ),
    "dimension": (lambda: metrics.chi_squared_law(0), "dimension must be an integer of 1"),
    "members": (lambda: metrics.hotelling_law(4.5), "n_members must be an integer"),
    "distance": (lambda: metrics.ellipsoid_confidence([-1.0], CHI2), "d2 must not be negative"),
    "distances": (lambda: metrics.ellipsoid_confidence([[1.0]], CHI2), r"d2 must have shape \(n,"),
    "law": (lambda: metrics.ellipsoid_confidence([2.0], lambda d2: d2), "law must be between"),
    "law's shape": (
        lambda: metrics.ellipsoid_confidence([1.0], lambda d2: d2[0]),
        "the law turned",
    ),
    "samples": (lambda: metrics.energy_score([[1.0]], [[1.0], [2.0]]), r"samples \(n, S, d\)"),
    "one sample": (lambda: metrics.energy_score([[1.0]], [[[1.0]]]), "2 samples or more"),
    "draws": (
        lambda: metrics.energy_score_gaussian([[1.0] * 3], EYE, 0, generator=GENERATOR),
        "n_samples must be",
    ),
    "confidence": (lambda: metrics.calibration_error([1.5]), "confidence must be between 0 and 1"),
    "levels": (lambda: metrics.calibration_curve([0.5], [-0.1, 1]), "levels must be between"),
    "level": (lambda: metrics.coverage([0.5], 1.1), "levels must be between"),
    "number of levels": (lambda: metrics.calibration_error([0.5], 0), "n_levels must be"),
    "number of items": (lambda: metrics.calibration_error_floor(0), "n_items must be"),
    "constant error": (lambda: metrics.spearman([1.0, 1.0], [1.0, 2.0]), "error_size has one"),
    "constant sigma": (lambda: metrics.spearman([1.0, 2.0], [3.0, 3.0]), "uncertainty has one"),
    "signed error": (lambda: metrics.spearman([-1.0, 2.0], [1.0, 2.0]), "must not be negative"),
    "retention": (lambda: metrics.error_retention_area([1.0], [1.0, 2.0]), "same shape"),
    "scores": (lambda: metrics.auroc([[1.0]], [1.0]), r"scores_in must have shape \(n,\)"),
    "no foreign frames": (lambda: metrics.aupr([1.0], []), "scores_out is empty"),
    "score": (lambda: metrics.fpr95([np.nan], [1.0]), "scores_in must be finite"),
    "one frame": (
        lambda: metrics.bootstrap_interval(len, [4, 4], generator=GENERATOR),
        "2 frames or more, and there are 1",
    ),
    "frames": (
        lambda: metrics.bootstrap_interval(len, [0.0, 1.0], generator=GENERATOR),
        "frame_index must hold integers",
    ),
    "resamples": (
        lambda: metrics.bootstrap_interval(len, [0, 1], 39, generator=GENERATOR),
        "integer of 40 or more, not 39",
    ),
    "interval level": (
        lambda: metrics.bootstrap_interval(len, [0, 1], level=1.0, generator=GENERATOR),
        "level must be between 0 and 1",
    ),
    "statistic": (
        lambda: metrics.bootstrap_interval(lambda chosen: np.nan, [0, 1], generator=GENERATOR),
        "not finite on some",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()
