"""Posteriors as a whole: fitted around trained members, drawn, served and checked."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
import yaml
from ase.calculators.calculator import PropertyNotImplementedError
from tiny import CONTENT, DATA, assert_same, tiny_config

from ase_bayesmlip.calculator import BayesianCalculator
from ase_bayesmlip.card import read_card
from ase_bayesmlip.cli.main import main
from ase_bayesmlip.config import to_dict
from ase_bayesmlip.posteriors import POSTERIORS, RunOptions
from ase_bayesmlip.posteriors.members import load_members
from ase_bayesmlip.serving.export import export_members
from ase_bayesmlip.serving.runtime import load_model
from ase_bayesmlip.structures.neighbors import graph_of
from ase_bayesmlip.testing import check_served_model

# Name -> loss, whether energies and forces have noise heads, and the settings.
OPTIONS = {
    "swag": ("nll_jef", {"kind": "swag", "epochs": 3}),
    "multiswag": ("nll_e", {"kind": "swag", "epochs": 4, "members": 2, "snapshot_every": 2}),
    "swag of low rank": ("mse", {"kind": "swag", "epochs": 2, "diagonal": False}),
    "ivon": ("nll_jef", {"kind": "ivon", "epochs": 3}),
    "ivon of two": (
        "nll_jef",
        {"kind": "ivon", "epochs": 2, "members": 2, "train_samples": 2, "hess_init": 50.0},
    ),
    "last layer": ("nll_jef", {"kind": "laplace"}),
    "last layer of two": (
        "nll_jef",
        {"kind": "laplace", "members": 2, "prior": 3.0, "by_element": False},
    ),
    "last layer, squared errors": ("mse", {"kind": "laplace", "prior": "validation"}),
    "all weights": ("nll_jef", {"kind": "laplace", "weights": "all", "probes": 2}),
}
NOISE = {"nll_jef": (True, True), "nll_e": (True, False), "mse": (False, False)}
# One of each kind in the short run.
SHORT = ("swag", "ivon", "last layer")
each_option = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in SHORT else pytest.mark.slow) for name in OPTIONS],
)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Function: loss -> folder of a trained ensemble of two."""
    folder, done = tmp_path_factory.mktemp("start"), set()

    def train(loss):
        if loss not in done:
            config = tiny_config(loss={"kind": loss}, posterior={"kind": "ensemble", "members": 2})
            POSTERIORS["ensemble"].fit(config, folder / loss, RunOptions(progress=False))
            done.add(loss)
        return folder / loss

    return train


@pytest.fixture(scope="module")
def fitted(start, tmp_path_factory):
    """Function: name of the options -> folder and state of a posterior."""
    folder, done = tmp_path_factory.mktemp("fitted"), {}

    def fit(name):
        if name not in done:
            config = config_of(name, start)
            state = POSTERIORS[config.posterior.kind].fit(
                config, folder / name, RunOptions(progress=False)
            )
            done[name] = folder / name, state
        return done[name]

    return fit


def config_of(name, start, **changes):
    loss, settings = OPTIONS[name]
    posterior = {"start_from": str(start(loss)), **settings, **changes}
    return tiny_config(loss={"kind": loss}, posterior=posterior)


def draw(state, n, seed=0):
    posterior = POSTERIORS[state.config.posterior.kind]
    return posterior.draw(state, n, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def served(fitted, tmp_path_factory):
    """Function: name of the options, dtype -> a loaded file of three draws."""
    folder, done = tmp_path_factory.mktemp("served"), {}

    def serve(name, dtype="float64"):
        path = folder / f"{name}.pt"
        if not path.exists():
            _, state = fitted(name)
            export_members(draw(state, 3), state.config, state.record, path, seed=0)
        if (name, dtype) not in done:
            done[name, dtype] = load_model(path, dtype=dtype)
        return done[name, dtype]

    return serve


# --- what is served


@each_option
def test_served_posteriors_pass_the_checks(served, name, ethanol, strained_co2):
    check_served_model(served(name), ethanol, strained_co2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swag", "last layer"])
def test_served_posteriors_pass_the_checks_in_single_precision(served, name, ethanol, strained_co2):
    check_served_model(served(name, "float32"), ethanol, strained_co2)


@each_option
def test_the_card_says_what_the_file_holds(served, name):
    loss, settings = OPTIONS[name]
    card = served(name).card
    last_layer = settings["kind"] == "laplace" and "weights" not in settings
    n_members = settings.get("members", 1) if last_layer else 3
    assert card.kind == settings["kind"]
    assert (card.n_members, card.n_draws) == (n_members, 3 if last_layer else 0)
    assert card.ddof == (1 if n_members > 1 else 0)
    assert card.seed == 0
    assert card.has_epistemic
    assert (card.has_aleatoric_energy, card.has_aleatoric_forces) == NOISE[loss]
    assert card.config["posterior"]["start_from"] == loss  # the name, not the folders above it


@each_option
def test_noise_that_no_loss_trained_is_absent_and_not_zero(served, name, ethanol):
    calculator = BayesianCalculator(served(name))
    calculator.calculate(ethanol)
    energy_noise, force_noise = NOISE[OPTIONS[name][0]]
    for key, known in [
        ("energy_var", energy_noise),
        ("energies_var", energy_noise),
        ("forces_cov", force_noise),
    ]:
        assert (f"{key}_aleatoric" in calculator.results) == known
        epistemic = calculator.results[f"{key}_epistemic"]
        assert np.abs(epistemic).max() > 0
        if known:
            assert np.abs(calculator.get_property(f"{key}_aleatoric", ethanol)).max() > 0
        else:
            with pytest.raises(PropertyNotImplementedError, match=f"{key}_aleatoric is not avail"):
                calculator.get_property(f"{key}_aleatoric", ethanol)
            assert np.array_equal(calculator.results[key], epistemic)


@each_option
def test_draws_surround_their_members(fitted, name):
    """Without a number as many as configured."""
    _, state = fitted(name)
    default = draw(state, None)
    settings = state.config.posterior
    if settings.kind == "laplace" and settings.weights == "last_layer":
        assert len(default) == settings.members
        # Of three elements. Eight draws for eight weights: every direction once.
        n_weights = 24 if settings.by_element else 8
        assert default[0].deviations.shape == (n_weights, settings.samples)
    else:
        assert len(default) == settings.samples == 8
        embeddings = torch.stack([potential.embedding for potential in default])
        assert (embeddings.std(0) > 0).all()
    assert not any(p.requires_grad for potential in default for p in potential.parameters())


@pytest.mark.slow
def test_runs_from_before_elements_were_told_apart_say_what_they_are(fitted, tmp_path):
    """Neither their configuration nor their checkpoints have the key."""
    folder, state = fitted("last layer of two")
    old = shutil.copytree(folder, tmp_path / "old")
    text = (old / "config.yaml").read_text()
    assert "  by_element: false\n" in text
    (old / "config.yaml").write_text(text.replace("  by_element: false\n", ""))
    for path in old.glob("*/laplace.pt"):
        content = torch.load(path, weights_only=True)
        del content["identity"]["posterior"]["by_element"]
        torch.save(content, path)
    found = POSTERIORS["laplace"].load(old)
    assert not found.settings.by_element
    for one, other in zip(draw(found, None), draw(state, None), strict=True):
        assert_same(dict(one.state_dict()), dict(other.state_dict()))


@each_option
def test_draws_repeat_with_their_seed(fitted, name):
    _, state = fitted(name)
    one, same, other = (draw(state, 2, seed) for seed in (4, 4, 5))
    for a, b, c in zip(one, same, other, strict=True):
        assert_same(dict(a.state_dict()), dict(b.state_dict()))
        assert any(
            not torch.equal(x, y)
            for x, y in zip(a.state_dict().values(), c.state_dict().values(), strict=True)
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swag", "last layer"])
def test_the_seed_decides_what_is_served(fitted, name, tmp_path, capsys, ethanol):
    folder, _ = fitted(name)
    predictions, cards = [], []
    for path, seed in (("a.pt", 4), ("b.pt", 4), ("c.pt", 5)):
        command = ["serve", str(folder), "-o", str(tmp_path / path), "--samples", "3"]
        assert main([*command, "--seed", str(seed)]) == 0
        model = load_model(tmp_path / path)
        predictions.append(model.predict([graph_of(ethanol, model.card.cutoff)], members=True))
        cards.append(model.card)
    one, same, other = predictions
    for value, again in zip(one, same, strict=True):
        assert value is None or torch.equal(value, again)
    assert not torch.equal(one.forces_cov_epistemic, other.forces_cov_epistemic)
    assert [card.seed for card in cards] == [4, 4, 5]
    assert dataclasses.replace(cards[0], created="") == dataclasses.replace(cards[1], created="")
    assert f"wrote {tmp_path / 'a.pt'}" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "a.pt")]) == 0
    assert "seed 4" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_line_trains_and_serves(start, tmp_path, capsys):
    """A configuration with a start relative to it, to a calibrated file."""
    content = {
        **CONTENT,
        "data": {
            **CONTENT["data"],
            "calibration": f"{DATA}/ethanol_test.extxyz@0:3",
        },
        "posterior": {"kind": "laplace", "start_from": "trained"},
    }
    (tmp_path / "trained").symlink_to(start("nll_jef"))
    (tmp_path / "laplace.yaml").write_text(yaml.safe_dump(content))
    run, path = tmp_path / "run", tmp_path / "model.pt"
    assert main(["train", str(tmp_path / "laplace.yaml"), "--out", str(run), "--quiet"]) == 0
    assert main(["serve", str(run), "-o", str(path)]) == 0
    card = read_card(path)
    assert (card.kind, card.n_members, card.n_draws) == ("laplace", 1, 8)
    assert len(card.calibration["scores"]["forces_epistemic_max"]) == 3
    assert main(["serve", str(run), "-o", str(tmp_path / "other.pt"), "--samples", "1"]) == 2
    assert "1 draws asked of a Laplace posterior" in capsys.readouterr().err
    assert not (tmp_path / "other.pt").exists()


# --- around members that are trained in the same run


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swag", "last layer of two"])
def test_without_a_start_the_members_are_trained_first(fitted, start, name, tmp_path):
    """To the same posterior as around the same members of another run."""
    _, expected = fitted(name)
    config = config_of(name, start, start_from=None)
    found = POSTERIORS[config.posterior.kind].fit(
        config, tmp_path / "run", RunOptions(progress=False)
    )
    assert_same(state_data(found), state_data(expected))
    n_members = config.posterior.members
    trained = load_members(start(OPTIONS[name][0])).weights[:n_members]
    assert_same(list(load_members(tmp_path / "run").weights), list(trained))


@pytest.mark.slow
def test_processes_fit_the_same_posterior(fitted, start, tmp_path):
    _, expected = fitted("last layer of two")
    config = config_of("last layer of two", start)
    found = POSTERIORS["laplace"].fit(config, tmp_path / "run", RunOptions(jobs=2, progress=False))
    for one, two in zip(found.gaussians, expected.gaussians, strict=True):
        assert torch.equal(one.mean, two.mean)
        # The number of threads may differ, and with it the order of sums.
        size = float(two.precision.abs().max())
        torch.testing.assert_close(one.precision, two.precision, rtol=0.0, atol=1e-12 * size)


def state_data(state):
    """All tensors and numbers of a state as plain data, but for its configuration."""
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state) if f.name != "run"}
    plain = {
        name: [dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for v in values]
        for name, values in fields.items()
    }
    return {"weights": [dict(w) for w in state.run.weights], **plain}


# --- a start that does not fit


def changed(start, **sections):
    """The run of a posterior with other sections than its start."""
    posterior = {"kind": "laplace", "start_from": str(start("nll_jef"))}
    return tiny_config(**{"posterior": posterior, **sections})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"cutoff": 2.4}}, r"another potential \(model\.cutoff: 2\.5 -> 2\.4\)"),
        ({"model": {"n_layers": 1}}, r"another potential \(model\.n_layers: 2 -> 1\)"),
        ({"loss": {"kind": "mse"}}, r"another potential \(loss\.kind: nll_jef -> mse\)"),
        (
            {"data": {"train": CONTENT["data"]["train"].replace("0:7", "1:8")}},
            r"trained on other data \(train_sha256 differs\)",
        ),
        (
            {"data": {"reference_energies": {"H": -10.0, "C": -50.0, "O": -100.0}}},
            r"trained on other data \(statistics differs\)",
        ),
    ],
)
def test_a_start_must_be_of_the_same_potential_and_data(start, tmp_path, sections, message):
    with pytest.raises(
        ValueError, match=rf"^posterior\.start_from: .*nll_jef (holds|was) {message}"
    ):
        POSTERIORS["laplace"].fit(
            changed(start, **sections), tmp_path / "run", RunOptions(progress=False)
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["swag", "ivon", "laplace"])
def test_a_start_must_be_a_run_with_enough_members(start, tmp_path, kind):
    fit = POSTERIORS[kind].fit
    posterior = {"kind": kind, "start_from": str(start("nll_jef"))}
    with pytest.raises(ValueError, match=r"nll_jef holds 2 members; 3 are asked for"):
        fit(
            tiny_config(posterior={**posterior, "members": 3}),
            tmp_path / "run",
            RunOptions(progress=False),
        )
    for folder in (tmp_path / "nowhere", tmp_path):
        config = tiny_config(posterior={**posterior, "start_from": str(folder)})
        with pytest.raises(FileNotFoundError, match=f"{folder} is no run written by"):
            fit(config, tmp_path / "run", RunOptions(progress=False))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_start_must_have_been_trained(start, tmp_path):
    """Not have started from another run itself."""
    POSTERIORS["laplace"].fit(changed(start), tmp_path / "first", RunOptions(progress=False))
    posterior = {"kind": "swag", "epochs": 2, "start_from": str(tmp_path / "first")}
    with pytest.raises(ValueError, match=r"first holds no training of its own.*nll_jef"):
        POSTERIORS["swag"].fit(
            tiny_config(posterior=posterior), tmp_path / "second", RunOptions(progress=False)
        )


@pytest.mark.slow
def test_other_training_settings_of_a_start_do_not_matter(start, tmp_path):
    """Only what its weights mean does: more epochs, other seeds or precision are its own affair."""
    sections = {"training": {"epochs": 9, "dtype": "float32"}, "seeds": {"shuffling": 4}}
    state = POSTERIORS["laplace"].fit(
        changed(start, **sections), tmp_path / "run", RunOptions(progress=False)
    )
    (wide,) = load_members(start("nll_jef")).weights[:1]
    (narrow,) = state.run.weights
    assert torch.equal(narrow["embedding"], wide["embedding"].float())


@pytest.mark.slow
def test_a_start_is_left_as_it_was(start, tmp_path):
    folder = start("nll_jef")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    config = changed(start, posterior={"kind": "swag", "epochs": 2, "start_from": str(folder)})
    POSTERIORS["swag"].fit(config, tmp_path / "run", RunOptions(progress=False))
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert (tmp_path / "run/config.yaml").read_text() == yaml.safe_dump(
        to_dict(config), sort_keys=False, allow_unicode=True
    )
