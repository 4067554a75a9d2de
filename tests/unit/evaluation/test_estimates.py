"""Numbers of an evaluation are those of `metrics`, and say what they should of known laws."""

import dataclasses

import numpy as np
import pytest
from ase.stress import full_3x3_to_voigt_6_stress
from ase.units import GPa
from evaluation_data import changed, make_comparison, quick
from gaussian_errors import random_spd
from scipy import stats

from ase_bayesmlip import metrics
from ase_bayesmlip.evaluation import (
    Comparison,
    energy_errors,
    evaluate,
    force_errors,
)
from ase_bayesmlip.evaluation.estimates import energy_numbers, force_numbers, stress_numbers
from ase_bayesmlip.metrics import Errors, PredictiveLaw
from ase_bayesmlip.metrics.errors import STRESS, errors_of_stress


@pytest.mark.parametrize("law", [None, PredictiveLaw(), PredictiveLaw(n_members=5)])
def test_the_error_expected_of_a_committee_counts_its_own_mean(law):
    """The mean of S members is off by a member's share: the RMSE to expect is √(1 + 1/S) σ."""
    generator = np.random.default_rng(3)
    covariance = random_spd(generator, 20)
    frame = np.repeat(np.arange(5), 4)
    errors = Errors(generator.normal(size=(20, 3)), covariance, None, frame, law)
    expected = np.trace(covariance, axis1=1, axis2=2).mean() / 3
    if law is not None and law.n_members is not None:
        expected *= 1 + 1 / law.n_members
    found = force_numbers(errors, quick())["forces_sigma_meV_per_A"].value
    assert found == pytest.approx(1e3 * np.sqrt(expected), rel=1e-12)


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


# --- stress


def with_stress(n_members, generator, n_frames=400):
    """The label and the members are draws of one law, whose components differ in size."""
    comparison = make_comparison(n_frames)
    factor = np.tril(generator.standard_normal((6, 6))) * 0.01
    frames, results = [], []
    for frame, result in zip(comparison.frames, comparison.results, strict=True):
        label, *members = generator.standard_normal((n_members + 1, 6)) @ factor.T
        tensor = label[[0, 5, 4, 5, 1, 3, 4, 3, 2]].reshape(3, 3)
        members = np.array(members)
        frames.append(dataclasses.replace(frame, stress=tensor))
        results.append({**result, "stress": members.mean(axis=0), "stress_cov": np.cov(members.T)})
    return Comparison(frames, results, n_members=n_members)


def test_numbers_on_stress_and_pressure():
    comparison = with_stress(5, np.random.default_rng(4))
    found = stress_numbers(comparison, quick())
    label = np.array([full_3x3_to_voigt_6_stress(f.stress) for f in comparison.frames])
    error = (label - [r["stress"] for r in comparison.results]) / GPa
    variance = np.array([np.diag(r["stress_cov"]) for r in comparison.results]) / GPa**2
    assert found["stress_rmse_GPa"].value == pytest.approx(np.sqrt(np.mean(error**2)))
    # The mean of five members has an error of its own.
    expected = np.sqrt(1.2 * np.mean(variance))
    assert found["stress_sigma_GPa"].value == pytest.approx(expected)
    pressure = -error[:, :3].mean(axis=1)
    assert found["pressure_rmse_GPa"].value == pytest.approx(np.sqrt(np.mean(pressure**2)))
    half = stats.t(4).ppf(0.95) * np.sqrt(1.2 * variance)
    inside = np.mean(np.abs(error) <= half)
    assert found["coverage_90_stress"].value == pytest.approx(inside)
    assert found["coverage_90_pressure"].value == pytest.approx(0.9, abs=4 * np.sqrt(0.09 / 400))
    assert inside == pytest.approx(0.9, abs=0.05)


def test_stress_that_vanishes_by_symmetry_is_left_out():
    comparison = with_stress(5, np.random.default_rng(1), n_frames=6)
    for frame, result in zip(comparison.frames, comparison.results, strict=True):
        for i, j in ((1, 2), (0, 2), (0, 1)):
            frame.stress[i, j] = frame.stress[j, i] = 0.0
        result["stress"][3:] = 1e-19
        result["stress_cov"][3:], result["stress_cov"][:, 3:] = 0.0, 0.0
    errors = errors_of_stress(comparison.results, comparison.frames, comparison.origin, STRESS)
    assert len(errors.error) == 6 * 3
    found = stress_numbers(comparison, quick())
    assert 0 < found["coverage_90_stress"].value <= 1


def test_stress_without_labels_or_variances():
    comparison = with_stress(5, np.random.default_rng(2), n_frames=4)
    assert stress_numbers(make_comparison(3), quick()) == {}
    bare = [{k: v for k, v in r.items() if k != "stress_cov"} for r in comparison.results]
    bootstrap = quick()
    found = stress_numbers(Comparison(comparison.frames, bare), bootstrap)
    assert set(found) == {"stress_rmse_GPa", "pressure_rmse_GPa"}
    assert "the model states no stress_cov" in bootstrap.notes[0]
    content = evaluate(comparison, bootstrap=quick()).to_json()
    assert content["n_frames_stress"] == 4
    assert content["law_stress"] == "hotelling"
