"""Make the small GFN2-xTB data sets in ``data/``.

Two systems are labelled: ethanol, a flexible molecule, and dry ice, a periodic crystal with
stress.  Every file that already exists is left alone unless ``--force`` is given, so that an
interrupted run continues at the first missing file.

Examples
--------
python examples/make_data.py --output data --seed 2026
python examples/make_data.py --check
"""

import argparse
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import CalculationFailed
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.geometry import get_dihedrals_derivatives
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.optimize import BFGS
from tblite.ase import TBLite
from tqdm import tqdm

LABEL_METHOD = "GFN2-xTB"
# Periodic GFN2-xTB is about ten times slower than GFN1-xTB, so the crystal is sampled with the
# faster method.  Its labels are GFN2-xTB all the same.
CRYSTAL_SAMPLING_METHOD = "GFN1-xTB"
# The default accuracy of 1 leaves errors of some 1e-4 eV/Å in periodic forces.
ACCURACY = 0.01

FRICTION_PER_FS = 0.02
METHYL_CARBON, MIDDLE_CARBON, OXYGEN, HYDROXYL_HYDROGEN = BACKBONE = 0, 1, 2, 3
# C-C-O-H dihedral angles in degrees from which trajectories start, in turn.
START_DIHEDRALS = (180.0, 60.0, 180.0, -60.0)
WALL_STIFFNESS = 10.0  # eV/rad²: 300 K gets 3 degrees past a wall
LATTICE_CONSTANT = 5.5  # Å, near the minimum of both methods
CARBON_OXYGEN_BOND = 1.143  # Å
ATOM_MULTIPLICITIES = {"H": 2, "C": 3, "O": 3}


@dataclass(frozen=True)
class TrajectoryPlan:
    """How the frames of one file are drawn.

    Attributes
    ----------
    trajectories : int
        Number of independent trajectories.
    frames : int
        Frames saved from each trajectory.
    stride_fs : float
        Time between saved frames in fs.
    temperature_range : tuple of float
        Lowest and highest temperature in K; each trajectory draws one.
    step_fs : float
        Time step in fs.
    equilibration_fs : float
        Time in fs before the first stride begins.
    """

    trajectories: int
    frames: int
    stride_fs: float
    temperature_range: tuple[float, float]
    step_fs: float
    equilibration_fs: float


def ethanol_plan(
    trajectories: int, frames: int, stride_fs: float, temperature: float = 300.0
) -> TrajectoryPlan:
    """Return a plan at one temperature (K), with a step of 0.5 fs and 2 ps to equilibrate."""
    return TrajectoryPlan(trajectories, frames, stride_fs, (temperature, temperature), 0.5, 2000.0)


def conformer_plan(trajectories: int, frames: int, stride_fs: float) -> TrajectoryPlan:
    """Return a plan for many short trajectories at 300 K, with 0.5 ps to equilibrate."""
    return TrajectoryPlan(trajectories, frames, stride_fs, (300.0, 300.0), 0.5, 500.0)


def crystal_plan(trajectories: int, frames: int) -> TrajectoryPlan:
    """Return a plan between 100 and 200 K, with a step of 1 fs and 0.3 ps to equilibrate."""
    return TrajectoryPlan(trajectories, frames, 40.0, (100.0, 200.0), 1.0, 300.0)


# Calibration and test frames lie further apart: conformal guarantees rest on exchangeability.
ETHANOL_PLANS = {
    "ethanol_train": ethanol_plan(4, 100, 100.0),
    "ethanol_valid": ethanol_plan(2, 25, 100.0),
    "ethanol_calib": ethanol_plan(6, 50, 400.0),
    "ethanol_test": ethanol_plan(4, 50, 400.0),
    "ethanol_ood_600K": ethanol_plan(4, 25, 100.0, temperature=600.0),
    "ethanol_ood_1200K": ethanol_plan(4, 25, 100.0, temperature=1200.0),
}
# Start dihedral and the range of its size, in degrees, in which a trajectory is kept; in turn.
TRANS, GAUCHE = (120.0, 180.0), (0.0, 120.0)
CONFORMER_STARTS = (
    *((180.0, TRANS), (60.0, GAUCHE), (180.0, TRANS), (-60.0, GAUCHE)) * 2,
    *((180.0, TRANS), (120.0, (105.0, 135.0))),
)
CONFORMER_PLANS = {
    "ethanol_conformers_train": conformer_plan(20, 20, 50.0),
    "ethanol_conformers_valid": conformer_plan(10, 6, 50.0),
    "ethanol_conformers_calib": conformer_plan(30, 10, 100.0),
    "ethanol_conformers_test": conformer_plan(20, 10, 100.0),
}
CRYSTAL_PLANS = {
    "co2_train": crystal_plan(16, 5),
    "co2_valid": crystal_plan(5, 3),
    "co2_test": crystal_plan(6, 5),
}
SCAN_POINTS = 40
FRAME_COUNTS = {
    "isolated_atoms": len(ATOM_MULTIPLICITIES),
    "ethanol_ood_stretch": 2 * SCAN_POINTS,
    **{
        name: plan.trajectories * plan.frames
        for name, plan in (ETHANOL_PLANS | CONFORMER_PLANS | CRYSTAL_PLANS).items()
    },
}


def make_calculator(method: str = LABEL_METHOD, multiplicity: int | None = None) -> TBLite:
    """Return a quiet, tightly converged xTB calculator.

    Parameters
    ----------
    method : str
        ``"GFN2-xTB"`` or ``"GFN1-xTB"``.
    multiplicity : int, optional
        Spin multiplicity; the lowest possible one without it.

    Returns
    -------
    TBLite
        The calculator.
    """
    return TBLite(method=method, accuracy=ACCURACY, multiplicity=multiplicity, verbosity=0)


def random_generator(seed: int, name: str, trajectory: int) -> np.random.Generator:
    """Return a generator that depends on the file and trajectory, not on the order of work.

    Parameters
    ----------
    seed : int
        The seed given on the command line.
    name : str
        File name without its ending.
    trajectory : int
        Index of the trajectory in the file.

    Returns
    -------
    numpy.random.Generator
        An independent stream of random numbers.
    """
    return np.random.default_rng([seed, zlib.crc32(name.encode()), trajectory])


def labelled_copy(atoms: Atoms, config_type: str, **info: float) -> Atoms:
    """Copy a structure and store its energy, forces and (if periodic) stress as reference keys.

    Parameters
    ----------
    atoms : ase.Atoms
        Structure with a calculator.
    config_type : str
        Kind of structure.
    **info : float
        Further entries for ``Atoms.info``.

    Returns
    -------
    ase.Atoms
        Structure without calculator and momenta; ``REF_energy`` in eV, ``REF_forces`` in eV/Å,
        ``REF_stress`` in eV/Å^3 (positive under tension, 9 numbers row by row).
    """
    frame = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    frame.info.update(config_type=config_type, **info)
    frame.info["REF_energy"] = float(atoms.get_potential_energy(apply_constraint=False))
    frame.arrays["REF_forces"] = atoms.get_forces(apply_constraint=False)
    if atoms.pbc.all():
        frame.info["REF_stress"] = atoms.get_stress(voigt=False).flatten()
    return frame


def sample(
    atoms: Atoms, plan: TrajectoryPlan, temperature: float, generator: np.random.Generator
) -> Iterator[Atoms]:
    """Run Langevin dynamics and yield the moving structure at every saved frame.

    Parameters
    ----------
    atoms : ase.Atoms
        Start structure with a calculator; it is moved in place.
    plan : TrajectoryPlan
        Step, stride, number of frames.
    temperature : float
        Temperature in K.
    generator : numpy.random.Generator
        Source of velocities and noise.

    Yields
    ------
    ase.Atoms
        The same object each time.
    """
    # Maxwell-Boltzmann momenta; the helper function for them differs between ASE releases.
    widths = np.sqrt(atoms.get_masses() * (units.kB * temperature))
    atoms.set_momenta(generator.standard_normal((len(atoms), 3)) * widths[:, None])
    dynamics = Langevin(
        atoms,
        timestep=plan.step_fs * units.fs,
        temperature_K=temperature,
        friction=FRICTION_PER_FS / units.fs,
        fixcm=False,
        rng=generator,
    )
    dynamics.run(round(plan.equilibration_fs / plan.step_fs))
    for _ in range(plan.frames):
        dynamics.run(round(plan.stride_fs / plan.step_fs))
        yield atoms


def relaxed_ethanol(dihedral: float = 180.0) -> Atoms:
    """Return ethanol relaxed from a given C-C-O-H dihedral angle.

    Parameters
    ----------
    dihedral : float
        Start angle in degrees: 180 leads to trans, 60 and -60 lead to the gauche forms.

    Returns
    -------
    ase.Atoms
        Molecule with its calculator.
    """
    atoms = molecule("CH3CH2OH")
    atoms.set_dihedral(*BACKBONE, dihedral, indices=[HYDROXYL_HYDROGEN])
    atoms.calc = make_calculator()
    BFGS(atoms, logfile=None).run(fmax=0.001, steps=500)
    return atoms


def ethanol_frames(name: str, seed: int) -> Iterator[Atoms]:
    """Yield labelled ethanol frames from several independent trajectories.

    Parameters
    ----------
    name : str
        Key in ``ETHANOL_PLANS``.
    seed : int
        Seed given on the command line.

    Yields
    ------
    ase.Atoms
        Labelled frame.
    """
    plan = ETHANOL_PLANS[name]
    for trajectory in range(plan.trajectories):
        generator = random_generator(seed, name, trajectory)
        temperature = plan.temperature_range[0]
        atoms = relaxed_ethanol(START_DIHEDRALS[trajectory % len(START_DIHEDRALS)])
        for snapshot in sample(atoms, plan, temperature, generator):
            config_type = f"ethanol_{temperature:.0f}K"
            yield labelled_copy(snapshot, config_type, trajectory=trajectory)


def signed_dihedral(atoms: Atoms) -> float:
    """Return the C-C-O-H dihedral of ethanol between -180 and 180 degrees."""
    return (atoms.get_dihedral(*BACKBONE) + 180.0) % 360.0 - 180.0


def conformer(atoms: Atoms) -> str:
    """Name the conformer of ethanol; within 15 degrees of the barrier it is none of the three."""
    dihedral = signed_dihedral(atoms)
    if abs(dihedral) > 135.0:
        return "trans"
    if abs(dihedral) > 105.0:
        return "transition"
    return "gauche_plus" if dihedral > 0.0 else "gauche_minus"


class DihedralWalls:
    """ASE constraint that pushes the size of the C-C-O-H dihedral back into a range.

    Within the range nothing acts, so that the dynamics there is that of the free molecule:
    E = k/2 (excess over the nearer end)². Labels are taken with ``apply_constraint=False``.

    Parameters
    ----------
    low, high : float
        Ends of the range in degrees, within 0 and 180 (where the size has no wall to hit).
    """

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def _excess(self, atoms: Atoms) -> float:
        """Return by how many radians the size lies above (+) or below (-) the range."""
        size = abs(signed_dihedral(atoms))
        return float(np.radians(size - np.clip(size, self.low, self.high)))

    def adjust_potential_energy(self, atoms: Atoms) -> float:
        """Return the energy of the wall in eV."""
        return 0.5 * WALL_STIFFNESS * self._excess(atoms) ** 2

    def adjust_forces(self, atoms: Atoms, forces: np.ndarray) -> None:
        """Add the force of the wall in eV/Å."""
        bonds = np.diff(atoms.positions[list(BACKBONE)], axis=0)[:, None, :]
        gradient = np.radians(get_dihedrals_derivatives(*bonds)[0])
        sign = np.sign(signed_dihedral(atoms))
        forces[list(BACKBONE)] -= WALL_STIFFNESS * self._excess(atoms) * sign * gradient

    def adjust_positions(self, atoms: Atoms, new: np.ndarray) -> None:
        """Leave positions alone."""

    def get_removed_dof(self, atoms: Atoms) -> int:  # noqa: ARG002
        """Return 0: walls take no degree of freedom away."""
        return 0


def conformer_frames(name: str, seed: int) -> Iterator[Atoms]:
    """Yield labelled ethanol frames from trajectories that are kept in one conformer each.

    Parameters
    ----------
    name : str
        Key in ``CONFORMER_PLANS``.
    seed : int
        Seed given on the command line.

    Yields
    ------
    ase.Atoms
        Labelled frame; its ``config_type`` is the conformer that it is in.
    """
    plan = CONFORMER_PLANS[name]
    for trajectory in range(plan.trajectories):
        dihedral, kept_in = CONFORMER_STARTS[trajectory % len(CONFORMER_STARTS)]
        atoms = relaxed_ethanol(dihedral)
        atoms.set_dihedral(*BACKBONE, dihedral, indices=[HYDROXYL_HYDROGEN])
        atoms.set_constraint(DihedralWalls(*kept_in))
        generator = random_generator(seed, name, trajectory)
        for snapshot in sample(atoms, plan, plan.temperature_range[0], generator):
            yield labelled_copy(snapshot, f"ethanol_{conformer(snapshot)}", trajectory=trajectory)


def bond_scan(
    fixed: int, moved: int, group: list[int], lengths: np.ndarray, config_type: str
) -> Iterator[Atoms]:
    """Stretch one bond of relaxed trans ethanol with both fragments rigid.

    Parameters
    ----------
    fixed, moved : int
        The two bonded atoms.
    group : list of int
        Atoms that move together with ``moved``.
    lengths : numpy.ndarray
        Bond lengths in Å.
    config_type : str
        Name of the scan.

    Yields
    ------
    ase.Atoms
        Labelled frame; points whose self-consistent field fails are reported and left out.
    """
    start = relaxed_ethanol()
    bond = start.positions[moved] - start.positions[fixed]
    start_length = np.linalg.norm(bond)
    for length in lengths:
        atoms = start.copy()
        atoms.positions[group] += bond * (length / start_length - 1.0)
        atoms.calc = make_calculator()
        try:
            yield labelled_copy(atoms, config_type, bond_length_A=round(float(length), 6))
        except CalculationFailed:
            tqdm.write(f"{config_type}: no convergence at {length:.3f} Å, point left out")


def stretch_frames() -> Iterator[Atoms]:
    """Yield the O-H scan (0.7 to 2.0 Å) and then the C-C scan (1.2 to 2.6 Å) of ethanol."""
    atoms = molecule("CH3CH2OH")
    distances = atoms.get_all_distances()
    methyl = [METHYL_CARBON]
    methyl += [i for i in np.flatnonzero(atoms.numbers == 1) if distances[i, METHYL_CARBON] < 1.3]
    yield from bond_scan(
        OXYGEN,
        HYDROXYL_HYDROGEN,
        [HYDROXYL_HYDROGEN],
        np.linspace(0.7, 2.0, SCAN_POINTS),
        "ethanol_stretch_OH",
    )
    yield from bond_scan(
        MIDDLE_CARBON,
        METHYL_CARBON,
        methyl,
        np.linspace(1.2, 2.6, SCAN_POINTS),
        "ethanol_stretch_CC",
    )


def dry_ice(strain: np.ndarray) -> Atoms:
    """Return dry ice (space group Pa-3) in a strained cell with unstrained molecules.

    Parameters
    ----------
    strain : numpy.ndarray
        Symmetric strain, shape (3, 3), without unit.

    Returns
    -------
    ase.Atoms
        Four molecules in the order C, O, O.
    """
    centres = np.array([(0, 0, 0), (0.5, 0.5, 0), (0, 0.5, 0.5), (0.5, 0, 0.5)])
    axes = np.array([(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)]) / np.sqrt(3.0)
    cell = LATTICE_CONSTANT * (np.eye(3) + strain)
    # Moving whole molecules keeps the stiff bonds from taking up the strain.
    offsets = CARBON_OXYGEN_BOND * np.array([0.0, 1.0, -1.0])
    positions = (centres @ cell)[:, None, :] + offsets[None, :, None] * axes[:, None, :]
    return Atoms("COO" * 4, positions=positions.reshape(-1, 3), cell=cell, pbc=True)


def random_strain(generator: np.random.Generator) -> np.ndarray:
    """Draw a symmetric strain: diagonal within 3.5 %, off-diagonal within 2 %.

    Parameters
    ----------
    generator : numpy.random.Generator
        Source of random numbers.

    Returns
    -------
    numpy.ndarray
        Strain, shape (3, 3), without unit.
    """
    strain = np.diag(generator.uniform(-0.035, 0.035, size=3))
    for row, column in ((0, 1), (0, 2), (1, 2)):
        strain[row, column] = strain[column, row] = generator.uniform(-0.02, 0.02)
    return strain


def crystal_frames(name: str, seed: int) -> Iterator[Atoms]:
    """Yield labelled dry ice frames; every trajectory has its own strain and temperature.

    Parameters
    ----------
    name : str
        Key in ``CRYSTAL_PLANS``.
    seed : int
        Seed given on the command line.

    Yields
    ------
    ase.Atoms
        Labelled frame.
    """
    plan = CRYSTAL_PLANS[name]
    label_calculator = make_calculator()
    for trajectory in range(plan.trajectories):
        generator = random_generator(seed, name, trajectory)
        atoms = dry_ice(random_strain(generator))
        temperature = round(float(generator.uniform(*plan.temperature_range)), 1)
        atoms.calc = make_calculator(CRYSTAL_SAMPLING_METHOD)
        for snapshot in sample(atoms, plan, temperature, generator):
            frame = snapshot.copy()
            frame.calc = label_calculator
            yield labelled_copy(
                frame, "co2_strained", trajectory=trajectory, temperature_K=temperature
            )


def isolated_atom_frames() -> Iterator[Atoms]:
    """Yield single atoms in their ground-state multiplicity, for atomic reference energies."""
    for symbol, multiplicity in ATOM_MULTIPLICITIES.items():
        atoms = Atoms(symbol, positions=[(0.0, 0.0, 0.0)])
        atoms.calc = make_calculator(multiplicity=multiplicity)
        yield labelled_copy(atoms, "IsolatedAtom", multiplicity=multiplicity)


def frames_of(name: str, seed: int) -> Iterator[Atoms]:
    """Return the frames of the named file as an iterator.

    Parameters
    ----------
    name : str
        Key in ``FRAME_COUNTS``.
    seed : int
        Seed given on the command line.

    Returns
    -------
    iterator of ase.Atoms
        Labelled frames.
    """
    if name in ETHANOL_PLANS:
        return ethanol_frames(name, seed)
    if name in CONFORMER_PLANS:
        return conformer_frames(name, seed)
    if name in CRYSTAL_PLANS:
        return crystal_frames(name, seed)
    return stretch_frames() if name == "ethanol_ood_stretch" else isolated_atom_frames()


def make_file(name: str, directory: Path, seed: int, force: bool) -> None:
    """Make one file unless it is there already.

    Parameters
    ----------
    name : str
        Key in ``FRAME_COUNTS``.
    directory : pathlib.Path
        Where the file goes.
    seed : int
        Seed given on the command line.
    force : bool
        Make the file even if it exists.
    """
    path = directory / f"{name}.extxyz"
    if path.exists() and not force:
        print(f"{name}: exists, skipped")
        return
    frames = list(tqdm(frames_of(name, seed), total=FRAME_COUNTS[name], desc=name))
    # The final name appears only once the file is whole.
    partial = path.with_suffix(".partial")
    write(partial, frames, format="extxyz")
    partial.replace(path)


def write_checksums(directory: Path) -> None:
    """Write ``SHA256SUMS`` for all data files in a directory.

    Parameters
    ----------
    directory : pathlib.Path
        The data directory.
    """
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(directory.glob("*.*"))
        if path.suffix in (".extxyz", ".pt")
    ]
    (directory / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def lag_one_autocorrelation(frames: list[Atoms]) -> float:
    """Correlate the energies of consecutive frames of the same trajectory.

    Parameters
    ----------
    frames : list of ase.Atoms
        Frames of one file at one temperature.

    Returns
    -------
    float
        Autocorrelation about the mean of the whole file; 0 for independent frames.
    """
    energies = np.array([frame.info["REF_energy"] for frame in frames])
    trajectories = np.array([frame.info["trajectory"] for frame in frames])
    deviations = energies - energies.mean()
    together = trajectories[1:] == trajectories[:-1]
    return float(np.mean((deviations[1:] * deviations[:-1])[together]) / np.mean(deviations**2))


def gauche_fraction(frames: list[Atoms]) -> float:
    """Return the fraction of ethanol frames whose C-C-O-H dihedral is within 120° of cis.

    Parameters
    ----------
    frames : list of ase.Atoms
        Ethanol frames.

    Returns
    -------
    float
        Fraction of gauche frames.
    """
    return float(np.mean([abs(signed_dihedral(frame)) < 120.0 for frame in frames]))


def broken_fraction(frames: list[Atoms]) -> float:
    """Return the fraction of ethanol frames with a bond over 1.5 times its usual length.

    Parameters
    ----------
    frames : list of ase.Atoms
        Ethanol frames.

    Returns
    -------
    float
        Fraction of frames with a broken bond.
    """
    usual = molecule("CH3CH2OH").get_all_distances()
    hydrogen = molecule("CH3CH2OH").numbers == 1
    limits = np.where(hydrogen[:, None] | hydrogen[None, :], 1.3, 1.7)
    bonded = (usual > 0.0) & (usual < limits)
    return float(
        np.mean([np.any(f.get_all_distances()[bonded] > 1.5 * usual[bonded]) for f in frames])
    )


def print_summary(directory: Path) -> None:
    """Print a Markdown table that says how independent and how varied the frames are.

    Parameters
    ----------
    directory : pathlib.Path
        The data directory.
    """
    print("| file | frames | lag-1 energy autocorrelation | gauche | broken bond |")
    print("|---|---|---|---|---|")
    for name in ETHANOL_PLANS | CONFORMER_PLANS:
        path = directory / f"{name}.extxyz"
        if path.exists():
            frames = read(path, ":")
            columns = (lag_one_autocorrelation, gauche_fraction, broken_fraction)
            values = " | ".join(f"{column(frames):.2f}" for column in columns)
            print(f"| {name} | {len(frames)} | {values} |")


def wall_error(seed: int) -> tuple[float, float]:
    """Return the largest force of `DihedralWalls` and its largest error, eV/Å."""
    atoms = molecule("CH3CH2OH")
    atoms.positions += random_generator(seed, "wall", 0).normal(scale=0.03, size=(9, 3))
    atoms.set_dihedral(*BACKBONE, -100.0, indices=[HYDROXYL_HYDROGEN])
    walls, step = DihedralWalls(*TRANS), 1e-4
    forces, numerical = np.zeros((9, 3)), np.zeros((9, 3))
    walls.adjust_forces(atoms, forces)
    for place in np.ndindex(9, 3):
        for sign in (1.0, -1.0):
            moved = atoms.copy()
            moved.positions[place] += sign * step
            numerical[place] -= sign * walls.adjust_potential_energy(moved) / (2.0 * step)
    return float(np.abs(forces).max()), float(np.abs(forces - numerical).max())


def check_derivatives(seed: int) -> None:
    """Print how far analytic derivatives are from finite differences.

    Those of the walls for ethanol, and forces and stress of strained dry ice.

    Parameters
    ----------
    seed : int
        Seed of the strain and of the displacements.
    """
    largest, error = wall_error(seed)
    print(f"walls: largest {largest:.3e}, error {error:.1e} eV/Å")
    generator = random_generator(seed, "check", 0)
    atoms = dry_ice(random_strain(generator))
    atoms.positions += generator.normal(scale=0.03, size=atoms.positions.shape)
    atoms.calc = make_calculator()
    forces, stress = atoms.get_forces(), atoms.get_stress()
    # The finite difference step is a compromise between convergence noise and curvature.
    numerical_forces = calculate_numerical_forces(atoms, eps=5e-4, force_consistent=False)
    numerical_stress = calculate_numerical_stress(atoms, eps=2e-4, force_consistent=False)
    for label, unit, analytic, numerical in (
        ("forces", "eV/Å", forces, numerical_forces),
        ("stress", "eV/Å^3", stress, numerical_stress),
    ):
        error = np.abs(analytic - numerical).max()
        print(f"{label}: largest {np.abs(analytic).max():.3e}, error {error:.1e} {unit}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line.

    Returns
    -------
    argparse.Namespace
        The options.
    """
    parser = argparse.ArgumentParser(description="Make the GFN2-xTB example data.")
    parser.add_argument("--output", type=Path, default=Path("data"), help="where the files go")
    parser.add_argument("--seed", type=int, default=2026, help="seed of all random numbers")
    parser.add_argument("--force", action="store_true", help="make files anew that exist")
    parser.add_argument(
        "--only", nargs="+", choices=list(FRAME_COUNTS), metavar="NAME", help="make these files"
    )
    parser.add_argument(
        "--check", action="store_true", help="compare with finite differences and stop"
    )
    return parser.parse_args()


def main() -> None:
    """Make the missing files, their checksums and a summary."""
    options = parse_arguments()
    if options.check:
        check_derivatives(options.seed)
        return
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.only or FRAME_COUNTS:
        make_file(name, options.output, options.seed, options.force)
    write_checksums(options.output)
    print_summary(options.output)


if __name__ == "__main__":
    main()
