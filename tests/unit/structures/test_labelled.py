"""Labelled frames: what is read, what is refused before there is a model, checksum and split."""

import io
import re
import time
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from labelled_files import labelled, write

from ase_bayesmlip.cli.main import main
from ase_bayesmlip.config import KeysConfig
from ase_bayesmlip.structures.labelled import read_frames, sha256, split_validation, trajectories
from ase_bayesmlip.structures.partly_labelled import read_evaluation_frames
from ase_bayesmlip.structures.reading import DataError, read_structures, split_slice

DATA = Path(__file__).parents[3] / "data"


def written(atoms: Atoms) -> str:
    """A frame with labels as text."""
    atoms.info["REF_energy"] = -1.0
    atoms.arrays["REF_forces"] = np.zeros((len(atoms), 3))
    text = io.StringIO()
    ase.io.write(text, atoms, format="extxyz")
    return text.getvalue()


def changed(old: str, new: str, atoms: Atoms | None = None) -> str:
    text = written(bulk("Cu", cubic=True) if atoms is None else atoms)
    assert re.search(old, text)
    return re.sub(old, new, text)


def moved(k: int, to) -> str:
    atoms = bulk("Cu", cubic=True)
    atoms.positions[k] = to
    return written(atoms)


def boxed(name: str) -> str:
    """A molecule, if it were not for a cell under a name that no reader knows."""
    return changed("pbc=", f'{name}="9 0 0 0 9 0 0 0 9" pbc=', molecule("H2O"))


LATTICE = r'Lattice="[^"]*"'
BROKEN = {
    "pbc without a lattice": (changed(LATTICE, ""), "no volume"),
    "a lattice of zeros": (changed(LATTICE, 'Lattice="0 0 0 0 0 0 0 0 0"'), "no volume"),
    "a flat lattice": (changed(LATTICE, 'Lattice="3 0 0 6 0 0 0 0 3"'), "no volume"),
    "one vector of three": (changed(LATTICE, 'Lattice="3.6 0 0 0 0 0 0 0 0"'), "no volume"),
    "a lattice with nan": (changed(LATTICE, 'Lattice="nan 0 0 0 3 0 0 0 3"'), "cell is not finite"),
    "an infinite lattice": (changed(LATTICE, 'Lattice="inf 0 0 0 3 0 0 0 3"'), "cell is not fin"),
    "a lattice in lower case": (changed("Lattice", "lattice"), "'lattice' is no name"),
    "a cell under another name": (boxed("Box"), "'Box' is no name"),
    "lattice vectors": (boxed("lattice_vectors"), "'lattice_vectors' is no name"),
    "pbc in upper case": (changed("pbc=.*", 'PBC="T F T"'), "'PBC' is no name"),
    "two atoms at one place": (moved(1, [0, 0, 0]), r"atoms 0 and 1 overlap: they are 0\.000 Å"),
    "two atoms through a face": (moved(1, [0, 3.6, -3.65]), r"atoms 0 and 1 overlap.*0\.0"),
    "no positions": (changed(":pos:R:3", ":xyz:R:3"), "no column of positions"),
    "a position that is nan": (
        moved(2, [0, np.nan, 0]),
        r"atoms \[2\] are not finite",
    ),
    "no atoms": (changed(r"4\n(.*\n)(.*\n)*", r"0\n\1"), "no atoms"),
    "a ghost atom": (changed("Cu  ", "X   "), r"atomic number 0"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_every_reader_refuses(tmp_path, what):
    text, message = BROKEN[what]
    path = tmp_path / "a.extxyz"
    path.write_text(written(bulk("Cu", cubic=True)) + text)
    for read in (read_frames, read_evaluation_frames):
        with pytest.raises(DataError, match=rf"a\.extxyz#1: .*{message}"):
            read(str(path))
        assert len(read(f"{path}@:1")) == 1


CONFIG = """
data:
  train: {train}
  valid: {valid}
  calibration: {calibration}
posterior: {{kind: point}}
"""


@pytest.mark.slow
@pytest.mark.slow
def test_each_command_refuses_before_there_is_a_model(tmp_path, capsys):
    """Bad training, validation and calibration frames; `evaluate`, its --ood, and `calibrate`."""
    bad, good = tmp_path / "bad.extxyz", str(DATA / "ethanol_valid.extxyz")
    model = str(DATA / "ethanol_ensemble.pt")
    bad.write_text(BROKEN["two atoms at one place"][0])
    commands = []
    for k, name in enumerate(("train", "valid", "calibration")):
        files = dict.fromkeys(("train", "valid", "calibration"), f"{good}@:3")
        path = tmp_path / f"{k}.yaml"
        path.write_text(CONFIG.format(**{**files, name: bad}))
        commands.append(["train", str(path), "--out", str(tmp_path / "run"), "--quiet"])
    commands += [
        ["evaluate", model, str(bad)],
        ["evaluate", model, f"{good}@:3", "--ood", str(bad)],
        ["calibrate", model, str(bad), "-o", str(tmp_path / "out.pt")],
    ]
    for command in commands:
        start = time.process_time()
        assert main(command) == 2
        assert time.process_time() - start < 10.0  # with the import of torch; a model takes longer
        assert "bad.extxyz#0: atoms 0 and 1 overlap" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_npz_passes_the_same_door(tmp_path):
    water = molecule("H2O")
    positions = np.stack([water.positions] * 2)
    arrays = {"R": positions, "E": np.zeros(2), "F": np.zeros((2, 3, 3))}
    for z, spoil, message in (
        ([8, 1, 1], 0.0, r"a\.npz#1: atoms 0 and 1 overlap"),
        ([8, 0, 1], 0.1, r"a\.npz#0: .*atomic number 0"),
        ([8, 1, 200], 0.1, r"a\.npz#0: .*atomic number 200"),
        ([8.0, 1.0, 1.0], 0.1, "'z' must be one list of atomic numbers"),
    ):
        if spoil == 0.0:
            positions[1, 1] = positions[1, 0]
        else:
            positions[1] = water.positions
        np.savez(tmp_path / "a.npz", z=np.array(z), **arrays)
        for read in (read_frames, read_evaluation_frames):
            with pytest.raises(DataError, match=message):
                read(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("name", ["E", "F"])
@pytest.mark.parametrize("dtype", [bool, complex])
def test_npz_labels_that_cannot_be_meant(tmp_path, name, dtype):
    arrays = {"R": molecule("H2O").positions[None], "E": np.zeros(1), "F": np.zeros((1, 3, 3))}
    arrays[name] = arrays[name].astype(dtype)
    np.savez(tmp_path / "a.npz", z=np.array([8, 1, 1]), **arrays)
    with pytest.raises(DataError, match=rf"a\.npz#0: '{name}'"):
        read_frames(str(tmp_path / "a.npz"))


def test_a_kind_of_frame_that_is_a_list(tmp_path):
    path = tmp_path / "a.extxyz"
    path.write_text(changed("pbc=", 'config_type="1 2 3" pbc='))
    assert len(read_frames(str(path))) == len(read_evaluation_frames(str(path))) == 1


def test_frames_of_one_atom_are_read(tmp_path):
    path = tmp_path / "a.extxyz"
    path.write_text(written(Atoms("H")) + written(bulk("Cu")))
    assert [len(frame.atoms) for frame in read_frames(str(path))] == [1, 1]


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["folder", "folder.npz", "folder.extxyz@0:3"])
def test_a_folder_in_the_place_of_a_file(tmp_path, name):
    (tmp_path / name.partition("@")[0]).mkdir()
    with pytest.raises(DataError, match=r"folder.* is a folder; give the files in it"):
        read_frames(str(tmp_path / name))


def test_a_step_of_zero(tmp_path):
    with pytest.raises(DataError, match=r"a\.extxyz@::0: '::0' is no slice such as 0:450"):
        split_slice(f"{tmp_path}/a.extxyz@::0")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x1f\x8b\x08broken", b"", b"nothing\n"])
@pytest.mark.parametrize("name", ["a.xyz", "a.traj", "a.db", "a.json", "a.cif", "a", "a.xyz.gz"])
def test_unreadable_content(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(str(path))):
        read_frames(str(path))


def test_an_unreadable_frame_says_where_it_is(tmp_path):
    path = tmp_path / "a.extxyz"
    good = written(bulk("Cu", cubic=True))
    path.write_text(good + good + good.replace("0.00000000", "0.0000oooo"))
    with pytest.raises(DataError, match=r"a\.extxyz: ASE cannot read it, after frame 1 .*could"):
        read_structures(path, slice(None))


def test_several_atoms_that_say_they_are_isolated_are_not_left_out(tmp_path):
    path = tmp_path / "a.extxyz"
    text = written(molecule("H2O"))
    path.write_text(text + changed("pbc=", "config_type=IsolatedAtom pbc=", molecule("H2O")))
    for read in (read_frames, read_evaluation_frames):
        with pytest.raises(DataError, match=r"a\.extxyz#1: config_type is IsolatedAtom.*3 atoms"):
            read(str(path))


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


def test_slice_that_selects_nothing(tmp_path):
    with pytest.raises(DataError, match=r"no frames in .* it has 1"):
        read_frames(f"{write(tmp_path / 'a.extxyz', labelled())}@7:9")


def test_several_files_in_order(tmp_path):
    first = write(tmp_path / "a.extxyz", [labelled(0), labelled(1)])
    second = write(tmp_path / "b.extxyz", [labelled(2)])
    sources = [frame.source for frame in read_frames([second, f"{first}@1:"])]
    assert sources == [f"{second}#0", f"{first}#1"]


def drop_energy(atoms):
    del atoms.info["REF_energy"]


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


def test_trajectories_of_files_and_of_a_key(tmp_path):
    frames = [labelled(seed) for seed in range(5)]
    for k in (1, 2):
        frames[k].info["trajectory"] = "second"
    paths = [str(tmp_path / name) for name in ("a.extxyz", "b.extxyz")]
    write(paths[0], frames[:3])
    write(paths[1], frames[3:])
    assert trajectories(read_frames(paths)) == [0, 1, 1, 2, 2]
