"""Thresholds from folds of the training frames: from a configuration to a monitor."""

import numpy as np
import pytest
import torch
import yaml
from ase.io import read, write

from ase_bayesmlip.calculator import BayesianCalculator
from ase_bayesmlip.card import read_card
from ase_bayesmlip.cli.main import main
from ase_bayesmlip.config import Config, from_dict
from ase_bayesmlip.md.limit import find_limit, fold_scores
from ase_bayesmlip.posteriors.members import fold_of_frames
from ase_bayesmlip.scores import find_score

N = 25


def configuration(data_folder, train):
    return {
        "data": {
            "train": str(train),
            "valid": f"{data_folder / 'ethanol_valid.extxyz'}@0:6",
            "reference_energies": "fit",
        },
        "model": {
            "cutoff": 3.0,
            "n_layers": 1,
            "hidden_irreps": "4x0e + 4x1o + 4x2e",
            "n_radial": 4,
            "radial_hidden": [8],
            "readout_hidden": 8,
        },
        "training": {"epochs": 2, "batch_size": 8, "warmup_steps": 2, "evaluate_every": 1},
        "posterior": {"kind": "ensemble", "members": 4, "folds": 2},
    }


def train(folder, data_folder, frames):
    folder.mkdir()
    write(folder / "train.extxyz", frames)
    content = configuration(data_folder, folder / "train.extxyz")
    (folder / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    arguments = [folder / "config.yaml", "--out", folder / "run", "--jobs", "1", "--quiet"]
    assert main(["train", *map(str, arguments)]) == 0
    return folder / "run", from_dict(Config, content)


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_folder):
    """A run with folds, with a copy of a frame in two of them."""
    frames = read(data_folder / "ethanol_train.extxyz", f"0:{N}")
    config = from_dict(Config, configuration(data_folder, "x"))
    fold = fold_of_frames(config, N)
    one, other = (int(np.flatnonzero(fold == k)[0]) for k in (0, 1))
    frames[other] = frames[one].copy()
    return *train(tmp_path_factory.mktemp("folds") / "a", data_folder, frames), frames, fold


def test_folds_divide_the_frames(data_folder):
    config = from_dict(Config, configuration(data_folder, "x"))
    assert sorted(np.bincount(fold_of_frames(config, N)).tolist()) == [12, 13]


@pytest.mark.slow
@pytest.mark.prints
def test_a_member_knows_nothing_of_its_fold(run, tmp_path, data_folder):
    """With other labels of that fold it comes out the same to the bit, and others do not."""
    folder, _, frames, fold = run
    changed = [frame.copy() for frame in frames]
    for k in np.flatnonzero(fold == 0):
        changed[k].info["REF_energy"] += 0.3
        changed[k].arrays["REF_forces"] *= 1.1
    other, _ = train(tmp_path / "b", data_folder, changed)
    for member in range(4):
        states = [
            torch.load(path / f"member-{member:02d}" / "checkpoint.pt", weights_only=True)["state"]
            for path in (folder, other)
        ]
        same = [torch.equal(states[0]["best"][n], states[1]["best"][n]) for n in states[0]["best"]]
        assert all(same) == (member % 2 == 0), member


@pytest.mark.slow
def test_thresholds_without_calibration_frames(run, tmp_path, capsys):
    folder, _, frames, fold = run
    path = tmp_path / "model.pt"
    assert main(["serve", str(folder), "-o", str(path)]) == 0
    said = f"{N - 2} training frames in 2 folds, no others: false-alarm rates from 8.3 % on"
    assert said in capsys.readouterr().out
    card = read_card(path)
    kept = card.calibration["folds"]
    assert [part["members"] for part in kept] == [[0, 2], [1, 3]]
    assert card.calibration["n_frames"] == N - 2  # neither of the two copies
    calculator = BayesianCalculator(path, return_members=True)
    results = calculator.evaluate(frames)
    copied = frames[np.flatnonzero(fold == 0)[0]]
    chosen = [k for k in np.flatnonzero(fold == 1) if frames[k] != copied]
    expected = fold_scores([results[k] for k in chosen], [frames[k] for k in chosen], [1, 3])
    for name, scores in kept[1]["scores"].items():
        np.testing.assert_allclose(scores, expected[name], rtol=1e-5)
    limit = find_limit(None, 0.1, None, find_score("forces_epistemic_max"), calculator)
    flagged = sum(
        limit.score(r, f).value > limit.threshold for r, f in zip(results, frames, strict=True)
    )
    assert limit.threshold > 0
    assert flagged <= 4

    assert main(["inspect", str(path)]) == 0
    assert "23 training frames in 2 folds" in capsys.readouterr().out
    assert main(["serve", str(folder), "-o", str(path), "--samples", "2"]) == 2
    assert "2 of 4 members are served" in capsys.readouterr().err


@pytest.mark.slow
def test_thresholds_from_other_training_frames_are_refused(run, tmp_path, capsys):
    folder, _, frames, _ = run
    target = folder.parent / "train.extxyz"
    before = target.read_bytes()
    write(target, frames[:-1])
    try:
        assert main(["serve", str(folder), "-o", str(tmp_path / "model.pt")]) == 2
        assert "have changed since the training" in capsys.readouterr().err
        assert not (tmp_path / "model.pt").exists()  # nothing in the place of an older file
    finally:
        target.write_bytes(before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folds": 1}, "posterior.folds is 1; it must be at least 2"),
        ({"folds": 3}, "posterior.folds is 3; it must be a divisor of posterior.members"),
        ({"folds": 4}, "posterior.folds is 4; it must be a divisor of posterior.members"),
        ({"bootstrap": True}, "without bootstrap"),
    ],
)
def test_folds_that_leave_no_pair(change, message, data_folder):
    content = configuration(data_folder, "x")
    content["posterior"] |= change
    with pytest.raises(ValueError, match=message):
        from_dict(Config, content)
