"""Errors of a served file on labelled frames: one JSON line per file of frames.

python examples/benchmarks/accuracy.py model.pt test_300K.extxyz test_600K.extxyz
"""

import argparse
import json
import platform
from pathlib import Path

import numpy as np
import torch

from ase_bayesmlip import BayesianCalculator
from ase_bayesmlip.structures.labelled import read_frames, sha256


def errors(calculator: BayesianCalculator, path: str) -> dict[str, object]:
    """Energy and force errors on the frames of one file."""
    frames = read_frames(path)
    results = calculator.evaluate([frame.atoms for frame in frames])
    energy = [
        (frame.energy - result["energy"]) / len(frame.atoms)
        for result, frame in zip(results, frames, strict=True)
    ]
    force = np.concatenate(
        [
            (frame.forces - result["forces"]).ravel()
            for result, frame in zip(results, frames, strict=True)
        ]
    )
    return {
        "frames": Path(path).name,
        "n_frames": len(frames),
        "sha256": sha256(frames),
        "energy_rmse_meV_per_atom": round(1e3 * float(np.sqrt(np.mean(np.square(energy)))), 3),
        "forces_rmse_meV_per_A": round(1e3 * float(np.sqrt(np.mean(force**2))), 2),
        "forces_mae_meV_per_A": round(1e3 * float(np.mean(np.abs(force))), 2),
    }


def main() -> None:
    """Print one JSON line per file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("frames", nargs="+")
    arguments = parser.parse_args()
    calculator = BayesianCalculator(arguments.model)
    card = calculator.card
    common = {
        "model": f"{card.backbone}, {card.kind}, {card.n_members} member(s)",
        "n_parameters": card.n_parameters,
        "epochs": card.config["training"]["epochs"],
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    for path in arguments.frames:
        print(json.dumps({**common, **errors(calculator, path)}, ensure_ascii=False))


if __name__ == "__main__":
    main()
