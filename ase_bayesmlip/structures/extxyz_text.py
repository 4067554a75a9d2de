"""What ASE's reader of extended XYZ would lose or change without a word, found in the text.

A comment line is a list of ``key=value``. ASE (3.29) takes whatever follows an empty value for the
value, be it the next key with its own: ``note= REF_energy=-1.0`` has a note and no energy. A stray
quote or a backslash before a blank does the same. Of a key that stands there twice the last value
counts, columns that `Properties` does not declare are dropped, a file ends at its first blank line,
and `pbc` with words that mean nothing is periodic.
"""

from __future__ import annotations

import itertools
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CLOSING = {"'": "'", '"': '"', "{": "}", "[": "]"}
FLAGS = {"T", "F", "True", "False", "true", "false", "TRUE", "FALSE", "0", "1"}
# A pair that leaves no doubt: a bare value, or one in double quotes.
PLAIN = re.compile(r"\s*([^\s=\"'{}\[\]\\]+)=(?:\"([^\"\\]+)\"|([^\s=\"'{}\[\]\\]+))(?=\s|$)")
NUMERIC = re.compile(r"[\d\s.,eE+\-TF]*")
WORD = re.compile(r"[TF]|[-+]?[\d.]+([eE][-+]?\d+)?")
NAME = re.compile(r"([A-Za-z_][\w-]*)[\"']?\s*=")

# Keys by which a file is extended XYZ and not plain XYZ.
EXTENDED = {"Properties", "Lattice", "pbc"}
DEFAULT_PROPERTIES = "species:S:1:pos:R:3"

# Columns that hold positions, and elements, under the names that the reader knows.
POSITIONS, ELEMENTS = {"pos", "positions"}, {"species", "symbols", "Z", "numbers"}


@dataclass
class Pair:
    """A key and its value, as the reader divides a comment line.

    Attributes
    ----------
    key, value : str
        Without quotes.
    n_equals : int
        Signs of equality outside quotes; a key alone has none.
    start, end : int
        Where the text of the value is in the line.
    swallows : bool
        Whether the value holds another key: a sign of equality behind a blank, neither of them
        between quotes at the ends of the value.
    quotes_pair : bool
        Whether there is one between such quotes, which is a text as long as they are balanced.
    has_end : bool
        Whether there was a blank or a closing quote, at which the value should have ended.
    is_open : bool
        Whether a quote or bracket is not closed: the rest of the line belongs to the pair.
    was_quoted, is_pieced : bool
        Whether quotes were closed, and whether there is more of the value outside of them, or a
        backslash in it.
    """

    key: str = ""
    value: str = ""
    n_equals: int = 0
    start: int = 0
    end: int = 0
    swallows: bool = False
    quotes_pair: bool = False
    is_new: bool = True  # nothing yet since the last '='
    has_end: bool = False
    is_open: bool = False
    was_quoted: bool = False
    is_pieced: bool = False

    def append(self, char: str, position: int) -> None:
        """The next character of key or value."""
        if self.n_equals:
            self.value += char
        else:
            self.key += char
        self.is_new = False
        self.end = position + 1


def problems_of(path: Path, only_last: bool = False) -> tuple[int, dict[int, str]]:
    """Number of frames of a file, and what is wrong with some of them, or with the last.

    Frames are numbered as the reader does. A file that is no extended XYZ ends the search: the
    reader says what it does not understand.
    """
    found: dict[int, str] = {}
    n_frames, unlike, is_extended = 0, [], False
    with path.open(encoding="utf-8") as file:
        frames = enumerate(_frames(file))
        for number, lines in deque(frames, 1) if only_last else frames:
            problem = _problem(lines)
            if problem:
                found[number] = problem
            if "Properties=" in lines[0]:
                is_extended = True
            elif len(lines) > 1 and len(lines[1].split()) > 4:
                unlike.append(number)
            n_frames = number + 1
        if n_frames and any(line.strip() for line in file):
            found[n_frames - 1] = (
                "after this frame there is a blank line, at which the reader stops, and more text "
                "behind it; remove the blank line"
            )
    if is_extended:
        for number in unlike:
            found.setdefault(number, "its columns have no names (Properties=), others' have")
    return n_frames, found


def _frames(file: Iterator[str]) -> Iterator[list[str]]:
    """Comment line and rows of each frame, then the rows of a cell (VEC1 ...), if any."""
    header = next(file, "")
    while header.strip():
        try:
            n_atoms = int(header)
        except ValueError:
            return
        lines = [next(file, "") for _ in range(1 + n_atoms)]
        header = next(file, "")
        while header.lstrip().startswith("VEC"):
            lines.append(header)
            header = next(file, "")
        yield lines


def _problem(lines: list[str]) -> str | None:
    """The first thing that the reader would lose or change in a frame."""
    if lines[-1].lstrip().startswith("VEC"):
        return None  # its comment is kept as it is
    comment = lines[0].strip()
    pairs = divide(comment)
    values: dict[str, str] = {}
    for pair in pairs:
        if pair.swallows:
            swallowed = NAME.search(comment, pair.start)
            return (
                f"the value of '{pair.key}' is empty or has a stray quote, and the reader takes "
                f"'{swallowed[1] if swallowed else '='}' for a part of it ({pair.value[:60]!r}); "
                f"remove '{pair.key}', or give it a value, with blanks in double quotes"
            )
        if pair.is_pieced and pair.n_equals and NUMERIC.fullmatch(pair.value):
            return (
                f"the value of '{pair.key}' has a quote or a backslash in its middle, and is read "
                f"as {pair.value[:60]!r}; remove what does not belong to it"
            )
        if pair.n_equals and values.setdefault(pair.key, pair.value) != pair.value:
            return f"the key '{pair.key}' is there twice, with other values; keep one of them"
    if values and pairs[-1].is_open:
        return f"a quote or bracket behind '{pairs[-1].key[:30]}' is not closed; close or remove it"
    is_plain = EXTENDED.isdisjoint(values) and not any(":R:" in v for v in values.values())
    if is_plain:  # an element and three coordinates, whatever stands behind them
        return None
    return (
        _without_quotes(pairs)
        or _wrong_pbc(values.get("pbc", "T"))
        or _wrong_columns(values.get("Properties", DEFAULT_PROPERTIES), lines[1:])
    )


def _without_quotes(pairs: list[Pair]) -> str | None:
    """A list without quotes: its first word alone is the value, the others are keys."""
    for pair, following in itertools.pairwise(pairs):
        if pair.n_equals and not following.n_equals and WORD.fullmatch(following.key):
            return (
                f"behind {pair.key}={pair.value} stands {following.key}, which belongs to no key; "
                "put lists in double quotes"
            )
    return None


def _wrong_pbc(value: str) -> str | None:
    words = re.findall(r"[^\s,]+", value)
    if len(words) in (1, 3) and FLAGS.issuperset(words):
        return None
    return f'pbc is "{value}"; it must be T, F, or three of them in double quotes'


def _wrong_columns(properties: str, rows: list[str]) -> str | None:
    names, counts = properties.split(":")[::3], properties.split(":")[2::3]
    for needed, what in ((POSITIONS, "positions (pos:R:3)"), (ELEMENTS, "elements (species:S:1)")):
        if needed.isdisjoint(names):
            return f"Properties={properties} has no column of {what}"
    if not all(count.isdecimal() for count in counts):
        return f"Properties={properties} is no list of name:type:number"
    n_columns = sum(map(int, counts))
    for number, row in enumerate(rows):
        n_values = len(row.split())
        if n_values != n_columns:
            return (
                f"the row of atom {number} has {n_values} values, but Properties={properties} "
                f"declares {n_columns}"
            )
    return None


def divide(line: str) -> list[Pair]:
    """A comment line as keys and values, by the rules of ASE's reader."""
    pairs: list[Pair] = []
    end = 0
    while end < len(line):
        found = PLAIN.match(line, end)
        if found is None:
            return _divide_by_character(line)
        end = found.end()
        pairs.append(Pair(found[1], found[2] or found[3], 1, found.end(1) + 1, end, is_new=False))
    return pairs


def _divide_by_character(line: str) -> list[Pair]:
    pairs = [Pair()]
    closing, opened, opened_inside, escaped = "", 0, False, False
    for position, char in enumerate(line):
        pair = pairs[-1]
        if escaped or (closing and char not in (closing, "\\")):
            # Quotes that open in the middle of a value keep nothing together.
            pair.has_end |= char.isspace() and (opened_inside if closing else escaped)
            pair.swallows |= char == "=" and pair.has_end and opened_inside
            pair.quotes_pair |= char == "=" and " " in line[opened:position]
            pair.is_pieced |= escaped
            pair.append(char, position)
            escaped = False
        elif char == "\\":
            escaped = True
        elif closing:
            closing, opened_inside = "", False
            pair.has_end |= pair.n_equals > 0
            pair.was_quoted |= pair.n_equals > 0
        elif char in CLOSING:
            pair.is_pieced |= pair.was_quoted or not pair.is_new
            closing, opened, opened_inside = CLOSING[char], position, not pair.is_new
        elif char.isspace():
            if not pair.is_new:
                pairs.append(Pair())
            pair.has_end |= pair.is_new and pair.n_equals > 0
        elif char == "=":
            _equals(pairs, position)
        else:
            pair.is_pieced |= pair.was_quoted
            pair.append(char, position)
    if closing:
        pairs[-1].is_open = True
        for pair in pairs:  # those before may begin where others should end
            pair.swallows |= pair.quotes_pair
    return pairs


def _equals(pairs: list[Pair], position: int) -> None:
    """A sign of equality outside quotes."""
    if pairs[-1] == Pair() and len(pairs) > 1:  # blanks before it
        pairs.pop()
        pairs[-1].has_end |= pairs[-1].n_equals > 0
    pair = pairs[-1]
    if pair.n_equals:
        pair.swallows |= pair.has_end
        pair.value += "="
    else:
        pair.start = position + 1
    pair.n_equals += 1
    pair.is_new = True
