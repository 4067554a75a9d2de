"""Scores: closed forms, invariance and what is said when a key is missing."""

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from fake_potential import FakePotential, make_atoms, make_card
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ase_bayesmlip.scores import (
    SCORE_UNITS,
    SCORES,
    Score,
    calibration_record,
    evaluate_score,
    find_score,
)


def random_results(seed: int, n_atoms: int = 4) -> dict:
    generator = np.random.default_rng(seed)
    roots = generator.standard_normal((n_atoms, 3, 3))
    return {
        "forces_cov_epistemic": roots @ roots.transpose(0, 2, 1),
        "energies_var_epistemic": generator.uniform(0.1, 2.0, n_atoms),
        "energy_var_epistemic": float(generator.uniform(0.1, 2.0)),
        "feature_distances": generator.uniform(0.1, 2.0, n_atoms),
    }


def test_every_score_has_a_unit():
    assert set(SCORES) == set(SCORE_UNITS)


def test_isotropic_covariance_scores_its_standard_deviation():
    deviations = np.array([0.1, 0.4, 0.2, 0.3])
    results = {"forces_cov_epistemic": deviations[:, None, None] ** 2 * np.eye(3)}
    atoms = make_atoms()
    largest = SCORES["forces_epistemic_max"](results, atoms)
    mean = SCORES["forces_epistemic_mean"](results, atoms)
    assert largest.value == pytest.approx(0.4, rel=1e-14)
    assert mean.value == pytest.approx(0.25, rel=1e-14)
    np.testing.assert_allclose(largest.per_atom, deviations, rtol=1e-14)
    np.testing.assert_allclose(mean.per_atom, deviations, rtol=1e-14)


def test_force_score_is_the_root_of_a_third_of_the_trace():
    covariance = np.array([[4.0, 1.0, 0.0], [1.0, 5.0, 2.0], [0.0, 2.0, 3.0]])
    results = {"forces_cov_epistemic": covariance[None]}
    score = SCORES["forces_epistemic_max"](results, Atoms("H"))
    assert score.value == pytest.approx(2.0, rel=1e-14)


def test_distances_of_features_are_scored_by_the_largest_and_by_their_mean():
    results = {"feature_distances": np.array([0.1, 0.4, 0.2, 0.3])}
    largest = SCORES["feature_distance_max"](results, make_atoms())
    assert largest.value == 0.4
    assert largest.per_atom.tolist() == [0.1, 0.4, 0.2, 0.3]
    mean = SCORES["feature_distance_mean"](results, make_atoms())
    assert mean.value == pytest.approx(0.25, rel=1e-14)


def test_energy_scores():
    atoms = make_atoms()
    results = {"energies_var_epistemic": np.array([1.0, 4.0, 2.0, 3.0]), "energy_var_epistemic": 7}
    score = SCORES["atomic_energy_var_max"](results, atoms)
    assert score.value == 4.0
    assert list(score.per_atom) == [1.0, 4.0, 2.0, 3.0]
    assert SCORES["energy_var"](results, atoms) == Score(7.0, None)


@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(SCORES)), st.booleans())
def test_scores_are_invariant_under_rotation_reflection_and_permutation(seed, name, reflect):
    generator = np.random.default_rng(seed)
    rotation = Rotation.random(rng=generator).as_matrix() * (-1 if reflect else 1)
    order = generator.permutation(4)
    results = random_results(seed)
    turned = dict(results)
    turned["forces_cov_epistemic"] = (rotation @ results["forces_cov_epistemic"] @ rotation.T)[
        order
    ]
    for per_atom in ("energies_var_epistemic", "feature_distances"):
        turned[per_atom] = results[per_atom][order]
    atoms = make_atoms()
    before, after = SCORES[name](results, atoms), SCORES[name](turned, atoms)
    assert after.value == pytest.approx(before.value, rel=1e-12)
    if before.per_atom is not None:
        np.testing.assert_allclose(after.per_atom, before.per_atom[order], rtol=1e-12)


def test_aleatoric_noise_does_not_enter():
    results = random_results(1)
    noisy = results | {
        "forces_cov_aleatoric": 1e3 * np.ones((4, 3, 3)),
        "forces_cov": 1e3 * np.ones((4, 3, 3)),
        "energy_var": 1e3,
    }
    for name, function in SCORES.items():
        assert function(noisy, make_atoms()).value == function(results, make_atoms()).value, name


@pytest.mark.parametrize("name", sorted(SCORES))
def test_missing_key_names_key_posterior_and_remedy(name):
    atoms = make_atoms(FakePotential(card=make_card(kind="point")))
    with pytest.raises(PropertyNotImplementedError) as caught:
        SCORES[name]({"energy": 1.0}, atoms)
    text = str(caught.value)
    assert name in text
    assert ("feature_distances" if name.startswith("feature") else "_epistemic") in text
    assert "'point' posterior" in text
    assert "deep ensemble" in text


def test_missing_key_names_the_scores_that_are_available():
    with pytest.raises(PropertyNotImplementedError, match=r"available scores: energy_var$"):
        SCORES["forces_epistemic_max"]({"energy_var_epistemic": 1.0}, make_atoms())


def test_find_score():
    def own(results, atoms):
        return 1.0

    assert find_score("energy_var") == ("energy_var", SCORES["energy_var"])
    assert find_score(own) == ("own", own)
    with pytest.raises(ValueError, match=r"unknown score 'sigma'.*forces_epistemic_max"):
        find_score("sigma")
    with pytest.raises(TypeError, match="not int"):
        find_score(3)


def test_user_function_may_return_a_number_or_a_score():
    atoms = make_atoms()
    assert evaluate_score(lambda _results, _atoms: np.float64(2.5), {}, atoms) == Score(2.5, None)
    answer = evaluate_score(lambda _results, _atoms: Score(1.0, np.ones(4)), {}, atoms)
    assert answer.per_atom.shape == (4,)
    with pytest.raises(ValueError, match="not list"):
        evaluate_score(lambda _results, _atoms: [1.0, 2.0], {}, atoms)
    with pytest.raises(ValueError, match=r"shape \(3,\) for 4 atoms"):
        evaluate_score(lambda _results, _atoms: Score(1.0, np.ones(3)), {}, atoms)


@pytest.mark.parametrize("bad", [np.nan, -1.0])
def test_invalid_covariance_gives_nan_rather_than_a_small_score(bad):
    results = {"forces_cov_epistemic": bad * np.eye(3)[None]}
    score = evaluate_score(SCORES["forces_epistemic_max"], results, Atoms("H"))
    assert np.isnan(score.value)


@pytest.mark.parametrize("name", ["forces_epistemic_max", "forces_epistemic_mean"])
def test_a_lazy_result_has_the_score_of_its_matrices(name):
    """`forces_std_epistemic` is the root of the trace, a score that of a third of it."""
    results = random_results(3)
    trace = results["forces_cov_epistemic"].trace(axis1=1, axis2=2)
    atoms = make_atoms()
    lazy = SCORES[name]({"forces_std_epistemic": np.sqrt(trace)}, atoms)
    whole = SCORES[name](results, atoms)
    assert lazy.value == pytest.approx(whole.value, rel=1e-14)
    np.testing.assert_allclose(lazy.per_atom, whole.per_atom, rtol=1e-14)


def test_a_record_keeps_the_order_the_trajectories_and_the_sizes_of_its_frames():
    frames = [Atoms("H" * n, positions=np.arange(3.0 * n).reshape(n, 3)) for n in (2, 1, 3)]
    results = [
        {"forces_cov_epistemic": size**2 * np.broadcast_to(np.eye(3), (len(atoms), 3, 3))}
        for size, atoms in zip((0.3, 0.1, 0.2), frames, strict=True)
    ]
    record = calibration_record(results, frames, [0, 0, 1])
    name = "forces_epistemic_max"
    assert record["n_frames"] == 3
    assert record["scores"][name] == pytest.approx([0.1, 0.2, 0.3])
    assert record["series"]["scores"][name] == pytest.approx([0.3, 0.1, 0.2])
    assert record["series"]["trajectory"] == [0, 0, 1]
    assert record["series"]["n_atoms"] == [2, 1, 3]
