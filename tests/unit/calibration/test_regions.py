"""Files that were calibrated before laws were recorded keep being read as they were meant."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from scipy.special import chdtri, ndtri

from ase_bayesmlip.calibration import energy_interval, force_distances, force_radii
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
