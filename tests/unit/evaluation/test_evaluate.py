"""Evaluations of made-up predictions: laws, numbers and detection against known truth."""

import dataclasses
import json

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones
from evaluation_data import covariances, make_comparison

from ase_bayesmlip import metrics
from ase_bayesmlip.evaluation import (
    Bootstrap,
    Comparison,
    PredictiveLaw,
    committee_results,
    energy_errors,
    evaluate,
    evaluate_committee,
    force_errors,
)
from ase_bayesmlip.evaluation.detection import FRAME_SCORES, frame_scores
from ase_bayesmlip.evaluation.estimates import energy_numbers, force_numbers

N = 4000


@pytest.fixture
def generator():
    return np.random.default_rng(3)


def quick(**changes):
    return Bootstrap(**{"n_resamples": 60, **changes})


def changed(comparison, **values):
    """The same predictions with some results replaced, or removed where the value is None."""
    results = []
    for result in comparison.results:
        new = {**result, **{k: v(result) for k, v in values.items() if v is not None}}
        results.append({k: v for k, v in new.items() if values.get(k, 0) is not None})
    return Comparison(comparison.frames, results)


def one_draw(law, covariance, generator):
    return next(law.draws(covariance, 1, generator))


# --- laws ---

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


# --- which law ---


def test_law_follows_from_what_the_results_hold():
    comparison = make_comparison(3)
    n = len(comparison.frames[0].atoms)
    spread = changed(comparison, forces_cov_aleatoric=None, energy_var_aleatoric=None)

    def laws(c):
        return energy_errors(c).law, force_errors(c).law

    assert [law.name for law in laws(comparison)] == ["gaussian", "gaussian"]
    # Known to be no spread of members: the covariance counts as known.
    assert [law.name for law in laws(spread)] == ["gaussian", "gaussian"]
    few = dataclasses.replace(spread, n_members=5)
    assert [(law.name, law.n_members) for law in laws(few)] == [("hotelling", 5)] * 2
    three = dataclasses.replace(spread, n_members=3)
    assert [law.name for law in laws(three)] == ["hotelling", "spherical"]
    one = dataclasses.replace(spread, n_members=1)
    assert laws(one) == (None, None)
    assert "1 member(s) have no spread" in force_errors(one).why_no_law
    drawn = dataclasses.replace(spread, n_draws=8)
    assert [(law.name, law.n_draws) for law in laws(drawn)] == [("gaussian", 0), ("hotelling", 8)]
    assert laws(dataclasses.replace(spread, n_draws=2))[1].name == "spherical"
    # With a noise part the number of members does not matter.
    assert laws(dataclasses.replace(comparison, n_members=3))[1].name == "gaussian"
    evidential = changed(comparison, forces_dof=lambda r: np.arange(n) + 5.0)
    assert laws(evidential)[1].name == "student_t"
    np.testing.assert_array_equal(laws(evidential)[1].dof, np.tile(np.arange(n) + 5.0, 3))


def test_committee_results_are_sample_moments(generator):
    energies, forces = generator.standard_normal(5), generator.standard_normal((5, 4, 3))
    results = committee_results(energies, forces)
    assert results["energy"] == pytest.approx(energies.mean())
    assert results["energy_var"] == pytest.approx(energies.var(ddof=1))
    for atom in range(4):
        np.testing.assert_allclose(results["forces_cov"][atom], np.cov(forces[:, atom].T))
    assert set(committee_results(energies[:1], forces[:1])) == {"energy", "forces"}
    with pytest.raises(ValueError, match="shape"):
        committee_results(energies[:4], forces)


def test_any_calculators_can_be_a_committee():
    atoms = Atoms("Ar3", [[0, 0, 0], [3.9, 0, 0], [0, 4.1, 0.2]])
    calculators = [LennardJones(sigma=3.4, epsilon=epsilon, rc=10) for epsilon in (0.9, 1.0, 1.2)]
    (results,) = evaluate_committee(calculators, [atoms])
    atoms.calc = LennardJones(sigma=3.4, epsilon=1.0, rc=10)
    # Energies are proportional to epsilon.
    mean = (0.9 + 1.0 + 1.2) / 3
    assert results["energy"] == pytest.approx(mean * atoms.get_potential_energy())
    variance = np.var([0.9, 1.0, 1.2], ddof=1)
    assert results["energy_var"] == pytest.approx(variance * atoms.get_potential_energy() ** 2)
    outer = np.einsum("na,nb->nab", atoms.get_forces(), atoms.get_forces())
    np.testing.assert_allclose(results["forces_cov"], variance * outer, atol=1e-12)
    with pytest.raises(ValueError, match="one calculator or more"):
        evaluate_committee([], [atoms])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"energy": lambda r: np.nan}, "made-up#0: the predicted energy"),
        ({"forces": None}, "made-up#0: the predicted forces"),
        ({"forces": lambda r: r["forces"][:2]}, "shape"),
    ],
)
def test_predictions_that_cannot_be_compared_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        changed(make_comparison(2), **change)
    with pytest.raises(ValueError, match="2 frames have 1 results"):
        Comparison(make_comparison(2).frames, make_comparison(1).results)


# --- numbers ---


def test_numbers_are_those_of_metrics():
    comparison = make_comparison(30, width=1.4)
    forces, energies = force_errors(comparison), energy_errors(comparison)
    found = force_numbers(forces, quick()) | energy_numbers(energies, quick())
    error, covariance = forces.error, forces.covariance
    sigma = np.sqrt(np.trace(covariance, axis1=1, axis2=2) / 3)
    size = np.linalg.norm(error, axis=1)
    per_atom = energies.error[:, 0] / 6
    deviation = np.sqrt(energies.covariance[:, 0, 0]) / 6
    inside = forces.confidence
    expected = {
        "forces_rmse_meV_per_A": 1e3 * metrics.rmse(error),
        "forces_mae_meV_per_A": 1e3 * metrics.mae(error),
        "forces_sigma_meV_per_A": 1e3 * metrics.sharpness(sigma**2),
        "forces_nll": metrics.multivariate_gaussian_nll(error, covariance),
        "calibration_error_forces": metrics.calibration_error(inside),
        "coverage_90_forces": metrics.coverage(inside, 0.9),
        "spearman_forces": metrics.spearman(size, sigma),
        "energy_rmse_meV_per_atom": 1e3 * metrics.rmse(per_atom),
        "energy_bias_meV_per_atom": 1e3 * per_atom.mean(),
        "energy_sigma_meV_per_atom": 1e3 * metrics.sharpness(deviation**2),
        "energy_crps_meV_per_atom": 1e3 * metrics.crps_gaussian(per_atom, deviation),
        "energy_nll": metrics.gaussian_nll(6 * per_atom, 36 * deviation**2),
        "calibration_error_energy": metrics.calibration_error(
            metrics.interval_confidence(per_atom, deviation)
        ),
    }
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, rel=1e-9), name
    score = metrics.energy_score_gaussian(
        error, covariance, 2000, generator=np.random.default_rng(9)
    )
    assert found["energy_score_forces"].value == pytest.approx(1e3 * score, rel=0.02)


def test_intervals_are_those_of_resampled_frames():
    """Frames of different size: a mean of frames' means would be another number."""
    small, large = make_comparison(8, 1), make_comparison(8, 2, symbols="C4H8O2")
    both = Comparison([*small.frames, *large.frames], [*small.results, *large.results])
    errors = force_errors(both)
    found = force_numbers(errors, quick(n_resamples=80))
    confidence = errors.confidence
    for name, statistic in {
        "forces_rmse_meV_per_A": lambda chosen: 1e3 * metrics.rmse(errors.error[chosen]),
        "calibration_error_forces": lambda chosen: metrics.calibration_error(confidence[chosen]),
        "spearman_forces": lambda chosen: metrics.spearman(
            np.linalg.norm(errors.error[chosen], axis=1), errors.std[chosen]
        ),
    }.items():
        expected = metrics.bootstrap_interval(
            statistic, errors.frame, 80, generator=np.random.default_rng(0)
        )
        np.testing.assert_allclose(found[name].interval, expected, rtol=1e-9, err_msg=name)


def test_a_perfect_model_looks_perfect():
    evaluation = evaluate(make_comparison(150, seed=5), bootstrap=quick())
    numbers = evaluation.test.numbers
    n = 150
    for what, items in (("energy", n), ("forces", 6 * n)):
        floor = metrics.calibration_error_floor(items)
        assert numbers[f"calibration_error_{what}"].value < 5 * floor
        error = np.sqrt(0.09 / items)
        assert numbers[f"coverage_90_{what}"].value == pytest.approx(0.9, abs=4 * error)
        low, high = numbers[f"spearman_{what}_if_exact"].interval
        margin = 0.5 * (high - low)  # the observed one scatters, too
        assert low - margin < numbers[f"spearman_{what}"].value < high + margin
    # Near 0 for the best order and 1 for none; that of exact error bars lies between.
    assert 0.2 < numbers["retention_ratio_forces"].value < 0.8
    assert evaluation.notes == []


@pytest.mark.parametrize(("width", "sign"), [(0.5, -1), (2.0, 1)])
def test_wrong_widths_show(width, sign):
    numbers = evaluate(make_comparison(60, width=width), bootstrap=quick()).test.numbers
    low, high = numbers["coverage_90_forces"].interval
    assert sign * (numbers["coverage_90_forces"].value - 0.9) > 0
    assert not low <= 0.9 <= high
    assert numbers["calibration_error_forces"].value > 0.01


def test_tables_divide_the_atoms():
    evaluation = evaluate(make_comparison(20), bootstrap=quick())
    test = evaluation.test
    assert [(g.name, g.n_frames, g.n_atoms) for g in test.per_element] == [
        ("C", 20, 40),
        ("H", 20, 60),
        ("O", 20, 20),
    ]
    assert [(g.name, g.n_frames, g.n_atoms) for g in test.per_config_type] == [
        ("cold", 10, 60),
        ("hot", 10, 60),
    ]
    for groups in (test.per_element, test.per_config_type):
        weights = [group.n_atoms for group in groups]
        covered = [group.numbers["coverage_90_forces"].value for group in groups]
        total = test.numbers["coverage_90_forces"].value
        assert np.average(covered, weights=weights) == pytest.approx(total)
        squares = [group.numbers["forces_rmse_meV_per_A"].value ** 2 for group in groups]
        rmse = test.numbers["forces_rmse_meV_per_A"].value
        assert np.average(squares, weights=weights) == pytest.approx(rmse**2)


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


# --- what cannot be had ---


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
    assert evaluation.ood.numbers == {}


def test_models_without_error_bars_have_errors_alone():
    names = [k for k in make_comparison(1).results[0] if k not in ("energy", "forces")]
    bare = changed(make_comparison(5), **dict.fromkeys(names))
    evaluation = evaluate(bare, bare, bootstrap=quick())
    assert "forces_rmse_meV_per_A" in evaluation.test.numbers
    assert not [k for k in evaluation.test.numbers if "nll" in k or "coverage" in k]
    assert evaluation.detections == []
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


def test_another_zero_of_energy_is_noticed():
    comparison = make_comparison(6)
    assert evaluate(comparison, bootstrap=quick()).notes == []
    shifted = changed(comparison, energy=lambda r: r["energy"] + 60.0)
    (note,) = evaluate(shifted, bootstrap=quick()).notes
    assert "energies are off by -10 eV/atom, nearly the same for all frames" in note


def test_a_singular_covariance_is_a_note_not_a_crash():
    comparison = make_comparison(4)
    comparison.results[1]["forces_cov"][2] = np.diag([1e-3, 1e-3, 0.0])
    evaluation = evaluate(comparison, bootstrap=quick())
    assert "forces_nll" not in evaluation.test.numbers
    assert any("forces_nll is left out: covariance must be positive" in n for n in evaluation.notes)


def test_equal_error_bars_put_nothing_in_order():
    flat = changed(make_comparison(5), forces_cov=lambda r: np.tile(0.01 * np.eye(3), (6, 1, 1)))
    evaluation = evaluate(flat, bootstrap=quick())
    assert "spearman_forces" not in evaluation.test.numbers
    assert "coverage_90_forces" in evaluation.test.numbers
    assert any("spearman_forces is left out: uncertainty has one value" in n
               for n in evaluation.notes)  # fmt: skip


# --- foreign frames ---


def test_detection_is_that_of_the_scores():
    known, foreign = make_comparison(20, 1), make_comparison(30, 2, width=1.5)
    evaluation = evaluate(known, foreign, bootstrap=quick())
    content = evaluation.to_json()
    assert content["ood_score"] == "forces_epistemic_max"
    scores_in, scores_out = frame_scores(known), frame_scores(foreign)
    assert set(scores_in) == set(FRAME_SCORES) - {"atomic_energy_var_max"}
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


# --- plain data ---


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
