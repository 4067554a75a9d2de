"""Every class of dynamics and relaxation that ASE has, built for a crystal of springs."""

import importlib
import inspect
import pkgutil
import warnings

import ase.md
import ase.optimize
import numpy as np
from ase import units
from ase.md.md import MolecularDynamics
from ase.optimize.optimize import Dynamics
from crystal import COUPLING, TEMPERATURE_K, TIME_STEP

SLOW = {"taup": 500 * units.fs, "compressibility_au": 1.0, "pressure_au": 0.0}
MTK = {"tdamp": COUPLING, "pdamp": 200 * units.fs, "pressure_au": 0.0}
MELCHIONNA = {"externalstress": 0.0, "ttime": COUPLING, "pfactor": (100 * units.fs) ** 2 * 0.6}


def generator():
    return np.random.default_rng(11)


# Class -> arguments, besides atoms and time step.
SETTINGS = {
    "VelocityVerlet": {},
    "Langevin": {"friction": 1 / COUPLING, "fixcm": False, "rng": generator},
    "LangevinBAOAB": {"T_tau": COUPLING, "rng": generator},
    "Bussi": {"taut": COUPLING, "rng": generator},
    "Andersen": {"andersen_prob": 0.1, "fixcm": False, "rng": generator},
    "NVTBerendsen": {"taut": COUPLING},
    "NPTBerendsen": {"taut": COUPLING, **SLOW},
    "Inhomogeneous_NPTBerendsen": {"taut": COUPLING, **SLOW},
    "NoseHooverChainNVT": {"tdamp": COUPLING},
    "IsotropicMTKNPT": MTK,
    "MTKNPT": MTK,
    "MaskedMTKNPT": {**MTK, "mask": (True, True, False)},
    "MelchionnaNPT": MELCHIONNA,
    "NPT": MELCHIONNA,
}


def classes(package, base):
    """Classes of a package of ASE that derive from a base, by name."""
    found = {}
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if ".test" in module.name:
            continue
        for name, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(kind, base) and kind.__module__.startswith(package.__name__ + "."):
                found[name] = kind
    return found


MD_CLASSES = classes(ase.md, Dynamics) | classes(ase.md, MolecularDynamics)


def build(name, atoms, **changes):
    """One dynamics class of ASE by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "ContourExploration":
            atoms.rattle(0.02, seed=1)
            settings = {"maxstep": 0.05, "parallel_drift": 0.0, "rng": generator()} | changes
            return MD_CLASSES[name](atoms, **settings)
        settings = SETTINGS[name] | changes
        if name != "VelocityVerlet":
            settings = {"temperature_K": TEMPERATURE_K} | settings
        settings = {
            key: value() if value is generator else value for key, value in settings.items()
        }
        return MD_CLASSES[name](atoms, TIME_STEP, **settings)
