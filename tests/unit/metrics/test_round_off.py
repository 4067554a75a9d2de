"""Labels that are a model's own predictions are noticed, however they were stored."""

import dataclasses
import warnings

import numpy as np
import pytest
from ase import Atoms
from ase.io import read, write
from evaluation_data import make_comparison

from ase_bayesmlip.calibration import calibrate, observe
from ase_bayesmlip.evaluation import Bootstrap, Comparison, EvaluationFrame, evaluate
from ase_bayesmlip.structures.labelled import LabelledFrame, read_frames


def single(values):
    return np.asarray(values, dtype=np.float32).astype(np.float64)


def noisy(values, size=2e-6):
    """As two runs of one potential in float32 differ."""
    return values + size * np.random.default_rng(0).standard_normal(np.shape(values))


STORED = {
    "exactly": lambda x: x,
    "8 decimals": lambda x: np.round(x, 8),
    "4 decimals": lambda x: np.round(x, 4),
    "3 decimals": lambda x: np.round(x, 3),
    "float32": single,
    "another run in float32": noisy,
}


def own_labels(comparison, store, which=("energy", "forces"), every=1):
    frames = []
    for k, (frame, result) in enumerate(zip(comparison.frames, comparison.results, strict=True)):
        energy, forces = frame.energy, frame.forces
        if k % every == 0:
            energy = float(store(result["energy"])) if "energy" in which else energy
            forces = store(result["forces"]) if "forces" in which else forces
        frames.append(LabelledFrame(frame.atoms, energy, forces, None, f"own#{k}"))
    return frames


@pytest.mark.parametrize("stored", STORED)
def test_own_predictions_are_no_labels(stored):
    """calibrate refuses them; evaluate, which changes nothing, says so."""
    comparison = make_comparison(30)
    frames = own_labels(comparison, STORED[stored])
    with pytest.raises(ValueError, match=r"forces of 30 of 30 frames are identical.*own pred"):
        calibrate(observe(comparison.results, frames), [1, 6, 8], "global")
    content = [EvaluationFrame(f.atoms, f.energy, f.forces) for f in frames]
    evaluation = evaluate(Comparison(content, comparison.results), bootstrap=Bootstrap(60))
    assert any(
        "test set: the forces of 30 of 30 frames are identical" in n for n in evaluation.notes
    )


def test_one_quantity_alone_and_a_part_of_the_frames():
    comparison = make_comparison(30)
    with pytest.raises(ValueError, match="the energies of 30 of 30 frames are identical"):
        observe(comparison.results, own_labels(comparison, STORED["8 decimals"], ("energy",)))
    with pytest.raises(ValueError, match="the forces of 8 of 30 frames are identical"):
        observe(comparison.results, own_labels(comparison, STORED["8 decimals"], every=4))


def test_small_errors_are_no_round_off():
    """A hundred times better than any potential, and nothing is said."""
    comparison = make_comparison(30)
    frames = own_labels(comparison, lambda x: noisy(x, 1e-3))
    assert observe(comparison.results, frames).n_frames == 30
    assert evaluate(make_comparison(30), bootstrap=Bootstrap(60)).notes == []


def test_energies_of_different_compositions_scatter_by_more_than_their_errors():
    """The scatter that counts is that for one composition: 0.1 eV here, of some 100 eV."""
    generator = np.random.default_rng(1)
    results, frames = [], []
    for number in range(40):
        atoms = Atoms("H" * (1 + number % 4) + "O")
        n = len(atoms)
        energy = -100.0 * n + 0.1 * generator.standard_normal()
        results.append({"energy": energy, "forces": np.zeros((n, 3)), "energy_var_epistemic": 1e-4})
        error = 1e-3 * generator.standard_normal()
        labels = generator.standard_normal((n, 3))
        frames.append(LabelledFrame(atoms, energy + error, labels, None, f"#{number}"))
    assert observe(results, frames).n_frames == 40
    own = [dataclasses.replace(f, energy=r["energy"]) for f, r in zip(frames, results, strict=True)]
    with pytest.raises(ValueError, match="energies of 40 of 40"):
        observe(results, own)


def test_forces_that_vanish_by_symmetry_are_no_round_off():
    comparison = make_comparison(30)
    frames = own_labels(comparison, lambda x: noisy(x, 0.05))
    for k in range(0, 30, 2):
        comparison.results[k]["forces"] = np.zeros((6, 3))
        frames[k] = dataclasses.replace(frames[k], forces=np.zeros((6, 3)))
    assert observe(comparison.results, frames).n_frames == 30


def test_through_a_file(tmp_path):
    """A round trip through extended XYZ, 8 decimals."""
    comparison = make_comparison(20)
    images = []
    for frame, result in zip(comparison.frames, comparison.results, strict=True):
        atoms = frame.atoms.copy()
        atoms.info["REF_energy"], atoms.arrays["REF_forces"] = result["energy"], result["forces"]
        images.append(atoms)
    write(tmp_path / "own.extxyz", images)
    assert len(read(tmp_path / "own.extxyz", ":")) == 20
    frames = read_frames(str(tmp_path / "own.extxyz"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="Give labels of the reference method"):
            observe(comparison.results, frames)
