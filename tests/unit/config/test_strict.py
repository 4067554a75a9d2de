"""Reading of dataclasses from plain data: unknown keys, wrong types, tagged unions."""

import dataclasses
from typing import Literal

import pytest
import yaml

from ase_bayesmlip.config import (
    Config,
    ConfigError,
    from_dict,
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


@dataclasses.dataclass(frozen=True)
class Round:
    kind: Literal["round"] = "round"
    radius: float = 1.0


@dataclasses.dataclass(frozen=True)
class Square:
    side: float  # without a default
    kind: Literal["square"] = "square"


@dataclasses.dataclass(frozen=True)
class Drawing:
    shape: Round | Square = dataclasses.field(default_factory=Round)
    shapes: list[Round | Square] = dataclasses.field(default_factory=list)


def test_tagged_union_is_read_by_its_tag():
    assert from_dict(Drawing, {}).shape == Round()
    assert from_dict(Drawing, {"shape": {"kind": "square", "side": 2}}).shape == Square(2.0)
    # Without a tag it is the first, and only the first.
    assert from_dict(Drawing, {"shape": {"radius": 3}}).shape == Round(radius=3.0)
    with pytest.raises(ConfigError, match=r"unknown key 'shape\.side'"):
        from_dict(Drawing, {"shape": {"side": 3}})
    with pytest.raises(ConfigError, match=r"'shape\.side' is missing"):
        from_dict(Drawing, {"shape": {"kind": "square"}})
    with pytest.raises(ConfigError, match=r"shape must be a mapping, got str"):
        from_dict(Drawing, {"shape": "square"})


def test_tagged_unions_in_a_list():
    content = {"shapes": [{"radius": 2.0}, {"kind": "square", "side": 1.0}]}
    assert from_dict(Drawing, content).shapes == [Round(radius=2.0), Square(1.0)]
    with pytest.raises(ConfigError, match=r"shapes\[1\]\.kind is 'oval'; allowed: round, square"):
        from_dict(Drawing, {"shapes": [{}, {"kind": "oval"}]})
