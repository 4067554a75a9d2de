"""Folders of DeePMD-kit: units and sign of the virial, periodicity, and what is refused."""

import sys

import numpy as np
import pytest

from ase_bayesmlip.structures.labelled import read_frames
from ase_bayesmlip.structures.partly_labelled import read_evaluation_frames
from ase_bayesmlip.structures.reading import DataError

pytest.importorskip("dpdata")

STIFFNESS, REST, BOX = 2.0, 2.2, 8.0
LENGTHS = np.array([2.3, 2.5, 2.1])


def write_springs(folder, dtype=np.float64):
    """Cu-O pairs on a spring along x in a box, two sets; the virial is -∂E/∂strain."""
    (folder / "set.000").mkdir(parents=True)
    (folder / "set.001").mkdir()
    (folder / "type.raw").write_text("1\n0\n")
    (folder / "type_map.raw").write_text("O\nCu\n")
    for name, lengths in (("set.000", LENGTHS[:2]), ("set.001", LENGTHS[2:])):
        n = len(lengths)
        stretch = lengths - REST
        coord, force, virial = np.zeros((n, 6)), np.zeros((n, 6)), np.zeros((n, 9))
        coord[:, 3] = lengths
        force[:, 0], force[:, 3] = STIFFNESS * stretch, -STIFFNESS * stretch
        virial[:, 0] = -STIFFNESS * stretch * lengths
        arrays = {
            "coord": coord,
            "box": np.tile(BOX * np.eye(3).ravel(), (n, 1)),
            "energy": 0.5 * STIFFNESS * stretch**2,
            "force": force,
            "virial": virial,
        }
        for key, values in arrays.items():
            np.save(folder / name / f"{key}.npy", values.astype(dtype))
    return folder


@pytest.mark.parametrize("read", [read_frames, read_evaluation_frames])
def test_energies_forces_and_stress_are_those_of_the_spring(tmp_path, read):
    frames = read(str(write_springs(tmp_path / "springs")))
    assert [frame.source[-9:] for frame in frames] == ["springs#0", "springs#1", "springs#2"]
    for frame, length in zip(frames, LENGTHS, strict=True):
        pull = STIFFNESS * (length - REST)
        assert frame.atoms.get_chemical_symbols() == ["Cu", "O"]
        assert frame.atoms.pbc.all()
        assert frame.energy == pytest.approx(0.5 * STIFFNESS * (length - REST) ** 2)
        np.testing.assert_allclose(frame.forces, [[pull, 0, 0], [-pull, 0, 0]], atol=1e-12)
        # ASE: the slope of the energy in the strain over the volume; tension is positive.
        expected = np.zeros((3, 3))
        expected[0, 0] = pull * length / BOX**3
        np.testing.assert_allclose(frame.stress, expected, atol=1e-12)


def test_slices_patterns_and_single_precision(tmp_path):
    for name in "ab":
        write_springs(tmp_path / name, np.float32)
    frames = read_frames(f"{tmp_path}/*@1:")
    assert [frame.source[-3:] for frame in frames] == ["a#1", "a#2", "b#1", "b#2"]
    assert frames[0].forces.dtype == np.float64
    assert frames[0].energy == pytest.approx(0.5 * STIFFNESS * 0.3**2, rel=1e-6)


def test_nopbc_is_a_molecule(tmp_path):
    folder = write_springs(tmp_path / "a")
    (folder / "nopbc").touch()
    with pytest.raises(DataError, match=r"a#0: 'virial\.npy' is given, but the cell has no volume"):
        read_frames(str(folder))
    for virial in folder.glob("*/virial.npy"):
        virial.unlink()
    frame = read_frames(str(folder))[0]
    assert not frame.atoms.pbc.any()
    assert not frame.atoms.cell.any()
    assert frame.stress is None


def test_text_files_of_the_same_folder(tmp_path):
    folder = write_springs(tmp_path / "a")
    for name in ("coord", "box", "energy", "force", "virial"):
        parts = [np.load(folder / part / f"{name}.npy") for part in ("set.000", "set.001")]
        np.savetxt(folder / f"{name}.raw", np.concatenate(parts))
    expected = read_frames(str(folder))
    for part in ("set.000", "set.001"):
        for file in (folder / part).iterdir():
            file.unlink()
        (folder / part).rmdir()
    for frame, other in zip(read_frames(str(folder)), expected, strict=True):
        assert frame.energy == other.energy
        np.testing.assert_array_equal(frame.stress, other.stress)


def test_frames_without_labels_can_be_evaluated_but_not_trained_on(tmp_path):
    folder = write_springs(tmp_path / "a")
    for part in folder.glob("set.*"):
        (part / "energy.npy").unlink()
    assert read_evaluation_frames(str(folder))[0].energy is None
    with pytest.raises(DataError, match=r"a#0: no label 'energy\.npy'"):
        read_frames(str(folder))


def refused(folder, match):
    with pytest.raises(DataError, match=match):
        read_frames(str(folder))


def test_what_the_folder_does_not_say_is_refused(tmp_path):
    folder = write_springs(tmp_path / "a")
    (folder / "type_map.raw").write_text("O\nOW\n")
    refused(folder, r"type_map\.raw names 'OW', which is no element; write into it")
    (folder / "type_map.raw").write_text("O\n")
    refused(folder, r"a: dpdata cannot read it .*atom_numbs")
    (folder / "type_map.raw").unlink()
    refused(folder, r"type_map\.raw is not there; write into it")
    (folder / "set.000" / "real_atom_types.npy").touch()
    refused(folder, "mixed type, which holds several formulas")
    broken = write_springs(tmp_path / "b")
    np.save(broken / "set.000" / "force.npy", np.zeros((2, 5)))
    refused(broken, "b: dpdata cannot read it")
    (broken / "set.000" / "box.npy").unlink()
    refused(broken, "b: dpdata cannot read it .*box.npy")


def test_without_dpdata_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dpdata", None)
    refused(write_springs(tmp_path / "a"), r'pip install "ase-bayesmlip\[deepmd\]"')
