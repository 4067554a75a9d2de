"""Bayesian machine-learned potentials in ASE molecular dynamics.

Three names are enough for a simulation with error bars; everything else lives in the submodule
that the documentation names. Nothing heavy is imported until one of them is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ase_bayesmlip._version import WITHOUT_TORCH, __version__

if TYPE_CHECKING:
    from ase_bayesmlip.calculator import BayesianCalculator
    from ase_bayesmlip.md.monitor import UncertaintyMonitor
    from ase_bayesmlip.serving.runtime import load_model

__all__ = ["BayesianCalculator", "UncertaintyMonitor", "__version__", "load_model"]

_HOME = {
    "BayesianCalculator": "ase_bayesmlip.calculator",
    "UncertaintyMonitor": "ase_bayesmlip.md.monitor",
    "load_model": "ase_bayesmlip.serving.runtime",
}
_ROOMS = ("calibration", "evaluation", "md", "metrics", "posteriors", "report", "testing")


def __getattr__(name: str) -> Any:
    try:
        if name in _HOME:
            return getattr(import_module(_HOME[name]), name)
        if name in _ROOMS:
            return import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(WITHOUT_TORCH, name="torch") from error
    raise AttributeError(f"module 'ase_bayesmlip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
