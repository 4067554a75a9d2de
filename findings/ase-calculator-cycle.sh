#!/usr/bin/env bash
# A calculator of ASE is not freed when the last name for it goes.
#
# Seen in ASE 3.29.0. `Calculator.__init__` gives an instance that has no method get_spin_polarized
# an attribute of that name, which is a bound method of the instance itself: a reference cycle. So
# `del calc` frees nothing until the cycle collector happens to run, which counts objects and not
# their size. With a potential of tens of megabytes in each calculator (a loop over files, a
# committee that is made anew for every structure) the memory of the process grows: twelve
# calculators of one 2.5 MB model took a gigabyte.
# Source: ase/calculators/calculator.py, Calculator.__init__ (_deprecated_get_spin_polarized).
# Our guard: our calculator defines the method, and is freed at once.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet ase==3.29.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import gc
import weakref

from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones

gc.disable()
for kind in (EMT, LennardJones):
    calculator = kind()
    watch = weakref.ref(calculator)
    del calculator
    alive = watch() is not None
    gc.collect()
    print(f"{kind.__name__}: alive after del: {alive}; after a collection: {watch() is not None}")
    assert alive, "changed: freed at once"
    assert watch() is None
PY
