"""Time of one evaluation through the ASE calculator, ours against MACE: one JSON line per case.

python examples/benchmarks/step_time.py --mace-python MACE_ENVIRONMENT/bin/python --threads 2 \
    --json examples/benchmarks/results/step_time.jsonl

Every evaluation follows a move of all atoms by about 0.01 Å and gives everything: of ours energy,
forces, energy variances, 3×3 force covariances and, for a cell, stress with its covariance; of MACE
energy, forces and stress. All cases of a system take turns, so that other work on the machine slows
all alike; medians and quartiles are over turns. Potentials are untrained. MACE runs in its own
environment, in a process that lives as long as this one. BAYESMLIP_DATA is the folder of the
reference data.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from cases import (
    CACHE,
    SYSTEMS,
    compiled_record,
    conditions,
    record,
    served_file,
    structure,
)
from tqdm import tqdm
from walk import Walk

from ase_bayesmlip import BayesianCalculator

# What is served: drawn readouts and loss of the file, and what it is called. An ensemble stands for
# SWAG, IVON and Laplace of all weights too, whose samples are networks as its members are.
POSTERIORS = {
    "ensemble": (0, "nll_jef", ""),
    "laplace": (8, "nll_jef", ", last-layer Laplace with 8 draws"),
    "evidential": (0, "evidential", ", e²IP"),
}
MACE_OPTIONS = {"plain": "", "compile": ", torch.compile", "cueq": ", cuEquivariance"}
# Atoms beyond which a committee of MACE takes most of a minute a step.
LARGE = 1000


@dataclass(frozen=True)
class Case:
    """Something to time: what it is called, what to report of it, and how it takes a turn."""

    label: str
    about: dict[str, Any]
    turn: Callable[[], list[float]]


class MaceWorker:
    """MACE in its own environment: see `mace_worker.py`.

    Parameters
    ----------
    python : path
        Interpreter of an environment with mace-torch.
    """

    def __init__(self, python: str, n_threads: int) -> None:
        self._process = subprocess.Popen(
            [python, str(Path(__file__).with_name("mace_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(n_threads), "PYTHONWARNINGS": "ignore"},
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for the answer."""
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"MACE's process ended, status {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()


def our_case(
    frames: str,
    atoms: Atoms,
    n_members: int,
    posterior: str,
    backend: str,
    arguments: argparse.Namespace,
) -> Case:
    """Our calculator with that many members."""
    target = (arguments.device, arguments.dtype)
    n_draws, loss, name = POSTERIORS[posterior]
    backend, _, formulas = backend.partition("-")
    path = served_file(
        frames,
        n_members,
        target if backend == "aoti" else None,
        n_draws=n_draws,
        loss=loss,
        kernels=not formulas,
    )
    calculator = BayesianCalculator(
        path, device=arguments.device, dtype=arguments.dtype, backend=backend
    )
    if calculator.model.backend != backend:
        raise RuntimeError(f"{path} is served by {calculator.model.backend} instead of {backend}")
    copy = atoms.copy()
    copy.calc = calculator
    walk = Walk(copy)
    walk.step()
    about = {
        "model": "ase_bayesmlip",
        "members": n_members,
        "posterior": posterior,
        "backend": backend,
        "n_parameters": calculator.card.n_parameters,
        "results": sorted(calculator.results),
    }
    if backend == "aoti":
        about["compile_s"] = compiled_record(path, *target)["seconds"]
        about["kernels"] = not formulas
    plural = "" if n_members == 1 else "s"
    label = f"ours, {n_members} member{plural}{name}, {backend}"
    return Case(label + (" without kernels" if formulas else ""), about, walk.turn)


def mace_case(
    worker: MaceWorker, atoms: Atoms, n_models: int, option: str, arguments: argparse.Namespace
) -> Case:
    """MACE's calculator with one model or a committee."""
    label = "MACE" if n_models == 1 else f"MACE, committee of {n_models}"
    label += MACE_OPTIONS[option]
    plain = {
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.tolist(),
        "cell": atoms.cell.array.tolist(),
        "pbc": atoms.pbc.tolist(),
    }
    about = worker.ask(
        do="prepare",
        case=label,
        atoms=plain,
        members=n_models,
        dtype=arguments.dtype,
        device=arguments.device,
        folder=str(CACHE),
        option=option,
    )
    about = {"model": "MACE", "members": n_models, "backend": option, **about}
    return Case(label, about, lambda: worker.ask(do="turn", case=label)["seconds"])


def all_cases(
    frames: str, atoms: Atoms, worker: MaceWorker | None, arguments: argparse.Namespace
) -> list[Case]:
    """The cases of a system, without a committee of MACE where it takes very long."""
    cases = []
    if worker is not None:
        options = ["plain", *arguments.mace_also]
        cases += [mace_case(worker, atoms, 1, option, arguments) for option in options]
        if len(atoms) <= LARGE or arguments.all:
            cases.append(mace_case(worker, atoms, 8, "plain", arguments))
    for backend in arguments.backends:
        asked = [(n_members, "ensemble") for n_members in arguments.members]
        asked += [(1, posterior) for posterior in arguments.posteriors]
        for n_members, posterior in asked:
            cases.append(our_case(frames, atoms, n_members, posterior, backend, arguments))
    return cases


def take_turns(cases: list[Case], n_rounds: int, seconds: float, title: str) -> np.ndarray:
    """Seconds of a step, (n_rounds, n_cases): at most `n_rounds`, fewer if time runs out."""
    rounds: list[list[float]] = []
    started = time.perf_counter()
    with tqdm(total=n_rounds, desc=title, unit="round") as bar:
        while len(rounds) < n_rounds:
            rounds.append([float(np.median(case.turn())) for case in cases])
            bar.update()
            if len(rounds) >= 5 and time.perf_counter() - started > seconds:
                break
    return np.array(rounds)


def statistics(times: np.ndarray) -> dict[str, Any]:
    """Median and quartiles of a case over its turns, in ms."""
    low, median, high = np.quantile(1e3 * times, [0.25, 0.5, 0.75])
    return {
        "n_rounds": len(times),
        "median_ms": round(median, 3),
        "quartiles_ms": [round(low, 3), round(high, 3)],
    }


def table(lines: list[dict[str, Any]]) -> str:
    """The results for people, with the ratio to MACE's single model."""
    rows = [f"{'system':<12}{'case':<54}{'ms':>9}{'quartiles':>20}{'of MACE':>9}"]
    for line in lines:
        reference = [
            other["median_ms"]
            for other in lines
            if (other["system"], other["case"]) == (line["system"], "MACE")
        ]
        ratio = f"{line['median_ms'] / reference[0]:.2f}" if reference else ""
        low, high = line["quartiles_ms"]
        rows.append(
            f"{line['system']:<12}{line['case']:<54}{line['median_ms']:>9.2f}"
            f"{f'{low:.2f} to {high:.2f}':>20}{ratio:>9}"
        )
    return "\n".join(rows)


def arguments_of_command() -> argparse.Namespace:
    """What to measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--members", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument(
        "--posteriors",
        nargs="*",
        choices=["laplace", "evidential"],
        default=["laplace", "evidential"],
    )
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=["torchscript", "aoti", "aoti-formulas"],
        default=["torchscript", "aoti"],
        help="aoti-formulas: AOTInductor without the generated C++ kernels",
    )
    parser.add_argument("--mace-python", help="interpreter of MACE's environment")
    parser.add_argument(
        "--mace-also",
        nargs="*",
        choices=["compile", "cueq"],
        default=[],
        help="MACE's single model compiled or with cuEquivariance, too",
    )
    parser.add_argument(
        "--all", action="store_true", help="also MACE's committee where it takes very long"
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument(
        "--seconds", type=float, default=300.0, help="per system, at least 5 rounds"
    )
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="file to append the JSON lines to")
    return parser.parse_args()


def main() -> None:
    """Print one JSON line per case and a table."""
    arguments = arguments_of_command()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    worker = None
    if arguments.mace_python is not None:
        worker = MaceWorker(arguments.mace_python, torch.get_num_threads())
    common = {**conditions(arguments.device), "dtype": arguments.dtype}
    lines = []
    for name in arguments.systems:
        frames, repeat = SYSTEMS[name]
        atoms = structure(frames, repeat)
        cases = all_cases(frames, atoms, worker, arguments)
        times = take_turns(cases, arguments.rounds, arguments.seconds, name)
        for case, column in zip(cases, times.T, strict=True):
            system = {"system": name, "n_atoms": len(atoms), "case": case.label}
            lines.append({**common, **system, **case.about, **statistics(column)})
            record(lines[-1], arguments.json)
        if worker is not None:
            worker.ask(do="forget")
    if worker is not None:
        worker.close()
    print(table(lines), file=sys.stderr)


if __name__ == "__main__":
    main()
