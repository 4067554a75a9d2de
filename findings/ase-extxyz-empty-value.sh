#!/usr/bin/env bash
# An empty string in atoms.info takes the next entry of the frame with it.
#
# Seen in ASE 3.29.0. A frame with info = {"note": "", "energy_var": 0.25, "tag": "x"} is written to
# extended XYZ as `note= energy_var=0.25 tag=x`. Read again it has {"note": "energy_var=0.25",
# "tag": "x"}: the reader takes what stands after `note=` and a blank for its value. Nothing warns.
# In a file of labels the entry that goes may be an energy or a stress.
# Source: ase/io/extxyz.py, key_val_dict_to_str (writes no quotes for an empty string) and
# key_val_str_to_dict (skips blanks after "=").
# Our guard: empty values are never written, and a frame with a swallowed entry is refused.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet ase==3.29.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
from ase import Atoms
from ase.io import read, write

atoms = Atoms("H", positions=[[0.0, 0.0, 0.0]])
atoms.info.update(note="", energy_var=0.25, tag="x")
write("frame.extxyz", atoms)
print(open("frame.extxyz").read().splitlines()[1])
info = read("frame.extxyz").info
print(info)
assert info == {"note": "energy_var=0.25", "tag": "x"}, "changed: the entry survives"
PY
