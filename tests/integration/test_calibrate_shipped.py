"""The shipped ethanol ensemble, calibrated on its calibration frames and looked at on others."""

import math

import numpy as np
import pytest
from ase.io import read

from ase_bayesmlip.calculator import BayesianCalculator
from ase_bayesmlip.calibration import energy_interval, force_distances, force_radii
from ase_bayesmlip.cli.calibrate import calibrate_file
from ase_bayesmlip.md.alarm import CalibrationAlarm
from ase_bayesmlip.md.threshold import false_alarm_threshold
from ase_bayesmlip.scores import forces_epistemic_max
from ase_bayesmlip.structures.labelled import read_frames
from ase_bayesmlip.testing import assert_equivariant_prediction, assert_positive_semidefinite


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory, data_folder):
    """Calculators before and after; the file is of before there were factors, and built anew."""
    path = tmp_path_factory.mktemp("calibrated") / "ethanol.pt"
    shipped = data_folder / "ethanol_ensemble.pt"
    calibrate_file(shipped, read_frames(str(data_folder / "ethanol_calib.extxyz")), path, "split")
    return [BayesianCalculator(name, dtype="float64") for name in (shipped, path)]


@pytest.fixture(scope="module")
def tested(calibrated, data_folder):
    """Test frames and what the calibrated file says of them."""
    frames = read_frames(str(data_folder / "ethanol_test.extxyz"))
    return frames, calibrated[1].evaluate([frame.atoms for frame in frames])


# Noise heads of energies are not needed beside the spread of the members, and that is said.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:the calibration errors do not fix:UserWarning"),
]


def test_means_are_untouched(calibrated, data_folder):
    """To round-off: a program written anew may sum derivatives in another order."""
    before, after = calibrated
    frames = read(data_folder / "ethanol_ood_1200K.extxyz", ":8")
    for one, other in zip(before.evaluate(frames), after.evaluate(frames), strict=True):
        assert one["energy"] == pytest.approx(other["energy"], rel=1e-14)
        for name in ("forces", "energies"):
            np.testing.assert_allclose(one[name], other[name], rtol=0.0, atol=1e-11)
        ratio = other["energy_var_epistemic"] / one["energy_var_epistemic"]
        factors = after.card.recalibrations[-1]["factors"]
        assert ratio == pytest.approx(factors["energy_epistemic"], rel=1e-12)


def test_symmetry_and_positivity(calibrated, ethanol):
    assert_equivariant_prediction(calibrated[1].model, ethanol)
    assert_positive_semidefinite(calibrated[1].model, ethanol)


@pytest.mark.parametrize("kind", ["conformal", "isotonic"])
def test_coverage_on_frames_never_seen(calibrated, tested, kind):
    card = calibrated[1].card
    frames, results = tested
    inside = [
        force_distances(card, frame.forces - r["forces"], r["forces_cov"])
        <= force_radii(card, frame.atoms.numbers, 0.9, kind)
        for frame, r in zip(frames, results, strict=True)
    ]
    bounds = [energy_interval(card, r, 0.9, kind) for r in results]
    energies = [a <= f.energy <= b for (a, b), f in zip(bounds, frames, strict=True)]
    # Binomial in the frames of both sets, 200 and 150: those are what is independent, if anything.
    error = math.sqrt(0.09 * (1 / 200 + 1 / 150))
    assert abs(np.mean(energies) - 0.9) < 3 * error
    assert abs(np.mean(inside) - 0.9) < 2 * error


def test_the_record_says_that_it_got_better(calibrated):
    numbers = calibrated[1].card.recalibrations[-1]["numbers"]
    for name in ("forces", "energy"):
        before, after, isotonic = (
            numbers[stage][name] for stage in ("before", "after", "after_isotonic")
        )
        assert after["nll"] < before["nll"]
        assert after["calibration_error"] < 0.5 * before["calibration_error"]
        assert isotonic["calibration_error"] < 1e-3


def test_thresholds_moved_with_the_scores(calibrated, tested):
    frames, results = tested
    scores = [forces_epistemic_max(r, f.atoms).value for r, f in zip(results, frames, strict=True)]
    known = calibrated[1].card.calibration["scores"]["forces_epistemic_max"]
    assert len(known) == 150
    rate = np.mean(np.array(scores) > false_alarm_threshold(known, 0.05))
    assert rate < 0.05 + 4 * math.sqrt(0.05 * 0.95 * (1 / 200 + 1 / 150))


def test_the_alarm_tells_hot_frames_from_others(calibrated, tested, data_folder):
    """Frames 400 fs apart count one by one."""
    known = calibrated[1].card.calibration["scores"]["forces_epistemic_max"]
    frames, results = tested
    alarm = CalibrationAlarm(2000, stride=1)
    alarm.start(known)
    for frame, result in zip(frames, results, strict=True):
        alarm.update(forces_epistemic_max(result, frame.atoms).value)
    assert not alarm.expired  # with a probability of 0.9 by chance alone
    hot = read(data_folder / "ethanol_ood_1200K.extxyz", ":40")
    for atoms, result in zip(hot, calibrated[1].evaluate(hot), strict=True):
        if alarm.update(forces_epistemic_max(result, atoms).value):
            break
    assert alarm.expired
    assert alarm.n_frames < 200 + 20
