#!/usr/bin/env bash
# A Nosé-Hoover chain beside fixed atoms freezes the atoms that are free.
#
# Seen in ASE 3.29.0. 32 atoms of copper (EMT), 300 K asked for with NoseHooverChainNVT, 4 of them
# held by FixAtoms: the free atoms cool to below 100 K; without the constraint they have 300 K to a
# few per cent. atoms.get_temperature() counts degrees of freedom rightly and shows it, the
# thermostat does not: it keeps momenta of its own, to which constraints are never applied, and its
# target counts three degrees of freedom for every atom.
# Source: ase/md/nose_hoover_chain.py, NoseHooverChainNVT (self._p, and num_atoms_global of the
# chain).
# Our guard: nose_hoover is refused beside constraints; bussi and the Langevin integrators are right.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet ase==3.29.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import numpy as np
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.md.nose_hoover_chain import NoseHooverChainNVT


def mean_temperature(n_fixed: int) -> float:
    atoms = bulk("Cu", cubic=True).repeat(2)
    atoms.set_constraint(FixAtoms(range(n_fixed)))
    atoms.calc = EMT()
    drawn = np.random.default_rng(0).standard_normal((len(atoms), 3))
    # Twice the temperature: half of it becomes potential energy.
    atoms.set_momenta(drawn * np.sqrt(atoms.get_masses()[:, None] * units.kB * 600.0))
    dyn = NoseHooverChainNVT(atoms, 4.0 * units.fs, 300.0, tdamp=100.0 * units.fs)
    seen = []
    dyn.attach(lambda: seen.append(atoms.get_temperature()))
    dyn.run(1500)
    return float(np.mean(seen[500:]))


free, fixed = mean_temperature(0), mean_temperature(4)
print(f"asked for 300 K: {free:.0f} K with all atoms free, {fixed:.0f} K with 4 of 32 fixed")
assert abs(free - 300.0) < 30.0, "changed: wrong without constraints, too"
assert fixed < 150.0, "changed: right beside fixed atoms"
PY
