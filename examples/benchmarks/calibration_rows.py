"""The rows and columns of `calibration.py`: posteriors before and after calibration."""

import dataclasses
import json
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from calibration_sets import DATASETS

from ase_bayesmlip import BayesianCalculator
from ase_bayesmlip.calibration import calibrate, observe, scaled_results
from ase_bayesmlip.calibration.quality import Quality
from ase_bayesmlip.card import read_card
from ase_bayesmlip.cli.calibrate import calibrate_file
from ase_bayesmlip.config.posterior import PointConfig
from ase_bayesmlip.evaluation import (
    Bootstrap,
    Comparison,
    EvaluationFrame,
    read_evaluation_frames,
)
from ase_bayesmlip.evaluation.detection import Detection, detect
from ase_bayesmlip.evaluation.evaluate import evaluate_set
from ase_bayesmlip.metrics import Origin, origin_of
from ase_bayesmlip.posteriors import POSTERIORS
from ase_bayesmlip.posteriors.run_folder import read_run
from ase_bayesmlip.serving.export import export_members
from ase_bayesmlip.serving.home import load_home
from ase_bayesmlip.structures.labelled import LabelledFrame, read_frames

# Row -> title and run. The rows "spread" and "mace" have the spread of four members alone, and
# "split" a factor for it beside that of the noise.
ROWS = {
    "point": ("one potential, noise heads", "ensemble"),
    "ensemble": ("ensemble of 4", "ensemble"),
    "split": ("ensemble of 4, two factors", "ensemble"),
    "swag": ("SWAG", "member_swag"),
    "ivon": ("IVON", "member_ivon"),
    "laplace": ("Laplace, last layer", "member_laplace"),
    "evidential": ("e²IP", "coupled"),
    "spread": ("ensemble of 4, its spread alone", "ensemble"),
    "mace": ("MACE 0.3.16, committee of 4", "mace"),
}

Results = list[Mapping[str, Any]]

# What is kept of an evaluation, each with its interval.
KEPT = (
    "energy_rmse_meV_per_atom",
    "forces_rmse_meV_per_A",
    "forces_mae_meV_per_A",
    "forces_nll",
    "energy_nll",
    "calibration_error_energy",
    "calibration_error_forces",
    "coverage_90_energy",
    "coverage_90_forces",
    "spearman_forces",
    "spearman_forces_if_exact",
    "energy_score_forces",
    "forces_sigma_meV_per_A",
    "auroc_ood",
    "aupr_ood",
    "fpr95_ood",
    "ood_score",
)


@dataclass(frozen=True)
class Answers:
    """What a row says of each set of frames, and how that was calibrated.

    Attributes
    ----------
    before, after : dict of str to results
        By name of the set.
    record : dict
        Of the calibration, as a model card keeps it.
    origins : tuple of Origin
        What the variances are made of, before and after.
    about : dict
        What else is to be kept.
    """

    before: dict[str, Results]
    after: dict[str, Results]
    record: dict[str, Any]
    origins: tuple[Origin, Origin]
    about: dict[str, Any]


def serve(run: Path, row: str, path: Path) -> None:
    """Serve a run as the command does; the row "point" is the first member of the ensemble."""
    state = POSTERIORS[read_run(run)[0].posterior.kind].load(run)
    members = POSTERIORS[state.config.posterior.kind].draw(
        state, None, torch.Generator().manual_seed(0)
    )
    config = state.config
    if row == "point":
        members, config = members[:1], dataclasses.replace(config, posterior=PointConfig())
    home = load_home(state.config, state.record)
    export_members(members, config, state.record, path, seed=0, home=home)


def answers_of_file(
    model: Path,
    calibration: list[LabelledFrame],
    sets: dict[str, list[EvaluationFrame]],
    method: str = "global",
) -> Answers:
    """Calibrate a served file, and evaluate it before and after."""
    calibrated = model.with_name(f"calibrated_{model.name}")
    card = calibrate_file(model, calibration, calibrated, method)
    said = []
    for path in (model, calibrated):
        calculator = BayesianCalculator(path)
        said.append(
            {name: calculator.evaluate([f.atoms for f in s], 8) for name, s in sets.items()}
        )
    about = {"n_members": card.n_members, "n_draws": card.n_draws}
    origins = origin_of(read_card(model)), origin_of(card)
    return Answers(said[0], said[1], card.recalibrations[-1], origins, about)


def answers_of_spread(
    on_calibration: Results,
    calibration: list[LabelledFrame],
    before: dict[str, Results],
    sets: dict[str, list[EvaluationFrame]],
    n_members: int,
) -> Answers:
    """Calibrate the spread of a committee, and say what it says before and after.

    The covariance of so few members hardly has an inverse: spheres stand in for it (see
    `metrics.laws`), before and after.
    """
    elements = sorted({int(z) for frame in calibration for z in frame.atoms.numbers})
    origin = Origin(n_members=n_members, spherical=True)
    found = calibrate(observe(on_calibration, calibration, origin), elements, "global")
    after = {}
    for name, results in before.items():
        after[name] = [
            spread_alone(scaled_results(result, frame.atoms.get_chemical_symbols(), found.factors))
            for result, frame in zip(results, sets[name], strict=True)
        ]
    return Answers(before, after, found.record, (origin, origin), {"n_members": n_members})


def spread_alone(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result without what the noise heads say."""
    return {
        "energy": result["energy"],
        "forces": result["forces"],
        **{
            name + kind: result[f"{name}_epistemic"]
            for name in ("energy_var", "forces_cov")
            for kind in ("", "_epistemic")
        },
    }


def numbers(
    answers: Answers, sets: dict[str, list[EvaluationFrame]], n_resamples: int = 100
) -> dict[str, Any]:
    """Numbers before and after calibration of every set, the first of them the known one."""
    bootstrap = Bootstrap(n_resamples)

    def compared(stage: str, name: str) -> Comparison:
        said = answers.before[name] if stage == "before" else answers.after[name]
        origin = answers.origins[stage == "after"]
        return Comparison(sets[name], said, **dataclasses.asdict(origin))

    found: dict[str, Any] = {**answers.about, "calibration": _record(answers.record)}
    for stage in ("before", "after"):
        found[stage] = {}
        known, *_ = comparisons = [compared(stage, name) for name in sets]
        for name, comparison in zip(sets, comparisons, strict=True):
            content = evaluate_set(comparison, name, bootstrap).to_json()
            if comparison is not known:
                content |= _detection(detect(known, comparison, bootstrap)[0])
            found[stage][name] = _kept(content)
    for name, frames in sets.items():
        found["after"][name] |= _regions(answers, name, frames)
    return found


def _detection(found: Detection) -> dict[str, Any]:
    """How well the first score of `detection.FRAME_SCORES` that a row has finds a foreign set."""
    content: dict[str, Any] = {"ood_score": found.score}
    for name, estimate in found.numbers.items():
        content[name] = estimate.value
        content[f"{name}_ci"] = np.asarray(estimate.interval).tolist()
    return content


def _kept(content: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of `KEPT` with their intervals, and what they are of."""
    names = [name for kept in KEPT for name in (kept, f"{kept}_ci")]
    names += ["n_frames", "n_atoms_forces", "law_forces", "law_energy"]
    names += ["calibration_error_floor_forces"]
    return {name: content[name] for name in names if name in content}


def _record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Of the record of a calibration: everything but the tables of levels."""
    return {k: v for k, v in record.items() if k not in ("levels", "conformal", "isotonic")}


def _regions(answers: Answers, name: str, frames: list[EvaluationFrame]) -> dict[str, float]:
    """Calibration error and coverage of the isotonic and the conformal regions of a set."""
    quality = Quality()
    record = answers.record
    observed = observe(answers.after[name], frames, answers.origins[1])
    quality.add(observed, record["conformal"], record["isotonic"])
    measured = quality.numbers()
    return {
        f"{key}_{quantity}_{kind}": value
        for kind in ("isotonic", "conformal")
        for quantity, values in measured[kind].items()
        for key, value in values.items()
    }


def mace_answers(
    folder: Path, calibration: list[LabelledFrame], sets: dict[str, list[EvaluationFrame]]
) -> Answers:
    """What `mace_committee.py` left in a folder, calibrated as the others are."""
    results = pickle.loads((folder / "answers.pkl").read_bytes())
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    before = {name: results[name] for name in sets}
    found = answers_of_spread(results["calibration"], calibration, before, sets, 4)
    return dataclasses.replace(found, about={**found.about, **about})


def spread_answers(
    model: Path, calibration: list[LabelledFrame], sets: dict[str, list[EvaluationFrame]]
) -> Answers:
    """What the members of a served ensemble say without their noise heads, calibrated."""
    calculator = BayesianCalculator(model)
    on_calibration, *said = (
        [spread_alone(r) for r in calculator.evaluate([frame.atoms for frame in frames], 8)]
        for frames in (calibration, *sets.values())
    )
    before = dict(zip(sets, said, strict=True))
    return answers_of_spread(on_calibration, calibration, before, sets, calculator.card.n_members)


def answers_of(
    row: str,
    run: Path,
    calibration: list[LabelledFrame],
    sets: dict[str, list[EvaluationFrame]],
) -> Answers:
    """The answers of a row, whose run must be there."""
    if row == "mace":
        return mace_answers(run, calibration, sets)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / f"{row}.pt"
        serve(run, row, model)
        if row == "spread":
            return spread_answers(model, calibration, sets)
        method = "split" if row == "split" else "global"
        return answers_of_file(model, calibration, sets, method)


def evaluate_dataset(dataset: str, folder: Path, data: Path, rows: list[str]) -> dict[str, Any]:
    """Those of the rows of a data set whose runs exist."""
    where, test, foreign = DATASETS[dataset]
    calibration = read_frames(str(data / where))
    sets = {
        name: read_evaluation_frames(str(data / path))
        for name, path in {"known": test, **foreign}.items()
    }
    found = {}
    for row in rows:
        title, run = ROWS[row]
        path = folder / (f"mace_{dataset}" if row == "mace" else f"{dataset}_{run}")
        try:
            answers = answers_of(row, path, calibration, sets)
        except FileNotFoundError as error:
            print(f"left out: {title}: {error}")
            continue
        today = datetime.now(UTC).date().isoformat()
        found[row] = {"date": today, **numbers(answers, sets)}
        print(f"{dataset}: {title}", flush=True)
    return found


def _cell(content: Mapping[str, Any], key: str, digits: str) -> str:
    return format(content[key], digits) if content.get(key) is not None else "–"


def table(rows: Mapping[str, Any]) -> str:
    """A Markdown table; columns of foreign frames hold one number per foreign set."""
    foreign = [name for name in next(iter(rows.values()))["after"] if name != "known"]
    titles = [
        "posterior",
        "RMSE, meV/Å",
        "NLL before → after",
        "CE before → after",
        "CE isotonic",
        "90 % before → after",
        "90 % isotonic",
        "90 % conformal",
        "Spearman (if exact)",
        *(f"{name}: RMSE" for name in foreign),
        *(f"{name}: CE after" for name in foreign),
        *(f"{name}: 90 % conformal" for name in foreign),
        *(f"{name}: AUROC" for name in foreign),
    ]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for row, content in rows.items():
        before, after = content["before"]["known"], content["after"]["known"]
        others = [content["after"][name] for name in foreign]

        def change(key: str, digits: str, a: Any = before, b: Any = after) -> str:
            return f"{_cell(a, key, digits)} → {_cell(b, key, digits)}"

        cells = [
            ROWS[row][0],
            _cell(after, "forces_rmse_meV_per_A", ".1f"),
            change("forces_nll", ".2f"),
            change("calibration_error_forces", ".1e"),
            _cell(after, "calibration_error_forces_isotonic", ".1e"),
            change("coverage_90_forces", ".1%"),
            _cell(after, "coverage_90_forces_isotonic", ".1%"),
            _cell(after, "coverage_90_forces_conformal", ".1%"),
            f"{_cell(after, 'spearman_forces', '.2f')} "
            f"({_cell(after, 'spearman_forces_if_exact', '.2f')})",
            *(_cell(other, "forces_rmse_meV_per_A", ".1f") for other in others),
            *(_cell(other, "calibration_error_forces", ".1e") for other in others),
            *(_cell(other, "coverage_90_forces_conformal", ".1%") for other in others),
            *(_cell(other, "auroc_ood", ".3f") for other in others),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
