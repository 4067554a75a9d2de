"""An evaluation as a whole: laws, what cannot be had, and plain data."""

import dataclasses
import json

import numpy as np
import pytest
from evaluation_data import changed, covariances, make_comparison, quick

from ase_bayesmlip import metrics
from ase_bayesmlip.evaluation import (
    Comparison,
    PredictiveLaw,
    committee_results,
    evaluate,
)

N = 4000


@pytest.fixture
def generator():
    return np.random.default_rng(3)


def one_draw(law, covariance, generator):
    return next(law.draws(covariance, 1, generator))


LAWS = {
    "gaussian": PredictiveLaw(),
    "hotelling": PredictiveLaw(n_members=6),
    "student_t": PredictiveLaw(dof=np.linspace(4.0, 30.0, N)),
}


# Deviations of a fraction of 4000 from its expectation: four standard errors.
TOLERANCE = 4.0 * np.sqrt(0.25 / N)


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("dimension", [1, 3])
def test_errors_drawn_from_a_law_follow_it(name, dimension, generator):
    law = LAWS[name]
    assert law.name == name
    covariance = covariances(N, generator)[:, :dimension, :dimension]
    confidence = law.confidence(one_draw(law, covariance, generator), covariance)
    for level in (0.1, 0.5, 0.9, 0.99):
        assert np.mean(confidence <= level) == pytest.approx(level, abs=TOLERANCE)


@pytest.mark.parametrize("law", [PredictiveLaw(), PredictiveLaw(dof=np.full(N, 7.0))])
def test_intervals_of_components_have_their_coverage(law, generator):
    covariance = covariances(N, generator)
    error = one_draw(law, covariance, generator)[:, 1]
    half = law.interval_factor(0.9) * np.sqrt(covariance[:, 1, 1])
    assert np.mean(np.abs(error) <= half) == pytest.approx(0.9, abs=TOLERANCE)


def members_and_label(n_members, generator):
    """The label and the members are draws of one Gaussian: what Hotelling's law assumes."""
    covariance = covariances(N, generator)
    factor = np.linalg.cholesky(covariance)
    drawn = np.einsum("nab,snb->sna", factor, generator.standard_normal((n_members + 1, N, 3)))
    members = drawn[1:]
    deviation = members - members.mean(axis=0)
    sample = np.einsum("sna,snb->nab", deviation, deviation) / (n_members - 1)
    return drawn[0] - members.mean(axis=0), sample


@pytest.mark.parametrize("n_members", [4, 8])
def test_a_small_committee_needs_its_own_law(n_members, generator):
    error, sample = members_and_label(n_members, generator)
    law = PredictiveLaw(n_members=n_members)
    assert np.mean(law.confidence(error, sample) <= 0.9) == pytest.approx(0.9, abs=TOLERANCE)
    assert np.mean(PredictiveLaw().confidence(error, sample) <= 0.9) < 0.7
    half = law.interval_factor(0.9) * np.sqrt(sample[:, 0, 0])
    assert np.mean(np.abs(error[:, 0]) <= half) == pytest.approx(0.9, abs=TOLERANCE)
    # The law that is right has the better likelihood.
    assert law.nll(error, sample) < PredictiveLaw().nll(error, sample)


def test_the_student_t_of_a_committee_is_hotellings_law(generator):
    s, covariance = 7, covariances(50, generator)
    error = generator.standard_normal((50, 3)) * 0.1
    scale = (1 + 1 / s) * (s - 1) / (s - 3) * covariance
    distance = metrics.mahalanobis_squared(error, scale)
    expected = metrics.ellipsoid_confidence(distance, metrics.student_t_law(s - 3))
    law = PredictiveLaw(n_members=s)
    np.testing.assert_allclose(law.confidence(error, covariance), expected, rtol=1e-10)
    assert law.nll(error, covariance) == pytest.approx(
        metrics.student_t_nll(error, scale, s - 3), rel=1e-12
    )


def test_degrees_of_freedom_belong_to_their_atoms(generator):
    dof, covariance = np.linspace(3.0, 40.0, 30), covariances(30, generator)
    error = generator.standard_normal((30, 3)) * 0.1
    law = PredictiveLaw(dof=dof)
    scale = ((dof - 2) / dof)[:, None, None] * covariance
    assert law.nll(error, covariance) == pytest.approx(
        metrics.student_t_nll(error, scale, dof), rel=1e-12
    )
    chosen = np.array([4, 4, 17])
    np.testing.assert_array_equal(
        law.take(chosen).confidence(error[chosen], covariance[chosen]),
        law.confidence(error, covariance)[chosen],
    )


def test_an_evidential_model_is_judged_by_its_own_law(generator):
    """Errors from a Student-t with the stated covariance: Gaussian regions would be wrong."""
    comparison, dof = make_comparison(80), 3.0
    frames, results = [], []
    for frame, result in zip(comparison.frames, comparison.results, strict=True):
        law = PredictiveLaw(dof=np.full(6, dof))
        error = one_draw(law, result["forces_cov"], generator)
        frames.append(dataclasses.replace(frame, forces=result["forces"] + error))
        results.append({**result, "forces_dof": law.dof})
    found = evaluate(Comparison(frames, results), bootstrap=quick()).to_json()
    assert found["law_forces"] == "student_t"
    assert found["law_energy"] == "gaussian"
    floor = metrics.calibration_error_floor(480)
    assert found["calibration_error_forces"] < 5 * floor
    gaussian = evaluate(Comparison(frames, comparison.results), bootstrap=quick()).to_json()
    assert gaussian["law_forces"] == "gaussian"
    assert gaussian["calibration_error_forces"] > 10 * floor
    assert found["forces_nll"] < gaussian["forces_nll"]
    # A proper score: least for the law that the errors have.
    assert found["energy_score_forces"] < gaussian["energy_score_forces"]


def without_labels(comparison, energy=False, forces=False):
    frames = [
        dataclasses.replace(
            f, energy=f.energy if energy else None, forces=f.forces if forces else None
        )
        for f in comparison.frames
    ]
    return Comparison(frames, comparison.results)


def test_one_frame_has_no_interval():
    evaluation = evaluate(make_comparison(1), bootstrap=quick())
    content = evaluation.to_json()
    assert content["forces_rmse_meV_per_A"] > 0
    assert content["forces_rmse_meV_per_A_ci"] is None
    assert any("an interval is impossible" in note for note in evaluation.notes)
    assert "spearman_energy" not in content
    assert any("spearman_energy is left out" in note for note in evaluation.notes)


def test_missing_labels_leave_out_what_needs_them():
    full = make_comparison(12)
    only_energy = evaluate(without_labels(full, energy=True), bootstrap=quick()).to_json()
    assert only_energy["n_frames_energy"] == 12
    assert only_energy["n_frames_forces"] == only_energy["n_atoms_forces"] == 0
    assert "energy_nll" in only_energy
    assert not [k for k in only_energy if k.startswith(("forces_", "coverage_90_forces"))]
    # Foreign frames need no label to be told from known ones.
    foreign = without_labels(make_comparison(10, 1, width=3.0))
    evaluation = evaluate(full, foreign, bootstrap=quick())
    assert evaluation.to_json()["auroc_ood"] > 0.9
    assert evaluation.ood["OOD"].numbers == {}


def test_models_without_error_bars_have_errors_alone():
    names = [k for k in make_comparison(1).results[0] if k not in ("energy", "forces")]
    bare = changed(make_comparison(5), **dict.fromkeys(names))
    evaluation = evaluate(bare, bare, bootstrap=quick())
    assert "forces_rmse_meV_per_A" in evaluation.test.numbers
    assert not [k for k in evaluation.test.numbers if "nll" in k or "coverage" in k]
    assert evaluation.detections == {"OOD": []}
    assert any("no OOD detection" in note for note in evaluation.notes)
    assert any("the model states no forces_cov" in note for note in evaluation.notes)


def test_three_members_are_judged_by_spheres():
    """Their matrices have no inverse; the errors here are those of members in all directions."""
    generator = np.random.default_rng(0)
    frames = make_comparison(150).frames
    results = []
    for frame in frames:
        forces = frame.forces + 0.1 * generator.standard_normal((3, len(frame.atoms), 3))
        results.append(committee_results(frame.energy + generator.standard_normal(3), forces))
    evaluation = evaluate(Comparison(frames, results, n_members=3), bootstrap=quick())
    numbers = evaluation.test.numbers
    assert evaluation.to_json()["law_energy"] == "hotelling"
    assert evaluation.to_json()["law_forces"] == "spherical"
    assert evaluation.notes == []
    assert numbers["energy_score_forces"].value > 0  # needs no inverse
    # The label is the centre here, not one more draw: its error is a third, not four thirds.
    assert numbers["coverage_90_forces"].value > 0.97


def test_json_is_plain_and_finite():
    evaluation = evaluate(
        make_comparison(8), make_comparison(6, 1), make_comparison(8, 2), bootstrap=quick()
    )
    content = evaluation.to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert {"ood", "before"} <= content.keys()
    assert "before_ood" not in content
    for part in (content, content["ood"], content["before"]):
        names = [k for k in part if k + "_ci" in part]
        assert len(names) >= 20
        for name in names:
            low, high = part[name + "_ci"]
            assert low <= high
    curve = content["calibration_curves"]["forces"]
    assert curve["expected"][0] == 0
    assert curve["observed"][-1] == 1
    assert np.shape(curve["observed_ci"]) == (2, 21)


def test_the_same_seed_gives_the_same_numbers():
    first, second, other = (
        evaluate(make_comparison(6), bootstrap=quick(seed=seed)).to_json() for seed in (1, 1, 2)
    )
    assert first == second
    assert first["forces_rmse_meV_per_A"] == other["forces_rmse_meV_per_A"]
    assert first["forces_rmse_meV_per_A_ci"] != other["forces_rmse_meV_per_A_ci"]


def test_several_foreign_sets_keep_the_names_of_one():
    known, hot, bent = (make_comparison(8, k) for k in range(3))
    one = evaluate(known, hot, known, hot, names={"ood": "hot"}, bootstrap=quick()).to_json()
    two = evaluate(
        known, {"hot": hot, "bent": bent}, known, {"hot": hot}, bootstrap=quick()
    ).to_json()
    sets = two.pop("ood_sets")
    assert "ood_sets" not in one
    for key in one.keys() - {"notes"}:
        assert two[key] == one[key], key
    assert list(sets) == ["hot", "bent"]
    assert sets["hot"]["auroc_ood"] == one["auroc_ood"]
    assert sets["hot"]["before_ood"] == one["before_ood"]
    assert sets["hot"]["forces_nll"] == one["ood"]["forces_nll"]
    alone = evaluate(known, bent, bootstrap=quick()).to_json()
    assert sets["bent"]["ood_scores"] == alone["ood_scores"]
    assert sets["bent"]["coverage_90_forces"] == alone["ood"]["coverage_90_forces"]
    with pytest.raises(ValueError, match="'test' names the test set and a foreign one"):
        evaluate(known, {"test": hot}, bootstrap=quick())
