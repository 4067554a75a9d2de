"""Errors of a trained MACE model on labelled frames: one JSON line per file of frames.

Runs in MACE's environment; `mace_acac.sh` trains the model:

python examples/benchmarks/mace_accuracy.py acac_stagetwo.model --epochs 45 \
    test_300K.extxyz test_600K.extxyz
"""

import argparse
import contextlib
import json
import platform
import sys
from pathlib import Path

import ase.io
import numpy as np
import torch

with contextlib.redirect_stdout(sys.stderr):  # MACE prints when it is imported
    import mace
    from mace.calculators import MACECalculator


def errors(calculator: MACECalculator, path: str) -> dict[str, object]:
    """Energy and force errors on the frames of one file."""
    energy, force = [], []
    frames = ase.io.read(path, ":")
    for atoms in frames:
        atoms.calc = calculator
        difference = atoms.info["REF_energy"] - atoms.get_potential_energy()
        energy.append(difference / len(atoms))
        force.append((atoms.arrays["REF_forces"] - atoms.get_forces()).ravel())
    force_errors = np.concatenate(force)
    return {
        "frames": Path(path).name,
        "n_frames": len(frames),
        "energy_rmse_meV_per_atom": round(1e3 * float(np.sqrt(np.mean(np.square(energy)))), 3),
        "forces_rmse_meV_per_A": round(1e3 * float(np.sqrt(np.mean(force_errors**2))), 2),
        "forces_mae_meV_per_A": round(1e3 * float(np.mean(np.abs(force_errors))), 2),
    }


def main() -> None:
    """Print one JSON line per file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("frames", nargs="+")
    parser.add_argument("--epochs", type=int, help="of the training, for the record")
    arguments = parser.parse_args()
    # In float64, so that the sum of large reference energies is not rounded.
    calculator = MACECalculator(arguments.model, device="cpu", default_dtype="float64")
    common = {
        "model": f"MACE {mace.__version__}, 32x0e + 32x1o, two layers",
        "n_parameters": sum(p.numel() for p in calculator.models[0].parameters()),
        "epochs": arguments.epochs,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    for path in arguments.frames:
        print(json.dumps({**common, **errors(calculator, path)}, ensure_ascii=False))


if __name__ == "__main__":
    main()
