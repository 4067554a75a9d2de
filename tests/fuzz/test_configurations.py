"""Mutated configurations: taken word for word, or refused with the key; never a traceback."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from fuzz_cases import n_cases
from tiny import CONTENT, DATA

from ase_bayesmlip.cli.main import main
from ase_bayesmlip.config import Config, ConfigError, from_dict, load_config, to_dict

VALUES = [
    *(None, True, False, -1, 0, 1, 2, 0.5, -0.5, 1e-3, 1e30, "1e-3", "nan", float("nan")),
    *(float("inf"), "", " ", "fit", "point", "float16", "2x0e", "2x1o + 1x0e", "8x0e+8x1o+8x2e"),
    *([], [1], [0], ["a"], {}, {"kind": "swag"}, {"H": 1.0}, {"kind": "nothing"}, "$NOWHERE/a"),
    *(
        "absent.xyz",
        str(DATA),
        f"{DATA}/ethanol_valid.extxyz@x",
        f"{DATA}/ethanol_valid.extxyz@9:2",
    ),
    *(
        f"{DATA}/ethanol_valid.extxyz@3:5",
        "virial",
        "energy",
        "nll_jef",
        "mse",
        "eip",
        "iso",
        "none",
    ),
]
# A run of two steps, whatever the mutation.
START = {
    **CONTENT,
    "data": {**CONTENT["data"], "keys": {"energy": "REF_energy"}, "valid_fraction": 0.2},
    "training": {**CONTENT["training"], "epochs": 1, "dtype": "float32"},
    "loss": {"kind": "mse", "warmup_fraction": 0.0},
    "model": {**CONTENT["model"], "covariance": "none"},
    "seeds": {"data": 0},
}


def paths_of(content, path=()):
    """Every place in nested dictionaries."""
    found = [path] if path else []
    if isinstance(content, dict):
        for key, value in content.items():
            found += paths_of(value, (*path, key))
    return found


def mutated(seed):
    """The starting point with one to three keys removed, renamed, or with another value."""
    generator = np.random.default_rng(seed)
    content = yaml.safe_load(yaml.safe_dump(START))
    for _ in range(generator.integers(1, 4)):
        places = paths_of(content)
        if not places:
            break
        *parents, key = places[generator.integers(len(places))]
        section = content
        for parent in parents:
            section = section[parent]
        action = generator.integers(5)
        if action == 0:
            del section[key]
        elif action == 1:
            section[f"{key}{generator.choice(['', 's', '_'])}"[: generator.integers(1, 20)]] = 1
        else:
            section[key] = VALUES[generator.integers(len(VALUES))]
    return content


def load(path, text):
    """A configuration, or None where the error is one of those that name the key or the file."""
    path.write_bytes(text)
    try:
        return load_config(path)
    except ConfigError as error:
        message = str(error)
    assert len(message) > 10
    return None


def leaves(content):
    return dict(_leaves(content, ()))


def _leaves(content, place):
    if isinstance(content, dict) and content:
        for key, value in content.items():
            yield from _leaves(value, (*place, key))
    else:
        yield place, content


def taken(given, found) -> bool:
    """Whether a value is that of the file: numbers may be written as texts, paths are completed."""
    if isinstance(found, float) and isinstance(given, (int, float, str)):
        return np.array_equal(float(given), found, equal_nan=True)
    if isinstance(found, str) and isinstance(given, str):
        return found == given or found.endswith("/" + given) or Path(found).name == given.strip()
    return found == given and type(found) is type(given)


def test_values_are_taken_as_they_stand(tmp_path):
    n_read = 0
    n = n_cases(150)
    for case in range(n):
        content = mutated(case)
        config = load(tmp_path / f"{case}.yaml", yaml.safe_dump(content).encode())
        if config is None:
            continue
        n_read += 1
        resolved = leaves(to_dict(config))
        assert repr(from_dict(Config, to_dict(config))) == repr(config)
        for place, value in leaves(content).items():
            if value != {} and place[-1] != "start_from":
                assert taken(value, resolved[place]), (case, place)
    assert 0.02 * n < n_read < 0.9 * n


def test_damaged_text(tmp_path):
    source = yaml.safe_dump(START)
    for case in range(n_cases(150)):
        generator = np.random.default_rng([case, 1])
        text = bytearray(source.encode())
        for _ in range(generator.integers(1, 4)):
            at = generator.integers(len(text))
            new = generator.choice([*b"0 :-\n\t'\"{}[]#&*!|>%@\0", 255]).astype(np.uint8).tobytes()
            text[at : at + generator.integers(2)] = new if generator.random() < 0.8 else b""
        config = load(tmp_path / f"{case}.yaml", bytes(text))
        if config is not None:
            assert repr(from_dict(Config, to_dict(config))) == repr(config)


def test_commands_end_with_a_word(tmp_path, capsys):
    """What is read is also trained, or refused without a traceback."""
    n_trained = 0
    for case in range(n_cases(12)):
        content = mutated([case, 2])
        path, folder = tmp_path / f"{case}.yaml", tmp_path / f"run{case}"
        path.write_text(yaml.safe_dump(content))
        if (config := load(path, path.read_bytes())) is None or costly(config):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = main(["train", str(path), "--out", str(folder), "--quiet", "--jobs", "1"])
        n_trained += code == 0
        assert code in (0, 2), case
        assert code == 0 or capsys.readouterr().err.startswith("bayesmlip train: "), case
    assert n_trained


def costly(config) -> bool:
    """Whether a training would be too long for a test."""
    return config.training.epochs > 4 or max(config.model.radial_hidden, default=0) > 100


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"a\0b", b"- 1\n- 2", b"5", b"{", b"x: {a: 1, a: 2}"]
)
def test_texts_that_are_no_configuration(tmp_path, content):
    assert load(tmp_path / "a.yaml", content) is None


def test_a_key_that_is_there_twice(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("data:\n  train: a.xyz\ntraining:\n  epochs: 1\n  epochs: 2\n")
    with pytest.raises(ConfigError, match=r"a\.yaml is not valid YAML: the key 'epochs' is there"):
        load_config(path)


def test_a_folder_in_the_place_of_a_configuration(tmp_path):
    with pytest.raises(ConfigError, match="is a folder; give a configuration file"):
        load_config(tmp_path)
