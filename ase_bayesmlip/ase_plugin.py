"""What ASE finds under the entry point ``ase.plugins`` (ASE 3.29 and newer, experimental there)."""

from __future__ import annotations

from typing import Any

__ase_plugins__: set[Any] = set()

try:
    from ase._4.plugins.plugin import CalculatorPlugin
except ImportError:  # an ASE before it, or one that has moved it: not to be found is no error
    pass
else:
    __ase_plugins__.add(
        CalculatorPlugin(
            "bayesmlip",
            citation="see `bayesmlip inspect --cite` of the served file",
            implementation="ase_bayesmlip.calculator.BayesianCalculator",
        )
    )
