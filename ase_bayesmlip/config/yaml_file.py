"""YAML read strictly: a key that stands there twice is an error, and so is any other text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ase_bayesmlip.config.strict import ConfigError


class _Loader(yaml.SafeLoader):
    """Plain data alone; of a key given twice YAML would take the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key '{twice}' is there twice", node.start_mark
            )
        return dict(super().construct_mapping(node, deep))


def read_yaml(path: Path) -> Any:
    """The content of a YAML file as plain data.

    Raises
    ------
    ConfigError
        For a file that is none; names it, and the line.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        # Beside its own errors, the parser raises these for dates, bytes and depths that are none.
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
