"""Every public name is on a page of the reference; tables of benchmarks are what scripts print."""

import importlib
import inspect
import json
import pkgutil
import re
from pathlib import Path

import ase.io
import numpy as np
import pytest

import ase_bayesmlip
from ase_bayesmlip import BayesianCalculator

API = Path(__file__).parents[2] / "docs" / "api"
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in sorted(API.glob("*.md")))
MODULES = [
    importlib.import_module(found.name)
    for found in pkgutil.walk_packages(ase_bayesmlip.__path__, "ase_bayesmlip.")
    if not found.name.startswith("ase_bayesmlip.data")
]


def found_by_name(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def names_of(module):
    """What autodoc takes of a module: its `__all__`, or else what is defined there."""
    if hasattr(module, "__all__"):
        return module.__all__
    own = (name for name in vars(module) if not name.startswith("_"))
    return [n for n in own if getattr(getattr(module, n), "__module__", "") == module.__name__]


def documented():
    objects = [
        found_by_name(path) for path in re.findall(r"auto(?:class|function|exception):: (.*)", TEXT)
    ]
    for path, options in re.findall(r"automodule:: (.*)\n((?:   :.*\n)*)", TEXT):
        module = importlib.import_module(path)
        assert ":members:" in options
        left_out = re.findall(r"\w+", options.partition(":exclude-members:")[2])
        assert set(left_out) <= set(names_of(module)), f"{path}: {left_out}"
        objects += [getattr(module, name) for name in names_of(module) if name not in left_out]
    return [item for item in objects if inspect.isclass(item) or inspect.isroutine(item)]


def test_every_public_name_is_on_a_page():
    shown = documented()
    missing = [
        f"{module.__name__}.{name}"
        for module in [ase_bayesmlip, *MODULES]
        for name in getattr(module, "__all__", [])
        if not is_shown(getattr(module, name), name, shown)
    ]
    assert not missing


def is_shown(item, name, shown):
    if inspect.isclass(item) or inspect.isroutine(item):
        return any(item is other for other in shown)
    return name == "__version__" or f"`{name}`" in TEXT


def test_what_is_on_a_page_has_a_docstring():
    assert [item for item in documented() if not inspect.getdoc(item)] == []


@pytest.mark.slow
def test_measured_sigma_of_a_difference():
    data = API.parents[1] / "data"
    calc = BayesianCalculator(data / "ethanol_ensemble.pt", return_members=True)
    energies, variances, of_atoms = [], [], []
    for atoms in ase.io.read(data / "ethanol_test.extxyz", index=":40"):
        calc.calculate(atoms)
        results = calc.results
        energies.append(results["energy_ensemble"])
        variances.append(results["energy_var_epistemic"])
        of_atoms.append(results["energies_var_epistemic"].sum())
    pairs = np.triu_indices(40, k=1)
    members = np.array(energies)
    differences = (members[:, None] - members[None])[pairs].var(axis=1, ddof=1)
    sums = np.add.outer(variances, variances)[pairs]
    found = [1e3 * np.sqrt(np.mean(v)) for v in (differences, sums, of_atoms, variances)]
    assert [f"{meV:.1f}" for meV in found[:2]] == ["1.3", "1.9"]
    assert f"{found[2]:.0f}" == "671"
    assert f"{found[3]:.1f}" == "1.4"
    page = (API.parent / "reading-the-numbers.md").read_text(encoding="utf-8")
    assert all(number in page for number in ("1.3 meV", "1.9 meV", "671 meV", "1.4 meV"))


def test_files_that_pages_name_exist():
    root = API.parents[1]
    places = [root, root / "ase_bayesmlip", root / "examples" / "benchmarks"]
    pages = [root / "CONTRIBUTING.md", *sorted(API.parent.glob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    named = set(re.findall(r"`([\w/]+\.py|[\w/]+/)`", text))
    assert len(named) > 40
    assert [name for name in named if not any((place / name).exists() for place in places)] == []


BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"
PAGE = (API.parent / "benchmarks.md").read_text(encoding="utf-8")


def results(name):
    text = (BENCHMARKS / "results" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if "jsonl" in name else json.loads(text)


def row(*cells):
    return "| " + " | ".join(map(str, cells)) + " |"


def test_tables_of_the_two_studies_are_those_of_their_numbers(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    evidential = importlib.import_module("evidential")
    calibration = importlib.import_module("calibration_rows")
    for dataset in results("evidential.json")["datasets"].values():
        assert evidential.table(dataset["rows"], evidential.ROWS) in PAGE
    for dataset in results("calibration.json")["datasets"].values():
        assert calibration.table(dataset) in PAGE


def test_tables_of_shifts_and_claims_are_those_of_their_numbers(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    claims, ood_pages = (importlib.import_module(name) for name in ("claims", "ood_pages"))
    assert ood_pages.table(results("ood_pages.json")["datasets"]) in PAGE
    lines = results("claims.jsonl")
    for part, dataset in {(line["part"], line["dataset"]) for line in lines}:
        assert claims.table(lines, part, dataset) in PAGE


def test_table_of_posteriors_is_that_of_its_numbers(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    posteriors = importlib.import_module("posteriors")
    for entry in results("posteriors.json")["rows"]:
        assert posteriors.row(entry) in PAGE


def test_other_tables_are_those_of_their_numbers():
    boxes = [r for r in results("scaling.jsonl") if "backend" in r]
    cells = {
        (
            r["n_atoms"],
            r["backend"],
            r["members"],
        ): f"{r['median_ms']:.0f} ({r['KiB_per_atom']:.0f})"
        for r in boxes
    }
    for n in {r["n_atoms"] for r in boxes}:
        three = [cells[n, *case] for case in (("aoti", 1), ("aoti", 8), ("torchscript", 1))]
        assert row(f"{n:,}", *three) in PAGE
    for r in results("alarm.json"):
        alarms = ", ".join(map(str, r["frames_to_alarm"])) or "–"
        share = f"{r['fraction_above_99_percent']:.1%}"
        head = (f"{r['temperature_K']:.0f} K", f"{r['n_frames']:,}", r["n_alarms"])
        assert row(*head, alarms, share) in PAGE
    for r in results("aggregation.jsonl"):
        assert row(f"{r['n_edges']:,}", *(f"{ms:.2f}" for ms in r["ms"].values())) in PAGE
    times = {
        (r["system"], r["members"], r["kernels"]): r["median_ms"]
        for r in results("step_time_without_kernels.jsonl")
    }
    titles = {"3bpa": "3BPA, 27 atoms", "water_192": "water, 192 atoms"}
    for system, members, kernels in times:
        if kernels:
            both = [times[system, members, which] for which in (True, False)]
            title = f"{titles[system]}, {members} member{'s' * (members > 1)}"
            cells = [f"{ms:.3g}" for ms in both]
            assert row(title, *cells, f"{both[1] / both[0]:.1f}") in PAGE
    steps = results("profile_step.jsonl")
    assert row("network", *(f"{r['median_ms']['network']:.2f}" for r in steps)) in PAGE
    one = [r for r in results("training_throughput.jsonl") if r["torch_threads"] == 1]
    for r in one:
        assert f"{r['ms_per_structure']:.1f}" in PAGE
