"""The rows and columns of `evidential.py`: what each posterior says of the errors it makes."""

import dataclasses
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from ase import Atoms
from component_law import ComponentLaw
from scipy.optimize import minimize_scalar
from walk import Walk

from ase_bayesmlip import BayesianCalculator
from ase_bayesmlip.evaluation import Bootstrap, Errors, PredictiveLaw
from ase_bayesmlip.metrics import (
    auroc,
    bootstrap_interval,
    calibration_curve,
    coverage,
    energy_score,
    mae,
    rmse,
    spearman,
)
from ase_bayesmlip.nn.evidential.components import eip_epistemic_variance, eip_student_t
from ase_bayesmlip.posteriors import POSTERIORS
from ase_bayesmlip.posteriors.run_folder import read_run
from ase_bayesmlip.serving.export import export_members
from ase_bayesmlip.serving.home import load_home
from ase_bayesmlip.structures.labelled import LabelledFrame, read_frames
from ase_bayesmlip.structures.neighbors import graph_of
from ase_bayesmlip.training.outputs import evaluate

# Test set and, where there is one, foreign structures; calibration frames for the scaled ensemble.
DATASETS = {
    "water": ("water_deepmd/test_A.extxyz.xz", None, "water_deepmd/calib.extxyz.xz@20:80"),
    "aspirin": (
        "rmd17/aspirin_test_A.extxyz.xz@0:100",
        "rmd17/salicylic_test_A.extxyz.xz@0:100",
        "rmd17/aspirin_calib.extxyz.xz@0:100",
    ),
    "uracil": (
        "rmd17/uracil_test_A.extxyz.xz@0:100",
        "rmd17/malonaldehyde_test_A.extxyz.xz@0:100",
        "rmd17/uracil_calib.extxyz.xz@0:100",
    ),
    "zeolite": (
        "zeolite_sio2/test_id_A.extxyz.xz",
        "zeolite_sio2/ood_topology_1_A.extxyz.xz",
        "zeolite_sio2/calib.extxyz.xz@0:60",
    ),
}

# Row -> title, run, and how the run is read.
ROWS = {
    "paper": ("e²IP, mode paper", "paper", "law"),
    "coupled": ("e²IP, mode coupled", "coupled", "law"),
    "laplace": ("e²IP + Laplace", "laplace", "gaussian"),
    "eip": ("eIP (paper form)", "eip", "components"),
    "invariant": ("e²IP without equivariance", "invariant", "law"),
    "raw": ("ensemble of 4, raw", "ensemble", "raw"),
    "scaled": ("ensemble of 4, scaled", "ensemble", "scaled"),
    "heteroskedastic": ("ensemble of 4, heteroskedastic", "ensemble", "gaussian"),
}
N_DRAWS = 50
N_TURNS = 12
LEVELS = np.arange(1, 100) / 100.0


@dataclass(frozen=True)
class Said:
    """What a posterior says of a list of frames.

    Attributes
    ----------
    errors : Errors
        Of forces, with their covariance and law.
    score : ndarray, (n,), eV/Å
        √(tr Σ_epistemic/3) of each atom.
    drawn : PredictiveLaw or ComponentLaw
        What the energy score and the reference of the Spearman coefficient draw from.
    """

    errors: Errors
    score: np.ndarray
    drawn: Any


def _errors(
    error: np.ndarray, covariance: np.ndarray, law: Any, frames: list[LabelledFrame]
) -> Errors:
    frame = np.repeat(np.arange(len(frames)), [len(item.atoms) for item in frames])
    numbers = np.concatenate([item.atoms.numbers for item in frames])
    return Errors(error, None, None, frame, law, numbers, stated=covariance)


def say(
    results: list[dict[str, Any]],
    frames: list[LabelledFrame],
    how: str,
    n_members: int = 1,
    factor: float = 1.0,
) -> Said:
    """What the results of a served file say; `how` as in `ROWS`."""

    def joined(name: str) -> np.ndarray:
        return np.concatenate([result[name] for result in results])

    error = np.concatenate([f.forces for f in frames]) - joined("forces")
    epistemic = joined("forces_cov_epistemic")
    law, covariance = PredictiveLaw(), joined("forces_cov")
    if how == "law":
        law = PredictiveLaw(dof=joined("forces_dof"))
    drawn = law
    if how in ("raw", "scaled"):
        # The energy score of so heavy a law does not exist: that of the Gaussian stands in.
        law, covariance = PredictiveLaw(n_members=n_members), factor * epistemic
    score = np.sqrt(np.einsum("icc->i", epistemic) / 3.0)
    return Said(_errors(error, covariance, law, frames), score, drawn)


def most_likely_factor(errors: Errors) -> float:
    """The factor of all covariances that suits the errors best."""
    found = minimize_scalar(
        lambda x: errors.law.nll(errors.error, np.exp(x) * errors.covariance), bracket=(-1.0, 1.0)
    )
    return float(np.exp(found.x))


def say_eip(folder: Path, frames: list[LabelledFrame]) -> Said:
    """What eIP says: its own law, which a served file's covariances do not determine."""
    state = POSTERIORS["evidential"].load(folder)
    potential = state.potentials()[0]
    quantile, cutoff = state.config.loss.evidence.quantile, state.config.model.cutoff
    columns: list[list[np.ndarray]] = []
    for frame in frames:
        outputs = evaluate(potential, graph_of(frame.atoms, cutoff), False, False)
        evidence = outputs.evidence
        unit = float(evidence.unit_squared)
        dof, shift, scale = (x.detach().numpy() for x in eip_student_t(evidence.nig, quantile))
        epistemic = unit * eip_epistemic_variance(evidence.nig).detach().numpy()
        error = frame.forces - outputs.forces.detach().numpy()
        columns.append([error, dof, unit**0.5 * shift, unit**0.5 * scale, epistemic])
    error, dof, shift, scale, epistemic = (np.concatenate(c) for c in zip(*columns, strict=True))
    law = ComponentLaw(dof, shift, scale)
    covariance = (scale**2 * dof / (dof - 2.0))[:, :, None] * np.eye(3)
    return Said(_errors(error, covariance, law, frames), np.sqrt(epistemic.mean(axis=1)), law)


def _distance_from_diagonal(curve: np.ndarray) -> float:
    """As `metrics.miscalibration_area`: mean of |observed - nominal| over the levels."""
    return float(np.abs(curve - LEVELS).mean())


def _milli(value: np.ndarray) -> float:
    return 1e3 * float(value)


def summary(said: Said, foreign: Said | None) -> dict[str, Any]:
    """The metrics of a row, each with a 95 % interval over frames."""
    errors, bootstrap = said.errors, Bootstrap(n_resamples=200)
    generator = bootstrap.generator()
    # Energy scores of the atoms; in the place of errors they are resampled by frame like these.
    draws = np.stack(list(said.drawn.draws(errors.covariance, N_DRAWS, generator)), axis=1)
    scores = np.array(
        [energy_score(e[None], d[None]) for e, d in zip(errors.error, draws, strict=True)]
    )
    as_errors = dataclasses.replace(errors, error=scores[:, None], law=None, stated=None)
    estimates = {
        "forces_mae_meV_per_A": bootstrap.mean(errors, lambda e: mae(e.error), _milli),
        "forces_rmse_meV_per_A": bootstrap.mean(
            errors, lambda e: rmse(e.error) ** 2, lambda value: 1e3 * float(value) ** 0.5
        ),
        "miscalibration_area": bootstrap.mean(
            errors, lambda e: calibration_curve(e.confidence, LEVELS), _distance_from_diagonal
        ),
        "coverage_90": bootstrap.mean(errors, lambda e: coverage(e.confidence, 0.9)),
        "forces_nll": bootstrap.mean(errors, lambda e: e.nll),
        "energy_score_meV_per_A": bootstrap.mean(as_errors, lambda e: mae(e.error), _milli),
    }
    found: dict[str, Any] = {"n_frames": int(errors.frame.max()) + 1, "n_atoms": len(errors.error)}
    found["sd_ln_sigma"] = float(np.std(np.log(errors.std)))
    for name, estimate in estimates.items():
        found[name], found[f"{name}_ci"] = estimate.value, estimate.interval.tolist()
    found |= _rank_numbers(said, np.linalg.norm(draws[:, 0], axis=1), generator)
    if foreign is not None:
        found["auroc"] = auroc(_largest(said), _largest(foreign))
        found["foreign_forces_mae_meV_per_A"] = 1e3 * mae(foreign.errors.error)
        found["foreign_coverage_90"] = coverage(foreign.errors.confidence, 0.9)
    return found


def _rank_numbers(
    said: Said, redrawn: np.ndarray, generator: np.random.Generator
) -> dict[str, Any]:
    """Spearman coefficients of the size of an error, or of one drawn from the law itself."""
    size, total = np.linalg.norm(said.errors.error, axis=1), said.errors.std
    pairs = {
        "spearman": (size, said.score),
        "spearman_total": (size, total),
        "spearman_reference": (redrawn, total),
    }
    found: dict[str, Any] = {}
    for name, (sizes, scores) in pairs.items():

        def statistic(chosen: np.ndarray, x: np.ndarray = sizes, y: np.ndarray = scores) -> float:
            return spearman(x[chosen], y[chosen])

        interval = bootstrap_interval(
            statistic, said.errors.frame, n_resamples=100, generator=generator
        )
        found[name], found[f"{name}_ci"] = spearman(sizes, scores), interval.tolist()
    return found


def _largest(said: Said) -> np.ndarray:
    """Largest score of each frame."""
    frame = said.errors.frame
    return np.array([said.score[frame == k].max() for k in range(frame.max() + 1)])


def served(state: Any, path: Path) -> BayesianCalculator:
    """Serve a posterior to a file, as the command does, and load it."""
    posterior = POSTERIORS[state.config.posterior.kind]
    members = posterior.draw(state, None, torch.Generator().manual_seed(0))
    home = load_home(state.config, state.record)
    export_members(members, state.config, state.record, path, seed=0, home=home)
    return BayesianCalculator(path)


def answer(
    calculator: BayesianCalculator, frames: list[LabelledFrame] | None
) -> list[dict[str, Any]]:
    """Results of the frames; nothing for none."""
    atoms = [] if frames is None else [frame.atoms for frame in frames]
    return calculator.evaluate(atoms, batch_size=8)


def rotation_error(calculator: BayesianCalculator, frames: list[LabelledFrame]) -> float:
    """Mean over atoms of |Σ(QR) - QΣ(R)Qᵀ|/|Σ(R)|: what is not equivariant of the covariance."""
    generator, errors = np.random.default_rng(0), []
    for frame in frames[:5]:
        q = np.linalg.qr(generator.normal(size=(3, 3)))[0]
        turned = frame.atoms.copy()
        turned.set_cell(frame.atoms.cell.array @ q.T)
        turned.positions = frame.atoms.positions @ q.T
        before, after = (r["forces_cov"] for r in calculator.evaluate([frame.atoms, turned]))
        difference = np.linalg.norm(after - q @ before @ q.T, axis=(1, 2))
        errors.append(difference / np.linalg.norm(before, axis=(1, 2)))
    return float(np.concatenate(errors).mean())


def step_times(calculators: dict[str, BayesianCalculator], atoms: Atoms) -> dict[str, float]:
    """Median of a step with the whole answer, ms; taking turns, so that all are slowed alike."""
    walks = {}
    for run, calculator in calculators.items():
        own = atoms.copy()
        own.calc = calculator
        walks[run] = Walk(own)
    turns: dict[str, list[float]] = {run: [] for run in walks}
    for _ in range(N_TURNS):
        for run, walk in walks.items():
            turns[run] += walk.turn()
    return {run: 1e3 * float(np.median(seconds)) for run, seconds in turns.items()}


def evaluate_dataset(
    dataset: str,
    folder: Path,
    data: Path,
    fractions: dict[int, str],
    chosen: dict[str, tuple[str, str, str]] = ROWS,
    prefix: str | None = None,
) -> dict[str, Any]:
    """The chosen rows of a data set whose runs exist, and its data efficiency.

    Names of the runs begin with the data set's, or another `prefix`.
    """
    test, foreign, calibration = (
        None if path is None else read_frames(str(data / path)) for path in DATASETS[dataset]
    )
    assert test is not None
    rows, answers, calculators = {}, {}, {}
    with TemporaryDirectory() as name:
        for row, (_, run, how) in chosen.items():
            path = folder / f"{prefix or dataset}_{run}"
            try:
                state = POSTERIORS[read_run(path)[0].posterior.kind].load(path)
            except (FileNotFoundError, ValueError) as error:
                print(f"left out: {error}")
                continue
            if run not in answers:
                calculator = calculators[run] = served(state, Path(name) / f"{run}.pt")
                wanted = (test, foreign, calibration if run == "ensemble" else None)
                said = [answer(calculator, frames) for frames in wanted]
                answers[run] = calculator.card.n_members, said, rotation_error(calculator, test)
            n_members, (on_test, on_foreign, on_calibration), turned = answers[run]
            if how == "components":
                sets = [None if f is None else say_eip(path, f) for f in (test, foreign)]
            else:
                factor = 1.0
                if how == "scaled":
                    known = say(on_calibration, calibration, "raw", n_members)
                    factor = most_likely_factor(known.errors)
                sets = [
                    None if f is None else say(results, f, how, n_members, factor)
                    for results, f in ((on_test, test), (on_foreign, foreign))
                ]
            today = datetime.now(UTC).date().isoformat()
            rows[row] = summary(sets[0], sets[1]) | {"rotation_error": turned, "date": today}
            if how == "scaled":
                rows[row]["factor"] = factor
        times = step_times(calculators, test[0].atoms)
    for row, numbers in rows.items():
        numbers["step_ms"] = times[ROWS[row][1]]
    found: dict[str, Any] = {"rows": rows}
    if fractions and (folder / f"{dataset}_start" / "run.json").is_file():
        found["data_efficiency"] = data_efficiency(dataset, folder, test, fractions)
    return found


def data_efficiency(
    dataset: str, folder: Path, test: list[LabelledFrame], fractions: dict[int, str]
) -> list[dict[str, Any]]:
    """Force error and likelihood for each number of training frames."""
    everything = read_run(folder / f"{dataset}_start")[1]["n_train"]
    found = []
    with TemporaryDirectory() as name:
        for n_frames, prefix in {**fractions, everything: dataset}.items():
            for variant in ("coupled", "invariant", "eip"):
                path = folder / f"{prefix}_{variant}"
                if not (path / "run.json").is_file():
                    continue
                if variant == "eip":
                    said = say_eip(path, test)
                else:
                    state = POSTERIORS["evidential"].load(path)
                    calculator = served(state, Path(name) / f"{prefix}_{variant}.pt")
                    said = say(answer(calculator, test), test, "law")
                found.append(
                    {
                        "n_train": n_frames,
                        "variant": variant,
                        "forces_mae_meV_per_A": 1e3 * mae(said.errors.error),
                        "forces_nll": said.errors.nll,
                    }
                )
    return found


COLUMNS = {
    "forces_mae_meV_per_A": ("force MAE, meV/Å", ".1f"),
    "miscalibration_area": ("miscalibration area", ".3f"),
    "forces_nll": ("NLL, nats", ".2f"),
    "energy_score_meV_per_A": ("energy score, meV/Å", ".1f"),
    "spearman": ("Spearman, epistemic", ".2f"),
    "spearman_total": ("Spearman, total", ".2f"),
    "spearman_reference": ("its reference", ".2f"),
    "auroc": ("AUROC", ".3f"),
    "rotation_error": ("change by rotation", ".1%"),
    "foreign_coverage_90": ("coverage of 90 %, foreign", ".2f"),
    "step_ms": ("step, ms", ".1f"),
}


def table(rows: dict[str, dict[str, Any]], titles: dict[str, tuple[str, str, str]]) -> str:
    """A Markdown table."""
    lines = ["| posterior | " + " | ".join(title for title, _ in COLUMNS.values()) + " |"]
    lines.append("|---" * (len(COLUMNS) + 1) + "|")
    for row, numbers in rows.items():
        cells = [
            format(numbers[key], digits) if key in numbers else "–"
            for key, (_, digits) in COLUMNS.items()
        ]
        lines.append(f"| {titles[row][0]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
