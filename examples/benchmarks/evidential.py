"""Evidential force uncertainty against its baselines on real data, with one command:

    python examples/benchmarks/evidential.py runs --out examples/benchmarks/results/evidential.json

trains what is missing in the folder `runs` (interrupted trainings are continued), evaluates every
posterior on test sets that no training saw, prints one table per data set, and keeps the numbers.
`--evaluate-only` leaves out what is not trained yet: its rows stay as they were in the file of
numbers, where each row has its date; `--datasets water` takes one of them.
BAYESMLIP_DATA is the folder of the reference data; base configurations are in
examples/configs/studies.

All potentials of a data set have the same shape. One is trained on squared errors for two thirds of
the epochs, and each evidential one goes on from it with its own likelihood for the last third; the
members of the ensemble are trained from their own seeds with the same division of the epochs. The
ensemble is judged three times: by the spread of its members alone with the law that fits four of
them (Hotelling, a Student-t with one degree of freedom), by that spread times one number from the
calibration frames, and with the noise heads of its members as a Gaussian.
"""

import copy
import os
from pathlib import Path
from typing import Any

import yaml
from evidential_rows import DATASETS, ROWS, evaluate_dataset, table
from study import begin, keep, parser_of

from ase_bayesmlip.config import load_config
from ase_bayesmlip.posteriors import POSTERIORS, RunOptions

CONFIGS = Path(__file__).parents[1] / "configs" / "studies"
EVIDENTIAL, PAPER, EIP = (
    {"kind": "evidential"},
    # λ = 0.1 (eV/Å)⁻² and the plain likelihood, as published.
    {"kind": "evidential", "beta": 0.0, "evidence": {"mode": "paper"}},
    {"kind": "eip"},
)
# Of the evidential potentials of each data set: loss and changes of the model.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "coupled": (EVIDENTIAL, {}),
    "paper": (PAPER, {}),
    "eip": (EIP, {}),
    "invariant": (EVIDENTIAL, {"covariance": "invariant"}),
}
LEARNING_RATE = 0.01  # of the last third: where a cosine from 0.04 stands at two thirds
# Training frames of the study of data efficiency, at the same number of steps.
FRACTIONS = {"uracil": (120, 200, 280), "aspirin": (120, 200, 280)}
EFFICIENT = ("coupled", "invariant", "eip")


def configurations(dataset: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Name of each run of a data set -> its configuration, in the order of training."""
    base = yaml.safe_load((CONFIGS / f"{dataset}.yaml").read_text(encoding="utf-8"))
    found = _family(base, dataset, folder, list(VARIANTS))
    ensemble = copy.deepcopy(base)
    ensemble["loss"] = {"kind": "nll_jef", "warmup_fraction": 2 / 3}
    ensemble["posterior"] = {"kind": "ensemble", "members": 4}
    found[f"{dataset}_ensemble"] = ensemble
    laplace = copy.deepcopy(found[f"{dataset}_coupled"])
    laplace["posterior"] = {"kind": "laplace", "start_from": str(folder / f"{dataset}_coupled")}
    found[f"{dataset}_laplace"] = laplace
    for n_frames in FRACTIONS.get(dataset, ()):
        part = copy.deepcopy(base)
        path, _, all_frames = part["data"]["train"].rpartition("@0:")
        part["data"]["train"] = f"{path}@0:{n_frames}"
        for name in ("epochs", "evaluate_every"):
            part["training"][name] = round(part["training"][name] * int(all_frames) / n_frames)
        found |= _family(part, f"{dataset}{n_frames}", folder, list(EFFICIENT))
    return found


def _family(
    base: dict[str, Any], name: str, folder: Path, variants: list[str]
) -> dict[str, dict[str, Any]]:
    """The potential trained on squared errors, and those that go on from it."""
    start = copy.deepcopy(base)
    start["loss"], start["posterior"] = {"kind": "mse"}, {"kind": "point"}
    start["training"]["epochs"] = round(base["training"]["epochs"] * 2 / 3)
    found = {f"{name}_start": start}
    for variant in variants:
        content = copy.deepcopy(base)
        loss, model = VARIANTS[variant]
        content["loss"] = loss
        content["model"] |= model
        content["training"]["epochs"] = round(base["training"]["epochs"] / 3)
        content["training"]["learning_rate"] = LEARNING_RATE
        path = str(folder / f"{name}_start")
        content["posterior"] = {"kind": "evidential", "start_from": path, "features": "trained"}
        found[f"{name}_{variant}"] = content
    return found


def train(name: str, content: dict[str, Any], folder: Path, jobs: int) -> None:
    """Train a run to its end, wherever it stands."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    config = load_config(path)
    posterior = POSTERIORS[config.posterior.kind]
    options = RunOptions(resume=(folder / name).is_dir(), jobs=jobs)
    posterior.fit(config, folder / name, options)


def main() -> None:
    """Train, evaluate, print, and keep."""
    arguments = parser_of(__doc__, DATASETS).parse_args()
    folder, results = begin(arguments)
    for dataset in arguments.datasets:
        runs = configurations(dataset, folder)
        if not arguments.evaluate_only:
            for name, content in runs.items():
                train(name, content, folder, arguments.jobs)
        fractions = {n: f"{dataset}{n}" for n in FRACTIONS.get(dataset, ())}
        data = Path(os.environ["BAYESMLIP_DATA"])
        found = evaluate_dataset(dataset, folder, data, fractions)
        before = results.get(dataset, {"rows": {}})
        rows = {**before["rows"], **found["rows"]}
        results[dataset] = {
            **before,
            **found,
            "rows": {row: rows[row] for row in ROWS if row in rows},
        }
        print(f"\n{dataset}\n{table(results[dataset]['rows'], ROWS)}", flush=True)
        for row in results[dataset].get("data_efficiency", []):
            print(row)
        keep(arguments.out, results)


if __name__ == "__main__":
    main()
