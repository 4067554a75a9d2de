"""The demonstration: ethanol at 300 K, then at 1200 K, watched by its own error bars."""

from __future__ import annotations

import argparse
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

MODEL = "ethanol_ensemble.pt"
START = "ethanol_test.extxyz"
FALSE_ALARM_RATE = 0.01
COLD_K, HOT_K = 300.0, 1200.0
N_COLD, N_HOT = 1500, 1500
TIME_STEP_FS = 0.5


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser("demo", help="two minutes that show what this is for")
    parser.add_argument("--out", type=Path, default=Path("bayesmlip-demo"), help="folder")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Run the demonstration on one thread."""
    import torch

    torch.set_num_threads(1)  # nine atoms: more threads only wait for each other
    print(run_demo(arguments.out, progress=not arguments.quiet))


def run_demo(out: Path, progress: bool = True) -> str:
    """Run the demonstration and describe what happened.

    An ensemble of four potentials, trained on 300 K ethanol with GFN2-xTB labels, runs molecular
    dynamics at 300 K, where it should be quiet, and then at 1200 K, where it should not. Flagged
    frames are recalculated with GFN2-xTB.

    Parameters
    ----------
    out : Path
        Folder for the trajectory, the log and the figure; an earlier demonstration is replaced.

    Returns
    -------
    str
        A summary for someone who sees this for the first time.

    Raises
    ------
    ImportError
        If tblite, the reference, is not installed.
    """
    import ase.io

    from ase_bayesmlip.calculator import BayesianCalculator
    from ase_bayesmlip.md import simulation
    from ase_bayesmlip.report import monitored_md_figure, read_log

    data = files("ase_bayesmlip.data")
    with as_file(data / MODEL) as path:
        calculator = BayesianCalculator(path)
    with as_file(data / START) as path:
        atoms = next(ase.io.iread(path))
    config = simulation.SimulationConfig(
        temperature_K=COLD_K,
        n_steps=N_COLD + N_HOT,
        time_step_fs=TIME_STEP_FS,
        schedule=((N_COLD, HOT_K),),
        false_alarm_rate=FALSE_ALARM_RATE,
        cooldown=40,
        label_spacing=1,  # the cooldown spaces the labels
        budget=60,
        seed=1,
    )
    run = simulation.run_simulation(
        atoms, calculator, config, out, "gfn2", progress=progress, overwrite=True
    )
    log = read_log(out / simulation.LOG)
    hot_from = N_COLD * TIME_STEP_FS
    figure = monitored_md_figure(
        log,
        out / "figure.png",
        regions=[(hot_from, (N_COLD + N_HOT) * TIME_STEP_FS, f"{HOT_K:.0f} K")],
    )
    summary = _summary(log, out, figure, calculator.card.n_members)
    return f"{summary}\nEnded early: {run.stop_reason}" if run.stop_reason else summary


def _summary(log: dict[str, np.ndarray], out: Path, figure: Path, n_members: int) -> str:
    from ase_bayesmlip.md.run_folder import LOG, RECALCULATED, TRAJECTORY

    hot = log["step"] > N_COLD
    known = np.isfinite(log["force_rmse"])
    lines = [
        f"Ethanol, {n_members} potentials in one file, trained at {COLD_K:.0f} K only. "
        f"A frame is flagged when the potentials",
        f"disagree more than they do on {1 - FALSE_ALARM_RATE:.0%} of known frames "
        f"(threshold {1e3 * log['threshold'][0]:.0f} meV/Å).",
        "",
        "                    frames   flagged   recalculated   true force error   predicted",
    ]
    for name, part in ((f"{COLD_K:.0f} K", ~hot), (f"{HOT_K:.0f} K", hot)):
        lines.append(_row(name, log, part, part & known))
    lines += [
        "",
        "True error: against GFN2-xTB, RMS over the recalculated frames; predicted: the model's",
        "own error bar for the same frames.",
        f"Figure {figure}",
        f"Trajectory with error bars on every atom {out / TRAJECTORY}",
        f"Log {out / LOG}, new reference labels {out / RECALCULATED}",
    ]
    return "\n".join(lines)


def _row(name: str, log: dict[str, np.ndarray], part: np.ndarray, known: np.ndarray) -> str:
    n_frames, n_flagged = int(part.sum()), int(log["flagged"][part].sum())
    row = f"  {name:>8}        {n_frames:>8}   {n_flagged / max(n_frames, 1):>7.1%}"
    row += f"   {int(known.sum()):>12}"
    if not known.any():
        return row + f"   {'-':>16}   {'-':>9}"
    error = np.sqrt(np.mean(log["force_rmse"][known] ** 2))
    predicted = np.sqrt(np.mean(log["force_rms_uncertainty"][known] ** 2))
    return row + f"   {1e3 * error:>9.0f} meV/Å   {1e3 * predicted:>3.0f} meV/Å"
