"""The served file in ``data/``: format version 1 must load for ever and keep its numbers."""

from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.io import read
from ase.md.verlet import VelocityVerlet

from ase_bayesmlip.calculator import BayesianCalculator
from ase_bayesmlip.card import read_card
from ase_bayesmlip.md.monitor import UncertaintyMonitor
from ase_bayesmlip.md.rewind import Rewind
from ase_bayesmlip.md.temperature import draw_velocities
from ase_bayesmlip.md.threshold import false_alarm_threshold
from ase_bayesmlip.scores import SCORES
from ase_bayesmlip.serving.runtime import load_model
from ase_bayesmlip.structures.labelled import read_frames, sha256
from ase_bayesmlip.testing import check_served_model

DATA = Path(__file__).parents[2] / "data"
MODEL = DATA / "ethanol_ensemble.pt"


@pytest.fixture(scope="module")
def calculator():
    return BayesianCalculator(MODEL, dtype="float64")


def errors_and_scores(calculator, name):
    frames = read_frames(str(DATA / name))
    results = calculator.evaluate([frame.atoms for frame in frames])
    error = [f.forces - r["forces"] for r, f in zip(results, frames, strict=True)]
    score = [
        SCORES["forces_epistemic_max"](r, f.atoms).value
        for r, f in zip(results, frames, strict=True)
    ]
    return np.array(error), np.array(score), results


def test_card_matches_the_data_it_was_trained_on():
    card = read_card(MODEL)
    assert card.format_version == 1
    assert card.training["train_sha256"] == sha256(read_frames(str(DATA / "ethanol_train.extxyz")))
    assert card.calibration["sha256"] == sha256(read_frames(str(DATA / "ethanol_calib.extxyz")))
    assert card.calibration["n_frames"] == 300


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_symmetries(dtype):
    model = load_model(MODEL, dtype=dtype)
    check_served_model(model, read(DATA / "ethanol_test.extxyz", index=0))


def test_accuracy_on_frames_never_seen(calculator):
    error, _, _ = errors_and_scores(calculator, "ethanol_test.extxyz")
    assert 1e3 * np.sqrt(np.mean(error**2)) < 25.0  # meV/Å; force RMS is about 1,100


def test_error_bars_have_the_size_of_the_errors(calculator):
    """On frames that trained nothing, within a factor of √5; they are a little too wide."""
    error, _, results = errors_and_scores(calculator, "ethanol_calib.extxyz")
    frames = read_frames(str(DATA / "ethanol_calib.extxyz"))
    variance = np.array([r["forces_var"] for r in results])
    assert 1 / 5 < np.mean(error**2 / variance) < 5
    energy_error = [f.energy - r["energy"] for r, f in zip(results, frames, strict=True)]
    energy_variance = [r["energy_var"] for r in results]
    assert 1 / 5 < np.mean(np.square(energy_error) / energy_variance) < 5


def test_false_alarms_at_the_nominal_rate_and_alarms_when_hot(calculator):
    scores = calculator.card.calibration["scores"]["forces_epistemic_max"]
    threshold = false_alarm_threshold(scores, 0.05)
    quiet = (errors_and_scores(calculator, "ethanol_test.extxyz")[1] > threshold).mean()
    hot = (errors_and_scores(calculator, "ethanol_ood_1200K.extxyz")[1] > threshold).mean()
    # Four standard errors of a binomial count over 200 test and 300 calibration frames.
    assert quiet < 0.05 + 4 * np.sqrt(0.05 * 0.95 * (1 / 200 + 1 / 300))
    assert hot > 0.5


def test_stretched_bonds_are_flagged(calculator):
    scores = calculator.card.calibration["scores"]["forces_epistemic_max"]
    threshold = false_alarm_threshold(scores, 0.01)
    frames = read(DATA / "ethanol_ood_stretch.extxyz", ":")
    length = np.array([atoms.info["bond_length_A"] for atoms in frames])
    _, score, _ = errors_and_scores(calculator, "ethanol_ood_stretch.extxyz")
    kinds = np.array([atoms.info["config_type"] for atoms in frames])
    for kind in sorted(set(kinds)):
        longest = length[kinds == kind].argsort()[-10:]
        assert (score[kinds == kind][longest] > threshold).all(), kind


@pytest.mark.slow
def test_constant_energy_dynamics_conserve_energy(calculator):
    """An eighth of a picosecond; ``examples/benchmarks/nve_drift.py`` runs ten."""
    atoms = read(DATA / "ethanol_test.extxyz", index=0)
    atoms.calc = calculator
    spread = np.sqrt(atoms.get_masses() * units.kB * 300)[:, None]
    atoms.set_momenta(np.random.default_rng(0).normal(size=(9, 3)) * spread)
    energies = {}
    for step in (0.25, 0.5):
        run = atoms.copy()
        run.calc = calculator
        dyn = VelocityVerlet(run, step * units.fs)
        n_steps = round(125 / step)
        energies[step] = np.std([run.get_total_energy() for _ in dyn.irun(n_steps)])
    # Velocity Verlet on a smooth surface: the fluctuation falls with the square of the time step.
    assert energies[0.5] / energies[0.25] == pytest.approx(4.0, rel=0.25)
    assert energies[0.5] / 9 < 1e-3


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "unphysical frame at step"),
        ({"max_temperature_K": None}, "no neighbour within the cutoff"),
        ({"lone_atoms": "ignore"}, "K is above the limit"),
    ],
)
def test_a_time_step_without_its_unit_stops_within_a_few_frames(calculator, settings, reason):
    """0.5 of ASE's units is 5.1 fs: the molecule explodes, and no member disagrees about it."""
    atoms = read(DATA / "ethanol_calib.extxyz")
    atoms.calc = calculator
    draw_velocities(atoms, 300.0, np.random.default_rng(0))
    dyn = VelocityVerlet(atoms, 0.5)
    rewind = Rewind()
    monitor = UncertaintyMonitor(dyn, threshold=1e6, actions=[rewind], **settings)
    dyn.attach(monitor)
    dyn.run(100)
    assert dyn.nsteps < 12
    assert reason in monitor.stop_reason
    assert monitor.events[-1].kind == "unphysical"
    assert all(snapshot.step < dyn.nsteps for snapshot in rewind._snapshots)
