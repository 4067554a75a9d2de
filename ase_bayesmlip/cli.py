"""The command ``bayesmlip``: train, serve, compile, calibrate, inspect, evaluate, md, demo."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ase.calculators.calculator import PropertyNotImplementedError
from ase.io.formats import UnknownFileTypeError

from ase_bayesmlip._version import __version__
from ase_bayesmlip.calibrate_command import add_arguments as add_calibrate_arguments
from ase_bayesmlip.calibrate_command import run_calibrate
from ase_bayesmlip.evaluate_command import add_arguments as add_evaluate_arguments
from ase_bayesmlip.evaluate_command import run_evaluate

USER_ERRORS = (ValueError, ArithmeticError, OSError, ImportError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; errors that a user can repair are printed without a traceback."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except (*USER_ERRORS, UnknownFileTypeError, PropertyNotImplementedError) as error:
        print(f"bayesmlip {parsed.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"bayesmlip {parsed.command}: interrupted; what was written is kept", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bayesmlip",
        description="Bayesian machine-learned potentials in ASE molecular dynamics.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_serve(commands)
    _add_compile(commands)
    _add_calibrate(commands)
    _add_inspect(commands)
    _add_evaluate(commands)
    _add_md(commands)
    _add_demo(commands)
    return parser


def _add_train(commands: Any) -> None:
    parser = commands.add_parser("train", help="train the potential(s) of a configuration")
    parser.add_argument("config", type=Path, help="YAML configuration")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--jobs", type=int, help="members at a time (default: one per core)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> None:
    from ase_bayesmlip.allocator import keep_freed_memory
    from ase_bayesmlip.config import load_config
    from ase_bayesmlip.posteriors import POSTERIORS
    from ase_bayesmlip.posteriors.members import available_cores
    from ase_bayesmlip.serving.runtime import find_device
    from ase_bayesmlip.training.distributed import rank, world_size

    config = load_config(arguments.config)
    find_device(arguments.device)
    keep_freed_memory()
    one_per_core = arguments.device == "cpu" and world_size() == 1
    POSTERIORS[config.posterior.kind].fit(
        config,
        arguments.out,
        resume=arguments.resume,
        device=arguments.device,
        jobs=arguments.jobs or (available_cores() if one_per_core else 1),
        progress=not arguments.quiet,
    )
    if rank() == 0:
        print(f"trained; next: bayesmlip serve {arguments.out} -o model.pt")


def _add_serve(commands: Any) -> None:
    parser = commands.add_parser("serve", help="write the posterior of a run as one file")
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the file, model.pt")
    parser.add_argument(
        "--samples", type=int, help="draws (default: posterior.samples; of an ensemble, all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw")
    parser.add_argument(
        "--backend",
        choices=["torchscript", "aoti"],
        default="torchscript",
        help="aoti: also compile the posterior for this machine (see `bayesmlip compile`)",
    )
    parser.add_argument(
        "--calibration",
        nargs="+",
        help="frames that fix the monitor's thresholds (default: data.calibration of the run)",
    )
    parser.set_defaults(run=_serve)


def _serve(arguments: argparse.Namespace) -> None:
    import torch
    import yaml

    from ase_bayesmlip.datasets import read_frames, sha256
    from ase_bayesmlip.posteriors import POSTERIORS
    from ase_bayesmlip.recalibration import score_frames
    from ase_bayesmlip.serving.export import export_members

    path = arguments.folder / "config.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{arguments.folder} is no run written by `bayesmlip train`")
    kind = yaml.safe_load(path.read_text(encoding="utf-8"))["posterior"]["kind"]
    posterior = POSTERIORS[kind]
    state = posterior.load(arguments.folder)
    generator = torch.Generator().manual_seed(arguments.seed)
    members = posterior.draw(state, arguments.samples, generator)
    data = state.config.data
    paths = arguments.calibration or data.calibration
    # Read before anything is written: a mistake here must not leave a file without thresholds.
    frames = read_frames(paths, data.keys, data.units) if paths else []
    if frames and sha256(frames) in (state.record["train_sha256"], state.record["valid_sha256"]):
        raise ValueError(f"{paths} are the training or validation frames; give unseen ones")
    card = export_members(members, state.config, state.record, arguments.output, arguments.seed)
    if frames and card.has_epistemic:
        score_frames(arguments.output, frames)
    elif not frames:
        print("no calibration frames: a monitor will need a threshold in eV/Å", file=sys.stderr)
    print(f"wrote {arguments.output}; look at it with: bayesmlip inspect {arguments.output}")
    if arguments.backend == "aoti":
        _compile_file(arguments.output, "cpu", None)


def _add_compile(commands: Any) -> None:
    parser = commands.add_parser(
        "compile", help="add a program compiled for this machine to a served file"
    )
    parser.add_argument("model", type=Path, help="served file; rewritten in place")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", choices=["float32", "float64"])
    parser.set_defaults(run=_compile)


def _compile(arguments: argparse.Namespace) -> None:
    _compile_file(arguments.model, arguments.device, arguments.dtype)


def _compile_file(path: Path, device: str, dtype: str | None) -> None:
    from ase_bayesmlip.serving.compiler import compile_served

    print(f"compiling {path} for this machine (one to two minutes) ...", file=sys.stderr)
    try:
        card = compile_served(path, device, dtype)
    except RuntimeError as error:
        raise ValueError(f"{error}; {path} serves with TorchScript as before") from error
    record = card.compiled[-1]
    print(
        f"compiled {path} for {record['device']} in {record['dtype']} in {record['seconds']:.0f} s;"
        f" forces agree with the reference to {record['deviation']['forces']:.0e}, relative"
    )


def _add_calibrate(commands: Any) -> None:
    parser = commands.add_parser(
        "calibrate", help="make the error bars of a served file as large as errors are"
    )
    add_calibrate_arguments(parser)
    parser.set_defaults(run=_calibrate)


def _calibrate(arguments: argparse.Namespace) -> None:
    print(run_calibrate(arguments))


def _add_inspect(commands: Any) -> None:
    parser = commands.add_parser("inspect", help="print the card of a served file (no torch)")
    parser.add_argument("model", type=Path)
    parser.add_argument("--json", action="store_true", help="the whole card as JSON")
    parser.set_defaults(run=_inspect)


def _inspect(arguments: argparse.Namespace) -> None:
    from ase_bayesmlip.card import read_card
    from ase_bayesmlip.inspection import describe

    card = read_card(arguments.model)
    if arguments.json:
        print(card.to_json())
        return
    rows = describe(card)
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:>{width}}  {value}")


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser("evaluate", help="errors and error bars on labelled frames")
    add_evaluate_arguments(parser)
    parser.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> None:
    summary, notes = run_evaluate(arguments)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(summary)


def _add_md(commands: Any) -> None:
    parser = commands.add_parser("md", help="molecular dynamics that knows when to doubt itself")
    parser.add_argument("model", type=Path, help="served file")
    parser.add_argument("start", help="structure in any format ASE reads")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run there")
    parser.add_argument("--temperature-K", type=float, default=300.0)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--time-step-fs", type=float, default=0.5)
    parser.add_argument("--integrator", default="langevin")
    parser.add_argument("--friction-per-fs", type=float, default=0.01)
    trigger = parser.add_mutually_exclusive_group()
    trigger.add_argument(
        "--false-alarm-rate",
        type=float,
        help="share of frames like the calibration frames that may be flagged (default 0.01)",
    )
    trigger.add_argument("--threshold", type=float, help="in the unit of the score")
    parser.add_argument("--score", default="forces_epistemic_max")
    parser.add_argument("--upper-limit", type=float, help="score of an unphysical frame: stop")
    parser.add_argument("--patience", type=int, default=1, help="flags in a row before acting")
    parser.add_argument("--cooldown", type=int, default=0, help="quiet frames after acting")
    parser.add_argument("--budget", type=int, help="most events acted upon")
    parser.add_argument(
        "--frames-between-false-alarms",
        type=float,
        help="warn when scores leave the calibration; how often that may be wrong (e.g. 1e5)",
    )
    parser.add_argument("--interval", type=int, default=1, help="observe every so many steps")
    parser.add_argument("--action", choices=["continue", "stop", "rewind"], default="continue")
    parser.add_argument("--reference", help="gfn2, gfn1, emt or lj: recalculates flagged frames")
    parser.add_argument(
        "--continue-on-reference", action="store_true", help="integrate on its forces, too"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", choices=["float32", "float64"])
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=_md)


def _md(arguments: argparse.Namespace) -> None:
    import ase.io

    from ase_bayesmlip.calculator import BayesianCalculator
    from ase_bayesmlip.md.simulation import (
        LOG,
        SimulationConfig,
        reference_calculator,
        run_simulation,
    )

    names = {field.name for field in dataclasses.fields(SimulationConfig)}
    given = {name: value for name, value in vars(arguments).items() if name in names}
    if arguments.false_alarm_rate is None and arguments.threshold is None:
        given["false_alarm_rate"] = 0.01
    config = SimulationConfig(n_steps=arguments.steps, **given)
    if not Path(arguments.start).is_file():
        raise FileNotFoundError(f"no structure file at {arguments.start}")
    if arguments.continue_on_reference and not arguments.reference:
        raise ValueError("--continue-on-reference needs --reference")
    reference = reference_calculator(arguments.reference) if arguments.reference else None
    summary = run_simulation(
        ase.io.read(arguments.start),  # type: ignore[arg-type]
        BayesianCalculator(arguments.model, arguments.device, arguments.dtype),
        config,
        arguments.out,
        reference=reference,
        progress=not arguments.quiet,
        overwrite=arguments.overwrite,
    )
    figure = _draw(arguments.out / LOG, summary.score_name)
    print(f"{summary}\nfigure: {figure}")


def _draw(log: Path, score_name: str) -> Path:
    from ase_bayesmlip.md.scores import SCORE_UNITS
    from ase_bayesmlip.plots import monitored_md_figure, read_log

    unit = SCORE_UNITS.get(score_name, "")
    return monitored_md_figure(read_log(log), log.parent / "figure.png", unit=unit)


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser("demo", help="two minutes that show what this is for")
    parser.add_argument("--out", type=Path, default=Path("bayesmlip-demo"))
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> None:
    import torch

    from ase_bayesmlip.demo import run_demo

    torch.set_num_threads(1)  # nine atoms: more threads only wait for each other
    print(run_demo(arguments.out, progress=not arguments.quiet))


if __name__ == "__main__":  # for torchrun -m
    sys.exit(main())
