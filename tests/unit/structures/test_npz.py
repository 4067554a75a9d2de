"""Labelled frames of .npz files: layouts, units, and what is broken."""

from pathlib import Path

import numpy as np
import pytest
from ase import units
from labelled_files import write_npz

from ase_bayesmlip.structures.labelled import read_frames
from ase_bayesmlip.structures.reading import DataError

KCAL = units.kcal / units.mol


@pytest.mark.parametrize("layout", ["rMD17", "MD22"])
@pytest.mark.parametrize(("unit", "factor"), [("eV", 1.0), ("kcal/mol", KCAL)])
def test_npz_layouts_and_units(tmp_path, layout, unit, factor):
    path = write_npz(tmp_path / "a.npz", layout)
    content = list(np.load(path).values())
    frames = read_frames(path, npz_units=unit)
    assert len(frames) == 4
    for number, frame in enumerate(frames):
        assert frame.atoms.symbols.get_chemical_formula() == "H2O"
        np.testing.assert_array_equal(frame.atoms.positions, content[1][number])
        assert frame.energy == pytest.approx(content[2].ravel()[number] * factor, rel=1e-14)
        np.testing.assert_allclose(frame.forces, content[3][number] * factor, rtol=1e-14)


def test_kcal_per_mol_is_that_of_ase():
    assert pytest.approx(0.0433641, rel=1e-6) == KCAL


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coords": np.zeros((4, 2, 3))}, "shapes do not fit together: coords"),
        ({"forces": np.zeros((3, 3, 3))}, r"forces \(3, 3, 3\)"),
        ({"energies": np.zeros(3)}, r"energies \(3,\)"),
        ({"energies": np.array([0.0, 1.0, np.nan, 2.0])}, r"a\.npz#2: 'energies' is nan"),
        ({"forces": np.full((4, 3, 3), np.inf)}, r"a\.npz#0: 'forces' is not finite at \[0, 0\]"),
        ({"coords": np.full((4, 3, 3), np.nan)}, r"a\.npz#0: 'coords' is not finite"),
        ({"energies": np.array(["a", "b", "c", "d"])}, r"a\.npz#0: 'energies' is .* not a number"),
        ({"energies": np.array([{}, 1, 2, 3], dtype=object)}, r"a\.npz is not a readable"),
    ],
)
def test_broken_npz(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        read_frames(write_npz(tmp_path / "a.npz", "rMD17", **changes))


def test_npz_of_unknown_layout(tmp_path):
    np.savez(tmp_path / "a.npz", positions=np.zeros((1, 3)))
    with pytest.raises(DataError, match=r"rMD17: nuclear_charges.*it has \['positions'\]"):
        read_frames(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5])
def test_truncated_npz(tmp_path, keep):
    path = Path(write_npz(tmp_path / "a.npz", "rMD17"))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DataError, match="not a readable"):
        read_frames(str(path))


def test_what_else_is_in_the_files_of_md22_is_no_matter(tmp_path):
    about = {"name": "Ac", "theory": np.array("PBE+MBD"), "extra": np.array([{}], dtype=object)}
    frames = read_frames(write_npz(tmp_path / "a.npz", "MD22", **about))
    assert len(frames) == 4
