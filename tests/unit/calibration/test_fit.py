"""Everything that a file is calibrated by, on synthetic errors whose truth is known."""

import math
import warnings

import numpy as np
import pytest
from ase import Atoms
from scipy.special import ndtri
from synthetic_errors import ELEMENTS, Card, fitted, student_errors, synthetic

from ase_bayesmlip.calibration import METHODS, calibrate, observe, scaled_results
from ase_bayesmlip.calibration.fit import MIN_FRAMES
from ase_bayesmlip.calibration.regions import energy_interval, force_distances, force_radii
from ase_bayesmlip.calibration.scaling import components, fit_one_factor, fit_two_factors
from ase_bayesmlip.structures.labelled import LabelledFrame


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


@pytest.mark.slow
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


@pytest.mark.parametrize(("n", "method"), [(1, "global"), (9, "none"), (19, "split")])
def test_too_few_frames(n, method):
    with pytest.raises(ValueError, match=f"{n} calibration frame"):
        calibrate(observe(*synthetic(n)), ELEMENTS, method)


@pytest.mark.parametrize(("n", "method"), [(MIN_FRAMES, "global"), (2 * MIN_FRAMES, "split")])
@pytest.mark.filterwarnings("ignore:with 10 calibration frames", "ignore:the calibration errors do")
def test_the_least_number_of_frames_is_enough(n, method):
    found = calibrate(observe(*synthetic(n)), ELEMENTS, method)
    assert (found.n_frames, found.n_frames_levels) == (n, MIN_FRAMES)
    # Of 10 frames no region of more than 10/11 is known.
    known = {level for level, r in zip(found.levels, found.conformal["energy"], strict=True) if r}
    assert max(known) == 0.905


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


def test_labels_that_are_predictions():
    results, frames = synthetic(60)
    same = [
        LabelledFrame(f.atoms, r["energy"], r["forces"], None, f.source)
        for r, f in zip(results, frames, strict=True)
    ]
    with pytest.raises(ValueError, match="identical"):
        calibrate(observe(results, same), ELEMENTS, "global")


def test_numbers_are_of_frames_that_the_fit_has_not_seen():
    """Every fifth frame is left out in turn: in closed form for energies and one factor."""
    results, frames = synthetic(53, seed=4, a=3.0, b=3.0)
    error = np.array([f.energy - r["energy"] for f, r in zip(frames, results, strict=True)])
    variance = np.array([r["energy_var"] for r in results])
    chi2, fold = error**2 / variance, np.arange(53) % 5
    factor = np.array([chi2[fold != k].mean() for k in range(5)])[fold]
    nll = 0.5 * (chi2 / factor + np.log(2.0 * np.pi * factor * variance))
    found = calibrate(observe(results, frames), ELEMENTS, "global").numbers["after"]["energy"]
    assert found["nll"] == pytest.approx(nll.mean(), rel=1e-10)
    inside = chi2 / factor <= ndtri(0.95) ** 2
    assert found["coverage_90"] == pytest.approx(inside.mean(), rel=1e-12)


@pytest.mark.parametrize("method", ["global", "per-element", "split"])
def test_the_stress_has_the_factor_of_all_forces(method):
    truth = {"H": 2.0, "C": 0.5, "O": 4.0, "energy": 30.0}
    observed = observe(*synthetic(100, a=truth, b=truth))
    found = calibrate(observed, ELEMENTS, method)
    frames = observed.frames if method == "global" else observed.frames[::2]
    fit = fit_two_factors if method == "split" else fit_one_factor
    forces = observed.of_frames(frames).forces
    assert found.factors.stress_epistemic == fit(components(forces)).epistemic
