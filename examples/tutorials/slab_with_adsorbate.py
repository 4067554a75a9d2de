"""An adsorbate on a slab: fixed atoms, two periodic directions, and a monitor that watches.

Oxygen on copper with ASE's EMT as the reference. Run it in an empty folder; `--full` trains on more
frames, for longer.
"""

import sys
from pathlib import Path

import ase.io
import matplotlib as mpl
import numpy as np
from ase import Atoms, units
from ase.build import add_adsorbate, fcc111
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.md.langevin import Langevin

from ase_bayesmlip import BayesianCalculator, UncertaintyMonitor
from ase_bayesmlip.cli.main import main

mpl.use("Agg")
import matplotlib.pyplot as plt

FULL = "--full" in sys.argv
N_FRAMES, EPOCHS, STEPS = (300, 100, 1000) if FULL else (30, 12, 60)

CONFIG = """
data:
  train: "frames.traj@:{n}"
  calibration: "frames.traj@{n}:"
  keys: {{energy: energy, forces: forces}}
model: {{hidden_irreps: 8x0e + 8x1o, n_radial: 6, cutoff: 4.0, n_layers: 1}}
training: {{epochs: {epochs}, batch_size: 5, learning_rate: 0.02, evaluate_every: 12}}
posterior: {{kind: ensemble, members: 3}}
"""


def slab() -> Atoms:
    """Two fixed layers of copper, a free one, and an oxygen atom; nothing repeats along z."""
    atoms = fcc111("Cu", (2, 2, 3), vacuum=7.0)
    del atoms.info["adsorbate_info"]
    add_adsorbate(atoms, "O", height=1.3, position=(0.0, 1.47))
    atoms.set_constraint(FixAtoms([atom.index for atom in atoms if atom.tag >= 2]))
    return atoms


def dynamics(atoms: Atoms, temperature_K: float, seed: int) -> Langevin:
    """Constant temperature, with the centre of mass left alone: the slab is held."""
    rng = np.random.RandomState(seed)
    scale = np.sqrt(units.kB * temperature_K * atoms.get_masses())
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * scale[:, None])
    friction = 0.02 / units.fs
    return Langevin(
        atoms, 2 * units.fs, temperature_K=temperature_K, friction=friction, fixcm=False, rng=rng
    )


def labelled_frames(n: int, temperature_K: float = 300.0) -> list[Atoms]:
    """Frames of EMT dynamics, 20 fs apart, with all forces: those on fixed atoms as well."""
    atoms = slab()
    atoms.calc = EMT()
    dyn = dynamics(atoms, temperature_K, seed=0)
    frames = []
    for _ in range(n):
        dyn.run(10)
        frame = atoms.copy()
        frame.calc = EMT()
        frame.get_forces()
        frames.append(frame)
    return frames


def watch(temperature_K: float) -> UncertaintyMonitor:
    """Dynamics of the trained potential under a monitor, from the same start."""
    atoms = slab()
    atoms.calc = BayesianCalculator("model.pt")
    dyn = dynamics(atoms, temperature_K, seed=1)
    log = f"monitor-{temperature_K:.0f}K.csv"
    monitor = UncertaintyMonitor(dyn, false_alarm_rate=0.1, log=log, max_temperature_K=1e5)
    dyn.attach(monitor)
    dyn.run(STEPS)
    print(
        f"{temperature_K:.0f} K: {monitor.n_flagged} of {monitor.n_observed} frames above "
        f"{1e3 * monitor.threshold:.0f} meV/Å"
    )
    return monitor


def bayesmlip(words: str) -> None:
    """A command, as in the shell."""
    if main(words.split()):
        sys.exit(f"bayesmlip {words} failed")


if __name__ == "__main__":
    frames = labelled_frames(N_FRAMES + 20)
    ase.io.write("frames.traj", frames)
    fixed = frames[0].constraints[0].index
    print(f"periodic: {frames[0].pbc.tolist()}, {len(fixed)} of {len(frames[0])} atoms fixed")
    # Trap: get_forces() of a constrained structure has zeros, which are no labels.
    zeros = np.abs(frames[-1].get_forces()[fixed]).max()
    labels = np.abs(ase.io.read("frames.traj").calc.results["forces"][fixed]).max()
    print(f"largest force on a fixed atom: get_forces() {zeros:.2f}, label {labels:.2f} eV/Å")

    text = CONFIG.format(n=N_FRAMES, epochs=EPOCHS)
    Path("config.yaml").write_text(text, encoding="utf-8")
    bayesmlip("train config.yaml --out run --jobs 1 --quiet")
    bayesmlip("serve run -o model.pt")

    figure, axes = plt.subplots(figsize=(5, 2.6), constrained_layout=True)
    for kelvin, colour in ((300.0, "#0072B2"), (1200.0, "#D55E00")):
        monitor = watch(kelvin)
        log = np.genfromtxt(f"monitor-{kelvin:.0f}K.csv", delimiter=",", names=True)
        axes.plot(2 * log["step"], 1e3 * log["score"], color=colour, label=f"{kelvin:.0f} K")
    axes.axhline(1e3 * monitor.threshold, color="#595959", linestyle="--", label="threshold")
    axes.set(xlabel="time, fs", ylabel="score, meV/Å", title="oxygen on copper, trained at 300 K")
    axes.set_ylim(0.0)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig("slab-with-adsorbate.png", dpi=90)
