"""ASE finds the calculator by name."""

import sys
from importlib import reload
from importlib.metadata import EntryPoint

import pytest
from ase.calculators.calculator import get_calculator_class, names

from ase_bayesmlip import ase_plugin, calculator
from ase_bayesmlip.calculator import BayesianCalculator


def test_the_class_has_a_name():
    assert get_calculator_class("bayesmlip") is BayesianCalculator
    assert names.count("bayesmlip") == 1
    reload(calculator)  # a second registration would be an error of ASE
    assert names.count("bayesmlip") == 1


def test_the_plugin_is_one_of_ase(monkeypatch):
    """As ASE does with its entry points, those of this package."""
    plugins = pytest.importorskip("ase._4.plugins.plugin_collection", reason="new in ASE 3.29")
    entry = EntryPoint("bayesmlip", "ase_bayesmlip.ase_plugin", "ase.plugins")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry])
    (plugin,) = plugins.PluginCollection.from_entry_points().calculators
    assert plugin.implementation.__name__ == "BayesianCalculator"
    assert plugin.display().startswith("bayesmlip ")
    assert plugin.package == "ase_bayesmlip"


def test_an_ase_without_plugins_is_no_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "ase._4.plugins.plugin", None)
    try:
        assert reload(ase_plugin).__ase_plugins__ == set()
    finally:
        monkeypatch.undo()
        reload(ase_plugin)
