"""Edited cards: each is refused by the name of the field, or as good as the one written."""

import copy
import json
import zipfile

import numpy as np
import pytest
from calibrated import FACTORS, calibration_record

from ase_bayesmlip.card import ModelCard, read_card
from ase_bayesmlip.cli.inspect import describe
from ase_bayesmlip.cli.main import main
from ase_bayesmlip.serving.runtime import load_model

COMPILED = {
    "device": "cpu",
    "dtype": "float32",
    "fields": ["energy", "forces"],
    "lean_fields": [],
    "digest": "0123",
    "interface": 1,
    "torch": "2.13.0",
    "machine": {"system": "Linux", "machine": "x86_64", "instructions": ["avx2"]},
    "table_error": 1e-9,
    "deviation": {"energy": 1e-7},
    "seconds": 100.0,
    "sha256": {"program.pt2": "0" * 64},
}
LIMITS = {"force_max": 5.0, "energy_per_atom": [-4.0, -3.0]}

# None of them is right anywhere, or where one is, it is as good as what stood there.
WRONG = [None, True, -1, 2**70, 10**400, -0.5, float("nan"), float("inf"), "", "x", [], ["a"]]
WRONG += [[1], [[1, 2]], {}, {"a": 1}, {"x": {"y": [None]}}, "DELETED"]


@pytest.fixture(scope="module")
def content(served):
    """A card with every kind of record in it, as JSON."""
    card = json.loads(read_card(served("small")).to_json())
    card["calibration"] = {"n_frames": 3, "sha256": "2" * 64, "scores": {"forces_std_max": [0.1]}}
    series = {"scores": {"forces_std_max": [0.1]}, "trajectory": [0], "n_atoms": [9]}
    card["calibration"]["series"] = series
    card["recalibrations"] = [calibration_record(FACTORS)]
    card["compiled"] = [COMPILED]
    card["training"] |= {"has_lone_atoms": False, "label_limits": LIMITS}
    return card


def paths(value, path=()):
    """Where everything in nested data is; two items of each list."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:2])
    for key, item in items:
        if isinstance(item, dict | list):
            yield from paths(item, (*path, key))
        else:
            yield (*path, key)


def edited(content, path, value):
    changed = copy.deepcopy(content)
    place = changed
    for key in path[:-1]:
        place = place[key]
    if value == "DELETED":
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return changed


def error_of(function):
    """What a `ValueError` of a call says; None if it succeeds. Other errors are bugs."""
    try:
        function()
    except ValueError as error:
        return str(error)
    return None


def put_card(source, target, content):
    """A served file whose card is replaced by anything."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            is_card = name.endswith("model_card.json")
            new.writestr(name, json.dumps(content) if is_card else old.read(name))
    return target


def test_the_card_itself_is_accepted(content):
    card = ModelCard.from_json(json.dumps(content))
    assert json.loads(card.to_json()) == content
    assert "compiled" not in describe(card)["posterior"]


def test_every_field_edited_to_every_wrong_value(content):
    """Thousands of cards: a `ValueError` that names the file, or a card that can be described."""
    refused = accepted = 0
    for path in paths(content):
        for value in WRONG:
            text = json.dumps(edited(content, path, value))
            said = error_of(lambda text=text: describe(ModelCard.from_json(text, "file.pt")))
            assert said is None or "file.pt" in said, (path, value)
            refused, accepted = refused + (said is not None), accepted + (said is None)
    assert refused > 1000
    assert accepted > 0


@pytest.mark.slow
@pytest.mark.slow
def test_files_with_edited_cards_load_or_say_why(served, tmp_path):
    """Those that a card alone cannot refuse meet the program and its self-test."""
    content = json.loads(read_card(served("small")).to_json())
    generator = np.random.default_rng(7)
    seen = set()
    for value in 3 * WRONG:
        field = generator.choice(list(content))  # the numbers of the probe are most of the paths
        places = [path for path in paths(content) if path[0] == field]
        path = places[generator.integers(len(places))]
        file = put_card(served("small"), tmp_path / "model.pt", edited(content, path, value))
        said = error_of(lambda file=file: load_model(file))
        assert said is None or "model.pt" in said, (path, value)
        seen.add(said is None)
    assert seen == {False, True}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("cutoff",), 0.0, "'cutoff' is 0.0; it must be a finite number above 0"),
        (("cutoff",), 3.9, "'cutoff' is 3.9; it must be that of config.model, 4.0"),
        (("n_members",), 0, "'n_members' is 0; it must be an integer from 1"),
        (("n_draws",), -1, "'n_draws' is -1"),
        (("dtype",), "float16", "'dtype' is 'float16'; it must be float32 or float64"),
        (("units", "energy"), "Ha", "'units.energy' is 'Ha'; it must be eV"),
        (("atomic_numbers",), [1, 6, 6], "'atomic_numbers' is .* each of them once"),
        (("atomic_numbers",), [1, 6, 119], r"'atomic_numbers\[2\]' is 119"),
        (("reference_energies", "H"), None, r"'reference_energies\.H' is None"),
        (("reference_energies",), {"H": 0.0}, "'reference_energies' is .* a number for each of H"),
        (("probe", "numbers"), [7] * 9, r"'probe\.numbers' is \[7\]; it must be elements of the"),
        (("probe", "positions", 0), [0.0, 0.0], r"'probe\.positions\[0\]'"),
        (("probe", "pbc"), [True] * 4, r"'probe\.pbc'"),
        (("probe", "expected", "energy"), "DELETED", r"'probe\.expected\.energy' .* be there"),
        (("probe", "expected", "charges"), [0.0], r"'probe\.expected'"),
        (("ddof",), 0, "'ddof' is 0; it must be 1"),
        (("recalibrations", 0, "factors", "energy_epistemic"), -1.0, "factors.energy_epistemic"),
        (("recalibrations", 0, "factors", "forces_epistemic"), {"H": 1.0}, "forces_epistemic"),
        (("compiled", 0, "sha256", "program.pt2"), "0" * 63, "64 hexadecimal digits"),
        (("compiled",), [COMPILED, COMPILED], "one program for each device and dtype"),
        (("calibration", "scores", "forces_std_max"), [float("nan")], r"forces_std_max\[0\]'"),
        (("calibration", "series", "trajectory"), [0, 0], "series.n_atoms' is .* each frame"),
        (("calibration", "series", "n_atoms"), [0], "integer from 1"),
    ],
)
def test_the_message_names_field_value_and_what_is_allowed(content, path, value, message):
    with pytest.raises(ValueError, match=rf"file\.pt: in the model card {message}|{message}"):
        ModelCard.from_json(json.dumps(edited(content, path, value)), source="file.pt")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("n_members", 3, "the card says n_members 3, the program has 2"),
        ("n_draws", 4, r"the card says n_draws \{4\}, the program has \{0\}"),
        ("reference_energies", {"H": 0.0, "C": 0.0, "O": 0.0}, "the card says reference_energies"),
        ("has_epistemic", False, "the card says has_epistemic False, the program does the opp"),
        ("has_aleatoric_energy", False, "has_aleatoric_energy False"),
        ("has_aleatoric_forces", False, "has_aleatoric_forces False"),
    ],
)
def test_a_card_of_another_program_is_refused(served, tmp_path, field, value, message):
    content = json.loads(read_card(served("small")).to_json())
    path = put_card(served("small"), tmp_path / "model.pt", content | {field: value})
    with pytest.raises(ValueError, match=message):
        load_model(path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format_version": 1' + "0" * 5000 + "}", "\\u"])
def test_json_that_python_cannot_read(text):
    with pytest.raises(ValueError, match=r"file\.pt"):
        ModelCard.from_json(text, source="file.pt")


def test_inspect_says_it_in_one_line(served, tmp_path, capsys):
    content = json.loads(read_card(served("small")).to_json()) | {"cutoff": "five"}
    assert main(["inspect", str(put_card(served("small"), tmp_path / "model.pt", content))]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "'cutoff' is 'five'" in printed.err
