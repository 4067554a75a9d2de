"""Errors and their covariances: signs, units, parts, and what is taken together."""

import numpy as np
import pytest
from ase import Atoms
from gaussian_errors import random_spd

from ase_bayesmlip.metrics import Errors, Origin, PredictiveLaw
from ase_bayesmlip.metrics.errors import errors_of_energies, errors_of_forces
from ase_bayesmlip.structures.labelled import LabelledFrame

SYMBOLS = ["CO", "H", "CHO"]


@pytest.fixture
def generator():
    return np.random.default_rng(5)


def results_and_frames(generator):
    results, frames = [], []
    for number, symbols in enumerate(SYMBOLS):
        atoms = Atoms(symbols)
        n = len(atoms)
        forces = generator.normal(size=(n, 3))
        frames.append(LabelledFrame(atoms, 1.0 + number, forces, None, f"frame {number}"))
        results.append(
            {
                "energy": 3.0,
                "energy_var_epistemic": 0.5 + number,
                "energy_var_aleatoric": 0.25,
                "forces": np.ones((n, 3)),
                "forces_cov_epistemic": random_spd(generator, n),
                "forces_cov_aleatoric": random_spd(generator, n),
            }
        )
    return results, frames


def test_an_error_is_the_label_minus_the_prediction(generator):
    results, frames = results_and_frames(generator)
    energies = errors_of_energies(results, frames, Origin())
    np.testing.assert_array_equal(energies.error, [[-2.0], [-1.0], [0.0]])
    np.testing.assert_array_equal(energies.covariance.ravel(), [0.75, 1.75, 2.75])
    np.testing.assert_array_equal(energies.n_atoms, [2, 1, 3])
    forces = errors_of_forces(results, frames, Origin())
    np.testing.assert_array_equal(forces.error, np.concatenate([f.forces - 1.0 for f in frames]))
    np.testing.assert_array_equal(forces.frame, [0, 0, 1, 2, 2, 2])
    np.testing.assert_array_equal(forces.atomic_numbers, [6, 8, 1, 6, 1, 8])


def test_frames_without_a_label_are_left_out(generator):
    results, frames = results_and_frames(generator)
    frames[1] = LabelledFrame(frames[1].atoms, None, None, None, "no label")
    assert errors_of_energies(results, frames, Origin()).frame.tolist() == [0, 2]
    assert errors_of_forces(results, frames, Origin()).frame.tolist() == [0, 0, 2, 2, 2]
    assert errors_of_energies(results[1:2], frames[1:2], Origin()) is None
    assert errors_of_forces(results[1:2], frames[1:2], Origin()) is None


@pytest.mark.parametrize("d", [1, 3])
def test_sizes_in_standard_deviations(d, generator):
    error, covariance = generator.normal(size=(7, d)), random_spd(generator, 7, d)
    errors = Errors(error, covariance, None, np.arange(7), PredictiveLaw())
    values = np.linalg.eigvalsh(covariance)
    np.testing.assert_allclose(errors.std, np.sqrt(values.mean(axis=1)), rtol=1e-12)
    distance = [np.sqrt(e @ np.linalg.solve(c, e)) for e, c in zip(error, covariance, strict=True)]
    found = errors.standardised
    np.testing.assert_allclose(np.abs(found), distance, rtol=1e-10)
    assert (np.sign(found) == np.sign(error[:, 0])).all() if d == 1 else (found > 0).all()


def test_parts_have_their_own_factors(generator):
    parts = [random_spd(generator, 4), random_spd(generator, 4)]
    errors = Errors(generator.normal(size=(4, 3)), *parts, np.arange(4), PredictiveLaw())
    a, b = np.arange(1.0, 5.0), np.array([0.5, 0.25, 2.0, 3.0])
    scaled = errors.scaled(a, b)
    expected = a[:, None, None] * parts[0] + b[:, None, None] * parts[1]
    np.testing.assert_allclose(scaled.covariance, expected, rtol=1e-14)
    smaller = errors.divided_by(a)
    np.testing.assert_allclose(smaller.standardised, errors.standardised, rtol=1e-12)
    np.testing.assert_allclose(smaller.std, errors.std / a, rtol=1e-12)


def test_what_is_taken_keeps_its_own_law(generator):
    dof = np.linspace(3.0, 9.0, 5)
    covariance = random_spd(generator, 5)
    law = PredictiveLaw(dof=dof)
    errors = Errors(generator.normal(size=(5, 3)), covariance, None, np.array([0, 0, 1, 2, 2]), law)
    items = np.array([True, False, False, True, True])
    part = errors.take(items)
    np.testing.assert_array_equal(part.law.dof, dof[items])
    np.testing.assert_array_equal(part.confidence, errors.confidence[items])
    np.testing.assert_array_equal(part.frame, [0, 2, 2])


def test_errors_without_error_bars_say_why():
    errors = Errors(np.ones((2, 3)), None, None, np.arange(2), why_no_law="the model states none")
    with pytest.raises(ValueError, match="the model states none"):
        _ = errors.confidence
    with pytest.raises(ValueError, match="states no covariance"):
        _ = errors.std
