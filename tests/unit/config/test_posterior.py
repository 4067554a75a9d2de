"""Settings of posteriors: those of the kind that is named, and their ranges."""

import dataclasses
import math
import typing

import pytest
import yaml

from ase_bayesmlip.config import (
    Config,
    ConfigError,
    from_dict,
    load_config,
    to_dict,
)
from ase_bayesmlip.config.posterior import (
    EnsembleConfig,
    IVONConfig,
    LaplaceConfig,
    PointConfig,
    SWAGConfig,
)


def config(**sections) -> Config:
    return from_dict(Config, {"data": {"train": "a.extxyz"}, **sections})


KINDS = {
    "ensemble": EnsembleConfig,
    "point": PointConfig,
    "swag": SWAGConfig,
    "ivon": IVONConfig,
    "laplace": LaplaceConfig,
}


@pytest.mark.parametrize("kind", KINDS)
def test_kind_chooses_the_settings(kind):
    posterior = config(posterior={"kind": kind}).posterior
    assert posterior == KINDS[kind]()
    assert posterior.kind == kind


def test_without_a_kind_it_is_an_ensemble():
    assert config().posterior == config(posterior={}).posterior == EnsembleConfig()
    assert config(posterior={"members": 7}).posterior == EnsembleConfig(members=7)


@pytest.mark.parametrize("kind", ["swagg", None, 3, ["swag"], {"swag": 1}])
def test_unknown_kind_lists_the_known_ones(kind):
    with pytest.raises(ConfigError) as caught:
        config(posterior={"kind": kind})
    known = "ensemble, point, swag, ivon, laplace, evidential"
    assert str(caught.value) == f"posterior.kind is {kind!r}; allowed: {known}"


@pytest.mark.parametrize(
    ("kind", "key", "nearest"),
    [
        ("swag", "snapshots_every", "snapshot_every"),
        ("swag", "diag", "diagonal"),
        ("ivon", "hess_int", "hess_init"),
        ("ivon", "train_sample", "train_samples"),
        ("laplace", "wieghts", "weights"),
        ("laplace", "priors", "prior"),
        ("ensemble", "boostrap", "bootstrap"),
    ],
)
def test_misspelt_setting_names_the_nearest_of_its_kind(kind, key, nearest):
    with pytest.raises(ConfigError) as caught:
        config(posterior={"kind": kind, key: 1})
    assert str(caught.value) == f"unknown key 'posterior.{key}'; did you mean '{nearest}'?"


@pytest.mark.parametrize(
    ("kind", "key"),
    [("ensemble", "rank"), ("point", "members"), ("laplace", "epochs"), ("swag", "bootstrap")],
)
def test_setting_of_another_kind_is_unknown(kind, key):
    with pytest.raises(ConfigError, match=rf"unknown key 'posterior\.{key}'"):
        config(posterior={"kind": kind, key: 1})


OUT_OF_RANGE = {
    "members": [0],
    "epochs": [0],
    "snapshot_every": [0],
    "train_samples": [0],
    "rank": [1],
    "folds": [1, 0, 3],
    "samples": [1, 0],
    "learning_rate": [0.0, -1.0, math.inf, math.nan],
    "scale": [0.0, math.inf, math.nan],
    "hess_init": [0.0, math.inf, math.nan],
    "effective_sample_size": [0.0, math.inf, math.nan],
    "clip_radius": [0.0, math.inf, math.nan],
    "prior": [0.0, -2.0, math.inf, math.nan],
    "beta1": [1.0, -0.1, math.nan],
    "beta2": [1.0, -0.1, math.nan],
    "weight_decay": [-1e-4, math.inf, math.nan],
    "probes": [-1],
}


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        (kind, item.name, value)
        for kind, cls in KINDS.items()
        for item in dataclasses.fields(cls)
        for value in OUT_OF_RANGE.get(item.name, [])
    ],
)
def test_setting_out_of_range(kind, key, value):
    with pytest.raises(ConfigError, match=rf"^posterior\.{key} is .*; it must be"):
        config(posterior={"kind": kind, key: value})


def test_every_number_of_a_posterior_has_a_range():
    for cls in KINDS.values():
        for name, hint in typing.get_type_hints(cls).items():
            if {int, float} & {hint, *typing.get_args(hint)}:
                assert name in OUT_OF_RANGE, f"{cls.__name__}.{name}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "swag", "rank": 2.5}, r"posterior\.rank is 2\.5 \(float\); expected int"),
        ({"kind": "swag", "diagonal": 1}, r"posterior\.diagonal is 1 \(int\); expected bool"),
        ({"kind": "swag", "start_from": 3}, r"posterior\.start_from is 3; expected str"),
        ({"kind": "ivon", "hess_init": "much"}, r"posterior\.hess_init is 'much'; expected float"),
        ({"kind": "laplace", "prior": "best"}, r"posterior\.prior is 'best'; expected"),
        ({"kind": "laplace", "prior": True}, r"posterior\.prior is True; expected"),
        ({"kind": "laplace", "weights": "last"}, r"posterior\.weights is 'last'; allowed: last_l"),
        ({"kind": "laplace", "samples": None}, r"posterior\.samples is None"),
    ],
)
def test_setting_of_a_wrong_type(settings, message):
    with pytest.raises(ConfigError, match=message):
        config(posterior=settings)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("marginal_likelihood", "marginal_likelihood"),
        ("validation", "validation"),
        (2, 2.0),
        (0.5, 0.5),
        ("1e-3", 1e-3),
    ],
)
def test_prior_is_a_method_or_a_number(given, expected):
    found = config(posterior={"kind": "laplace", "prior": given}).posterior.prior
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("loss", ["mse", "nll_e"])
def test_ivon_needs_a_likelihood_of_energies_and_forces(loss):
    with pytest.raises(ConfigError, match=rf"ivon needs a likelihood.* loss\.kind is {loss}; set"):
        config(posterior={"kind": "ivon"}, loss={"kind": loss})
    for kind in KINDS.keys() - {"ivon"}:
        assert config(posterior={"kind": kind}, loss={"kind": loss}).loss.kind == loss


@pytest.mark.parametrize("kind", KINDS)
def test_posterior_as_plain_data(kind):
    original = config(posterior={"kind": kind})
    assert from_dict(Config, yaml.safe_load(yaml.safe_dump(to_dict(original)))) == original


@pytest.mark.parametrize("kind", ["swag", "ivon", "laplace"])
def test_start_is_relative_to_the_file(tmp_path, monkeypatch, kind):
    (tmp_path / "configs").mkdir()
    monkeypatch.setenv("RUNS", str(tmp_path / "elsewhere"))
    for start, expected in [
        ("../runs/a", f"{tmp_path}/configs/../runs/a"),
        ("$RUNS/b", f"{tmp_path}/elsewhere/b"),
        ("/absolute/c", "/absolute/c"),
        (None, None),
    ]:
        content = {"data": {"train": "a"}, "posterior": {"kind": kind, "start_from": start}}
        path = tmp_path / "configs/run.yaml"
        path.write_text(yaml.safe_dump(content))
        assert load_config(path).posterior.start_from == expected


def test_start_with_an_unset_variable(tmp_path, monkeypatch):
    monkeypatch.delenv("RUNS_NOWHERE", raising=False)
    posterior = {"kind": "swag", "start_from": "$RUNS_NOWHERE/a"}
    content = {"data": {"train": "a"}, "posterior": posterior}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"^path '\$RUNS_NOWHERE/a' names an environment"):
        load_config(tmp_path / "run.yaml")
