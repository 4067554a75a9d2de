"""All posteriors on acetylacetone: accuracy and honesty at 300 K (known) and 600 K (foreign).

Train the runs named in RUNS with the configurations of the same names in examples/configs/, then

    python examples/benchmarks/posteriors.py runs --out examples/benchmarks/results/posteriors.json

serves each run that exists, evaluates it on the two test sets, prints one table, and with --out
keeps its numbers. Nothing is calibrated afterwards: this is what the posteriors say by themselves.
"""

import argparse
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ase_bayesmlip import BayesianCalculator
from ase_bayesmlip.config.posterior import PointConfig
from ase_bayesmlip.metrics import (
    bootstrap_interval,
    calibration_error,
    chi_squared_law,
    ellipsoid_confidence,
    mahalanobis_squared,
    multivariate_gaussian_nll,
    rmse,
    spearman,
)
from ase_bayesmlip.posteriors import POSTERIORS, ensemble
from ase_bayesmlip.posteriors.run_folder import read_run
from ase_bayesmlip.serving.export import export_members
from ase_bayesmlip.serving.home import load_home
from ase_bayesmlip.structures.labelled import LabelledFrame, read_frames

RUNS = {
    "acac_ensemble": "deep ensemble of 4",
    "acac_swag": "SWAG",
    "acac_multiswag": "MultiSWAG, 4 seeds",
    "acac_ivon": "IVON",
    "acac_laplace": "Laplace, last layer",
    "acac_laplace_all": "Laplace, all weights, diagonal",
    "acac_laplace_ensemble": "Laplace in each of 4",
}
POINT = "one potential (its noise heads)"
TESTS = {"300K": "acac/test_MD_300K_A.extxyz.xz", "600K": "acac/test_MD_600K_A.extxyz.xz"}


def served_files(runs: Path, folder: Path, samples: int | None) -> Iterator[tuple[str, Path]]:
    """Serve every run that is there; the single potential is the ensemble's first member."""
    for name, title in RUNS.items():
        if not (runs / name / "run.json").is_file():
            print(f"no run {runs / name}: train it with examples/configs/{name}.yaml")
            continue
        config, _ = read_run(runs / name)
        posterior = POSTERIORS[config.posterior.kind]
        state = posterior.load(runs / name)
        home = load_home(state.config, state.record)
        if posterior is ensemble:
            single = dataclasses.replace(state.config, posterior=PointConfig())
            path = folder / "point.pt"
            export_members(state.potentials()[:1], single, state.record, path, home=home)
            yield POINT, path
        path = folder / f"{name}.pt"
        count = None if posterior is ensemble else samples
        members = posterior.draw(state, count, torch.Generator().manual_seed(0))
        export_members(members, state.config, state.record, path, seed=0, home=home)
        yield title, path


def force_numbers(
    calculator: BayesianCalculator, frames: list[LabelledFrame]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Errors, total covariance and epistemic variance of every atom, and its frame."""
    results = calculator.evaluate([frame.atoms for frame in frames])
    error = np.concatenate([f.forces - r["forces"] for f, r in zip(frames, results, strict=True)])
    total = np.concatenate([result["forces_cov"] for result in results])
    numbers = {"error": error, "total": total}
    if "forces_cov_epistemic" in results[0]:
        epistemic = np.concatenate([result["forces_cov_epistemic"] for result in results])
        numbers["epistemic"] = np.einsum("icc->i", epistemic) / 3.0
    index = np.repeat(np.arange(len(frames)), [len(frame.atoms) for frame in frames])
    return numbers, index


def summary(numbers: dict[str, np.ndarray], index: np.ndarray) -> dict[str, Any]:
    """The metrics of one test set, each with a 95 % bootstrap interval over frames."""
    error, total = numbers["error"], numbers["total"]
    size = np.linalg.norm(error, axis=1)
    confidence = ellipsoid_confidence(mahalanobis_squared(error, total), chi_squared_law())
    deviation = np.sqrt(np.einsum("icc->i", total) / 3.0)
    statistics = {
        "forces_rmse_meV_per_A": lambda chosen: 1e3 * rmse(error[chosen]),
        "forces_nll": lambda chosen: multivariate_gaussian_nll(error[chosen], total[chosen]),
        "calibration_error_forces": lambda chosen: calibration_error(confidence[chosen]),
        "spearman_forces": lambda chosen: spearman(size[chosen], deviation[chosen]),
        "sigma_meV_per_A": lambda chosen: 1e3 * float(np.sqrt(np.mean(deviation[chosen] ** 2))),
    }
    if "epistemic" in numbers:
        variance = numbers["epistemic"]
        statistics["spearman_forces_epistemic"] = lambda chosen: spearman(
            size[chosen], variance[chosen]
        )
        statistics["epistemic_variance_eV2_per_A2"] = lambda chosen: float(
            np.mean(variance[chosen])
        )
    found: dict[str, Any] = {"n_frames": int(index.max()) + 1, "n_atoms": len(error)}
    for name, statistic in statistics.items():
        generator = np.random.default_rng(0)
        found[name] = statistic(np.arange(len(error)))
        found[name + "_ci"] = bootstrap_interval(
            statistic, index, n_resamples=200, generator=generator
        ).tolist()
    return found


def row(entry: dict[str, Any]) -> str:
    """One line of the table."""
    cells = [entry["posterior"], str(entry["n_networks"]), str(entry["n_draws"] or "")]
    for key, digits in (
        ("forces_rmse_meV_per_A", ".1f"),
        ("sigma_meV_per_A", ".1f"),
        ("forces_nll", ".2f"),
        ("calibration_error_forces", ".4f"),
        ("spearman_forces", ".2f"),
        ("spearman_forces_epistemic", ".2f"),
    ):
        cells.append(
            " / ".join(format(entry[t][key], digits) if key in entry[t] else "–" for t in TESTS)
        )
    ratio = entry.get("epistemic_ratio")
    grows = "" if ratio is None or ratio > 1.0 else " (does not grow)"
    cells.append("–" if ratio is None else f"{ratio:.1f}{grows}")
    return "| " + " | ".join(cells) + " |"


HEADER = (
    "| posterior | networks | draws | force RMSE, meV/Å | σ, meV/Å | NLL, nats per atom | CE | "
    "Spearman, total σ | Spearman, epistemic σ | epistemic variance 600 K / 300 K |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    """Print the table: every cell holds 300 K / 600 K."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="folder with the runs")
    parser.add_argument("--samples", type=int, help="draws (default: as configured)")
    parser.add_argument("--out", type=Path, help="keep the numbers there as JSON")
    arguments = parser.parse_args()
    data = Path(os.environ["BAYESMLIP_DATA"])
    frames = {name: read_frames(str(data / path)) for name, path in TESTS.items()}
    entries = []
    print(HEADER)
    with tempfile.TemporaryDirectory() as folder:
        for title, path in served_files(arguments.runs, Path(folder), arguments.samples):
            calculator = BayesianCalculator(path)
            card = calculator.card
            entry: dict[str, Any] = {
                "posterior": title,
                "n_networks": card.n_members,
                "n_draws": card.n_draws,
                "config": card.config,
            }
            for name in TESTS:
                entry[name] = summary(*force_numbers(calculator, frames[name]))
            key = "epistemic_variance_eV2_per_A2"
            if key in entry["300K"]:
                entry["epistemic_ratio"] = entry["600K"][key] / entry["300K"][key]
            entries.append(entry)
            print(row(entry), flush=True)
    if arguments.out:
        text = json.dumps({"torch": torch.__version__, "rows": entries}, indent=1)
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
