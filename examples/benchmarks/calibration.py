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

import copy
import os
from pathlib import Path
from typing import Any

from calibration_rows import ROWS, evaluate_dataset, table
from calibration_sets import DATASETS
from evidential import configurations, train
from study import begin, keep, parser_of

# Epochs of SWAG and of IVON, which differ as the frames of the data sets do; IVON runs at a
# hundredth of the posterior's temperature, where its draws keep their accuracy (docs/benchmarks).
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
    parser = parser_of(__doc__, DATASETS)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    arguments = parser.parse_args()
    folder, results = begin(arguments)
    for dataset in arguments.datasets:
        if not arguments.evaluate_only:
            for name, content in runs_of(dataset, folder).items():
                train(name, content, folder, arguments.jobs)
        data = Path(os.environ["BAYESMLIP_DATA"])
        found = evaluate_dataset(dataset, folder, data, arguments.rows)
        rows = {**results.get(dataset, {}), **found}
        results[dataset] = {row: rows[row] for row in ROWS if row in rows}
        print(f"\n{dataset}\n{table(results[dataset])}", flush=True)
        keep(arguments.out, results)


if __name__ == "__main__":
    main()
