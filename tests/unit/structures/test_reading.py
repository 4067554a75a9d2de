"""Slices, frame numbers, compressed and unreadable files."""

import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest
from labelled_files import labelled, write, write_npz

from ase_bayesmlip.structures.labelled import read_frames
from ase_bayesmlip.structures.reading import DataError, split_slice

DATA = Path(__file__).parents[3] / "data"


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
