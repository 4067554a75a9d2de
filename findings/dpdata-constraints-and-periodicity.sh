#!/usr/bin/env bash
# A slab converted from ASE to DeePMD-kit's format has zeros for the forces of fixed atoms, and is
# periodic across its gap.
#
# Seen in dpdata 1.1.0 with ASE 3.29.0. LabeledSystem(atoms, fmt="ase/structure") asks
# atoms.get_forces(), from which ASE's constraints have taken the components of fixed atoms: the
# zeros look like labels, and a potential learns that these atoms feel nothing. The format knows
# periodic or not (`nopbc`), so pbc = (True, True, False) comes back as (True, True, True).
# Source: dpdata/plugins/ase.py, ASEStructureFormat.
# Our guard: none is possible from the folder alone; the tutorial on one's own data and the gotchas
# say so, and labels are read from files of ASE with the forces of all atoms.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet ase==3.29.0 dpdata==1.1.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import dpdata
import numpy as np
from ase.build import fcc111
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms

atoms = fcc111("Cu", (2, 2, 3), vacuum=6.0)
atoms.rattle(0.1, seed=1)
atoms.calc = EMT()
atoms.set_constraint(FixAtoms(range(4)))
all_forces = atoms.get_forces(apply_constraint=False)

dpdata.LabeledSystem(atoms, fmt="ase/structure").to("deepmd/npy", "slab", comp_prec=np.float64)
system = dpdata.LabeledSystem("slab", fmt="deepmd/npy")
forces = system["forces"][0]
back = system.to("ase/structure")[0]
print("largest force on a fixed atom:", np.abs(all_forces[:4]).max(), "->", np.abs(forces[:4]).max())
print("periodic:", atoms.pbc, "->", back.pbc)
assert np.abs(all_forces[:4]).max() > 1.0
assert not forces[:4].any(), "changed: fixed atoms keep their forces"
assert np.allclose(forces[4:], all_forces[4:])
assert back.pbc.all(), "changed: the gap is not periodic"
PY
