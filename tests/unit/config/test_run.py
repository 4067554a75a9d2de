"""Strict configuration: every mistake is an error that names the key."""

import dataclasses
import math
import typing
from typing import Literal

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
from ase_bayesmlip.config.posterior import (
    EnsembleConfig,
    IVONConfig,
    LaplaceConfig,
    PointConfig,
    SWAGConfig,
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


# --- posteriors: settings of the kind that is named ----------------------------------------------

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


# --- a field of several dataclasses ---------------------------------------------------------------


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
