"""``bayesmlip evaluate`` with the served file that comes with the package."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from ase.io import read, write

from ase_bayesmlip import metrics
from ase_bayesmlip.calculator import BayesianCalculator
from ase_bayesmlip.card import read_card
from ase_bayesmlip.cli.main import main
from ase_bayesmlip.evaluation import read_evaluation_frames
from ase_bayesmlip.files import write_whole
from ase_bayesmlip.structures.overlap import seen_notes

ROOT = Path(__file__).parents[2]
DATA = ROOT / "data"
MODEL = str(DATA / "ethanol_ensemble.pt")
TEST = f"{DATA / 'ethanol_test.extxyz'}@0:16"
HOT = f"{DATA / 'ethanol_ood_1200K.extxyz'}@0:12"
# The numbers that the issue of this command promised by name.
PROMISED = {
    "energy_rmse_meV_per_atom",
    "forces_rmse_meV_per_A",
    "forces_mae_meV_per_A",
    "forces_nll",
    "energy_nll",
    "calibration_error_energy",
    "calibration_error_forces",
    "coverage_90_forces",
    "spearman_forces",
    "energy_score_forces",
    "auroc_ood",
    "fpr95_ood",
}


def run(*arguments, model=MODEL, test=TEST):
    return main(["evaluate", model, test, *map(str, arguments), "--quiet", "--resamples", "60"])


@pytest.fixture(scope="module")
def small(served):
    """A served file of small, untrained potentials: where numbers do not matter."""
    return str(served("small"))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folder with everything that one run writes."""
    folder = tmp_path_factory.mktemp("evaluation")
    arguments = ["--ood", HOT, "--json", folder / "out.json"]
    arguments += ["--report", folder / "report.html", "--figures", folder / "figures"]
    assert run(*arguments) == 0
    return folder


@pytest.fixture(scope="module")
def content(written):
    return json.loads((written / "out.json").read_text(encoding="utf-8"))


def test_json_has_the_promised_numbers(content):
    assert content.keys() >= PROMISED
    for name in PROMISED:
        low, high = content[name + "_ci"]
        assert low <= high
    assert (content["n_frames"], content["n_atoms_forces"]) == (16, 144)
    assert content["model"]["kind"] == "ensemble"
    assert content["model"]["elements"] == ["H", "C", "O"]
    assert content["names"] == {
        "model": "ethanol_ensemble.pt",
        "test": "ethanol_test",
        "ood": "ethanol_ood_1200K",
        "before": "before",
    }


def test_numbers_are_those_of_the_calculator(content):
    frames = read(DATA / "ethanol_test.extxyz", "0:16")
    results = BayesianCalculator(MODEL).evaluate(frames)
    error = np.concatenate(
        [f.arrays["REF_forces"] - r["forces"] for f, r in zip(frames, results, strict=True)]
    )
    covariance = np.concatenate([r["forces_cov"] for r in results])
    assert content["forces_rmse_meV_per_A"] == pytest.approx(1e3 * metrics.rmse(error), rel=1e-5)
    expected = metrics.multivariate_gaussian_nll(error, covariance)
    assert content["forces_nll"] == pytest.approx(expected, rel=1e-5)


def test_hot_frames_are_foreign_and_their_error_bars_too_small(content):
    assert content["auroc_ood"] > 0.9
    assert content["ood"]["coverage_90_forces"] < content["coverage_90_forces"]
    assert content["ood"]["per_config_type"].keys() == {"ethanol_1200K"}


def test_keys_are_those_of_the_docs(content):
    page = (ROOT / "docs" / "calibrate-evaluate.md").read_text(encoding="utf-8")
    section = page.split("\n## Evaluate\n")[1]
    # The first cell of each row.
    table = "".join(line.split("|")[1] for line in section.splitlines() if line.startswith("| `"))
    documented = set(re.findall(r"`([a-z0-9]+_\w+)`", table))
    numbers = {name for name in content if name + "_ci" in content}
    assert documented >= numbers
    with_cell = {name for name in documented if "stress" in name or "pressure" in name}
    assert documented - numbers - with_cell <= content.keys()


def test_report_and_figures(written):
    report = (written / "report.html").read_text(encoding="utf-8")
    assert report.count("<figure>") == 8
    assert 8 < report.count("data:image/png;base64,") <= 16  # and those of narrow screens
    assert not re.findall(r"https?:", report)
    names = {path.name for path in (written / "figures").iterdir()}
    assert len(names) == 16
    assert {"calibration.png", "calibration.pdf", "structure.png"} <= names
    assert {path.name for path in written.iterdir()} == {"out.json", "report.html", "figures"}


@pytest.mark.slow
def test_several_foreign_files_and_stress(tmp_path, capsys, small):
    """Crystals with stress, against two sets of molecules, of which one has the other's name."""
    stretched = str(DATA / "ethanol_ood_stretch.extxyz") + "@0:2"
    arguments = ["--ood", HOT.replace("0:12", "0:3"), "--ood", stretched, "--ood", stretched]
    arguments += ["--json", tmp_path / "out.json", "--report", tmp_path / "out.html"]
    assert run(*arguments, model=small, test=f"{DATA / 'co2_test.extxyz'}@0:5") == 0
    content = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    names = ["ethanol_ood_1200K", "ethanol_ood_stretch", "ethanol_ood_stretch (2)"]
    assert list(content["ood_sets"]) == names
    assert content["names"]["ood"] == names[0]
    assert content["auroc_ood"] == content["ood_sets"][names[0]]["auroc_ood"]
    assert (
        content["ood_sets"][names[1]]["ood_scores"] == content["ood_sets"][names[2]]["ood_scores"]
    )
    assert content["n_frames_stress"] == 5
    assert content["stress_rmse_GPa"] > 0
    assert 0 <= content["coverage_90_pressure"] <= 1
    printed = capsys.readouterr().out
    assert "pressure RMSE, GPa" in printed
    assert "known frames ethanol_ood_stretch (2) by forces_epistemic_max" in printed
    report = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "<th>elements</th><td>H, C, O</td>" in report
    assert "has_epistemic" not in report


def test_labels_of_energies_alone_and_foreign_elements(tmp_path, capsys, small):
    frames = read(DATA / "ethanol_ood_stretch.extxyz", "0:6")
    for frame in frames:
        del frame.arrays["REF_forces"]
    frames[0].symbols[0] = "Si"
    write(tmp_path / "stretch.extxyz", frames)
    arguments = ["--ood", tmp_path / "stretch.extxyz", "--json", tmp_path / "out.json"]
    assert run(*arguments, model=small) == 0
    printed = capsys.readouterr()
    assert "1 of 6 frames hold elements that the model does not know, Si" in printed.err
    assert "no frame has the label 'REF_forces'" in printed.err
    ood = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["ood"]
    assert ood["n_frames_energy"] == 5
    assert ood["n_frames_forces"] == 0
    assert "energy_nll" in ood
    assert "foreign against known frames by forces_epistemic_max: AUROC" in printed.out


def test_one_frame_is_said_to_have_no_interval(capsys, small):
    assert run(model=small, test=f"{DATA / 'ethanol_test.extxyz'}@0") == 0
    printed = capsys.readouterr()
    assert "one labelled frame: an interval is impossible" in printed.err
    assert re.search(r"force RMSE, meV/Å +[\d.]+\n", printed.out)


def test_threshold_frames_are_recognised():
    """By the checksum that the card keeps; evaluating all 300 would add nothing but time."""
    frames = read_evaluation_frames(str(DATA / "ethanol_calib.extxyz"))
    (note,) = seen_notes(read_card(MODEL), frames)
    assert "these are the threshold frames of the model" in note


@pytest.mark.slow
def test_other_names_of_labels(tmp_path, capsys, small):
    frames = read(DATA / "ethanol_test.extxyz", "0:3")
    for frame in frames:
        frame.info["dft_energy"] = frame.info.pop("REF_energy")
        frame.set_array("dft_forces", frame.arrays.pop("REF_forces"))
    path = str(tmp_path / "renamed.extxyz")
    write(path, frames)
    assert run(test=path) == 2
    assert "--energy-key and --forces-key" in capsys.readouterr().err
    names = ["--energy-key", "dft_energy", "--forces-key", "dft_forces"]
    names += ["--before", small, "--json", tmp_path / "out.json"]
    assert run(*names, model=small, test=path) == 0
    assert "renamed, before (n = 3)" in capsys.readouterr().out
    content = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert content["names"]["before"] == Path(small).name
    assert content["before"]["forces_nll"] == pytest.approx(content["forces_nll"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ood", "nowhere.extxyz"], "no data file at nowhere.extxyz"),
        (["--json", "/nowhere/out.json"], "there is no folder /nowhere"),
        (["--report", str(DATA)], "is a folder"),
        (["--figures", MODEL], "is a file"),
        (["--before", "nowhere.pt"], "no model file at nowhere.pt"),
        (["--resamples", "3"], "3 resamples are too few for an interval of 95 %; give 40 or more"),
    ],
)
def test_wrong_arguments_are_explained(arguments, message, capsys, tmp_path):
    target = tmp_path / "report.html"
    code = main(
        ["evaluate", MODEL, f"{DATA / 'ethanol_test.extxyz'}@0:2", "--quiet"]
        + (arguments if "--report" in arguments else ["--report", str(target), *arguments])
    )
    assert code == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert not target.exists()


def test_labels_that_are_no_numbers(tmp_path, capsys):
    frames = read(DATA / "ethanol_test.extxyz", "0:3")
    frames[2].info["REF_energy"] = float("nan")
    write(tmp_path / "bad.extxyz", frames)
    assert run("--json", tmp_path / "out.json", test=str(tmp_path / "bad.extxyz")) == 2
    assert "bad.extxyz#2: 'REF_energy' is nan" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "out.json"
    write_whole(path, b"old")

    def fail(self, target):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
