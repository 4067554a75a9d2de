"""Labelled frames: what is read, and how every broken label is reported."""

import gzip
import lzma
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator

from ase_bayesmlip.config import DataConfig, KeysConfig
from ase_bayesmlip.structures.labelled import read_frames, sha256, split_validation
from ase_bayesmlip.structures.reading import DataError, split_slice
from ase_bayesmlip.structures.reference_energies import reference_energies

DATA = Path(__file__).parents[2] / "data"
KCAL = units.kcal / units.mol


def labelled(seed: int = 0, periodic: bool = False) -> Atoms:
    generator = np.random.default_rng(seed)
    atoms = bulk("NaCl", "rocksalt", a=5.6) if periodic else molecule("H2O")
    atoms.positions += 0.1 * generator.normal(size=atoms.positions.shape)
    atoms.info["REF_energy"] = float(generator.normal())
    atoms.arrays["REF_forces"] = generator.normal(size=(len(atoms), 3))
    if periodic:
        stress = 0.01 * generator.normal(size=(3, 3))
        atoms.info["REF_stress"] = stress + stress.T
    return atoms


def write(path: Path, frames) -> str:
    ase.io.write(path, frames)
    return str(path)


def write_npz(path: Path, layout: str, n_frames: int = 4, **changes) -> str:
    names = {
        "rMD17": ("nuclear_charges", "coords", "energies", "forces"),
        "MD22": ("z", "R", "E", "F"),
    }[layout]
    generator = np.random.default_rng(0)
    energies = generator.normal(size=n_frames if layout == "rMD17" else (n_frames, 1))
    arrays = (
        np.array([8, 1, 1], dtype=np.uint8),
        generator.normal(size=(n_frames, 3, 3)),
        energies,
        generator.normal(size=(n_frames, 3, 3)),
    )
    np.savez(path, **{**dict(zip(names, arrays, strict=True)), **changes})
    return str(path)


# --- reading -------------------------------------------------------------------------------------


def test_labels_are_those_of_the_file(tmp_path):
    frames = [labelled(0), labelled(1, periodic=True)]
    read = read_frames(write(tmp_path / "a.extxyz", frames))
    for number, (frame, atoms) in enumerate(zip(read, frames, strict=True)):
        assert frame.source == f"{tmp_path}/a.extxyz#{number}"
        assert frame.energy == pytest.approx(atoms.info["REF_energy"], rel=1e-12)
        np.testing.assert_allclose(frame.forces, atoms.arrays["REF_forces"], atol=1e-8)
        np.testing.assert_allclose(frame.atoms.positions, atoms.positions, atol=1e-8)
        np.testing.assert_array_equal(frame.atoms.pbc, atoms.pbc)
    assert read[0].stress is None
    np.testing.assert_allclose(read[1].stress, frames[1].info["REF_stress"], atol=1e-8)


def test_frames_carry_no_labels_of_their_own(tmp_path):
    (frame,) = read_frames(write(tmp_path / "a.extxyz", labelled()))
    assert frame.atoms.calc is None
    assert not frame.atoms.info
    assert set(frame.atoms.arrays) == {"numbers", "positions"}


def test_shipped_files():
    frames = read_frames(str(DATA / "co2_train.extxyz@0:2"))
    assert len(frames) == 2
    assert frames[0].stress.shape == (3, 3)
    np.testing.assert_allclose(frames[0].stress, frames[0].stress.T, atol=1e-12)


def test_isolated_atoms_are_left_out(tmp_path):
    atom = Atoms("H")
    atom.info = {"REF_energy": -13.6, "config_type": "IsolatedAtom"}
    path = write(tmp_path / "a.extxyz", [atom, labelled()])
    frames = read_frames(path)
    assert [len(frame.atoms) for frame in frames] == [3]
    assert frames[0].source.endswith("#1")


def test_labels_from_the_results_of_a_calculator(tmp_path):
    keys = KeysConfig(energy="energy", forces="forces", stress="stress")
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    forces = np.arange(6.0).reshape(2, 3)
    voigt = 0.01 * np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    atoms.calc = SinglePointCalculator(atoms, energy=-1.5, forces=forces, stress=voigt)
    for name in ("a.extxyz", "a.traj"):
        (frame,) = read_frames(write(tmp_path / name, atoms), keys)
        assert frame.energy == -1.5
        np.testing.assert_allclose(frame.forces, forces)
        expected = [[0.01, 0.06, 0.05], [0.06, 0.02, 0.04], [0.05, 0.04, 0.03]]
        np.testing.assert_allclose(frame.stress, expected)


def test_voigt_stress_in_info(tmp_path):
    atoms = labelled(0, periodic=True)
    atoms.info["REF_stress"] = 0.01 * np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    (frame,) = read_frames(write(tmp_path / "a.extxyz", atoms))
    expected = [[0.01, 0.06, 0.05], [0.06, 0.02, 0.04], [0.05, 0.04, 0.03]]
    np.testing.assert_allclose(frame.stress, expected)


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


def test_slice_that_selects_nothing(tmp_path):
    with pytest.raises(DataError, match="no labelled frames"):
        read_frames(f"{write(tmp_path / 'a.extxyz', labelled())}@7:9")


def test_several_files_in_order(tmp_path):
    first = write(tmp_path / "a.extxyz", [labelled(0), labelled(1)])
    second = write(tmp_path / "b.extxyz", [labelled(2)])
    sources = [frame.source for frame in read_frames([second, f"{first}@1:"])]
    assert sources == [f"{second}#0", f"{first}#1"]


# --- .npz ----------------------------------------------------------------------------------------


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


# --- broken labels -------------------------------------------------------------------------------


def drop_energy(atoms):
    del atoms.info["REF_energy"]


def drop_forces(atoms):
    del atoms.arrays["REF_forces"]


def set_energy(value):
    return lambda atoms: atoms.info.update(REF_energy=value)


def set_force(value):
    def change(atoms):
        atoms.arrays["REF_forces"][1, 2] = value

    return change


def set_forces(value):
    return lambda atoms: atoms.arrays.update(REF_forces=value)


def set_stress(value):
    return lambda atoms: atoms.info.update(REF_stress=value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_energy, "no label 'REF_energy'"),
        (drop_forces, "no label 'REF_forces'"),
        (set_energy(np.nan), "'REF_energy' is nan"),
        (set_energy(np.inf), "'REF_energy' is inf"),
        (set_energy("unknown"), "'REF_energy' is 'unknown', not a number"),
        (set_energy([1.0, 2.0]), "'REF_energy' is .*, not a number"),
        (set_force(np.nan), r"'REF_forces' is not finite at \[1, 2\]"),
        (set_force(-np.inf), r"'REF_forces' is not finite at \[1, 2\]"),
        (set_forces(np.zeros((3, 2))), r"'REF_forces' has shape \(3, 2\); expected \(3, 3\)"),
        (set_forces(np.array(["a", "b", "c"])), "'REF_forces' is not numeric"),
        (set_stress(np.zeros(9)), "'REF_stress' is given, but the cell has no volume"),
        (set_stress(np.zeros(5)), r"'REF_stress' has 5 numbers; expected 9 or 6"),
        (set_stress("unknown"), "'REF_stress' is not numeric"),
        (set_stress(np.full(9, np.nan)), "'REF_stress' is not finite"),
    ],
)
def test_broken_label_names_file_frame_and_key(tmp_path, change, message):
    frames = [labelled(0), labelled(1)]
    change(frames[1])
    path = write(tmp_path / "a.extxyz", frames)
    with pytest.raises(DataError, match=rf"a\.extxyz#1: {message}"):
        read_frames(path)


def test_positions_that_are_not_finite(tmp_path):
    frames = [labelled(0), labelled(1)]
    frames[1].positions[0, 0] = np.nan
    path = write(tmp_path / "a.extxyz", frames)
    with pytest.raises(DataError, match=r"a\.extxyz#1: positions of atoms \[0\] are not finite"):
        read_frames(path)


def test_frame_number_of_an_error_is_that_of_the_file(tmp_path):
    frames = [labelled(k) for k in range(6)]
    drop_energy(frames[5])
    path = write(tmp_path / "a.extxyz", frames)
    with pytest.raises(DataError, match=r"a\.extxyz#5: no label"):
        read_frames(f"{path}@3::2")


def test_wrong_key_lists_the_labels_that_exist(tmp_path):
    path = write(tmp_path / "a.extxyz", labelled())
    with pytest.raises(DataError, match=r"no label 'E'; the frame has: REF_energy.*data\.keys"):
        read_frames(path, KeysConfig(energy="E"))


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


# --- checksum, split, references -----------------------------------------------------------------


def test_checksum_is_independent_of_the_file_format(tmp_path):
    frames = [computed(labelled(k, periodic=True)) for k in range(2)]
    sums = {
        sha256(read_frames(write(tmp_path / name, frames), RESULTS))
        for name in ("a.extxyz", "b.extxyz", "a.traj", "a.json")
    }
    assert len(sums) == 1


RESULTS = KeysConfig(energy="energy", forces="forces", stress="stress")


def computed(atoms: Atoms, **changes) -> Atoms:
    """The labels as results of a calculator, which every ASE format stores."""
    results = {
        "energy": atoms.info.pop("REF_energy"),
        "forces": atoms.arrays.pop("REF_forces"),
        "stress": atoms.info.pop("REF_stress").ravel()[[0, 4, 8, 5, 2, 1]],
    }
    atoms.calc = SinglePointCalculator(atoms, **{**results, **changes})
    return atoms


@pytest.mark.parametrize(
    "name", ["energy", "forces", "stress", "positions", "cell", "pbc", "numbers"]
)
def test_checksum_sees_every_change(tmp_path, name):
    def checksum(change: float) -> str:
        atoms = computed(labelled(0, periodic=True))
        results = {key: np.array(value) for key, value in atoms.calc.results.items()}
        if name == "positions":
            atoms.positions[0, 0] += change
        elif name == "cell":
            atoms.cell[0, 0] += change
        elif name == "pbc":
            atoms.pbc = [True, True, change == 0.0]
        elif name == "numbers":
            atoms.numbers[0] += change > 0.0
        else:
            results[name].flat[0] += change
        atoms.calc = SinglePointCalculator(atoms, **{**results, "energy": float(results["energy"])})
        return sha256(read_frames(write(tmp_path / "a.traj", atoms), RESULTS))

    assert checksum(0.0) == checksum(0.0) != checksum(1e-6)


def test_checksum_sees_the_order_of_frames(tmp_path):
    frames = read_frames(write(tmp_path / "a.extxyz", [labelled(0), labelled(1)]))
    assert sha256(frames) != sha256(frames[::-1])


@pytest.mark.parametrize(("fraction", "n_valid"), [(0.1, 1), (0.3, 3), (0.001, 1), (0.999, 9)])
def test_split_is_a_partition(tmp_path, fraction, n_valid):
    frames = read_frames(write(tmp_path / "a.extxyz", [labelled(k) for k in range(10)]))
    train, valid = split_validation(frames, fraction, seed=3)
    assert len(valid) == n_valid
    assert sorted(f.source for f in train + valid) == sorted(f.source for f in frames)
    again, _ = split_validation(frames, fraction, seed=3)
    assert [f.source for f in again] == [f.source for f in train]


def test_split_follows_its_seed(tmp_path):
    frames = read_frames(write(tmp_path / "a.extxyz", [labelled(k) for k in range(10)]))
    chosen = {tuple(f.source for f in split_validation(frames, 0.3, seed)[1]) for seed in range(5)}
    assert len(chosen) > 1


def test_one_frame_cannot_be_split(tmp_path):
    frames = read_frames(write(tmp_path / "a.extxyz", labelled()))
    with pytest.raises(DataError, match=r"cannot be split.*give data\.valid"):
        split_validation(frames, 0.5, 0)


def frames_with_energies(tmp_path, names, energies):
    structures = []
    for name, energy in zip(names, energies, strict=True):
        atoms = molecule(name)
        atoms.info["REF_energy"] = energy
        atoms.arrays["REF_forces"] = np.zeros((len(atoms), 3))
        structures.append(atoms)
    return read_frames(write(tmp_path / "frames.extxyz", structures))


def test_fitted_references_solve_the_normal_equations(tmp_path):
    exact = {1: -13.0, 6: -1030.0, 8: -2040.0}
    names = ["H2O", "CH4", "CO2", "CH3OH"]
    energies = [sum(exact[z] for z in molecule(name).numbers) for name in names]
    frames = frames_with_energies(tmp_path, names, energies)
    found = reference_energies(DataConfig(train="", reference_energies="fit"), frames)
    assert found == pytest.approx(exact, rel=1e-10)


def test_fitted_references_of_one_composition_have_minimum_norm(tmp_path):
    frames = frames_with_energies(tmp_path, ["H2O", "H2O"], [-10.0, -12.0])
    found = reference_energies(DataConfig(train=""), frames)
    # n (n·n)⁻¹ E with n = (2, 1)
    assert found == pytest.approx({1: -11.0 * 2 / 5, 8: -11.0 / 5}, rel=1e-12)


def test_references_from_a_mapping(tmp_path):
    frames = frames_with_energies(tmp_path, ["H2O"], [0.0])
    given = {"H": -13.6, "O": -2041.0, "C": -1029.0}
    found = reference_energies(DataConfig(train="", reference_energies=given), frames)
    assert found == {1: -13.6, 8: -2041.0}
    with pytest.raises(DataError, match="no reference energy for O; add it, or use 'fit'"):
        reference_energies(DataConfig(train="", reference_energies={"H": -1.0}), frames)
    with pytest.raises(DataError, match="use chemical symbols"):
        reference_energies(DataConfig(train="", reference_energies={"Hydrogen": -1.0}), frames)


def test_references_from_a_file():
    frames = read_frames(str(DATA / "ethanol_valid.extxyz@0:2"))
    path = str(DATA / "isolated_atoms.extxyz")
    found = reference_energies(DataConfig(train="", reference_energies=path), frames)
    assert set(found) == {1, 6, 8}
    assert found[1] == pytest.approx(-10.707211383283003, abs=1e-12)
    with pytest.raises(DataError, match="no reference energy for H"):
        reference_energies(DataConfig(train="", reference_energies=f"{path}@1:"), frames)


def test_reference_file_of_molecules(tmp_path):
    frames = frames_with_energies(tmp_path, ["H2O"], [0.0])
    path = str(tmp_path / "frames.extxyz")
    with pytest.raises(DataError, match="no reference energy for H, O"):
        reference_energies(DataConfig(train="", reference_energies=path), frames)
    with pytest.raises(FileNotFoundError, match="no data file"):
        reference_energies(DataConfig(train="", reference_energies="absent.xyz"), frames)


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
