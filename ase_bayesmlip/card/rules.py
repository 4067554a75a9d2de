"""What each field of a model card may be: a card that was edited is refused, not half understood.

A rule is a function of a value and its name in the card; it raises `CardError` if the value is not
what the code reads there. What no code reads may be anything. This module is free of torch.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from typing import Any

Rule = Callable[[Any, str], None]

# Of everything in a served file.
UNITS = {"energy": "eV", "length": "Å", "forces": "eV/Å", "stress": "eV/Å³"}


class CardError(ValueError):
    """A value in a model card that cannot be; the message names the field and what is allowed."""

    def __init__(self, name: str, value: Any, allowed: str) -> None:
        super().__init__(f"{name!r} is {reprlib.repr(value)}; it must be {allowed}")


def _anything(_value: Any, _name: str) -> None:
    pass


def _of_type(kind: type, allowed: str) -> Rule:
    def rule(value: Any, name: str) -> None:
        if type(value) is not kind:
            raise CardError(name, value, allowed)

    return rule


_text = _of_type(str, "a text")
_flag = _of_type(bool, "true or false")


def _one_of(*options: str) -> Rule:
    def rule(value: Any, name: str) -> None:
        if not isinstance(value, str) or value not in options:
            raise CardError(name, value, " or ".join(options))

    return rule


def _integer(least: int, most: float = math.inf) -> Rule:
    def rule(value: Any, name: str) -> None:
        if type(value) is not int or not least <= value <= most:
            raise CardError(name, value, f"an integer from {least} to {most}")

    return rule


_count = _integer(0)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _number(least: float = -math.inf, above: float = -math.inf) -> Rule:
    limit = f" of at least {least}" if least > -math.inf else ""
    limit = f" above {above}" if above > -math.inf else limit

    def rule(value: Any, name: str) -> None:
        # Compared before it is converted: an integer of 400 digits is no float.
        if not _is_number(value) or not abs(value) < 1e300 or value < least or value <= above:
            raise CardError(name, value, f"a finite number{limit}")

    return rule


def _measured(value: Any, name: str) -> None:
    # Not a number is what was measured where there was nothing to measure.
    if value is not None and type(value) is not float:
        _number()(value, name)


def _or_null(rule: Rule) -> Rule:
    return lambda value, name: None if value is None else rule(value, name)


def _list_of(rule: Rule, least: int = 0) -> Rule:
    def each(value: Any, name: str) -> None:
        if not isinstance(value, list) or len(value) < least:
            raise CardError(name, value, f"a list of {least} or more" if least else "a list")
        for index, item in enumerate(value):
            rule(item, f"{name}[{index}]")

    return each


def _array(*shape: int, finite: bool = True) -> Rule:
    """Numbers in nested lists of that shape; -1 is any length."""
    size = " x ".join("n" if n < 0 else str(n) for n in shape)
    number = _number()

    def rule(value: Any, name: str) -> None:
        if not isinstance(value, list) or shape[0] not in (-1, len(value)):
            raise CardError(name, value, f"an array of {size} numbers")
        for index, item in enumerate(value):
            here = f"{name}[{index}]"
            if len(shape) > 1:
                _array(*shape[1:], finite=finite)(item, here)
            elif finite or not isinstance(item, float):
                number(item, here)

    return rule


def _mapping(rule: Rule) -> Rule:
    def each(value: Any, name: str) -> None:
        if not isinstance(value, dict):
            raise CardError(name, value, "a mapping")
        for key, item in value.items():
            rule(item, f"{name}.{key}")

    return each


def _record(required: dict[str, Rule], optional: dict[str, Rule] | None = None) -> Rule:
    """A mapping with these keys; those that no rule is for may be anything."""
    known = required | (optional or {})

    def rule(value: Any, name: str) -> None:
        if not isinstance(value, dict):
            raise CardError(name, value, "a mapping")
        for key in [key for key in required if key not in value]:
            raise CardError(f"{name}.{key}", None, "there")
        for key, item in value.items():
            known.get(key, _anything)(item, f"{name}.{key}")

    return rule


def _checksum(value: Any, name: str) -> None:
    if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise CardError(name, value, "64 hexadecimal digits")


def _elements(value: Any, name: str) -> None:
    _list_of(_integer(1, 118), least=1)(value, name)
    if len(set(value)) < len(value):
        raise CardError(name, value, "atomic numbers, each of them once")


# What a self-test compares: one number of the structure, or so many of each atom.
_OF_STRUCTURE = ("energy", "energy_var_epistemic", "energy_var_aleatoric")
_OF_ATOMS = {"forces": (3,), "forces_cov_epistemic": (3, 3), "forces_cov_aleatoric": (3, 3)}


def _probe(value: Any, name: str) -> None:
    if value == {}:
        return
    numbers = _list_of(_integer(1, 118), least=1)
    _record({"numbers": numbers, "expected": _mapping(_anything)})(value, name)
    n_atoms = len(value["numbers"])
    # A deviation of NaN is the self-test's to refuse, which says what it means.
    expected = {key: _array(1, finite=False) for key in _OF_STRUCTURE}
    expected |= {k: _array(n_atoms, *shape, finite=False) for k, shape in _OF_ATOMS.items()}
    needed = {key: expected.pop(key) for key in ("energy", "forces")}
    _record(
        {
            "positions": _array(n_atoms, 3),
            "cell": _array(3, 3),
            "pbc": _list_of(_flag, least=3),
            "expected": _record(needed, expected),
        }
    )(value, name)
    unknown = sorted(value["expected"].keys() - needed.keys() - expected.keys())
    if unknown:
        raise CardError(f"{name}.expected", unknown, "values that a self-test compares")
    if len(value["pbc"]) != 3:
        raise CardError(f"{name}.pbc", value["pbc"], "three flags")


_COMPILED = _record(
    {
        "device": _one_of("cpu", "cuda"),
        "dtype": _one_of("float32", "float64"),
        "fields": _list_of(_text, least=1),
        "torch": _text,
        "machine": _record(
            {"system": _text, "machine": _text},
            {"instructions": _list_of(_text), "capability": _list_of(_count)},
        ),
        "digest": _text,
        "table_error": _number(least=0.0),
        "deviation": _mapping(_number(least=0.0)),
    },
    {
        "lean_fields": _list_of(_text),
        "interface": _count,
        "seconds": _number(least=0.0),
        "sha256": _mapping(_checksum),
    },
)

_positive = _number(above=0.0)
_FACTORS = _record(
    dict.fromkeys(("forces_epistemic", "forces_aleatoric"), _mapping(_positive))
    | dict.fromkeys(("energy_epistemic", "energy_aleatoric", "stress_epistemic"), _positive)
)


def _origin(value: Any, name: str) -> None:
    """The fields of `metrics.Origin`, and no others."""
    fields = {"n_members": _or_null(_count), "n_draws": _count, "spherical": _or_null(_flag)}
    _record({}, fields)(value, name)
    if value.keys() - fields.keys():
        raise CardError(name, value, f"a mapping with {', '.join(fields)}")


_LAW = _record(
    {"name": _text, "n_members": _or_null(_integer(2)), "n_draws": _count, "spherical": _flag}
)
_quantiles = _list_of(_or_null(_number()))

_RECALIBRATION = _record(
    {
        "method": _text,
        "sha256": _text,
        "n_frames": _count,
        "factors": _FACTORS,
        "levels": _array(-1),
        "conformal": _record({}, {"forces": _mapping(_quantiles), "energy": _quantiles}),
        "isotonic": _record({}, {"forces": _quantiles, "energy": _quantiles}),
        "numbers": _record(dict.fromkeys(("before", "after"), _mapping(_mapping(_measured)))),
    },
    {
        "shape": _one_of("ball", "ellipsoid"),
        "origin": _origin,
        "laws": _mapping(_LAW),
        "frames": _text,
    },
)

_scores = {"scores": _mapping(_array(-1))}
_FOLDS = _list_of(_record({"members": _list_of(_count, least=2), **_scores}), least=2)
_CALIBRATION = _record(
    {}, {"n_frames": _count, "sha256": _text, "frames": _text, "folds": _FOLDS, **_scores}
)

_TRAINING = _record(
    {},
    {
        **dict.fromkeys(("n_train", "n_valid"), _count),
        **dict.fromkeys(("train_sha256", "valid_sha256", "train_frames", "valid_frames"), _text),
        **dict.fromkeys(("has_stress", "has_lone_atoms"), _flag),
        "lone_elements": _list_of(_count),
        "label_limits": _record({}, {"force_max": _number(0.0), "energy_per_atom": _array(2)}),
    },
)

_CONFIG = _record(
    {},
    {
        "data": _record({}, {"keys": _mapping(_or_null(_text)), "units": _text}),
        "model": _record({}, {"cutoff": _positive}),
        "loss": _mapping(_anything),
    },
)

FIELDS: dict[str, Rule] = {
    **dict.fromkeys(("kind", "backbone", "created"), _text),
    **dict.fromkeys(
        ("has_epistemic", "has_aleatoric_energy", "has_aleatoric_forces", "evidential"), _flag
    ),
    **dict.fromkeys(("n_parameters", "n_draws"), _count),
    "versions": _mapping(_text),
    "units": _record({}, {name: _one_of(unit) for name, unit in UNITS.items()}),
    "n_members": _integer(1),
    "ddof": _integer(0, 1),
    "cutoff": _positive,
    "atomic_numbers": _elements,
    "dtype": _one_of("float32", "float64"),
    "reference_energies": _mapping(_number()),
    "seed": _or_null(_count),
    "unfinished": _list_of(_text),
    "training": _TRAINING,
    "calibration": _CALIBRATION,
    "recalibrations": _list_of(_RECALIBRATION),
    "config": _CONFIG,
    "probe": _probe,
    "compiled": _list_of(_COMPILED),
}


def check_card(content: dict[str, Any]) -> None:
    """Refuse a card with a field that is not what it must be, or two that contradict each other.

    Raises
    ------
    CardError
    """
    for name, value in content.items():
        FIELDS.get(name, _anything)(value, name)
    _check_elements(content)
    for fold in content.get("calibration", {}).get("folds", []):
        if max(fold["members"]) >= content["n_members"]:
            raise CardError("calibration.folds", fold["members"], "numbers of members of the file")
    if content["n_members"] > 1 and content.get("ddof", 1) != 1:
        raise CardError("ddof", content["ddof"], "1, as the spread of several members has it")
    trained = content.get("config", {}).get("model", {}).get("cutoff", content["cutoff"])
    if trained != content["cutoff"]:
        raise CardError("cutoff", content["cutoff"], f"that of config.model, {trained}")
    programs = [(record["device"], record["dtype"]) for record in content.get("compiled", [])]
    if len(set(programs)) < len(programs):
        raise CardError("compiled", programs, "one program for each device and dtype")


def _check_elements(content: dict[str, Any]) -> None:
    """Every element that the file knows has its number in each table."""
    from ase.data import chemical_symbols

    known = [chemical_symbols[z] for z in content["atomic_numbers"]]
    tables = {"reference_energies": content["reference_energies"]}
    for index, record in enumerate(content.get("recalibrations", [])):
        for name in ("forces_epistemic", "forces_aleatoric"):
            tables[f"recalibrations[{index}].factors.{name}"] = record["factors"][name]
    for name, table in tables.items():
        if set(table) != set(known):
            raise CardError(name, sorted(table), f"a number for each of {', '.join(known)}")
    if strange := {*content.get("probe", {}).get("numbers", [])} - {*content["atomic_numbers"]}:
        raise CardError("probe.numbers", sorted(strange), "elements of the file")
