"""A recalibrated file: the means of before, multiplied variances, and all that hangs on them."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import read, write
from calibrated import FACTORS, calibration_record

from ase_bayesmlip.calculator import BayesianCalculator
from ase_bayesmlip.card import ModelCard, read_card
from ase_bayesmlip.cli.calibrate import calibrate_file, score_frames
from ase_bayesmlip.cli.main import main
from ase_bayesmlip.graph import batch_graphs
from ase_bayesmlip.metrics import Origin, origin_of
from ase_bayesmlip.prediction import Prediction
from ase_bayesmlip.serving.archive import (
    add_compiled,
    quiet_torchscript,
    replace_card,
    write_served,
)
from ase_bayesmlip.serving.calibrate import write_recalibrated
from ase_bayesmlip.serving.compiled import program_inputs
from ase_bayesmlip.serving.program import MixtureProgram
from ase_bayesmlip.serving.runtime import load_model
from ase_bayesmlip.serving.variance_scaling import VarianceScaling, set_factors, total_factors
from ase_bayesmlip.structures.labelled import read_frames, sha256
from ase_bayesmlip.structures.neighbors import graph_of
from ase_bayesmlip.structures.overlap import seen_by
from ase_bayesmlip.testing import check_served_model

MEANS = ["energy", "atomic_energies", "forces", "stress"]
KINDS = ["small", "nll_e", "point", "laplace_mixture", "evidential"]


@pytest.fixture(scope="session")
def scaled(served, tmp_path_factory):
    """Function: name of a served file -> the same with `FACTORS`, written once."""
    folder = tmp_path_factory.mktemp("scaled")

    def make(name):
        path = folder / f"{name}.pt"
        if not path.exists():
            write_recalibrated(served(name), path, calibration_record(FACTORS), {})
        return path

    return make


def predictions(model, frames, **options):
    graphs = [graph_of(atoms, model.card.cutoff) for atoms in frames]
    # The first calls specialise the program.
    for _ in range(3):
        found = model.predict(graphs, **options)
    return found


def factors_of(name, numbers):
    """What a field is to be multiplied by; None for means, members and what is no multiple."""
    if "_var_" in name:
        return FACTORS.energy_epistemic if "epistemic" in name else FACTORS.energy_aleatoric
    if name == "stress_cov_epistemic":
        return FACTORS.stress_epistemic
    if name.startswith("forces_cov"):
        rows = FACTORS.of_atoms(Atoms(numbers).get_chemical_symbols())
        return torch.tensor(rows["aleatoric" in name]).view(-1, 1, 1)
    if name == "forces_trace_epistemic":
        return torch.tensor(FACTORS.of_atoms(Atoms(numbers).get_chemical_symbols())[0])
    return 1.0 if name == "forces_dof" else None


# --- the function ---


def every_field(n_atoms=2, n_graphs=1, n_samples=3):
    shapes = {
        "energy": (n_graphs,),
        "atomic_energies": (n_atoms,),
        "forces": (n_atoms, 3),
        "stress": (n_graphs, 3, 3),
        "energy_members": (n_samples, n_graphs),
        "forces_members": (n_samples, n_atoms, 3),
        "stress_members": (n_samples, n_graphs, 3, 3),
        **{name: (n_atoms, 3, 3) for name in Prediction._fields if "forces_cov" in name},
        **{name: (n_graphs,) for name in Prediction._fields if name.startswith("energy_var")},
        "stress_cov_epistemic": (n_graphs, 6, 6),
    }
    generator = torch.Generator().manual_seed(0)
    return Prediction(
        **{
            name: torch.rand(shapes.get(name, (n_atoms,)), generator=generator)
            for name in Prediction._fields
        }
    )


def test_factors_of_one_change_no_field_to_the_bit():
    """Every field there is, so that one that is added to `Prediction` cannot be forgotten."""
    prediction = every_field()
    same = VarianceScaling()(torch.tensor([1, 8]), prediction)
    for name, value in prediction._asdict().items():
        assert getattr(same, name) is not None, name
        assert torch.equal(getattr(same, name).to(value.dtype), value), name


def test_unknown_fields_stay_unknown():
    bare = Prediction(*every_field()[:3], *[None] * (len(Prediction._fields) - 3))
    assert VarianceScaling()(torch.tensor([1, 8]), bare)[3:] == bare[3:]


# --- the file ---


# One with members, one with drawn readouts in the short run.
KINDS_AND_DTYPES = [
    pytest.param(name, dtype, marks=[] if name == "small" else pytest.mark.slow)
    for name, dtype in [*((name, "float64") for name in KINDS), ("small", "float32")]
]


@pytest.mark.parametrize(("name", "dtype"), KINDS_AND_DTYPES)
def test_means_are_the_same_to_the_bit_and_variances_multiplied(
    name, dtype, loaded, scaled, strained_co2, cubic_co2
):
    frames = [strained_co2, cubic_co2]
    before = predictions(loaded(name, dtype), frames, stress=True)
    after = predictions(load_model(scaled(name), dtype=dtype), frames, stress=True)
    numbers = np.concatenate([atoms.numbers for atoms in frames])
    for field in Prediction._fields:
        one, other = getattr(before, field), getattr(after, field)
        if one is None:
            assert other is None, field
        elif field in MEANS:
            assert torch.equal(one, other), field
        elif field == "energy_shares":  # they sum to the total variance, as before
            total = (after.energy_var_epistemic, after.energy_var_aleatoric)
            expected = sum(part for part in total if part is not None)
            batch = torch.tensor([0] * len(frames[0]) + [1] * len(frames[1]))
            sums = torch.zeros(2, dtype=torch.float64).index_add(0, batch, other)
            torch.testing.assert_close(sums, expected, rtol=1e-6, atol=0)
        else:
            torch.testing.assert_close(other, one * factors_of(field, numbers), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["small", "laplace_mixture"])
def test_spread_symmetry_and_positivity_after(name, scaled, ethanol, strained_co2):
    model = load_model(scaled(name), dtype="float64")
    check_served_model(model, ethanol, strained_co2)
    if name != "small":  # draws have a known mean in each member, and divide by their number
        return
    found = predictions(model, [ethanol], members=True)
    force = found.forces_members - found.forces
    spread = torch.einsum("sna,snb->nab", force, force) / (len(force) - 1)
    torch.testing.assert_close(spread, found.forces_cov_epistemic, rtol=1e-9, atol=1e-12)
    energy = found.energy_members.var(dim=0, correction=1)
    torch.testing.assert_close(energy, found.energy_var_epistemic, rtol=1e-7, atol=0)


def test_uncalibrated_files_of_today_hold_factors_of_one(served):
    with quiet_torchscript():
        module = torch.jit.load(str(served("small")))
    for buffer in module.variance_scaling.buffers():
        assert torch.equal(buffer, torch.ones_like(buffer))


def test_the_self_test_covers_the_factors(scaled, tmp_path):
    """A file whose buffers are not those of its card is refused."""
    path = scaled("small")
    card = read_card(path)
    with quiet_torchscript():
        module = torch.jit.load(str(path))
    module.variance_scaling.forces[0] *= 1.5
    broken = tmp_path / "broken.pt"
    write_served(module, card, broken)
    with pytest.raises(ValueError, match="forces_cov_epistemic of the probe structure deviates"):
        load_model(broken)


@pytest.mark.slow
def test_calibrations_compose(scaled, loaded, tmp_path, ethanol):
    again = tmp_path / "again.pt"
    card = write_recalibrated(scaled("small"), again, calibration_record(FACTORS), {})
    assert len(card.recalibrations) == 2
    assert total_factors(card) == FACTORS * FACTORS
    before = predictions(loaded("small"), [ethanol])
    after = predictions(load_model(again), [ethanol])
    assert torch.equal(before.forces, after.forces)
    torch.testing.assert_close(after.energy_var_epistemic, 49 * before.energy_var_epistemic)


@pytest.mark.parametrize("name", ["small", "laplace"])
def test_the_program_for_the_compiler_has_the_factors(name, eager, strained_co2, ethanol):
    model = eager(name)
    program = MixtureProgram(list(model.members), model.reference_energies, torch.float64)
    graph = batch_graphs([graph_of(atoms, 4.0) for atoms in (strained_co2, ethanol)])
    inputs = program_inputs(graph, torch.device("cpu"))
    plain = program.prediction(*inputs)
    set_factors(program.variance_scaling, FACTORS)
    found = program.prediction(*inputs)
    for field in Prediction._fields:
        factor = factors_of(field, graph.atomic_numbers.numpy())
        value = getattr(plain, field)
        if value is not None and factor is not None:
            torch.testing.assert_close(getattr(found, field), value * factor, rtol=1e-12, atol=0)
    assert torch.equal(plain.forces, found.forces)


def test_a_card_of_before_has_no_recalibrations(served):
    content = json.loads(read_card(served("small")).to_json())
    del content["recalibrations"]
    assert ModelCard.from_json(json.dumps(content)).recalibrations == []


# --- the command ---


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, data_folder, served):
    """Function: number, noise -> file of frames labelled by an untrained ensemble and noise."""
    folder = tmp_path_factory.mktemp("labels")
    structures = read(data_folder / "ethanol_calib.extxyz", ":120:2")
    calculator = BayesianCalculator(served("small"))
    results = calculator.evaluate(structures)

    def make(name, n=60, change=None):
        generator = np.random.default_rng(5)
        frames = []
        for atoms, result in zip(structures[:n], results, strict=False):
            frame = Atoms(atoms.numbers, atoms.positions)
            root = np.linalg.cholesky(3.0 * result["forces_cov"])
            noise = np.einsum("nij,nj->ni", root, generator.standard_normal((len(atoms), 3)))
            frame.arrays["REF_forces"] = result["forces"] + noise
            error = np.sqrt(3.0 * result["energy_var"]) * generator.standard_normal()
            frame.info["REF_energy"] = result["energy"] + error
            frames.append(frame)
        if change is not None:
            change(frames)
        write(folder / name, frames)
        return folder / name

    return make


def run(*arguments):
    return main(["calibrate", *map(str, arguments)])


def test_from_a_file_to_a_calibrated_file(served, labelled, tmp_path, capsys):
    path, frames = tmp_path / "out.pt", labelled("good.extxyz")
    assert run(served("small"), frames, "-o", path) == 0
    printed = capsys.readouterr()
    assert f"wrote {path}" in printed.out
    assert "coverage_90" in printed.out
    card = read_card(path)
    record = card.recalibrations[-1]
    factor = record["factors"]["forces_epistemic"]["C"]
    assert abs(np.log(factor / 3.0)) < 4 * record["log_errors"]["forces"][0]
    assert record["n_frames"] == 60
    assert record["n_atoms"] == {"H": 360, "C": 120, "O": 60}
    assert len(record["sha256"]) == 64
    assert record["numbers"]["before"]["forces"]["coverage_90"] < 0.6
    assert abs(record["numbers"]["after"]["forces"]["coverage_90"] - 0.9) < 0.08
    assert main(["inspect", str(path)]) == 0
    assert "global, on 60 frames; 90% of forces: " in capsys.readouterr().out
    # Scores for thresholds are those that the new file gives.
    atoms = [frame.atoms for frame in read_frames(str(frames))]
    found = sorted(
        np.sqrt(np.trace(r["forces_cov_epistemic"], axis1=1, axis2=2) / 3).max()
        for r in BayesianCalculator(path).evaluate(atoms)
    )
    np.testing.assert_allclose(card.calibration["scores"]["forces_epistemic_max"], found, rtol=1e-9)
    assert card.calibration["n_frames"] == 60


@pytest.mark.slow
def test_the_same_frames_twice_change_nothing(served, labelled, tmp_path):
    path, frames = tmp_path / "out.pt", read_frames(str(labelled("good.extxyz")))
    first = calibrate_file(served("small"), frames, path)
    with pytest.warns(UserWarning, match="on these frames before"):
        second = calibrate_file(path, frames, path)
    again = second.recalibrations[-1]["factors"]
    assert again["energy_epistemic"] == pytest.approx(1.0, rel=1e-9)
    assert again["forces_aleatoric"]["H"] == pytest.approx(1.0, rel=1e-9)
    assert total_factors(second).energy_epistemic == pytest.approx(
        first.recalibrations[0]["factors"]["energy_epistemic"]
    )


@pytest.mark.slow
def test_every_set_of_a_calibration_is_known_again(served, labelled, tmp_path):
    """Of a split calibration half of the frames fix thresholds; all of them are in the record."""
    path, frames = tmp_path / "out.pt", read_frames(str(labelled("good.extxyz")))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the calibration errors do not fix|with 30 calibration")
        card = calibrate_file(served("small"), frames, path, "split")
    assert card.calibration["n_frames"] == 30
    assert seen_by(read_card(path), frames) == {"calibration": 60, "threshold": 30}
    assert seen_by(read_card(path), frames[10:20]) == {"calibration": 10, "threshold": 5}
    assert seen_by(read_card(path), frames[::-1]) == {"calibration": 60, "threshold": 30}


@pytest.mark.slow
def test_copies_count_once(served, labelled, tmp_path):
    """In factors, levels, thresholds and what is reported."""
    frames = read_frames(str(labelled("good.extxyz")))
    once = calibrate_file(served("small"), frames, tmp_path / "once.pt")
    with pytest.warns(UserWarning, match="25 of 85 frames are copies of others"):
        twice = calibrate_file(served("small"), [*frames, *frames[:25]], tmp_path / "twice.pt")
    one, other = (card.recalibrations[-1] for card in (once, twice))
    assert one["n_frames"] == other["n_frames"] == 60
    for key in ("factors", "conformal", "isotonic", "numbers", "frames"):
        assert one[key] == other[key]
    assert once.calibration["scores"] == twice.calibration["scores"]
    path = tmp_path / "scored.pt"
    path.write_bytes(served("small").read_bytes())
    with pytest.warns(UserWarning, match="25 of 85 frames are copies of others"):
        score_frames(path, [*frames, *frames[:25]])
    thresholds = read_card(path).calibration
    assert thresholds["n_frames"] == len(thresholds["scores"]["forces_epistemic_max"]) == 60


@pytest.mark.slow
def test_own_predictions_are_refused_as_labels(served, labelled, tmp_path, capsys):
    """Through a file, with 8 decimals: the factor would be 1e-19."""
    structures = read(labelled("good.extxyz"), ":")
    predicted = BayesianCalculator(served("small")).evaluate(structures)
    for atoms, result in zip(structures, predicted, strict=True):
        atoms.calc = None
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = result["energy"], result["forces"]
    write(tmp_path / "own.extxyz", structures)
    assert run(served("small"), tmp_path / "own.extxyz", "-o", tmp_path / "out.pt") == 2
    printed = capsys.readouterr().err
    assert "identical with the predictions of this file" in printed
    assert "Give labels of the reference method" in printed
    assert not (tmp_path / "out.pt").exists()


SPREADS = {
    "members": ({"members": 4}, "hotelling", "hotelling"),
    "draws": ({"kind": "laplace", "members": 1, "draws": 5}, "hotelling", "gaussian"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SPREADS)
def test_the_two_commands_judge_one_file_alike(name, serve, labelled, tmp_path, capsys):
    """The record of `calibrate` against `evaluate` of the file before, and of the file after.

    More kinds of error bars, without files, in `tests/unit/calibration/test_one_law.py`.
    """
    spec, *laws = SPREADS[name]
    path, frames = tmp_path / "model.pt", labelled("good.extxyz")
    serve({"loss": "mse", "backbone": "race", "n_layers": 1, **spec}, path)
    assert run(path, frames, "-o", tmp_path / "after.pt") == 0
    record = read_card(tmp_path / "after.pt").recalibrations[-1]
    for model, stage in ((path, "before"), (tmp_path / "after.pt", "after")):
        out = ["--json", str(tmp_path / "out.json"), "--quiet", "--resamples", "40"]
        assert main(["evaluate", str(model), str(frames), *out]) == 0
        content = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
        for quantity, law in zip(("forces", "energy"), laws, strict=True):
            assert content[f"law_{quantity}"] == law
            numbers = record["numbers"][stage][quantity]
            # After, the record is of frames that were left out in turn.
            margin = 1e-6 if stage == "before" else 0.05
            for key in ("coverage_90", "calibration_error"):
                assert numbers[key] == pytest.approx(content[f"{key}_{quantity}"], abs=margin)
            nll = content[f"{quantity}_nll"]
            assert numbers["nll"] == pytest.approx(nll, rel=1e-5 if stage == "before" else 0.2)
    assert "calibration and threshold frames of the model" in capsys.readouterr().err


@pytest.mark.slow
def test_an_early_calibration_keeps_its_law(serve, labelled, tmp_path):
    """Spreads were taken for Gaussian, on spheres, and the factors of the file were fitted so."""
    path, frames = tmp_path / "model.pt", read_frames(str(labelled("good.extxyz")))
    serve({"members": 2, "loss": "mse", "backbone": "race", "n_layers": 1}, path)
    card = write_recalibrated(path, path, {**calibration_record(FACTORS), "shape": "ball"}, {})
    assert origin_of(card) == Origin(spherical=True)
    with pytest.warns(UserWarning, match="start from the file of before"):
        again = calibrate_file(path, frames, path)
    laws = {name: law["name"] for name, law in again.recalibrations[-1]["laws"].items()}
    assert laws == {"forces": "spherical_gaussian", "energy": "gaussian"}
    assert origin_of(read_card(path)) == Origin(spherical=True)


@pytest.mark.slow
def test_a_compiled_program_is_left_out_with_a_warning(served, labelled, tmp_path, serve):
    path = tmp_path / "compiled.pt"
    serve("small", path)
    record = {
        "device": "cpu",
        "dtype": "float64",
        "fields": ["energy"],
        "torch": "0",
        "machine": {"system": "", "machine": ""},
        "digest": "",
        "table_error": 0.0,
        "deviation": {},
    }
    add_compiled(path, record, {"program.pt2": b"old variances"})
    with pytest.warns(UserWarning, match=r"left out of .*compile it again with: bayesmlip compile"):
        card = calibrate_file(path, read_frames(str(labelled("good.extxyz"))), path)
    assert card.compiled == read_card(path).compiled == []
    assert b"old variances" not in path.read_bytes()


def missing_energy(frames):
    del frames[3].info["REF_energy"]


def bad_force(frames):
    frames[3].arrays["REF_forces"][0, 0] = np.nan


def foreign_element(frames):
    frames[3].numbers[0] = 16


@pytest.mark.parametrize(
    ("n", "change", "message"),
    [
        (1, None, "1 calibration frame(s) are too few"),
        (60, missing_energy, "no label 'REF_energy'"),
        (60, bad_force, "'REF_forces' is not finite"),
        (60, foreign_element, "frame 3"),
    ],
)
def test_bad_frames_are_errors_and_write_nothing(
    n, change, message, served, labelled, tmp_path, capsys
):
    out = tmp_path / "folder" / "out.pt"
    name = f"{n}_{getattr(change, '__name__', 'plain')}.extxyz"
    assert run(served("small"), labelled(name, n, change), "-o", out) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("bayesmlip calibrate: ")
    assert message in printed
    assert not out.parent.exists()


@pytest.mark.slow
def test_missing_files_and_files_without_variances(served, labelled, tmp_path, capsys):
    out = tmp_path / "out.pt"
    assert run(served("small"), tmp_path / "no.extxyz", "-o", out) == 2
    assert "no.extxyz" in capsys.readouterr().err
    assert run(tmp_path / "no.pt", labelled("good.extxyz"), "-o", out) == 2
    assert "no model file" in capsys.readouterr().err
    assert run(served("mse"), labelled("good.extxyz"), "-o", out) == 2
    assert "nothing to calibrate" in capsys.readouterr().err
    assert not out.exists()


def test_training_frames_are_refused(served, labelled, tmp_path):
    frames = read_frames(str(labelled("good.extxyz")))
    path = tmp_path / "model.pt"
    path.write_bytes(served("small").read_bytes())
    card = read_card(path)
    replace_card(path, dataclasses.replace(card, training={"train_sha256": sha256(frames)}))
    with pytest.raises(ValueError, match="training frames"):
        calibrate_file(path, frames, path)
    assert read_card(path).recalibrations == []


def test_an_interruption_leaves_the_file_as_it_was(served, labelled, tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    path.write_bytes(served("small").read_bytes())
    content = path.read_bytes()

    def fail(*arguments, **options):
        raise ValueError("fails its self-test")

    monkeypatch.setattr("ase_bayesmlip.serving.calibrate.load_model", fail)
    with pytest.raises(ValueError, match="self-test"):
        calibrate_file(path, read_frames(str(labelled("good.extxyz"))), path)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]
