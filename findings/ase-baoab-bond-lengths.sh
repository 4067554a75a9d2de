#!/usr/bin/env bash
# LangevinBAOAB does not keep bond lengths that FixBondLengths holds.
#
# Seen in ASE 3.29.0. Water (EMT), 0.5 fs steps, 300 K, both O-H bonds held by FixBondLengths: after
# 400 steps the bonds are off by more than 0.01 Å with LangevinBAOAB, and by less than 1e-10 Å with
# Langevin on the same input. The run ends without a warning, and the temperature looks right.
# Source: ase/md/langevinbaoab.py: positions are moved by writing the array, so that
# adjust_positions of the constraint is never called, while momenta do pass through it.
# Our guard: langevin_baoab is refused beside constraints that it cannot keep.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet ase==3.29.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import numpy as np
from ase import units
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.constraints import FixBondLengths
from ase.md.langevin import Langevin
from ase.md.langevinbaoab import LangevinBAOAB


def largest_deviation(name: str) -> float:
    atoms = molecule("H2O")
    atoms.calc = EMT()
    before = [atoms.get_distance(0, k) for k in (1, 2)]
    atoms.set_constraint(FixBondLengths([[0, 1], [0, 2]]))
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((3, 3))
    atoms.set_momenta(drawn * np.sqrt(atoms.get_masses()[:, None] * units.kB * 300.0))
    step = 0.5 * units.fs
    if name == "LangevinBAOAB":
        dyn = LangevinBAOAB(atoms, step, temperature_K=300.0, T_tau=100.0 * units.fs, rng=rng)
    else:
        dyn = Langevin(atoms, step, temperature_K=300.0, friction=0.01 / units.fs, fixcm=False, rng=rng)
    dyn.run(400)
    return max(abs(atoms.get_distance(0, k) - d) for k, d in zip((1, 2), before))


found = {name: largest_deviation(name) for name in ("Langevin", "LangevinBAOAB")}
for name, deviation in found.items():
    print(f"{name}: bonds off by {deviation:.1e} Å")
assert found["Langevin"] < 1e-10, "changed: Langevin loses the bonds, too"
assert found["LangevinBAOAB"] > 1e-3, "changed: LangevinBAOAB keeps the bonds"
PY
