"""Plain data to dataclasses, strictly: every mistake is an error that names the key."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Any, Literal, TypeVar

T = TypeVar("T")

# Key, value, whether it is allowed, what is allowed.
Rule = tuple[str, Any, bool, str]


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says which key and why."""


def from_dict(cls: type[T], content: Any, path: str = "") -> T:
    """Build a dataclass from nested plain data, strictly.

    Raises
    ------
    ConfigError
        For an unknown key (the nearest valid one is named), a missing key or a wrong type.
    """
    where = path or "the configuration"
    if not isinstance(content, dict):
        raise ConfigError(f"{where} must be a mapping, got {type(content).__name__}")
    fields = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in content:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.4)
            hint = f"did you mean '{near[0]}'?" if near else f"valid keys: {', '.join(fields)}"
            raise ConfigError(f"unknown key '{_join(path, key)}'; {hint}")
    hints = typing.get_type_hints(cls)
    arguments = {
        key: _convert(hints[key], value, _join(path, key)) for key, value in content.items()
    }
    for name, item in fields.items():
        required = (
            item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        )
        if required and name not in arguments:
            raise ConfigError(f"'{_join(path, name)}' is missing")
    return cls(**arguments)


def _of_kind(options: tuple[Any, ...], content: Any, path: str) -> Any:
    """The dataclass whose field `kind` has the given value; the first without a value."""
    if not isinstance(content, dict) or "kind" not in content:
        return options[0]
    kinds = {typing.get_args(typing.get_type_hints(item)["kind"])[0]: item for item in options}
    if content["kind"] not in list(kinds):  # not in the dictionary: a list cannot be looked up
        raise ConfigError(f"{path}.kind is {content['kind']!r}; allowed: {', '.join(kinds)}")
    return kinds[content["kind"]]


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _convert(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, path)  # type: ignore[arg-type]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{path} is {value!r}; allowed: {', '.join(map(str, arguments))}")
        return value
    if origin in (typing.Union, types.UnionType):
        if all(dataclasses.is_dataclass(option) for option in arguments):
            return from_dict(_of_kind(arguments, value, path), value, path)
        for option in arguments:
            try:
                return _convert(option, value, path)
            except ConfigError:
                continue
        raise ConfigError(f"{path} is {value!r}; expected {hint}")
    if origin is list and isinstance(value, list):
        return [_convert(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {
            _convert(arguments[0], key, path): _convert(arguments[1], item, _join(path, key))
            for key, item in value.items()
        }
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):
        # YAML 1.1 reads 1e-3 (no dot) as a string; a user means the number.
        try:
            return float(value)
        except ValueError:
            pass
    if hint is type(None) and value is None:
        return None
    if origin is None and hint is not float and type(value) is hint:
        return value
    name = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise ConfigError(f"{path} is {value!r} ({type(value).__name__}); expected {name}")
