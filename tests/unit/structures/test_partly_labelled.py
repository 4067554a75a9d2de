"""Frames with all, some or none of their labels."""

import subprocess
import sys

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from ase_bayesmlip.config import KeysConfig
from ase_bayesmlip.evaluation import read_evaluation_frames
from ase_bayesmlip.structures.labelled import read_frames
from ase_bayesmlip.structures.partly_labelled import (
    check_labels,
    frames_of_known_elements,
    label_notes,
)
from ase_bayesmlip.structures.reading import DataError


def water(energy=-14.0, forces=True, symbols="OH2", **info):
    atoms = Atoms(symbols, [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    atoms.info.update(info)
    if energy is not None:
        atoms.info["REF_energy"] = energy
    if forces:
        atoms.arrays["REF_forces"] = 0.1 * np.arange(9.0).reshape(3, 3)
    return atoms


@pytest.fixture
def file(tmp_path):
    def make(*frames):
        path = tmp_path / "frames.extxyz"
        write(path, list(frames))
        return str(path)

    return make


def test_complete_frames_are_those_of_a_training(data_folder):
    path = f"{data_folder / 'ethanol_test.extxyz'}@3:7"
    found, expected = read_evaluation_frames(path), read_frames(path)
    assert len(found) == 4
    for frame, other in zip(found, expected, strict=True):
        assert frame.energy == other.energy
        np.testing.assert_array_equal(frame.forces, other.forces)
        assert frame.atoms == other.atoms
        assert frame.source == other.source
        assert frame.config_type == "ethanol_300K"
    assert label_notes(found) == []


def test_missing_labels_are_none_and_named(file):
    path = file(water(), water(forces=False, config_type="scan"), water(energy=None))
    frames = read_evaluation_frames(path)
    assert [frame.energy for frame in frames] == [-14.0, -14.0, None]
    assert [frame.forces is None for frame in frames] == [False, True, False]
    assert [frame.config_type for frame in frames] == ["", "scan", ""]
    energy, forces = label_notes(frames)
    assert "1 of 3 frames lack the label 'REF_energy'" in energy
    assert "frames.extxyz#2" in energy
    assert "1 of 3 frames lack the label 'REF_forces'" in forces
    assert "frames.extxyz#1" in forces
    check_labels(frames, path)


def test_a_file_of_energies_alone(file):
    path = file(water(forces=False), water(forces=False))
    frames = read_evaluation_frames(path)
    assert label_notes(frames) == [
        "no frame has the label 'REF_forces': every number on force errors is left out"
    ]


def test_a_file_without_labels_tests_nothing(file):
    path = file(water(None, False))
    with pytest.raises(
        DataError, match=r"none of the 1 frames has the label 'REF_energy'.*--energy"
    ):
        check_labels(read_evaluation_frames(path), path)


def test_labels_of_a_calculator_and_of_another_name(file):
    atoms = water(None, False)
    atoms.calc = SinglePointCalculator(atoms, energy=-3.0, forces=np.ones((3, 3)))
    path = file(atoms)
    (frame,) = read_evaluation_frames(path, KeysConfig(energy="energy", forces="forces"))
    assert frame.energy == -3.0
    np.testing.assert_array_equal(frame.forces, np.ones((3, 3)))
    assert frame.atoms.calc is None
    assert read_evaluation_frames(path)[0].energy is None


@pytest.mark.parametrize("forces", [True, False])
def test_labels_that_are_no_numbers_are_refused(file, forces):
    with pytest.raises(DataError, match=r"frames.extxyz#1: 'REF_energy' is nan"):
        read_evaluation_frames(file(water(), water(energy=np.nan, forces=forces)))
    bad = water(energy=None)
    bad.arrays["REF_forces"][1, 2] = np.inf
    with pytest.raises(DataError, match=r"frames.extxyz#0: 'REF_forces' is not finite"):
        read_evaluation_frames(file(bad))


def test_no_frames(file, tmp_path):
    with pytest.raises(DataError, match=r"no frames in .*nothing can be evaluated"):
        read_evaluation_frames(file(Atoms("O", info={"config_type": "IsolatedAtom"})))
    with pytest.raises(DataError, match="no frames"):
        read_evaluation_frames(file(water()) + "@5:")
    with pytest.raises(FileNotFoundError, match="no data file"):
        read_evaluation_frames(str(tmp_path / "none.extxyz"))


def test_npz(tmp_path):
    path = tmp_path / "md17.npz"
    np.savez(
        path,
        z=[8, 1, 1],
        R=np.stack([water().positions] * 2),
        E=[-1.0, -2.0],
        F=np.zeros((2, 3, 3)),
    )
    frames = read_evaluation_frames(str(path))
    assert [frame.energy for frame in frames] == pytest.approx([-0.0433641, -0.0867282], rel=1e-5)


def test_frames_of_unknown_elements_are_left_out_and_counted(file):
    path = file(water(), water(symbols="SH2"), water(symbols="SHF"))
    frames = read_evaluation_frames(path)
    kept, (note,) = frames_of_known_elements(frames, [1, 8], path)
    assert [frame.source for frame in kept] == [frames[0].source]
    assert "2 of 3 frames" in note
    assert "F (in 1 frames), S (in 2 frames)" in note
    assert "trained on H, O" in note
    assert frames_of_known_elements(kept, [1, 8], path) == (kept, [])
    with pytest.raises(DataError, match=r"every frame holds an element .*: O"):
        frames_of_known_elements(kept, [1, 6], path)


def test_evaluations_need_no_torch():
    """Other calculators, in environments of their own, go through the same code."""
    code = "import sys, ase_bayesmlip.evaluation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
