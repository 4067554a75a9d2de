"""Slices, patterns, folders, frame numbers; compressed, unreadable and other programs' files."""

import gzip
import importlib.util
import lzma
import warnings
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from labelled_files import labelled, write, write_npz

from ase_bayesmlip.config import KeysConfig
from ase_bayesmlip.structures.labelled import read_frames
from ase_bayesmlip.structures.partly_labelled import read_evaluation_frames
from ase_bayesmlip.structures.reading import DataError, data_files, in_words, split_slice

ROOT = Path(__file__).parents[3]
DATA = ROOT / "data"
COMPUTED = KeysConfig("free_energy", "forces", "stress")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("", [0, 1, 2, 3, 4, 5]),
        ("@:", [0, 1, 2, 3, 4, 5]),
        ("@0:450", [0, 1, 2, 3, 4, 5]),
        ("@1:3", [1, 2]),
        ("@::2", [0, 2, 4]),
        ("@-2:", [4, 5]),
        ("@5", [5]),
        ("@-1", [5]),
        ("@-2", [4]),
        ("@4:1:-1", [4, 3, 2]),
    ],
)
@pytest.mark.parametrize("kind", ["extxyz", "npz"])
def test_slices_and_the_frame_numbers_they_report(tmp_path, kind, text, numbers):
    path = tmp_path / f"a.{kind}"
    if kind == "npz":
        energies = np.arange(6.0)
        write_npz(path, "rMD17", 6, energies=energies)
        frames = read_frames(f"{path}{text}", npz_units="eV")
    else:
        structures = [labelled(k) for k in range(6)]
        for k, atoms in enumerate(structures):
            atoms.info["REF_energy"] = float(k)
        frames = read_frames(f"{write(path, structures)}{text}")
    assert [frame.energy for frame in frames] == numbers
    if (kind, text) == ("extxyz", "@-1"):
        numbers = [-1]  # the frames before it are not counted
    assert [frame.source for frame in frames] == [f"{path}#{number}" for number in numbers]


def test_path_that_contains_an_at_sign(tmp_path):
    path = tmp_path / "run@300K.extxyz"
    write(path, [labelled()])
    assert split_slice(str(path)) == (path, slice(None))
    assert len(read_frames(str(path))) == 1
    assert split_slice(f"{path}@0:1") == (path, slice(0, 1))


@pytest.mark.parametrize("text", ["x", "0-3", "1.5", "1:2:3:4", "0:a"])
def test_text_that_is_no_slice(tmp_path, text):
    with pytest.raises(DataError, match="is no slice such as 0:450 or ::2"):
        read_frames(f"{write(tmp_path / 'a.extxyz', labelled())}@{text}")


def test_file_that_does_not_exist(tmp_path):
    for name in ("absent.extxyz", "absent.npz", "absent.extxyz@0:3"):
        with pytest.raises(FileNotFoundError, match="no data file at"):
            read_frames(str(tmp_path / name))


@pytest.mark.parametrize("content", ["3\nProperties=species:S:1:pos:R:3\nH 0 0 0\n", "", "x\ny\n"])
def test_file_that_ase_cannot_read(tmp_path, content):
    path = tmp_path / "a.extxyz"
    path.write_text(content)
    with pytest.raises(DataError, match=r"a\.extxyz"):
        read_frames(str(path))


@pytest.mark.parametrize(("suffix", "opened"), [("gz", gzip.open), ("xz", lzma.open)])
def test_compressed_files_are_read_as_plain_ones(tmp_path, suffix, opened):
    source = DATA / "ethanol_valid.extxyz"
    path = tmp_path / f"frames.extxyz.{suffix}"
    with opened(path, "wb") as file:
        file.write(source.read_bytes())
    found, expected = read_frames(f"{path}@2:5"), read_frames(f"{source}@2:5")
    assert [frame.energy for frame in found] == [frame.energy for frame in expected]
    assert [frame.source for frame in found] == [f"{path}#{number}" for number in (2, 3, 4)]


def test_a_compressed_file_cut_short_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "frames.extxyz.xz"
    path.write_bytes(lzma.compress((DATA / "ethanol_valid.extxyz").read_bytes())[:1000])
    with pytest.raises(DataError, match=r"frames\.extxyz\.xz: ASE cannot read it"):
        read_frames(str(path))


def foreign_files():
    """The writers of the tutorial on one's own data."""
    path = ROOT / "examples" / "tutorials" / "foreign_files.py"
    spec = importlib.util.spec_from_file_location("foreign_files", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def runs(tmp_path):
    """Three folders with two frames each, and the energies by folder."""
    for number in (2, 10, 1):
        folder = tmp_path / "runs" / f"r{number}"
        folder.mkdir(parents=True)
        frames = [bulk("Cu", cubic=True), bulk("Cu", cubic=True)]
        for k, atoms in enumerate(frames):
            atoms.info["REF_energy"] = number + 0.5 * k
            atoms.arrays["REF_forces"] = np.zeros((4, 3))
        ase.io.write(folder / "frames.extxyz", frames)
    return tmp_path / "runs"


def energies(paths):
    found = read_frames(paths)
    assert [frame.energy for frame in read_evaluation_frames(paths)] == [f.energy for f in found]
    return [frame.energy for frame in found]


def test_patterns_are_sorted_and_sliced(runs):
    assert energies(f"{runs}/*/frames.extxyz") == [1, 1.5, 10, 10.5, 2, 2.5]
    assert energies(f"{runs}/r[12]/*@-1") == [1.5, 2.5]
    assert energies(f"{runs.parent}/**/*.extxyz@0") == [1, 10, 2]
    # A list keeps its order, and what is named twice is read once.
    assert energies([f"{runs}/r2/*@1", f"{runs}/*/*@1"]) == [2.5, 1.5, 10.5]
    assert energies([f"{runs}/r2/*@1", f"{runs}/r2/*@0"]) == [2.5, 2]
    assert read_frames(f"{runs}/*/*@1:")[1].source == f"{runs}/r10/frames.extxyz#1"


def test_a_file_may_have_the_name_of_a_pattern(runs):
    odd = runs / "r[12].extxyz"
    (runs / "r1" / "frames.extxyz").rename(odd)
    assert [name for name, _ in data_files(str(odd))] == [odd]


def test_many_files_in_words(runs):
    assert in_words(f"{runs}/r1/*") == f"{runs}/r1/frames.extxyz"
    for number in (3, 4):
        (runs / f"r{number}.extxyz").touch()
    words = in_words([f"{runs}/*/*.extxyz", f"{runs}/*.extxyz"])
    assert words.startswith(f"5 files, {runs}/r1/frames.extxyz, {runs}/r10/")
    assert words.endswith(f"... {runs}/r4.extxyz")


@pytest.mark.parametrize("read", [read_frames, read_evaluation_frames])
def test_what_matches_nothing_is_said_with_what_is_there(runs, read):
    with pytest.raises(FileNotFoundError, match=rf"vasprun.xml; .*{runs} holds r1/, r10/"):
        read(f"{runs}/*/vasprun.xml")
    with pytest.raises(FileNotFoundError, match=r"no data file at .*r1 holds frames.extxyz"):
        read(f"{runs}/r1/frame.extxyz")


@pytest.mark.parametrize(
    ("inside", "repair"),
    [
        ("vasprun.xml", "vasprun.xml'"),
        ("a/OUTCAR", r"\*/OUTCAR'"),
        ("a/b/job.out", r"\*/\*/\*.out'"),
        ("a/type.raw", r"\*'$"),
        ("recalculated.extxyz", "recalculated.extxyz'"),
        ("nothing", "the files in it"),
    ],
)
def test_a_folder_is_answered_with_what_to_give(tmp_path, inside, repair):
    (tmp_path / inside).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / inside).touch()
    with pytest.raises(DataError, match=f"is a folder; give .*{repair}"):
        read_frames(str(tmp_path))


def test_the_folder_of_a_training(tmp_path):
    (tmp_path / "run.json").touch()
    with pytest.raises(DataError, match="is the folder of a training; give the frames"):
        read_frames(str(tmp_path))


def slab():
    """Strained, with fixed atoms, whose forces are labels as all others."""
    atoms = fcc111("Cu", (1, 2, 3), vacuum=6)
    del atoms.info["adsorbate_info"]
    atoms.rattle(0.1, seed=1)
    atoms.calc = EMT()
    atoms.set_constraint(FixAtoms([0, 1]))
    atoms.get_forces()
    return atoms


@pytest.mark.parametrize("name", ["a.traj", "a.db", "a.json", "a.extxyz"])
def test_labels_of_a_calculator_in_the_formats_of_ase(tmp_path, name):
    atoms = slab()
    ase.io.write(tmp_path / name, atoms)
    (frame,) = read_frames(str(tmp_path / name), COMPUTED)
    assert frame.energy == pytest.approx(atoms.calc.results["energy"], abs=1e-7)
    np.testing.assert_allclose(frame.forces, atoms.calc.results["forces"], atol=1e-7)
    assert np.abs(frame.forces[:2]).max() > 0.1
    stress = atoms.get_stress(voigt=False, apply_constraint=False)
    np.testing.assert_allclose(frame.stress, stress, atol=1e-7)
    assert frame.atoms.pbc.tolist() == [True, True, False]


def test_vasprun_energies_that_belong_to_the_forces(tmp_path):
    frames = ase.io.read(ROOT / "data" / "co2_train.extxyz", ":2")
    foreign_files().write_vasprun(tmp_path / "vasprun.xml", frames, smearing=0.012)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_frames(str(tmp_path / "vasprun.xml"), COMPUTED)
    for frame, atoms in zip(found, frames, strict=True):
        assert frame.energy == pytest.approx(atoms.info["REF_energy"], abs=1e-7)
        np.testing.assert_allclose(frame.forces, atoms.arrays["REF_forces"], atol=1e-12)
        stress = np.reshape(atoms.info["REF_stress"], (3, 3))
        np.testing.assert_allclose(frame.stress, stress, atol=1e-12)
    # Twelve atoms: 0.001 eV each.
    with pytest.warns(UserWarning, match=r"xml#\d: the energy differs .* by 0\.001 eV/atom"):
        found = read_frames(str(tmp_path / "*.xml"), KeysConfig("energy", "forces"))
    assert found[0].energy == pytest.approx(frames[0].info["REF_energy"] + 0.012, abs=1e-7)


def test_orca_has_one_frame_a_file(tmp_path):
    frames = ase.io.read(ROOT / "data" / "ethanol_train.extxyz", ":3")
    for k, atoms in enumerate(frames):
        foreign_files().write_orca(tmp_path / f"job{k}.out", atoms)
    found = read_frames(str(tmp_path / "*.out"), COMPUTED)
    for frame, atoms in zip(found, frames, strict=True):
        assert frame.energy == pytest.approx(atoms.info["REF_energy"], abs=1e-8)
        np.testing.assert_allclose(frame.forces, atoms.arrays["REF_forces"], atol=1e-8)


def test_a_file_without_chosen_frames_and_frames_named_twice(tmp_path):
    path = write(tmp_path / "a.extxyz", [labelled(k) for k in range(6)])
    other = write(tmp_path / "b.extxyz", [labelled(k) for k in range(2)])
    with pytest.raises(DataError, match=r"no frames in .*b.extxyz from 5 to None .* it has 2"):
        read_frames([str(path), f"{other}@5:"])
    with pytest.raises(DataError, match=r"2 frames are named twice, .*a.extxyz#2 first"):
        read_frames([f"{path}@:4", f"{path}@2:"])
    again = tmp_path / "c" / ".." / "a.extxyz"
    (tmp_path / "c").mkdir()
    assert len(read_frames([str(path), str(again), str(tmp_path / "a*")])) == 6
