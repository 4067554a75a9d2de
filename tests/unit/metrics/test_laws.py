"""Predictive laws against samples of what they describe."""

import numpy as np
import pytest
from scipy.stats import multivariate_t

from ase_bayesmlip import metrics
from ase_bayesmlip.metrics import PredictiveLaw

N = 8000
LEVELS = (0.1, 0.5, 0.9, 0.99)
# Of a fraction of N: four standard errors.
TOLERANCE = 4.0 * np.sqrt(0.25 / N)


@pytest.fixture
def generator():
    return np.random.default_rng(11)


def normal(generator, shape, spherical):
    """Draws of one Gaussian, (..., N, 3): in all directions alike, or not at all alike."""
    z = generator.standard_normal((*shape, N, 3))
    return z if spherical else z @ np.array([[1.0, 0.7, -2.0], [0.0, 0.3, 0.4], [0.0, 0.0, 0.3]])


def of_members(generator, n_members, spherical):
    """Error of the mean of S members, and their sample covariance; the label is one draw more."""
    drawn = normal(generator, (n_members + 1,), spherical)
    members = drawn[1:]
    deviation = members - members.mean(axis=0)
    covariance = np.einsum("sna,snb->nab", deviation, deviation) / (n_members - 1)
    return drawn[0] - members.mean(axis=0), covariance


def of_draws(generator, n_draws, spherical):
    """Error of a mean that is known, and the mean square of D draws about it."""
    drawn = normal(generator, (n_draws + 1,), spherical)
    return drawn[0], np.einsum("sna,snb->nab", drawn[1:], drawn[1:]) / n_draws


CASES = {
    "4 members": (PredictiveLaw(n_members=4), of_members, 4),
    "8 members": (PredictiveLaw(n_members=8), of_members, 8),
    "2 members, spheres": (PredictiveLaw(n_members=2, spherical=True), of_members, 2),
    "3 members, spheres": (PredictiveLaw(n_members=3, spherical=True), of_members, 3),
    "3 draws": (PredictiveLaw(n_draws=3), of_draws, 3),
    "8 draws": (PredictiveLaw(n_draws=8), of_draws, 8),
    "2 draws, spheres": (PredictiveLaw(n_draws=2, spherical=True), of_draws, 2),
}


@pytest.mark.parametrize("name", CASES)
def test_regions_of_a_spread_hold_what_they_say(name, generator):
    law, make, count = CASES[name]
    error, covariance = make(generator, count, law.spherical)
    confidence = law.confidence(error, covariance)
    distance = law.distances(error, covariance)
    for level in LEVELS:
        assert np.mean(confidence <= level) == pytest.approx(level, abs=TOLERANCE)
        assert np.mean(distance <= law.radius(level, 3)) == pytest.approx(level, abs=TOLERANCE)
        shape = law.shape(covariance)
        half = law.interval_factor(level) * np.sqrt(shape[:, 1, 1])
        assert np.mean(np.abs(error[:, 1]) <= half) == pytest.approx(level, abs=TOLERANCE)
    # Of all multiples of its scale matrices the likelihood is best for the law itself.
    nll = [law.nll(error, factor * covariance) for factor in (0.5, 1.0, 2.0)]
    assert nll[1] < min(nll[0], nll[2])


@pytest.mark.parametrize("n_members", [2, 3, 8])
def test_energies_of_a_few_members(n_members, generator):
    """Sphere and ellipsoid are the same in one dimension: Student's t of S - 1 degrees."""
    error, covariance = of_members(generator, n_members, False)
    error, covariance = error[:, :1], covariance[:, :1, :1]
    law = PredictiveLaw(n_members=n_members)
    for level in LEVELS:
        found = np.mean(law.confidence(error, covariance) <= level)
        assert found == pytest.approx(level, abs=TOLERANCE)
        assert law.radius(level, 1) == pytest.approx(float(law.interval_factor(level)))
    np.testing.assert_allclose(
        law.confidence(error, covariance),
        PredictiveLaw(n_members=n_members, spherical=True).confidence(error, covariance),
    )


@pytest.mark.parametrize("name", CASES)
def test_mean_squares(name, generator):
    """What the RMSE should be, given the RMS of the error bars."""
    law, make, count = CASES[name]
    error, covariance = make(generator, count, True)
    ratio = np.mean(error**2) / (np.trace(covariance, axis1=1, axis2=2).mean() / 3)
    assert law.mean_square == pytest.approx(1 + 1 / count if make is of_members else 1.0)
    # χ² of 3N degrees over one of 3N (S - 1) or 3ND.
    assert ratio == pytest.approx(law.mean_square, rel=4 * np.sqrt(2 / (3 * N) * 2))


def test_laws_of_draws_are_hotellings(generator):
    """T² of D degrees: the law of D + 1 members without what the mean of the members costs."""
    error, covariance = of_draws(generator, 6, False)
    t_squared = metrics.mahalanobis_squared(error, covariance)
    expected = metrics.hotelling_law(7)((1 + 1 / 7) * t_squared)
    np.testing.assert_allclose(PredictiveLaw(n_draws=6).confidence(error, covariance), expected)


@pytest.mark.parametrize(
    ("law", "factor", "eta"),
    [
        (PredictiveLaw(dof=np.full(6, 5.0)), 3 / 5, 5),
        (PredictiveLaw(n_members=8), (1 + 1 / 8) * 7 / 5, 5),
        (PredictiveLaw(n_draws=8), 8 / 6, 6),
    ],
)
def test_likelihoods_are_densities_of_scipy(law, factor, eta, generator):
    root = generator.normal(size=(6, 3, 3))
    error, covariance = generator.normal(size=(6, 3)), root @ root.swapaxes(1, 2)
    density = [
        multivariate_t.logpdf(e, shape=factor * c, df=eta)
        for e, c in zip(error, covariance, strict=True)
    ]
    assert law.nll(error, covariance) == pytest.approx(-np.mean(density), rel=1e-10)


EVERY = [PredictiveLaw(), PredictiveLaw(dof=np.linspace(3, 40, N))]
EVERY += [law for law, _, _ in CASES.values()]


@pytest.mark.parametrize("law", EVERY)
def test_radius_is_the_inverse_of_confidence(law):
    covariance = np.tile(np.diag([1.0, 4.0, 0.25]), (N, 1, 1))
    radius = np.broadcast_to(law.radius(0.9, 3), N)
    error = np.zeros((N, 3))
    error[:, 0] = radius * np.sqrt(law.shape(covariance)[:, 0, 0])
    np.testing.assert_allclose(law.confidence(error, covariance), 0.9, rtol=1e-9)


@pytest.mark.parametrize("law", [PredictiveLaw(n_members=3), PredictiveLaw(n_draws=2)])
def test_too_few_for_an_ellipsoid(law):
    with pytest.raises(ValueError, match="no inverse in 3 dimensions; take spheres"):
        law.radius(0.9, 3)


@pytest.mark.parametrize("name", CASES)
def test_a_law_comes_back_from_its_record(name):
    law = CASES[name][0]
    back = PredictiveLaw.from_record(law.to_record())
    assert back.to_record() == law.to_record()
    assert back.radius(0.9, 3) == law.radius(0.9, 3)
