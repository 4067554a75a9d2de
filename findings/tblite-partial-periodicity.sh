#!/usr/bin/env bash
# tblite's ASE calculator takes a slab for a three-dimensional crystal.
#
# Seen in tblite 0.8.0 with ASE 3.29.0, GFN1-xTB. Graphene in a cell of 3 Å height has the same energy
# with pbc = (True, True, False) as with pbc = True, to the last digit: layers interact with their
# images along the direction that was said to be open (1.24 eV for two atoms against a height of
# 10 Å). With a zero vector along that direction, which ASE allows for a layer, every calculation
# fails (it reports a failed eigenvalue problem).
# Source: the program knows a structure as periodic or not, as a whole; tblite/ase.py passes cell and
# pbc on.
# Our guard: `reference_calculator` refuses partly periodic structures for GFN1 and GFN2 and says to
# give a cell with enough vacuum and pbc = True.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet ase==3.29.0 tblite==0.8.0
cd "$work"
OMP_NUM_THREADS=1 "$work/venv/bin/python" -W ignore - <<'PY'
from ase.build import graphene
from tblite.ase import TBLite


def energy(height: float, pbc) -> float:
    atoms = graphene(vacuum=height / 2)
    atoms.pbc = pbc
    atoms.calc = TBLite(method="GFN1-xTB", verbosity=0)
    return float(atoms.get_potential_energy())


layer, crystal = energy(3.0, (True, True, False)), energy(3.0, True)
apart = energy(10.0, (True, True, False))
print(f"height 3 Å: {layer:.6f} eV as a layer, {crystal:.6f} eV as a crystal")
print(f"height 10 Å: {apart:.6f} eV as a layer")
assert layer == crystal, "changed: a layer is not a crystal any more"
assert layer - apart > 1.0, "changed: the height does not matter to a layer"

try:
    flat = graphene()  # a zero vector along the open direction
    flat.calc = TBLite(method="GFN1-xTB", verbosity=0)
    flat.get_potential_energy()
except Exception as error:
    print(f"no third vector: {type(error).__name__}: {error}")
else:
    raise SystemExit("changed: a cell of two vectors is calculated")
PY
