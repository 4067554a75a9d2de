"""``bayesmlip evaluate``: from files to numbers, report and figures."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ase_bayesmlip.config import KeysConfig
    from ase_bayesmlip.evaluation import Comparison, Evaluation, EvaluationFrame

FIGURE_ENDINGS = (".png", ".pdf")
BATCH = 32
LOSSES = {
    "mse": "squared errors of energies and forces",
    "nll_e": "likelihood of energies, squared errors of forces",
    "nll_jef": "joint likelihood of energies and forces",
    "evidential": "likelihood of the evidential law (e²IP)",
    "eip": "likelihood of the evidential law of components (eIP)",
}


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser("evaluate", help="errors and error bars on labelled frames")
    parser.add_argument("model", type=Path, help="served file")
    parser.add_argument(
        "test", nargs="+", help="labelled frames like those of the training, never used in it"
    )
    parser.add_argument(
        "--ood",
        action="append",
        default=[],
        help="foreign frames; labels may be missing; may be given several times",
    )
    parser.add_argument(
        "--before", type=Path, help="a file to compare with: the model before calibration"
    )
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.add_argument("--report", type=Path, help="write a self-contained HTML report there")
    parser.add_argument("--figures", type=Path, help="folder for the figures as PNG and PDF")
    parser.add_argument("--energy-key", help="label of energies (default: that of the training)")
    parser.add_argument("--forces-key", help="label of forces (default: that of the training)")
    parser.add_argument("--resamples", type=int, default=1000, help="for the bootstrap intervals")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--dtype", choices=["float32", "float64"], help="precision (default: of the training)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Evaluate and write what was asked for; nothing is written before everything is computed.

    Raises
    ------
    FileNotFoundError, DataError, ValueError
        For files that are missing or cannot be used; the message says which and how to repair it.
    """
    from ase_bayesmlip.report.files import write_evaluation

    _check_targets(arguments)
    evaluation = _evaluate(arguments)
    written = write_evaluation(
        evaluation, arguments.json, report=arguments.report, figures=arguments.figures
    )
    # What could not be had, and why.
    for note in evaluation.notes:
        print(f"note: {note}", file=sys.stderr)
    print(_summary(evaluation, written))


def _check_targets(arguments: argparse.Namespace) -> None:
    """Refuse paths that could not be written, before minutes are spent on numbers for them."""
    for option in ("json", "report"):
        path = getattr(arguments, option)
        if path is None:
            continue
        if path.is_dir():
            raise ValueError(f"--{option} {path} is a folder; give the name of a file")
        if not path.parent.is_dir():
            raise ValueError(f"--{option} {path}: there is no folder {path.parent}; make it first")
    if arguments.figures is not None and arguments.figures.is_file():
        raise ValueError(f"--figures {arguments.figures} is a file; give the name of a folder")


def _evaluate(arguments: argparse.Namespace) -> Evaluation:
    from ase_bayesmlip.calculator import BayesianCalculator
    from ase_bayesmlip.cli.calibrate import label_names
    from ase_bayesmlip.evaluation import Bootstrap, evaluate
    from ase_bayesmlip.structures import partly_labelled as reading
    from ase_bayesmlip.structures.overlap import distinct, seen_notes
    from ase_bayesmlip.structures.reading import in_words

    # All that a user may have got wrong is read before a model is run.
    bootstrap = Bootstrap(arguments.resamples, seed=arguments.seed)
    paths = [arguments.model, *([arguments.before] if arguments.before else [])]
    calculators = [BayesianCalculator(path, arguments.device, arguments.dtype) for path in paths]
    card = calculators[0].card
    # Labels have the names that they had in training, unless others are given.
    keys, units = label_names(card, arguments.model)
    given = {"energy": arguments.energy_key, "forces": arguments.forces_key}
    keys = dataclasses.replace(keys, **{name: key for name, key in given.items() if key})
    notes: list[str] = []
    test = _read(arguments.test, "test set", keys, units, card.atomic_numbers, notes)
    reading.check_labels(test, in_words(arguments.test), keys)
    notes += [f"test set: {note}" for note in seen_notes(card, test)]
    n_copies = len(test) - len(distinct(test))
    if n_copies:
        notes.append(
            f"test set: {n_copies} of {len(test)} frames are copies of others: intervals are "
            "narrower than they should be"
        )
    names = _names(arguments)
    ood = {
        name: _read(path, name, keys, units, card.atomic_numbers, notes)
        for name, path in _foreign(arguments.ood, names["test"], notes).items()
    }
    return evaluate(
        **_predict(calculators, test, ood, not arguments.quiet),
        names=names,
        model=_facts(calculators[0]),
        description=_description(calculators[0]),
        notes=notes,
        bootstrap=bootstrap,
    )


def _predict(
    calculators: list[Any],
    test: list[EvaluationFrame],
    ood: dict[str, list[EvaluationFrame]],
    progress: bool,
) -> dict[str, Any]:
    """What each calculator says about each set, under the names that `evaluate` takes."""
    compared: dict[str, Any] = {}
    for calculator, (known, foreign) in zip(
        calculators, (("test", "ood"), ("before", "before_ood")), strict=False
    ):
        compared[known] = _compare(calculator, test, progress)
        compared[foreign] = {name: _compare(calculator, f, progress) for name, f in ood.items()}
    return compared


def _read(
    paths: str | list[str],
    what: str,
    keys: KeysConfig,
    units: str,
    atomic_numbers: list[int],
    notes: list[str],
) -> list[EvaluationFrame]:
    from ase_bayesmlip.structures import partly_labelled as reading
    from ase_bayesmlip.structures.reading import data_files, in_words

    frames = reading.read_evaluation_frames(paths, keys, units)
    files = in_words(paths)
    frames, left_out = reading.frames_of_known_elements(frames, atomic_numbers, files)
    if len(data_files(paths)) > 1:
        left_out = [f"{len(frames)} frames of {files}", *left_out]
    notes += [f"{what}: {note}" for note in [*left_out, *reading.label_notes(frames, keys)]]
    return frames


def _compare(calculator: Any, frames: list[EvaluationFrame], progress: bool) -> Comparison:
    from tqdm.auto import tqdm

    from ase_bayesmlip.evaluation import Comparison, origin_of

    results = []
    starts = range(0, len(frames), BATCH)
    for start in tqdm(starts, desc="evaluating", unit="batch", disable=not progress, leave=False):
        chunk = frames[start : start + BATCH]
        try:
            results += calculator.evaluate([frame.atoms for frame in chunk], BATCH)
        except ValueError as error:
            raise ValueError(f"frames {chunk[0].source} to {chunk[-1].source}: {error}") from error
    origin = origin_of(calculator.card)
    return Comparison(frames, results, **dataclasses.asdict(origin))


def _names(arguments: argparse.Namespace) -> dict[str, str]:
    """File names without folders and endings: what tables and legends call them."""
    names = {"model": arguments.model.name, "test": _short(arguments.test)}
    if arguments.before:
        names["before"] = arguments.before.name
    return names


def _foreign(paths: list[str], taken: str, notes: list[str]) -> dict[str, str]:
    """Paths of the foreign sets under names of their own; notes say whose name was taken."""
    named: dict[str, str] = {}
    for path in paths:
        name = short = _short(path)
        number = 1
        while name == taken or name in named:
            number += 1
            name = f"{short} ({number})"
        if name != short:
            notes.append(f"{name} is {path}")
        named[name] = path
    return named


def _short(paths: str | list[str]) -> str:
    from ase_bayesmlip.structures.reading import data_files

    files = data_files(paths)
    name = files[0][0].name
    for ending in (".xz", ".gz", ".bz2", ".extxyz", ".xyz", ".npz", ".db", ".traj"):
        name = name.removesuffix(ending)
    return name if len(files) == 1 else f"{name} and {len(files) - 1} more"


def _facts(calculator: Any) -> dict[str, Any]:
    card = calculator.card
    folds = card.calibration.get("folds")
    return {
        "kind": card.kind,
        "n_members": card.n_members,
        "n_draws": card.n_draws,
        "dtype": calculator.model.dtype,
        "backend": calculator.model.backend,
        "epistemic": card.has_epistemic,
        "default_score": card.default_score,
        "aleatoric_energy": card.has_aleatoric_energy,
        "aleatoric_forces": card.has_aleatoric_forces,
        "calibration_frames": 0 if folds else card.calibration.get("n_frames", 0),
        "fold_frames": card.calibration["n_frames"] if folds else 0,
        "created": card.created,
        "elements": list(card.reference_energies),
        "cutoff_A": card.cutoff,
        "n_train": card.training.get("n_train"),
        "loss": card.config.get("loss", {}).get("kind"),
    }


def _description(calculator: Any) -> dict[str, str]:
    """The head of a report: what a reader should know of the model."""
    from ase_bayesmlip.cli.inspect import describe

    card = calculator.card
    rows = describe(card)
    kept = ("epistemic", "aleatoric", "backbone", "calibrated", "thresholds from")
    draws = f", {card.n_draws} draws of each" * bool(card.n_draws)
    words = {"posterior": f"{card.kind}, {card.n_members} network(s){draws}"}
    words |= {"elements": ", ".join(card.reference_energies), "cutoff": rows["cutoff"]}
    words |= {name: rows[name] for name in kept}
    words["trained on"] = f"{rows['frames']} frames"
    loss = card.config.get("loss", {}).get("kind")
    if loss:
        words["loss"] = LOSSES.get(loss, loss)
    words["evaluated in"] = f"{calculator.model.dtype}, {calculator.model.backend}"
    return words


def _summary(evaluation: Evaluation, written: list[Path]) -> str:
    """A table for the terminal: the numbers that matter most, then the files."""
    from ase_bayesmlip.report.html import number_with_interval

    shown = {
        "energy_rmse_meV_per_atom": "energy RMSE, meV/atom",
        "energy_sigma_meV_per_atom": "energy error bar, meV/atom",
        "coverage_90_energy": "coverage of 90 %, energy",
        "forces_rmse_meV_per_A": "force RMSE, meV/Å",
        "forces_sigma_meV_per_A": "force error bar, meV/Å",
        "forces_nll": "force NLL, nats per atom",
        "calibration_error_forces": "calibration error, forces",
        "coverage_90_forces": "coverage of 90 %, forces",
        "spearman_forces": "Spearman, forces",
        "stress_rmse_GPa": "stress RMSE, GPa",
        "coverage_90_stress": "coverage of 90 %, stress",
        "pressure_rmse_GPa": "pressure RMSE, GPa",
    }
    sets = list(evaluation.sets.items())
    if evaluation.before is not None:
        sets.append((f"{evaluation.names['test']}, before", evaluation.before))
    titles = [f"{name} (n = {part.n_frames})" for name, part in sets]
    width = max(26, *(len(title) + 2 for title in titles))
    lines = [f"{'':28}" + "".join(f"{title:>{width}}" for title in titles)]
    for key, words in shown.items():
        cells = [
            number_with_interval(part.numbers[key]) if key in part.numbers else "–"
            for _, part in sets
        ]
        if any(cell != "–" for cell in cells):
            lines.append(f"{words:28}" + "".join(f"{cell:>{width}}" for cell in cells))
    for name, (first, *_) in ((n, d) for n, d in evaluation.detections.items() if d):
        numbers = {key: number_with_interval(value) for key, value in first.numbers.items()}
        which = f"{name} " * (len(evaluation.ood) > 1)
        lines.append(
            f"foreign against known frames {which}by {first.score}: AUROC {numbers['auroc_ood']}, "
            f"AUPR {numbers['aupr_ood']}, FPR95 {numbers['fpr95_ood']}"
        )
    lines.append(f"in brackets: {100 * evaluation.bootstrap.level:g} % intervals, by frame")
    places = dict.fromkeys(
        f"{path.parent}/*{path.suffix}" if path.suffix in FIGURE_ENDINGS else str(path)
        for path in written
    )
    return "\n".join([*lines, *(f"wrote {place}" for place in places)])
