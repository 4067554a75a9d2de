"""Evidential posteriors as a whole: trained, continued, served, and used in dynamics."""

import numpy as np
import pytest
import torch
from ase import units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.md.verlet import VelocityVerlet
from tiny import assert_same, tiny_config

from ase_bayesmlip.calculator import BayesianCalculator
from ase_bayesmlip.cli.inspect import describe
from ase_bayesmlip.md import UncertaintyMonitor
from ase_bayesmlip.posteriors import POSTERIORS, RunOptions
from ase_bayesmlip.serving.export import export_members
from ase_bayesmlip.serving.runtime import load_model
from ase_bayesmlip.structures.neighbors import graph_of
from ase_bayesmlip.testing import check_served_model
from ase_bayesmlip.training.trainer import Trainer

VECTORS = {"hidden_irreps": "4x0e + 4x1o"}
EVIDENTIAL, EIP = {"kind": "evidential"}, {"kind": "eip"}
PAPER = {"kind": "evidential", "evidence": {"mode": "paper"}, "beta": 0.0}
# Name -> loss, model and posterior.
OPTIONS = {
    "vectors": (EVIDENTIAL, VECTORS, {"kind": "evidential"}),
    "tensors": (PAPER, {}, {"kind": "evidential"}),
    "two": (EVIDENTIAL, VECTORS, {"kind": "evidential", "members": 2}),
    "laplace": (EVIDENTIAL, VECTORS, {"kind": "laplace"}),
    "swag": (EVIDENTIAL, VECTORS, {"kind": "swag", "epochs": 2}),
}


def fit(folder, loss, model, posterior, **changes):
    config = tiny_config(loss=loss, model=model, posterior=posterior, **changes)
    return POSTERIORS[posterior["kind"]].fit(config, folder, RunOptions(progress=False))


def serve(state, path):
    """The posterior as a loaded file, in float64."""
    posterior = POSTERIORS[state.config.posterior.kind]
    members = posterior.draw(state, None, torch.Generator().manual_seed(0))
    export_members(members, state.config, state.record, path)
    return load_model(path, dtype="float64")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Function: name of the options -> loaded file."""
    folder, done = tmp_path_factory.mktemp("evidential"), {}

    def load(name):
        if name not in done:
            done[name] = serve(fit(folder / name, *OPTIONS[name]), folder / f"{name}.pt")
        return done[name]

    return load


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Folder of a potential trained on squared errors."""
    folder = tmp_path_factory.mktemp("start") / "run"
    fit(folder, {"kind": "mse"}, VECTORS, {"kind": "point"})
    return folder


def around(start, features, **changes):
    return {"kind": "evidential", "start_from": str(start), "features": features, **changes}


# --- training


@pytest.mark.slow
def test_a_head_on_frozen_features_leaves_energies_and_forces_untouched(start, tmp_path, ethanol):
    before = serve(POSTERIORS["point"].load(start), tmp_path / "before.pt")
    state = fit(tmp_path / "run", EVIDENTIAL, VECTORS, around(start, "frozen"))
    after = serve(state, tmp_path / "after.pt")
    graph = graph_of(ethanol, before.card.cutoff)
    one, other = before.predict([graph]), after.predict([graph])
    for name in ("energy", "atomic_energies", "forces"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.forces_cov_aleatoric is None
    # The head was trained: atoms differ.
    scale = other.forces_cov_aleatoric.diagonal(dim1=1, dim2=2).sum(1)
    assert float(scale.std() / scale.mean()) > 1e-4


@pytest.mark.slow
def test_trained_features_go_on_from_the_start_without_a_warm_up(start, tmp_path):
    state = fit(tmp_path / "run", EVIDENTIAL, VECTORS, around(start, "trained"))
    log = (tmp_path / "run" / "member-00" / "metrics.csv").read_text().splitlines()
    assert all(line.split(",")[1] == "evidential" for line in log[1:])
    weights = POSTERIORS["point"].load(start).weights[0]
    assert not torch.equal(state.weights[0]["embedding"], weights["embedding"])


@pytest.mark.slow
def test_a_head_can_be_trained_on_from_an_evidential_run(start, tmp_path):
    first = fit(tmp_path / "first", EVIDENTIAL, VECTORS, around(start, "frozen"))
    second = fit(tmp_path / "second", EVIDENTIAL, VECTORS, around(tmp_path / "first", "frozen"))
    assert torch.equal(first.weights[0]["embedding"], second.weights[0]["embedding"])
    assert not torch.equal(first.weights[0]["head.gates"], second.weights[0]["head.gates"])


@pytest.mark.slow
def test_what_cannot_be_started_from_is_refused(start, tmp_path):
    noisy = tmp_path / "noisy"
    fit(noisy, {}, VECTORS, {"kind": "point"})
    with pytest.raises(ValueError, match=r"loss\.kind nll_jef, whose potentials have noise heads"):
        fit(tmp_path / "run", EVIDENTIAL, VECTORS, around(noisy, "frozen"))
    with pytest.raises(ValueError, match=r"holds another potential \(model\.hidden_irreps"):
        fit(tmp_path / "run", EVIDENTIAL, {}, around(start, "frozen"))
    with pytest.raises(ValueError, match="holds 1 members; 2 are asked for"):
        fit(tmp_path / "run", EVIDENTIAL, VECTORS, around(start, "frozen", members=2))
    fit(tmp_path / "leverage", EVIDENTIAL, VECTORS, around(start, "frozen"))
    with pytest.raises(ValueError, match=r"\(loss\.coupling: None -> 0\.0\)"):
        fit(tmp_path / "run", PAPER, VECTORS, around(tmp_path / "leverage", "frozen"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("loss", [PAPER, EIP], ids=["paper", "eip"])
@pytest.mark.parametrize("features", [None, "frozen"])
def test_an_interrupted_fit_continues_to_the_same_bits(
    start, tmp_path, monkeypatch, loss, features
):
    posterior = {"kind": "evidential"} if features is None else around(start, features)
    whole = fit(tmp_path / "whole", loss, VECTORS, posterior)
    step, calls = Trainer._step, []

    def interrupted(self, value):
        calls.append(value)
        if len(calls) == 10:  # in the third of four epochs
            raise KeyboardInterrupt
        step(self, value)

    with monkeypatch.context() as patches:
        patches.setattr(Trainer, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path / "run", loss, VECTORS, posterior)
    with pytest.raises(ValueError, match="stopped after step 2 of 4"):
        POSTERIORS["evidential"].load(tmp_path / "run")
    config = tiny_config(loss=loss, model=VECTORS, posterior=posterior)
    again = POSTERIORS["evidential"].fit(
        config, tmp_path / "run", RunOptions(resume=True, progress=False)
    )
    assert_same(again.weights[0], whole.weights[0])


def test_a_bent_law_is_said_once(tmp_path, monkeypatch):
    monkeypatch.setattr("ase_bayesmlip.training.validation.MAX_SATURATED", -1.0)
    with pytest.warns(UserWarning, match="the damper bends the covariance of 0.0% of the valida"):
        fit(tmp_path / "run", EVIDENTIAL, VECTORS, {"kind": "evidential"})


# --- what is served


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("tensors", "swag") else [])
        for name in OPTIONS
    ],
)
def test_served_posteriors_pass_the_checks(served, name, ethanol, strained_co2):
    check_served_model(served(name), ethanol, strained_co2)


def test_results_of_one_network(served, ethanol):
    ethanol.calc = BayesianCalculator(served("vectors"))
    ethanol.get_forces()
    results = ethanol.calc.results
    total = results["forces_cov_aleatoric"] + results["forces_cov_epistemic"]
    np.testing.assert_array_equal(results["forces_cov"], total)
    assert results["forces_dof"].shape == (9,)
    assert (results["forces_dof"] > 2.0).all()
    trace = results["forces_cov_epistemic"].trace(axis1=1, axis2=2)
    np.testing.assert_allclose(results["forces_std_epistemic"], np.sqrt(trace), rtol=1e-12)
    # The variance of the energy divides exactly, into parts and over atoms.
    parts = results["energy_var_aleatoric"] + results["energy_var_epistemic"]
    assert results["energy_var"] == pytest.approx(parts, rel=1e-14)
    assert results["energy_shares"].sum() == pytest.approx(results["energy_var"], rel=1e-12)
    assert set(results) <= set(ethanol.calc.implemented_properties)
    with pytest.raises(PropertyNotImplementedError, match="stress_cov is not available"):
        ethanol.calc.get_property("stress_cov", ethanol)


@pytest.mark.parametrize("name", ["two", "laplace"])
def test_mixtures_follow_the_law_of_total_variance(served, name, ethanol):
    model = served(name)
    calc = BayesianCalculator(model, return_members=True)
    ethanol.calc = calc
    ethanol.get_forces()
    results = calc.results
    assert "forces_dof" not in results  # a mixture of Student-t laws is none
    total = results["forces_cov_aleatoric"] + results["forces_cov_epistemic"]
    np.testing.assert_allclose(results["forces_cov"], total, rtol=1e-12)
    assert results["energy_shares"].sum() == pytest.approx(results["energy_var"], rel=1e-10)
    # The spread of members, or of draws, is in the epistemic part as a whole.
    forces = results["forces_ensemble"]
    if name == "two":
        deviations = forces - forces.mean(axis=0)
        spread = np.einsum("sia,sib->iab", deviations, deviations)
        rest = results["forces_cov_epistemic"] - spread
        assert np.linalg.eigvalsh(rest).min() > 0.0  # what each network says of itself
    else:
        deviations = forces - results["forces"]
        spread = np.einsum("sia,sib->iab", deviations, deviations) / len(forces)
        np.testing.assert_allclose(results["forces_cov_epistemic"], spread, rtol=1e-6, atol=1e-14)


def test_a_lazy_calculator_builds_no_matrices(served, ethanol):
    full, lazy = (BayesianCalculator(served("vectors"), lazy=value) for value in (False, True))
    for calc in (full, lazy):
        calc.calculate(ethanol)
    left_out = {"forces_cov", "forces_cov_aleatoric", "forces_cov_epistemic", "forces_std"}
    left_out |= {"forces_uncertainty", "forces_var"}
    assert full.results.keys() - lazy.results.keys() == left_out
    for name in lazy.results:
        np.testing.assert_allclose(lazy.results[name], full.results[name], rtol=1e-10)
    for name in left_out:
        np.testing.assert_array_equal(lazy.get_property(name, ethanol), full.results[name])


def test_a_monitor_reads_the_trace_alone(served, ethanol):
    scores = []
    for lazy in (False, True):
        atoms = ethanol.copy()
        atoms.calc = BayesianCalculator(served("vectors"), lazy=lazy)
        dyn = VelocityVerlet(atoms, 0.5 * units.fs)
        monitor = UncertaintyMonitor(dyn, threshold=1e-6)
        dyn.attach(monitor)
        dyn.run(3)
        assert monitor.n_flagged == 4
        assert ("forces_cov" in atoms.calc.results) != lazy
        scores.append(monitor.history.score[-1])
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)


def test_inspection_says_that_the_division_is_a_convention(served):
    said = describe(served("vectors").card)
    assert (
        said["epistemic"]
        == "law that the network gives for its own error; its share is a convention"
    )
    assert "spread of the members" in describe(served("two").card)["epistemic"]


@pytest.mark.slow
def test_eip_serves_forces_alone(tmp_path, ethanol):
    model = serve(fit(tmp_path / "run", EIP, VECTORS, {"kind": "evidential"}), tmp_path / "eip.pt")
    ethanol.calc = BayesianCalculator(model)
    ethanol.get_forces()
    results = ethanol.calc.results
    assert "energy_var" not in results
    off_diagonal = results["forces_cov"] * (1.0 - np.eye(3))
    assert not off_diagonal.any()
    assert set(results) <= set(ethanol.calc.implemented_properties)
    with pytest.raises(PropertyNotImplementedError, match="energy_var_epistemic is not available"):
        ethanol.calc.get_property("energy_var_epistemic", ethanol)
    with pytest.raises(AssertionError, match="forces_cov"):
        check_served_model(model, ethanol)


@pytest.mark.slow
def test_more_networks_than_there_are_cannot_be_drawn(tmp_path):
    state = fit(tmp_path / "run", EVIDENTIAL, VECTORS, {"kind": "evidential", "members": 2})
    generator = torch.Generator().manual_seed(0)
    assert len(POSTERIORS["evidential"].draw(state, 1, generator)) == 1
    with pytest.raises(ValueError, match="3 samples asked of 2 trained members"):
        POSTERIORS["evidential"].draw(state, 3, generator)
