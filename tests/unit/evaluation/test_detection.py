"""Foreign frames told from known ones by their scores."""

import numpy as np
import pytest
from evaluation_data import changed, make_comparison, quick

from ase_bayesmlip import metrics
from ase_bayesmlip.evaluation import (
    evaluate,
)
from ase_bayesmlip.evaluation.detection import frame_scores


def test_detection_is_that_of_the_scores():
    known, foreign = make_comparison(20, 1), make_comparison(30, 2, width=1.5)
    evaluation = evaluate(known, foreign, bootstrap=quick())
    content = evaluation.to_json()
    assert content["ood_score"] == "forces_epistemic_max"
    scores_in, scores_out = frame_scores(known), frame_scores(foreign)
    assert set(scores_in) == {
        "forces_epistemic_max",
        "forces_epistemic_mean",
        "forces_total_max",
        "energy_std_per_atom",
    }
    expected = np.sqrt(
        np.trace(known.results[3]["forces_cov_epistemic"], axis1=1, axis2=2) / 3
    ).max()
    assert scores_in["forces_epistemic_max"][3] == pytest.approx(expected)
    for name, numbers in content["ood_scores"].items():
        assert numbers["auroc_ood"] == metrics.auroc(scores_in[name], scores_out[name])
        low, high = numbers["auroc_ood_ci"]
        assert low <= numbers["auroc_ood"] <= high


def test_models_without_an_epistemic_part_are_scored_by_the_total():
    noise = {"forces_cov_epistemic": None, "energy_var_epistemic": None}
    known, foreign = (changed(make_comparison(8, s), **noise) for s in (1, 2))
    evaluation = evaluate(known, foreign, bootstrap=quick())
    assert evaluation.to_json()["ood_score"] == "forces_total_max"


def test_one_foreign_frame_has_no_interval():
    evaluation = evaluate(make_comparison(8), make_comparison(1, 2), bootstrap=quick())
    content = evaluation.to_json()
    assert 0 <= content["auroc_ood"] <= 1
    assert content["auroc_ood_ci"] is None
    assert any("each set needs 2 frames" in note for note in evaluation.notes)
