r"""Error bars against errors where a potential was not trained: pages for every release.

    python examples/benchmarks/ood_pages.py runs --ethanol data/ethanol.pt \
        --out examples/benchmarks/results/ood_pages.json --figure examples/figures/ood_pages.png

Ethanol is a served file; ensembles of four for silicon and molybdenum are trained in the folder
`runs` (examples/configs/studies; interrupted trainings are continued). Pages are ethanol at higher
temperatures and with bonds stretched and compressed, the crystals hot, with vacancies and with
surfaces, and their cold curves: the perfect crystal from three quarters to one and a half of its
length. All labels are of the data sets but those of the cold curves, for which the equation of
state of the training stands in: that of Vinet, fitted to the pressures of the elastic strains.
BAYESMLIP_DATA is the folder of the reference data. Pages that are in the file are not made again
(`--again`).
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ase import Atoms
from ase.build import bulk
from calibration_rows import serve
from cases import conditions
from evidential import CONFIGS, train
from scipy.integrate import cumulative_trapezoid
from scipy.optimize import curve_fit
from study import begin, keep

from ase_bayesmlip import BayesianCalculator
from ase_bayesmlip.card import read_card
from ase_bayesmlip.evaluation import (
    Bootstrap,
    Comparison,
    EvaluationFrame,
    origin_of,
    read_evaluation_frames,
)
from ase_bayesmlip.evaluation.detection import detect
from ase_bayesmlip.evaluation.evaluate import evaluate_set

CRYSTALS = {"si": ("Si", "diamond", 5.47), "mo": ("Mo", "bcc", 3.17)}  # Å, near the minimum of PBE
STRAINS = np.linspace(-0.25, 0.5, 31)  # of a length
SCANS = {"O-H": ("ethanol_stretch_OH", 0.97), "C-C": ("ethanol_stretch_CC", 1.51)}  # Å at rest
SLACK = 0.1  # of a bond length, which vibrations at home reach
SLOPE = 4.0  # of the bulk modulus with pressure, as most solids have it
EPISTEMIC = "energy_var_epistemic"


def kinds_of_ethanol(folder: Path) -> dict[str, list[EvaluationFrame]]:
    """Frames by kind of shift, those at home first."""
    kinds = {
        "home": read_evaluation_frames(str(folder / "ethanol_conformers_test.extxyz")),
        "600 K": read_evaluation_frames(str(folder / "ethanol_ood_600K.extxyz")),
        "1200 K": read_evaluation_frames(str(folder / "ethanol_ood_1200K.extxyz")),
    }
    scans = read_evaluation_frames(str(folder / "ethanol_ood_stretch.extxyz"))
    for bond, (name, rest) in SCANS.items():
        ratio = {k: bond_length(f.atoms, bond) / rest for k, f in enumerate(scans)}
        of_scan = [k for k, f in enumerate(scans) if f.config_type == name]
        kinds[f"{bond} stretched"] = [scans[k] for k in of_scan if ratio[k] > 1.0 + SLACK]
        kinds[f"{bond} compressed"] = [scans[k] for k in of_scan if ratio[k] < 1.0 - SLACK]
    return kinds


def bond_length(atoms: Atoms, bond: str) -> float:
    """Length of a bond of ethanol, Å."""
    return float(atoms.get_distance(*{"O-H": (2, 3), "C-C": (0, 1)}[bond]))


def kinds_of_crystal(name: str, data: Path) -> dict[str, list[EvaluationFrame]]:
    """Frames by kind of shift, those at home first."""
    files = {"home": "test_id", "hot": "ood_highT", "vacancy": "ood_vacancy"}
    files["surface"] = "ood_surface"
    return {
        kind: read_evaluation_frames(str(data / f"mlearn/{name}_{file}_A.extxyz.xz"))
        for kind, file in files.items()
    }


def numbers_of(model: Path, kinds: dict[str, list[EvaluationFrame]]) -> dict[str, Any]:
    """Errors and error bars of every kind, and how well the headline score finds it."""
    calculator, origin = BayesianCalculator(model), origin_of(read_card(model))
    comparisons = {}
    for kind, frames in kinds.items():
        results = calculator.evaluate([frame.atoms for frame in frames], 8)
        comparisons[kind] = Comparison(frames, results, **vars(origin))
    found: dict[str, Any] = {}
    for kind, comparison in comparisons.items():
        content = evaluate_set(comparison, kind, Bootstrap(200)).to_json()
        epistemic = [np.einsum("icc->i", r["forces_cov_epistemic"]) for r in comparison.results]
        found[kind] = {
            "n_frames": len(comparison.frames),
            "forces_rmse_meV_per_A": content["forces_rmse_meV_per_A"],
            "sigma_total_meV_per_A": content["forces_sigma_meV_per_A"],
            "sigma_epistemic_meV_per_A": 1e3 * float(np.mean(np.concatenate(epistemic)) / 3) ** 0.5,
            "coverage_90_forces": content["coverage_90_forces"],
        }
        if kind != "home":
            detections = detect(comparisons["home"], comparison, Bootstrap(200))
            found[kind]["auroc"] = {d.score: d.numbers["auroc_ood"].value for d in detections}
    return found


def curve(
    calculator: BayesianCalculator, x: np.ndarray, frames: list[Atoms], energies: np.ndarray
) -> dict[str, Any]:
    """Errors and error bars of energies (eV/atom) and forces (eV/Å) along a line of structures."""
    results = calculator.evaluate(frames, 8)
    n_atoms = np.array([len(atoms) for atoms in frames])
    predicted = np.array([result["energy"] for result in results]) / n_atoms
    sigma = np.sqrt([result[EPISTEMIC] for result in results]) / n_atoms
    forces = [np.einsum("icc->i", result["forces_cov_epistemic"]) / 3.0 for result in results]
    return {
        "x": x.tolist(),
        "energy": predicted.tolist(),
        "reference": energies.tolist(),
        "error": np.abs(predicted - energies).tolist(),
        "sigma_epistemic": sigma.tolist(),
        "sigma_total": (np.sqrt([r["energy_var"] for r in results]) / n_atoms).tolist(),
        "forces_sigma_epistemic": [float(values.max()) ** 0.5 for values in forces],
    }


def vinet_pressure(volume: np.ndarray, v0: float, b0: float) -> np.ndarray:
    """Pressure of Vinet's equation of state, eV/Å³ (doi:10.1103/PhysRevB.35.1945)."""
    x = np.cbrt(volume / v0)
    return 3.0 * b0 * (1.0 - x) / x**2 * np.exp(1.5 * (SLOPE - 1.0) * (1.0 - x))


def equation_of_state(frames: list[EvaluationFrame]) -> tuple[float, float]:
    """Volume of an atom at rest (Å³) and bulk modulus (eV/Å³), from strained crystals.

    Shear changes the pressure in second order, so all strains are taken, and the slope of the bulk
    modulus, which is of that order, is not fitted.
    """
    strained = [frame for frame in frames if frame.config_type == "Elastic"]
    volume = np.array([frame.atoms.get_volume() / len(frame.atoms) for frame in strained])
    pressure = np.array([-np.trace(frame.stress) / 3.0 for frame in strained])
    found, _ = curve_fit(vinet_pressure, volume, pressure, (float(np.median(volume)), 1.0))
    return float(found[0]), float(found[1])


def cold_curve(name: str, model: Path, data: Path) -> dict[str, Any]:
    """The perfect crystal stretched and compressed, its energy at rest taken from the model."""
    labelled = read_evaluation_frames(str(data / f"mlearn/{name}_train.extxyz.xz"))
    v0, b0 = equation_of_state(labelled)
    frames = [bulk(*CRYSTALS[name], cubic=True) for _ in STRAINS]
    rest = (v0 * len(frames[0])) ** (1.0 / 3.0)
    for atoms, strain in zip(frames, STRAINS, strict=True):
        atoms.set_cell(np.eye(3) * rest * (1.0 + strain), scale_atoms=True)
    fine = np.linspace(STRAINS[0], STRAINS[-1], 3001)
    volume = v0 * (1.0 + fine) ** 3
    energy = -cumulative_trapezoid(vinet_pressure(volume, v0, b0), volume, initial=0.0)
    reference = np.interp(STRAINS, fine, energy - np.interp(0.0, fine, energy))
    calculator = BayesianCalculator(model)
    at_rest = np.argmin(np.abs(STRAINS))
    found = curve(calculator, STRAINS, frames, reference)
    # Both energies from the crystal at rest on: the equation of state has no other zero.
    energy = np.array(found["energy"]) - found["energy"][at_rest]
    found |= {"energy": energy.tolist(), "error": np.abs(energy - reference).tolist()}
    return {**found, "equation_of_state": {"v0_A3": v0, "b0_eV_per_A3": b0}}


def ethanol_page(model: Path, data: Path) -> dict[str, Any]:  # noqa: ARG001
    """Kinds and scans of ethanol."""
    folder = Path(__file__).parents[2] / "data"
    calculator = BayesianCalculator(model)
    scans = read_evaluation_frames(str(folder / "ethanol_ood_stretch.extxyz"))
    curves = {}
    for bond, (name, _) in SCANS.items():
        frames = [frame for frame in scans if frame.config_type == name]
        x = np.array([bond_length(frame.atoms, bond) for frame in frames])
        labels = np.array([frame.energy / len(frame.atoms) for frame in frames])
        curves[bond] = curve(calculator, x, [frame.atoms for frame in frames], labels)
    return {"kinds": numbers_of(model, kinds_of_ethanol(folder)), "curves": curves}


def crystal_page(name: str) -> Callable[[Path, Path], dict[str, Any]]:
    """Kinds and cold curve of a crystal."""

    def page(model: Path, data: Path) -> dict[str, Any]:
        curves = {"cold": cold_curve(name, model, data)}
        return {"kinds": numbers_of(model, kinds_of_crystal(name, data)), "curves": curves}

    return page


def table(pages: dict[str, Any]) -> str:
    """A Markdown table of every kind of shift."""
    titles = ["system", "shift", "frames", "force RMSE, meV/Å", "σ total", "σ epistemic"]
    titles += ["90 % regions hold", "AUROC of the headline score"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for system, page in pages.items():
        for kind, n in page["kinds"].items():
            cells = [system, kind, str(n["n_frames"])]
            cells += [f"{n[key]:.1f}" for key in n if key.endswith("meV_per_A")]
            cells.append(f"{n['coverage_90_forces']:.0%}")
            cells.append(f"{next(iter(n['auroc'].values())):.2f}" if "auroc" in n else "–")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, make the pages, print the table, draw the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder of the runs of the crystals")
    parser.add_argument("--ethanol", type=Path, default=Path("data/ethanol.pt"), help="served file")
    systems = ["ethanol", *CRYSTALS]
    parser.add_argument("--systems", nargs="+", choices=systems, default=systems)
    parser.add_argument("--again", action="store_true", help="make pages anew that are there")
    parser.add_argument("--jobs", type=int, default=1, help="members trained at a time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="file of numbers, JSON")
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    folder, pages = begin(arguments)
    data = Path(os.environ["BAYESMLIP_DATA"])
    for system in arguments.systems:
        if system in pages and not arguments.again:
            continue
        if system == "ethanol":
            model, page = arguments.ethanol, ethanol_page
        else:
            content = yaml.safe_load((CONFIGS / f"{system}.yaml").read_text(encoding="utf-8"))
            content["posterior"] = {"kind": "ensemble", "members": 4}
            train(system, content, folder, arguments.jobs)
            model, page = folder / f"{system}.pt", crystal_page(system)
            serve(folder / system, "ensemble", model)
        pages[system] = {"date": conditions()["date"], "model": model.name, **page(model, data)}
        keep(arguments.out, pages)
    print(table(pages))
    if arguments.figure:
        from plot_ood_pages import draw

        draw(pages, arguments.figure)


if __name__ == "__main__":
    main()
