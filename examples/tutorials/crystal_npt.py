"""A crystal with stress at constant pressure: the lattice constant with its error bar.

Copper with ASE's EMT as the reference, so that everything can be compared with the truth. Run it in
an empty folder; `--full` trains on more frames, for longer.
"""

import sys
from pathlib import Path

import ase.io
import matplotlib as mpl
import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.md.nose_hoover_chain import IsotropicMTKNPT

from ase_bayesmlip import BayesianCalculator
from ase_bayesmlip.cli.main import main

mpl.use("Agg")
import matplotlib.pyplot as plt

FULL = "--full" in sys.argv
N_FRAMES, EPOCHS, STEPS = (200, 100, 2000) if FULL else (24, 20, 60)
TEMPERATURE_K = 300.0

CONFIG = """
data:
  train: train.extxyz
  keys: {{energy: energy, forces: forces, stress: stress}}
model: {{hidden_irreps: 8x0e + 8x1o, n_radial: 6, cutoff: 4.0, n_layers: 1}}
training: {{epochs: {epochs}, batch_size: 4, learning_rate: 0.02, evaluate_every: 20}}
posterior: {{kind: ensemble, members: 3}}
"""


def labelled_frames(n: int) -> list[Atoms]:
    """Rattled cells with EMT's labels, at strains of several percent: stress is learned there."""
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(n):
        atoms = bulk("Cu", cubic=True)
        strain = np.eye(3) + rng.uniform(-0.04, 0.05) * np.eye(3) + rng.normal(0, 0.01, (3, 3))
        atoms.set_cell(atoms.cell @ ((strain + strain.T) / 2), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.08, (len(atoms), 3))
        atoms.calc = EMT()
        atoms.get_stress()
        frames.append(atoms)
    return frames


def pressure(stress: np.ndarray) -> np.ndarray:
    """Pressure in GPa of stresses in Voigt order, (..., 6), eV/Å³."""
    return -stress[..., :3].mean(axis=-1) / units.GPa


def lattice_constants(calc: BayesianCalculator) -> np.ndarray:
    """The lattice constant of each member, (S,), Å: where its pressure is zero."""
    lengths = np.linspace(3.5, 3.7, 9)
    results = calc.evaluate([bulk("Cu", cubic=True, a=a) for a in lengths])
    pressures = np.array([pressure(r["stress_ensemble"]) for r in results])  # (9, S)
    return np.array([np.interp(0.0, -p, lengths) for p in pressures.T])


def lattice_constant_of_emt() -> float:
    """The truth, Å."""
    lengths, pressures = np.linspace(3.5, 3.7, 41), []
    for length in lengths:
        atoms = bulk("Cu", cubic=True, a=length)
        atoms.calc = EMT()
        pressures.append(-float(pressure(atoms.get_stress())))
    return float(np.interp(0.0, pressures, lengths))


def run_npt(calc: BayesianCalculator) -> np.ndarray:
    """Rows of time (fs), volume (Å³/atom), pressure, its error bar and the truth (GPa)."""
    atoms = bulk("Cu", cubic=True) * 2
    atoms.calc = calc
    rng = np.random.RandomState(1)
    scale = np.sqrt(units.kB * TEMPERATURE_K * atoms.get_masses())
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * scale[:, None])
    dyn = IsotropicMTKNPT(
        atoms,
        timestep=2 * units.fs,
        temperature_K=TEMPERATURE_K,
        pressure_au=0.0,
        tdamp=100 * units.fs,
        pdamp=300 * units.fs,
    )
    rows = []
    for _ in dyn.irun(STEPS):
        if dyn.nsteps % 5 == 0:
            members = pressure(calc.results["stress_ensemble"])
            truth = atoms.copy()
            truth.calc = EMT()
            true = float(pressure(truth.get_stress()))
            volume = atoms.get_volume() / len(atoms)
            rows.append((2 * dyn.nsteps, volume, members.mean(), members.std(ddof=1), true))
    return np.array(rows)


def bayesmlip(words: str) -> None:
    """A command, as in the shell."""
    if main(words.split()):
        sys.exit(f"bayesmlip {words} failed")


if __name__ == "__main__":
    ase.io.write("train.extxyz", labelled_frames(N_FRAMES))
    Path("config.yaml").write_text(CONFIG.format(epochs=EPOCHS), encoding="utf-8")
    bayesmlip("train config.yaml --out run --jobs 1 --quiet")
    bayesmlip("serve run -o model.pt")

    calc = BayesianCalculator("model.pt", return_members=True)
    a, exact = lattice_constants(calc), lattice_constant_of_emt()
    print(f"lattice constant {a.mean():.4f} ± {a.std(ddof=1):.4f} Å; of EMT {exact:.4f} Å")

    rows = run_npt(calc)
    time, volume, mean, sigma, true = rows.T
    error = np.sqrt(np.mean((mean - true) ** 2))
    print(f"pressure: error {error:.2f} GPa (RMS), error bar {np.sqrt((sigma**2).mean()):.2f} GPa")
    print(f"volume: {volume.mean():.3f} Å³/atom; of EMT's lattice {exact**3 / 4:.3f} Å³ at 0 K")

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6), constrained_layout=True)
    left.plot(time, volume, color="#0072B2")
    left.set(xlabel="time, fs", ylabel="volume, Å³ per atom", title="NPT at 300 K and 0 GPa")
    right.fill_between(time, mean - sigma, mean + sigma, color="#56B4E9", alpha=0.5)
    right.plot(time, mean, color="#0072B2", label="three members")
    right.plot(time, true, color="#D55E00", linewidth=0.9, label="EMT, same frames")
    right.set(xlabel="time, fs", ylabel="pressure, GPa", title="with its error bar")
    right.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig("crystal-npt.png", dpi=90)
