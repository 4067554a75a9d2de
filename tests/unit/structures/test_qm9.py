"""Files of QM9: energies in eV, exponents of another kind, and what is not whole."""

import numpy as np
import pytest
from ase import units

from ase_bayesmlip.config import KeysConfig
from ase_bayesmlip.structures.labelled import read_frames
from ase_bayesmlip.structures.partly_labelled import read_evaluation_frames
from ase_bayesmlip.structures.reading import DataError

# A molecule of two atoms with invented numbers, laid out as in the data set.
TEXT = """2
gdb 7\t1.1\t1.2\t1.3\t0.5\t9.9\t-0.25\t0.05\t0.3\t35.1\t0.01\t-1.1\t-1.09\t-1.08\t-1.12\t6.4\t
H\t 0.0\t 0.0\t-3.5*^-1\t 0.1\t
H\t 0.0\t 1.2*^-6\t 0.35\t-0.1\t
4401.0
[H][H]\t[H][H]\t
InChI=1S/H2/h1H\tInChI=1S/H2/h1H
"""


def write(folder, text=TEXT, name="dsgdb9nsd_000007.xyz"):
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


@pytest.mark.parametrize(
    ("key", "hartree"), [("U0", -1.1), ("G", -1.12), ("E", -1.11), ("gap", 0.3), ("zpve", 0.01)]
)
def test_energies_are_in_electronvolts(tmp_path, key, hartree):
    (frame,) = read_evaluation_frames(write(tmp_path), KeysConfig(energy=key))
    assert frame.energy == pytest.approx(hartree * units.Hartree, rel=1e-12)
    assert frame.forces is None
    assert frame.atoms.get_chemical_symbols() == ["H", "H"]
    np.testing.assert_array_equal(frame.atoms.positions, [[0, 0, -0.35], [0, 1.2e-6, 0.35]])
    assert not frame.atoms.pbc.any()


def test_a_pattern_reads_many(tmp_path):
    for number in (1, 2, 10):
        write(tmp_path, name=f"dsgdb9nsd_{number:06d}.xyz")
    frames = read_evaluation_frames(f"{tmp_path}/*.xyz", KeysConfig(energy="U0"))
    assert [frame.source[-12:] for frame in frames] == [f"{k:06d}.xyz#0" for k in (1, 2, 10)]


def test_there_are_no_forces_to_train_on(tmp_path):
    with pytest.raises(
        DataError, match=r"#0: no label 'REF_forces'; the frame has: E, G, H, U, U0"
    ):
        read_frames(write(tmp_path), KeysConfig(energy="E"))


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("2\n", "3\n", 1),
        TEXT.replace("\t6.4", ""),
        TEXT.replace("-3.5*^-1", "-3.5*-1"),
        TEXT.replace("H\t 0.0\t 0.0", "Qq\t 0.0\t 0.0"),
        TEXT[:140],
        TEXT.rsplit("InChI=1S", 2)[0],
        TEXT + TEXT,
    ],
)
def test_what_is_not_whole_is_refused(tmp_path, text):
    with pytest.raises(DataError, match=r"000007\.xyz is no whole file of QM9"):
        read_evaluation_frames(write(tmp_path, text))


def test_a_slice_without_the_one_frame(tmp_path):
    with pytest.raises(DataError, match="the slice leaves no frame"):
        read_evaluation_frames(f"{write(tmp_path)}@1:")


def test_other_xyz_files_are_read_as_ever(tmp_path):
    path = write(
        tmp_path, '1\nProperties=species:S:1:pos:R:3 REF_energy=-1.0 name="gdb 1"\nH 0 0 0\n'
    )
    (frame,) = read_evaluation_frames(path)
    assert frame.energy == -1.0
