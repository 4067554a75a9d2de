"""Extended XYZ: what is written comes back, or is named as left out, before the first step."""

import io
import string
import warnings

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian
from ase.io import read, write
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from ase_bayesmlip.structures.extxyz import FrameFile, annotated_frame, frame_text

N_ATOMS = 3


def back(path, frames):
    """Write frames to one file, read them with ASE; no warning is allowed."""
    file = FrameFile(path)
    for frame in frames:
        file.append(frame)
    return read(path, ":")


def water(**info):
    atoms = molecule("H2O")
    atoms.info = info
    return atoms


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_results_and_error_bars_come_back_with_all_their_digits(tmp_path, dtype):
    generator = np.random.default_rng(3)
    atoms = bulk("Cu", cubic=True)
    atoms.set_momenta(generator.standard_normal((4, 3)))
    # Variances below 1e-8 are zeros in ASE's own eight decimals.
    covariance = (1e-4 * generator.standard_normal((4, 3, 3)) ** 2).astype(dtype)
    results = {
        "energy": dtype(-1.0) / 3,
        "free_energy": -1.0 / 3,
        "forces": generator.standard_normal((4, 3)).astype(dtype),
        "energies": generator.standard_normal(4).astype(dtype),
        "stress": generator.standard_normal(6).astype(dtype),
        "forces_cov": covariance,
        "energy_var": dtype(3e-7),
        "energies_var": 1e-13 * np.arange(1.0, 5),
        "stress_cov": 1e-9 * generator.standard_normal((6, 6)),
        "forces_ensemble": np.zeros((2, 4, 3)),
    }
    (found,) = back(tmp_path / "a.extxyz", [annotated_frame(atoms, results)])
    np.testing.assert_array_equal(found.positions, atoms.positions)
    np.testing.assert_array_equal(found.get_momenta(), atoms.get_momenta())
    np.testing.assert_array_equal(found.cell.array, atoms.cell.array)
    for name in ("energy", "free_energy", "forces", "energies", "stress"):
        np.testing.assert_array_equal(found.calc.results[name], results[name])
    np.testing.assert_array_equal(found.arrays["forces_cov"].reshape(4, 3, 3), covariance)
    np.testing.assert_array_equal(found.arrays["energies_var"], results["energies_var"])
    np.testing.assert_array_equal(found.info["stress_cov"], results["stress_cov"])
    assert found.info["energy_var"] == results["energy_var"]
    assert "forces_ensemble" not in found.arrays


def test_an_empty_string_does_not_swallow_the_next_key(tmp_path):
    frame = annotated_frame(water(), {"energy": -1.0, "energy_var_epistemic": 0.25})
    frame.info = {"note": "", "energy_var_epistemic": 0.25}
    # What ASE's own writer does with it.
    write(tmp_path / "ase.extxyz", frame)
    assert "energy_var_epistemic" not in read(tmp_path / "ase.extxyz").info
    with pytest.warns(UserWarning, match=r"cannot carry info\['note'\]"):
        (found,) = back(tmp_path / "ours.extxyz", [frame])
    assert found.info == {"energy_var_epistemic": 0.25}
    assert found.get_potential_energy() == -1.0


TEXTS = ["T", "false", "1", "1.5 2", "nan", "a b", 'say "no"', "it's", "a=b", "{x}", "back\\slash"]
TEXTS += ["two\nlines", "\ttab", " blanks ", "Å³", "_JSON 3", "x,y", "end\\", "\u2028", "1e400"]


@pytest.mark.parametrize("value", TEXTS)
def test_strings_come_back_as_strings(tmp_path, value):
    (found,) = back(tmp_path / "a.extxyz", [water(note=value, energy_var=0.5)])
    assert found.info == {"note": value, "energy_var": 0.5}


VALUES = [True, False, 0, -7, 2**40, 2**70, 0.1, np.float32(0.1), np.int8(3), np.bool_(True)]
VALUES += [float("nan"), float("inf"), np.array([1.0]), np.array([1, 2]), np.array([True, False])]
VALUES += [np.array([True]), np.eye(2), np.array(["a", "b c"]), [1, 2], ["T", "1"], [], {"a": [1]}]
VALUES += [np.arange(9.0).reshape(3, 3), np.array(5), np.uint64(2**63), {"a": {"b": 'q"\\'}}]
VALUES += [np.array([1.5, np.nan]), np.arange(8).reshape(2, 2, 2), [[1, 2], [3]], np.longdouble(2)]


@pytest.mark.parametrize("value", VALUES, ids=str)
@pytest.mark.filterwarnings("ignore:extended XYZ cannot carry")
def test_values_come_back_or_are_left_out(tmp_path, value):
    (found,) = back(tmp_path / "a.extxyz", [water(value=value, after=1.0)])
    assert found.info["after"] == 1.0
    carried = not isinstance(value, list) or value not in ([], [[1, 2], [3]])
    assert ("value" in found.info) == carried
    if carried:
        np.testing.assert_equal(found.info["value"], value)
        assert np.shape(found.info["value"]) == np.shape(value)


UNCARRIED = [
    None,
    1j,
    b"bytes",
    pytest.param(object(), id="object"),
    {1: 2},
    np.array([1j]),
    np.zeros(0),
    "",
    {},
    set(),
]


@pytest.mark.parametrize("value", UNCARRIED, ids=str)
def test_what_cannot_be_carried_is_named_once(tmp_path, value):
    atoms = water(odd=value, after=1.0)
    file = FrameFile(tmp_path / "a.extxyz")
    with pytest.warns(UserWarning, match=r"info\['odd'\]"):
        file.append(atoms)
    file.append(atoms)  # a second warning would be an error
    file.append(atoms)
    assert [found.info for found in read(file.path, ":")] == 3 * [{"after": 1.0}]


@pytest.mark.parametrize(
    "name", ["Lattice", "Properties", "pbc", "energy", "stress", "two\nlines", "Å", "", 5, ("a",)]
)
def test_names_of_entries_that_would_be_misread_are_left_out(tmp_path, name):
    atoms = water(after=1.0)
    atoms.info[name] = 2.0
    with pytest.warns(UserWarning, match="cannot carry info"):
        (found,) = back(tmp_path / "a.extxyz", [atoms])
    assert found.info == {"after": 1.0}
    assert found.calc is None
    assert not found.cell.any()


@pytest.mark.parametrize("name", ["two words", "a=b", 'q"uote', "[x]", "with'", "a:b", "a,b"])
def test_unusual_names_of_entries_come_back(tmp_path, name):
    atoms = water()
    atoms.info = {name: 2.0, "after": 1.0}
    (found,) = back(tmp_path / "a.extxyz", [atoms])
    assert found.info == {name: 2.0, "after": 1.0}


COLUMNS = [
    ("species", np.zeros(N_ATOMS)),
    ("pos", np.zeros((N_ATOMS, 3))),
    ("pos0", np.zeros(N_ATOMS)),
    ("Z", np.ones(N_ATOMS, dtype=int)),
    ("charge", np.zeros(N_ATOMS)),
    ("forces", np.zeros((N_ATOMS, 3))),
    ("energy", np.zeros(N_ATOMS)),
    ("move_mask", np.zeros(N_ATOMS, dtype=int)),
    ("two words", np.zeros(N_ATOMS)),
    ("a:R", np.zeros(N_ATOMS)),
    ("residuenames", np.array(["   ", "ETH", "ETH"])),
    ("residuenames", np.array(["A B", "ETH", "ETH"])),
    ("empty", np.zeros((N_ATOMS, 0))),
    ("complex", np.zeros(N_ATOMS, dtype=complex)),
    ("mixed", np.array([1, "a", None], dtype=object)),
    ("large", np.array([2**60, 1, 1])),
    ("bytes", np.array([b"a", b"b", b"c"])),
    ("times", np.zeros(N_ATOMS, dtype="datetime64[s]")),
    ("masked", np.ma.masked_array(np.ones(N_ATOMS), [True] + [False] * (N_ATOMS - 1))),
]


@pytest.mark.parametrize(("name", "values"), COLUMNS, ids=[f"{n}-{v.dtype}" for n, v in COLUMNS])
def test_columns_that_would_be_misread_are_left_out(tmp_path, name, values):
    atoms = water()
    atoms.arrays[name] = values
    atoms.arrays["kept"] = np.arange(3.0)
    with pytest.warns(UserWarning, match="cannot carry arrays"):
        found = back(tmp_path / "a.extxyz", [atoms, atoms])[1]
    assert set(found.arrays) == {"numbers", "positions", "kept"}
    assert found.calc is None
    assert not found.constraints
    np.testing.assert_array_equal(found.positions, atoms.positions)
    np.testing.assert_array_equal(found.numbers, atoms.numbers)


KEPT = [
    np.array(["a", "bc", "T"]),
    np.array(["a", "b", "c"], dtype=object),
    np.array([True, False, True]),
    np.array([1, 2, 3], dtype=np.uint8),
    np.array([1, 2, 2**40]),
    np.array([1, 2, 3], dtype=object),
    np.array([np.nan, np.inf, 1e-300]),
    np.arange(27.0).reshape(3, 3, 3),
    np.arange(12, dtype=np.int16).reshape(3, 2, 2),
    np.ones((3, 1)),
]


@pytest.mark.parametrize("values", KEPT, ids=lambda v: f"{v.dtype}{v.shape}")
def test_columns_of_every_type_come_back(tmp_path, values):
    atoms = water()
    atoms.arrays["column"] = values
    (found,) = back(tmp_path / "a.extxyz", [atoms])
    np.testing.assert_array_equal(np.ravel(found.arrays["column"]), values.ravel())
    assert len(found.arrays["column"]) == 3


def test_columns_whose_parts_would_have_one_name(tmp_path):
    atoms = water()
    atoms.arrays |= {"a": np.zeros((3, 2)), "a0": np.ones(3)}
    with pytest.warns(UserWarning, match=r"arrays\['a0'\]"):
        (found,) = back(tmp_path / "a.extxyz", [atoms])
    np.testing.assert_array_equal(found.arrays["a"], np.zeros((3, 2)))


def test_constraints_come_back(tmp_path):
    fixed, partly = water(), water()
    fixed.set_constraint(FixAtoms([0, 2]))
    partly.set_constraint(FixCartesian([1], mask=[True, False, False]))
    one, other = back(tmp_path / "a.extxyz", [fixed, partly])
    assert one.constraints[0].index.tolist() == [0, 2]
    masks = {int(c.index[0]): c.mask.tolist() for c in other.constraints}
    assert masks[1] == [True, False, False]


def test_our_text_is_read_as_that_of_ase(tmp_path):
    """Where ASE's own writer is right, the same frame comes out of both files."""
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    atoms.pbc = (True, True, False)
    atoms.info = {"step": 3, "label": "a b", "v": np.arange(4.0)}
    forces = np.array([[1.5, 0, 0], [-1.5, 0, 0.25]])
    atoms.calc = SinglePointCalculator(atoms, energy=-2.0, forces=forces, stress=np.arange(6.0))
    write(tmp_path / "ase.extxyz", atoms)
    (ours,) = back(tmp_path / "ours.extxyz", [atoms])
    theirs = read(tmp_path / "ase.extxyz")
    assert ours == theirs
    assert ours.info.keys() == theirs.info.keys()
    for name, value in theirs.calc.results.items():
        np.testing.assert_array_equal(ours.calc.results[name], value)


def test_a_frame_that_does_not_come_back_is_refused_before_it_is_written(tmp_path, monkeypatch):
    file = FrameFile(tmp_path / "a.extxyz")
    wrong = water()
    wrong.positions[0, 0] += 1e-9
    monkeypatch.setattr("ase.io.read", lambda *_, **__: wrong)
    with pytest.raises(ValueError, match="positions of a frame would not come back"):
        file.append(water())
    assert not file.path.exists()


def test_a_folder_that_is_not_there_is_found_before_the_first_frame(tmp_path):
    with pytest.raises(FileNotFoundError, match="make it first"):
        FrameFile(tmp_path / "none" / "a.extxyz").check(water())


NAMES = st.text(string.printable + "Åé", max_size=8)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.complex_numbers()
)
DTYPES = st.sampled_from(["f4", "f8", "i1", "u8", "i8", "?", "U3", "c8", "O"])
VECTORS = DTYPES.flatmap(
    lambda dtype: arrays_of.arrays(
        dtype,
        arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
        elements=SCALARS if dtype == "O" else None,
    )
)
NESTED = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=2)
)


@pytest.mark.slow
@given(info=st.dictionaries(NAMES, NESTED | VECTORS, max_size=4), table=st.data())
def test_any_content_comes_back_or_is_named(info, table):
    shapes = st.sampled_from([(3,), (3, 1), (3, 2), (3, 3, 3), (3, 0)])
    columns = table.draw(
        st.dictionaries(
            NAMES,
            st.tuples(DTYPES, shapes).flatmap(
                lambda pair: arrays_of.arrays(*pair, elements=SCALARS if pair[0] == "O" else None)
            ),
            max_size=3,
        )
    )
    atoms = water()
    atoms.info = dict(info)
    columns = {name: column for name, column in columns.items() if name not in atoms.arrays}
    atoms.arrays |= columns
    forces = np.arange(9.0).reshape(3, 3) / 7
    atoms.calc = SinglePointCalculator(atoms, energy=-0.1, forces=forces)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # overflow in casts of the reader
        text, left_out = frame_text(atoms)
        found = read(io.StringIO(2 * text), ":", format="extxyz")
    assert len(found) == 2
    for frame in found:
        np.testing.assert_array_equal(frame.positions, atoms.positions)
        assert frame.calc.results.keys() == {"energy", "forces"}
        np.testing.assert_array_equal(frame.get_forces(), forces)
        assert frame.get_potential_energy() == -0.1
        for name, value in info.items():
            assert (name in frame.info) == (f"info[{name!r}]" not in left_out)
            if name in frame.info:
                # As a list, lest numpy makes texts of what stands beside a text.
                is_objects = isinstance(value, np.ndarray) and value.dtype.kind == "O"
                np.testing.assert_equal(frame.info[name], value.tolist() if is_objects else value)
        assert set(frame.info) <= set(info)
        for name, values in columns.items():
            assert (name in frame.arrays) == (f"arrays[{name!r}]" not in left_out)
            if name in frame.arrays:
                np.testing.assert_array_equal(np.ravel(frame.arrays[name]), values.ravel())


def test_isolated_atoms_and_surfaces(tmp_path):
    atom = Atoms("H")
    slab = bulk("Cu", cubic=True)
    slab.pbc = (True, False, True)
    one, other = back(tmp_path / "a.extxyz", [atom, slab])
    assert one == atom
    assert other == slab
