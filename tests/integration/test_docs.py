"""Every public name is on a page of the API reference."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import ase_bayesmlip

API = Path(__file__).parents[2] / "docs" / "api"
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in sorted(API.glob("*.md")))
MODULES = [
    importlib.import_module(found.name)
    for found in pkgutil.walk_packages(ase_bayesmlip.__path__, "ase_bayesmlip.")
    if not found.name.startswith("ase_bayesmlip.data")
]


def found_by_name(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def names_of(module):
    """What autodoc takes of a module: its `__all__`, or else what is defined there."""
    if hasattr(module, "__all__"):
        return module.__all__
    own = (name for name in vars(module) if not name.startswith("_"))
    return [n for n in own if getattr(getattr(module, n), "__module__", "") == module.__name__]


def documented():
    objects = [
        found_by_name(path) for path in re.findall(r"auto(?:class|function|exception):: (.*)", TEXT)
    ]
    for path, options in re.findall(r"automodule:: (.*)\n((?:   :.*\n)*)", TEXT):
        module = importlib.import_module(path)
        assert ":members:" in options
        left_out = re.findall(r"\w+", options.partition(":exclude-members:")[2])
        assert set(left_out) <= set(names_of(module)), f"{path}: {left_out}"
        objects += [getattr(module, name) for name in names_of(module) if name not in left_out]
    return [item for item in objects if inspect.isclass(item) or inspect.isroutine(item)]


def test_every_public_name_is_on_a_page():
    shown = documented()
    missing = [
        f"{module.__name__}.{name}"
        for module in [ase_bayesmlip, *MODULES]
        for name in getattr(module, "__all__", [])
        if not is_shown(getattr(module, name), name, shown)
    ]
    assert not missing


def is_shown(item, name, shown):
    if inspect.isclass(item) or inspect.isroutine(item):
        return any(item is other for other in shown)
    return name == "__version__" or f"`{name}`" in TEXT


def test_what_is_on_a_page_has_a_docstring():
    assert [item for item in documented() if not inspect.getdoc(item)] == []
