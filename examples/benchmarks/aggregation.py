"""Sums over neighbours, the ways torch offers: one JSON line per number of edges.

python examples/benchmarks/aggregation.py --json examples/benchmarks/results/aggregation.jsonl

Training and TorchScript sum the messages of sorted edges with `index_add`. This compares
it with `scatter_add`, `segment_reduce` and, where torch-scatter is installed, `segment_csr`. The
compiled program needs none of them: its kernels sum in registers.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from cases import conditions, record
from torch import Tensor

try:
    from torch_scatter import segment_csr
except ImportError:
    segment_csr = None

# (atoms, neighbours of each): a batch of molecules, 192 atoms of water, 4,200 atoms of water.
SIZES = [(75, 14), (192, 52), (4200, 52)]
WIDTH = 21 * 32


def median_ms(function: Callable[[], Tensor], repeats: int = 9) -> float:
    """Median time of a call after one that warms up."""
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - started))
    return round(statistics.median(times), 3)


def ways(n_atoms: int, n_neighbors: int) -> dict[str, Callable[[], Tensor]]:
    """Functions that all return the same sums, (n_atoms, WIDTH)."""
    messages = torch.randn(n_atoms * n_neighbors, WIDTH)
    centre = torch.arange(n_atoms).repeat_interleave(n_neighbors)
    columns = centre.unsqueeze(1).expand(-1, WIDTH)
    lengths = torch.full((n_atoms,), n_neighbors)
    starts = torch.arange(0, len(messages) + 1, n_neighbors)
    found = {
        "index_add": lambda: torch.zeros(n_atoms, WIDTH).index_add(0, centre, messages),
        "scatter_add": lambda: torch.zeros(n_atoms, WIDTH).scatter_add(0, columns, messages),
        "segment_reduce": lambda: torch.segment_reduce(
            messages, "sum", lengths=lengths, unsafe=True
        ),
    }
    if segment_csr is not None:
        found["segment_csr"] = lambda: segment_csr(messages, starts, reduce="sum")
    return found


def main() -> None:
    """Time every way at every size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="append the lines to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for n_atoms, n_neighbors in SIZES:
        times = {name: median_ms(way) for name, way in ways(n_atoms, n_neighbors).items()}
        line = {"n_edges": n_atoms * n_neighbors, "width": WIDTH, "ms": times, **conditions()}
        record(line, arguments.json)


if __name__ == "__main__":
    main()
