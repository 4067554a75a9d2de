"""Which frames are the same: copies among them, and frames that a file has seen before."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms

from ase_bayesmlip.card import ModelCard
from ase_bayesmlip.metrics.errors import Frame
from ase_bayesmlip.structures.labelled import LabelledFrame, sha256

# Hexadecimal digits of a structure: of 10,000 others, one in 400,000 has the same by chance.
_DIGITS = 8
# So many are kept of a set, the smallest, which are a random choice: 32 KiB in a card.
MAX_DIGESTS = 4096
# Å: far below any step of dynamics, above what file formats round.
_DECIMALS = 5
# Relative, and eV or eV/Å: labels that differ by no more are the same.
_SAME = 1e-6


def digest(atoms: Atoms) -> str:
    """Short checksum of a structure without its labels."""
    content = hashlib.sha256(atoms.numbers.astype(np.int64).tobytes())
    for array in (atoms.positions, atoms.cell.array):
        content.update((np.round(array, _DECIMALS) + 0.0).astype(np.float64).tobytes())  # no -0.0
    content.update(atoms.pbc.tobytes())
    return content.hexdigest()[:_DIGITS]


def digests(frames: Sequence[Frame]) -> str:
    """What a card keeps of a set of frames: the distinct digests in their order, joined."""
    return "".join(sorted({digest(frame.atoms) for frame in frames})[:MAX_DIGESTS])


def distinct(frames: Sequence[Frame]) -> list[int]:
    """Indices of the frames that are no copy, in structure and labels, of an earlier one."""
    kept: list[int] = []
    by_digest: dict[str, list[int]] = {}
    for index, frame in enumerate(frames):
        earlier = by_digest.setdefault(digest(frame.atoms), [])
        if not any(_same_labels(frame, frames[k]) for k in earlier):
            earlier.append(index)
            kept.append(index)
    return kept


def _same_labels(one: Frame, other: Frame) -> bool:
    for a, b in ((one.energy, other.energy), (one.forces, other.forces)):
        if (a is None) != (b is None):
            return False
        if a is not None and b is not None and not np.allclose(a, b, _SAME, _SAME):
            return False
    return True


def seen_by(card: ModelCard, frames: Sequence[Frame]) -> dict[str, float]:
    """How many of the frames a file has seen, by use; a use that has seen none is left out.

    Every set that a card records counts: the frames of training, of validation, those that fixed
    thresholds, and those of every calibration. Files keep a checksum of each whole set, and later
    ones digests of its structures, so that parts, other orders and copies are found as well. Of
    more than `MAX_DIGESTS` structures a random choice is kept, and the number estimated.

    Returns
    -------
    dict of str to float
        ``"training"``, ``"validation"``, ``"calibration"``, ``"threshold"``: number of frames.
    """
    sets: list[tuple[str, Mapping[str, Any]]] = [("calibration", r) for r in card.recalibrations]
    later = [(use, r.get("sha256"), r.get("frames", "")) for use, r in sets]
    threshold = card.calibration
    later.append(("threshold", threshold.get("sha256"), threshold.get("frames", "")))
    return _seen([*_of_training(card.training), *later], frames)


# Use of a set, its checksum and the digests of its frames; either may be missing.
Record = tuple[str, str | None, str]


def _of_training(training: Mapping[str, Any]) -> list[Record]:
    names = (("training", "train"), ("validation", "valid"))
    return [
        (use, training.get(f"{name}_sha256"), training.get(f"{name}_frames", ""))
        for use, name in names
    ]


def _seen(records: Sequence[Record], frames: Sequence[Frame]) -> dict[str, float]:
    labelled = all(frame.energy is not None and frame.forces is not None for frame in frames)
    whole = sha256(frames) if labelled and frames else ""  # type: ignore[arg-type]
    own = [digest(frame.atoms) for frame in frames]
    found: dict[str, float] = {}
    for use, checksum, known in records:
        number = float(len(frames)) if checksum and checksum == whole else _shared(own, known)
        if number > 0:
            found[use] = max(number, found.get(use, 0.0))
    return found


def _shared(own: list[str], joined: str) -> float:
    """How many of the digests are among those of a set."""
    known = _divided(joined)
    if len(known) < MAX_DIGESTS:
        return float(sum(item in known for item in own))
    comparable = [item for item in own if item <= max(known)]
    shared = sum(item in known for item in comparable)
    return len(own) * shared / max(len(comparable), 1)


def _divided(joined: str) -> set[str]:
    return {joined[k : k + _DIGITS] for k in range(0, len(joined), _DIGITS)}


def seen_notes(card: ModelCard, frames: Sequence[Frame]) -> list[str]:
    """A sentence for each use in which a file has seen some of the frames, and what follows."""
    uses: dict[float, list[str]] = {}
    for use, number in seen_by(card, frames).items():
        uses.setdefault(number, []).append(use)
    notes = []
    for number, names in uses.items():
        these = "these" if number == len(frames) else f"{number:.0f} of {len(frames)} frames"
        notes.append(
            f"{these} are the {' and '.join(names)} frames of the model: errors and error bars "
            "look better here than they are on unseen frames"
        )
    return notes


def unseen(
    frames: Sequence[LabelledFrame], training: Mapping[str, Any]
) -> tuple[list[int], list[str]]:
    """Indices of the frames that may calibrate a file, and sentences on those that may not.

    Copies count once, and frames that trained the file or chose its weights do not count.

    Parameters
    ----------
    training : mapping
        ``card.training``, or the record of a run.

    Raises
    ------
    ValueError
        If no frame is left.
    """
    records = _of_training(training)
    seen = _seen(records, frames)
    for use, number in seen.items():
        if number == len(frames):
            raise ValueError(
                f"these are the {use} frames of the file, on which its errors are too small; give "
                "frames that it has not seen"
            )
    kept, notes = distinct(frames), []
    if len(kept) < len(frames):
        notes.append(
            f"{len(frames) - len(kept)} of {len(frames)} frames are copies of others; each counts "
            "once"
        )
    known = {item for _, _, joined in records for item in _divided(joined)}
    fresh = [k for k in kept if digest(frames[k].atoms) not in known]
    if frames and not fresh:
        raise ValueError(
            "all of these are training or validation frames of the file, on which its errors are "
            "too small; give frames that it has not seen"
        )
    if len(fresh) < len(kept):
        notes.append(
            f"{len(kept) - len(fresh)} of {len(kept)} frames are training or validation frames of "
            "the file, on which its errors are too small, and are left out"
        )
    return fresh, notes
