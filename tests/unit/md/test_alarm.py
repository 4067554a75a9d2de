"""The sequential alarm: its run length, its delay, and what a monitor does with it."""

import math
import warnings

import numpy as np
import pytest
from fake_potential import FakePotential, ScriptedDynamics, make_atoms, make_card
from scipy.signal import lfilter
from scipy.special import ndtri

from ase_bayesmlip.md import CalibrationAlarm, UncertaintyMonitor
from ase_bayesmlip.md.actions import Call, LogCSV, Stop, UncertaintyWarning
from ase_bayesmlip.md.correlation import independent_stride
from ase_bayesmlip.md.threshold import false_alarm_threshold


def autoregressive(n, phi, generator):
    """A stationary AR(1) process of unit variance."""
    noise = math.sqrt(1 - phi**2) * generator.standard_normal(n)
    noise[0] = generator.standard_normal()
    return lfilter([1.0], [1.0, -phi], noise)


def skewed(x):
    """Scores are positive and skewed; alarms must not mind."""
    return np.exp(0.7 * x)


def run_length(alarm, scores):
    for score in scores:
        if alarm.update(float(score)):
            return alarm.n_frames
    raise AssertionError(f"no alarm in {alarm.n_frames} frames")


def run_lengths(repeats, make_alarm, phi, n_calibration=300, shift=0.0, longest=14.0):
    """Frames until the alarm in independent repeats, calibration frames drawn anew in each."""
    found = []
    for seed in range(repeats):
        generator = np.random.default_rng([11, seed])
        alarm = make_alarm(seed)
        alarm.start(skewed(generator.standard_normal(n_calibration)))
        n = int(longest * alarm.frames_between_false_alarms)
        found.append(run_length(alarm, skewed(autoregressive(n, phi, generator) + shift)))
    return np.array(found)


def standard_errors(found, expected):
    return (found.mean() - expected) / (found.std(ddof=1) / math.sqrt(len(found)))


@pytest.mark.parametrize("n_calibration", [20, 300])
def test_run_length_on_independent_scores(n_calibration):
    """Exact for any number of calibration frames, because these are not taken for the truth."""
    found = run_lengths(300, lambda k: CalibrationAlarm(200, stride=1, seed=k), 0.0, n_calibration)
    assert abs(standard_errors(found, 200)) < 3.5
    # Nearly geometric: mean and standard deviation agree.
    assert 0.8 < found.std() / found.mean() < 1.2


def test_run_length_on_correlated_scores_with_a_stride():
    phi, stride = 0.9, independent_stride(19.0)
    found = run_lengths(200, lambda k: CalibrationAlarm(200 * stride, stride=stride, seed=k), phi)
    assert abs(standard_errors(found, 200 * stride)) < 3.5


def test_correlated_scores_without_a_stride_alarm_too_often():
    """What the stride is for."""
    found = run_lengths(100, lambda k: CalibrationAlarm(200, stride=1, seed=k), 0.9)
    assert found.mean() < 100


@pytest.mark.filterwarnings("ignore:scores are correlated")
@pytest.mark.parametrize("phi", [0.0, 0.8])
def test_run_length_with_a_measured_stride(phi):
    found = run_lengths(120, lambda k: CalibrationAlarm(5000, warm_up=500, seed=k), phi)
    assert abs(standard_errors(found, 5000)) < 3.5


@pytest.mark.parametrize("phi", [0.0, 0.9])
def test_false_alarm_rate_of_the_threshold(phi):
    """Per frame, with correlated frames as well: each is exchangeable with the calibration."""
    rate, n, repeats = 0.1, 59, 1500
    shares = []
    for seed in range(repeats):
        generator = np.random.default_rng([5, seed])
        threshold = false_alarm_threshold(skewed(generator.standard_normal(n)), rate)
        shares.append(np.mean(skewed(autoregressive(50, phi, generator)) > threshold))
    # ceil(60 · 0.9) = 54 of 60: exactly the nominal rate.
    assert abs(standard_errors(np.array(shares), rate)) < 4


def test_delay_is_the_stated_one_with_many_calibration_scores():
    alarm = CalibrationAlarm(1000, stride=1)
    alarm.start([0.0, 1.0])
    for shift in (1.0, 2.0):
        found = run_lengths(
            150, lambda k: CalibrationAlarm(1000, stride=1, seed=k), 0.0, 4000, shift
        )
        expected = alarm.expected_delay(shift)
        # New scores join the 4000 old ones and make the shift a little smaller: 1 % at most.
        assert abs(found.mean() - expected) < 0.01 * expected + 3.5 * found.std() / math.sqrt(150)


def test_delay_with_few_calibration_scores_is_longer_and_finite():
    found = run_lengths(100, lambda k: CalibrationAlarm(1000, stride=1, seed=k), 0.0, 100, 2.0)
    alarm = CalibrationAlarm(1000, stride=1)
    alarm.start([0.0, 1.0])
    assert alarm.expected_delay(2.0) < found.mean() < 2 * alarm.expected_delay(2.0)
    assert found.max() < 30


def test_delay_counts_observed_frames():
    one, ten = CalibrationAlarm(1e4, stride=1), CalibrationAlarm(1e5, stride=10)
    for alarm in (one, ten):
        alarm.start([0.0, 1.0])
    assert ten.expected_delay(1.0) == pytest.approx(10 * one.expected_delay(1.0))


def test_a_change_in_the_warm_up_is_found_at_its_end():
    generator = np.random.default_rng(0)
    alarm = CalibrationAlarm(1e5, warm_up=200)
    alarm.start(generator.standard_normal(300))
    found = run_length(alarm, generator.standard_normal(400) + 3.0)
    assert found == 200
    assert alarm.expired
    assert not alarm.update(100.0)  # it fires once
    alarm.start(generator.standard_normal(300))
    assert (alarm.expired, alarm.n_frames, alarm.statistic) == (False, 0, 0.0)


def test_same_seed_same_alarm():
    scores = np.random.default_rng(2).standard_normal(500).round(1)  # with ties
    found = []
    for seed in (1, 1, 2):
        alarm = CalibrationAlarm(1e4, stride=1, seed=seed)
        alarm.start(scores[:100])
        statistics = []
        for score in scores[100:]:
            alarm.update(score)
            statistics.append(alarm.statistic)
        found.append(statistics)
    assert found[0] == found[1] != found[2]


def test_normal_scores_are_those_of_the_ranks():
    alarm = CalibrationAlarm(1e4, stride=1, shift=0.2)
    alarm.start(np.arange(999.0))
    alarm.update(1e6)  # the largest of 1000: p = U/1000
    u = 1.0 - np.random.default_rng(0).random()
    assert alarm.statistic == pytest.approx(-ndtri(u / 1000) - 0.1)


def test_long_correlations_are_reported():
    generator = np.random.default_rng(1)
    alarm = CalibrationAlarm(1e6, warm_up=200)
    alarm.start(generator.standard_normal(300))
    *first, last = autoregressive(200, 0.98, generator)
    for score in first:
        alarm.update(score)
    with pytest.warns(UncertaintyWarning, match="warm_up"):
        alarm.update(last)
    assert alarm.autocorrelation_time > 4
    assert alarm.stride < 400


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shift": 0.1}, "shift"),
        ({"shift": 5.0}, "shift"),
        ({"stride": 0}, "stride"),
        ({"warm_up": 10}, "warm-up"),
        ({"frames_between_false_alarms": 5000.0}, "10 warm-ups"),
        ({"frames_between_false_alarms": 30.0, "stride": 10}, "out of reach"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ValueError, match=message):
        CalibrationAlarm(**settings)


def test_wrong_use():
    alarm = CalibrationAlarm(1e4, stride=1)
    with pytest.raises(RuntimeError, match="start"):
        alarm.update(1.0)
    for scores in ([], [1.0], [1.0, float("nan")], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="calibration scores"):
            alarm.start(scores)
    alarm.start([1.0, 2.0])
    with pytest.raises(ValueError, match="finite"):
        alarm.update(float("inf"))
    waiting = CalibrationAlarm()
    waiting.start([1.0, 2.0])
    with pytest.raises(RuntimeError, match="stride"):
        waiting.expected_delay(1.0)


def monitored(alarm, **settings):
    scores = np.random.default_rng(4).uniform(0.5, 1.0, 200)
    card = make_card({"forces_epistemic_max": sorted(scores)})
    dyn = ScriptedDynamics(make_atoms(FakePotential(card=card)))
    return dyn, UncertaintyMonitor(dyn, threshold=1.2, alarm=alarm, **settings)


def test_a_monitor_feeds_the_alarm_and_runs_its_actions(tmp_path):
    seen = []
    alarm = CalibrationAlarm(1e5, stride=1, actions=[Call(seen.append), Stop()])
    log = tmp_path / "log.csv"
    dyn, monitor = monitored(alarm, log=LogCSV(log))
    generator = np.random.default_rng(9)
    dyn.play(monitor, list(generator.uniform(0.5, 1.0, 100)))
    assert not seen
    assert alarm.n_frames == 100
    # Scores that no threshold flags, but all among the largest of the calibration.
    dyn.play(monitor, [0.999] * 30)
    assert [event.kind for event in seen] == ["expired"]
    assert 100 < seen[0].step < 115
    assert "the calibration has expired" in seen[0].reason
    assert monitor.n_flagged == 0
    assert "expired" in monitor.stop_reason
    assert sum("expired" in line for line in log.read_text().splitlines()) == 1


def test_an_alarm_warns_unless_told_otherwise():
    dyn, monitor = monitored(CalibrationAlarm(1e5, stride=1))
    with pytest.warns(UncertaintyWarning, match="expired") as caught:
        dyn.play(monitor, [1.1] * 30)
    assert len(caught) == 1


def test_both_events_of_a_frame_are_logged():
    seen = []
    alarm = CalibrationAlarm(1e5, stride=1, actions=[Call(seen.append)])
    dyn, monitor = monitored(alarm, actions=[Call(seen.append)])
    rows = []
    for _ in range(10):
        dyn.play(monitor, [2.0])
        rows.append(monitor.row["event"])
    assert "expired+uncertain" in rows
    assert set(rows) == {"expired+uncertain", "uncertain"}
    assert [event.kind for event in seen].count("expired") == 1


def test_unphysical_frames_do_not_enter():
    alarm = CalibrationAlarm(1e5, stride=1)
    dyn, monitor = monitored(alarm, upper_limit=5.0, on_unphysical=())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dyn.play(monitor, [0.7, 9.0, 0.7])
    assert alarm.n_frames == 2


def test_an_alarm_needs_calibration_scores():
    dyn = ScriptedDynamics(make_atoms(FakePotential()))
    with pytest.raises(ValueError, match="alarm needs calibration scores"):
        UncertaintyMonitor(dyn, threshold=1.0, alarm=CalibrationAlarm(1e5))


@pytest.mark.parametrize("stride", [None, 3])
def test_attributes_exist_before_the_start(stride):
    alarm = CalibrationAlarm(stride=stride)
    assert (alarm.expired, alarm.n_frames, alarm.statistic) == (False, 0, 0.0)
    assert math.isnan(alarm.autocorrelation_time)
    assert alarm.stride == stride
    before = alarm.limit
    alarm.start([0.0, 1.0, 2.0])
    np.testing.assert_equal(alarm.limit, before)
    assert math.isnan(before) == (stride is None)
