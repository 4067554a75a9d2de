"""Time and memory of a step against the number of atoms: one JSON line per size and the exponents.

python examples/benchmarks/scaling.py --threads 2 --json examples/benchmarks/results/scaling.jsonl

Boxes of water from 192 to 12,288 atoms. Every size runs in a process of its own, so that peaks of
memory do not mix: `loaded_MiB` is what the process holds before the first step of this size, and
`KiB_per_atom` what the steps add at their peak. BAYESMLIP_DATA is the folder of the reference data.
"""

import argparse
import contextlib
import ctypes
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import SYSTEMS, conditions, record, served_file, structure
from walk import Walk

from ase_bayesmlip import BayesianCalculator

FRAMES = SYSTEMS["water_192"][0]
REPEATS = [
    (1, 1, 1),
    (2, 1, 1),
    (2, 2, 1),
    (2, 2, 2),
    (4, 2, 2),
    (4, 4, 2),
    (4, 4, 4),
]


def forget_peak() -> None:
    """Give freed memory back and start a new peak, where the system can (Linux, glibc)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory() -> float:
    """Largest resident memory of this process since `forget_peak`, MiB.

    Where Linux does not say it: since the process began, with what `getrusage` counts besides,
    the memory of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1024**2


def measure(repeat: tuple[int, int, int], path: Path, arguments: argparse.Namespace) -> None:
    """Print seconds of some steps and memory of one size: runs in a process of its own."""
    small = structure(FRAMES)
    calculator = BayesianCalculator(
        path, device=arguments.device, dtype=arguments.dtype, backend=arguments.backend
    )
    small.calc = calculator
    Walk(small).step()
    forget_peak()
    loaded = peak_memory()
    atoms = structure(FRAMES, repeat)
    atoms.calc = calculator
    walk = Walk(atoms)
    walk.step()
    walk.step()
    times = []
    started = time.perf_counter()
    while len(times) < arguments.steps:
        times.append(walk.step())
        if len(times) >= 5 and time.perf_counter() - started > arguments.seconds:
            break
    about = {
        "n_atoms": len(atoms),
        "backend": calculator.model.backend,
        "times": times,
        "loaded_MiB": loaded,
        "peak_MiB": peak_memory(),
    }
    if arguments.device == "cuda":
        about["peak_gpu_MiB"] = round(torch.cuda.max_memory_allocated() / 1024**2, 1)
    print(json.dumps(about))


def in_own_process(
    repeat: tuple[int, int, int], path: Path, arguments: argparse.Namespace
) -> dict[str, Any]:
    """`measure` in a fresh process, as a line for the record."""
    command = [sys.executable, __file__, "--one", str(path), *map(str, repeat)]
    for name in ("device", "dtype", "backend", "steps", "seconds", "threads"):
        value = getattr(arguments, name)
        if value is not None:
            command += [f"--{name}", str(value)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    grown = found["peak_MiB"] - found["loaded_MiB"]
    low, median, high = np.quantile(1e3 * np.array(found.pop("times")), [0.25, 0.5, 0.75])
    return {
        **found,
        "median_ms": round(median, 2),
        "quartiles_ms": [round(low, 2), round(high, 2)],
        "us_per_atom": round(1e3 * median / found["n_atoms"], 2),
        "loaded_MiB": round(found["loaded_MiB"], 1),
        "peak_MiB": round(found["peak_MiB"], 1),
        "KiB_per_atom": round(1024 * grown / found["n_atoms"], 1),
    }


def fitted(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Exponent of time against atoms, and memory for each further atom, by least squares."""
    n_atoms = np.array([line["n_atoms"] for line in lines], dtype=float)
    times = np.array([line["median_ms"] for line in lines])
    memory = np.array([line["peak_MiB"] for line in lines])
    return {
        "n_atoms": [int(n) for n in n_atoms],
        "exponent": round(float(np.polyfit(np.log(n_atoms), np.log(times), 1)[0]), 3),
        "KiB_per_further_atom": round(1024 * float(np.polyfit(n_atoms, memory, 1)[0]), 1),
    }


def arguments_of_command() -> argparse.Namespace:
    """What to measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--backend", choices=["torchscript", "aoti"], default="aoti")
    parser.add_argument("--largest", type=int, default=12288, help="atoms")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=60.0, help="per size, at least 5 steps")
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, help="file to append the JSON lines to")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)  # used by the script itself
    return parser.parse_args()


def main() -> None:
    """Print one JSON line per size and one with the exponent, for each number of members."""
    arguments = arguments_of_command()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.one is not None:
        x, y, z = map(int, arguments.one[1:])
        measure((x, y, z), Path(arguments.one[0]), arguments)
        return
    common = {**conditions(arguments.device), "dtype": arguments.dtype, "benchmark": "scaling"}
    target = (arguments.device, arguments.dtype) if arguments.backend == "aoti" else None
    n_smallest = len(structure(FRAMES))
    for n_members in arguments.members:
        path = served_file(FRAMES, n_members, target)
        repeats = [r for r in REPEATS if n_smallest * int(np.prod(r)) <= arguments.largest]
        lines = []
        for repeat in repeats:
            lines.append(in_own_process(repeat, path, arguments))
            record({**common, "members": n_members, **lines[-1]}, arguments.json)
        if len(lines) > 1:
            record({**common, "members": n_members, **fitted(lines)}, arguments.json)


if __name__ == "__main__":
    main()
