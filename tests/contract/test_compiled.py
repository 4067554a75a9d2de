"""The compiled backend: the numbers of the reference, and a way back where it cannot run."""

import dataclasses
import hashlib
import os
import shutil
import warnings
import zipfile

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import read
from calibrated import FACTORS, calibration_record

from ase_bayesmlip.calculator import BayesianCalculator
from ase_bayesmlip.card import read_card
from ase_bayesmlip.cli.main import main
from ase_bayesmlip.prediction import Prediction
from ase_bayesmlip.serving import compiled
from ase_bayesmlip.serving.agreement import deviations, excess
from ase_bayesmlip.serving.archive import add_compiled, replace_card
from ase_bayesmlip.serving.calibrate import write_recalibrated
from ase_bayesmlip.serving.compiler import compile_served
from ase_bayesmlip.serving.parts import PARTS, checksums, read_parts, record_path
from ase_bayesmlip.serving.runtime import load_model
from ase_bayesmlip.serving.variance_scaling import total_factors
from ase_bayesmlip.structures.neighbors import graph_of
from ase_bayesmlip.testing import as_arrays, check_served_model

COMPILER = os.environ.get("CXX", "g++")
pytestmark = pytest.mark.skipif(
    shutil.which(COMPILER) is None, reason=f"needs the C++ compiler {COMPILER}"
)

# "Fast paths agree with the float64 reference": relative to the largest value of each field.
AGREEMENT = 1e-4


@pytest.fixture(scope="session")
def shipped(compiled_shipped):
    """The shipped ensemble with a program in float32."""
    return compiled_shipped


# A single network is the evidential one, noise of heads is in the others.
OTHERS = ("race", "laplace", "evidential")
each_other = [pytest.param(kind, marks=pytest.mark.slow) for kind in OTHERS]


@pytest.fixture(scope="session")
def others(tmp_path_factory):
    """Folder of what is compiled once, in whatever order tests ask for it."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="session", params=each_other)
def other(request, others, serve):
    """Other backbones and posteriors; all but race are compiled in float64, Laplace calibrated."""
    path = others / f"{request.param}.pt"
    if path.exists():
        return path
    serve(request.param, path)
    if request.param == "laplace":
        write_recalibrated(path, path, calibration_record(FACTORS), {})
    compile_served(path)
    return path


@pytest.fixture
def copy(shipped, tmp_path):
    """A file of one's own."""
    return shutil.copy(shipped, tmp_path / "model.pt")


def frames(data_folder, name, n):
    return read(data_folder / name, f":{n}")


@pytest.mark.parametrize("name", ["ethanol_test.extxyz", "ethanol_ood_1200K.extxyz"])
def test_agrees_with_the_reference_in_float64(shipped, data_folder, name):
    fast = load_model(shipped)
    reference = load_model(shipped, dtype="float64", backend="torchscript")
    assert (fast.backend, reference.backend) == ("aoti", "torchscript")
    graphs = [graph_of(atoms, fast.card.cutoff) for atoms in frames(data_folder, name, 10)]
    found = as_arrays(fast.predict(graphs, members=True))
    expected = as_arrays(reference.predict(graphs, members=True))
    # The program in the shipped file is from before there were shares.
    assert found.keys() == expected.keys() | {"energy_shares"}
    for field, value in expected.items():
        # The energies' spread is a few meV of 35 eV: float32 leaves it three digits.
        allowed = 2e-3 if field == "energy_var_epistemic" else AGREEMENT
        assert np.abs(found[field] - value).max() <= allowed * np.abs(value).max(), field


def test_every_posterior_agrees_on_a_small_cell(other, small_cell):
    fast = load_model(other)
    reference = load_model(other, dtype="float64", backend="torchscript")
    assert fast.backend == "aoti"
    graphs = [graph_of(small_cell, fast.card.cutoff)]
    found = as_arrays(fast.predict(graphs, stress=True, members=True))
    expected = as_arrays(reference.predict(graphs, stress=True, members=True))
    assert found.keys() == expected.keys()
    for field, value in expected.items():
        assert np.abs(found[field] - value).max() <= AGREEMENT * np.abs(value).max(), field


def test_a_lazy_step_takes_the_lean_program(other, small_cell):
    """Which only a file with drawn readouts has: nothing else takes work that may be left out."""
    fast = load_model(other)
    assert fast.lazy == (other.stem == "laplace")
    calculators = [BayesianCalculator(fast, lazy=lazy) for lazy in (False, True)]
    for calculator in calculators:
        small_cell.calc = calculator
        small_cell.get_stress()
    eager, lazy = (calculator.results for calculator in calculators)
    left_out = eager.keys() - lazy.keys()
    assert lazy.keys() <= eager.keys()
    assert ("forces_cov" in left_out) == ("stress_cov" in left_out) == fast.lazy
    for name, value in lazy.items():
        size = np.abs(value).max()
        np.testing.assert_allclose(value, eager[name], rtol=0.0, atol=AGREEMENT * size)
    if fast.lazy:
        found = calculators[1].get_property("forces_cov", small_cell)
        np.testing.assert_array_equal(found, eager["forces_cov"])


def test_variances_have_the_factors_of_the_card(other, small_cell, loaded):
    """Against the file of before calibration, in TorchScript; most files have factors of one."""
    fast, plain = load_model(other), loaded(other.stem)
    assert fast.backend == "aoti"
    factors = total_factors(fast.card)
    assert (factors == FACTORS) == bool(fast.card.recalibrations)
    graphs = [graph_of(small_cell, fast.card.cutoff)]
    found, before = (model.predict(graphs, stress=True) for model in (fast, plain))
    of_atoms = factors.of_atoms(small_cell.get_chemical_symbols())
    epistemic, aleatoric = (torch.tensor(factor).view(-1, 1, 1) for factor in of_atoms)
    for field, factor in (
        ("forces_cov_epistemic", epistemic),
        ("forces_cov_aleatoric", aleatoric),
        ("energy_var_epistemic", factors.energy_epistemic),
        ("energy_var_aleatoric", factors.energy_aleatoric),
    ):
        if getattr(before, field) is None:
            assert getattr(found, field) is None
            continue
        expected = getattr(before, field) * factor
        difference = (getattr(found, field) - expected).abs().max()
        assert difference <= AGREEMENT * expected.abs().max(), field


def test_passes_the_checks_of_a_served_model(other, ethanol, cubic_co2):
    model = load_model(other)
    assert model.backend == "aoti"
    check_served_model(model, ethanol, cubic_co2)


@pytest.mark.parametrize("members", [False, True])
def test_what_is_listed_can_be_got_by_either_backend(other, small_cell, members):
    for backend in ("aoti", "torchscript"):
        model = load_model(other, backend=backend)
        for lazy in (False, True):
            calc = BayesianCalculator(model, lazy=lazy, return_members=members)
            small_cell.calc = calc
            for atoms in (small_cell, small_cell[:1]):
                for name in calc.implemented_properties:
                    assert calc.get_property(name, atoms) is not None, name
                    assert calc.results.keys() <= {*calc.implemented_properties}


@pytest.mark.slow
def test_a_program_that_reads_columns_is_found_at_load(shipped, monkeypatch):
    """As it did of wires, before what enters was put in rows: TorchScript, and one warning."""

    def in_columns(items, device):
        found = original(items, device)
        # What a program would read of a matrix stored by columns.
        return tuple(x.mT.contiguous() if x.shape == (1, 3, 3) else x for x in found)

    original = compiled._on_device
    monkeypatch.setattr(compiled, "_on_device", in_columns)
    with pytest.warns(UserWarning, match="does not agree with TorchScript: .* by") as caught:
        assert load_model(shipped).backend == "torchscript"
    assert len(caught) == 1


WIRES = [[0, 0, 5.0], [3.0, 4.0, 0], [5.0, 0, 0], [1.0, -2.0, 4.5], [0.9, 0, 0]]


@pytest.mark.slow
@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("vector", WIRES, ids=str)
def test_wires_have_the_energies_of_torchscript(shipped, vector, place):
    """Where the program was off by up to 2.5e6 eV."""
    cell, pbc = np.zeros((3, 3)), np.arange(3) == place
    cell[place] = vector
    positions = [[0, 0, 0], [1.1, 0, 0.3], [-0.6, 1.0, 0.2]]
    atoms = Atoms("CHO", positions, cell=cell, pbc=pbc)
    if max(np.abs(vector)) < 1.0:
        atoms = atoms[:1]  # a chain of its images
    fast, slow = (load_model(shipped, backend=backend) for backend in ("aoti", "torchscript"))
    graph = graph_of(atoms, fast.card.cutoff)
    worst = deviations(fast.predict([graph]), slow.predict([graph]), graph, fast.card)
    assert excess(worst, "float32") is None


def test_the_card_says_what_was_compiled(shipped, other):
    for path in (shipped, other):
        (record,) = read_card(path).compiled
        assert record["device"] == "cpu"
        assert record["torch"] == torch.__version__
        assert 0.0 < record["table_error"] < 1e-6
        assert record["deviation"]["forces"] < AGREEMENT
        assert record["seconds"] > 0.0


def test_fields_are_given_only_when_asked_for(shipped, ethanol):
    model = load_model(shipped)
    prediction = model.predict([graph_of(ethanol, model.card.cutoff)])
    for name in Prediction._fields:
        hidden = name.startswith("stress") or name.endswith("_members")
        hidden |= name in ("forces_trace_epistemic", "forces_dof")  # of evidential networks
        hidden |= name == "feature_distance"  # the file is from before there was one
        assert (getattr(prediction, name) is None) == hidden, name


@pytest.mark.slow
def test_a_single_atom_and_atoms_out_of_reach(shipped):
    fast = BayesianCalculator(shipped)
    reference = BayesianCalculator(shipped, backend="torchscript")
    for atoms in (
        Atoms("H"),
        Atoms("HO", [[0, 0, 0], [0, 0, 20.0]]),
        Atoms("H2", [[0] * 3, [0, 0, 0.8]]),
    ):
        fast.calculate(atoms)
        reference.calculate(atoms)
        for name, value in reference.results.items():
            assert fast.results[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name


@pytest.mark.slow
def test_the_calculator_chooses_and_obeys(shipped, data_folder):
    assert BayesianCalculator(shipped).model.backend == "aoti"
    assert BayesianCalculator(shipped).parameters["backend"] == "aoti"
    assert BayesianCalculator(shipped, backend="torchscript").model.backend == "torchscript"
    # Nothing was compiled for float64, and "auto" does not ask for it.
    assert BayesianCalculator(shipped, dtype="float64").model.backend == "torchscript"
    with pytest.raises(ValueError, match="backend 'onnx' is unknown; choose auto"):
        BayesianCalculator(shipped, backend="onnx")
    with pytest.raises(ValueError, match="backend aoti; load it with"):
        BayesianCalculator(load_model(shipped), backend="torchscript")


@pytest.mark.slow
def test_a_file_without_a_program_warns_once_when_asked(data_folder):
    path = data_folder / "ethanol_ensemble.pt"
    with pytest.warns(UserWarning, match="no program compiled for cpu in float32") as caught:
        model = load_model(path, backend="aoti")
    assert len(caught) == 1
    assert model.backend == "torchscript"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_model(path).backend == "torchscript"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"torch": "1.0.0"}, "compiled for torch 1.0.0"),
        ({"machine": {"instructions": ["avx9000"]}}, "a processor with avx9000"),
        ({"machine": {"system": "Plan9"}}, "Plan9"),
    ],
)
def test_another_machine_falls_back_with_one_warning(copy, ethanol, changes, reason):
    card = read_card(copy)
    record = card.compiled[0]
    machine = {**record["machine"], **changes.pop("machine", {})}
    replace_card(
        copy, dataclasses.replace(card, compiled=[{**record, **changes, "machine": machine}])
    )
    with pytest.warns(UserWarning, match=reason) as caught:
        calculator = BayesianCalculator(copy)
    assert len(caught) == 1
    assert calculator.model.backend == "torchscript"
    ethanol.calc = calculator
    assert np.isfinite(ethanol.get_forces()).all()


@pytest.mark.slow
def test_a_damaged_program_falls_back(copy):
    record = read_card(copy).compiled[0]
    add_compiled(copy, record, {"program.pt2": b"no program", "kernels.so": b"no library"})
    with pytest.warns(UserWarning, match="cannot run here") as caught:
        assert load_model(copy, backend="aoti").backend == "torchscript"
    assert len(caught) == 1


@pytest.mark.slow
def test_a_program_for_other_kernels_is_not_run(copy):
    card = read_card(copy)
    (record,) = card.compiled
    older = {name: value for name, value in record.items() if name != "interface"}
    replace_card(copy, dataclasses.replace(card, compiled=[older]))
    with pytest.warns(UserWarning, match="compiled by another version of ase_bayesmlip") as caught:
        assert load_model(copy).backend == "torchscript"
    assert len(caught) == 1


@pytest.mark.slow
def test_a_program_that_gives_other_numbers_is_refused(copy):
    card = read_card(copy)
    probe = {**card.probe, "expected": {**card.probe["expected"], "energy": [0.0]}}
    replace_card(copy, dataclasses.replace(card, probe=probe))
    with pytest.raises(ValueError, match="fails its self-test"):
        load_model(copy)


@pytest.mark.slow
def test_programs_survive_a_new_card_and_are_replaced_one_by_one(copy):
    card = read_card(copy)
    before = read_parts(copy, card.compiled)
    replace_card(copy, dataclasses.replace(card, calibration={"n_frames": 0}))
    assert read_parts(copy, card.compiled) == before
    second = {**card.compiled[0], "dtype": "float64"}
    add_compiled(copy, second, {"program.pt2": b"one"})
    add_compiled(copy, second, {"program.pt2": b"two"})
    records = read_card(copy).compiled
    assert [record["dtype"] for record in records] == ["float32", "float64"]
    assert read_parts(copy, records[:1]) == before
    assert read_parts(copy, records[1:]) == {"compiled/cpu-float64/program.pt2": b"two"}
    assert load_model(copy).backend == "aoti"


def test_instructions_are_found_on_linux(monkeypatch, tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("model name : x\nflags : fpu avx2 fma vme avx512f\n")
    monkeypatch.setattr(compiled, "CPU_INFO", info)
    found = compiled.machine_of(torch.device("cpu"))
    assert found["instructions"] == ["avx2", "avx512f", "fma"]
    monkeypatch.setattr(compiled, "CPU_INFO", tmp_path / "none")
    assert compiled.machine_of(torch.device("cpu"))["instructions"] == []


def test_command_without_a_compiler_leaves_the_file_alone(
    tmp_path, data_folder, monkeypatch, capsys
):
    path = shutil.copy(data_folder / "ethanol_ensemble.pt", tmp_path / "model.pt")
    content = path.read_bytes()
    monkeypatch.setenv("CXX", "/no/such/compiler")
    assert main(["compile", str(path)]) == 2
    message = capsys.readouterr().err
    assert "install g++" in message
    assert "serves with TorchScript as before" in message
    assert path.read_bytes() == content


def test_inspect_shows_the_program(shipped, capsys):
    assert main(["inspect", str(shipped)]) == 0
    assert "cpu in float32" in capsys.readouterr().out


# --- Machine code runs where it was made, or on request. ---


def entries(path):
    """Name -> content of everything in an archive."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path, content):
    """Write an archive again with other content, uncompressed as torch does."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def part_of(path, part):
    return next(name for name in entries(path) if name.endswith(f"/{part}"))


def test_the_card_has_the_checksum_of_each_part(shipped):
    card = read_card(shipped)
    parts = read_parts(shipped, card.compiled)
    assert card.compiled[0]["sha256"] == {
        name.rsplit("/", 1)[1]: digest for name, digest in checksums(parts).items()
    }
    assert set(card.compiled[0]["sha256"]) == {"program.pt2", "kernels.so"} < set(PARTS)


@pytest.mark.slow
def test_machine_code_from_elsewhere_runs_on_request_alone(copy, tmp_path, monkeypatch):
    assert load_model(copy).backend == "aoti"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    with pytest.warns(UserWarning, match=r'has not compiled.*backend="aoti"') as caught:
        assert load_model(copy).backend == "torchscript"
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_model(copy, backend="torchscript").backend == "torchscript"
        assert load_model(copy, backend="aoti").backend == "aoti"
    assert not (tmp_path / "another machine").exists()


@pytest.mark.slow
def test_a_part_other_than_the_card_says_is_not_run(copy):
    content = entries(copy)
    content[part_of(copy, "kernels.so")] += b"!"
    rewrite(copy, content)
    for backend in ("auto", "aoti"):
        with pytest.warns(UserWarning, match=r"checksum of kernels\.so is not") as caught:
            assert load_model(copy, backend=backend).backend == "torchscript"
        assert len(caught) == 1


@pytest.mark.slow
@pytest.mark.parametrize("part", ["program.pt2", "kernels.so"])
def test_a_missing_part_falls_back(copy, part):
    content = entries(copy)
    del content[part_of(copy, part)]
    rewrite(copy, content)
    with pytest.warns(UserWarning, match=rf"cannot run here.*{part}") as caught:
        assert load_model(copy, backend="aoti").backend == "torchscript"
    assert len(caught) == 1


@pytest.mark.slow
def test_a_part_damaged_on_the_disk_falls_back(copy, capsys):
    """Which zipfile notices by a checksum of its own; the message is one line, no traceback."""
    content = bytearray(copy.read_bytes())
    inside = content.index(entries(copy)[part_of(copy, "kernels.so")])
    content[inside + 1000] ^= 0xFF
    copy.write_bytes(content)
    with pytest.warns(UserWarning, match=r"kernels\.so is damaged") as caught:
        assert load_model(copy).backend == "torchscript"
    assert len(caught) == 1
    assert main(["inspect", str(copy)]) == 0
    assert "will not run" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"model\.pt: .*kernels\.so is damaged.*serve"):
        replace_card(copy, read_card(copy))


@pytest.mark.slow
def test_a_file_from_before_there_were_checksums(copy):
    record = {k: v for k, v in read_card(copy).compiled[0].items() if k != "sha256"}
    content = entries(copy)
    name = next(name for name in content if name.endswith("model_card.json"))
    card = dataclasses.replace(read_card(copy), compiled=[record])
    rewrite(copy, content | {name: card.to_json().encode()})
    with pytest.warns(UserWarning, match="has not compiled"):
        assert load_model(copy).backend == "torchscript"
    assert load_model(copy, backend="aoti").backend == "aoti"


@pytest.mark.slow
def test_a_copy_with_another_card_keeps_its_permission(copy):
    card = read_card(copy)
    replace_card(copy, dataclasses.replace(card, created="later"))
    assert read_card(copy).compiled == card.compiled
    assert load_model(copy).backend == "aoti"


@pytest.mark.slow
def test_inspect_says_what_code_a_file_carries(copy, capsys, tmp_path, monkeypatch):
    main(["inspect", str(copy)])
    said = capsys.readouterr().out
    assert hashlib.sha256(copy.read_bytes()).hexdigest() in said
    assert "TorchScript program, machine code for cpu in float32" in said
    assert read_card(copy).compiled[0]["sha256"]["kernels.so"][:16] in said
    assert "checksums as in the card; compiled on this machine" in said
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    main(["inspect", str(copy)])
    assert 'not compiled here: backend="aoti" to run it' in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "record", [b"", b"[]", b"{}", b'{"sha256": 3}', b'{"sha256": [[1]]}', b"\xff"]
)
def test_a_record_that_cannot_be_read_trusts_nothing(copy, tmp_path, monkeypatch, record):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    record_path().parent.mkdir()
    record_path().write_bytes(record)
    with pytest.warns(UserWarning, match="has not compiled"):
        assert load_model(copy).backend == "torchscript"
