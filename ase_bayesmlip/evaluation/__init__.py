"""Measure a model: errors, error bars and OOD detection, each number with an interval.

`evaluate` takes `Comparison` objects, which hold labelled frames and results of any origin: those
of `BayesianCalculator.evaluate`, or of a committee of ASE calculators by `evaluate_committee`.
Nothing here imports torch.
"""

from __future__ import annotations

from ase_bayesmlip.evaluation.comparison import (
    Comparison,
    committee_results,
    energy_errors,
    evaluate_committee,
    force_errors,
)
from ase_bayesmlip.evaluation.evaluate import Evaluation, SetEvaluation, evaluate
from ase_bayesmlip.evaluation.intervals import Bootstrap, Estimate
from ase_bayesmlip.metrics import Errors, Origin, PredictiveLaw, origin_of
from ase_bayesmlip.structures.partly_labelled import EvaluationFrame, read_evaluation_frames

__all__ = [
    "Bootstrap",
    "Comparison",
    "Errors",
    "Estimate",
    "Evaluation",
    "EvaluationFrame",
    "Origin",
    "PredictiveLaw",
    "SetEvaluation",
    "committee_results",
    "energy_errors",
    "evaluate",
    "evaluate_committee",
    "force_errors",
    "origin_of",
    "read_evaluation_frames",
]
