"""The served file: what is in it, what is refused, and what survives an accident."""

import dataclasses
import io
import json
import os
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from ase import Atoms

from ase_bayesmlip.card import CARD_NAME, FORMAT_VERSION, ModelCard, read_card
from ase_bayesmlip.cli.main import main
from ase_bayesmlip.serving.archive import replace_card
from ase_bayesmlip.serving.runtime import load_model, quiet_torchscript
from ase_bayesmlip.testing import graph_of


@pytest.fixture
def file(served, tmp_path):
    """A served file that a test may spoil."""
    path = tmp_path / "model.pt"
    path.write_bytes(served("small").read_bytes())
    return path


def save_foreign(path, **extra):
    """A TorchScript archive that is not ours."""
    with quiet_torchscript():
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path), _extra_files=extra)


# --- What is in it. ---


def test_card_is_json_that_zipfile_reads(served):
    with zipfile.ZipFile(served("race")) as archive:
        names = [name for name in archive.namelist() if name.endswith(CARD_NAME)]
        content = json.loads(archive.read(names[0]))
    assert len(names) == 1
    card = read_card(served("race"))
    assert dataclasses.asdict(card) == content
    assert card.format_version == FORMAT_VERSION == 1
    assert (card.kind, card.n_members, card.backbone) == ("ensemble", 2, "race")
    assert (card.dtype, card.ddof, card.cutoff) == ("float32", 1, 4.0)
    assert card.atomic_numbers == [1, 6, 8]
    assert card.reference_energies == {"H": -13.6, "C": -1027.5, "O": -2041.9}
    assert card.config["posterior"]["members"] == 2
    assert card.probe["numbers"] == [6, 6, 8, 1, 1, 1, 1, 1, 1]
    assert set(card.versions) >= {"ase_bayesmlip", "torch", "python"}
    assert card.n_parameters > 0


def test_card_holds_no_folder_of_the_training_machine(served):
    text = read_card(served("ensemble")).to_json()
    assert "train.extxyz" in text
    assert "/somewhere" not in text


def test_same_card_from_the_file_and_from_the_export(serve, tmp_path):
    card = serve("mse", tmp_path / "new" / "folder" / "model.pt")
    assert card == read_card(tmp_path / "new" / "folder" / "model.pt")
    assert card == load_model(tmp_path / "new" / "folder" / "model.pt").card


def test_program_is_saved_unfrozen_and_without_gradients(served, loaded):
    with quiet_torchscript():
        module = torch.jit.load(str(served("small")))
    parameters = dict(module.named_parameters())
    assert parameters
    assert not any(parameter.requires_grad for parameter in parameters.values())
    assert all(parameter.device.type == "cpu" for parameter in parameters.values())
    frozen = loaded("small").module
    assert not dict(frozen.named_parameters())


@pytest.mark.slow
def test_default_precision_is_that_of_the_training(loaded):
    assert loaded("race", None).dtype == "float32"
    assert loaded("small", None).dtype == "float64"
    assert loaded("small", "torch.float32").dtype == "float32"


# --- What is refused. ---


def test_missing_file(tmp_path):
    for reader in (read_card, load_model):
        for path in (tmp_path / "no.pt", str(tmp_path / "no.pt"), tmp_path):
            with pytest.raises(FileNotFoundError, match="no model file at"):
                reader(path)


def text_file(path):
    path.write_text("Lattice says nothing\n" * 20)


def empty_file(path):
    path.write_bytes(b"")


def any_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def plain_checkpoint(path):
    torch.save({"weights": torch.zeros(3)}, path)


def foreign_program(path):
    save_foreign(path)


def foreign_card_without_json(path):
    save_foreign(path, **{"model_card.json": "this is not JSON"})


def foreign_card_of_another_kind(path):
    save_foreign(path, **{"model_card.json": '{"name": "resnet"}'})


def foreign_card_with_a_version(path):
    save_foreign(path, **{"model_card.json": '{"format_version": 1}'})


NOT_OURS = {
    text_file: "not a served model",
    empty_file: "not a served model",
    any_zip: "without a model card",
    plain_checkpoint: "without a model card",
    foreign_program: "without a model card",
    foreign_card_without_json: "not valid JSON",
    foreign_card_of_another_kind: "no format_version",
    foreign_card_with_a_version: "lacks .*atomic_numbers",
}


@pytest.mark.parametrize("make", NOT_OURS, ids=lambda function: function.__name__)
def test_file_that_is_not_ours(tmp_path, make, capsys):
    path = tmp_path / "model.pt"
    make(path)
    for reader in (read_card, load_model):
        with pytest.raises(ValueError, match=NOT_OURS[make]) as caught:
            reader(path)
        assert str(path) in str(caught.value)
    assert main(["inspect", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert str(path) in printed.err


@pytest.mark.parametrize("kept", [1, 100, 0.25, 0.5, 0.9, 0.99, -200, -22, -1])
def test_file_cut_short(file, kept):
    content = file.read_bytes()
    length = int(kept * len(content)) if isinstance(kept, float) else kept
    file.write_bytes(content[:length])
    for reader in (read_card, load_model):
        with pytest.raises(ValueError, match="cut short"):
            reader(file)


def test_bytes_changed_in_the_weights(file):
    """A changed byte is noticed by the archive's checksum or by the self-test."""
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [info for info in archive.infolist() if "/data/" in info.filename]
    largest = max(entries, key=lambda info: info.file_size)
    header = content[largest.header_offset : largest.header_offset + 30]
    name_and_extra = sum(struct.unpack("<HH", header[26:30]))
    start = largest.header_offset + 30 + name_and_extra
    for offset in range(start, start + largest.file_size):
        content[offset] ^= 0x15
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot load|self-test|cut short"):
        load_model(file)


def test_newer_format(file, capsys):
    replace_card(file, dataclasses.replace(read_card(file), format_version=FORMAT_VERSION + 1))
    for reader in (read_card, load_model):
        with pytest.raises(ValueError, match=r"format version 2 is newer than 1.*upgrade"):
            reader(file)
    assert main(["inspect", str(file)]) == 2
    assert "newer" in capsys.readouterr().err


def test_fields_of_a_later_release_are_ignored(served):
    content = json.loads(read_card(served("race")).to_json())
    card = ModelCard.from_json(json.dumps({**content, "added_later": 1}))
    assert card == read_card(served("race"))


PROBE_FIELDS = [
    "energy",
    "forces",
    "energy_var_epistemic",
    "energy_var_aleatoric",
    "forces_cov_epistemic",
    "forces_cov_aleatoric",
]


def test_probe_covers_energy_forces_and_every_variance(served):
    assert set(read_card(served("race")).probe["expected"]) == set(PROBE_FIELDS)
    assert set(read_card(served("mse")).probe["expected"]) == {"energy", "forces"}


@pytest.mark.slow
@pytest.mark.parametrize("field", PROBE_FIELDS)
def test_failing_probe(file, field):
    card = read_card(file)
    expected = np.asarray(card.probe["expected"][field])
    flat = expected.ravel()
    flat[0] += 1e-2 * max(1.0, np.abs(flat).max() if field != "energy" else 1.0)
    probe = {**card.probe, "expected": {**card.probe["expected"], field: expected.tolist()}}
    replace_card(file, dataclasses.replace(card, probe=probe))
    with pytest.raises(ValueError, match=rf"fails its self-test on cpu in float64: {field} of"):
        load_model(file, dtype="float64")


def test_the_probe_is_compared_without_its_reference_energies(file):
    """1e-4 eV are little beside 4000 eV of isolated atoms, and much beside the bonds."""
    card = read_card(file)
    energies = [energy + 1e-4 for energy in card.probe["expected"]["energy"]]
    assert abs(energies[0]) > 1000.0
    probe = {**card.probe, "expected": {**card.probe["expected"], "energy": energies}}
    replace_card(file, dataclasses.replace(card, probe=probe))
    with pytest.raises(ValueError, match="self-test on cpu in float64: energy of"):
        load_model(file, dtype="float64")


def test_failing_probe_by_nan(file):
    card = read_card(file)
    probe = {**card.probe, "expected": {**card.probe["expected"], "energy": [float("nan")]}}
    replace_card(file, dataclasses.replace(card, probe=probe))
    with pytest.raises(ValueError, match="self-test"):
        load_model(file)


def test_replacing_the_card_keeps_the_program(file, loaded, ethanol):
    card = read_card(file)
    calibration = {"n_frames": 3, "scores": {"forces_epistemic_max": [0.1, 0.2, 0.3]}}
    replace_card(file, dataclasses.replace(card, calibration=calibration))
    model = load_model(file, dtype="float64")
    assert model.card == dataclasses.replace(card, calibration=calibration)
    graph = graph_of(ethanol, card.cutoff)
    expected = loaded("small").predict([graph])
    assert torch.equal(model.predict([graph]).forces_cov_epistemic, expected.forces_cov_epistemic)


@pytest.mark.parametrize("dtype", ["float16", "double", "int64", torch.bfloat16, 64])
def test_unknown_dtype(served, dtype):
    with pytest.raises(ValueError, match=r"dtype '.*' is unknown; choose float32 or float64"):
        load_model(served("small"), dtype=dtype)


@pytest.mark.parametrize("device", ["gpu", "nowhere:0", "meta", "mps"])
def test_unknown_device(served, device):
    with pytest.raises(ValueError, match=r"device '.*' .*'cpu'"):
        load_model(served("race"), device=device)


def test_cuda_without_a_gpu(served, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:0", torch.device("cuda")):
        with pytest.raises(ValueError, match="torch sees no GPU; use device='cpu'"):
            load_model(served("race"), device=device)


# --- Accidents. ---


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_saving_leaves_the_old_file(file, serve, monkeypatch, error):
    before = file.read_bytes()

    def interrupted(handle):
        raise error

    monkeypatch.setattr(os, "fsync", interrupted)
    new = file.with_name("new.pt")
    with pytest.raises(error):
        serve("mse", new)
    with pytest.raises(error):
        serve("mse", file)
    with pytest.raises(error):
        replace_card(file, read_card(file))
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


# --- Precision of the reference energies. ---


@pytest.mark.slow
def test_large_reference_energies_cost_no_digits(serve, tmp_path, ethanol):
    """-1000 eV per atom beside an interaction energy of some eV, in a float32 model."""
    shaken = ethanol.copy()
    shaken.rattle(0.02, seed=4)
    frames = [ethanol, shaken, Atoms("CO", [[0, 0, 0], [0, 0, 1.2]])]
    offsets = {1: -1000.123456789, 6: -1037.000000001, 8: -2042.1}
    models = {}
    for name, references in {"with": offsets, "without": dict.fromkeys(offsets, 0.0)}.items():
        serve("small", tmp_path / f"{name}.pt", references=references)
        models[name] = load_model(tmp_path / f"{name}.pt", dtype="float32")
    graphs = [graph_of(atoms, 4.0) for atoms in frames]
    found = {name: model.predict(graphs, False, True) for name, model in models.items()}
    shift = np.array([sum(offsets[z] for z in atoms.numbers) for atoms in frames])
    interaction = found["with"].energy.numpy() - shift
    assert np.abs(interaction - found["without"].energy.numpy()).max() < 1e-9
    members = found["with"].energy_members.numpy() - shift
    assert np.abs(members - found["without"].energy_members.numpy()).max() < 1e-9
    assert torch.equal(found["with"].energy_var_epistemic, found["without"].energy_var_epistemic)
    wide = load_model(tmp_path / "with.pt", dtype="float64").predict(graphs)
    assert torch.abs(wide.energy - found["with"].energy).max() < 1e-5


# --- What is imported. ---


def run_python(code, *arguments):
    """Run code in a fresh interpreter that treats warnings as errors."""
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_reading_a_card_does_not_import_torch(served):
    code = """
import sys
from ase_bayesmlip.card import read_card
assert read_card(sys.argv[1]).n_members == 2
from ase_bayesmlip.cli.main import main
assert main(["inspect", sys.argv[1]]) == 0
assert main(["inspect", "--json", sys.argv[1]]) == 0
assert "torch" not in sys.modules, "torch was imported"
"""
    done = run_python(code, served("race"))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_serving_imports_only_ase_numpy_torch_and_vesin(served, data_folder):
    code = """
import sys
for name in ("e3nn", "matplotlib", "yaml", "tqdm", "tblite", "hypothesis"):
    sys.modules[name] = None  # importing it raises ImportError
import numpy as np
from ase.io import read
import ase_bayesmlip.calculator
from ase_bayesmlip.calculator import BayesianCalculator
atoms = read(sys.argv[2], 0)
calculator = BayesianCalculator(sys.argv[1])
(result,) = calculator.evaluate([atoms])
assert np.isfinite(result["forces_cov_epistemic"]).all()
parts = tuple(f"ase_bayesmlip.{name}." for name in ("nn", "training", "posteriors", "config"))
found = {name for name in sys.modules if name.startswith(parts)}
# Neither needs a network: the memory of the process, and the operators of compiled programs.
found -= {f"ase_bayesmlip.nn.{name}" for name in ("allocator", "stacked", "stacked.operators")}
assert not found, f"imported: {found}"
"""
    done = run_python(code, served("small"), data_folder / "ethanol_test.extxyz")
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")


def test_the_package_imports_nothing_until_it_is_used():
    code = """
import sys
import ase_bayesmlip
assert not {"torch", "ase", "numpy"} & sys.modules.keys()
for name in ase_bayesmlip.__all__:
    assert getattr(ase_bayesmlip, name) is not None
try:
    ase_bayesmlip.nonsense
except AttributeError as error:
    assert "nonsense" in str(error)
else:
    raise AssertionError
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
