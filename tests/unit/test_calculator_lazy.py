"""A last-layer Laplace posterior in `BayesianCalculator`: what is left out until asked for."""

import numpy as np
import pytest
import torch
from ase.calculators.calculator import PropertyNotImplementedError
from ase.md.verlet import VelocityVerlet
from tiny import laplace_state

from ase_bayesmlip.calculator import EXTRA, BayesianCalculator
from ase_bayesmlip.cli.inspect import describe
from ase_bayesmlip.md.monitor import UncertaintyMonitor
from ase_bayesmlip.posteriors import laplace
from ase_bayesmlip.serving.export import export_members
from ase_bayesmlip.serving.runtime import load_model

N_DRAWS = 3
TOTALS = ["energy_var", "energies_var", "forces_cov"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Function: loss, members -> a served Laplace posterior, written once and loaded once."""
    folder, cache = tmp_path_factory.mktemp("files"), {}

    def load(kind="nll_jef", members=1, n=N_DRAWS):
        if (kind, members, n) not in cache:
            state = laplace_state(kind, members)
            drawn = laplace.draw(state, n, torch.Generator().manual_seed(0))
            path = folder / f"{kind}-{members}-{n}.pt"
            export_members(drawn, state.config, state.record, path, seed=0)
            cache[kind, members, n] = load_model(path)
        return cache[kind, members, n]

    return load


def results(model, atoms, name="energy", **options):
    calculator = BayesianCalculator(model, **options)
    calculator.get_property(name, atoms)
    return calculator.results


def assert_same(one, other):
    """To the last bit: the same program on the same numbers."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert np.array_equal(value, other[name]), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    ["nll_jef", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("nll_e", "mse"))],
)
@pytest.mark.parametrize("structure", ["ethanol", "strained_co2"])
def test_lazy_leaves_out_what_costs_derivatives_and_nothing_else(request, files, structure, kind):
    atoms = request.getfixturevalue(structure)
    for members in (1, 2):
        model = files(kind, members)
        eager = results(model, atoms, return_members=True)
        lazy = results(model, atoms, return_members=True, lazy=True)
        left_out = EXTRA | {"forces_std_epistemic"}
        assert eager.keys() - lazy.keys() == left_out & eager.keys()
        assert {"forces_cov", "forces_std", "energy_ensemble"} <= EXTRA & eager.keys()
        assert_same(lazy, {name: value for name, value in eager.items() if name in lazy})
        assert "energy_var_epistemic" in lazy
        assert ("forces_cov_aleatoric" in lazy) == (kind == "nll_jef")


def test_what_is_asked_for_is_computed(files, strained_co2):
    model = files()
    eager = results(model, strained_co2, return_members=True)
    for name in sorted(EXTRA | {"forces_std_epistemic"}):
        found = results(model, strained_co2, name, return_members=True, lazy=True)
        assert_same(found, eager)


def test_asking_later_completes_the_results(files, ethanol):
    calculator = BayesianCalculator(files(), lazy=True)
    ethanol.calc = calculator
    forces = ethanol.get_forces()
    assert not EXTRA & calculator.results.keys()
    covariance = calculator.get_property("forces_cov", ethanol)
    assert covariance.shape == (9, 3, 3)
    assert {"forces_cov_epistemic", "forces_std"} <= calculator.results.keys()
    assert np.array_equal(ethanol.get_forces(), forces)
    # They stay as long as the structure does.
    assert "forces_cov" in calculator.results
    ethanol.positions[0, 0] += 0.01
    ethanol.get_forces()
    assert "forces_cov" not in calculator.results


def test_totals_are_never_too_small(files, strained_co2):
    """Both parts or nothing, whatever was asked for."""
    model = files()
    for name in ("energy", "energy_var", "forces_cov_aleatoric", "forces_std", "stress"):
        found = results(model, strained_co2, name, lazy=True)
        for total in TOTALS:
            if total in found:
                parts = found[f"{total}_epistemic"] + found[f"{total}_aleatoric"]
                assert np.array_equal(found[total], parts)


def test_lazy_promises_what_it_can_compute(files, strained_co2):
    model = files()
    one, other = (BayesianCalculator(model, lazy=flag) for flag in (False, True))
    assert one.implemented_properties == other.implemented_properties
    for name in other.implemented_properties:
        assert other.get_property(name, strained_co2) is not None
    with pytest.raises(PropertyNotImplementedError, match="energy_ensemble is not available"):
        other.get_property("energy_ensemble", strained_co2)


def test_other_posteriors_have_everything_at_once(calculator, ethanol):
    eager, lazy = calculator("ensemble"), calculator("ensemble", lazy=True)
    eager.calculate(ethanol)
    lazy.calculate(ethanol)
    assert_same(eager.results, lazy.results)


def test_many_structures_have_everything(files, ethanol):
    found = BayesianCalculator(files(), lazy=True).evaluate([ethanol])[0]
    assert EXTRA & found.keys() == {*EXTRA} - {
        "stress_cov",
        "stress_var",
        "energy_ensemble",
        "forces_ensemble",
        "stress_ensemble",
    }


def test_noise_that_was_not_trained_is_absent(files, ethanol):
    for lazy in (False, True):
        calculator = BayesianCalculator(files("mse"), lazy=lazy)
        for name in TOTALS:
            with pytest.raises(PropertyNotImplementedError, match="aleatoric energy: no"):
                calculator.get_property(f"{name}_aleatoric", ethanol)
            total, part = (
                calculator.get_property(key, ethanol) for key in (name, f"{name}_epistemic")
            )
            assert np.array_equal(total, part)
        assert not [key for key in calculator.results if "aleatoric" in key]


def test_a_monitor_says_why_a_lazy_calculator_has_no_score(files, ethanol):
    ethanol.calc = BayesianCalculator(files(), lazy=True)
    dynamics = VelocityVerlet(ethanol, 0.1)
    dynamics.attach(UncertaintyMonitor(dynamics, threshold=1e9))
    with pytest.raises(PropertyNotImplementedError) as caught:
        dynamics.run(1)
    message = str(caught.value)
    assert "needs 'forces_cov_epistemic'" in message
    assert "available scores: atomic_energy_var_max, energy_var" in message
    assert message.endswith("made with lazy=True, which leaves covariances out")


@pytest.mark.parametrize(("score", "lazy"), [("energy_var", True), ("forces_epistemic_max", False)])
def test_a_monitor_of_a_score_that_is_there(files, ethanol, score, lazy):
    ethanol.calc = BayesianCalculator(files(), lazy=lazy)
    dynamics = VelocityVerlet(ethanol, 0.1)
    monitor = UncertaintyMonitor(dynamics, score=score, threshold=1e9)
    dynamics.attach(monitor)
    dynamics.run(2)
    assert monitor.n_observed == 3
    assert (monitor.history.score > 0).all()


@pytest.mark.parametrize("members", [1, 2])
def test_an_ensemble_has_a_row_for_every_draw_of_every_member(files, strained_co2, members):
    found = results(files(members=members), strained_co2, return_members=True)
    n = members * N_DRAWS
    assert found["energy_ensemble"].shape == (n,)
    assert found["forces_ensemble"].shape == (n, 12, 3)
    assert found["stress_ensemble"].shape == (n, 6)


def test_rows_of_enough_draws_spread_as_the_variances_say(files, strained_co2):
    """Mean squares around the known mean, with no ddof, of a draw for every weight."""
    found = results(files(n=8), strained_co2, return_members=True)
    deviations = found["energy_ensemble"] - found["energy"]
    variance = found["energy_var_epistemic"]
    # A row is rounded in units of the energy: its square by twice its deviation times that.
    rounding = 4 * np.finfo(float).eps * abs(found["energy"]) * np.abs(deviations).max()
    assert (deviations**2).mean() == pytest.approx(variance, rel=1e-9, abs=2 * rounding)
    deviations = found["forces_ensemble"] - found["forces"]
    covariance = np.einsum("sia,sib->iab", deviations, deviations) / 8
    expected = found["forces_cov_epistemic"]
    assert np.allclose(covariance, expected, rtol=0, atol=1e-9 * expected.max())


def test_a_batch_without_the_force_spread(files, ethanol):
    model = files()
    calculator = BayesianCalculator(model)
    graph = calculator._checked_graph(ethanol, calculator._neighbors)
    whole, part = (model.predict([graph], lazy=lazy) for lazy in (False, True))
    assert whole.forces_cov_epistemic is not None
    assert part.forces_cov_epistemic is None
    for name in whole._fields:
        one, other = getattr(whole, name), getattr(part, name)
        if name != "forces_cov_epistemic":
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other), name


def test_the_card_and_its_description(files):
    card = files(members=2).card
    assert (card.kind, card.n_members, card.n_draws, card.ddof, card.seed) == (
        "laplace",
        2,
        N_DRAWS,
        1,
        0,
    )
    assert files().card.ddof == 0  # the mean of one network's draws is known
    assert files().card.has_epistemic
    text = describe(card)
    assert text["posterior"] == "laplace, 2 member(s) with 3 draws each, seed 0, ddof 1"
    expected = "energies in closed form, forces from the draws, plus the spread of the members"
    assert text["epistemic"].endswith(expected)
