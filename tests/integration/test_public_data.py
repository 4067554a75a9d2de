"""Configurations for public data sets find what is in files laid out as those are."""

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from labelled_files import write_npz

from ase_bayesmlip.config import load_config
from ase_bayesmlip.structures.labelled import read_frames
from ase_bayesmlip.structures.reading import DataError

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"


def write_trajectory(path: Path, periodic: bool, n_frames: int = 3) -> list[Atoms]:
    """Random labels in a calculator, as ASE's trajectories hold them."""
    generator = np.random.default_rng(0)
    frames = []
    for _ in range(n_frames):
        # Molecules of these sets have a cell and no periodicity.
        atoms = bulk("BN", "zincblende", a=3.6) if periodic else Atoms("NH", cell=[20, 20, 20])
        atoms.positions[1] += generator.normal(scale=0.1, size=3) + (0.0 if periodic else 1.0)
        labels = {"energy": float(generator.normal()), "forces": generator.normal(size=(2, 3))}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        frames.append(atoms)
    ase.io.write(path, frames)
    return frames


@pytest.mark.parametrize(
    ("name", "variable", "value", "written", "periodic"),
    [
        ("psb3", "PSB3", "psb3_oss", "psb3_oss_train_lattice.traj", False),
        ("obn25", "OBN25", ".", "liquid_bn_train.traj", True),
    ],
)
def test_trajectories(tmp_path, monkeypatch, name, variable, value, written, periodic):
    monkeypatch.setenv(variable, str(tmp_path / value))
    labelled = write_trajectory(tmp_path / written, periodic)
    data = load_config(CONFIGS / f"{name}.yaml").data
    frames = read_frames(data.train, data.keys)
    assert len(frames) == len(labelled)
    for frame, atoms in zip(frames, labelled, strict=True):
        assert frame.energy == atoms.calc.results["energy"]
        np.testing.assert_array_equal(frame.forces, atoms.calc.results["forces"])
        assert frame.atoms.pbc.all() == periodic
    parts = [part for part in (data.valid, data.calibration) if part]
    assert all(str(part).startswith(str(tmp_path)) for part in parts)


def test_arrays_of_md22(tmp_path, monkeypatch):
    monkeypatch.setenv("MD22", write_npz(tmp_path / "md22_x.npz", "MD22"))
    data = load_config(CONFIGS / "md22.yaml").data
    assert data.units == "kcal/mol"
    assert len(read_frames(data.train, data.keys, data.units)) == 4


def test_a_clone_without_its_large_files_is_told_so(tmp_path):
    path = tmp_path / "liquid_bn_train.traj"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(DataError, match=r"train\.traj is a pointer of Git LFS.*git lfs pull"):
        read_frames(str(path))
