"""Rules for single values in a model card: a number, a text, a list of them, a mapping.

A rule is a function of a value and its name in the card; it raises `CardError` if the value is not
what the code reads there.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable
from typing import Any

Rule = Callable[[Any, str], None]


class CardError(ValueError):
    """A value in a model card that cannot be; the message names the field and what is allowed."""

    def __init__(self, name: str, value: Any, allowed: str) -> None:
        super().__init__(f"{name!r} is {reprlib.repr(value)}; it must be {allowed}")


def anything(_value: Any, _name: str) -> None:
    """What no code reads."""


def of_type(kind: type, allowed: str) -> Rule:
    """Exactly of a type, which messages call `allowed`."""

    def rule(value: Any, name: str) -> None:
        if type(value) is not kind:
            raise CardError(name, value, allowed)

    return rule


text = of_type(str, "a text")
flag = of_type(bool, "true or false")


def one_of(*options: str) -> Rule:
    """One of some texts."""

    def rule(value: Any, name: str) -> None:
        if not isinstance(value, str) or value not in options:
            raise CardError(name, value, " or ".join(options))

    return rule


def integer(least: int, most: float = math.inf) -> Rule:
    """An integer between limits, both of them allowed."""

    def rule(value: Any, name: str) -> None:
        if type(value) is not int or not least <= value <= most:
            raise CardError(name, value, f"an integer from {least} to {most}")

    return rule


count = integer(0)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def number(least: float = -math.inf, above: float = -math.inf) -> Rule:
    """A finite number: at least `least`, and greater than `above`."""
    limit = f" of at least {least}" if least > -math.inf else ""
    limit = f" above {above}" if above > -math.inf else limit

    def rule(value: Any, name: str) -> None:
        # Compared before it is converted: an integer of 400 digits is no float.
        if not _is_number(value) or not abs(value) < 1e300 or value < least or value <= above:
            raise CardError(name, value, f"a finite number{limit}")

    return rule


def measured(value: Any, name: str) -> None:
    """A number, or none where there was nothing to measure: not a number, or null."""
    if value is not None and type(value) is not float:
        number()(value, name)


def or_null(rule: Rule) -> Rule:
    """What the rule says, or null."""
    return lambda value, name: None if value is None else rule(value, name)


def list_of(rule: Rule, least: int = 0) -> Rule:
    """A list of at least so many values, each as the rule says."""

    def each(value: Any, name: str) -> None:
        if not isinstance(value, list) or len(value) < least:
            raise CardError(name, value, f"a list of {least} or more" if least else "a list")
        for index, item in enumerate(value):
            rule(item, f"{name}[{index}]")

    return each


def array(*shape: int, finite: bool = True) -> Rule:
    """Numbers in nested lists of that shape; -1 is any length."""
    size = " x ".join("n" if n < 0 else str(n) for n in shape)
    each = number()

    def rule(value: Any, name: str) -> None:
        if not isinstance(value, list) or shape[0] not in (-1, len(value)):
            raise CardError(name, value, f"an array of {size} numbers")
        for index, item in enumerate(value):
            here = f"{name}[{index}]"
            if len(shape) > 1:
                array(*shape[1:], finite=finite)(item, here)
            elif finite or not isinstance(item, float):
                each(item, here)

    return rule


def mapping(rule: Rule) -> Rule:
    """A mapping of any keys to values, each as the rule says."""

    def each(value: Any, name: str) -> None:
        if not isinstance(value, dict):
            raise CardError(name, value, "a mapping")
        for key, item in value.items():
            rule(item, f"{name}.{key}")

    return each


def record_of(required: dict[str, Rule], optional: dict[str, Rule] | None = None) -> Rule:
    """A mapping with these keys; those that no rule is for may be anything."""
    known = required | (optional or {})

    def rule(value: Any, name: str) -> None:
        if not isinstance(value, dict):
            raise CardError(name, value, "a mapping")
        for key in [key for key in required if key not in value]:
            raise CardError(f"{name}.{key}", None, "there")
        for key, item in value.items():
            known.get(key, anything)(item, f"{name}.{key}")

    return rule


def checksum(value: Any, name: str) -> None:
    """A sha256."""
    if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
        raise CardError(name, value, "64 hexadecimal digits")
