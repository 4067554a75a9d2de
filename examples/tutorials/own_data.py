"""Labels from VASP, ORCA, CP2K, DeePMD-kit, ase.db and MACE's extended XYZ, read and trained on.

The files are written here, in the formats of the programs, from frames whose labels are known: CO2
crystals with stress and ethanol, both GFN2-xTB. Run it in an empty folder; `--full` trains longer.
"""

import sys
from importlib.resources import files
from pathlib import Path

import ase.io
import dpdata
import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from foreign_files import write_cp2k, write_orca, write_vasprun

from ase_bayesmlip.cli.main import main
from ase_bayesmlip.config import KeysConfig
from ase_bayesmlip.structures.labelled import read_frames

EPOCHS = 200 if "--full" in sys.argv else 2
ASE_NAMES = KeysConfig(energy="free_energy", forces="forces", stress="stress")


def computed(atoms: Atoms) -> Atoms:
    """The frame with its labels as results of a calculator, as ASE's own formats keep them."""
    bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    energy, stress = atoms.info["REF_energy"], np.reshape(atoms.info["REF_stress"], (3, 3))
    results = {"energy": energy, "free_energy": energy, "forces": atoms.arrays["REF_forces"]}
    voigt = stress.ravel()[[0, 4, 8, 5, 2, 1]]
    bare.calc = SinglePointCalculator(bare, **results, stress=voigt)
    return bare


def write_all(crystals: list[Atoms], molecules: list[Atoms]) -> None:
    """One folder for each program."""
    for name in ("vasp/run1", "vasp/run2", "orca", "cp2k", "deepmd", "db", "mace"):
        Path(name).mkdir(parents=True, exist_ok=True)
    write_vasprun(Path("vasp/run1/vasprun.xml"), crystals[:4], smearing=0.012)
    write_vasprun(Path("vasp/run2/vasprun.xml"), crystals[4:8], smearing=0.012)
    for k, atoms in enumerate(molecules):
        write_orca(Path(f"orca/job{k:02d}.out"), atoms)
    write_cp2k(Path("cp2k"), crystals[:8])
    systems = dpdata.LabeledSystem()
    for atoms in crystals[8:16]:
        systems.append(dpdata.LabeledSystem(computed(atoms), fmt="ase/structure"))
    systems.to("deepmd/npy", "deepmd/co2", set_size=4, comp_prec=np.float64)
    Path("db/frames.db").unlink(missing_ok=True)
    ase.io.write("db/frames.db", [computed(atoms) for atoms in crystals[16:20]])
    ase.io.write("mace/frames.extxyz", crystals[:8])


def join_cp2k(positions: str, forces: str, cells: list[np.ndarray]) -> list[Atoms]:
    """CP2K keeps positions and forces apart, in Hartree and Bohr, and no cell in either."""
    frames = []
    pairs = zip(ase.io.read(positions, ":"), ase.io.read(forces, ":"), cells, strict=True)
    for atoms, pull, cell in pairs:
        frame = Atoms(atoms.numbers, atoms.positions, cell=cell, pbc=True)
        frame.info["REF_energy"] = atoms.info["E"] * units.Hartree
        frame.arrays["REF_forces"] = pull.positions * units.Hartree / units.Bohr
        frames.append(frame)
    return frames


def compare(path: str, keys: KeysConfig, truth: list[Atoms]) -> None:
    """Print by how much the labels that were read differ from those that were written."""
    found = read_frames(path, keys)
    pairs = list(zip(found, truth, strict=True))
    energy = max(abs(f.energy - t.info["REF_energy"]) for f, t in pairs)
    force = max(np.abs(f.forces - t.arrays["REF_forces"]).max() for f, t in pairs)
    stress = "none"
    if found[0].stress is not None:
        errors = [f.stress - np.reshape(t.info["REF_stress"], (3, 3)) for f, t in pairs]
        stress = f"{np.abs(errors).max():.0e} eV/Å³"
    print(f"{path:22} {len(found):2d} frames; off by {energy:.0e} eV, {force:.0e} eV/Å, {stress}")


CONFIG = """
data:
  train: [vasp/*/vasprun.xml, deepmd/*]
  calibration: db/frames.db
  valid_fraction: 0.2
  keys: {{energy: free_energy, forces: forces, stress: stress}}
model: {{hidden_irreps: 4x0e + 4x1o, n_radial: 4, cutoff: 4.0}}
training: {{epochs: {epochs}, batch_size: 4, evaluate_every: 2}}
posterior: {{kind: ensemble, members: 2}}
"""


def bayesmlip(words: str) -> None:
    """A command, as in the shell."""
    if main(words.split()):
        sys.exit(f"bayesmlip {words} failed")


if __name__ == "__main__":
    data = files("ase_bayesmlip.data")
    crystals = ase.io.read(str(data / "co2_train.extxyz"), ":20")
    molecules = ase.io.read(str(data / "ethanol_train.extxyz"), ":5")
    write_all(crystals, molecules)
    cells = [atoms.cell for atoms in crystals[:8]]
    frames = join_cp2k("cp2k/project-pos-1.xyz", "cp2k/project-frc-1.xyz", cells)
    ase.io.write("cp2k/frames.extxyz", frames)

    compare("vasp/*/vasprun.xml", ASE_NAMES, crystals[:8])
    compare("orca/*.out", ASE_NAMES, molecules)
    compare("cp2k/frames.extxyz", KeysConfig(), crystals[:8])
    compare("deepmd/*", KeysConfig(), crystals[8:16])
    compare("db/frames.db", ASE_NAMES, crystals[16:])
    compare("mace/frames.extxyz", KeysConfig(), crystals[:8])

    # Trap: `energy` of VASP is extrapolated to no smearing; forces are slopes of `free_energy`.
    wrong = read_frames("vasp/run1/vasprun.xml", KeysConfig("energy", "forces", "stress"))
    print(f"trap: energy is off by {wrong[0].energy - crystals[0].info['REF_energy']:.3f} eV")

    Path("config.yaml").write_text(CONFIG.format(epochs=EPOCHS), encoding="utf-8")
    bayesmlip("train config.yaml --out run --jobs 1 --quiet")
    bayesmlip("serve run -o model.pt")
