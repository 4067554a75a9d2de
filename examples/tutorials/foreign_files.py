"""Frames with labels as other programs write them: small, valid, and only what readers look at.

For `own_data.py` and the tests, which have no VASP, ORCA or CP2K at hand.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms, units

KBAR = 0.1 * units.GPa


def _varray(name: str, rows: np.ndarray) -> str:
    lines = "".join("<v>" + " ".join(f"{x:.16f}" for x in row) + "</v>\n" for row in rows)
    return f'<varray name="{name}">\n{lines}</varray>\n'


def _structure(atoms: Atoms, name: str = "") -> str:
    cell = _varray("basis", atoms.cell.array)
    positions = _varray("positions", atoms.get_scaled_positions(wrap=False))
    return f"<structure{name}><crystal>{cell}</crystal>{positions}</structure>"


def write_vasprun(path: Path, frames: Sequence[Atoms], smearing: float = 0.0) -> None:
    """Ionic steps of one VASP run; `smearing` is by how much e_0_energy is above e_fr_energy, eV.

    The free energy is the `REF_energy` of the frames.
    """
    rows = "".join(f"<rc><c>{s}</c><c>1</c></rc>" for s in frames[0].get_chemical_symbols())
    text = '<?xml version="1.0" encoding="ISO-8859-1"?>\n<modeling><kpoints>'
    text += _varray("kpointlist", np.zeros((1, 3))) + _varray("weights", np.ones((1, 1)))
    text += f'</kpoints><parameters/><atominfo><array name="atoms"><set>{rows}</set></array>'
    text += "</atominfo>" + _structure(frames[0], ' name="initialpos"')
    for atoms in frames:
        free = atoms.info["REF_energy"]
        energy = f'<energy><i name="e_fr_energy">{free:.8f}</i>'
        energy += f'<i name="e_0_energy">{free + smearing:.8f}</i></energy>'
        text += f"<calculation><scstep>{energy}</scstep>{_structure(atoms)}"
        text += _varray("forces", atoms.arrays["REF_forces"])
        if "REF_stress" in atoms.info:  # VASP: kB, positive under pressure
            text += _varray("stress", -np.reshape(atoms.info["REF_stress"], (3, 3)) / KBAR)
        text += f"{energy}</calculation>\n"
    path.write_text(text + "</modeling>\n", encoding="utf-8")


def write_orca(path: Path, atoms: Atoms) -> None:
    """A single point with gradient (``! ENGRAD``): one frame a file, Hartree and Bohr."""
    symbols = atoms.get_chemical_symbols()
    gradient = -atoms.arrays["REF_forces"] * units.Bohr / units.Hartree
    lines = ["* O   R   C   A *", "CARTESIAN COORDINATES (ANGSTROEM)", "-" * 33]
    lines += [
        f"  {s} {x:.9f} {y:.9f} {z:.9f}"
        for s, (x, y, z) in zip(symbols, atoms.positions, strict=True)
    ]
    lines += ["", " Total Charge           Charge          ....    0"]
    lines += [f"Number of atoms                             ...  {len(atoms)}"]
    lines += [f"FINAL SINGLE POINT ENERGY  {atoms.info['REF_energy'] / units.Hartree:.12f}", ""]
    lines += ["CARTESIAN GRADIENT", "-" * 18, ""]
    for k, (symbol, (x, y, z)) in enumerate(zip(symbols, gradient, strict=True), start=1):
        lines.append(f"  {k}   {symbol}   :  {x:.12f} {y:.12f} {z:.12f}")
    lines += ["", "ORCA TERMINATED NORMALLY", ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def write_cp2k(folder: Path, frames: Sequence[Atoms], project: str = "project") -> None:
    """``PROJECT-pos-1.xyz`` (Å) and ``PROJECT-frc-1.xyz`` (Hartree/Bohr); no cell in either."""
    for kind, unit in (("pos", 1.0), ("frc", units.Hartree / units.Bohr)):
        text = ""
        for step, atoms in enumerate(frames):
            rows = (atoms.positions if kind == "pos" else atoms.arrays["REF_forces"]) / unit
            energy = atoms.info["REF_energy"] / units.Hartree
            text += f"{len(atoms):8d}\n i = {step:8d}, time = {0.5 * step:12.3f}, "
            text += f"E = {energy:20.10f}\n"
            for symbol, (x, y, z) in zip(atoms.get_chemical_symbols(), rows, strict=True):
                text += f"{symbol:>3} {x:19.10f} {y:19.10f} {z:19.10f}\n"
        (folder / f"{project}-{kind}-1.xyz").write_text(text, encoding="utf-8")
