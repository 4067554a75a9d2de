"""What uncertainty costs a step: every kind of posterior against one potential, one run.

python examples/benchmarks/posterior_cost.py --threads 2 --out posterior_cost.json

Prints a table of milliseconds and ratios, and with --out writes them. A posterior is either n
networks (ensemble, SWAG, IVON, Laplace of all weights: everything comes at once) or one network
with n drawn readouts (last-layer Laplace: energy variances in closed form, the covariance of forces
by n derivatives more), or one evidential network, whose whole answer is compared with the same
network without heads. Potentials are untrained, of the default shape, in float32. BAYESMLIP_DATA is
the folder of the reference data, for the box of water.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from cases import conditions, served_file, structure

from ase_bayesmlip import BayesianCalculator

DATA = Path(__file__).parents[2] / "data"
SYSTEMS = {
    "ethanol": str(DATA / "ethanol_train.extxyz"),
    "water_192": "water_deepmd/train.extxyz.xz",
}
N = 8


def cases(frames: str, compiled: bool) -> dict[str, BayesianCalculator]:
    """Calculators to compare, by name."""
    one, many, draws = (served_file(frames, n, n_draws=d) for n, d in ((1, 0), (N, 0), (1, N)))
    bare, evidential = (served_file(frames, 1, loss=loss) for loss in ("mse", "evidential"))
    found = {
        "one": BayesianCalculator(one, backend="torchscript"),
        "networks": BayesianCalculator(many, backend="torchscript"),
        "draws_energy": BayesianCalculator(draws, backend="torchscript", lazy=True),
        "draws": BayesianCalculator(draws, backend="torchscript"),
        "bare": BayesianCalculator(bare, backend="torchscript"),
        "evidential": BayesianCalculator(evidential, backend="torchscript"),
        "evidential_lazy": BayesianCalculator(evidential, backend="torchscript", lazy=True),
    }
    if compiled:
        target = ("cpu", "float32")
        for name, n, d in (("one", 1, 0), ("networks", N, 0), ("draws", 1, N)):
            path = served_file(frames, n, compile_for=target, n_draws=d)
            found[f"{name}_compiled"] = BayesianCalculator(path, backend="aoti")
            if d > 0:
                lazy = BayesianCalculator(path, backend="aoti", lazy=True)
                found[f"{name}_energy_compiled"] = lazy
        for name, loss in (("bare", "mse"), ("evidential", "evidential")):
            path = served_file(frames, 1, compile_for=target, loss=loss)
            found[f"{name}_compiled"] = BayesianCalculator(path, backend="aoti")
    return found


def evaluation(calculator: BayesianCalculator, atoms: Atoms) -> Callable[[], None]:
    """Function that moves the atoms a little and evaluates."""
    own = atoms.copy()
    own.calc = calculator
    generator = np.random.default_rng(0)
    start = own.positions.copy()

    def step() -> None:
        own.positions = start + 0.01 * generator.standard_normal(start.shape)
        own.get_forces()

    return step


def medians(steps: dict[str, Callable[[], None]], n_turns: int) -> dict[str, float]:
    """Milliseconds of each, taking turns so that other work slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(n_turns + 2):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if turn >= 2:  # the first calls specialise the programs
                times[name].append(1e3 * (time.perf_counter() - started))
    return {name: round(float(np.median(values)), 3) for name, values in times.items()}


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--no-compiled", action="store_true", help="TorchScript only")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = {}
    for system, frames in SYSTEMS.items():
        atoms = structure(frames)
        calculators = cases(frames, not arguments.no_compiled)
        steps = {name: evaluation(calc, atoms) for name, calc in calculators.items()}
        found[system] = medians(steps, arguments.turns)
        for name, milliseconds in found[system].items():
            first = "bare" if name.startswith(("bare", "evidential")) else "one"
            base = found[system][f"{first}_compiled" if name.endswith("compiled") else first]
            print(f"{system:10s} {name:20s} {milliseconds:9.2f} ms  {milliseconds / base:5.2f}")
    if arguments.out:
        content = {**conditions(), "n": N, "milliseconds": found}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
