"""Regions of calibrated files, and of those from before laws were recorded."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from scipy.special import chdtri, ndtri
from synthetic_errors import ELEMENTS, Card, fitted, synthetic

from ase_bayesmlip.calibration import (
    calibrate,
    energy_interval,
    force_distances,
    force_radii,
    observe,
)
from ase_bayesmlip.card import ModelCard
from ase_bayesmlip.evaluation import Comparison, EvaluationFrame, force_errors
from ase_bayesmlip.metrics import Origin, origin_of

# Written by version 0.1 for the spread of members without noise; all but four levels left out.
EARLY = json.loads((Path(__file__).parent / "early_record.json").read_text(encoding="utf-8"))


@pytest.fixture
def early():
    return ModelCard(
        kind="ensemble",
        n_members=8,
        backbone="race",
        cutoff=5.0,
        atomic_numbers=[1, 6, 8],
        dtype="float64",
        reference_energies={},
        has_epistemic=True,
        has_aleatoric_energy=False,
        has_aleatoric_forces=False,
        n_parameters=1,
        recalibrations=[EARLY],
    )


def test_regions_of_an_early_file(early):
    generator = np.random.default_rng(0)
    vectors, root = generator.standard_normal((5, 3)), generator.standard_normal((5, 3, 3))
    covariance = root @ root.swapaxes(1, 2)
    radius = np.linalg.norm(vectors, axis=1) / np.sqrt(np.trace(covariance, axis1=1, axis2=2) / 3)
    np.testing.assert_allclose(force_distances(early, vectors, covariance), radius)
    for kind in ("gaussian", "law"):
        assert force_radii(early, [1], 0.9, kind)[0] == pytest.approx(np.sqrt(chdtri(3, 0.1)))
        interval = energy_interval(early, {"energy": 0.0, "energy_var": 4.0}, 0.9, kind)
        assert interval == pytest.approx((-2 * ndtri(0.95), 2 * ndtri(0.95)))
    np.testing.assert_array_equal(
        force_radii(early, [8, 1], 0.9), [EARLY["conformal"]["forces"][s][2] for s in "OH"]
    )
    assert force_radii(early, [1], 0.9, "isotonic")[0] == EARLY["isotonic"]["forces"][2]


def test_an_early_file_is_evaluated_by_the_law_that_it_was_fitted_with(early):
    assert origin_of(early) == Origin(spherical=True)
    frame = EvaluationFrame(Atoms("H2"), 0.0, np.ones((2, 3)))
    covariance = np.tile(np.diag([1.0, 2.0, 3.0]), (2, 1, 1))
    result = {"energy": 0.0, "forces": np.zeros((2, 3)), "energy_var_epistemic": 1.0}
    result |= {"forces_cov": covariance, "forces_cov_epistemic": covariance}
    law = force_errors(Comparison([frame], [result], spherical=True)).law
    assert law.name == "spherical_gaussian"
    assert law.radius(0.9, 3) == pytest.approx(force_radii(early, [1], 0.9, "law")[0])


def test_gaussian_regions_and_isotonic_ones_of_a_gaussian_agree():
    found = fitted("global", n_frames=3000, a=2.0, b=2.0)
    card = Card(found)
    radius = force_radii(card, [1], 0.9, "gaussian")[0]
    assert radius == pytest.approx(math.sqrt(chdtri(3, 0.1)))
    # 12,000 atoms: the standard error of a quantile is √(p (1 - p)/n) over the density.
    d = radius
    density = math.sqrt(2 / math.pi) * d**2 * math.exp(-(d**2) / 2)
    error = math.sqrt(0.09 / 12000) / density
    assert abs(force_radii(card, [8], 0.9, "isotonic")[0] - radius) < 4 * error
    low, high = energy_interval(card, {"energy": 1.0, "energy_var": 4.0}, 0.9, "gaussian")
    assert (low, high) == pytest.approx((1 - 2 * ndtri(0.95), 1 + 2 * ndtri(0.95)))


def test_isotonic_intervals_repair_a_bias():
    results, frames = synthetic(1000)
    for result in results:
        result["energy"] -= 2.0 * math.sqrt(result["energy_var"])
    card = Card(calibrate(observe(results, frames), ELEMENTS, "none"))
    result = {"energy": 0.0, "energy_var": 1.0}
    low, high = energy_interval(card, result, 0.9, "isotonic")
    # √(p (1 - p)/n) over the density of a Gaussian at its 5 % point.
    error = math.sqrt(0.05 * 0.95 / 1000) / 0.103
    assert abs(low - (2 - ndtri(0.95))) < 4 * error
    assert abs(high - (2 + ndtri(0.95))) < 4 * error
    centred = energy_interval(card, result, 0.9, "conformal")
    assert centred[0] == -centred[1]
    assert centred[1] - centred[0] > high - low


def test_balls_where_there_is_no_noise_model():
    """Two members: rank 1, no inverse. Lengths are in units of √(tr Σ/3)."""
    results, frames = synthetic(50, parts="e")
    for result in results:
        spread = np.random.default_rng(0).standard_normal((4, 3))
        result["forces_cov_epistemic"] = np.einsum("na,nb->nab", spread, spread)
    found = calibrate(observe(results, frames), ELEMENTS, "global")
    assert found.shape == "ball"
    card = Card(found)
    sigma = results[0]["forces_cov_epistemic"]
    vector = np.ones((4, 3))
    expected = np.sqrt(3 / (np.trace(sigma, axis1=1, axis2=2) / 3))
    np.testing.assert_allclose(force_distances(card, vector, sigma), expected)
    error = np.concatenate([f.forces - r["forces"] for r, f in zip(results, frames, strict=True)])
    trace = np.concatenate([np.trace(r["forces_cov_epistemic"], axis1=1, axis2=2) for r in results])
    expected = np.mean((error**2).sum(axis=1) / trace)
    assert found.factors.forces_epistemic["H"] == pytest.approx(expected)


def test_questions_without_an_answer():
    with pytest.warns(UserWarning, match="no O"):
        found = calibrate(observe(*synthetic(60, symbols="CHH")), ELEMENTS, "global")
    card = Card(found)
    with pytest.raises(ValueError, match="held no O"):
        force_radii(card, [1, 8], 0.9)
    with pytest.raises(ValueError, match="99 calibration frames"):
        force_radii(card, [1], 0.99)
    with pytest.raises(ValueError, match="unknown kind"):
        force_radii(card, [1], 0.9, "exact")
    with pytest.raises(ValueError, match="shape"):
        force_distances(card, np.zeros(3), np.eye(3))
    card.recalibrations = []
    with pytest.raises(ValueError, match="not calibrated"):
        energy_interval(card, {"energy": 0.0, "energy_var": 1.0}, 0.9)
