"""Labels that are missing, broken or cannot be meant, and stresses from virials."""

import re

import ase.io
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from labelled_files import labelled, write

from ase_bayesmlip.config import KeysConfig
from ase_bayesmlip.structures.labelled import labelled_frame, read_frames
from ase_bayesmlip.structures.partly_labelled import read_evaluation_frames
from ase_bayesmlip.structures.reading import DataError

IDENTITY = np.eye(3)


def frame(**labels):
    """A copper crystal with labels; None leaves one out."""
    atoms = bulk("Cu", cubic=True)
    given = {"REF_energy": -1.0, "REF_forces": np.zeros((4, 3)), **labels}
    for name, value in given.items():
        if name == "REF_forces" and value is not None:
            atoms.arrays[name] = value
        elif value is not None:
            atoms.info[name] = value
    return atoms


@pytest.mark.parametrize(
    ("label", "value", "message"),
    [
        ("energy", True, "'REF_energy' is True, not a number"),
        ("energy", np.bool_(False), "'REF_energy' is .*False.*, not a number"),
        ("energy", "-1.0", "'REF_energy' is '-1.0', not a number"),
        ("energy", -1.0 + 0j, "'REF_energy' is .*, not a number"),
        ("energy", [-1.0], "'REF_energy' is .*, not a number"),
        ("energy", np.array([-1.0]), "'REF_energy' is .*, not a number"),
        ("energy", [[-1.0], [2.0, 3.0]], "'REF_energy' is .*, not a number"),
        ("energy", {"value": -1.0}, "'REF_energy' is .*, not a number"),
        ("energy", 1e9, "'REF_energy' is 1e.09, beyond any calculation"),
        ("forces", np.zeros((4, 3), dtype=bool), "'REF_forces' is not numeric .logical"),
        ("forces", np.zeros((4, 3), dtype=complex), "'REF_forces' is not numeric .complex"),
        ("forces", np.full((4, 3), "0.0"), "'REF_forces' is not numeric .text"),
        ("forces", np.full((4, 3), None), "'REF_forces' is not numeric"),
        ("forces", np.zeros((4, 1, 3)), r".*shape \(4, 1, 3\); expected \(4, 3\)"),
        ("forces", np.zeros(4), r".*shape \(4,\); expected \(4, 3\)"),
        ("forces", np.full((4, 3), 2e6), r".*is 2e.06 at \[0, 0\], beyond any calculation"),
        ("stress", True, "'REF_stress' is not numeric .logical"),
        ("stress", [True] * 9, "'REF_stress' is not numeric .logical"),
        ("stress", 0.1, "'REF_stress' has 1 numbers; expected 9 or 6"),
        ("stress", np.zeros((2, 3)), r"'REF_stress' has 6 numbers.*shape \(2, 3\)"),
        ("stress", np.zeros(9) + 1j, "'REF_stress' is not numeric .complex"),
        ("stress", 1e-2 * np.arange(9.0), "'REF_stress' is not symmetric"),
        ("stress", np.full(6, 1e5), "'REF_stress' is 1e.05 at .*beyond any calculation"),
    ],
)
def test_refused(label, value, message):
    with pytest.raises(DataError, match=rf"^a#0: {message}"):
        labelled_frame(frame(**{f"REF_{label}": value}), KeysConfig(), "a#0")


def test_a_stress_is_symmetric_to_what_programs_leave():
    stress = np.array([[0.1, 0.021, 0.0], [0.02, 0.1, 0.0], [0.0, 0.0, 0.1]])
    found = labelled_frame(frame(REF_stress=stress), KeysConfig(), "a#0").stress
    np.testing.assert_array_equal(found, stress)


@pytest.mark.parametrize("value", [-1, np.float32(-1.0), np.int64(-1), np.array(-1.0)])
def test_numbers_of_any_kind(value):
    assert labelled_frame(frame(REF_energy=value), KeysConfig(), "a#0").energy == -1.0


def test_true_in_a_file(tmp_path):
    path = tmp_path / "a.extxyz"
    ase.io.write(path, [frame(), frame(REF_energy=True)])
    for read in (lambda: read_frames(str(path)), lambda: read_evaluation_frames(str(path))):
        with pytest.raises(DataError, match=r"a\.extxyz#1: 'REF_energy' is .*True.*not a number"):
            read()


# --- names that differ in case -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["energy", "forces", "stress"])
def test_a_name_in_another_case_is_named(tmp_path, name):
    atoms = frame(REF_stress=0.01 * IDENTITY)
    store = atoms.arrays if name == "forces" else atoms.info
    store[f"Ref_{name}"] = store.pop(f"REF_{name}")
    path = tmp_path / "a.extxyz"
    ase.io.write(path, atoms)
    message = f"no label 'REF_{name}', but 'Ref_{name}'.*data.keys.{name}"
    with pytest.raises(DataError, match=message):
        read_frames(str(path))
    with pytest.raises(DataError, match=message):
        read_evaluation_frames(str(path))


# --- stress and virial -------------------------------------------------------------------------


def test_stress_from_a_virial():
    """σ = -W / V, in the three forms, Voigt in ASE's order."""
    atoms = bulk("Cu", "fcc", a=3.5, cubic=True).repeat((1, 1, 2))
    atoms.cell[0, 1] = 0.3
    atoms.positions += 0.05 * np.random.default_rng(0).normal(size=atoms.positions.shape)
    atoms.calc = EMT()
    stress, volume = atoms.get_stress(voigt=False), atoms.get_volume()
    keys = KeysConfig(virial="W")
    for virial in (-volume * stress, (-volume * stress).ravel(), -volume * atoms.get_stress()):
        labelled = frame(REF_forces=None, W=virial)
        labelled.set_cell(atoms.cell)
        labelled.arrays["REF_forces"] = np.zeros((4, 3))
        found = labelled_frame(labelled, keys, "a#0").stress
        np.testing.assert_allclose(found, stress, rtol=1e-12)


def test_the_virial_is_minus_the_derivative_of_the_energy_along_a_strain():
    """W = -∂E/∂ε, by finite differences: the sign of GPUMD, NEP and DeePMD."""
    atoms = bulk("Cu", "fcc", a=3.45)
    energies = []
    for strain in (-1e-4, 1e-4):
        strained = atoms.copy()
        strained.set_cell(atoms.cell @ (IDENTITY * (1 + strain)), scale_atoms=True)
        strained.calc = EMT()
        energies.append(strained.get_potential_energy())
    trace = -(energies[1] - energies[0]) / 2e-4
    atoms.info = {"REF_energy": 0.0, "virial": trace / 3 * IDENTITY}
    atoms.arrays["REF_forces"] = np.zeros((1, 3))
    found = labelled_frame(atoms, KeysConfig(virial="virial"), "a#0").stress
    atoms.calc = EMT()
    np.testing.assert_allclose(found, atoms.get_stress(voigt=False), atol=1e-8)


def test_virial_through_a_file(tmp_path):
    path = tmp_path / "a.extxyz"
    atoms = frame(virial=np.array([[1.0, 0.2, 0.3], [0.2, 2.0, 0.4], [0.3, 0.4, 3.0]]))
    ase.io.write(path, atoms)
    for keys in (KeysConfig(virial="virial"), KeysConfig(stress=None, virial="virial")):
        (found,) = read_frames(str(path), keys)
        expected = -atoms.info["virial"] / atoms.get_volume()
        np.testing.assert_allclose(found.stress, expected, rtol=1e-12)
        (partly,) = read_evaluation_frames(str(path), keys)
        np.testing.assert_array_equal(partly.stress, found.stress)
    assert read_frames(str(path))[0].stress is None


def test_both_stress_and_virial_in_one_frame():
    atoms = frame(REF_stress=0.01 * IDENTITY, W=IDENTITY)
    with pytest.raises(DataError, match="a#0: has both 'REF_stress' and 'W'; keep one"):
        labelled_frame(atoms, KeysConfig(virial="W"), "a#0")


@pytest.mark.parametrize("keys", [KeysConfig(), KeysConfig(virial="REF_virial")])
def test_no_volume(keys):
    atoms = molecule("H2O")
    atoms.info = {"REF_energy": -1.0}
    atoms.info["REF_stress" if keys.virial is None else "REF_virial"] = IDENTITY
    atoms.arrays["REF_forces"] = np.zeros((3, 3))
    with pytest.raises(DataError, match="is given, but the cell has no volume"):
        labelled_frame(atoms, keys, "a#0")


def test_high_stress_is_said_once_a_file(tmp_path):
    path = tmp_path / "a.extxyz"
    frames = [frame(REF_stress=size * IDENTITY) for size in (0.4, 0.6, -0.7)]
    ase.io.write(path, frames)
    message = re.escape(
        "a.extxyz#1: a stress of 0.6 eV/Å³ is above 0.5 eV/Å³ (80 GPa), as in 2 of 3"
    )
    for read in (read_frames, read_evaluation_frames):
        with pytest.warns(UserWarning, match=message) as found:
            read(str(path))
        assert len(found) == 1
    assert len(read_frames(f"{path}@0:1")) == 1  # below: no word


def test_voigt_stress_in_info(tmp_path):
    atoms = labelled(0, periodic=True)
    atoms.info["REF_stress"] = 0.01 * np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    (frame,) = read_frames(write(tmp_path / "a.extxyz", atoms))
    expected = [[0.01, 0.06, 0.05], [0.06, 0.02, 0.04], [0.05, 0.04, 0.03]]
    np.testing.assert_allclose(frame.stress, expected)


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


def test_wrong_key_lists_the_labels_that_exist(tmp_path):
    path = write(tmp_path / "a.extxyz", labelled())
    with pytest.raises(DataError, match=r"no label 'E'; the frame has: REF_energy.*data\.keys"):
        read_frames(path, KeysConfig(energy="E"))
