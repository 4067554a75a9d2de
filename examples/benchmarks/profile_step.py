"""Where the time of one MD step goes: one JSON line.

python examples/benchmarks/profile_step.py model.pt start.extxyz --steps 200 --threads 1

Langevin dynamics with an `UncertaintyMonitor`. Parts, in median milliseconds of a step:

neighbors    list of neighbours, kept between steps with a skin
checks       of the structure and its distances
graph        tensors for the network, on its device
network      the program in the served file
results      its tensors as ASE results
calculator   the rest of the calculator: ASE's comparison and copy of the structure
monitor      score and trigger
integrator   ASE's Langevin step without the calculator

The functions are timed from outside, by wrapping them. On a GPU the network runs on after its call
returns, and the wait for it counts as results.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms, units
from ase.md.langevin import Langevin
from cases import conditions, record

import ase_bayesmlip.calculator
from ase_bayesmlip import BayesianCalculator, UncertaintyMonitor

# What `calculator.calculate` calls, and the part it belongs to.
FUNCTIONS = {
    "check_structure": "checks",
    "check_distances": "checks",
    "atomic_graph": "graph",
    "to_results": "results",
}
PARTS = ("neighbors", "checks", "graph", "network", "results", "calculator")


class Stopwatch:
    """Seconds spent in wrapped functions, step by step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._step: dict[str, float] = defaultdict(float)
        self._started = time.perf_counter()

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with the time of its calls added to `name`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._step[name] += time.perf_counter() - started

        return timed

    def end_step(self) -> None:
        """Close the present step: the last observer of the dynamics."""
        now = time.perf_counter()
        self._step["step"] = now - self._started
        self.steps.append(self._step)
        self._step = defaultdict(float)
        self._started = time.perf_counter()


def wrap_all(calculator: BayesianCalculator, watch: Stopwatch) -> None:
    """Wrap everything that a calculation calls."""
    for name, part in FUNCTIONS.items():
        original = getattr(ase_bayesmlip.calculator, name)
        setattr(ase_bayesmlip.calculator, name, watch.wrap(part, original))
    model = calculator.model
    neighbors = calculator._neighbors
    neighbors.measured = watch.wrap("neighbors", neighbors.measured)
    calculator.get_property = watch.wrap("all of calculator", calculator.get_property)
    # A loaded model is frozen, but not against a stopwatch.
    object.__setattr__(model, "predict", watch.wrap("predict", model.predict))
    if model.program is None:
        object.__setattr__(model, "module", watch.wrap("network", model.module))
    else:
        model.program._run = watch.wrap("network", model.program._run)


def tether(calculator: BayesianCalculator, positions: np.ndarray) -> None:
    """Let the integrator see springs to the start instead of the model's forces, 2 eV/Å²."""
    start = positions.copy()
    get_forces = calculator.get_forces

    def springs(atoms: Atoms) -> np.ndarray:
        get_forces(atoms)
        return -2.0 * (atoms.positions - start)

    calculator.get_forces = springs


def exclusive(step: dict[str, float]) -> dict[str, float]:
    """Parts of a step that do not contain one another, in ms."""
    graph = step["graph"] + step["predict"] - step["network"]
    inner = step["neighbors"] + step["checks"] + step["predict"] + step["graph"] + step["results"]
    parts = {
        **{name: step[name] for name in ("neighbors", "checks", "network", "results", "monitor")},
        "graph": graph,
        "calculator": step["all of calculator"] - inner,
        "integrator": step["step"] - step["all of calculator"] - step["monitor"],
        "step": step["step"],
    }
    return {name: 1e3 * seconds for name, seconds in parts.items()}


def profile(arguments: argparse.Namespace) -> tuple[BayesianCalculator, list[dict[str, float]]]:
    """Run dynamics; returns the calculator, and the parts of every step after the first ten."""
    atoms = ase.io.read(arguments.structure, index=0)
    atoms.calc = calculator = BayesianCalculator(
        arguments.model,
        device=arguments.device,
        dtype=arguments.dtype,
        backend=arguments.backend,
    )
    random = np.random.default_rng(0)
    kT = units.kB * arguments.temperature_K
    momenta = np.sqrt(kT * atoms.get_masses())[:, None] * random.standard_normal((len(atoms), 3))
    atoms.set_momenta(momenta)
    dyn = Langevin(
        atoms,
        arguments.time_step_fs * units.fs,
        temperature_K=arguments.temperature_K,
        friction=0.01 / units.fs,
        fixcm=False,
        rng=random,
    )
    score = "forces_epistemic_max" if calculator.card.has_epistemic else _largest_force
    monitor = UncertaintyMonitor(dyn, score=score, threshold=1e6, on_unphysical=[])
    stopwatch = Stopwatch()
    wrap_all(calculator, stopwatch)
    if arguments.tether:
        tether(calculator, atoms.positions)
    dyn.attach(stopwatch.wrap("monitor", monitor))
    dyn.attach(stopwatch.end_step)
    dyn.run(arguments.steps + 10)
    return calculator, [exclusive(step) for step in stopwatch.steps[11:]]


def _largest_force(results: Any, _atoms: Any) -> float:
    """A score for a single potential, which knows no epistemic spread."""
    return float(np.sqrt((results["forces"] ** 2).sum(axis=1).max()))


def summary(steps: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over the steps, ms."""

    def median(values: list[float]) -> float:
        return round(float(np.median(values)), 3)

    medians = {name: median([step[name] for step in steps]) for name in steps[0]}
    outside = median([step["step"] - step["network"] for step in steps])
    ours = median(
        [sum(step[n] for n in PARTS) - step["network"] + step["monitor"] for step in steps]
    )
    return {
        "median_ms": medians,
        "outside_network_ms": outside,
        "outside_network_percent": round(100 * outside / medians["step"], 1),
        "calculator_and_monitor_ms": ours,
        "calculator_and_monitor_percent": round(100 * ours / medians["step"], 1),
    }


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("structure", help="any file that ASE reads; its first frame")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--temperature-K", type=float, default=300.0)
    parser.add_argument("--time-step-fs", type=float, default=0.5)
    parser.add_argument(
        "--tether",
        action="store_true",
        help="springs move the atoms: for untrained potentials, whose forces blow the system up",
    )
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--backend", choices=["auto", "torchscript", "aoti"], default="auto")
    parser.add_argument("--json", type=Path, help="file to append the JSON line to")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    calculator, steps = profile(arguments)
    line = {
        **conditions(arguments.device),
        "benchmark": "profile",
        "dtype": arguments.dtype,
        "backend": calculator.model.backend,
        "members": calculator.card.n_members,
        "structure": Path(arguments.structure).name,
        "n_atoms": len(calculator.atoms),
        "n_steps": len(steps),
        "neighbor_list_builds": calculator._neighbors.n_builds,
        **summary(steps),
    }
    record(line, arguments.json)


if __name__ == "__main__":
    main()
