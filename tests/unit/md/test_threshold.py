"""Thresholds and triggers, and contacts where no search for neighbours is possible."""

import math
import time
import warnings

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from fake_potential import make_atoms
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import lfilter
from scipy.special import gammainc, ndtr

from ase_bayesmlip.md import threshold as module
from ase_bayesmlip.md.events import UncertaintyWarning
from ase_bayesmlip.md.threshold import (
    ContactWatch,
    Trigger,
    alarm_level,
    close_contact,
    false_alarm_threshold,
)


@pytest.mark.parametrize("height", [1e4, 1e6])
@pytest.mark.parametrize("watched", [close_contact, ContactWatch()])
def test_an_evaporated_atom_takes_no_time(height, watched):
    slab = fcc111("Cu", (3, 3, 3)) + Atoms("Cu", [[0.0, 0.0, height]])
    started = time.monotonic()
    assert watched(slab, 0.5) == ""
    assert time.monotonic() - started < 0.5
    slab += Atoms("H", [[0.0, 0.7, height]])
    assert "atoms 27 (Cu) and 28 (H) are 0.700 Å apart" in watched(slab, 0.5)


@pytest.mark.parametrize("seed", range(5))
def test_contacts_are_those_that_ase_finds(seed):
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True) * (2, 1, 1)
    atoms.pbc = np.random.default_rng(seed).permutation([True, True, False])
    atoms.rattle(0.6, seed=seed)
    for ratio in (0.5, 0.7, 0.9, 1.2):
        distances = neighbor_list("d", atoms, ratio * covalent_radii[atoms.numbers])
        expected = f"{distances.min():.3f} Å" if len(distances) else ""
        text = close_contact(atoms, ratio)
        assert (expected in text) if expected else text == ""


@pytest.mark.parametrize("n_atoms", [2, 400])
@pytest.mark.parametrize("place", [1e12, np.nan, np.inf])
def test_where_no_search_is_possible_the_watch_says_why(n_atoms, place):
    atoms = Atoms(f"H{n_atoms}", np.arange(n_atoms)[:, None] * [2.0, 0.0, 0.0])
    atoms.positions[1, 2] = place
    assert "atom 1 is at" in ContactWatch()(atoms, 0.5)


@pytest.mark.parametrize(
    ("n", "rate", "expected"),
    [
        (99, 0.01, 99),  # k = ceil(100 * 0.99)
        (100, 0.01, 100),  # k = ceil(101 * 0.99) = ceil(99.99)
        (199, 0.01, 198),
        (9, 0.1, 9),
        (3, 0.5, 2),
        (19, 0.3, 14),
        (1, 0.5, 1),
    ],
)
def test_threshold_is_the_kth_smallest_score(n, rate, expected):
    scores = np.random.default_rng(0).permutation(np.arange(1.0, n + 1))
    assert false_alarm_threshold(scores, rate) == expected


def test_threshold_leaves_the_scores_alone():
    scores = np.array([3.0, 1.0, 2.0])
    false_alarm_threshold(scores, 0.5)
    assert list(scores) == [3.0, 1.0, 2.0]


@given(
    st.lists(st.integers(0, 30).map(float), min_size=4, max_size=60),
    st.floats(0.02, 0.98),
)
def test_rate_holds_exactly_for_every_exchangeable_set(values, rate):
    """Each of n + 1 values is equally likely to be the new one: count those that are flagged.

    This is the exchangeability argument itself, without sampling and with ties.
    """
    n = len(values) - 1
    if n < math.ceil(1 / rate - 1 - 1e-9):
        return
    flagged = sum(
        values[i] > false_alarm_threshold(values[:i] + values[i + 1 :], rate) for i in range(n + 1)
    )
    assert flagged / (n + 1) <= rate + 1e-9


@given(st.integers(5, 200), st.floats(0.05, 0.6), st.integers(0, 2**32 - 1))
def test_rate_is_not_wasted(n, rate, seed):
    """Without ties the rate is missed by less than 1 / (n + 1)."""
    if n < math.ceil(1 / rate - 1 - 1e-9):
        return
    values = np.random.default_rng(seed).permutation(n + 1).astype(float)
    flagged = sum(
        values[i] > false_alarm_threshold(np.delete(values, i), rate) for i in range(n + 1)
    )
    assert rate - 1 / (n + 1) - 1e-9 < flagged / (n + 1) <= rate + 1e-9


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.25])
def test_false_alarm_rate_by_simulation(rate):
    """Independent skewed scores: the expected rate is 1 - k / (n + 1), at most `rate`."""
    n, repeats = 60, 20000
    scores = np.random.default_rng(11).lognormal(sigma=1.5, size=(repeats, n + 1))
    alarms = [row[-1] > false_alarm_threshold(np.sort(row[:-1]), rate) for row in scores]
    expected = 1 - math.ceil((n + 1) * (1 - rate)) / (n + 1)
    assert expected <= rate
    standard_error = math.sqrt(expected * (1 - expected) / repeats)
    assert abs(np.mean(alarms) - expected) < 4 * standard_error


@given(st.floats(0.001, 0.9))
def test_smallest_number_of_frames(rate):
    needed = math.ceil(1 / rate - 1 - 1e-9)
    false_alarm_threshold(np.arange(float(max(needed, 1))), rate)
    if needed > 1:
        with pytest.raises(ValueError, match=f"at least {needed} calibration frames"):
            false_alarm_threshold(np.arange(float(needed - 1)), rate)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 2.0, math.nan])
def test_rate_out_of_range(rate):
    with pytest.raises(ValueError, match="between 0 and 1"):
        false_alarm_threshold(np.arange(100.0), rate)


@pytest.mark.parametrize("scores", [[1.0, np.nan, 2.0], [np.inf, 1.0], [[1.0, 2.0]]])
def test_bad_scores(scores):
    with pytest.raises(ValueError, match="one-dimensional array of finite numbers"):
        false_alarm_threshold(scores, 0.5)


@pytest.mark.parametrize(
    ("patience", "cooldown", "flags", "fires"),
    [
        (1, 0, "0110100", "0110100"),
        (2, 0, "1011110", "0001010"),
        (3, 0, "1101110", "0000010"),
        (1, 2, "1111111", "1001001"),
        (1, 2, "1000100", "1000100"),
        (1, 3, "0100110", "0100010"),
        (2, 1, "1111111", "0101010"),
        (2, 3, "1111110", "0100010"),
        (3, 1, "0000000", "0000000"),
    ],
)
def test_trigger_truth_table(patience, cooldown, flags, fires):
    trigger = Trigger(patience, cooldown)
    assert "".join(str(int(trigger.update(flag == "1"))) for flag in flags) == fires


def test_trigger_reset():
    trigger = Trigger(patience=2, cooldown=5)
    trigger.update(True)
    trigger.reset()
    assert [trigger.update(True), trigger.update(True), trigger.update(True)] == [0, 1, 0]
    trigger.reset()
    assert [trigger.update(True), trigger.update(True)] == [0, 1]


@pytest.mark.parametrize("arguments", [(0, 0), (1, -1)])
def test_trigger_arguments(arguments):
    with pytest.raises(ValueError, match=r"patience|cooldown"):
        Trigger(*arguments)


def test_close_contact_boundary():
    """The covalent radius of hydrogen is 0.31 Å, so that the limit at 0.5 is 0.31 Å."""
    assert close_contact(Atoms("H2", [[0, 0, 0], [0, 0, 0.3101]]), 0.5) == ""
    text = close_contact(Atoms("H2", [[0, 0, 0], [0, 0, 0.3099]]), 0.5)
    assert "atoms 0 (H) and 1 (H) are 0.310 Å apart" in text


def test_close_contact_names_the_closest_pair():
    atoms = make_atoms()
    atoms.positions[3] = atoms.positions[1] + [0.3, 0, 0]
    atoms.positions[2] = atoms.positions[0] + [0.2, 0, 0]
    assert "atoms 0 (C) and 2 (O) are 0.200 Å" in close_contact(atoms, 0.5)


def test_close_contact_through_the_boundary():
    atoms = Atoms("C2", [[0.1, 0, 0], [9.8, 0, 0]], cell=[10, 10, 10])
    assert close_contact(atoms, 0.5) == ""
    atoms.pbc = True
    assert "0.300 Å" in close_contact(atoms, 0.5)


def test_neighbour_list_and_all_pairs_agree(monkeypatch):
    atoms = Atoms("C4", np.random.default_rng(3).uniform(0, 1, (4, 3)))
    answers = [close_contact(atoms, 0.7)]
    monkeypatch.setattr(module, "_ALL_PAIRS_LIMIT", 0)
    answers.append(close_contact(atoms, 0.7))
    assert answers[0] == answers[1] != ""


@pytest.mark.parametrize(
    "atoms",
    [molecule("CH3CH2OH"), molecule("H2"), bulk("Cu"), bulk("NaCl", "rocksalt", a=5.6), Atoms("H")],
)
def test_ordinary_structures_have_no_close_contact(atoms):
    assert close_contact(atoms, 0.5) == ""


def autoregressive(n, tau, generator):
    """Of a stationary AR(1) process of unit variance with that correlation time."""
    phi = (tau - 1) / (tau + 1)
    noise = math.sqrt(1 - phi**2) * generator.standard_normal(n)
    noise[0] = generator.standard_normal()
    return lfilter([1.0], [1.0, -phi], noise)


# What the score of a frame is of a standard normal number.
MARGINALS = {
    "normal": lambda z: z,
    "log-normal": lambda z: np.exp(0.3 * z),
    "exponential": lambda z: -np.log(ndtr(-z)),
    "largest of many": lambda z: 5.0 - np.log(-np.log(ndtr(z))),
}


def rates(tau, n, marginal, repeats, rate=0.01, sort=False):
    """False-alarm rates, each known exactly, of thresholds from simulated calibration frames."""
    grid = np.linspace(-6.0, 7.5, 4001)
    table = MARGINALS[marginal](grid)
    found = []
    for k in range(repeats):
        scores = MARGINALS[marginal](autoregressive(n, tau, np.random.default_rng([17, k])))
        scores = np.sort(scores) if sort else scores
        found.append(ndtr(-np.interp(false_alarm_threshold(scores, rate), table, grid)))
    return np.mean(found), np.std(found) / math.sqrt(repeats)


@pytest.mark.parametrize("marginal", MARGINALS)
@pytest.mark.filterwarnings("ignore:a false-alarm rate")
def test_the_rate_holds_on_frames_of_a_trajectory(marginal):
    """1 % from 300 frames with a correlation time of 49: within 0.5 to 1.5 %."""
    mean, error = rates(49.0, 300, marginal, 400)
    assert mean - error > 0.005
    assert mean < 0.015 + error
    without, error = rates(49.0, 300, marginal, 400, sort=True)
    assert without > 0.03 - 2 * error  # as if they were independent


@pytest.mark.parametrize(("tau", "n"), [(9.0, 300), (19.0, 300), (9.0, 1000), (49.0, 1500)])
@pytest.mark.filterwarnings("ignore:a false-alarm rate")
def test_the_rate_comes_nearer_with_more_frames(tau, n):
    mean, error = rates(tau, n, "log-normal", 250)
    assert mean + 2 * error > 0.0075
    assert mean - 2 * error < 0.0125


def test_independent_frames_give_the_order_statistic_to_the_bit():
    for seed in range(30):
        scores = np.random.default_rng(seed).gamma(2.0, size=250)
        assert false_alarm_threshold(scores, 0.01) == np.sort(scores)[248]


def test_what_correlated_frames_cannot_promise_is_said():
    scores = np.exp(autoregressive(300, 49.0, np.random.default_rng(0)))
    with pytest.warns(
        UncertaintyWarning, match=r"needs 99 independent .* the 300, correlated and w"
    ):
        level = alarm_level(scores, 0.01)
    assert not level.promised
    assert level.n_effective < 20
    assert level.threshold > np.sort(scores)[297]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert alarm_level(scores, 0.3).promised
        assert alarm_level(scores, 0.6).threshold == np.sort(scores)[math.ceil(301 * 0.4) - 1]
        assert alarm_level(scores, 0.01, np.arange(300)) == (np.sort(scores)[297], 300.0, True)


@pytest.mark.parametrize(("rate", "n"), [(0.05, 1000), (0.01, 300)])
@pytest.mark.filterwarnings("ignore:a false-alarm rate")
def test_the_rate_holds_for_eight_times_as_many_atoms(rate, n):
    """The largest of eight independent parts, each like a calibration frame; beyond it without."""
    found, naive = [], []
    for k in range(200):
        scores = np.random.default_rng([3, k]).gamma(4.0, size=n)
        limits = [alarm_level(scores, rate, size=size).threshold for size in (8.0, 1.0)]
        alarms = -np.expm1(8 * np.log(gammainc(4.0, limits)))
        found.append(alarms[0])
        naive.append(alarms[1])
    assert np.mean(naive) > 5 * rate
    assert rate / 1.5 < np.mean(found) < 1.5 * rate
    assert alarm_level(scores, rate, size=0.2).threshold == limits[1]


def test_a_size_beyond_the_calibration_frames_is_said():
    scores = np.random.default_rng(0).gamma(4.0, size=150)
    with pytest.warns(UncertaintyWarning, match=r"0.01 \(0.0013 for as many atoms as .* needs 796"):
        level = alarm_level(scores, 0.01, size=8.0)
    assert level.n_effective == 150
    assert level.threshold > scores.max()
