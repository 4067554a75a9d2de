"""A run's configuration: ranges, defaults, and its plain data."""

import dataclasses
import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ase_bayesmlip.config import (
    Config,
    ConfigError,
    DataConfig,
    LossConfig,
    ModelConfig,
    TrainingConfig,
    completed,
    from_dict,
    to_dict,
)


def config(**sections) -> Config:
    return from_dict(Config, {"data": {"train": "a.extxyz"}, **sections})


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "cutoff", 0.0),
        ("model", "cutoff", math.nan),
        ("model", "cutoff", math.inf),
        ("model", "n_layers", 0),
        ("model", "l_max", -1),
        ("model", "l_max", 7),
        ("model", "n_radial", 0),
        ("model", "envelope_power", 1),
        ("model", "readout_hidden", 0),
        ("model", "radial_hidden", [0]),
        ("loss", "beta", 1.1),
        ("loss", "beta", -0.1),
        ("loss", "beta", "nan"),
        ("loss", "warmup_fraction", 1.5),
        ("loss", "huber_delta", 0.0),
        ("loss", "energy_weight", -1.0),
        ("loss", "forces_weight", -1.0),
        ("loss", "stress_weight", math.nan),
        ("training", "epochs", 0),
        ("training", "batch_size", 0),
        ("training", "learning_rate", 0.0),
        ("training", "learning_rate", math.inf),
        ("training", "ema_decay", 1.0),
        ("training", "evaluate_every", 0),
        ("training", "clip_norm", 0.0),
        ("training", "warmup_steps", -1),
        ("training", "weight_decay", -0.1),
        ("training", "weight_decay", math.inf),
        ("training", "patience", -1),
        ("posterior", "members", 0),
        ("seeds", "data", -1),
        ("seeds", "initialisation", -1),
        ("seeds", "shuffling", -1),
        ("seeds", "initialisation", 2**63),
        ("seeds", "data", 2**70),
    ],
)
def test_value_out_of_range(section, key, value):
    with pytest.raises(ConfigError, match=rf"{section}\.{key} is .*; it must be"):
        config(**{section: {key: value}})


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_validation_fraction_leaves_frames_on_both_sides(fraction):
    with pytest.raises(ConfigError, match=r"data\.valid_fraction"):
        from_dict(Config, {"data": {"train": "a", "valid_fraction": fraction}})


def test_joint_likelihood_needs_a_covariance():
    with pytest.raises(ConfigError, match=r"nll_jef needs a force covariance.*spd, iso or"):
        config(model={"covariance": "none"})
    assert config(model={"covariance": "none"}, loss={"kind": "nll_e"}).loss.kind == "nll_e"


def test_ranges_hold_without_yaml_too():
    with pytest.raises(ConfigError, match=r"model\.cutoff"):
        Config(data=DataConfig("a"), model=ModelConfig(cutoff=-1.0))


def test_what_could_not_be_chosen_before_is_as_it_was_then():
    model = from_dict(Config, completed({"data": {"train": "a"}, "model": {"cutoff": 4.0}})).model
    assert model == ModelConfig(cutoff=4.0, anchor=False, repulsion=False)
    kept = to_dict(config(model={"repulsion": False}))
    assert completed(kept) == kept
    for damaged in (None, [], {"model": 3}):
        assert completed(damaged) == damaged


def test_configuration_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().model.cutoff = 3.0


def test_defaults_are_not_shared():
    assert ModelConfig().radial_hidden is not ModelConfig().radial_hidden


@given(
    cutoff=st.floats(1.0, 10.0),
    epochs=st.integers(1, 1000),
    beta=st.floats(0.0, 1.0),
    hidden=st.lists(st.integers(1, 128), min_size=1, max_size=3),
    train=st.one_of(st.text(min_size=1), st.lists(st.text(min_size=1), min_size=1)),
    valid=st.one_of(st.none(), st.text(min_size=1)),
    references=st.one_of(
        st.just("fit"), st.dictionaries(st.sampled_from(["H", "C", "O"]), st.floats(-10, 0))
    ),
)
def test_plain_data_round_trip(cutoff, epochs, beta, hidden, train, valid, references):
    original = Config(
        data=DataConfig(train=train, valid=valid, reference_energies=references),
        model=ModelConfig(cutoff=cutoff, radial_hidden=hidden),
        loss=LossConfig(beta=beta),
        training=TrainingConfig(epochs=epochs),
    )
    assert from_dict(Config, to_dict(original)) == original
    assert from_dict(Config, yaml.safe_load(yaml.safe_dump(to_dict(original)))) == original
