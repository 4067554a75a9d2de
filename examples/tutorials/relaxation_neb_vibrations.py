"""A relaxed molecule, a barrier and vibrations, each number with its error bar.

The shipped ensemble of four potentials (ethanol, GFN2-xTB at 300 K). Every number is computed once
for each member, and its error bar is the spread of the four: energies of two structures share most
of their error, so sigma of a difference is not the root of a sum of variances.

Run it anywhere: figures are written to the folder where it is started. `--full` takes more images.
"""

import sys
from importlib.resources import files

import matplotlib as mpl
import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.mep import NEB
from ase.optimize import BFGS, FIRE

from ase_bayesmlip import BayesianCalculator

mpl.use("Agg")
import matplotlib.pyplot as plt

N_IMAGES, FORCE = (9, 0.01) if "--full" in sys.argv else (5, 0.05)
MODEL = files("ase_bayesmlip.data") / "ethanol_ensemble.pt"
calc = BayesianCalculator(MODEL, return_members=True)


def members(atoms: Atoms, name: str) -> np.ndarray:
    """A result of each of the S members: `energy` (S,), `forces` (S, n_atoms, 3)."""
    calc.get_property("energy", atoms)
    return calc.results[f"{name}_ensemble"]


def with_error(values: np.ndarray) -> str:
    """Mean and spread of the members, in meV."""
    return f"{1e3 * values.mean():.1f} ± {1e3 * values.std(ddof=1):.1f} meV"


# --- Relaxation: two conformers, and the energy between them

anti, gauche = molecule("CH3CH2OH"), molecule("CH3CH2OH")
gauche.set_dihedral(0, 1, 2, 3, 60.0, indices=[3])
for atoms in (anti, gauche):
    atoms.rattle(0.02, seed=0)  # off the mirror plane: on it a saddle looks relaxed
    atoms.calc = calc
    BFGS(atoms, logfile=None).run(fmax=FORCE, steps=100)
    worst = calc.results["forces_std_epistemic"].max()
    print(f"relaxed: largest force {np.abs(atoms.get_forces()).max():.3f} ± {worst:.3f} eV/Å")

E_anti, E_gauche = members(anti, "energy"), members(gauche, "energy")
print(f"gauche - anti:  {with_error(E_gauche - E_anti)}")
naive = np.hypot(E_anti.std(ddof=1), E_gauche.std(ddof=1))
print(f"trap: the root of the sum of both variances is {1e3 * naive:.1f} meV")

# --- NEB: the barrier of the hydroxyl group's turn

images = [anti.copy() for _ in range(N_IMAGES - 1)] + [gauche.copy()]
for image in images:
    image.calc = calc
neb = NEB(images, climb=True, allow_shared_calculator=True, method="improvedtangent")
neb.interpolate("idpp")
FIRE(neb, logfile=None).run(fmax=2 * FORCE, steps=60)

path = np.array([members(image, "energy") for image in images])  # (images, S)
profile = path - path[0]
top = int(profile.mean(axis=1).argmax())
print(f"barrier (image {top} of {N_IMAGES}): {with_error(profile[top])}")
naive = np.hypot(path[top].std(ddof=1), path[0].std(ddof=1))
print(f"trap: the root of the sum of both variances is {1e3 * naive:.1f} meV")

# --- Vibrations: a Hessian for each member, from the forces of one set of displaced structures

STEP = 0.02  # Å: single precision asks for more than 0.01
displaced = []
for k in range(27):
    for sign in (1, -1):
        moved = anti.copy()
        moved.positions[k // 3, k % 3] += sign * STEP
        displaced.append(moved)
forces = np.array([r["forces_ensemble"] for r in calc.evaluate(displaced)])  # (54, S, 9, 3)
slopes = (forces[1::2] - forces[::2]) / (2 * STEP)
hessians = slopes.reshape(27, -1, 27).transpose(1, 0, 2)
hessians = (hessians + hessians.transpose(0, 2, 1)) / 2

masses = np.repeat(anti.get_masses(), 3)
omega2 = np.linalg.eigvalsh(hessians / np.sqrt(np.outer(masses, masses)))  # (S, 27)
# Six translations and rotations go; each member is at its own distance from its own minimum.
to_cm = units._hbar * np.sqrt(units._e / units._amu) * 1e10 / units._e / units.invcm
frequencies = np.sqrt(np.maximum(omega2[:, 6:], 0.0)) * to_cm  # (S, 21)
spread = frequencies.std(axis=0, ddof=1)
for mode in (0, 1, 12, 20):
    print(f"mode {mode + 1:2d}: {frequencies[:, mode].mean():7.1f} ± {spread[mode]:.1f} per cm")
zero_point = frequencies.sum(axis=1) * units.invcm / 2
print(f"zero-point energy: {zero_point.mean():.4f} ± {zero_point.std(ddof=1):.4f} eV")

# --- What it looks like

figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8), constrained_layout=True)
left.plot(1e3 * profile, color="#59595980", linewidth=0.8)
left.errorbar(
    range(N_IMAGES), 1e3 * profile.mean(1), 1e3 * profile.std(1, ddof=1), color="#0072B2", capsize=3
)
left.set(xlabel="image", ylabel="energy above anti, meV", title="hydroxyl turn: members and mean")
right.errorbar(frequencies.mean(axis=0), spread, fmt=".", color="#0072B2")
right.set(xlabel="frequency, per cm", ylabel="spread of members, per cm", title="vibrations")
right.set_ylim(0.0)
figure.savefig("relaxation-neb-vibrations.png", dpi=90)
