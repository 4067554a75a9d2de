"""Metrics against closed forms, scipy, examples by hand, and simulated data with known truth."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import erf
from scipy.stats import chi2, f, multivariate_normal, multivariate_t, norm, spearmanr, t

from ase_bayesmlip import metrics

LEVELS = np.linspace(0.0, 1.0, 21)


def random_spd(generator, n, d=3):
    """Positive definite matrices with eigenvalues between exp(-1) and e in random directions."""
    q = np.linalg.qr(generator.normal(size=(n, d, d)))[0]
    return np.einsum("nab,nb,ncb->nac", q, np.exp(generator.uniform(-1, 1, size=(n, d))), q)


def gaussian_vectors(generator, covariance):
    root = np.linalg.cholesky(covariance)
    return np.einsum("nab,nb->na", root, generator.normal(size=covariance.shape[:2]))


def ensemble_errors(generator, n, n_members):
    """Error of the mean and sample covariance of members that are exchangeable with the label."""
    root = np.linalg.cholesky(random_spd(generator, n))
    drawn = np.einsum("nab,nsb->nsa", root, generator.normal(size=(n, n_members + 1, 3)))
    label, members = drawn[:, 0], drawn[:, 1:]
    centred = members - members.mean(axis=1, keepdims=True)
    covariance = np.einsum("nsa,nsb->nab", centred, centred) / (n_members - 1)
    return label - members.mean(axis=1), covariance


# Errors and proper scoring rules


def test_rmse_and_mae():
    error = [[3.0, -4.0], [0.0, 5.0]]
    assert metrics.rmse(error) == math.sqrt(12.5)
    assert metrics.mae(error) == 3.0


def test_gaussian_nll_is_the_density():
    generator = np.random.default_rng(0)
    error, std = generator.normal(size=(7, 3)), np.exp(generator.normal(size=(7, 3)))
    expected = -norm.logpdf(error, scale=std).mean()
    assert metrics.gaussian_nll(error, std**2) == pytest.approx(expected, rel=1e-14)


def test_multivariate_gaussian_nll_is_the_density():
    generator = np.random.default_rng(1)
    error, covariance = generator.normal(size=(6, 3)), random_spd(generator, 6)
    expected = -np.mean(
        [multivariate_normal.logpdf(e, cov=c) for e, c in zip(error, covariance, strict=True)]
    )
    found = metrics.multivariate_gaussian_nll(error, covariance)
    assert found == pytest.approx(expected, rel=1e-13)


def test_multivariate_gaussian_nll_of_a_diagonal_covariance_is_three_gaussians():
    generator = np.random.default_rng(2)
    error, variance = generator.normal(size=(6, 3)), np.exp(generator.normal(size=(6, 3)))
    covariance = variance[:, :, None] * np.eye(3)
    found = metrics.multivariate_gaussian_nll(error, covariance)
    assert found == pytest.approx(3 * metrics.gaussian_nll(error, variance), rel=1e-13)


def test_nll_in_another_unit_is_shifted_by_the_logarithm():
    generator = np.random.default_rng(3)
    error, covariance = generator.normal(size=(6, 3)), random_spd(generator, 6)
    factor = 1000.0
    for nll in (
        metrics.multivariate_gaussian_nll,
        lambda e, c: metrics.student_t_nll(e, c, 5.0),
    ):
        shift = nll(factor * error, factor**2 * covariance) - nll(error, covariance)
        assert shift == pytest.approx(3 * math.log(factor), rel=1e-12)


@pytest.mark.parametrize("d", [1, 3])
def test_student_t_nll_is_the_density(d):
    generator = np.random.default_rng(4)
    error, scale = generator.normal(size=(8, d)), random_spd(generator, 8, d)
    dof = generator.uniform(0.5, 20.0, size=8)
    density = [
        multivariate_t.logpdf(e, shape=a, df=nu) for e, a, nu in zip(error, scale, dof, strict=True)
    ]
    assert metrics.student_t_nll(error, scale, dof) == pytest.approx(-np.mean(density), rel=1e-12)
    single = metrics.student_t_nll(error[:1], scale[:1], dof[0])
    assert single == pytest.approx(-density[0], rel=1e-12)


@pytest.mark.parametrize("dof", [1e8, 1e12])
def test_student_t_nll_becomes_gaussian(dof):
    generator = np.random.default_rng(5)
    error, scale = generator.normal(size=(8, 3)), random_spd(generator, 8)
    gaussian = metrics.multivariate_gaussian_nll(error, scale)
    # The first correction is of the order 1/ν; the log-gammas must not add round-off to it.
    assert metrics.student_t_nll(error, scale, dof) == pytest.approx(
        gaussian, abs=100 / dof + 1e-13
    )


@pytest.mark.parametrize(("error", "std"), [(0.0, 1.0), (0.7, 0.3), (-2.5, 1.4)])
def test_crps_is_its_integral(error, std):
    below = quad(lambda x: norm.cdf(x, scale=std) ** 2, -np.inf, error)[0]
    above = quad(lambda x: norm.sf(x, scale=std) ** 2, error, np.inf)[0]
    assert metrics.crps_gaussian([error], [std]) == pytest.approx(below + above, abs=1e-7)


def test_crps_of_a_certain_forecast_is_the_mean_absolute_error():
    error = np.array([0.3, -2.0, 1.0])
    found = metrics.crps_gaussian(error, np.full(3, 1e-12))
    assert found == pytest.approx(metrics.mae(error), abs=1e-12)


def test_energy_score_by_hand():
    # Samples at 0 and (3, 4, 0), label at the origin: (0 + 5)/2 - 2·5/(2·2·1) = 0.
    samples = np.array([[[0.0, 0.0, 0.0], [3.0, 4.0, 0.0]]])
    assert metrics.energy_score([[0.0, 0.0, 0.0]], samples) == 0.0
    assert metrics.energy_score([[0.0, 0.0, 2.0]], samples) == pytest.approx(
        (2.0 + math.sqrt(29.0)) / 2 - 2.5
    )


def test_energy_score_counts_every_pair_once():
    generator = np.random.default_rng(6)
    label, samples = generator.normal(size=(4, 3)), generator.normal(size=(4, 7, 3))
    expected = 0.0
    for y, drawn in zip(label, samples, strict=True):
        to_label = np.mean([np.linalg.norm(s - y) for s in drawn])
        apart = np.mean([np.linalg.norm(a - b) for a, b in itertools.permutations(drawn, 2)])
        expected += (to_label - 0.5 * apart) / 4
    assert metrics.energy_score(label, samples) == pytest.approx(expected, rel=1e-13)


def test_energy_score_in_one_dimension_is_the_crps():
    # The estimate is unbiased: its mean over 4000 pairs of samples is the CRPS.
    generator = np.random.default_rng(7)
    error, std = 0.8, 0.6
    scores = [
        metrics.energy_score([[error]], std * generator.normal(size=(1, 2, 1))) for _ in range(4000)
    ]
    standard_error = np.std(scores) / math.sqrt(len(scores))
    assert abs(np.mean(scores) - metrics.crps_gaussian([error], [std])) < 4 * standard_error


def gaussian_scores(error, covariance, seed, n=200):
    generator = np.random.default_rng(seed)
    scores = [
        metrics.energy_score_gaussian(error, covariance, 20, generator=generator) for _ in range(n)
    ]
    return np.mean(scores), np.std(scores) / math.sqrt(n)


def test_energy_score_of_an_isotropic_gaussian():
    # |Z - e| follows Maxwell's distribution, moved: E|Z - e| is in closed form.
    error, sigma = np.array([[0.3, -0.4, 1.2]]), 0.7
    r = np.linalg.norm(error) / sigma
    distance = math.sqrt(2 / math.pi) * math.exp(-(r**2) / 2) + (r + 1 / r) * erf(r / math.sqrt(2))
    exact = sigma * (distance - 2 / math.sqrt(math.pi))
    found, standard_error = gaussian_scores(error, sigma**2 * np.eye(3)[None], 8)
    assert standard_error < 0.01 * exact
    assert abs(found - exact) < 4 * standard_error


def test_energy_score_of_a_gaussian_is_that_of_its_samples():
    generator = np.random.default_rng(9)
    covariance = random_spd(generator, 5)
    error = gaussian_vectors(generator, covariance)
    found, standard_error = gaussian_scores(error, covariance, 10)
    many = [
        metrics.energy_score(
            error,
            np.stack([gaussian_vectors(generator, covariance) for _ in range(20)], axis=1),
        )
        for _ in range(200)
    ]
    total = math.hypot(standard_error, np.std(many) / math.sqrt(200))
    assert total < 0.02 * found
    assert abs(found - np.mean(many)) < 4 * total


def test_energy_score_needs_no_inverse():
    error = np.array([[3.0, 4.0, 0.0]])
    generator = np.random.default_rng(11)
    certain = metrics.energy_score_gaussian(error, np.zeros((1, 3, 3)), 1, generator=generator)
    assert certain == pytest.approx(5.0, rel=1e-15)
    flat, error_of_it = gaussian_scores([[0.8, 0.0, 0.0]], np.diag([0.36, 0.0, 0.0])[None], 12)
    assert abs(flat - metrics.crps_gaussian([0.8], [0.6])) < 4 * error_of_it


def test_draws_come_from_the_generator():
    error, covariance = np.ones((2, 3)), np.stack([np.eye(3)] * 2)
    first, second = (
        metrics.energy_score_gaussian(error, covariance, 5, generator=np.random.default_rng(13))
        for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("scale", [0.7, 1.4])
def test_scoring_rules_prefer_the_truth(scale):
    generator = np.random.default_rng(14)
    covariance = random_spd(generator, 3000)
    error = gaussian_vectors(generator, covariance)
    wrong = scale**2 * covariance
    std = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    assert metrics.gaussian_nll(error, std**2) < metrics.gaussian_nll(error, (scale * std) ** 2)
    assert metrics.crps_gaussian(error, std) < metrics.crps_gaussian(error, scale * std)
    nll = metrics.multivariate_gaussian_nll
    assert nll(error, covariance) < nll(error, wrong)
    right, mistaken = (
        metrics.energy_score_gaussian(error, c, 50, generator=np.random.default_rng(15))
        for c in (covariance, wrong)
    )
    assert right < mistaken


# Ellipsoids


def test_mahalanobis_solves_the_linear_system():
    generator = np.random.default_rng(20)
    error, covariance = generator.normal(size=(9, 3)), random_spd(generator, 9)
    expected = [e @ np.linalg.solve(c, e) for e, c in zip(error, covariance, strict=True)]
    np.testing.assert_allclose(metrics.mahalanobis_squared(error, covariance), expected, rtol=1e-13)


def test_mahalanobis_is_rotation_invariant():
    generator = np.random.default_rng(21)
    error, covariance = generator.normal(size=(9, 3)), random_spd(generator, 9)
    q = np.linalg.qr(generator.normal(size=(3, 3)))[0]
    rotated = metrics.mahalanobis_squared(error @ q.T, q @ covariance @ q.T)
    np.testing.assert_allclose(rotated, metrics.mahalanobis_squared(error, covariance), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_members", [2, 3])
def test_singular_covariances_are_refused(n_members, dtype):
    error, covariance = ensemble_errors(np.random.default_rng(22), 2000, n_members)
    covariance = covariance.astype(dtype)
    name = np.dtype(dtype).name
    for function in (metrics.mahalanobis_squared, metrics.multivariate_gaussian_nll):
        with pytest.raises(ValueError, match=f"definite in {name}, and 2000 of 2000.*4 members"):
            function(error, covariance)
    with pytest.raises(ValueError, match=r"no inverse in 3 dimensions.*4 members or more"):
        metrics.hotelling_law(n_members)


def test_four_members_suffice():
    error, covariance = ensemble_errors(np.random.default_rng(24), 20000, 4)
    assert np.isfinite(metrics.mahalanobis_squared(error, covariance)).all()


def test_chi_squared_law():
    d2 = np.linspace(0.0, 30.0, 50)
    np.testing.assert_allclose(metrics.chi_squared_law()(d2), chi2.cdf(d2, 3), rtol=1e-13)


@pytest.mark.parametrize("n_members", [4, 8, 100])
def test_hotelling_law(n_members):
    d2 = np.linspace(0.0, 50.0, 50)
    # T² = d²/(1 + 1/S), and (S - 3)/(3 (S - 1)) T² ~ F(3, S - 3).
    ratio = (n_members - 3) / (3 * (n_members - 1)) * d2 / (1 + 1 / n_members)
    found = metrics.hotelling_law(n_members)(d2)
    np.testing.assert_allclose(found, f.cdf(ratio, 3, n_members - 3), rtol=1e-12)


def test_hotelling_law_of_a_scalar_is_that_of_student():
    d2 = np.linspace(0.0, 20.0, 30)
    expected = 2 * t.cdf(np.sqrt(d2 / (1 + 1 / 5)), 4) - 1
    np.testing.assert_allclose(metrics.hotelling_law(5, 1)(d2), expected, rtol=1e-12, atol=1e-15)


def test_hotelling_law_of_many_members_is_chi_squared():
    d2 = np.linspace(0.0, 20.0, 30)
    difference = metrics.hotelling_law(10**6)(d2) - metrics.chi_squared_law()(d2)
    assert np.abs(difference).max() < 1e-5


def test_student_t_law():
    d2 = np.linspace(0.0, 20.0, 30)
    dof = np.linspace(0.5, 40.0, 30)
    np.testing.assert_allclose(metrics.student_t_law(dof)(d2), f.cdf(d2 / 3, 3, dof), rtol=1e-12)
    np.testing.assert_allclose(metrics.student_t_law(5)(d2), f.cdf(d2 / 3, 3, 5), rtol=1e-12)


LAWS = {
    "chi2": (metrics.chi_squared_law(), lambda p: chi2.ppf(p, 3)),
    "hotelling": (
        metrics.hotelling_law(8),
        lambda p: (1 + 1 / 8) * 3 * 7 / 5 * f.ppf(p, 3, 5),
    ),
    "student_t": (metrics.student_t_law(5.0), lambda p: 3 * f.ppf(p, 3, 5)),
}


@pytest.mark.parametrize("name", LAWS)
def test_the_curve_counts_the_labels_inside_the_ellipsoids(name):
    law, quantile = LAWS[name]
    d2 = np.random.default_rng(24).exponential(3.0, size=501)
    levels = LEVELS[1:-1]
    expected = [(d2 <= quantile(p)).mean() for p in levels]
    found = metrics.calibration_curve(metrics.ellipsoid_confidence(d2, law), levels)
    np.testing.assert_array_equal(found, expected)


def test_chi_squared_regions_of_eight_members_cover_too_little():
    # P(d² ≤ χ²₀.₉) under the true law, d² ~ 4.725 F(3, 5).
    exact = f.cdf(chi2.ppf(0.9, 3) / (9 / 8 * 3 * 7 / 5), 3, 5)
    assert exact == pytest.approx(0.635, abs=5e-4)
    n = 20000
    d2 = metrics.mahalanobis_squared(*ensemble_errors(np.random.default_rng(25), n, 8))
    naive = metrics.ellipsoid_confidence(d2, metrics.chi_squared_law())
    right = metrics.ellipsoid_confidence(d2, metrics.hotelling_law(8))
    for confidence, truth in ((naive, exact), (right, 0.9)):
        standard_error = math.sqrt(truth * (1 - truth) / n)
        assert abs(metrics.coverage(confidence, 0.9) - truth) < 4 * standard_error


# Calibration


def scalar_confidence(generator, n):
    std = np.exp(generator.normal(size=n))
    return metrics.interval_confidence(std * generator.normal(size=n), std)


def gaussian_confidence(generator, n):
    covariance = random_spd(generator, n)
    d2 = metrics.mahalanobis_squared(gaussian_vectors(generator, covariance), covariance)
    return metrics.ellipsoid_confidence(d2, metrics.chi_squared_law())


def ensemble_confidence(n_members):
    def confidence(generator, n):
        d2 = metrics.mahalanobis_squared(*ensemble_errors(generator, n, n_members))
        return metrics.ellipsoid_confidence(d2, metrics.hotelling_law(n_members))

    return confidence


def student_confidence(generator, n):
    scale, dof = random_spd(generator, n), generator.uniform(2.5, 9.0, size=n)
    width = np.sqrt(dof / generator.chisquare(dof))
    error = width[:, None] * gaussian_vectors(generator, scale)
    d2 = metrics.mahalanobis_squared(error, scale)
    return metrics.ellipsoid_confidence(d2, metrics.student_t_law(dof))


PERFECT = {
    "scalar": scalar_confidence,
    "chi2": gaussian_confidence,
    "4 members": ensemble_confidence(4),
    "8 members": ensemble_confidence(8),
    "student_t": student_confidence,
}


@pytest.mark.parametrize("name", PERFECT)
def test_a_perfect_model_reaches_the_floor(name):
    # 200 data sets of 200 items. The standard deviation of one CE is 1/(√45 n).
    n, repeats = 200, 200
    confidence = PERFECT[name](np.random.default_rng(30), n * repeats).reshape(repeats, n)
    errors = [metrics.calibration_error(u) for u in confidence]
    standard_error = 1 / math.sqrt(45) / n / math.sqrt(repeats)
    assert abs(np.mean(errors) - metrics.calibration_error_floor(n)) < 4 * standard_error
    whole = metrics.calibration_curve(confidence, LEVELS)
    spread = np.sqrt(LEVELS * (1 - LEVELS) / (n * repeats))
    assert (np.abs(whole - LEVELS) <= 4.5 * spread).all()


def test_spread_of_the_calibration_error_of_a_perfect_model():
    n, repeats = 300, 3000
    confidence = np.random.default_rng(31).uniform(size=(repeats, n))
    errors = [metrics.calibration_error(u) for u in confidence]
    # The law has a long tail: the standard deviation of 3000 values is known to about 3 %.
    assert n * np.std(errors) == pytest.approx(1 / math.sqrt(45), rel=0.12)


@pytest.mark.parametrize("n_levels", [1, 7, 100])
def test_floor_is_the_mean_binomial_variance(n_levels):
    p = np.arange(1, n_levels + 1) / (n_levels + 1)
    expected = np.mean(p * (1 - p)) / 250
    assert metrics.calibration_error_floor(250, n_levels) == pytest.approx(expected, rel=1e-13)


def test_calibration_curve_by_hand():
    confidence = [[0.0, 0.2], [0.2, 1.0]]
    found = metrics.calibration_curve(confidence, [0.0, 0.1, 0.2, 0.9, 1.0])
    np.testing.assert_array_equal(found, [0.25, 0.25, 0.75, 0.75, 1.0])
    assert metrics.coverage(confidence, 0.2) == 0.75


def test_calibration_error_by_hand():
    # Levels 1/4, 1/2, 3/4; observed 0, 1/2, 1/2.
    assert metrics.calibration_error([0.4, 0.8], n_levels=3) == pytest.approx(2 / 48)


def test_calibration_error_at_its_worst():
    assert metrics.calibration_error(np.ones(10)) == pytest.approx(201 / 606)
    assert metrics.calibration_error(np.zeros(10)) == pytest.approx(201 / 606)


def test_interval_confidence_is_the_smallest_interval():
    generator = np.random.default_rng(32)
    error, std = generator.normal(size=(100, 3)), generator.uniform(0.7, 2.0, size=(100, 3))
    confidence = metrics.interval_confidence(error, std)
    assert confidence.shape == error.shape
    np.testing.assert_allclose(std * norm.ppf((1 + confidence) / 2), np.abs(error), rtol=1e-8)
    for p in LEVELS[1:-1]:
        expected = (np.abs(error) <= std * norm.ppf((1 + p) / 2)).mean()
        assert metrics.coverage(confidence, p) == expected


def test_pit():
    error, std = np.array([-1.0, 0.0, 2.0]), np.array([0.5, 1.0, 4.0])
    pit = metrics.pit_gaussian(error, std)
    np.testing.assert_allclose(pit, norm.cdf(error, scale=std), rtol=1e-14)
    confidence = metrics.interval_confidence(error, std)
    np.testing.assert_allclose(confidence, np.abs(2 * pit - 1), rtol=1e-13)


def test_overconfidence_lies_below_the_diagonal():
    generator = np.random.default_rng(33)
    error = generator.normal(size=4000)
    levels = LEVELS[2:-1]
    halved = metrics.calibration_curve(
        metrics.interval_confidence(error, np.full(4000, 0.5)), levels
    )
    expected = 2 * norm.cdf(0.5 * norm.ppf((1 + levels) / 2)) - 1
    assert (halved < levels).all()
    np.testing.assert_allclose(halved, expected, atol=4.5 * 0.5 / math.sqrt(4000))


def test_sharpness():
    assert metrics.sharpness([[1.0, 4.0], [2.0, 9.0]]) == 2.0


@given(
    st.lists(st.floats(0.0, 1.0), min_size=1, max_size=30),
    st.integers(1, 40),
)
def test_curve_rises_and_error_is_bounded(confidence, n_levels):
    curve = metrics.calibration_curve(confidence, LEVELS)
    assert (np.diff(curve) >= 0).all()
    assert curve[0] >= 0
    assert curve[-1] == 1
    # The worst curves are 0 or 1 throughout.
    error = metrics.calibration_error(confidence, n_levels)
    assert 0 <= error <= (2 * n_levels + 1) / (6 * (n_levels + 1)) + 1e-12


# Ranking


def test_out_of_distribution_scores_by_hand():
    scores_in, scores_out = [3.0, 1.0, 2.0], [2.0, 4.0, 3.0]
    # Pairs won: 1½ by 2, 2½ by 3, 3 by 4.
    assert metrics.auroc(scores_in, scores_out) == pytest.approx(7 / 9)
    # One hit more at each of the thresholds 4, 3, 2, with the precision 1, 2/3, 3/5.
    assert metrics.aupr(scores_in, scores_out) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    # 95 % of three are three: the threshold is 2, and flags two of three.
    assert metrics.fpr95(scores_in, scores_out) == pytest.approx(2 / 3)


def test_out_of_distribution_scores_of_apart_and_of_equal_scores():
    apart, equal = ([0.0, 1.0], [2.0, 3.0, 4.0]), (np.ones(4), np.ones(3))
    assert (metrics.auroc(*apart), metrics.aupr(*apart), metrics.fpr95(*apart)) == (1, 1, 0)
    assert metrics.auroc(*equal) == 0.5
    assert metrics.aupr(*equal) == pytest.approx(3 / 7)
    assert metrics.fpr95(*equal) == 1.0
    assert metrics.auroc(apart[1], apart[0]) == 0.0


def test_fpr95_lets_one_of_twenty_pass():
    scores_out = np.arange(1.0, 21.0)
    assert metrics.fpr95([1.5, 2.0, 3.0, 0.0], scores_out) == 0.5
    # With one frame fewer, all 19 have to be found: 18 would be 94.7 %.
    assert metrics.fpr95([1.5, 2.0, 3.0, 0.0], scores_out[:-1]) == 0.75
    # All ties with the threshold are flagged.
    assert metrics.fpr95([2.0, 2.0, 1.0, 1.0], np.full(20, 2.0)) == 0.5


def test_fpr95_with_known_frames_as_positive():
    # 19 of 20 known frames are accepted up to the score 19; of the foreign, 18.5 and 19 are too.
    known, foreign = np.arange(1.0, 21.0), np.array([18.5, 19.0, 19.5, 30.0])
    assert metrics.fpr95(-foreign, -known) == 0.5


whole_scores = st.lists(st.integers(-4, 4), min_size=1, max_size=12)


@given(whole_scores, whole_scores)
def test_auroc_counts_pairs(scores_in, scores_out):
    pairs = [
        (out > known) + 0.5 * (out == known)
        for out, known in itertools.product(scores_out, scores_in)
    ]
    found = metrics.auroc(scores_in, scores_out)
    assert found == pytest.approx(np.mean(pairs), abs=1e-14)
    assert found == pytest.approx(1 - metrics.auroc(scores_out, scores_in), abs=1e-14)


@given(whole_scores, whole_scores)
def test_only_the_order_of_scores_counts(scores_in, scores_out):
    for metric in (metrics.auroc, metrics.aupr, metrics.fpr95):
        # Exponentials of whole numbers keep their order and their ties.
        mapped = metric(np.exp(scores_in), np.exp(scores_out))
        assert mapped == metric(scores_in, scores_out)
        assert mapped == metric(scores_in[::-1], sorted(scores_out))
        assert 0 <= mapped <= 1


@given(whole_scores, whole_scores)
def test_aupr_and_fpr95_try_every_threshold(scores_in, scores_out):
    known, foreign = np.array(scores_in), np.array(scores_out)
    area, recall_before, false_positives = 0.0, 0.0, []
    for threshold in sorted({*scores_in, *scores_out}, reverse=True):
        hits, alarms = (foreign >= threshold).sum(), (known >= threshold).sum()
        recall = hits / foreign.size
        area += (recall - recall_before) * hits / (hits + alarms)
        recall_before = recall
        if 20 * hits >= 19 * foreign.size:
            false_positives.append(alarms / known.size)
    assert metrics.aupr(known, foreign) == pytest.approx(area, abs=1e-13)
    assert metrics.fpr95(known, foreign) == min(false_positives)


@given(st.integers(0, 10**6), st.integers(3, 30))
def test_spearman_agrees_with_scipy(seed, n):
    generator = np.random.default_rng(seed)
    size = np.concatenate([[0, 1], generator.integers(0, 5, size=n)])
    sigma = np.concatenate([[1, 2], generator.integers(0, 5, size=n)])
    expected = spearmanr(size, sigma).statistic
    assert metrics.spearman(size, sigma) == pytest.approx(expected, abs=1e-13)


def test_spearman_of_perfect_orders():
    size = np.array([0.1, 0.5, 0.2, 3.0])
    assert metrics.spearman(size, np.log(size)) == pytest.approx(1, abs=1e-15)
    assert metrics.spearman(size, -size) == pytest.approx(-1, abs=1e-15)


def test_error_retention_by_hand():
    size, sigma = [3.0, 1.0, 2.0], [0.3, 0.1, 0.2]
    fraction, error = metrics.error_retention_curve(size, sigma)
    np.testing.assert_allclose(fraction, [0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(error, [0, 1 / 3, 1, 2])
    assert metrics.error_retention_area(size, sigma) == pytest.approx(7 / 9)


def test_error_retention_without_information():
    size = [3.0, 1.0, 2.0, 5.0]
    assert metrics.error_retention_area(size, np.ones(4)) == pytest.approx(0.5 * 2.75)


def test_ties_enter_error_retention_with_the_mean_over_their_orders():
    size, sigma = np.array([4.0, 1.0, 2.0, 7.0, 3.0]), np.array([1.0, 1.0, 0.5, 2.0, 1.0])
    curves = [
        np.concatenate([[0], np.cumsum(size[list(order)])]) / 5
        for order in itertools.permutations(range(5))
        if (np.diff(sigma[list(order)]) >= 0).all()
    ]
    assert len(curves) == 6
    found = metrics.error_retention_curve(size, sigma)[1]
    np.testing.assert_allclose(found, np.mean(curves, axis=0), rtol=1e-14)


@given(st.integers(0, 10**6), st.integers(1, 20))
def test_no_order_is_better_than_that_of_the_errors(seed, n):
    generator = np.random.default_rng(seed)
    size, sigma = generator.integers(0, 5, size=n), generator.integers(0, 5, size=n)
    best = metrics.error_retention_area(size, size)
    worst = metrics.error_retention_area(size, -size)
    assert best - 1e-12 <= metrics.error_retention_area(size, sigma) <= worst + 1e-12


# Bootstrap


@pytest.mark.parametrize("scale", [1, 10])  # coarse scores are tied
def test_roc_curve_has_the_area_of_auroc(scale):
    generator = np.random.default_rng(4)
    known = np.round(scale * generator.normal(size=40)) / scale
    foreign = np.round(scale * (1 + generator.normal(size=30))) / scale
    false_positive, true_positive = metrics.roc_curve(known, foreign)
    assert (false_positive[0], true_positive[0]) == (0, 0)
    assert (false_positive[-1], true_positive[-1]) == (1, 1)
    area = np.sum(np.diff(false_positive) * 0.5 * (true_positive[1:] + true_positive[:-1]))
    assert area == pytest.approx(metrics.auroc(known, foreign), abs=1e-12)
    # One flagged frame at each threshold, by hand.
    curve = metrics.roc_curve([1.0, 3.0], [2.0, 3.0])
    np.testing.assert_array_equal(curve, [[0, 0.5, 0.5, 1], [0, 0.5, 1, 1]])


def test_bootstrap_draws_whole_frames():
    frame_index = np.array([7, 3, 7, 9, 3, 7])
    seen = []

    def statistic(chosen):
        seen.append(chosen)
        return 0.0

    metrics.bootstrap_interval(statistic, frame_index, 50, generator=np.random.default_rng(40))
    assert len(seen) == 50
    for chosen in seen:
        counts = np.bincount(chosen, minlength=6)
        assert counts[0] == counts[2] == counts[5]
        assert counts[1] == counts[4]
        assert counts[0] + counts[1] + counts[3] == 3
    assert len({tuple(np.sort(chosen)) for chosen in seen}) > 5


def test_bootstrap_interval_is_that_of_the_quantiles():
    values = np.array([0.0, 1.0])
    lower, upper = metrics.bootstrap_interval(
        lambda chosen: values[chosen].mean(), [0, 1], 400, generator=np.random.default_rng(41)
    )
    # Two frames: the mean is 0, ½ or 1, with the probabilities ¼, ½, ¼.
    assert (lower, upper) == (0.0, 1.0)
    lower, upper = metrics.bootstrap_interval(
        lambda chosen: values[chosen].mean(),
        [0, 1],
        400,
        level=0.3,
        generator=np.random.default_rng(41),
    )
    assert (lower, upper) == (0.5, 0.5)


def test_bootstrap_interval_covers_when_atoms_are_correlated():
    # 40 frames of 5 atoms whose errors have the correlation 0.8; 90 % intervals for the mean 0.
    generator = np.random.default_rng(42)
    n_frames, n_atoms, rho, repeats = 40, 5, 0.8, 300
    by_frame, by_atom = 0, 0
    frame_index = np.repeat(np.arange(n_frames), n_atoms)
    for _ in range(repeats):
        shared = np.repeat(generator.normal(size=n_frames), n_atoms)
        error = math.sqrt(rho) * shared + math.sqrt(1 - rho) * generator.normal(size=shared.size)
        for index in (frame_index, np.arange(error.size)):
            lower, upper = metrics.bootstrap_interval(
                lambda chosen, e=error: e[chosen].mean(), index, 100, 0.9, generator=generator
            )
            covered = lower <= 0 <= upper
            if index is frame_index:
                by_frame += covered
            else:
                by_atom += covered
    # Standard error 0.017; percentile intervals from 40 frames cover about 0.87.
    assert abs(by_frame / repeats - 0.87) < 0.07
    narrow = 2 * norm.cdf(norm.ppf(0.95) / math.sqrt(1 + (n_atoms - 1) * rho)) - 1
    assert narrow == pytest.approx(0.58, abs=0.01)
    assert abs(by_atom / repeats - narrow) < 4 * math.sqrt(narrow * (1 - narrow) / repeats)


def test_bootstrap_of_two_sets_resamples_each_by_itself():
    generator = np.random.default_rng(8)
    first, second = generator.normal(size=50), 2.0 + 3.0 * generator.normal(size=200)
    sizes = []

    def difference(a, b):
        sizes.append((len(a), len(b), a.max() < 50, b.max() < 200))
        return second[b].mean() - first[a].mean()

    lower, upper = metrics.bootstrap_interval_two_sets(
        difference, 50, 200, n_resamples=4000, generator=generator
    )
    assert set(sizes) == {(50, 200, True, True)}
    # The standard error of a difference of means; 4000 resamples know a quantile to about 4 %.
    error = np.sqrt(first.var() / 50 + second.var() / 200)
    middle = second.mean() - first.mean()
    assert (lower, upper) == pytest.approx((middle - 1.96 * error, middle + 1.96 * error), abs=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_first": 1}, "n_first must be an integer of 2 or more, not 1"),
        ({"n_second": 0}, "n_second"),
        ({"n_resamples": 10}, "n_resamples must be an integer of 40 or more"),
        ({"level": 1.0}, "level must be between 0 and 1"),
        ({"statistic": lambda a, b: np.nan}, "not finite"),
    ],
)
def test_bootstrap_of_two_sets_refuses(changes, message):
    arguments = {"statistic": lambda a, b: 1.0, "n_first": 3, "n_second": 3, **changes}
    with pytest.raises(ValueError, match=message):
        metrics.bootstrap_interval_two_sets(**arguments, generator=np.random.default_rng(0))


def test_bootstrap_band_of_a_curve():
    generator = np.random.default_rng(43)
    confidence = generator.uniform(size=60)
    lower, upper = metrics.bootstrap_interval(
        lambda chosen: metrics.calibration_curve(confidence[chosen], LEVELS),
        np.arange(60) // 3,
        100,
        generator=generator,
    )
    assert lower.shape == upper.shape == LEVELS.shape
    assert (lower <= upper).all()


# Input that is refused

GENERATOR = np.random.default_rng(50)
EYE = np.eye(3)[None]
SKEW = np.array([[[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
CHI2 = metrics.chi_squared_law()

REFUSED = {
    "nothing": (lambda: metrics.rmse([]), "error is empty"),
    "NaN": (lambda: metrics.mae([1.0, np.nan]), "1 of 2 numbers are not"),
    "infinity": (lambda: metrics.gaussian_nll([np.inf], [1.0]), "error must be finite"),
    "variance 0": (lambda: metrics.gaussian_nll([1.0], [0.0]), "variance must be positive"),
    "shape": (
        lambda: metrics.gaussian_nll([1.0, 2.0], [1.0]),
        r"same shape, not \(2,\) and \(1,\)",
    ),
    "negative std": (lambda: metrics.crps_gaussian([1.0], [-1.0]), "std must be .* -1"),
    "shape of std": (lambda: metrics.interval_confidence([1.0], [[1.0]]), "same shape"),
    "negative variance": (lambda: metrics.sharpness([1.0, -2.0]), "smallest number is -2"),
    "vectors": (lambda: metrics.mahalanobis_squared([1.0], EYE), r"error must have shape \(n, d\)"),
    "matrices": (
        lambda: metrics.mahalanobis_squared(np.ones((2, 3)), EYE),
        r"not \(2, 3\) and \(1, 3, 3\)",
    ),
    "not symmetric": (lambda: metrics.mahalanobis_squared([[1.0] * 3], SKEW), "symmetric.*0.5"),
    "indefinite": (
        lambda: metrics.energy_score_gaussian([[1.0] * 3], -EYE, generator=GENERATOR),
        "positive semi-definite, and 1 of 1",
    ),
    "scale": (lambda: metrics.student_t_nll([[1.0] * 3], 0 * EYE, 5.0), "scale must be positive"),
    "dof": (lambda: metrics.student_t_nll([[1.0] * 3], EYE, 0.0), "dof must be positive"),
    "dof shape": (lambda: metrics.student_t_nll([[1.0] * 3], EYE, [5.0, 5.0]), r"not \(2,\)"),
    "dof of law": (lambda: metrics.student_t_law(-1.0), "dof must be positive"),
    "dof shape of law": (
        lambda: metrics.ellipsoid_confidence([1.0, 2.0, 3.0], metrics.student_t_law([5.0])),
        r"dof has shape \(1,\)",
    ),
    "dimension": (lambda: metrics.chi_squared_law(0), "dimension must be an integer of 1"),
    "members": (lambda: metrics.hotelling_law(4.5), "n_members must be an integer"),
    "distance": (lambda: metrics.ellipsoid_confidence([-1.0], CHI2), "d2 must not be negative"),
    "distances": (lambda: metrics.ellipsoid_confidence([[1.0]], CHI2), r"d2 must have shape \(n,"),
    "law": (lambda: metrics.ellipsoid_confidence([2.0], lambda d2: d2), "law must be between"),
    "law's shape": (
        lambda: metrics.ellipsoid_confidence([1.0], lambda d2: d2[0]),
        "the law turned",
    ),
    "samples": (lambda: metrics.energy_score([[1.0]], [[1.0], [2.0]]), r"samples \(n, S, d\)"),
    "one sample": (lambda: metrics.energy_score([[1.0]], [[[1.0]]]), "2 samples or more"),
    "draws": (
        lambda: metrics.energy_score_gaussian([[1.0] * 3], EYE, 0, generator=GENERATOR),
        "n_samples must be",
    ),
    "confidence": (lambda: metrics.calibration_error([1.5]), "confidence must be between 0 and 1"),
    "levels": (lambda: metrics.calibration_curve([0.5], [-0.1, 1]), "levels must be between"),
    "level": (lambda: metrics.coverage([0.5], 1.1), "levels must be between"),
    "number of levels": (lambda: metrics.calibration_error([0.5], 0), "n_levels must be"),
    "number of items": (lambda: metrics.calibration_error_floor(0), "n_items must be"),
    "constant error": (lambda: metrics.spearman([1.0, 1.0], [1.0, 2.0]), "error_size has one"),
    "constant sigma": (lambda: metrics.spearman([1.0, 2.0], [3.0, 3.0]), "uncertainty has one"),
    "signed error": (lambda: metrics.spearman([-1.0, 2.0], [1.0, 2.0]), "must not be negative"),
    "retention": (lambda: metrics.error_retention_area([1.0], [1.0, 2.0]), "same shape"),
    "scores": (lambda: metrics.auroc([[1.0]], [1.0]), r"scores_in must have shape \(n,\)"),
    "no foreign frames": (lambda: metrics.aupr([1.0], []), "scores_out is empty"),
    "score": (lambda: metrics.fpr95([np.nan], [1.0]), "scores_in must be finite"),
    "one frame": (
        lambda: metrics.bootstrap_interval(len, [4, 4], generator=GENERATOR),
        "2 frames or more, and there are 1",
    ),
    "frames": (
        lambda: metrics.bootstrap_interval(len, [0.0, 1.0], generator=GENERATOR),
        "frame_index must hold integers",
    ),
    "resamples": (
        lambda: metrics.bootstrap_interval(len, [0, 1], 39, generator=GENERATOR),
        "integer of 40 or more, not 39",
    ),
    "interval level": (
        lambda: metrics.bootstrap_interval(len, [0, 1], level=1.0, generator=GENERATOR),
        "level must be between 0 and 1",
    ),
    "statistic": (
        lambda: metrics.bootstrap_interval(lambda chosen: np.nan, [0, 1], generator=GENERATOR),
        "not finite on some",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()
