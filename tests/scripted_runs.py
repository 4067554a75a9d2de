"""Runs of a scripted dynamics, and the rows of their logs."""

import csv

from fake_potential import (
    FakePotential,
    ScriptedDynamics,
    make_atoms,
)

from ase_bayesmlip.md.monitor import UncertaintyMonitor


def play(actions, deviations, atoms=None, **settings):
    dyn = ScriptedDynamics(make_atoms(FakePotential()) if atoms is None else atoms)
    monitor = UncertaintyMonitor(dyn, threshold=1.0, actions=actions, **settings)
    dyn.play(monitor, deviations)
    return dyn, monitor


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
