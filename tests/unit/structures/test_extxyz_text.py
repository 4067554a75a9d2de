"""What ASE's reader of extended XYZ would lose is found in the text."""

import io

import ase.io
import numpy as np
import pytest
from ase.build import molecule
from ase.io.extxyz import key_val_str_to_dict
from hypothesis import given
from hypothesis import strategies as st

from ase_bayesmlip.config import KeysConfig
from ase_bayesmlip.structures.extxyz_text import divide
from ase_bayesmlip.structures.labelled import read_frames
from ase_bayesmlip.structures.partly_labelled import read_evaluation_frames
from ase_bayesmlip.structures.reading import DataError, read_structures

PROPERTIES = "Properties=species:S:1:pos:R:3:REF_forces:R:3"
LATTICE = 'Lattice="9 0 0 0 9 0 0 0 9"'
ROWS = "H 0 0 0 0.1 0 0\nH 0 0 0.75 -0.1 0 0\n"


def text(comment: str, properties: str = PROPERTIES, rows: str = ROWS) -> str:
    return f"2\n{properties} {comment}\n{rows}"


def read(tmp_path, content, **options):
    path = tmp_path / "a.extxyz"
    path.write_text(content, encoding="utf-8")
    return read_frames(str(path), **options)


GOOD = text(f"{LATTICE} REF_energy=-1.0 pbc=T")


@pytest.mark.parametrize(
    ("comment", "key", "taken"),
    [
        ("note= REF_energy=-1.0", "note", "REF_energy"),
        ('REF_energy=-1.0 note="" REF_stress="1 0 0 0 1 0 0 0 1"', "note", "REF_stress"),
        ('REF_energy=-1.0 note=[] Lattice="9 0 0 0 9 0 0 0 9"', "note", "Lattice"),
        ('REF_energy=-1.0 note={} pbc="T T T"', "note", "pbc"),
        ("REF_energy=-1.0 note=   energy_var_epistemic=0.1", "note", "energy_var_epistemic"),
        ("REF_energy= config_type=IsolatedAtom", "REF_energy", "config_type"),
        ("REF_energy=-1.0 note=5'-AMP REF_stress=1 other=3'", "note", "REF_stress"),
        ('note="unclosed REF_energy=-1.0', "note", "REF_energy"),
        ("note=don't REF_energy=-1.0", "note", "REF_energy"),
        ('note="some text"xREF_energy=-1.0', "note", "xREF_energy"),
        ("path=C:\\ REF_energy=-1.0", "path", "REF_energy"),
        ('config="some REF_energy=-1.0 weight=1.5 pbc="F F F"', "config", "REF_energy"),
        ("a =b =REF_energy", "a", "b"),
    ],
)
def test_swallowed_keys(tmp_path, comment, key, taken):
    with pytest.raises(DataError, match=rf"a\.extxyz#1: the value of '{key}' .*takes\s'{taken}'"):
        read(tmp_path, GOOD + text(comment))
    with pytest.raises(DataError, match=rf"a\.extxyz#1: the value of '{key}'"):
        read_evaluation_frames(str(tmp_path / "a.extxyz"))
    assert len(read_frames(f"{tmp_path}/a.extxyz@0:1")) == 1  # the other frame is as it should be


@pytest.mark.parametrize(
    "comment",
    [
        "REF_energy=-1.0 config=T=300",
        "REF_energy = -1.0 step =   3, time = 0.5",
        'REF_energy=-1.0 note = "a = b and c = d"',
        'REF_energy=-1.0 note="it\'s \\"x = 1\\" here" x={"a": "b=c"}',
        'REF_energy=-1.0 nested="_JSON [[1, 2], [3, 4]]"',
        "REF_energy=-1.0 flag note=",
        "REF_energy=-1.0 REF_energy=-1.0",
    ],
)
def test_odd_comments_that_lose_nothing(tmp_path, comment):
    (frame,) = read(tmp_path, text(comment))
    assert frame.energy == -1.0


def test_a_label_in_balanced_quotes(tmp_path):
    with pytest.raises(DataError, match=r"#0: no label 'REF_energy', but the text of 'config' hol"):
        read(tmp_path, text('config="some REF_energy=-1.0 note=text" weight=1.5'))
    with pytest.raises(DataError, match=r"#0: no label 'REF_stress', but the text of 'config' hol"):
        read(tmp_path, text('REF_energy=1 config="some REF_stress=-1.0 note=text"'))


def test_what_ase_writes_for_an_empty_text(tmp_path):
    atoms = molecule("H2O")
    atoms.info = {"note": "", "REF_energy": -1.0}
    atoms.arrays["REF_forces"] = np.zeros((3, 3))
    stream = io.StringIO()
    ase.io.write(stream, atoms, format="extxyz")
    with pytest.raises(DataError, match=r"the value of 'note' .* remove 'note', or give it"):
        read(tmp_path, stream.getvalue())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{GOOD}2\n\n{ROWS}", "#1: its columns have no names"),
        (f"2\nabout\n{ROWS}{GOOD}", "#0: its columns have no names"),
        (GOOD + "\n" + GOOD, "#0: after this frame there is a blank line"),
        (text("REF_energy=-1 REF_energy=-2"), "#0: the key 'REF_energy' is there twice"),
        (text("REF_energy=-1", PROPERTIES.replace(":pos:", ":Pos:")), r"#0: .*positions \(pos:R"),
        (text("REF_energy=-1", PROPERTIES.replace("species", "Species")), "#0: .*no column of el"),
        (text("REF_energy=-1", "Properties=species:S:1:pos:R:3"), "#0: the row of atom 0 has 7 v"),
        (text("REF_energy=-1", rows=ROWS.replace("H 0", "H 1 0")), "#0: .*atom 0 has 8 values"),
        (text("REF_energy=-1", rows=ROWS.replace(" 0 0\n", " 0\n")), "#0: .*atom 0 has 6 values"),
        (text(f"REF_energy=-1 pbc=yes {LATTICE}"), '#0: pbc is "yes"; it must be'),
        (
            text(f"REF_energy=-1 pbc=T F T {LATTICE}"),
            "#0: behind pbc=T stands F, .*quotes",
        ),
        (text('REF_energy=-1 REF_stress="1 0 0 0 1 0'), "quote or bracket behind 'REF_stress' is"),
        (text("REF_energy=-1. 05"), "#0: behind REF_energy=-1. stands 05, which belongs to no key"),
        (text("REF_energy=-1.\\05"), "the value of 'REF_energy' has a quote or a backslash"),
        (text('REF_energy="-1.0"5'), "'REF_energy' has a quote .* is read as '-1.05'"),
        (text(f"REF_energy=-1 {LATTICE}1"), "the value of 'Lattice' has a quote or a backslash"),
        (text("REF_energy=-1'0'"), "the value of 'REF_energy' has a quote or a backslash"),
        (text("REF_energy=-1 it's a molecule"), "quote or bracket behind 'its a molecule' is no"),
        (text(f'REF_energy=-1 pbc="T T N" {LATTICE}'), '#0: pbc is "T T N"; it must be'),
        (text(f'REF_energy=-1 PBC="F F F" {LATTICE}'), "#0: 'PBC' is no name.*write pbc="),
        (text("REF_energy=-1 " + LATTICE.lower()), "#0: 'lattice' is no name.*write Lattice="),
        (text("REF_energy=-1 " + LATTICE.upper()), "#0: 'LATTICE' is no name.*write Lattice="),
        (text("REF_energy=-1 Cell" + LATTICE[7:]), "#0: 'Cell' is no name.*write Lattice="),
        (text("REF_energy=-1", "properties=species:S:1:pos:R:3"), "row of atom 0 has 7 values"),
        (
            text(f"REF_energy=-1 {LATTICE}", "a=1"),
            "row of atom 0 has 7 values, but Pr",
        ),
        (text("REF_energy=-1", "Properties=species:S:1:pos:R:x"), "no list of name:type:number"),
    ],
)
def test_what_would_be_lost_is_an_error(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, content)


@pytest.mark.parametrize(
    "content",
    [
        GOOD + "\n\n  \n",
        text(f'REF_energy=-1 PBC="T T T" {LATTICE}'),
        text("REF_energy=-1 lattice=fcc cell=primitive"),
        text(f"REF_energy=-1 lattice=3.6 {LATTICE}"),
        text(f'REF_energy=-1 pbc="1 0 1" {LATTICE}'),
    ],
)
def test_what_loses_nothing_is_read(tmp_path, content):
    (frame,) = read(tmp_path, content)
    assert len(frame.atoms) == 2


def test_plain_xyz_with_more_columns_and_free_text(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text("2\nit's hydrogen, charges behind\nH 0 0 0 0.1\nH 0 0 0.75 -0.1\n")
    ((number, atoms),) = read_structures(path, slice(None))
    assert (number, len(atoms)) == (0, 2)


def test_cell_as_vec_rows(tmp_path):
    path = tmp_path / "a.xyz"
    frame = "1\nnote= x=1\nH 0 0 0\nVEC1 9 0 0\nVEC2 0 9 0\nVEC3 0 0 9\n"
    path.write_text(2 * frame)
    assert [number for number, _ in read_structures(path, slice(None))] == [0, 1]


PIECES = st.sampled_from([*"ab1=\"'{}[] \\.T", " key=", 'k="', '" ', " a=1 ", ' b="1 2" '])


@given(st.lists(PIECES, min_size=1, max_size=20).map("".join).filter(str.strip))
def test_a_line_is_divided_as_ase_does(line):
    try:
        expected = key_val_str_to_dict(line)
    except IndexError:  # a sign of equality comes first
        return
    found = {pair.key: pair.value if pair.n_equals else "T" for pair in divide(line.strip())}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, str):  # others were converted
            assert found[key] == value


def test_own_name_of_a_stress_is_not_lost(tmp_path):
    comment = f'{LATTICE} REF_energy=-1 note= my_stress="1 0 0 0 1 0 0 0 1"'
    with pytest.raises(DataError, match="takes 'my_stress' for a part of it"):
        read(tmp_path, text(comment), keys=KeysConfig(stress="my_stress"))


def test_the_last_frame_is_read_without_those_before_it(tmp_path, monkeypatch):
    """Its own problems are found, those of the others are not looked for."""
    import ase.io.extxyz

    good, bad = "1\npbc=F\nH 0 0 {}\n", "1\nnote= pbc=F Properties=species:S:1:pos:R:3\nH 0 0 0\n"
    path = tmp_path / "frames.extxyz"
    path.write_text(bad + "".join(good.format(k) for k in range(5)))
    parsed = []
    original = ase.io.extxyz._read_xyz_frame
    monkeypatch.setattr(
        "ase.io.extxyz._read_xyz_frame", lambda *a, **k: parsed.append(1) or original(*a, **k)
    )
    ((number, atoms),) = read_structures(path, slice(-1, None))
    assert (number, atoms.positions[0, 2], len(parsed)) == (-1, 4.0, 1)
    with pytest.raises(DataError, match="#0: the value of 'note'"):
        read_structures(path, slice(None))
    path.write_text(good.format(1) + bad)
    with pytest.raises(DataError, match="#1: the value of 'note'"):
        read_structures(path, slice(-1, None))
