"""Reference calculators that go wrong, each in its own way; importable from another process."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.lj import LennardJones


class Answers(Calculator):
    """Gives what it is told to, whatever the structure; `n_calls` counts."""

    implemented_properties: ClassVar = ["energy", "forces", "stress"]

    def __init__(self, energy=-1.0, forces=None, stress=None):
        super().__init__()
        self.answer = {"energy": energy, "forces": forces, "stress": stress}
        self.n_calls = 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.n_calls += 1
        answer = dict(self.answer)
        if answer["forces"] is None:
            answer["forces"] = np.zeros((len(atoms), 3))
        self.results = {name: value for name, value in answer.items() if value is not None}

    def get_property(self, name, atoms=None, allow_calculation=True):
        if self.calculation_required(atoms, [name]):
            self.calculate(atoms, [name])
        return self.results[name]


class Sleeps(LennardJones):
    """Where atoms are close: starts a program, notes its number and never answers."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        if atoms.get_distance(0, 1) > 1.5:
            super().calculate(atoms, properties, system_changes)
            return
        child = subprocess.Popen(["sleep", "600"])
        with Path(os.environ["ODD_REFERENCES_LOG"]).open("a") as log:
            log.write(f"{os.getpid()} {child.pid}\n")
        time.sleep(600)


class Dies(LennardJones):
    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        if atoms.get_distance(0, 1) > 1.5:
            super().calculate(atoms, properties, system_changes)
            return
        os.kill(os.getpid(), 9)


class Exits(LennardJones):
    def calculate(self, *args, **kwargs):
        sys.exit(3)


class Raises(LennardJones):
    def calculate(self, *args, **kwargs):
        raise RuntimeError("SCF did not converge")


class CarriesLambda(LennardJones):
    def __init__(self):
        super().__init__()
        self.function = lambda: None


def lennard_jones():
    return LennardJones()


def needs_an_argument(method):
    return LennardJones(method)


def gives_a_number():
    return 3.0


def gives_unpicklable():
    return Answers(energy=lambda: None)


INSTANCE = LennardJones()
NUMBER = 5
