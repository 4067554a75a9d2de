"""Time of a training step per structure: one JSON line per backbone, loss and batch size.

python examples/benchmarks/training_throughput.py train.extxyz@0:40 --threads 1

A step makes a batch, its energies and forces, the loss, its gradient through the forces, clips and
updates the weights. The cases take turns, one step at a time, so that other work on the machine
slows all alike.
"""

import argparse
import datetime
import itertools
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ase_bayesmlip import __version__
from ase_bayesmlip.config import Config, DataConfig, LossConfig, ModelConfig
from ase_bayesmlip.nn.allocator import keep_freed_memory
from ase_bayesmlip.nn.build import build_potential
from ase_bayesmlip.structures.labelled import sha256
from ase_bayesmlip.training.data import GraphDataset, TrainingData, load_training_data
from ase_bayesmlip.training.loss import loss
from ase_bayesmlip.training.outputs import evaluate

# The shapes of examples/configs/acac_race_plus.yaml (the default) and acac_race.yaml.
MODELS = {
    "race": ModelConfig(backbone="race", n_layers=5, hidden_irreps="32x0e + 32x1o + 32x2e"),
    "race_plus": ModelConfig(backbone="race_plus"),
}
LOSSES = (LossConfig().warmup, "nll_jef")
WARMUP_STEPS = 2


def stepper(
    model: ModelConfig, kind: str, batch_size: int, data: TrainingData, dtype: str, device: str
) -> tuple[Callable[[], None], int]:
    """A function that takes a training step on the next batch, and the number of weights."""
    config = Config(data=DataConfig(train=""), model=model)
    precision = getattr(torch, dtype)
    potential = build_potential(model, LossConfig(), data.statistics, seed=0, dtype=precision)
    potential.to(device)
    parameters = list(potential.parameters())
    # A rate of nearly zero: the time is the same, and no case runs away from its start.
    optimizer = torch.optim.AdamW(parameters, lr=1e-8, amsgrad=True)
    train = GraphDataset(data.train, data.references, model.cutoff, precision, device)
    n_whole = len(train) // batch_size * batch_size
    orders = itertools.repeat(range(n_whole))
    batches = itertools.chain.from_iterable(train.batches(order, batch_size) for order in orders)

    def step() -> None:
        graph, labels = next(batches)
        outputs = evaluate(potential, graph, stress=False, create_graph=True)
        value = loss(kind, config.loss, outputs, labels, graph, data.statistics.force_rms)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.training.clip_norm)
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step, sum(parameter.numel() for parameter in parameters)


def measure(steps: list[Callable[[], None]], n_rounds: int) -> np.ndarray:
    """Seconds of each step in turn: (n_rounds, n_steps)."""
    times = np.empty((n_rounds, len(steps)))
    for step in steps:
        for _ in range(WARMUP_STEPS):
            step()
    for i in tqdm(range(n_rounds), unit="round"):
        for k, step in enumerate(steps):
            started = time.perf_counter()
            step()
            times[i, k] = time.perf_counter() - started
    return times


def conditions(arguments: argparse.Namespace, data: TrainingData) -> dict[str, Any]:
    """When, where and on what was measured."""
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
    return {
        "date": datetime.date.today().isoformat(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": device,
        "dtype": arguments.dtype,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ase_bayesmlip": __version__,
        "frames": Path(arguments.frames).name,
        "n_frames": len(data.train),
        "sha256": sha256(data.train),
        "atoms_per_structure": round(np.mean([len(f.atoms) for f in data.train]), 1),
    }


def main() -> None:
    """Print one JSON line per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("frames", help="labelled frames; a slice may follow, as in a.extxyz@0:40")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--backbones", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, help="of torch on the CPU")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    data = load_training_data(Config(data=DataConfig(train=arguments.frames)))
    if len(data.train) < max(arguments.batch_sizes):
        parser.error(f"{len(data.train)} training frames, too few for the largest batch")
    cases = list(itertools.product(arguments.backbones, LOSSES, arguments.batch_sizes))
    steps, sizes = zip(
        *(
            stepper(MODELS[backbone], kind, size, data, arguments.dtype, arguments.device)
            for backbone, kind, size in cases
        ),
        strict=True,
    )
    times = measure(list(steps), arguments.rounds)
    common = conditions(arguments, data)
    for k, (backbone, kind, batch_size) in enumerate(cases):
        low, median, high = np.quantile(1e3 * times[:, k] / batch_size, [0.25, 0.5, 0.75])
        case = {
            "backbone": backbone,
            "n_layers": MODELS[backbone].n_layers,
            "hidden_irreps": MODELS[backbone].hidden_irreps,
            "n_parameters": sizes[k],
            "loss": kind,
            "batch_size": batch_size,
            "n_steps": arguments.rounds,
            "ms_per_structure": round(median, 2),
            "quartiles_ms": [round(low, 2), round(high, 2)],
        }
        print(json.dumps({**common, **case}, ensure_ascii=False))


if __name__ == "__main__":
    main()
