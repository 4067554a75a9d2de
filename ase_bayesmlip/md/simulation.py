"""A whole monitored simulation: what ``bayesmlip md`` runs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.md.md import MolecularDynamics
from tqdm import tqdm

from ase_bayesmlip.md.actions import (
    Recalculate,
    Rewind,
    Stop,
    TrajectoryWriter,
    WriteFrame,
)
from ase_bayesmlip.md.alarm import CalibrationAlarm
from ase_bayesmlip.md.integrators import (
    INTEGRATORS,
    make_integrator,
    set_temperature,
)
from ase_bayesmlip.md.monitor import Action, UncertaintyMonitor
from ase_bayesmlip.md.summary import SimulationSummary, summarise
from ase_bayesmlip.md.temperature import draw_velocities

TRAJECTORY = "trajectory.extxyz"
LOG = "monitor.csv"
RECALCULATED = "recalculated.extxyz"
FLAGGED = "flagged.extxyz"

REFERENCES = ("gfn2", "gfn1", "emt", "lj")


@dataclasses.dataclass(frozen=True)
class SimulationConfig:
    """Settings of a monitored simulation.

    Attributes
    ----------
    temperature_K : float, K
        Of the thermostat, and of the velocities drawn when the start structure has none.
    n_steps : int
    time_step_fs : float, fs
    integrator : str
        One of `INTEGRATORS`.
    friction_per_fs : float, 1/fs
        Coupling to the thermostat: friction, or inverse time constant.
    schedule : tuple of (int, float)
        Changes of the temperature: pairs of a step and the temperature in K from then on, in the
        order of the steps.
    interval : int
        The monitor observes every `interval`-th step.
    trajectory_interval : int
        A frame is written every so many steps.
    false_alarm_rate, threshold : float or None
        Exactly one; see `UncertaintyMonitor`, also for score, patience, cooldown, budget,
        on_budget and upper_limit.
    action : {"continue", "stop", "rewind"}
        What follows an uncertain frame after it has been saved or recalculated. A rewind draws
        new velocities.
    frames_between_false_alarms : float or None
        Of a `CalibrationAlarm`, which warns; None for no alarm.
    continue_on_reference : bool
        Use the reference forces for the step after a recalculated frame.
    seed : int
        Of the velocities, the thermostat and the rewinds.
    """

    temperature_K: float  # noqa: N815
    n_steps: int
    time_step_fs: float = 0.5
    integrator: str = "langevin"
    friction_per_fs: float = 0.01
    schedule: tuple[tuple[int, float], ...] = ()
    interval: int = 1
    trajectory_interval: int = 10
    false_alarm_rate: float | None = None
    threshold: float | None = None
    score: str = "forces_epistemic_max"
    action: str = "continue"
    patience: int = 1
    cooldown: int = 0
    budget: int | None = None
    on_budget: str = "ignore"
    upper_limit: float | None = None
    frames_between_false_alarms: float | None = None
    continue_on_reference: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that cannot work; the monitor checks its own."""
        for name in ("temperature_K", "time_step_fs", "friction_per_fs", "n_steps", "interval"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.trajectory_interval < 1:
            raise ValueError(
                f"trajectory_interval must be positive, not {self.trajectory_interval}"
            )
        if self.integrator not in INTEGRATORS:
            raise ValueError(
                f"unknown integrator {self.integrator!r}; known: {', '.join(INTEGRATORS)}"
            )
        if self.action not in ("continue", "stop", "rewind"):
            raise ValueError(f"action must be 'continue', 'stop' or 'rewind', not {self.action!r}")
        if self.schedule and self.integrator == "velocity_verlet":
            raise ValueError("a temperature schedule needs a thermostat; velocity_verlet has none")
        steps = [step for step, _ in self.schedule]
        if steps != sorted(set(steps)) or any(not 0 < step < self.n_steps for step in steps):
            raise ValueError(
                f"the steps of the schedule must increase and lie between 0 and {self.n_steps}, "
                f"got {steps}"
            )
        if any(not temperature > 0 for _, temperature in self.schedule):
            raise ValueError("the temperatures of the schedule must be positive")


def run_simulation(
    atoms: Atoms,
    calculator: BaseCalculator,
    config: SimulationConfig,
    out: str | Path,
    reference: BaseCalculator | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> SimulationSummary:
    """Run monitored molecular dynamics and write what happened to a folder.

    The folder receives ``trajectory.extxyz`` (every so many frames with uncertainties),
    ``monitor.csv`` (one row per observed frame) and, when frames fire, ``recalculated.extxyz``
    (with a reference) or ``flagged.extxyz`` (without). Ctrl-C ends the run early; the files and
    the summary are then complete up to the last step.

    Parameters
    ----------
    atoms : Atoms
        Start structure; it is copied. Its velocities are used if it has any.
    calculator : Calculator
        Gives energy, forces and the uncertainty that the score needs.
    out : path
    reference : Calculator or None
        Recalculates uncertain frames.
    progress : bool
        Show a progress bar on stderr.
    overwrite : bool
        Replace the files of an earlier run in `out`.

    Raises
    ------
    FileExistsError
        If the folder holds files of an earlier run and `overwrite` is false.
    ValueError
        If the calculator refuses the start structure. A structure that it refuses later, because
        the simulation has exploded, ends the run with a reason in the summary.
    """
    out = Path(out)
    _prepare_folder(out, overwrite)
    velocities_rng, thermostat_rng, rewind_rng = np.random.default_rng(config.seed).spawn(3)
    atoms = atoms.copy()
    atoms.info.clear()  # notes on the start structure are not true of the frames that follow
    atoms.calc = calculator
    if not atoms.get_momenta().any():
        draw_velocities(atoms, config.temperature_K, velocities_rng)
    atoms.get_forces()
    dyn = make_integrator(
        config.integrator,
        atoms,
        temperature_K=config.temperature_K,
        time_step_fs=config.time_step_fs,
        friction_per_fs=config.friction_per_fs,
        generator=thermostat_rng,
    )
    recalculate, rewind, actions = _actions(config, out, reference, rewind_rng)
    every = config.frames_between_false_alarms
    monitor = UncertaintyMonitor(
        dyn,
        score=config.score,
        threshold=config.threshold,
        false_alarm_rate=config.false_alarm_rate,
        actions=actions,
        alarm=None if every is None else CalibrationAlarm(every, seed=config.seed),
        log=out / LOG,
        patience=config.patience,
        cooldown=config.cooldown,
        budget=config.budget,
        on_budget=config.on_budget,
        upper_limit=config.upper_limit,
    )
    dyn.attach(monitor, interval=config.interval)
    dyn.attach(TrajectoryWriter(monitor, out / TRAJECTORY), interval=config.trajectory_interval)
    started = time.perf_counter()
    stop_reason = _drive(dyn, monitor, config, progress)
    return summarise(
        monitor,
        recalculate.records if recalculate else [],
        rewind.rewinds if rewind else [],
        stop_reason=stop_reason,
        wall_s=time.perf_counter() - started,
        out=out,
    )


def reference_calculator(name: str) -> BaseCalculator:
    """Build a reference calculator by name: ``"gfn2"``, ``"gfn1"``, ``"emt"`` or ``"lj"``.

    Raises
    ------
    ImportError
        If tblite, which the first two need, is not installed.
    ValueError
        If the name is unknown.
    """
    match name.lower():
        case "gfn2" | "gfn1":
            try:
                from tblite.ase import TBLite
            except ImportError as error:
                raise ImportError(
                    f"reference {name!r} needs tblite: pip install 'ase-bayesmlip[demo]'"
                ) from error
            # Tighter than tblite's default, whose noise in the forces shows in a training set.
            return TBLite(method=f"{name.upper()}-xTB", accuracy=0.01, verbosity=0)
        case "emt":
            from ase.calculators.emt import EMT

            return EMT()
        case "lj":
            from ase.calculators.lj import LennardJones

            return LennardJones()
    raise ValueError(f"unknown reference calculator {name!r}; known: {', '.join(REFERENCES)}")


def _actions(
    config: SimulationConfig,
    out: Path,
    reference: BaseCalculator | None,
    generator: np.random.Generator,
) -> tuple[Recalculate | None, Rewind | None, list[Action]]:
    recalculate = rewind = None
    actions: list[Action] = []
    if reference is None:
        actions.append(WriteFrame(out / FLAGGED))
    else:
        recalculate = Recalculate(reference, out / RECALCULATED, config.continue_on_reference)
        actions.append(recalculate)
    if config.action == "stop":
        actions.append(Stop())
    elif config.action == "rewind":
        rewind = Rewind(rethermalise=True, rng=generator)
        actions.append(rewind)
    return recalculate, rewind, actions


def _drive(
    dyn: MolecularDynamics, monitor: UncertaintyMonitor, config: SimulationConfig, progress: bool
) -> str:
    """Integrate to the end, and say why if the end came early."""
    with tqdm(total=config.n_steps, disable=not progress, unit="step", desc="MD") as bar:
        try:
            for _ in _steps(dyn, monitor, config):
                bar.update(dyn.nsteps - bar.n)
                bar.set_postfix(flagged=monitor.n_flagged, refresh=False)
        except KeyboardInterrupt:
            return "interrupted"
        except ValueError as error:
            if dyn.nsteps == 0:
                raise
            return f"the step after {dyn.nsteps} failed: {error}"
    return monitor.stop_reason


def _steps(
    dyn: MolecularDynamics, monitor: UncertaintyMonitor, config: SimulationConfig
) -> Iterator[Any]:
    start = 0
    for end, temperature_K in (*config.schedule, (config.n_steps, None)):
        yield from dyn.irun(end - start)
        if monitor.stop_reason:
            return
        if temperature_K is not None:
            set_temperature(dyn, temperature_K)
        start = end


def _prepare_folder(out: Path, overwrite: bool) -> None:
    out.mkdir(parents=True, exist_ok=True)
    existing = [out / name for name in (TRAJECTORY, LOG, RECALCULATED, FLAGGED)]
    existing = [path for path in existing if path.exists()]
    if existing and not overwrite:
        raise FileExistsError(
            f"{out} holds the files of an earlier run ({existing[0].name}); choose another folder "
            "or overwrite it"
        )
    for path in existing:
        path.unlink()
