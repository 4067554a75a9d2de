"""What a monitor compares with: defaults that can be reached, and folds of training frames."""

import warnings

import numpy as np
import pytest
from fake_potential import FakePotential, ScriptedDynamics, make_atoms, make_card

from ase_bayesmlip.md.alarm import CalibrationAlarm
from ase_bayesmlip.md.events import UncertaintyWarning
from ase_bayesmlip.md.limit import FoldScore, find_limit, fold_scores
from ase_bayesmlip.md.monitor import UncertaintyMonitor
from ase_bayesmlip.scores import find_score

NAME = "forces_epistemic_max"


def limit_of(card=None, threshold=None, rate=None, scores=None, name=NAME):
    return find_limit(threshold, rate, scores, find_score(name), FakePotential(card=card))


def test_the_usual_rate_needs_no_words():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = limit_of(make_card({NAME: np.arange(1.0, 100.0)}))
    assert (found.threshold, found.rate) == (99.0, 0.01)
    assert "at most 1 % of frames like the 99 calibration frames" in found.meaning


def test_without_a_rate_few_frames_give_the_smallest():
    with pytest.warns(UncertaintyWarning, match=r"no false-alarm rate below 0\.0476.*needs 99"):
        found = limit_of(make_card({NAME: np.arange(1.0, 21.0)}))
    assert found.threshold == 20.0
    assert found.rate == pytest.approx(1 / 21)
    with pytest.raises(ValueError, match="needs at least 99 calibration frames, and there are 20"):
        limit_of(make_card({NAME: np.arange(1.0, 21.0)}), rate=0.01)


def test_a_monitor_without_settings_takes_the_default():
    card = make_card({NAME: np.arange(1.0, 101.0)})
    monitor = UncertaintyMonitor(ScriptedDynamics(make_atoms(FakePotential(card=card))))
    assert (monitor.false_alarm_rate, monitor.threshold) == (0.01, 100.0)
    assert monitor.meaning.startswith("forces_epistemic_max above 100")
    given = UncertaintyMonitor(ScriptedDynamics(make_atoms(FakePotential())), threshold=0.3)
    assert given.false_alarm_rate is None
    assert given.meaning == "forces_epistemic_max above 0.3, as given"


# --- folds


def results_of(forces):
    """What a calculator gives of one atom, from the force of each member along x."""
    members = np.zeros((len(forces), 1, 3))
    members[:, 0, 0] = forces
    return {"forces_ensemble": members, "energy_ensemble": np.asarray(forces, dtype=float)}


def atom():
    return make_atoms()[:1]


def folds_with(*scores, name=NAME):
    n = len(scores)
    return [{"members": [k, k + n], "scores": {name: list(s)}} for k, s in enumerate(scores)]


def test_scores_of_a_fold_are_those_of_its_members():
    generator = np.random.default_rng(0)
    forces, energies = generator.standard_normal((4, 4, 3)), generator.standard_normal(4)
    result = {"forces_ensemble": forces, "energy_ensemble": energies}
    found = fold_scores([result], [make_atoms()], [1, 3])
    pair = forces[[1, 3]]
    largest = np.sqrt(pair.var(axis=0, ddof=1).sum(axis=1) / 3).max()
    assert found[NAME] == pytest.approx([largest])
    assert found["energy_var"] == pytest.approx([energies[[1, 3]].var(ddof=1)])


@pytest.mark.parametrize(
    ("spreads", "flagged"),
    [((1.5, 1.0), False), ((0.9, 9.0), False), ((1.1, 2.1), True), ((1.0, 2.0), False)],
)
def test_all_folds_must_flag(spreads, flagged):
    """With thresholds 1 and 2 for the two folds."""
    score = FoldScore(NAME, folds_with([0.5, 1.0], [0.1, 2.0]), rate=1 / 3)
    # Of two members at ±a the deviation of a component is a √(2/3).
    a, b = np.array(spreads) / np.sqrt(2 / 3)
    found = score(results_of([a, b, -a, -b]), atom())
    assert (found.value > score.threshold * (1 + 1e-12)) == flagged
    assert found.value == pytest.approx(min(2 * spreads[0], spreads[1]))
    assert found.per_atom == pytest.approx([found.value])


def nearest(train, z):
    return np.abs(z[:, None] - train[None]).min(axis=1)


def learned(z, new, fold, k):
    """Spreads of fold k's members, which know their training frames by heart, on z and new."""
    kept = z[fold != k]
    return nearest(kept, z[fold == k]), nearest(kept, new)[0]


def test_the_rate_holds_for_members_that_left_frames_out_and_for_no_others():
    """Members remember what they saw: exact in each fold, at most the rate for all of them."""
    generator = np.random.default_rng(5)
    n, rate, repeats = 40, 0.1, 2000
    fold = np.arange(n) % 2
    flags, first, naive = [], [], []
    for _ in range(repeats):
        z, new = generator.standard_cauchy(n), generator.standard_cauchy(1)
        parts = [learned(z, new, fold, k) for k in (0, 1)]
        c = np.sqrt(2 / 3)
        score = FoldScore(NAME, folds_with(*(np.sort(c * known) for known, _ in parts)), rate)
        a, b = (of_new for _, of_new in parts)
        flags.append(score(results_of([a, b, -a, -b]), atom()).value > score.threshold)
        first.append(a > np.sort(parts[0][0])[18])  # k = ceil(21 · 0.9) = 19
        naive.append(nearest(z, new)[0] > np.quantile(nearest(z, z), 1 - rate))
    error = np.sqrt(rate * (1 - rate) / repeats)
    assert np.mean(first) == pytest.approx(2 / 21, abs=4 * error)
    assert 0.01 < np.mean(flags) <= rate
    assert np.mean(naive) == 1.0


def test_folds_of_a_card_and_what_they_need():
    card = make_card()
    card.calibration = {"folds": folds_with(np.arange(1.0, 31.0), np.arange(1.0, 41.0))}
    with pytest.warns(UncertaintyWarning, match=r"below 0\.0323"):  # 1/31: of the smaller fold
        found = limit_of(card)
    assert found.rate == pytest.approx(1 / 31)
    assert found.threshold == 40.0
    assert "70 training frames (each scored by the members that left it out" in found.meaning
    with pytest.raises(ValueError, match=r"the smallest is too small: .* at least 99 .* are 30"):
        limit_of(card, rate=0.01)
    with pytest.raises(ValueError, match=r"no scores for 'energy_var' \(they hold forces_ep"):
        limit_of(card, name="energy_var", rate=0.1)
    with pytest.raises(ValueError, match="return_members=True"):
        found.score({"forces": np.zeros((1, 3))}, atom())
    with pytest.raises(ValueError, match="its members do not differ"):
        FoldScore(NAME, folds_with([0.0, 0.0], [1.0, 2.0]), 0.4)
    dyn = ScriptedDynamics(make_atoms(FakePotential(card=card)))
    with pytest.raises(ValueError, match="give calibration_scores or threshold, or write the file"):
        UncertaintyMonitor(dyn, false_alarm_rate=0.1, alarm=CalibrationAlarm(1e4))


# --- order, trajectories and sizes of the calibration frames


def card_with_series(scores, n_atoms=4, trajectory=None, name=NAME):
    card = make_card({name: sorted(scores)})
    owner = [0] * len(scores) if trajectory is None else list(trajectory)
    sizes = [n_atoms] * len(scores)
    series = {"scores": {name: list(scores)}, "trajectory": owner, "n_atoms": sizes}
    card.calibration["series"] = series
    return card


def slow(n=300):
    """Scores that drift along a trajectory."""
    steps = np.random.default_rng(4).standard_normal(n)
    return np.exp(0.1 * (steps.cumsum() - 0.5 * steps.sum()))


def test_a_card_that_knows_the_order_of_its_frames():
    scores = slow()
    with pytest.warns(UncertaintyWarning, match="300, correlated and worth"):
        found = limit_of(card_with_series(scores), rate=0.01)
    assert found.threshold > np.sort(scores)[297]
    assert "about 1 % of frames like the 300 calibration frames, worth " in found.meaning
    assert "nothing promises it" in found.meaning
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        old = limit_of(make_card({NAME: np.sort(scores)}), rate=0.01)
        apart = limit_of(card_with_series(scores, trajectory=range(300)), rate=0.01)
    assert old == apart
    assert old.threshold == np.sort(scores)[297]
    assert "at most 1 % of frames like the 300 calibration frames" in old.meaning


def sized(name, n_atoms, scores, rate=0.05, frames_of=4):
    card = card_with_series(scores, frames_of, range(len(scores)), name)
    return find_limit(None, rate, None, find_score(name), FakePotential(card=card), n_atoms)


def test_a_maximum_over_more_atoms_takes_a_deeper_quantile():
    scores = np.random.default_rng(0).gamma(4.0, size=999)
    ordered = np.sort(scores)
    assert sized(NAME, 4, scores).threshold == ordered[949]
    assert sized(NAME, 2, scores).threshold == ordered[949]  # flags less often than asked for
    deep = 1 - 0.95 ** (4 / 32)  # 0.64 %
    assert sized(NAME, 32, scores).threshold == ordered[int(np.ceil(1000 * (1 - deep))) - 1]
    with pytest.warns(UncertaintyWarning, match=r"as many atoms as in a calibration frame\) needs"):
        assert sized(NAME, 4000, scores).threshold > ordered[-1]


def test_a_mean_over_fewer_atoms_strays_further_and_an_energy_variance_has_no_rule():
    scores = np.random.default_rng(0).gamma(4.0, size=999)
    name, middle = "forces_epistemic_mean", scores.mean()
    whole, half, double = (sized(name, n, scores).threshold for n in (4, 2, 8))
    assert half - middle == pytest.approx(np.sqrt(2) * (whole - middle))
    assert double == whole == np.sort(scores)[949]
    with pytest.warns(
        UncertaintyWarning, match="energy_var depends on the number of atoms, 8 here"
    ):
        sized("energy_var", 8, scores)


def test_a_monitor_counts_the_atoms_that_count():
    scores = np.random.default_rng(0).gamma(4.0, size=999)
    card = card_with_series(scores, 1, range(999))
    thresholds = [
        UncertaintyMonitor(
            ScriptedDynamics(make_atoms(FakePotential(card=card))),
            false_alarm_rate=0.05,
            atoms=chosen,
        ).threshold
        for chosen in ("all", [0, 1], [2])
    ]
    assert thresholds == [sized(NAME, n, scores, frames_of=1).threshold for n in (4, 2, 1)]
    assert thresholds == sorted(set(thresholds), reverse=True)


def test_folds_know_the_size_of_their_frames_too():
    folds = folds_with(np.arange(1.0, 200.0), np.arange(1.0, 200.0))
    sized_folds = [{**fold, "n_atoms": [1] * 199} for fold in folds]
    assert FoldScore(NAME, folds, 0.05, 4).threshold == 190.0
    assert FoldScore(NAME, sized_folds, 0.05, 4).threshold == 198.0  # 1 - 0.95^(1/4) = 1.27 %
