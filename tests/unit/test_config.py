"""Strict configuration: every mistake is an error that names the key."""

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
    from_dict,
    load_config,
    to_dict,
)


def config(**sections) -> Config:
    return from_dict(Config, {"data": {"train": "a.extxyz"}, **sections})


@pytest.mark.parametrize(
    ("content", "path", "nearest"),
    [
        ({"modle": {}}, "modle", "model"),
        ({"model": {"cutof": 4.0}}, "model.cutof", "cutoff"),
        ({"training": {"lerning_rate": 0.1}}, "training.lerning_rate", "learning_rate"),
        ({"data": {"train": "a", "keys": {"force": "f"}}}, "data.keys.force", "forces"),
        ({"posterior": {"member": 3}}, "posterior.member", "members"),
    ],
)
def test_unknown_key_names_the_nearest(content, path, nearest):
    with pytest.raises(ConfigError) as caught:
        from_dict(Config, {"data": {"train": "a"}, **content})
    assert str(caught.value) == f"unknown key '{path}'; did you mean '{nearest}'?"


def test_key_near_to_none_lists_the_valid_ones():
    with pytest.raises(ConfigError, match=r"unknown key 'loss\.zzzz'; valid keys: kind, warmup,"):
        config(loss={"zzzz": 1})


def test_key_that_is_no_string():
    with pytest.raises(ConfigError, match=r"unknown key 'model\.7'"):
        config(model={7: 1})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"n_layers": 2.0}}, r"model\.n_layers is 2\.0 \(float\); expected int"),
        ({"model": {"n_layers": True}}, r"model\.n_layers is True \(bool\); expected int"),
        ({"model": {"cutoff": True}}, r"model\.cutoff is True \(bool\); expected float"),
        ({"model": {"cutoff": "five"}}, r"model\.cutoff is 'five' \(str\); expected float"),
        ({"model": {"cutoff": None}}, r"model\.cutoff is None"),
        ({"model": {"radial_hidden": 64}}, r"model\.radial_hidden is 64 \(int\); expected list"),
        ({"model": {"radial_hidden": [64, "x"]}}, r"model\.radial_hidden\[1\] is 'x'"),
        ({"model": {"backbone": "mace"}}, r"model\.backbone is 'mace'; allowed: race, race_plus"),
        ({"model": {"backbone": []}}, r"model\.backbone is \[\]; allowed"),
        ({"posterior": {"bootstrap": "yes"}}, r"posterior\.bootstrap is 'yes' \(str\)"),
        ({"data": {"train": 3}}, r"data\.train is 3; expected"),
        ({"data": {"train": "a", "reference_energies": {"H": "x"}}}, r"data\.reference_energies"),
        ({"model": [1]}, r"model must be a mapping, got list"),
        ({"model": None}, r"model must be a mapping, got NoneType"),
    ],
)
def test_wrong_type_names_key_and_value(sections, message):
    with pytest.raises(ConfigError, match=message):
        config(**sections)


def test_missing_key():
    with pytest.raises(ConfigError, match=r"'data\.train' is missing"):
        from_dict(Config, {"data": {}})
    with pytest.raises(ConfigError, match="'data' is missing"):
        from_dict(Config, {})


def test_configuration_that_is_no_mapping():
    with pytest.raises(ConfigError, match="the configuration must be a mapping, got list"):
        from_dict(Config, [])


def test_numbers_that_yaml_reads_as_text():
    text = "data: {train: a}\ntraining: {learning_rate: 1e-3}\nmodel: {cutoff: 5}"
    content = yaml.safe_load(text)
    assert content["training"]["learning_rate"] == "1e-3"
    read = from_dict(Config, content)
    assert read.training.learning_rate == 1e-3
    assert type(read.model.cutoff) is float


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
        ("training", "patience", -1),
        ("posterior", "members", 0),
        ("seeds", "data", -1),
        ("seeds", "initialisation", -1),
        ("seeds", "shuffling", -1),
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


def test_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    folder = tmp_path / "somewhere"
    folder.mkdir()
    elsewhere = tmp_path / "elsewhere.extxyz"
    content = {
        "data": {
            "train": ["a.extxyz@0:5", str(elsewhere)],
            "valid": "sub/v.extxyz",
            "calibration": None,
            "reference_energies": "atoms.extxyz",
        }
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.chdir(tmp_path)
    data = load_config("somewhere/run.yaml").data
    assert data.train == [f"{folder}/a.extxyz@0:5", str(elsewhere)]
    assert data.valid == f"{folder}/sub/v.extxyz"
    assert data.calibration is None
    assert data.reference_energies == f"{folder}/atoms.extxyz"


@pytest.mark.parametrize("references", ["fit", {"H": -13.6}])
def test_references_that_are_no_path_stay(tmp_path, references):
    content = {"data": {"train": "a", "reference_energies": references}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    assert load_config(tmp_path / "run.yaml").data.reference_energies == references


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="no configuration file"):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("data: [unclosed")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "broken.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(ConfigError, match="'data' is missing"):
        load_config(tmp_path / "empty.yaml")
