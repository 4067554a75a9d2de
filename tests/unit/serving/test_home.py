"""The frames of a run: which of them are read again, and when they are refused."""

import shutil

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.md.verlet import VelocityVerlet
from tiny import CONTENT, tiny_config

from ase_bayesmlip import BayesianCalculator, UncertaintyMonitor
from ase_bayesmlip.md import UncertaintyWarning
from ase_bayesmlip.serving.home import evenly, load_home
from ase_bayesmlip.structures.labelled import LabelledFrame
from ase_bayesmlip.structures.reading import DataError
from ase_bayesmlip.training.data import load_training_data


def frames_of(*formulas):
    return [
        LabelledFrame(Atoms(formula), 0.0, np.zeros((3, 3)), None, str(index))
        for index, formula in enumerate(formulas)
    ]


def test_home_is_the_frames_of_the_run_in_float64():
    config = tiny_config(training={"dtype": "float32"})
    data = load_training_data(config)
    home = load_home(config, data.record())
    assert (len(home.train), len(home.valid)) == (7, 3)
    assert home.compositions.tolist() == [[6, 2, 1]]
    _, labels = home.valid.items[1]
    assert torch.equal(labels.forces, torch.tensor(data.valid[1].forces))
    assert home.record() == {"n_train": 7, "n_valid": 3}


def test_energies_are_relative_to_those_that_the_run_was_trained_with():
    config = tiny_config()
    data = load_training_data(config)
    record = data.record()
    record["statistics"]["reference_energies"] = [0.0, 0.0, 0.0]
    _, labels = load_home(config, record).train.items[0]
    assert labels.energy == data.train[0].energy


@pytest.mark.parametrize(("max_atoms", "chosen"), [(1000, 10), (30, 10), (15, 5), (6, 2), (1, 1)])
def test_a_part_of_a_large_set_is_even(max_atoms, chosen):
    frames = frames_of(*["OH2"] * 10)
    found = [int(frame.source) for frame in evenly(frames, max_atoms)]
    steps = np.diff(found)
    assert len(found) == chosen
    assert chosen < 2 or (steps.max() - steps.min() <= 1 and found[0] == 0 and found[-1] == 9)


def test_a_part_lacks_no_element():
    frames = frames_of("OH2", "OH2", "HCN", "HCN", "OH2", "NOH", "SO2", "OH2")
    assert [frame.source for frame in evenly(frames, 6)] == ["0", "2", "6", "7"]


def test_frames_that_changed_are_refused(tmp_path):
    source = CONTENT["data"]["train"].split("@")[0]
    path = shutil.copy(source, tmp_path / "train.extxyz")
    config = tiny_config(data={"train": f"{path}@0:7"})
    record = load_training_data(config).record()
    with pytest.raises(ValueError, match="train frames have changed"):
        load_home(tiny_config(data={"train": f"{path}@0:6"}), record)
    path.unlink()
    with pytest.raises((DataError, FileNotFoundError), match=r"train\.extxyz"):
        load_home(config, record)


@pytest.fixture(scope="module")
def known(serve, tmp_path_factory):
    """A single potential that was served with frames at home."""
    path = tmp_path_factory.mktemp("home") / "point.pt"
    config = tiny_config(model={"cutoff": 4.0})
    data = load_training_data(config)
    serve("point", path, home=load_home(config, data.record()))
    return BayesianCalculator(path), data


def test_a_single_potential_knows_how_far_an_atom_is_from_home(known):
    calculator, data = known
    atoms = data.valid[0].atoms.copy()
    at_home = calculator.evaluate([atoms])[0]["feature_distances"]
    atoms.positions[0] *= 1.3
    away = calculator.evaluate([atoms])[0]["feature_distances"]
    assert at_home.shape == (len(atoms),)
    assert 0.0 < at_home.max() < away.max()
    assert "feature_distances" in calculator.implemented_properties


def test_its_distance_is_the_default_score_of_a_file_without_another_detector(known, served):
    calculator, data = known
    assert calculator.card.default_score == "feature_distance_max"
    assert BayesianCalculator(served("ensemble")).card.default_score == "forces_epistemic_max"
    atoms = data.valid[0].atoms.copy()
    atoms.calc = calculator
    monitor = UncertaintyMonitor(VelocityVerlet(atoms, 1.0), threshold=0.5)
    assert monitor.score_name == "feature_distance_max"
    with pytest.warns(UncertaintyWarning, match="feature_distance_max does"):
        UncertaintyMonitor(VelocityVerlet(atoms, 1.0), score="energy_var", threshold=0.5)


def test_distances_turn_with_nothing(known):
    calculator, data = known
    atoms = data.valid[0].atoms.copy()
    expected = calculator.evaluate([atoms])[0]["feature_distances"]
    atoms.rotate(50, (1, 2, 3))
    found = calculator.evaluate([atoms])[0]["feature_distances"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
