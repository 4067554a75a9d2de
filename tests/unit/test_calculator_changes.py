"""Which changes of a structure make the calculator evaluate again."""

import numpy as np
import pytest
from ase.calculators.calculator import Calculator, all_changes

from ase_bayesmlip.calculator import SEEN


def nothing(atoms):
    pass


def move(atoms):
    atoms.positions[0, 0] += 1e-9


def move_within_tolerance(atoms):
    atoms.positions[:] = np.nextafter(atoms.positions, np.inf)


def transmute(atoms):
    atoms.numbers[0] = 1


def deform(atoms):
    atoms.cell[0, 0] += 1e-9


def open_up(atoms):
    atoms.pbc = [True, False, True]


def remove(atoms):
    del atoms[-1]


def lose_itself(atoms):
    atoms.positions[1, 1] = np.nan


def charge(atoms):
    atoms.set_initial_charges([0.5] * len(atoms))
    atoms.set_initial_magnetic_moments([1.0] * len(atoms))


def everything(atoms):
    move(atoms)
    transmute(atoms)
    deform(atoms)
    open_up(atoms)


CHANGES = [
    nothing,
    move,
    move_within_tolerance,
    transmute,
    deform,
    open_up,
    remove,
    lose_itself,
    charge,
    everything,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda function: function.__name__)
def test_changes_are_those_that_ase_finds(calculator, strained_co2, change):
    calc = calculator("small")
    strained_co2.positions %= 1.0  # so that a rounding error is below the tolerance
    calc.atoms = strained_co2.copy()
    change(strained_co2)
    unseen = {name for name in all_changes if name not in SEEN}
    expected = set(Calculator.check_state(calc, strained_co2)) - unseen
    assert set(calc.check_state(strained_co2)) == expected
    assert bool(expected) == (change not in (nothing, move_within_tolerance, charge))


def test_before_the_first_evaluation_everything_has_changed(calculator, ethanol):
    assert calculator("small").check_state(ethanol) == all_changes
