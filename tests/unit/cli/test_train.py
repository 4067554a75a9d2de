"""`bayesmlip train` refuses a wrong configuration before it makes a folder."""

import pytest

from ase_bayesmlip.cli.main import main


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"cutof": 3.0}}, "unknown key 'model.cutof'; did you mean 'cutoff'?"),
        ({"training": {"epoch": 3}}, "unknown key 'training.epoch'; did you mean 'epochs'?"),
        ({"model": {"cutoff": -1.0}}, "model.cutoff"),
        ({"posterior": {"members": 1}}, "at least 2"),
        ({"data": {"train": "/no/such/file.extxyz"}}, "/no/such/file.extxyz"),
        ({"data": {"keys": {"energy": "DFT_energy"}}}, "DFT_energy"),
    ],
)
def test_train_refuses_a_wrong_configuration(write_config, tmp_path, capsys, changes, message):
    arguments = ["train", str(write_config(**changes)), "--out", str(tmp_path / "run")]
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("bayesmlip train: ")
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert not (tmp_path / "run").exists()


def test_train_without_a_configuration(tmp_path, capsys):
    assert main(["train", str(tmp_path / "no.yaml"), "--out", str(tmp_path / "run")]) == 2
    assert "no configuration file at" in capsys.readouterr().err
    assert main(["train", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
    assert "is a folder; give a configuration file" in capsys.readouterr().err


def test_interruption_is_exit_code_130(write_config, tmp_path, capsys, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("ase_bayesmlip.posteriors.ensemble.fit", interrupt)
    assert main(["train", str(write_config()), "--out", str(tmp_path / "run")]) == 130
    assert "interrupted" in capsys.readouterr().err
