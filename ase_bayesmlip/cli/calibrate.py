"""``bayesmlip calibrate``: error bars as large as errors are."""

from __future__ import annotations

import argparse
import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ase_bayesmlip.card import ModelCard

if TYPE_CHECKING:
    from ase import Atoms

    from ase_bayesmlip.config import Config, KeysConfig
    from ase_bayesmlip.serving.runtime import LoadedModel
    from ase_bayesmlip.structures.labelled import LabelledFrame


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "calibrate", help="make the error bars of a served file as large as errors are"
    )
    parser.add_argument("model", type=Path, help="served file")
    parser.add_argument("frames", nargs="+", help="labelled frames that trained nothing")
    parser.add_argument("-o", "--output", type=Path, required=True, help="may be the same file")
    parser.add_argument(
        "--method",
        choices=["global", "split", "per-element", "per-element-split", "none"],
        default="global",
        help="variance factors: one, one for epistemic and aleatoric, one for each element, both, "
        "or none; levels of confidence (isotonic, conformal) are kept in any case",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Calibrate a file and say what came of it."""
    from ase_bayesmlip.metrics.reach import promise
    from ase_bayesmlip.serving.runtime import load_model
    from ase_bayesmlip.structures.labelled import read_frames

    model = load_model(arguments.model, backend="torchscript")
    frames = read_frames(arguments.frames, *label_names(model.card, arguments.model))
    card = calibrate_file(model, frames, arguments.output, arguments.method)
    reach = promise(card.recalibrations[-1]["n_frames_levels"], regions=True)
    print(f"{describe_calibration(card)}\n{reach}\nwrote {arguments.output}")


def label_names(card: ModelCard, path: Path) -> tuple[KeysConfig, str]:
    """The names that labels had in training, and the unit of files without one."""
    from ase_bayesmlip.config import KeysConfig, from_dict

    data = card.config.get("data", {})
    keys = from_dict(KeysConfig, data.get("keys", {}), f"{path}: data.keys")
    return keys, data.get("units", "kcal/mol")


def score_frames(model: Path, frames: Sequence[LabelledFrame]) -> ModelCard:
    """Keep the scores of calibration frames in a file: a monitor's thresholds come from them."""
    from ase_bayesmlip.calculator import BayesianCalculator
    from ase_bayesmlip.scores import calibration_record
    from ase_bayesmlip.serving.archive import replace_card
    from ase_bayesmlip.structures.labelled import trajectories

    calculator = BayesianCalculator(model)
    used = _usable(calculator.card, frames)
    atoms = [frame.atoms for frame in used]
    found = calibration_record(calculator.evaluate(atoms), atoms, trajectories(used))
    record = {**_checksums(frames), **found}
    card = dataclasses.replace(calculator.card, calibration=record)
    replace_card(model, card)
    return card


def frames_of_folds(config: Config, record: dict[str, Any]) -> list[list[Atoms]]:
    """The training frames of each fold that the members without it have never seen.

    Frames with a copy in another fold or among the validation frames are left out, for those
    members have seen them.

    Parameters
    ----------
    config, record
        Of the run, with `posterior.folds`.

    Raises
    ------
    ValueError
        If the training frames are no longer those of the run, or none of a fold is left.
    """
    from ase_bayesmlip.posteriors.members import fold_of_frames
    from ase_bayesmlip.structures.labelled import sha256
    from ase_bayesmlip.structures.overlap import digest
    from ase_bayesmlip.training.data import load_training_data

    data = load_training_data(config)
    if sha256(data.train) != record["train_sha256"]:
        raise ValueError(f"the frames in {config.data.train} have changed since the training")
    names = [digest(frame.atoms) for frame in data.train]
    numbers = fold_of_frames(config, len(names)).tolist()
    owner: dict[str, int | None] = {digest(frame.atoms): None for frame in data.valid}
    for name, k in zip(names, numbers, strict=True):
        owner[name] = k if owner.get(name, k) == k else None
    parts: list[list[Atoms]] = [[] for _ in range(max(numbers) + 1)]
    for frame, name in zip(data.train, names, strict=True):
        k = owner[name]
        if k is not None:
            parts[k].append(frame.atoms)
    if not all(parts):
        raise ValueError("a fold has copies of other frames alone: give --calibration frames")
    return parts


def score_folds(model: Path, parts: Sequence[Sequence[Atoms]]) -> None:
    """Keep scores of training frames in a file, each by the members that left it out of training.

    Parameters
    ----------
    parts : see `frames_of_folds`
    """
    from ase_bayesmlip.calculator import BayesianCalculator
    from ase_bayesmlip.md.limit import fold_scores
    from ase_bayesmlip.serving.archive import replace_card

    calculator = BayesianCalculator(model, return_members=True)
    card = calculator.card
    found = []
    for k, part in enumerate(parts):
        group = list(range(k, card.n_members, len(parts)))
        scores = fold_scores(calculator.evaluate(list(part)), part, group)
        sizes = [len(atoms) for atoms in part]
        found.append({"members": group, "scores": scores, "n_atoms": sizes})
    calibration = {"n_frames": sum(map(len, parts)), "folds": found}
    replace_card(model, dataclasses.replace(card, calibration=calibration))


def calibrate_file(
    model: Path | LoadedModel,
    frames: Sequence[LabelledFrame],
    output: Path,
    method: str = "global",
) -> ModelCard:
    """Fit factors and levels of confidence on labelled frames and write the file with them.

    A file that is calibrated already is calibrated further: factors multiply, and levels,
    thresholds and the record in force are those of the new frames.

    Parameters
    ----------
    model : Path or LoadedModel
        A served file. It is left as it was, unless it is the output as well.
    frames : sequence of LabelledFrame
        Neither trained on, nor used for choosing the model.
    output : Path
    method : str
        One of `calibration.METHODS`.

    Returns
    -------
    ModelCard
        Of the file that was written.

    Raises
    ------
    ValueError
        If the frames are too few, are those of the training, hold elements that the file does not
        know, or labels that it has predicted itself, or if the file gives no variances. Nothing is
        written then.

    Warns
    -----
    UserWarning
        With its consequence: few frames, copies among them, some of the training, a missing
        element, parts that cannot be told apart, frames that calibrated the file before, a compiled
        program that is left out.
    """
    from ase_bayesmlip.calculator import BayesianCalculator
    from ase_bayesmlip.calibration import calibrate, observe, scaled_results
    from ase_bayesmlip.metrics import origin_of
    from ase_bayesmlip.scores import calibration_record
    from ase_bayesmlip.serving.calibrate import write_recalibrated
    from ase_bayesmlip.structures.labelled import trajectories

    calculator = BayesianCalculator(model, backend="torchscript")
    card = calculator.card
    used = _usable(card, frames)
    _warn_of_calibrations(card, used)
    results = calculator.evaluate([frame.atoms for frame in used])
    observed = observe(results, used, origin_of(card))
    found = calibrate(observed, card.atomic_numbers, method)
    calibration: dict[str, Any] = {}
    if card.has_score:
        kept = [used[k] for k in found.level_frames]
        atoms = [frame.atoms for frame in kept]
        scaled = [
            scaled_results(results[k], used[k].atoms.get_chemical_symbols(), found.factors)
            for k in found.level_frames
        ]
        scored = calibration_record(scaled, atoms, trajectories(kept))
        calibration = {**_checksums(kept), **scored}
    if card.compiled:
        warnings.warn(
            f"the compiled program in {calculator.model.path} has the variances of before and is "
            f"left out of {output}; compile it again with: bayesmlip compile {output}",
            stacklevel=2,
        )
    record = {**_checksums(frames), **found.record}
    return write_recalibrated(calculator.model, output, record, calibration)


def _usable(card: ModelCard, frames: Sequence[LabelledFrame]) -> list[LabelledFrame]:
    """The frames without copies and without those that trained the file, and a word on either."""
    from ase_bayesmlip.structures.overlap import unseen

    kept, notes = unseen(frames, card.training)
    for note in notes:
        warnings.warn(note, stacklevel=3)
    return [frames[k] for k in kept]


def _checksums(frames: Sequence[LabelledFrame]) -> dict[str, str]:
    """What a card keeps of frames, so that they are known again as a whole and one by one."""
    from ase_bayesmlip.structures.labelled import sha256
    from ase_bayesmlip.structures.overlap import digests

    return {"sha256": sha256(frames), "frames": digests(frames)}


def _warn_of_calibrations(card: ModelCard, frames: Sequence[LabelledFrame]) -> None:
    """What an earlier calibration has to do with this one."""
    from ase_bayesmlip.structures.overlap import seen_by

    if not card.recalibrations:
        return
    number = seen_by(card, frames).get("calibration", 0.0)
    if number:
        these = "" if number == len(frames) else f"{number:.0f} of "
        warnings.warn(
            f"the file has been calibrated on {these}these frames before: nothing is learned from "
            "them twice, and the numbers before the calibration look better than they were",
            stacklevel=3,
        )
    if "laws" not in card.recalibrations[-1] and not card.has_aleatoric_forces:
        warnings.warn(
            "this file was calibrated when spreads were taken for Gaussian, and is calibrated "
            "further as such; start from the file of before for the law of its members",
            stacklevel=3,
        )


def describe_calibration(card: ModelCard) -> str:
    """A few lines on the calibration in force."""
    record = card.recalibrations[-1]
    lines = [f"method {record['method']}, on {record['n_frames']} frames"]
    factors = record["factors"]
    for name in ("forces", "energy"):
        if name not in record["conformal"]:
            continue
        texts = [_text(factors[f"{name}_{part}"]) for part in ("epistemic", "aleatoric")]
        lines.append(f"{name}: variances times {texts[0]} (epistemic), {texts[1]} (aleatoric)")
        for stage in ("before", "after", "after_isotonic", "after_conformal"):
            numbers = record["numbers"][stage].get(name, {})
            shown = ", ".join(f"{key} {value:.4g}" for key, value in numbers.items())
            lines.append(f"  {stage.replace('_', ', ')}: {shown or 'too few frames'}")
    return "\n".join(lines)


def _text(factor: float | dict[str, float]) -> str:
    if not isinstance(factor, dict):
        return f"{factor:.3g}"
    if len(set(factor.values())) == 1:
        return f"{next(iter(factor.values())):.3g}"
    return ", ".join(f"{symbol} {value:.3g}" for symbol, value in factor.items())
