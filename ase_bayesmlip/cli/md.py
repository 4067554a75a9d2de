"""``bayesmlip md``: a monitored simulation with its files and its figure."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ase import Atoms


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser("md", help="molecular dynamics that knows when to doubt itself")
    parser.add_argument("model", type=Path, help="served file")
    parser.add_argument("start", help="structure in any format ASE reads; of several, the last")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run there")
    _add_dynamics(parser)
    _add_monitor(parser)
    parser.add_argument("--interval", type=int, default=1, help="observe every so many steps")
    parser.add_argument(
        "--trajectory-every",
        type=int,
        default=10,
        dest="trajectory_interval",
        metavar="STEPS",
        help="write a frame to the trajectory every so many steps",
    )
    parser.add_argument(
        "--action",
        choices=["continue", "stop", "rewind"],
        default="continue",
        help="what follows an uncertain frame once it is written or recalculated",
    )
    _add_reference(parser)
    parser.add_argument("--seed", type=int, default=0, help="of velocities, thermostat and rewinds")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--dtype", choices=["float32", "float64"], help="precision (default: of the training)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def _add_dynamics(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--temperature-K",
        type=_temperatures,
        default="300",
        metavar="K",
        help="of the thermostat; 300:600 is a ramp from the first step to the last",
    )
    parser.add_argument(
        "--steps", type=int, default=1000, dest="n_steps", metavar="N", help="steps to make"
    )
    parser.add_argument("--time-step-fs", type=float, default=0.5, help="length of a step")
    parser.add_argument(
        "--integrator",
        default="langevin",
        help="langevin, velocity_verlet, nose_hoover, bussi, langevin_baoab, or at constant "
        "pressure npt (the volume changes) or npt_full (all of the cell)",
    )
    parser.add_argument(
        "--friction-per-fs",
        type=float,
        default=0.01,
        help="friction, or inverse time constant, of the thermostat",
    )
    parser.add_argument("--pressure-GPa", type=float, default=0.0, help="of npt and npt_full")


def _add_monitor(parser: argparse.ArgumentParser) -> None:
    trigger = parser.add_mutually_exclusive_group()
    trigger.add_argument(
        "--false-alarm-rate",
        type=float,
        help="share of frames like the calibration frames that may be flagged (default: 0.01, or "
        "the smallest that so few frames can promise)",
    )
    trigger.add_argument(
        "--threshold", type=float, help="in the unit of the score (default: from the rate)"
    )
    parser.add_argument(
        "--score",
        help="forces_epistemic_max, forces_epistemic_mean, feature_distance_max, "
        "feature_distance_mean, atomic_energy_var_max or energy_var (default: the best one)",
    )
    parser.add_argument("--upper-limit", type=float, help="score of an unphysical frame: stop")
    parser.add_argument(
        "--max-temperature-K",
        type=_temperature_limit,
        default="auto",
        help="of a frame that is not unphysical; 'auto' (10 times what is asked for, 10,000 K or "
        "more) or 'none'",
    )
    parser.add_argument(
        "--lone-atoms",
        choices=["unphysical", "ignore"],
        default="unphysical",
        help="what an atom without neighbours is, where training had none such",
    )
    parser.add_argument("--patience", type=int, default=1, help="flags in a row before acting")
    parser.add_argument("--cooldown", type=int, default=0, help="quiet frames after acting")
    parser.add_argument("--budget", type=int, help="most events acted upon")
    parser.add_argument(
        "--frames-between-false-alarms",
        type=float,
        help="warn when scores leave the calibration; how often that may be wrong (e.g. 1e5)",
    )


def _add_reference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reference",
        help="recalculates flagged frames: gfn2, gfn1, emt, lj, or package.module:factory, a "
        "function without arguments that returns an ASE calculator",
    )
    parser.add_argument(
        "--label-spacing",
        type=_spacing,
        metavar="FRAMES",
        help="observed frames between two labels (default: the measured correlation time of the "
        "scores, 'correlation', or 1 with --continue-on-reference)",
    )
    parser.add_argument("--max-labels", type=int, default=100, help="most calls of the reference")
    parser.add_argument(
        "--label-timeout-s", type=float, help="give up a label after so many seconds"
    )
    parser.add_argument(
        "--force-limit",
        type=float,
        default=argparse.SUPPRESS,
        help="largest reference force that is believed, eV/Å, inf for any (default: from the "
        "training labels of the file)",
    )
    parser.add_argument(
        "--energy-limit",
        type=float,
        nargs=2,
        default=argparse.SUPPRESS,
        metavar=("LOW", "HIGH"),
        help="the same for energies, eV per atom without those of isolated atoms (default: from "
        "the training labels of the file)",
    )
    parser.add_argument(
        "--continue-on-reference", action="store_true", help="integrate on its forces, too"
    )


def _temperatures(text: str) -> tuple[float, float | None]:
    first, ramp, last = text.partition(":")
    try:
        return float(first), float(last) if ramp else None
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no temperature such as 300 and no ramp such as 300:600"
        ) from None


def _spacing(text: str) -> str | int:
    return int(text) if text.isdigit() else text


def _temperature_limit(text: str) -> float | str | None:
    match text.lower():
        case "none":
            return None
        case "auto":
            return "auto"
    return float(text)


def run(arguments: argparse.Namespace) -> None:
    """Simulate, then summarise and draw."""
    from ase_bayesmlip.calculator import BayesianCalculator
    from ase_bayesmlip.cli.train import announced
    from ase_bayesmlip.md.run_folder import LOG
    from ase_bayesmlip.md.simulation import SimulationConfig, run_simulation
    from ase_bayesmlip.serving.runtime import load_model

    names = {field.name for field in dataclasses.fields(SimulationConfig)}
    given = {name: value for name, value in vars(arguments).items() if name in names}
    given["temperature_K"], given["final_temperature_K"] = arguments.temperature_K
    config = SimulationConfig(**given)
    start = _start(Path(arguments.start))
    if arguments.continue_on_reference and not arguments.reference:
        raise ValueError("--continue-on-reference needs --reference")
    if arguments.reference and ":" in arguments.reference and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last, so that a file of the user's hides nothing
    model = load_model(arguments.model, arguments.device, arguments.dtype)
    if model.card.unfinished:
        missing = "; ".join(model.card.unfinished)
        print(f"served before the end of its training: {missing}", file=sys.stderr)
    by_folds = bool(model.card.calibration.get("folds"))  # whose score asks each member
    with announced():
        summary = run_simulation(
            start,
            BayesianCalculator(model, return_members=by_folds),
            config,
            arguments.out,
            reference=arguments.reference,
            progress=not arguments.quiet,
            overwrite=arguments.overwrite,
        )
    figure = _draw(arguments.out / LOG, summary.score_name)
    print(f"{summary}\nfigure: {figure}")


def _start(path: Path) -> Atoms:
    """The last structure of a file, read as strictly as those with labels."""
    from ase_bayesmlip.structures.labelled import check_names
    from ase_bayesmlip.structures.reading import DataError, read_structures

    if not path.is_file():
        raise FileNotFoundError(f"no structure file at {path}")
    found = read_structures(path, slice(-1, None))
    if not found:
        raise DataError(f"{path} holds no structure")
    atoms = found[0][1]
    check_names(atoms, str(path))
    return atoms


def _draw(log: Path, score_name: str) -> Path:
    from ase_bayesmlip.report import monitored_md_figure, read_log
    from ase_bayesmlip.scores import SCORE_UNITS

    unit = SCORE_UNITS.get(score_name, "")
    return monitored_md_figure(read_log(log), log.parent / "figure.png", unit=unit)
