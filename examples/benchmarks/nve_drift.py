"""Energy drift of constant-energy dynamics with the served mean potential, in float64.

    python examples/benchmarks/nve_drift.py data/ethanol_ensemble.pt data/ethanol_test.extxyz

Prints one JSON line: the slope of a straight line through the total energy, per atom.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from ase import units
from ase.io import read
from ase.md.verlet import VelocityVerlet
from tqdm import tqdm

from ase_bayesmlip import BayesianCalculator


def main() -> None:
    """Run and print the drift."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("start")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--time-step-fs", type=float, default=0.5)
    parser.add_argument("--temperature-K", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    atoms = read(arguments.start, index=0)
    atoms.calc = BayesianCalculator(arguments.model, dtype="float64")
    spread = np.sqrt(atoms.get_masses() * units.kB * arguments.temperature_K)
    momenta = np.random.default_rng(arguments.seed).normal(size=(len(atoms), 3)) * spread[:, None]
    atoms.set_momenta(momenta - momenta.mean(axis=0))
    dyn = VelocityVerlet(atoms, arguments.time_step_fs * units.fs)
    energy = np.array(
        [
            atoms.get_total_energy() / len(atoms)
            for _ in tqdm(dyn.irun(arguments.steps), total=arguments.steps + 1, unit="step")
        ]
    )
    time_ps = np.arange(len(energy)) * arguments.time_step_fs * 1e-3
    slope, _ = np.polyfit(time_ps, energy, 1)
    print(
        json.dumps(
            {
                "model": arguments.model.name,
                "steps": arguments.steps,
                "time_ps": round(float(time_ps[-1]), 4),
                "time_step_fs": arguments.time_step_fs,
                "drift_eV_per_atom_per_ps": float(f"{slope:.3g}"),
                "rms_fluctuation_eV_per_atom": float(f"{energy.std():.3g}"),
            }
        )
    )


if __name__ == "__main__":
    main()
