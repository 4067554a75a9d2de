"""The alarm "the calibration has expired" on real dynamics: how often wrongly, how soon rightly.

    python examples/benchmarks/alarm.py --out examples/benchmarks/results/alarm.json

The shipped ensemble runs ethanol at the temperature of its calibration frames, where every alarm is
a false one, and at higher temperatures, each from its own seed. The alarm sees the score of every
step and begins anew when it has fired. One line of JSON per temperature.
"""

import argparse
import json
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase import units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from tqdm import tqdm

from ase_bayesmlip import BayesianCalculator
from ase_bayesmlip.md.alarm import CalibrationAlarm
from ase_bayesmlip.scores import SCORES, evaluate_score

SCORE = "forces_epistemic_max"
TIME_STEP_FS = 0.5
FRICTION_PER_FS = 0.01
EQUILIBRATION = 2000


def watch(
    calculator: BayesianCalculator, temperature_K: float, n_steps: int, frames: float, seed: int
) -> dict[str, Any]:
    """Run at a temperature and count the alarms."""
    with as_file(files("ase_bayesmlip.data") / "ethanol_test.extxyz") as path:
        atoms = ase.io.read(path, index=seed)
    atoms.calc = calculator
    generator = np.random.default_rng(seed)
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature_K, rng=generator)
    dyn = Langevin(
        atoms,
        TIME_STEP_FS * units.fs,
        temperature_K=temperature_K,
        friction=FRICTION_PER_FS / units.fs,
        rng=generator,
        fixcm=False,
    )
    dyn.run(EQUILIBRATION)
    alarm = CalibrationAlarm(frames, actions=[], seed=seed)
    known = calculator.card.calibration["scores"][SCORE]
    alarm.start(known)
    limit = float(np.quantile(known, 0.99))
    delays, strides, n_above = [], [], 0
    for _ in tqdm(dyn.irun(n_steps), f"{temperature_K:g} K", n_steps + 1, unit="step"):
        score = evaluate_score(SCORES[SCORE], calculator.results, atoms).value
        n_above += score > limit
        if alarm.update(score):
            delays.append(alarm.n_frames)
            strides.append(alarm.stride)
            alarm.start(known)
    return {
        "temperature_K": temperature_K,
        "seed": seed,
        "n_frames": n_steps + 1,
        "frames_between_false_alarms": frames,
        "n_alarms": len(delays),
        "frames_to_alarm": delays,
        "stride": strides[-1] if strides else alarm.stride,
        "fraction_above_99_percent": n_above / (n_steps + 1),
    }


def main() -> None:
    """Watch each temperature, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12_000, help="at the first temperature")
    parser.add_argument("--hot-steps", type=int, default=4_000, help="at each other one")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[300.0, 400.0, 600.0])
    parser.add_argument("--frames", type=float, default=1e4, help="between false alarms")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="keep the numbers there as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with as_file(files("ase_bayesmlip.data") / "ethanol_ensemble.pt") as path:
        calculator = BayesianCalculator(path, lazy=True)
    found = []
    for seed, temperature in enumerate(arguments.temperatures):
        n_steps = arguments.hot_steps if seed else arguments.steps
        found.append(watch(calculator, temperature, n_steps, arguments.frames, seed))
        print(json.dumps(found[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
