"""Energies of isolated atoms: given, from a file, and fitted."""

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from labelled_files import write

from ase_bayesmlip.config import DataConfig
from ase_bayesmlip.structures.labelled import LabelledFrame, read_frames
from ase_bayesmlip.structures.reading import DataError
from ase_bayesmlip.structures.reference_energies import reference_energies


def atom(symbol, energy, isolated=False, **settings) -> Atoms:
    atoms = Atoms(symbol, **settings)
    if energy is not None:
        atoms.info["REF_energy"] = energy
    if isolated:
        atoms.info["config_type"] = "IsolatedAtom"
    return atoms


def crystal(symbol, energy) -> Atoms:
    atoms = bulk(symbol)
    atoms.info["REF_energy"] = energy
    return atoms


def found(tmp_path, frames, symbols="Cu", given=None):
    atoms = Atoms(symbols, positions=np.arange(3 * len(Atoms(symbols))).reshape(-1, 3))
    training = [LabelledFrame(atoms, 0.0, np.zeros((len(atoms), 3)), None, "train#0")]
    if given is None:
        given = str(tmp_path / "atoms.extxyz")
        ase.io.write(given, frames)
    return reference_energies(DataConfig(train="", reference_energies=given), training)


BOX = {"cell": [12, 12, 12], "pbc": True}


@pytest.mark.parametrize(
    "frames",
    [
        # A crystal of one atom is none, wherever it stands.
        [atom("Cu", 3.51), crystal("Cu", 0.0132)],
        [crystal("Cu", 0.0132), atom("Cu", 3.51)],
        # Frames that say so win over those that do not.
        [atom("Cu", 3.51, True), atom("Cu", 9.0)],
        [atom("Cu", 9.0), atom("Cu", 3.51, True, **BOX), crystal("Cu", 0.0132)],
        # The same energy twice is one.
        [atom("Cu", 3.51), atom("Cu", 3.51 + 5e-7)],
        [atom("Cu", 3.51, cell=[12, 12, 12]), atom("H", -13.6)],
    ],
)
def test_which_frames_count(tmp_path, frames):
    assert found(tmp_path, frames) == {29: 3.51}


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([crystal("Cu", 0.0132)], r"atoms\.extxyz: no reference energy for Cu"),
        ([atom("H", -13.6, True), atom("Cu", 3.51)], "no reference energy for Cu"),
        (
            [atom("Cu", 3.51), atom("H", -13.6), atom("Cu", 3.52)],
            r"extxyz#2: the energy of an isolated Cu is 3\.52 eV, but 3\.51 eV in .*extxyz#0",
        ),
        (
            [atom("Cu", 3.51, True), atom("Cu", 3.51 + 2e-6, True)],
            r"extxyz#1: the energy of an isolated Cu is 3\.51.* in .*extxyz#0",
        ),
        ([molecule("H2")], "no reference energy for Cu"),
        ([atom("Cu", 3.51), atom("Cu", None)], r"extxyz#1: no label 'REF_energy'"),
        ([atom("Cu", True)], "extxyz#0: 'REF_energy' is .*True.*, not a number"),
        ([atom("Cu", np.nan)], "extxyz#0: 'REF_energy' is nan"),
        ([atom("Cu", 1e9)], "extxyz#0: 'REF_energy' is 1e.09, beyond"),
        (
            [atom("Cu", 3.51, True, cell=bulk("Cu").cell, pbc=True)],
            r"extxyz#0: config_type is IsolatedAtom, but its periodic images are 2\.55 Å apart",
        ),
    ],
)
def test_refused(tmp_path, frames, message):
    with pytest.raises(DataError, match=message):
        found(tmp_path, frames)


def test_an_isolated_atom_of_three_atoms(tmp_path):
    frames = [molecule("H2O")]
    frames[0].info = {"config_type": "IsolatedAtom", "REF_energy": -1.0}
    with pytest.raises(DataError, match=r"#0: config_type is IsolatedAtom, but there are 3 atoms"):
        found(tmp_path, frames)


@pytest.mark.parametrize("value", [np.nan, np.inf, True, "3.5", [3.5], None])
def test_values_of_a_mapping(tmp_path, value):
    with pytest.raises(DataError, match=r"data: 'reference_energies\.Cu' is"):
        found(tmp_path, None, given={"Cu": value})


@pytest.mark.parametrize("symbol", ["X", "cu", "Copper", "", 29])
def test_names_of_a_mapping(tmp_path, symbol):
    with pytest.raises(DataError, match="is no element; use chemical symbols"):
        found(tmp_path, None, given={symbol: 1.0})


DATA = Path(__file__).parents[3] / "data"


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
