"""Frames are known again as a whole, in part, in another order, as copies and without labels."""

import dataclasses

import numpy as np
import pytest
from ase import Atoms
from ase.io import read, write

from ase_bayesmlip.card import ModelCard
from ase_bayesmlip.evaluation import read_evaluation_frames
from ase_bayesmlip.structures import overlap
from ase_bayesmlip.structures.labelled import LabelledFrame, read_frames, sha256


def frames_of(n, seed=0):
    generator = np.random.default_rng(seed)
    found = []
    for number in range(n):
        atoms = Atoms("OH2", 4.0 * generator.standard_normal((3, 3)))
        energy, forces = generator.standard_normal(), generator.standard_normal((3, 3))
        found.append(LabelledFrame(atoms, energy, forces, None, f"made-up#{number}"))
    return found


def card(training=(), valid=(), calibrations=(), threshold=()):
    """With what `bayesmlip train` and `calibrate` keep of these frames."""

    def kept(frames):
        return {"sha256": sha256(frames), "frames": overlap.digests(frames)}

    record = {}
    for name, frames in (("train", training), ("valid", valid)):
        record |= {f"{name}_{key}": value for key, value in kept(frames).items()}
    facts = dict.fromkeys((f.name for f in dataclasses.fields(ModelCard)[:11]), 1)
    return ModelCard(
        **facts,
        training=record,
        recalibrations=[kept(frames) for frames in calibrations],
        calibration=kept(threshold) if threshold else {},
    )


FRAMES = frames_of(30)
PARTS = {
    "all": FRAMES,
    "a slice": FRAMES[3:9],
    "another order": FRAMES[::-1],
    "copies": [FRAMES[4]] * 3,
    "with others": [*FRAMES[5:8], *frames_of(7, 1)],
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("use", ["training", "validation", "calibration", "threshold"])
def test_every_recorded_set_is_known_again(use, part):
    names = {"training": "training", "validation": "valid", "threshold": "threshold"}
    given = {names[use]: FRAMES} if use in names else {"calibrations": [FRAMES, frames_of(4, 2)]}
    known, frames = card(**given), PARTS[part]
    expected = 3 if part == "with others" else len(frames)
    assert overlap.seen_by(known, frames) == {use: expected}
    (note,) = overlap.seen_notes(known, frames)
    start = "these are" if expected == len(frames) else f"3 of {len(frames)} frames are"
    assert note.startswith(f"{start} the {use} frames of the model")
    assert overlap.seen_notes(known, frames_of(30, 5)) == []


def test_the_frames_of_a_split_calibration_are_all_of_them():
    """Half of them fixed levels and thresholds; evaluating on the whole file must warn."""
    known = card(calibrations=[FRAMES], threshold=FRAMES[1::2])
    assert overlap.seen_by(known, FRAMES) == {"calibration": 30, "threshold": 15}
    assert len(overlap.seen_notes(known, FRAMES)) == 2


def test_files_of_before_know_their_sets_by_the_checksum():
    known = card(training=FRAMES, calibrations=[FRAMES[:10]])
    del known.training["train_frames"], known.recalibrations[0]["frames"]
    assert overlap.seen_by(known, FRAMES) == {"training": 30}
    assert overlap.seen_by(known, FRAMES[:10]) == {"calibration": 10}
    assert overlap.seen_by(known, FRAMES[:9]) == {}


def test_labels_and_formats_do_not_matter(tmp_path, data_folder):
    """A structure is known again without its labels, and through another format."""
    path = f"{data_folder / 'ethanol_calib.extxyz'}@0:6"
    known = card(training=read_frames(path))
    structures = read(data_folder / "ethanol_calib.extxyz", "0:6")
    write(tmp_path / "bare.traj", [Atoms(a.numbers, a.positions) for a in structures])
    frames = read_evaluation_frames(str(tmp_path / "bare.traj"))
    assert overlap.seen_by(known, frames) == {"training": 6}


def test_of_large_sets_a_part_is_kept_and_the_number_estimated(monkeypatch):
    monkeypatch.setattr(overlap, "MAX_DIGESTS", 100)
    many = frames_of(400)
    known = card(training=many)
    assert len(known.training["train_frames"]) == 800
    found = overlap.seen_by(known, [*many[:200], *frames_of(200, 9)])
    # Of 400 frames 100 are comparable by chance, of which half are known.
    assert found["training"] == pytest.approx(200, abs=4 * 400 * np.sqrt(0.25 / 100))
    assert overlap.seen_by(known, frames_of(200, 9)) == {}


def test_copies_count_once_and_the_same_structure_with_other_labels_is_none():
    other = dataclasses.replace(FRAMES[2], energy=FRAMES[2].energy + 0.1)
    rounded = dataclasses.replace(FRAMES[1], forces=np.round(FRAMES[1].forces, 8))
    frames = [*FRAMES[:4], FRAMES[0], rounded, other]
    assert overlap.distinct(frames) == [0, 1, 2, 3, 6]
    kept, notes = overlap.unseen(frames, {})
    assert kept == [0, 1, 2, 3, 6]
    assert notes == ["2 of 7 frames are copies of others; each counts once"]


def test_frames_that_trained_a_file_do_not_calibrate_it():
    training = card(training=FRAMES[:10], valid=FRAMES[10:12]).training
    kept, (note,) = overlap.unseen(FRAMES, training)
    assert kept == list(range(12, 30))
    assert note.startswith("12 of 30 frames are training or validation frames")
    with pytest.raises(ValueError, match="these are the training frames"):
        overlap.unseen(FRAMES[2:5], training)
    with pytest.raises(ValueError, match="all of these are training or validation frames"):
        overlap.unseen(FRAMES[8:12], training)
