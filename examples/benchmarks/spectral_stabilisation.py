"""Eigenvalues of evidential covariances early in training, with the damper and without it.

    python examples/benchmarks/spectral_stabilisation.py --out examples/figures/spectral.png

trains e²IP on ethanol with its likelihood from the first step on and a high rate of learning, and
draws the largest ratio of eigenvalues of the scale matrices Σ₀ over the atoms of each batch, with
the Linear-Tanh damper of the logarithm and without. A cross marks a step at which single precision
no longer factorises a matrix. After figure 4 of arXiv 2602.10419, whose training is not known.
"""

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import matplotlib
import numpy as np
import torch

from ase_bayesmlip.config import Config, from_dict
from ase_bayesmlip.nn.build import build_potential
from ase_bayesmlip.nn.evidential import law
from ase_bayesmlip.nn.evidential.head import Evidence
from ase_bayesmlip.nn.exponential import traceless_symmetric
from ase_bayesmlip.training.data import GraphDataset, load_training_data
from ase_bayesmlip.training.loss import loss
from ase_bayesmlip.training.outputs import evaluate

DATA = Path(__file__).parents[2] / "data"
CONTENT = {
    "data": {
        "train": f"{DATA}/ethanol_train.extxyz@0:200",
        "valid": f"{DATA}/ethanol_valid.extxyz@0:10",
        "reference_energies": f"{DATA}/isolated_atoms.extxyz",
    },
    "model": {
        "hidden_irreps": "16x0e + 16x1o",
        "radial_hidden": [32, 32],
        "cutoff": 4.0,
        "n_radial": 6,
    },
    "loss": {"kind": "evidential", "beta": 0.0},
    "posterior": {"kind": "evidential"},
}
# The fixed unit of an independent implementation, a tenth of the errors at the start.
FORCE_UNIT = 0.1
LIMIT = np.exp(5.0 * np.sqrt(2.0))


def without_damper() -> ExitStack:
    """A `with` block in which neither scale nor anisotropy is bounded."""
    stack = ExitStack()
    stack.enter_context(patch.object(law, "damp_tensor", lambda t: t))
    stack.enter_context(patch.object(law, "linear_tanh", lambda x, *_: x))
    return stack


def observe(evidence: Evidence) -> tuple[float, bool]:
    """Largest ratio of eigenvalues, and whether single precision factorises all matrices."""
    niw = evidence.niw
    logarithm = traceless_symmetric(niw.tensor.detach().double())
    if not bool(torch.isfinite(logarithm).all()):
        return float("inf"), False
    values = torch.linalg.eigvalsh(logarithm)
    ratio = float(torch.exp((values[:, 2] - values[:, 0]).max().clamp(max=690.0)))
    matrices = torch.linalg.matrix_exp(logarithm.float())
    info = torch.linalg.cholesky_ex(matrices).info
    return ratio, not bool(info.any()) and bool(torch.isfinite(matrices).all())


def run(n_steps: int, damped: bool, rate: float, seed: int) -> list[tuple[float, bool]]:
    """Train and watch; stops where the loss is not finite any more."""
    torch.manual_seed(0)
    config = from_dict(Config, CONTENT)
    data = load_training_data(config)
    train = GraphDataset(data.train, data.references, config.model.cutoff, torch.float32)
    potential = build_potential(config.model, config.loss, data.statistics, seed, torch.float32)
    potential.noise.set_scales(FORCE_UNIT**2, FORCE_UNIT**2)
    optimizer = torch.optim.AdamW(potential.parameters(), lr=rate, weight_decay=0.0, amsgrad=True)
    generator, seen = np.random.default_rng(seed), []
    with ExitStack() if damped else without_damper():
        while len(seen) < n_steps:
            for graph, labels in train.batches(generator.permutation(len(train)).tolist(), 5):
                outputs = evaluate(potential, graph, False, create_graph=True)
                seen.append(observe(outputs.evidence))
                value = loss("evidential", config.loss, outputs, labels, graph, 1.0)
                optimizer.zero_grad()
                value.backward()
                if not bool(torch.isfinite(value)) or len(seen) == n_steps:
                    return seen
                optimizer.step()
    return seen


def draw(runs: dict[str, list[tuple[float, bool]]], path: Path) -> None:
    """Ratio against step."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.0, 3.6), layout="constrained")
    for (name, seen), colour in zip(runs.items(), ("tab:red", "tab:blue"), strict=True):
        ratios = np.array([ratio for ratio, _ in seen])
        steps = np.arange(1, len(ratios) + 1)
        axes.plot(steps, ratios, color=colour, label=name, linewidth=1.2)
        failed = ~np.array([fine for _, fine in seen])
        if failed.any():
            label = f"{name}: no Cholesky factor in float32"
            axes.plot(steps[failed], ratios[failed], "x", color="black", markersize=4, label=label)
    axes.axhline(LIMIT, color="tab:blue", linestyle=":", label=f"bound of the damper, {LIMIT:.0f}")
    axes.set(yscale="log", xlabel="training step", ylabel="largest eigenvalue ratio of Σ₀")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Train both, draw, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--learning-rate", type=float, default=0.15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("spectral.png"))
    parser.add_argument("--json", type=Path, help="keep the numbers there")
    arguments = parser.parse_args()
    runs = {
        name: run(arguments.steps, damped, arguments.learning_rate, arguments.seed)
        for name, damped in (("without damper", False), ("with damper", True))
    }
    draw(runs, arguments.out)
    numbers = {}
    for name, seen in runs.items():
        largest = max(ratio for ratio, _ in seen)
        n_failed = sum(not fine for _, fine in seen)
        numbers[name] = {"steps": len(seen), "largest_ratio": largest, "failed_steps": n_failed}
        print(f"{name}: {len(seen)} steps, ratio up to {largest:.3g}, {n_failed} without a factor")
    if arguments.json:
        arguments.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
