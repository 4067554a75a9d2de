"""Configuration files: paths, variables, and what cannot be read."""

import pytest
import yaml

from ase_bayesmlip.config import (
    ConfigError,
    load_config,
)


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
