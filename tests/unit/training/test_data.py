"""What a run keeps of its training data, and which data it refuses."""

import json

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from tiny import tiny_config

from ase_bayesmlip.config import ConfigError
from ase_bayesmlip.structures.reading import DataError
from ase_bayesmlip.training.data import load_training_data


def labelled(atoms, energy, largest_force=0.0, **info):
    atoms.info = {"REF_energy": energy, **info}
    atoms.arrays["REF_forces"] = np.zeros((len(atoms), 3))
    atoms.arrays["REF_forces"][0] = largest_force * np.array([2 / 3, -2 / 3, 1 / 3])
    return atoms


def copper(seed=0, **info):
    atoms = bulk("Cu", cubic=True)
    atoms.positions += 0.1 * np.random.default_rng(seed).normal(size=(4, 3))
    return labelled(atoms, -4.0 + seed, 1.5 + seed, **info)


def load(tmp_path, frames, **data):
    ase.io.write(tmp_path / "train.extxyz", frames)
    path = str(tmp_path / "train.extxyz")
    settings = {"train": path, "valid": path, "reference_energies": {"Cu": 0.5}, **data}
    return load_training_data(tiny_config(data=settings))


def test_limits_are_those_of_the_labels(tmp_path):
    record = load(tmp_path, [copper(0), copper(1), copper(2)]).record()
    limits = json.loads(json.dumps(record))["label_limits"]
    assert limits["force_max"] == pytest.approx(3.5, rel=1e-7)
    assert limits["energy_per_atom"] == pytest.approx([-1.5, -1.0], rel=1e-12)
    assert record["has_lone_atoms"] is False


def test_what_anchors_and_repulsion_need(tmp_path):
    """The shortest distance is that across a cell of 1.7 Å; nothing says how energy is divided."""
    wire = Atoms("CuO", [[0, 0, 0], [0, 0, 2.1]], cell=[9, 9, 1.7], pbc=[False, False, True])
    wire.positions[1, 0] = 1.2
    frames = [labelled(wire, 3.0, 1.0)]
    statistics = load(tmp_path, frames, reference_energies={"Cu": 0.5, "O": 1.5}).statistics
    assert statistics.anchored is True
    across = np.hypot(1.2, 0.4)
    np.testing.assert_allclose(statistics.shortest, [[1.7, across], [across, 1.7]])
    assert statistics.mean_energies == pytest.approx([0.5, 0.5])
    statistics = load(tmp_path, frames, reference_energies="fit").statistics
    assert statistics.anchored is False
    assert statistics.mean_energies == pytest.approx([0.0, 0.0])


@pytest.mark.parametrize("periodic", [False, True])
def test_lone_atoms(tmp_path, periodic):
    """The cutoff is 2.5 Å: copper at 2.55 Å has none of its neighbours, and is alone."""
    lone = Atoms("Cu", cell=[9, 9, 9], pbc=periodic)
    record = load(tmp_path, [labelled(lone, 0.4), copper(0)]).record()
    assert (record["has_lone_atoms"], record["lone_elements"]) == (True, [29])
    assert len(record["probe"]["numbers"]) == 4  # not the single atom
    apart = Atoms("Cu3", [[0, 0, 0], [0, 0, 2.2], [0, 0, 9.0]])
    assert load(tmp_path, [copper(0), labelled(apart, 0.4)]).record()["has_lone_atoms"] is True
    crystal = labelled(bulk("Cu", a=3.4), 0.4)
    record = load(tmp_path, [crystal, copper(0)]).record()
    assert (record["has_lone_atoms"], record["lone_elements"]) == (False, [])


def test_single_atoms_alone_can_be_trained_on(tmp_path):
    crystals = [labelled(bulk("Cu", a=a), 0.1, 0.01) for a in (3.4, 3.5)]
    data = load(tmp_path, crystals)
    assert len(data.record()["probe"]["numbers"]) == 1


@pytest.mark.parametrize("name", ["stress", "virial"])
def test_an_explicit_name_must_be_in_some_frame(tmp_path, name):
    keys = {name: "mine"}
    with pytest.raises(DataError, match=rf"no training frame has.*'mine' .*data\.keys\.{name}"):
        load(tmp_path, [copper(0), copper(1)], keys=keys)
    found = load(tmp_path, [copper(0), copper(1, mine=0.01 * np.eye(3))], keys=keys)
    assert [frame.stress is None for frame in found.train] == [True, False]
    assert found.record()["has_stress"] is True


def test_a_stress_under_the_default_name_is_taken_and_may_be_missing(tmp_path):
    found = load(tmp_path, [copper(0), copper(1, REF_stress=0.01 * np.eye(3))])
    assert [frame.stress is None for frame in found.train] == [True, False]


def test_a_stress_that_is_a_virial_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.keys\.virial: virial"):
        load(tmp_path, [copper(0, virial=np.eye(3))], keys={"stress": "virial"})


def test_virials_train_as_stresses(tmp_path):
    """The same crystals with EMT's stress and with -V times it: the same labels."""
    frames = []
    for seed in range(2):
        atoms = copper(seed)
        atoms.calc = EMT()
        stress, volume = atoms.get_stress(voigt=False), atoms.get_volume()
        atoms.calc = None
        atoms.info |= {"S": stress, "W": -volume * stress}
        frames.append(atoms)
    from_stress = load(tmp_path, frames, keys={"stress": "S"}).train
    from_virial = load(tmp_path, frames, keys={"virial": "W"}).train
    for one, other in zip(from_stress, from_virial, strict=True):
        np.testing.assert_allclose(one.stress, other.stress, rtol=1e-12)


def test_default_references_of_the_shipped_frames_are_as_they_were():
    record = load_training_data(tiny_config()).record()
    assert record["label_limits"]["energy_per_atom"][1] < 0.0  # bound molecules
    assert 0.1 < record["label_limits"]["force_max"] < 20.0
    assert record["has_lone_atoms"] is False
