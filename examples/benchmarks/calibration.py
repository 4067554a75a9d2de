"""Are error bars right, before and after calibration? All posteriors on four data sets:

    results=examples/benchmarks/results/calibration.json
    python examples/benchmarks/calibration.py runs --out $results

trains what is missing in the folder `runs` (interrupted trainings are continued, and runs of
`evidential.py` are shared), serves every posterior, calibrates it on frames like those of the
training, evaluates it on test sets that no training saw, prints one table per data set, and keeps
the numbers. `--datasets acac` takes one of the data sets, `--rows ivon` one of the posteriors, and
`--evaluate-only` leaves out what is not trained; other rows stay as they were in the file of
numbers. BAYESMLIP_DATA is the folder of the reference data; base configurations are in
examples/configs/studies. `mace_committee.py` adds the row of MACE: its answers are looked for in
the folder `runs/mace_DATASET`.

All potentials of a data set have the same shape. The single potential is the first member of the
ensemble; SWAG, IVON and Laplace are made around it; e²IP has its own warm-up.
"""

import argparse
import copy
import json
import os
from pathlib import Path
from typing import Any

import torch
from calibration_rows import ROWS, evaluate_dataset, table
from calibration_sets import DATASETS
from evidential import configurations, train

from ase_bayesmlip.training.allocator import keep_freed_memory

# Epochs of SWAG and of IVON, which differ as the frames of the data sets do; IVON runs at a
# hundredth of the posterior's temperature, where its draws keep their accuracy (see the README).
AROUND_MEMBER: dict[str, dict[str, dict[str, Any]]] = {
    dataset: {
        "swag": {"epochs": swag, "rank": min(swag, 20)},
        "ivon": {"epochs": ivon, "effective_sample_size": 100.0 * n_frames},
        "laplace": {},
    }
    for dataset, swag, ivon, n_frames in (
        ("acac", 24, 20, 300),
        ("3bpa", 24, 20, 300),
        ("zeolite", 6, 4, 400),
        ("water", 8, 6, 240),
    )
}


def runs_of(dataset: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Name of each run of a data set -> its configuration, in the order of training."""
    shared = configurations(dataset, folder)
    found = {f"{dataset}_{run}": shared[f"{dataset}_{run}"] for run in ("start", "coupled")}
    found[f"{dataset}_ensemble"] = ensemble = shared[f"{dataset}_ensemble"]
    for kind, settings in AROUND_MEMBER[dataset].items():
        content = copy.deepcopy(ensemble)
        start = str(folder / f"{dataset}_ensemble")
        content["posterior"] = {"kind": kind, "start_from": start, **settings}
        found[f"{dataset}_member_{kind}"] = content
    return found


def main() -> None:
    """Train, calibrate, evaluate, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="folder of the runs")
    parser.add_argument("--datasets", nargs="+", choices=list(DATASETS), default=list(DATASETS))
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--evaluate-only", action="store_true")
    parser.add_argument("--jobs", type=int, default=1, help="members trained at a time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="keep the numbers there as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    folder = arguments.runs.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    results = {}
    if arguments.out and arguments.out.is_file():
        results = json.loads(arguments.out.read_text(encoding="utf-8"))["datasets"]
    for dataset in arguments.datasets:
        if not arguments.evaluate_only:
            for name, content in runs_of(dataset, folder).items():
                train(name, content, folder, arguments.jobs)
        data = Path(os.environ["BAYESMLIP_DATA"])
        found = evaluate_dataset(dataset, folder, data, arguments.rows)
        rows = {**results.get(dataset, {}), **found}
        results[dataset] = {row: rows[row] for row in ROWS if row in rows}
        print(f"\n{dataset}\n{table(results[dataset])}", flush=True)
        if arguments.out:
            content = {"torch": torch.__version__, "datasets": results}
            arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
