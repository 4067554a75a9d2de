"""Settings of a calculator, its copies and pickles, and the memory it leaves behind."""

import concurrent.futures
import copy
import gc
import multiprocessing
import pickle
import subprocess
import sys
import weakref

import numpy as np
import pytest
from ase.calculators.calculator import PropertyNotImplementedError
from ase.optimize import BFGS
from spawned import forces

from ase_bayesmlip.calculator import BayesianCalculator
from ase_bayesmlip.serving.archive import replace_card
from ase_bayesmlip.serving.runtime import load_model


@pytest.fixture
def calc(served):
    return BayesianCalculator(served("small"))


# --- set ---


def test_set_changes_what_it_says(calc, ethanol):
    ethanol.calc = calc
    before = ethanol.get_forces()
    assert calc.set(skin=1.0, return_members=True, lazy=True) == {
        "skin": 1.0,
        "return_members": True,
        "lazy": True,
    }
    assert (calc.parameters["skin"], calc.return_members, calc.lazy) == (1.0, True, True)
    assert calc.results == {}
    np.testing.assert_array_equal(ethanol.get_forces(), before)
    assert calc.get_property("forces_ensemble", ethanol).shape == (2, len(ethanol), 3)
    assert calc._neighbors.skin == 1.0


@pytest.mark.slow
def test_set_loads_another_precision(served, calc, ethanol):
    assert calc.set(dtype="float32") == {"dtype": "float32"}
    assert calc.parameters["dtype"] == calc.model.dtype == "float32"
    ethanol.calc = calc
    found = ethanol.get_forces()
    ethanol.calc = BayesianCalculator(served("small"), dtype="float32")
    np.testing.assert_array_equal(found, ethanol.get_forces())
    ethanol.calc = BayesianCalculator(served("small"), dtype="float64")
    assert not np.array_equal(found, ethanol.get_forces())


def test_set_loads_another_file(served, calc):
    calc.set(model=served("race"))
    assert calc.parameters["model"] == str(served("race"))
    assert calc.card.backbone == "race"
    assert calc.parameters["dtype"] == "float64"  # as it was before: a setting of its own


def test_members_can_be_asked_for_and_left_out_again(calc, ethanol):
    with pytest.raises(PropertyNotImplementedError):
        calc.get_property("forces_ensemble", ethanol)
    calc.set(return_members=True)
    assert "forces_ensemble" in calc.implemented_properties
    calc.set(return_members=False)
    assert "forces_ensemble" not in calc.implemented_properties


def test_what_changes_nothing_keeps_the_results(calc, ethanol):
    ethanol.calc = calc
    ethanol.get_forces()
    model = calc.model
    assert calc.set() == calc.set(skin=0.5, dtype="float64", lazy=False) == {}
    assert calc.model is model
    assert "forces" in calc.results


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"devcie": "cpu"}, TypeError, "no setting 'devcie'; did you mean 'device'"),
        ({"return_member": True}, TypeError, "did you mean 'return_members'"),
        ({"q": 1}, TypeError, "there are model, device, dtype, backend, skin"),
        ({"dtype": "float16"}, ValueError, "dtype 'float16' is unknown"),
        ({"backend": "onnx"}, ValueError, "backend 'onnx' is unknown"),
        ({"device": "tpu"}, ValueError, "choose 'cpu'"),
        ({"model": "/no/such/file.pt"}, FileNotFoundError, "no model file"),
        ({"skin": -1.0}, ValueError, "skin"),
        ({"skin": float("nan")}, ValueError, "skin"),
        ({"skin": float("inf")}, ValueError, "skin"),
        ({"skin": "1"}, TypeError, "skin is '1'; it must be a number"),
        ({"skin": None}, TypeError, "skin is None"),
        ({"skin": True}, TypeError, "skin is True"),
        ({"device": 1.5}, ValueError, "choose 'cpu'"),
        ({"lazy": "no"}, TypeError, "lazy is 'no'; it must be True or False"),
        ({"return_members": 2}, TypeError, "return_members is 2"),
    ],
)
def test_what_cannot_be_set_changes_nothing(calc, settings, error, message):
    before, model = dict(calc.parameters), calc.model
    with pytest.raises(error, match=message):
        calc.set(
            skin=settings.get("skin", 0.7), **{k: settings[k] for k in settings if k != "skin"}
        )
    assert calc.parameters == before
    assert calc.model is model
    assert calc._neighbors.skin == 0.5


def test_no_device_is_the_cpu_and_a_loaded_model_is_none_of_a_setting(calc):
    assert calc.set(device=None) == {}
    with pytest.raises(TypeError, match="takes the path of a model"):
        calc.set(model=calc.model)


@pytest.mark.parametrize("settings", [{"skin": float("nan")}, {"lazy": "no"}, {"dtyp": "float64"}])
def test_the_constructor_is_as_strict(served, settings):
    with pytest.raises((TypeError, ValueError)):
        BayesianCalculator(served("small"), **settings)


@pytest.mark.parametrize("name", ["lazy", "return_members", "card"])
def test_settings_are_not_changed_behind_the_parameters(calc, name):
    with pytest.raises(AttributeError):
        setattr(calc, name, True)


# --- Copies and pickles ---


def options(calc):
    return dict(calc.parameters)


def test_a_pickle_gives_the_same_forces(served, ethanol):
    settings = {"dtype": "float32", "skin": 0.8, "return_members": True, "lazy": True}
    calc = BayesianCalculator(served("small"), backend="torchscript", **settings)
    ethanol.calc = calc
    expected = ethanol.get_forces()
    other = pickle.loads(pickle.dumps(calc))
    assert options(other) == options(calc)
    assert other.implemented_properties == calc.implemented_properties
    assert other.results.keys() == calc.results.keys()
    atoms = ethanol.copy()
    atoms.calc = other
    np.testing.assert_array_equal(atoms.get_forces(), expected)
    other.reset()
    np.testing.assert_array_equal(atoms.get_forces(), expected)


def test_a_pickle_is_small_and_holds_no_weights(served, calc):
    assert len(pickle.dumps(calc)) < 10_000 < served("small").stat().st_size


def test_copies_share_the_model_and_nothing_that_changes(calc, ethanol):
    ethanol.calc = calc
    expected = ethanol.get_forces()
    other = copy.deepcopy(calc)
    assert other.model is calc.model
    other.set(skin=2.0)
    atoms = ethanol.copy()
    atoms.positions += 0.1 * np.arange(len(atoms))[:, None]
    atoms.calc = other
    atoms.get_forces()
    assert calc.parameters["skin"] == calc._neighbors.skin == 0.5
    np.testing.assert_array_equal(calc.results["forces"], expected)


def test_atoms_that_carry_a_calculator_are_copied_and_pickled(calc, ethanol):
    ethanol.calc = calc
    expected = ethanol.get_forces()
    for other in (copy.deepcopy(ethanol), pickle.loads(pickle.dumps(ethanol))):
        np.testing.assert_array_equal(other.get_forces(), expected)
        other.rattle(0.01)
        assert not np.array_equal(other.get_forces(), expected)


def test_a_calculator_of_a_loaded_model_travels_by_its_path(served, ethanol, tmp_path, monkeypatch):
    monkeypatch.chdir(served("small").parent)
    calc = BayesianCalculator(load_model("small.pt", dtype="float64"))
    content = pickle.dumps(calc)
    monkeypatch.chdir(tmp_path)
    other = pickle.loads(content)
    assert other.parameters["model"] == str(served("small"))
    for atoms in (ethanol, ethanol.copy()):
        atoms.calc = other if atoms is ethanol else calc
    np.testing.assert_array_equal(ethanol.get_forces(), atoms.get_forces())


def test_a_file_that_is_gone_or_changed_is_named(served, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(served("small").read_bytes())
    calc = BayesianCalculator(path)
    content = pickle.dumps(calc)
    card = calc.card
    replace_card(path, type(card)(**{**vars(card), "created": "later"}))
    with pytest.raises(ValueError, match=r"model\.pt has changed since the calculator was pickled"):
        pickle.loads(content)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.pt, from which a pickled calculator"):
        pickle.loads(content)


@pytest.mark.slow
def test_processes_take_calculators(calc, ethanol):
    """As `matcalc.calc_many(n_jobs=2)` and all that hands atoms to other processes."""
    ethanol.calc = calc
    frames = [ethanol.copy() for _ in range(2)]
    for number, atoms in enumerate(frames):
        atoms.rattle(0.02, seed=number)
        atoms.calc = calc
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        found = list(pool.map(forces, frames))
    for atoms, there in zip(frames, found, strict=True):
        np.testing.assert_array_equal(there, atoms.get_forces())


# --- Memory ---


def test_a_calculator_and_its_model_go_when_they_are_dropped(served, ethanol):
    gc.collect()
    gc.disable()
    try:
        calc = BayesianCalculator(served("small"))
        ethanol.calc = calc
        BFGS(ethanol, logfile=None).run(steps=1)
        seen = [weakref.ref(calc), weakref.ref(calc.model), weakref.ref(calc._neighbors)]
        ethanol.calc = None
        del calc
        assert [reference() for reference in seen] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of the process from /proc")
def test_memory_is_flat_over_many_calculators(data_folder):
    """The shipped file, made, evaluated and dropped: without the cycle collector, too."""
    code = """
import gc, os, sys
import ase.io
from ase_bayesmlip.calculator import BayesianCalculator
gc.disable()
atoms = ase.io.read(sys.argv[1] + "/ethanol_test.extxyz", 0)
for _ in range(4):
    atoms.calc = BayesianCalculator(sys.argv[1] + "/ethanol_ensemble.pt")
    atoms.get_forces()
    atoms.calc = None
    with open("/proc/self/statm") as file:
        print(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(data_folder)], capture_output=True, text=True, check=True
    )
    sizes = [float(line) for line in done.stdout.split()]
    assert sizes[-1] - sizes[0] < 50.0, sizes
