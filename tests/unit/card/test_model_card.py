"""The model card: round trip, broken files, and no torch."""

import dataclasses
import json
import subprocess
import sys
import zipfile

import pytest

from ase_bayesmlip.card import CARD_NAME, FORMAT_VERSION, ModelCard, read_card

CARD = ModelCard(
    kind="ensemble",
    n_members=4,
    backbone="race_plus",
    cutoff=5.0,
    atomic_numbers=[1, 6, 8],
    dtype="float32",
    reference_energies={"H": -13.6, "C": -1029.1, "O": -2041.3},
    has_epistemic=True,
    has_aleatoric_energy=True,
    has_aleatoric_forces=False,
    n_parameters=1234,
    training={"files": ["träin.extxyz"], "n_frames": 3},
    calibration={"scores": {"forces_epistemic_max": [0.1, 0.2]}},
    created="2026-01-01T00:00:00",
)


def write_archive(path, text, name="model/" + CARD_NAME):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/code/something.py", "x = 1\n" * 100)
        archive.writestr(name, text)
    return path


def test_json_round_trip():
    assert ModelCard.from_json(CARD.to_json()) == CARD


def test_file_round_trip(tmp_path):
    assert read_card(write_archive(tmp_path / "model.pt", CARD.to_json())) == CARD


def test_json_is_readable_text():
    assert "träin.extxyz" in CARD.to_json()
    assert json.loads(CARD.to_json())["units"]["forces"] == "eV/Å"


def test_two_cards_share_no_default():
    other = dataclasses.replace(CARD)
    assert ModelCard.from_json(CARD.to_json()).units is not CARD.units
    assert other == CARD


def test_unknown_fields_of_this_version_are_ignored():
    content = {**json.loads(CARD.to_json()), "added_later": 1}
    assert ModelCard.from_json(json.dumps(content)) == CARD


def test_newer_format_says_how_to_read_it():
    content = {**json.loads(CARD.to_json()), "format_version": FORMAT_VERSION + 1}
    with pytest.raises(ValueError, match=r"newer than 1.*upgrade with `pip install"):
        ModelCard.from_json(json.dumps(content), source="model.pt")


@pytest.mark.parametrize("version", ["1", None, 1.5, True])
def test_format_version_that_is_no_integer(version):
    content = {**json.loads(CARD.to_json()), "format_version": version}
    with pytest.raises(ValueError, match="format_version"):
        ModelCard.from_json(json.dumps(content))


def test_missing_fields_are_named():
    content = json.loads(CARD.to_json())
    del content["cutoff"], content["atomic_numbers"]
    with pytest.raises(ValueError, match=r"model\.pt: the model card lacks atomic_numbers, cutoff"):
        ModelCard.from_json(json.dumps(content), source="model.pt")


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"kind": "point"}'])
def test_card_without_format_version(text):
    with pytest.raises(ValueError, match="states no format_version"):
        ModelCard.from_json(text)


def test_card_that_is_no_json():
    with pytest.raises(ValueError, match="not valid JSON"):
        ModelCard.from_json('{"kind": ')


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        read_card(tmp_path / "absent.pt")


def test_file_that_is_no_archive(tmp_path):
    path = tmp_path / "model.pt"
    path.write_text("not a model")
    with pytest.raises(ValueError, match="not a served model, or is cut short"):
        read_card(path)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.95])
def test_truncated_archive(tmp_path, keep):
    path = write_archive(tmp_path / "model.pt", CARD.to_json())
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match=r"cut short.*bayesmlip serve"):
        read_card(path)


def test_damaged_archive(tmp_path):
    path = write_archive(tmp_path / "model.pt", CARD.to_json())
    content = bytearray(path.read_bytes())
    content[content.index(b'"cutoff"')] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="cut short"):
        read_card(path)


def test_archive_without_a_card(tmp_path):
    path = write_archive(tmp_path / "model.pt", "{}", name="model/data.pkl")
    with pytest.raises(ValueError, match="archive without a model card"):
        read_card(path)


@pytest.mark.parametrize("module", ["card", "config"])
def test_module_is_free_of_torch(module):
    code = (
        f"import sys, ase_bayesmlip.{module}; "
        "heavy = {'torch', 'e3nn', 'ase', 'numpy'} & set(sys.modules); "
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
