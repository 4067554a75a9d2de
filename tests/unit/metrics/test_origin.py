"""Which law a file has follows from its card, and from nothing else that can be decided twice."""

import numpy as np
import pytest

from ase_bayesmlip.card import ModelCard
from ase_bayesmlip.metrics import Origin, origin_of
from ase_bayesmlip.metrics.origin import law_of


def card(**changes):
    facts = {
        "kind": "ensemble",
        "n_members": 8,
        "backbone": "race",
        "cutoff": 5.0,
        "atomic_numbers": [1],
        "dtype": "float64",
        "reference_energies": {"H": 0.0},
        "has_epistemic": True,
        "has_aleatoric_energy": False,
        "has_aleatoric_forces": False,
        "n_parameters": 1,
    }
    return ModelCard(**{**facts, **changes})


LEGACY = {"shape": "ball", "factors": {}}
NEW = {"origin": {"n_members": 8, "n_draws": 0, "spherical": False}, "shape": "ellipsoid"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Origin(n_members=8)),
        ({"n_members": 1, "ddof": 0, "has_epistemic": False}, Origin()),
        ({"n_members": 1, "ddof": 0, "n_draws": 8}, Origin(n_draws=8)),
        ({"n_members": 4, "n_draws": 8}, Origin()),
        ({"n_members": 1, "ddof": 0, "evidential": True}, Origin()),
        ({"n_members": 4, "evidential": True}, Origin()),
        ({"recalibrations": [NEW]}, Origin(n_members=8, spherical=False)),
        ({"recalibrations": [LEGACY]}, Origin(spherical=True)),
        ({"recalibrations": [NEW, LEGACY]}, Origin(spherical=True)),
    ],
)
def test_origin_follows_from_the_card(changes, expected):
    assert origin_of(card(**changes)) == expected


def spread(n_members, flat=0.0, n=400, seed=3):
    """Sample covariances; the last axis is `flat` times as wide as the others."""
    deviation = np.random.default_rng(seed).standard_normal((n_members, n, 3))
    deviation = (deviation - deviation.mean(axis=0)) * [1.0, 1.0, flat]
    return np.einsum("sna,snb->nab", deviation, deviation) / (n_members - 1)


@pytest.mark.parametrize(
    ("origin", "covariance", "is_spread", "name"),
    [
        (Origin(n_members=4), spread(4, 1.0), True, "hotelling"),
        (Origin(n_members=8), spread(8, 1e-3), True, "hotelling"),
        (Origin(n_members=4), spread(4, 1.0), False, "gaussian"),
        (Origin(n_members=3), spread(3, 1.0), True, "spherical"),
        (Origin(n_members=2), spread(2, 1.0)[:, :1, :1], True, "hotelling"),
        (Origin(n_draws=3), spread(4, 1.0), True, "hotelling"),
        (Origin(n_draws=2), spread(3, 1.0), True, "spherical"),
        (Origin(n_draws=2), spread(3, 1.0)[:, :1, :1], True, "gaussian"),
        # Molecules of three atoms, whose forces lie in a plane: exactly, and to round-off.
        (Origin(n_members=8), spread(8, 0.0), True, "spherical"),
        (Origin(n_members=8), spread(8, 1e-7), True, "spherical"),
        (Origin(), spread(2, 1.0), True, "spherical_gaussian"),
        # What a calibration has settled stays, whatever the frames look like.
        (Origin(n_members=8, spherical=True), spread(8, 1.0), True, "spherical"),
        (Origin(n_members=8, spherical=False), spread(8, 0.0), True, "hotelling"),
        (Origin(spherical=True), spread(8, 1.0), True, "spherical_gaussian"),
        (Origin(spherical=True), spread(8, 1.0)[:, :1, :1], True, "gaussian"),
    ],
)
def test_law_follows_from_the_origin(origin, covariance, is_spread, name):
    law, why = law_of(origin, covariance, is_spread)
    assert (law.name, why) == (name, "")


def test_an_evidential_model_states_its_law():
    dof = np.linspace(3.0, 9.0, 400)
    law, _ = law_of(Origin(n_members=8), spread(8, 1.0), False, dof)
    assert law.name == "student_t"
    assert law.dof is dof


def test_one_flat_matrix_by_chance_changes_no_law():
    covariance = spread(8, 1.0)
    covariance[7] = np.diag([1.0, 1.0, 1e-10])
    assert law_of(Origin(n_members=8), covariance, True)[0].name == "hotelling"
    covariance[7, 2, 2] = 0.0
    assert law_of(Origin(n_members=8), covariance, True)[0].name == "spherical"
