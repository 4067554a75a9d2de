"""Variance factors, isotonic and conformal levels on synthetic errors whose truth is known."""

import dataclasses
import math
import warnings

import numpy as np
import pytest
from ase import Atoms
from scipy.optimize import isotonic_regression
from scipy.special import chdtri, ndtr, ndtri

from ase_bayesmlip.calibration import METHODS, calibrate, observe, scaled_results
from ase_bayesmlip.calibration.levels import (
    LEVELS,
    conformal_at,
    conformal_radii,
    isotonic_at,
    isotonic_quantiles,
)
from ase_bayesmlip.calibration.regions import energy_interval, force_distances, force_radii
from ase_bayesmlip.calibration.scaling import (
    Factors,
    components,
    fit_one_factor,
    fit_two_factors,
)
from ase_bayesmlip.md.threshold import false_alarm_threshold
from ase_bayesmlip.metrics import Errors, PredictiveLaw
from ase_bayesmlip.structures.labelled import LabelledFrame

ELEMENTS = [1, 6, 8]


def random_covariances(generator, n, size=1.0):
    """Anisotropic, of different sizes."""
    a = generator.standard_normal((n, 3, 5))
    scale = size * generator.lognormal(sigma=1.0, size=(n, 1, 1))
    return scale * np.einsum("nik,njk->nij", a, a) / 5


def draw(generator, covariance):
    z = generator.standard_normal((len(covariance), 3))
    return np.einsum("nij,nj->ni", np.linalg.cholesky(covariance), z)


def force_errors(generator, n, a, b):
    epistemic, aleatoric = (random_covariances(generator, n) for _ in range(2))
    error = draw(generator, a * epistemic + b * aleatoric)
    return Errors(error, epistemic, aleatoric, np.arange(n), PredictiveLaw())


def synthetic(n_frames, seed=0, a=1.0, b=1.0, tails=None, symbols="CHHO", parts="ea", copies=1):
    """Results and labelled frames of a model whose covariances are wrong by known factors.

    `a` and `b` may be dictionaries by symbol for the forces, with one under ``energy``. With
    `tails` the errors of a frame share a random factor of that degree of freedom (Student-t), so
    that they are neither Gaussian nor independent.
    """
    generator = np.random.default_rng(seed)
    results, frames = [], []
    atoms = Atoms(symbols)
    n = len(atoms)
    for index in range(n_frames):
        cov = {"e": random_covariances(generator, n, 0.5), "a": random_covariances(generator, n)}
        var = {"e": generator.lognormal(), "a": generator.lognormal()}
        factors = {"e": a, "a": b}

        def of(part, key, factors=factors):
            given = factors[part]
            return given[key] if isinstance(given, dict) else given

        true_cov = sum(
            np.array([of(p, s) for s in atoms.symbols])[:, None, None] * cov[p] for p in parts
        )
        true_var = sum(of(p, "energy") * var[p] for p in parts)
        heavy = 1.0 if tails is None else math.sqrt(tails / generator.chisquare(tails))
        result = {"energy": 3.0, "forces": np.ones((n, 3)), "energy_var": 0.0, "forces_cov": 0.0}
        for part, name in (("e", "epistemic"), ("a", "aleatoric")):
            if part in parts:
                result[f"forces_cov_{name}"], result[f"energy_var_{name}"] = cov[part], var[part]
                result["forces_cov"] = result["forces_cov"] + cov[part]
                result["energy_var"] += var[part]
        error = heavy * draw(generator, true_cov)
        energy = 3.0 + heavy * math.sqrt(true_var) * generator.standard_normal()
        results.append(result)
        frames.append(LabelledFrame(atoms, energy, 1.0 + error, None, f"synthetic#{index}"))
    return results, frames


def fitted(method="global", n_frames=400, elements=ELEMENTS, **options):
    return calibrate(observe(*synthetic(n_frames, **options)), elements, method)


class Card:
    """The part of a card that regions read."""

    def __init__(self, calibration):
        self.recalibrations = [calibration.record]


# --- factors ---


def test_one_factor_in_closed_form():
    generator = np.random.default_rng(0)
    errors = force_errors(generator, 50, 2.0, 2.0)
    d2 = np.einsum("ni,nij,nj->n", errors.error, np.linalg.inv(errors.covariance), errors.error)
    fit = fit_one_factor(components(errors))
    assert fit.epistemic == fit.aleatoric == pytest.approx(d2.mean() / 3, rel=1e-12)


@pytest.mark.parametrize("factors", [(1.0, 1.0), (4.0, 0.25), (0.1, 3.0)])
def test_two_factors_within_their_standard_errors(factors):
    """Over repeats: no bias, and standard errors that say how far they scatter."""
    repeats = 60
    logs, errors = [], []
    for seed in range(repeats):
        generator = np.random.default_rng([1, seed])
        fit = fit_two_factors(components(force_errors(generator, 300, *factors)))
        logs.append(np.log(fit[:2]))
        errors.append(fit.log_errors)
    z = (np.array(logs) - np.log(factors)) / np.array(errors)
    assert np.abs(z.mean(axis=0)).max() < 4 / math.sqrt(repeats)
    # The variance of z² of a Gaussian is 2.
    assert np.abs((z**2).mean(axis=0) - 1).max() < 4 * math.sqrt(2 / repeats)


def test_two_factors_are_the_best_there_are():
    errors = force_errors(np.random.default_rng(5), 200, 3.0, 0.5)
    fit = fit_two_factors(components(errors))

    def nll(*factors):
        return errors.scaled(*(np.full(200, factor) for factor in factors)).nll

    best = nll(*fit[:2])
    for angle in np.linspace(0, 2 * np.pi, 12, endpoint=False):
        moved = (
            fit[0] * math.exp(0.02 * math.cos(angle)),
            fit[1] * math.exp(0.02 * math.sin(angle)),
        )
        assert nll(*moved) > best


def test_standard_errors_know_that_atoms_of_a_frame_are_not_independent():
    """Nine copies of one error in each frame tell nothing that one does not."""
    errors = force_errors(np.random.default_rng(2), 100, 2.0, 0.5)
    copies = np.repeat(np.arange(100), 9)
    many = errors.take(copies)
    for fit in (fit_one_factor, fit_two_factors):
        one, nine = fit(components(errors)), fit(components(many))
        assert nine[:2] == pytest.approx(one[:2], rel=1e-5)
        assert nine.log_errors == pytest.approx(one.log_errors, rel=1e-3)


def student_errors(generator, n, a, b):
    """Student-t errors with the covariance a Σ_epistemic + b Σ_aleatoric, of 3 to 30 degrees."""
    errors = force_errors(generator, n, a, b)
    dof = generator.uniform(3.0, 30.0, n)
    heavy = np.sqrt((dof - 2.0) / generator.chisquare(dof))
    law = PredictiveLaw(dof=dof)
    return dataclasses.replace(errors, error=heavy[:, None] * errors.error, law=law)


@pytest.mark.parametrize("fit", [fit_one_factor, fit_two_factors])
def test_student_factors_are_the_best_there_are(fit):
    errors = student_errors(np.random.default_rng(6), 200, 3.0, 3.0)
    found = fit(components(errors))

    def nll(*factors):
        return errors.scaled(*(np.full(200, factor) for factor in factors)).nll

    best = nll(*found[:2])
    diagonal = [(0.02, 0.02), (-0.02, -0.02)]
    moves = diagonal if fit is fit_one_factor else [*diagonal, (0.02, -0.02), (0.0, 0.02)]
    for one, two in moves:
        assert nll(found[0] * math.exp(one), found[1] * math.exp(two)) > best


@pytest.mark.parametrize("factors", [(2.0, 2.0), (4.0, 0.25)])
def test_student_factors_within_their_standard_errors(factors):
    repeats = 60
    fit = fit_one_factor if factors[0] == factors[1] else fit_two_factors
    z = []
    for seed in range(repeats):
        generator = np.random.default_rng([2, seed])
        found = fit(components(student_errors(generator, 300, *factors)))
        z.append((np.log(found[:2]) - np.log(factors)) / np.array(found.log_errors))
    z = np.array(z)
    assert np.abs(z.mean(axis=0)).max() < 4 / math.sqrt(repeats)
    assert np.abs((z**2).mean(axis=0) - 1).max() < 4 * math.sqrt(2 / repeats)


@pytest.mark.parametrize("fit", [fit_one_factor, fit_two_factors])
def test_many_degrees_of_freedom_are_gaussian(fit):
    errors = force_errors(np.random.default_rng(7), 100, 2.0, 0.5)
    many = dataclasses.replace(errors, law=PredictiveLaw(dof=np.full(100, 1e9)))
    one, two = fit(components(errors)), fit(components(many))
    assert two[:2] == pytest.approx(one[:2], rel=1e-5)
    assert two.log_errors == pytest.approx(one.log_errors, rel=1e-5)


def test_laws_of_files_with_degrees_of_freedom():
    """A calibrated Student-t model stays calibrated; a Gaussian fit would widen its error bars."""
    generator = np.random.default_rng(8)
    errors = student_errors(generator, 4000, 1.0, 1.0)
    atoms = Atoms("H")
    frames = [LabelledFrame(atoms, 0.0, e[None], None, "synthetic") for e in errors.error]
    results = [
        {
            "energy": 0.0,
            "forces": np.zeros((1, 3)),
            "forces_cov_epistemic": errors.epistemic[k : k + 1],
            "forces_cov_aleatoric": errors.aleatoric[k : k + 1],
            "forces_dof": errors.law.dof[k : k + 1],
        }
        for k in range(len(frames))
    ]
    found = calibrate(observe(results, frames), [1], "global")
    factor, error = found.factors.forces_epistemic["H"], found.log_errors["forces"][0]
    assert abs(math.log(factor)) < 4 * error
    for stage in ("before", "after"):
        numbers = found.numbers[stage]["forces"]
        assert abs(numbers["coverage_90"] - 0.9) < 4 * math.sqrt(0.09 / 4000)
        assert numbers["calibration_error"] < 5 / (6 * 4000)
    scaled = scaled_results(results[0], ["H"], found.factors)
    assert np.array_equal(scaled["forces_dof"], results[0]["forces_dof"])


@pytest.mark.parametrize(("parts", "known"), [("e", "epistemic"), ("a", "aleatoric")])
def test_a_part_that_does_not_exist_has_no_factor(parts, known):
    found = fitted("split", parts=parts, a=4.0, b=4.0)
    other = {"epistemic": "aleatoric", "aleatoric": "epistemic"}[known]
    assert getattr(found.factors, f"energy_{other}") == 1.0
    assert set(getattr(found.factors, f"forces_{other}").values()) == {1.0}
    value = getattr(found.factors, f"energy_{known}")
    assert abs(math.log(value / 4.0)) < 4 * found.log_errors["energy"][0]
    assert found.shape == "ellipsoid"  # of unknown origin: the covariance counts as known


def test_every_method_recovers_what_it_can():
    per_element = {"H": 2.0, "C": 0.5, "O": 4.0, "energy": 3.0}
    truth = {
        "global": (2.5, 2.5),
        "split": (4.0, 0.5),
        "per-element": (per_element, per_element),
        "per-element-split": (per_element, {"H": 0.5, "C": 2.0, "O": 1.0, "energy": 1.0}),
        "none": (1.0, 1.0),
    }
    assert truth.keys() == METHODS.keys()
    for method, (a, b) in truth.items():
        found = fitted(method, n_frames=1000, a=a, b=b)
        for row, (part, given) in enumerate((("epistemic", a), ("aleatoric", b))):
            values = getattr(found.factors, f"forces_{part}")
            values = {**values, "energy": getattr(found.factors, f"energy_{part}")}
            for name, value in values.items():
                expected = given[name] if isinstance(given, dict) else given
                errors = found.log_errors
                error = errors.get(name, errors.get("forces", (0.0, 0.0)))[row]
                assert abs(math.log(value / expected)) <= 4 * error, (method, name)


def test_parts_that_cannot_be_told_apart_are_reported():
    results, frames = synthetic(100, seed=3)
    for result in results:  # proportional parts
        result["forces_cov_epistemic"] = 0.5 * result["forces_cov_aleatoric"]
        result["energy_var_epistemic"] = 0.5 * result["energy_var_aleatoric"]
    with pytest.warns(UserWarning, match=r"separately for: energy .*, forces .*--method global"):
        calibrate(observe(results, frames), ELEMENTS, "split")


def test_scaled_results():
    results, frames = synthetic(1)
    factors = Factors({"H": 1.0, "C": 2.0, "O": 3.0}, {"H": 4.0, "C": 5.0, "O": 6.0}, 7.0, 8.0)
    scaled = scaled_results(results[0], list(frames[0].atoms.symbols), factors)
    expected = np.array([2.0, 1.0, 1.0, 3.0])[:, None, None] * results[0]["forces_cov_epistemic"]
    np.testing.assert_array_equal(scaled["forces_cov_epistemic"], expected)
    assert scaled["energy_var_aleatoric"] == 8.0 * results[0]["energy_var_aleatoric"]
    assert "forces_cov" not in scaled
    squared = factors * factors
    assert squared.forces_aleatoric == {"H": 16.0, "C": 25.0, "O": 36.0}
    assert squared.energy_epistemic == 49.0


# --- levels ---


def test_conformal_radius_of_one_distance_a_frame_is_the_known_quantile():
    distance = np.random.default_rng(0).exponential(size=73)
    radii = conformal_radii(distance, np.arange(73))
    for level, radius in zip(LEVELS, radii, strict=True):
        if radius is None:
            assert level > 73 / 74
        else:
            assert radius == false_alarm_threshold(distance, 1 - level)


def test_conformal_radius_by_hand():
    """Two frames, of one and of two atoms: weights 1/3, 1/6 and 1/6, and 1/3 at infinity."""
    distance, frame = np.array([2.0, 1.0, 3.0]), np.array([0, 1, 1])
    levels = [0.1, 1 / 6, 0.2, 0.5, 0.6, 2 / 3, 0.7]
    assert conformal_radii(distance, frame, levels) == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, None]


def test_isotonic_regression_of_a_distribution_function_is_the_function():
    """Which is why there is no pool-adjacent-violators here (Kuleshov et al., algorithm 1)."""
    predicted = np.sort(ndtr(np.random.default_rng(0).normal(scale=2.0, size=200)))
    observed = np.array([(predicted <= p).mean() for p in predicted])
    np.testing.assert_allclose(isotonic_regression(observed).x, observed, atol=1e-12)


def test_isotonic_quantiles():
    values = np.random.default_rng(0).permutation(np.arange(1.0, 100.0))  # n + 1 = 100
    found = dict(zip(LEVELS, isotonic_quantiles(values), strict=True))
    assert (found[0.01], found[0.5], found[0.985]) == pytest.approx((1.0, 50.0, 98.5))
    assert found[0.001] is found[0.005] is found[0.995] is None
    levels, quantiles = zip(*found.items(), strict=True)
    assert isotonic_at(levels, quantiles, 0.9025) == pytest.approx(90.25)
    with pytest.raises(ValueError, match="more frames"):
        isotonic_at(levels, quantiles, 0.999)


def test_a_coverage_between_levels_gets_the_larger_radius():
    levels, radii = [0.5, 0.9, 0.95], [1.0, 2.0, None]
    assert conformal_at(levels, radii, 0.5) == 1.0
    assert conformal_at(levels, radii, 0.51) == 2.0
    with pytest.raises(ValueError, match="needs at least 19"):
        conformal_at(levels, radii, 0.95)
    for coverage in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            conformal_at(levels, radii, coverage)


@pytest.mark.parametrize("method", ["global", "split"])
def test_conformal_coverage_over_repeats(method, monkeypatch):
    """200 calibrations on heavy-tailed errors that all atoms of a frame share, one new frame each.

    One atom of each element counts, so that the repeats are independent; the guarantee is from
    below, and from above it holds to 1/(K + 1) and the distance of the levels.
    """
    monkeypatch.setattr("ase_bayesmlip.calibration.fit.N_FOLDS", 0)  # numbers that nobody reads
    repeats, n_frames, coverage = 200, 60, 0.8
    inside = {"H": 0, "O": 0, "energy": 0}
    for seed in range(repeats):
        results, frames = synthetic(n_frames + 1, seed=[7, seed], a=3.0, b=0.2, tails=3)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the calibration errors do not|with 30 calib")
            found = calibrate(observe(results[:-1], frames[:-1]), ELEMENTS, method)
        card, atoms = Card(found), frames[-1].atoms
        new = scaled_results(results[-1], list(atoms.symbols), found.factors)
        covariance = new["forces_cov_epistemic"] + new["forces_cov_aleatoric"]
        distance = force_distances(card, frames[-1].forces - new["forces"], covariance)
        within = distance <= force_radii(card, atoms.numbers, coverage)
        variance = new["energy_var_epistemic"] + new["energy_var_aleatoric"]
        low, high = energy_interval(card, {**new, "energy_var": variance}, coverage)
        inside["H"] += within[1]
        inside["O"] += within[3]
        inside["energy"] += low <= frames[-1].energy <= high
    n_levels = n_frames if method == "global" else n_frames // 2
    error = math.sqrt(coverage * (1 - coverage) / repeats)
    for name, count in inside.items():
        assert coverage - 3 * error < count / repeats, name
        assert count / repeats < coverage + 1 / (n_levels + 1) + 3 * error, name


def test_one_factor_changes_no_conformal_region():
    """The reason why these frames may fix both: radius times standard deviation is the same."""
    before, after = fitted("none", a=5.0, b=5.0), fitted("global", a=5.0, b=5.0)
    root = math.sqrt(after.factors.energy_epistemic)
    for symbol, radii in before.conformal["forces"].items():
        factor = math.sqrt(after.factors.forces_epistemic[symbol])
        for one, other in zip(radii, after.conformal["forces"][symbol], strict=True):
            assert (one is None) == (other is None)
            assert one is None or one == pytest.approx(factor * other, rel=1e-9)
    known = [x for x in before.conformal["energy"] if x is not None]
    scaled = [root * x for x in after.conformal["energy"] if x is not None]
    assert known == pytest.approx(scaled, rel=1e-9)


def test_more_factors_take_frames_of_their_own():
    assert fitted("global", 60, a=2.0).n_frames_levels == 60
    divided = fitted("per-element", 101, a=2.0)
    assert (divided.n_frames_factors, divided.n_frames_levels) == (51, 50)
    np.testing.assert_array_equal(divided.level_frames, np.arange(1, 101, 2))


# --- regions ---


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


# --- numbers before and after, and bad input ---


def test_numbers_before_and_after():
    found = fitted("global", n_frames=600, a=4.0, b=4.0)
    before, after = found.numbers["before"], found.numbers["after"]
    # Error bars too small by a factor of 2.
    assert before["energy"]["coverage_90"] == pytest.approx(2 * ndtr(ndtri(0.95) / 2) - 1, abs=0.08)
    for name, n in (("energy", 600), ("forces", 2400)):
        error = math.sqrt(0.09 / n)
        assert abs(after[name]["coverage_90"] - 0.9) < 4 * error
        assert abs(found.numbers["after_isotonic"][name]["coverage_90"] - 0.9) < 4 * error
        # The floor 1/6n of a perfect model, and four of its standard deviations 1/√45n.
        assert after[name]["calibration_error"] < (1 / 6 + 4 / math.sqrt(45)) / n
        assert before[name]["calibration_error"] > 10 * after[name]["calibration_error"]
        assert after[name]["nll"] < before[name]["nll"] - 0.2
    assert abs(found.numbers["after_conformal"]["energy"]["coverage_90"] - 0.9) < 0.06


def test_isotonic_levels_repair_what_a_factor_cannot():
    found = fitted("global", n_frames=600, tails=2)
    for name in ("energy", "forces"):
        after, isotonic = (found.numbers[s][name] for s in ("after", "after_isotonic"))
        assert isotonic["calibration_error"] < 0.2 * after["calibration_error"]


@pytest.mark.parametrize(("n", "method"), [(1, "global"), (9, "none"), (19, "split")])
def test_too_few_frames(n, method):
    with pytest.raises(ValueError, match=f"{n} calibration frame"):
        calibrate(observe(*synthetic(n)), ELEMENTS, method)


def test_few_frames_are_reported():
    with pytest.warns(UserWarning, match=r"32% at best.*95\.2%"):
        calibrate(observe(*synthetic(20)), ELEMENTS, "global")


def test_no_frames_and_unknown_method():
    with pytest.raises(ValueError, match="no calibration frames"):
        observe([], [])
    with pytest.raises(ValueError, match="one for each"):
        observe([], synthetic(2)[1])
    with pytest.raises(ValueError, match="unknown method 'magic'"):
        calibrate(observe(*synthetic(60)), ELEMENTS, "magic")


def test_results_without_variances_or_that_are_not_finite():
    results, frames = synthetic(12)
    bare = [{"energy": r["energy"], "forces": r["forces"]} for r in results]
    with pytest.raises(ValueError, match="nothing to calibrate"):
        observe(bare, frames)
    results[4]["forces"] = np.full((4, 3), np.nan)
    with pytest.raises(ValueError, match=r"not finite.*synthetic#4"):
        observe(results, frames)
    results, frames = synthetic(12, parts="e")
    results[7]["energy_var_epistemic"] = 0.0
    with pytest.raises(ValueError, match=r"zero variance.*synthetic#7"):
        observe(results, frames)


def test_labels_that_are_predictions():
    results, frames = synthetic(60)
    same = [
        LabelledFrame(f.atoms, r["energy"], r["forces"], None, f.source)
        for r, f in zip(results, frames, strict=True)
    ]
    with pytest.raises(ValueError, match="identical"):
        calibrate(observe(results, same), ELEMENTS, "global")
