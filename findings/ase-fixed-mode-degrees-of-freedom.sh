#!/usr/bin/env bash
# FixedMode removes one degree of freedom, and says that it removes as many as there are atoms.
#
# Seen in ASE 3.29.0. For 32 atoms with one normal mode held, FixedMode.get_removed_dof returns 32.
# So atoms.get_number_of_degrees_of_freedom() is 64 instead of 95, atoms.get_temperature() reads half
# as much again as it should, and thermostats that ask for the count hold another temperature.
# Source: ase/constraints.py, FixedMode.get_removed_dof.
# Our guard: degrees of freedom are counted by our own function, and a thermostat whose count is off
# by more than a tenth is refused when the monitor is made.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet ase==3.29.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import numpy as np
from ase.build import bulk
from ase.constraints import FixedMode

atoms = bulk("Cu", cubic=True).repeat(2)
mode = np.random.default_rng(0).standard_normal((len(atoms), 3))
constraint = FixedMode(mode)
atoms.set_constraint(constraint)

# What it does: of random momenta it takes away the part along the mode, and nothing else.
momenta = np.random.default_rng(1).standard_normal((200, len(atoms), 3))
kept = momenta.copy()
for drawn in kept:
    constraint.adjust_momenta(atoms, drawn)
removed = np.linalg.matrix_rank((momenta - kept).reshape(200, -1))
print(f"removes {removed}, says {constraint.get_removed_dof(atoms)}")
print("degrees of freedom:", atoms.get_number_of_degrees_of_freedom(), "of", 3 * len(atoms))
assert removed == 1
assert constraint.get_removed_dof(atoms) == len(atoms), "changed: the count is another"
PY
