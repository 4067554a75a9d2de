"""Mutated label files: read to exactly the numbers that are in them, or refused by name.

What is in a mutated file is said by `strict_extxyz`, other code than that of ASE. Where that is in
doubt, only the frames of the file before the mutation are right. Whatever is read must also pass
the neighbour search of a training, or be refused there.
"""

import gzip
import io
import re
import warnings
import zipfile

import ase.io
import numpy as np
import pytest
from ase import units
from ase.build import bulk, molecule
from fuzz_cases import n_cases
from strict_extxyz import DoubtError, contents

from ase_bayesmlip.structures.labelled import read_frames
from ase_bayesmlip.structures.partly_labelled import read_evaluation_frames
from ase_bayesmlip.structures.reading import DataError
from ase_bayesmlip.training.data import neighborhoods

CUTOFF = 3.0
WORDS = re.split(
    " ",
    "nan inf -inf 1e400 1e30 -1e9 T F abc 0x10 1,5 1d-3 0 1 -1 0.1 REF_energy REF_stress= note= x= "
    "Lattice= pbc= \"\" '' \" ' { } [ ] \\ = , # VEC1 Cu X Zz 2 4",
)
CHARACTERS = "0123456789.-+eE \"'={}[]\\\t\nTFHxé\0,:_"


def text_of(seed: int) -> str:
    """Two to four labelled molecules or crystals as extended XYZ."""
    generator = np.random.default_rng(seed)
    frames = []
    for _ in range(generator.integers(2, 5)):
        atoms = (molecule("CH3OH"), bulk("NaCl", "rocksalt", a=5.6))[generator.integers(2)]
        atoms.positions += 0.05 * generator.normal(size=atoms.positions.shape)
        atoms.info = {"config": "some text", "REF_energy": float(generator.normal())}
        if atoms.pbc.any():
            half = 0.01 * generator.normal(size=(3, 3))
            atoms.info["REF_stress"] = (half + half.T).ravel()
            atoms.pbc = generator.random(3) < 0.8
        atoms.info["weight"] = 1.5
        atoms.arrays["REF_forces"] = generator.normal(size=(len(atoms), 3))
        frames.append(atoms)
    stream = io.StringIO()
    ase.io.write(stream, frames, format="extxyz")
    return stream.getvalue()


# --- mutations ----------------------------------------------------------------------------------


def characters(text, generator):
    """One character inserted, removed or replaced."""
    at = generator.integers(len(text))
    new = generator.choice(["", *CHARACTERS])
    return text[:at] + new + text[at + generator.integers(2) :]


def lines(text, generator):
    """One line removed, doubled, exchanged with another, emptied or cut."""
    found = text.split("\n")
    i, j = generator.integers(len(found) - 1, size=2)
    action = generator.integers(6)
    if action == 0:
        del found[i]
    elif action == 1:
        found.insert(j, found[i])
    elif action == 2:
        found[i], found[j] = found[j], found[i]
    elif action == 3:
        found.insert(i, "")
    elif action == 4:
        found[i] = found[i][: generator.integers(len(found[i]) + 1)]
    else:
        found = found[:i]
    return "\n".join(found)


def tokens(text, generator):
    """One word removed, doubled, exchanged with another or replaced."""
    found = re.split(r"(\s+)", text)
    i, j = 2 * generator.integers(len(found) // 2, size=2)
    action = generator.integers(4)
    if action == 0:
        found[i] = ""
    elif action == 1:
        found[i] += " " + found[i]
    elif action == 2:
        found[i], found[j] = found[j], found[i]
    else:
        found[i] = generator.choice(WORDS)
    return "".join(found)


def comments(text, generator):
    """A key of a comment line renamed, doubled, emptied, or with another value."""
    pairs = list(re.finditer(r'([A-Za-z_]+)=("[^"]*"|\S+)', text))
    pair = pairs[generator.integers(len(pairs))]
    key, value = pair[1], pair[2]
    new = generator.choice(
        [
            f"{key.lower()}={value}",
            f"{key.upper()}={value}",
            f"{key}=",
            f'{key}=""',
            f"{key}",
            f"{key} = {value}",
            f"{key}={value.strip(chr(34))}",
            f"{key}={value} {key}={generator.choice(WORDS)}",
            f"{key}={generator.choice(WORDS)}",
            f'{key}="{generator.choice(WORDS)}"',
            f"{key}={value}{generator.choice(WORDS)}",
            f"{generator.choice(WORDS)}={value}",
            f"note= {key}={value}",
            f"note=it's {key}={value}",
            "",
        ]
    )
    return text[: pair.start()] + new + text[pair.end() :]


def columns(text, generator):
    """A declaration of columns changed."""
    found = list(re.finditer(r"Properties=(\S+)", text))
    pair = found[generator.integers(len(found))]
    parts = pair[1].split(":")
    i = generator.integers(len(parts))
    parts[i] = generator.choice(
        ["pos", "Pos", "species", "Z", "R", "I", "S", "L", "1", "2", "3", ""]
    )
    return text[: pair.start(1)] + ":".join(parts) + text[pair.end(1) :]


def numbers(text, generator):
    """A number replaced, in rows, lattice or labels."""
    found = list(re.finditer(r"-?\d+\.\d+", text))
    number = found[generator.integers(len(found))]
    new = generator.choice(
        [*WORDS, f"{generator.normal():.8f}", f"{10.0 ** generator.integers(20)}"]
    )
    return text[: number.start()] + new + text[number.end() :]


def whole(text, generator):
    """Line ends, marks and blanks that touch every frame."""
    return (
        text.replace("\n", "\r\n"),
        "\ufeff" + text,
        text + "\n\n",
        "\n" + text,
        text.rstrip("\n"),
        text.replace(" ", "  "),
        text.replace("REF_", "ref_"),
        text.replace('"', "'"),
        "",
    )[generator.integers(9)]


MUTATIONS = (characters, lines, tokens, comments, columns, numbers, whole)


# --- what must hold -----------------------------------------------------------------------------


def attempt(read, path):
    """Frames, or None if the file was refused by its name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # high stresses; overflows in casts of the reader
        try:
            frames = read(str(path))
            neighborhoods(frames, CUTOFF)
            return frames
        except DataError as error:
            message = str(error)
    assert path.name in message
    return None


NAMES = {
    "energy": "REF_energy=",
    "forces": ":REF_forces:R:3",
    "stress": "REF_stress=",
    "pbc": "pbc=",
}


def assert_read(frames, expected, lost=()):
    """Equal to the last bit; what lost its name by the mutation may be missing."""
    assert len(frames) == len(expected)
    for frame, content in zip(frames, expected, strict=True):
        assert frame.atoms.numbers.tolist() == content.numbers
        assert "pbc" in lost or frame.atoms.pbc.tolist() == content.pbc
        np.testing.assert_array_equal(frame.atoms.positions, content.positions)
        np.testing.assert_array_equal(frame.atoms.cell.array, content.cell)
        for name in ("energy", "forces", "stress"):
            found, label = getattr(frame, name), getattr(content, name)
            if found is None and name in lost:
                continue
            assert (found is None) == (label is None), name
            np.testing.assert_array_equal(found, label)


def test_files_without_mutations_are_read(tmp_path):
    path = tmp_path / "a.extxyz"
    for seed in range(5):
        text = text_of(seed)
        path.write_text(text)
        for read in (read_frames, read_evaluation_frames):
            assert_read(attempt(read, path), contents(text))


def after(text, before):
    """Content of a mutated text, where in doubt that of before, and whether all is certain."""
    try:
        found = contents(text)
    except DoubtError:
        return before, False
    if None not in found:
        return found, True
    if len(found) != len(before):
        return before, False
    return [before[k] if frame is None else frame for k, frame in enumerate(found)], False


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda function: function.__name__)
def test_mutated_text(tmp_path, mutation):
    n_read = 0
    n = -(-n_cases(25 * len(MUTATIONS)) // len(MUTATIONS))
    for case in range(n):
        generator = np.random.default_rng([case, MUTATIONS.index(mutation)])
        text = text_of(case % 20)
        expected, lost = contents(text), []
        for _ in range(generator.integers(1, 4)):
            before, text = text, mutation(text, generator)
            expected, certain = after(text, expected)
            if not certain:
                lost = [k for k, name in NAMES.items() if text.count(name) < before.count(name)]
                break
            if not text:
                break
        path = tmp_path / f"case{case}.extxyz"
        path.write_bytes(text.encode())
        for read in (read_frames, read_evaluation_frames):
            found = attempt(read, path)
            if found is not None:
                n_read += 1
                assert_read(found, expected, lost)
    assert n_read < 2 * n  # some mutations matter


# --- compressed files and .npz ------------------------------------------------------------------


def test_damaged_archives(tmp_path):
    """Bytes of compressed files and of .npz files changed, removed or added."""
    arrays = npz_arrays(0)
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    sources = {"a.npz": stream.getvalue(), "a.extxyz.gz": gzip.compress(text_of(0).encode())}
    for case in range(n_cases(60)):
        generator = np.random.default_rng([case, 100])
        name = sorted(sources)[case % 2]
        content = bytearray(sources[name])
        at = int(generator.integers(len(content)))
        match generator.integers(4):
            case 0:
                content[at] ^= 1 << int(generator.integers(8))
            case 1:
                del content[at:]
            case 2:
                del content[at : at + int(generator.integers(1, 50))]
            case 3:
                content[at:at] = generator.bytes(5)
        path = tmp_path / f"case{case}-{name}"
        path.write_bytes(content)
        found = attempt(read_frames, path)
        if found is not None and name.endswith("gz"):
            assert_read(found, contents(text_of(0)))
        elif found is not None:
            assert_npz(found, arrays)


def npz_arrays(seed):
    generator = np.random.default_rng(seed)
    water = molecule("H2O")
    return {
        "z": water.numbers,
        "R": water.positions + 0.05 * generator.normal(size=(4, 3, 3)),
        "E": generator.normal(size=(4, 1)),
        "F": generator.normal(size=(4, 3, 3)),
    }


def assert_npz(frames, arrays):
    kcal = units.kcal / units.mol
    assert len(frames) == len(arrays["R"])
    for k, frame in enumerate(frames):
        assert frame.atoms.numbers.tolist() == arrays["z"].tolist()
        assert frame.energy == float(arrays["E"].reshape(-1)[k]) * kcal
        np.testing.assert_array_equal(frame.atoms.positions, arrays["R"][k])
        np.testing.assert_array_equal(frame.forces, arrays["F"][k].astype(float) * kcal)


def mutated(array, generator):
    """An array of another shape, kind or content."""
    new = array.copy()
    at = tuple(int(generator.integers(size)) for size in array.shape)
    match generator.integers(9):
        case 0:
            return new.astype(generator.choice(["?", "c8", "U8", "f2", "f4", "i4", "u1", "O"]))
        case 1:
            return new[:-1]
        case 2:
            return new[..., None]
        case 3:
            return new.ravel()
        case 4:
            return np.array(generator.choice([0.0, np.nan]))
        case 5:
            return np.concatenate([new, new])
        case 6:
            return new.reshape(-1)[:0]
        case 7:
            new = new.astype(float)
            new[at] = generator.choice([np.nan, np.inf, 1e300, -1e20, 0.0])
            return new
        case _:
            new[at] = generator.choice([0, 1, 2, 100, 120])
            return new


def test_mutated_arrays(tmp_path):
    for case in range(n_cases(60)):
        generator = np.random.default_rng([case, 200])
        arrays = npz_arrays(case)
        name = generator.choice(sorted(arrays))
        arrays[name] = mutated(arrays[name], generator)
        path = tmp_path / f"case{case}.npz"
        try:
            np.savez(path, **arrays)
        except (ValueError, zipfile.BadZipFile):
            continue
        found = attempt(read_frames, path)
        if found is not None:
            assert_npz(found, arrays)
