"""Can the model tell foreign frames from known ones? No label is needed for that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms

from ase_bayesmlip import metrics
from ase_bayesmlip.evaluation.comparison import Comparison
from ase_bayesmlip.evaluation.intervals import Bootstrap, Estimate
from ase_bayesmlip.scores import SCORES, evaluate_score

Metric = Callable[[np.ndarray, np.ndarray], float]
ScoreOfFrame = Callable[[Mapping[str, Any], Atoms], float]


def forces_total_max(results: Mapping[str, Any], atoms: Atoms) -> float:  # noqa: ARG001
    """max_i √(tr C_i / 3) over the atoms, with the total force covariance C_i; eV/Å."""
    return float(np.sqrt(np.trace(results["forces_cov"], axis1=1, axis2=2) / 3.0).max())


def energy_std_per_atom(results: Mapping[str, Any], atoms: Atoms) -> float:
    """Total standard deviation of the energy per atom; eV."""
    return float(np.sqrt(results["energy_var"]) / len(atoms))


def _of_monitor(name: str) -> ScoreOfFrame:
    return lambda results, atoms: evaluate_score(SCORES[name], results, atoms).value


# Name -> what it needs and the score. The first that the results allow is the headline, unless the
# model has another default score.
FRAME_SCORES: dict[str, tuple[str, ScoreOfFrame]] = {
    "forces_epistemic_max": ("forces_cov_epistemic", _of_monitor("forces_epistemic_max")),
    "forces_epistemic_mean": ("forces_cov_epistemic", _of_monitor("forces_epistemic_mean")),
    "atomic_energy_var_max": ("energies_var_epistemic", _of_monitor("atomic_energy_var_max")),
    "feature_distance_max": ("feature_distances", _of_monitor("feature_distance_max")),
    "feature_distance_mean": ("feature_distances", _of_monitor("feature_distance_mean")),
    "forces_total_max": ("forces_cov", forces_total_max),
    "energy_std_per_atom": ("energy_var", energy_std_per_atom),
}


DETECTION_METRICS: dict[str, Metric] = {
    "auroc_ood": metrics.auroc,
    "aupr_ood": metrics.aupr,
    "fpr95_ood": metrics.fpr95,
}


@dataclass(frozen=True, eq=False)
class Detection:
    """How well one score tells two sets of frames apart.

    Attributes
    ----------
    score : str
    known, foreign : ndarray, (n_known,) and (n_foreign,)
        Scores of the frames.
    numbers : dict of str to Estimate
        ``auroc_ood``, ``aupr_ood`` and ``fpr95_ood``, with OOD as the positive class.
    """

    score: str
    known: np.ndarray
    foreign: np.ndarray
    numbers: dict[str, Estimate]


def frame_scores(comparison: Comparison) -> dict[str, np.ndarray]:
    """Every score that the results allow: name -> (n_frames,)."""
    return {
        name: np.array(
            [
                score(result, frame.atoms)
                for result, frame in zip(comparison.results, comparison.frames, strict=True)
            ]
        )
        for name, (key, score) in FRAME_SCORES.items()
        if all(key in result for result in comparison.results)
    }


def detect(
    known: Comparison, foreign: Comparison, bootstrap: Bootstrap, headline: str | None = None
) -> list[Detection]:
    """Each available score on known against foreign frames, the headline first."""
    scores_in, scores_out = frame_scores(known), frame_scores(foreign)
    names = [name for name in scores_in if name in scores_out]
    names.sort(key=lambda name: name != headline)
    if not names:
        bootstrap.note("no OOD detection: the model states no uncertainty")
    return [_detection(name, scores_in[name], scores_out[name], bootstrap) for name in names]


def _detection(
    name: str, known: np.ndarray, foreign: np.ndarray, bootstrap: Bootstrap
) -> Detection:
    few = min(len(known), len(foreign)) < 2
    if few:
        bootstrap.note("no interval for OOD detection: each set needs 2 frames or more")
    numbers = {}
    for key, metric in DETECTION_METRICS.items():

        def statistic(a: np.ndarray, b: np.ndarray, metric: Metric = metric) -> float:
            return metric(known[a], foreign[b])

        interval = None
        if not few:
            interval = metrics.bootstrap_interval_two_sets(
                statistic,
                len(known),
                len(foreign),
                bootstrap.n_resamples,
                bootstrap.level,
                generator=bootstrap.generator(),
            )
        numbers[key] = Estimate(metric(known, foreign), interval)
    return Detection(name, known, foreign, numbers)
