"""Molecules of QM9, one a file in an XYZ of its own (doi:10.1038/sdata.2014.22).

The number of atoms; ``gdb``, the number of the molecule and 15 properties; for each atom element,
position (Å) and Mulliken charge; then a line each of frequencies, SMILES and InChI. Exponents are
written ``*^``, energies in Hartree. There are no forces: such frames are for evaluation.
"""

from __future__ import annotations

from pathlib import Path

from ase import Atoms, units

from ase_bayesmlip.structures.reading import DataError

# Of the properties, those that are energies; U0 and those after it hold the zero-point energy.
ENERGIES = {"homo": 5, "lumo": 6, "gap": 7, "zpve": 9, "U0": 10, "U": 11, "H": 12, "G": 13}
N_PROPERTIES = 15


def is_qm9(path: Path) -> bool:
    """Whether a file says that it is of QM9."""
    if path.suffix != ".xyz" or not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return [file.readline(), file.readline(4)][1] in ("gdb ", "gdb\t")


def read_qm9(path: Path, index: slice) -> list[tuple[int, Atoms]]:
    """The molecule of a file as its frame 0, with the energies in ``info``, eV.

    Under their names in the paper, and as ``E`` the electronic energy U0 - zpve, of which forces
    are slopes.

    Raises
    ------
    DataError
        If the file is not whole, or `index` leaves nothing of its one frame.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").replace("*^", "e").splitlines()
    try:
        n_atoms, properties = int(lines[0]), [float(word) for word in lines[1].split()[2:]]
        rows = [line.split() for line in lines[2 : 2 + n_atoms]]
        atoms = Atoms([row[0] for row in rows], [[float(x) for x in row[1:4]] for row in rows])
    except (ValueError, IndexError, KeyError) as error:
        raise DataError(f"{path} is no whole file of QM9 ({error!r})") from error
    if len(properties) != N_PROPERTIES or len(rows) != n_atoms or len(lines) != n_atoms + 5:
        raise DataError(
            f"{path} is no whole file of QM9: {len(lines)} lines and {len(properties)} properties, "
            f"not {n_atoms + 5} and {N_PROPERTIES}"
        )
    for name, number in ENERGIES.items():
        atoms.info[name] = properties[number] * units.Hartree
    atoms.info["E"] = atoms.info["U0"] - atoms.info["zpve"]
    chosen = list(enumerate([atoms]))[index]
    if not chosen:
        raise DataError(f"{path}: the slice leaves no frame; a file of QM9 holds one")
    return chosen
