"""What RACE and e²IP were published with, measured here: one command a part.

    results=examples/benchmarks/results
    python examples/benchmarks/claims.py losses runs --minutes 30 --out $results/claims.jsonl

trains what is missing in the folder `runs`, evaluates it on test sets that no training saw, adds a
line to the file for every finished training, and prints one table per data set: means and standard
deviations over the seeds that are there. It can be interrupted at any time: the same command goes
on where it was. `--table` prints the tables alone. BAYESMLIP_DATA is the folder of the reference
data.

losses
    The joint likelihood of energies and forces (NLL_JEF) against that of energies with squared
    force errors (NLL_E) and squared errors alone (MSE): the same network for the same `--minutes`,
    or, on a machine that others use, the same `--epochs`. A quantity without noise heads has the
    one number that its validation errors give.
race
    RACE in its published size, five layers of 64 channels of both parities up to degree 3 with
    eight outputs an atom, on 3BPA: `--minutes 600` is a night.
evidence
    e²IP, eIP, the form that is not equivariant, and ensembles on water and silica, `--longer` times
    the epochs of `evidential.py`, whose rows these are. The ceiling is the rank correlation between
    the sizes of errors of two potentials from different seeds: what one can know of the other.
efficiency
    e²IP, the form that is not equivariant, and eIP on 30, 50, 70 and 100 % of 400 frames of two
    molecules, at the same number of steps.
"""

import copy
import json
import os
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from calibration_sets import DATASETS as SETS
from cases import conditions, record
from evidential import CONFIGS, EFFICIENT, FRACTIONS, configurations, train
from evidential_rows import COLUMNS as OF_LAWS
from evidential_rows import DATASETS, ROWS, evaluate_dataset, served

from ase_bayesmlip import BayesianCalculator
from ase_bayesmlip.evaluation import Bootstrap, Comparison, read_evaluation_frames
from ase_bayesmlip.evaluation.evaluate import evaluate_set
from ase_bayesmlip.metrics import spearman
from ase_bayesmlip.posteriors import POSTERIORS
from ase_bayesmlip.structures.labelled import read_frames

LOSSES = {"nll_jef": "NLL_JEF", "nll_e": "NLL_E", "mse": "MSE"}
TESTS = {
    **{name: SETS[name][1:] for name in ("acac", "3bpa")},
    "aspirin": (DATASETS["aspirin"][0], {}),
}
KEPT = (
    *("energy_rmse_meV_per_atom", "forces_rmse_meV_per_A", "energy_nll", "forces_nll"),
    *("calibration_error_energy", "calibration_error_forces", "coverage_90_forces"),
)
PUBLISHED = Path(__file__).parents[1] / "configs" / "3bpa_race_published.yaml"


class Task(NamedTuple):
    """One training and what is measured of it: ``measure(folder, data)`` -> lines."""

    part: str
    dataset: str
    run: str
    seed: int
    content: dict[str, Any]
    measure: Callable[[Path, Path], list[dict[str, Any]]]


def seeded(content: dict[str, Any], seed: int) -> dict[str, Any]:
    """A configuration whose random numbers are those of a seed; members add theirs to it."""
    return {**copy.deepcopy(content), "seeds": {"initialisation": 100 * seed, "shuffling": seed}}


def lengthened(content: dict[str, Any], arguments: Namespace) -> dict[str, Any]:
    """A configuration with the minutes or epochs that were asked for."""
    content = copy.deepcopy(content)
    if arguments.epochs:
        content["training"]["epochs"] = arguments.epochs
    else:
        # More epochs than there is time for; the schedule fits itself to the time.
        content["training"] |= {"epochs": 100_000, "time_limit": arguments.minutes}
    return content


def losses(arguments: Namespace) -> Iterator[Task]:
    """Each loss on each data set and seed: all losses of a seed before the next seed."""
    for seed in range(arguments.seeds):
        for dataset in arguments.datasets or TESTS:
            base = yaml.safe_load((CONFIGS / f"{dataset}.yaml").read_text(encoding="utf-8"))
            for kind in LOSSES:
                content = lengthened(seeded(base, seed), arguments)
                content |= {"loss": {"kind": kind}, "posterior": {"kind": "point"}}
                run = f"{dataset}_{kind}_{seed}"
                yield Task("losses", dataset, run, seed, content, point_measure(run, kind, content))


def race(arguments: Namespace) -> Iterator[Task]:
    """RACE in its published size."""
    content = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    for seed in range(arguments.seeds):
        run = f"3bpa_race_{seed}"
        long = lengthened(seeded(content, seed), arguments)
        yield Task("race", "3bpa", run, seed, long, point_measure(run, "race", long))


def point_measure(
    run: str, row: str, content: dict[str, Any]
) -> Callable[[Path, Path], list[dict[str, Any]]]:
    """Measures one potential on the test sets of its data set."""

    def measure(folder: Path, data: Path) -> list[dict[str, Any]]:
        test, foreign = TESTS[run.split("_")[0]]
        valid = read_evaluation_frames(os.path.expandvars(content["data"]["valid"]))
        numbers: dict[str, Any] = {"row": row}
        with TemporaryDirectory() as name:
            calculator = served(POSTERIORS["point"].load(folder / run), Path(name) / "model.pt")
            on_valid = calculator.evaluate([frame.atoms for frame in valid], 8)
            for title, path in {"known": test, **foreign}.items():
                frames = read_evaluation_frames(str(data / path))
                results = calculator.evaluate([frame.atoms for frame in frames], 8)
                results = [with_constants(r, valid, on_valid) for r in results]
                found = evaluate_set(Comparison(frames, results), title, Bootstrap(200)).to_json()
                kept = {key: found[key] for name in KEPT for key in (name, f"{name}_ci")}
                numbers[title] = {"n_frames": len(frames), **kept}
        return [numbers]

    return measure


def with_constants(result: dict[str, Any], valid: Any, on_valid: Any) -> dict[str, Any]:
    """A result with the mean square validation error for each variance that it lacks."""
    pairs = list(zip(valid, on_valid, strict=True))
    if "energy_var" not in result:
        square = np.mean([(f.energy - r["energy"]) ** 2 for f, r in pairs])
        result = {**result, "energy_var": float(square)}
    if "forces_cov" not in result:
        square = np.mean([np.mean((f.forces - r["forces"]) ** 2) for f, r in pairs])
        covariance = np.broadcast_to(square * np.eye(3), (len(result["forces"]), 3, 3))
        result = {**result, "forces_cov": covariance}
    return result


def evidence(arguments: Namespace) -> Iterator[Task]:
    """The rows of `evidential.py` for every seed, and the ceiling of its ensemble."""
    rows = {name: row for name, row in ROWS.items() if name != "laplace"}
    for seed in range(arguments.seeds):
        for dataset in arguments.datasets or ("water", "zeolite"):
            yield from of_family("evidence", dataset, seed, arguments, {dataset: rows})


def efficiency(arguments: Namespace) -> Iterator[Task]:
    """Runs with a part of the frames, and with all of them."""
    rows = {name: row for name, row in ROWS.items() if name in EFFICIENT}
    for seed in range(arguments.seeds):
        for dataset in arguments.datasets or FRACTIONS:
            parts = [dataset, *(f"{dataset}{n}" for n in FRACTIONS[dataset])]
            yield from of_family("efficiency", dataset, seed, arguments, dict.fromkeys(parts, rows))


def of_family(
    part: str,
    dataset: str,
    seed: int,
    arguments: Namespace,
    families: dict[str, dict[str, tuple[str, str, str]]],
) -> Iterator[Task]:
    """The runs of `evidential.configurations` that rows are made of, and those they start from.

    Parameters
    ----------
    families : dict
        Prefix of the names of runs -> rows, as in `evidential_rows.ROWS`.
    """
    inner = arguments.runs.resolve() / f"seed{seed}"
    for run, content in configurations(dataset, inner).items():
        family, _, kind = run.rpartition("_")
        rows = {n: row for n, row in families.get(family, {}).items() if row[1] == kind}
        if not rows and not (kind == "start" and family in families):
            continue
        content = seeded(content, seed)
        epochs = round(arguments.longer * content["training"]["epochs"])
        content["training"]["epochs"] = max(1, epochs)
        measure = family_measure(dataset, family, rows)
        yield Task(part, dataset, f"seed{seed}/{run}", seed, content, measure)


def family_measure(
    dataset: str, family: str, rows: dict[str, tuple[str, str, str]]
) -> Callable[[Path, Path], list[dict[str, Any]]]:
    """Measures the rows of one run, and the ceiling where the run is an ensemble."""

    def measure(folder: Path, data: Path) -> list[dict[str, Any]]:
        if not rows:
            return [{"row": "start"}]
        found = evaluate_dataset(dataset, folder, data, {}, rows, family)["rows"]
        if "raw" in rows:
            found["raw"]["ceiling"] = ceiling(folder / f"{family}_ensemble", dataset, data)
        return [{"row": row, "family": family, **numbers} for row, numbers in found.items()]

    return measure


def ceiling(run: Path, dataset: str, data: Path) -> float:
    """Mean over pairs of members of the rank correlation between the sizes of their errors."""
    frames = read_frames(str(data / DATASETS[dataset][0]))
    with TemporaryDirectory() as name:
        path = Path(name) / "model.pt"
        served(POSTERIORS["ensemble"].load(run), path)
        calculator = BayesianCalculator(path, return_members=True)
        results = calculator.evaluate([frame.atoms for frame in frames], 8)
    sizes = [
        np.linalg.norm(result["forces_ensemble"] - frame.forces, axis=2)
        for result, frame in zip(results, frames, strict=True)
    ]
    of_members = np.concatenate(sizes, axis=1)
    return float(np.mean([spearman(a, b) for a, b in combinations(of_members, 2)]))


PARTS = {"losses": losses, "race": race, "evidence": evidence, "efficiency": efficiency}

# Key of a number -> title of its column and digits; a set before a dot is that of a test.
COLUMNS = {
    "losses": {
        "known.energy_rmse_meV_per_atom": ("energy RMSE, meV/atom", ".2f"),
        "known.forces_rmse_meV_per_A": ("force RMSE, meV/Å", ".1f"),
        "known.energy_nll": ("NLL of energies", ".2f"),
        "known.forces_nll": ("NLL of forces", ".2f"),
        "known.calibration_error_energy": ("CE of energies", ".4f"),
        "known.calibration_error_forces": ("CE of forces", ".4f"),
        "600 K.forces_rmse_meV_per_A": ("600 K: force RMSE", ".1f"),
        "600 K.forces_nll": ("600 K: NLL of forces", ".2f"),
        "epochs": ("epochs", ".0f"),
    },
    "evidence": {
        **{name: OF_LAWS[name] for name in list(OF_LAWS)[:6]},
        "ceiling": ("its ceiling", ".2f"),
        "sd_ln_sigma": ("sd(ln σ)", ".2f"),
        "auroc": OF_LAWS["auroc"],
    },
    "efficiency": {
        name: OF_LAWS[name] for name in ("forces_mae_meV_per_A", "forces_nll", "spearman_total")
    },
}
COLUMNS["race"] = COLUMNS["losses"]
TITLES = {**LOSSES, **{row: title for row, (title, _, _) in ROWS.items()}, "race": "RACE"}


def table(lines: list[dict[str, Any]], part: str, dataset: str) -> str:
    """A Markdown table of a part and data set: mean ± standard deviation over seeds."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in lines:
        if (line["part"], line["dataset"]) == (part, dataset) and line["row"] != "start":
            groups.setdefault((line["row"], line.get("family", dataset)), []).append(line)
    columns = COLUMNS[part]
    text = ["| | seeds | " + " | ".join(title for title, _ in columns.values()) + " |"]
    text.append("|---" * (len(columns) + 2) + "|")
    for (row, family), group in groups.items():
        n_frames = family.removeprefix(dataset)
        title = TITLES[row] + (f", {n_frames} frames" if n_frames else "")
        cells = [cell(group, key, digits) for key, (_, digits) in columns.items()]
        text.append(f"| {title} | {len(group)} | " + " | ".join(cells) + " |")
    return "\n".join(text)


def cell(group: list[dict[str, Any]], key: str, digits: str) -> str:
    """Mean of a number, with the standard deviation where there are seeds enough for one."""
    name, _, inner = key.rpartition(".")
    values = [(line.get(name, {}) if name else line).get(inner) for line in group]
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    spread = f" ± {np.std(known, ddof=1):{digits}}" if len(known) > 1 else ""
    return f"{np.mean(known):{digits}}{spread}"


def spent(run: Path) -> dict[str, float]:
    """Epochs and minutes of the longest of the members."""
    last = [
        path.read_text().splitlines()[-1].split(",") for path in run.glob("member-*/metrics.csv")
    ]
    return {
        "epochs": max(int(values[0]) for values in last),
        "minutes": max(float(values[-1]) for values in last) / 60.0,
    }


def read_lines(path: Path | None) -> list[dict[str, Any]]:
    """The lines that are there."""
    if path is None or not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def parsed() -> Namespace:
    """The arguments."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("runs", type=Path, help="folder of the runs")
    parser.add_argument("--out", type=Path, required=True, help="file of numbers, JSON lines")
    parser.add_argument("--datasets", nargs="+", help="some of the part's data sets")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=30.0, help="of one training")
    parser.add_argument("--epochs", type=int, help="of one training, in the place of minutes")
    parser.add_argument(
        "--longer", type=float, default=4.0, help="times the epochs of evidential.py"
    )
    parser.add_argument("--jobs", type=int, default=1, help="members trained at a time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="train nothing, print the tables")
    return parser.parse_args()


def main() -> None:
    """Train, measure, keep a line at once, and print."""
    arguments = parsed()
    folder, data = arguments.runs.resolve(), Path(os.environ["BAYESMLIP_DATA"])
    torch.set_num_threads(arguments.threads)
    for task in PARTS[arguments.part](arguments):
        done = {(line["part"], line["run"]) for line in read_lines(arguments.out)}
        if arguments.table or (task.part, task.run) in done:
            continue
        path = folder / task.run
        path.parent.mkdir(parents=True, exist_ok=True)
        train(path.name, task.content, path.parent, arguments.jobs)
        about = {"part": task.part, "dataset": task.dataset, "run": task.run, "seed": task.seed}
        for numbers in task.measure(path.parent, data):
            record({**about, **spent(path), **numbers, **conditions()}, arguments.out)
    lines = read_lines(arguments.out)
    for dataset in dict.fromkeys(x["dataset"] for x in lines if x["part"] == arguments.part):
        print(f"\n{dataset}\n{table(lines, arguments.part, dataset)}")


if __name__ == "__main__":
    main()
