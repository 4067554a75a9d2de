"""A whole monitored simulation: what ``bayesmlip md`` runs."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.md.md import MolecularDynamics
from tqdm.auto import tqdm

from ase_bayesmlip.md.actions import Recalculate, Rewind, Stop, TrajectoryWriter, WriteFrame
from ase_bayesmlip.md.alarm import CalibrationAlarm
from ase_bayesmlip.md.barostat import BAROSTATS
from ase_bayesmlip.md.events import Action
from ase_bayesmlip.md.integrators import INTEGRATORS, make_integrator, set_temperature
from ase_bayesmlip.md.monitor import UncertaintyMonitor
from ase_bayesmlip.md.references import reference_calculator as reference_calculator
from ase_bayesmlip.md.run_folder import (
    FLAGGED,
    LOG,
    RECALCULATED,
    TRAJECTORY,
    refuse_earlier_run,
    replaced_run,
)
from ase_bayesmlip.md.summary import SimulationSummary, summarise
from ase_bayesmlip.md.temperature import draw_velocities

# Calls of the reference, at most, unless a run says otherwise.
MAX_LABELS = 100


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
    final_temperature_K : float or None, K
        Of a ramp: the target of the thermostat goes at a constant rate from `temperature_K` at
        the first step to this one at the last.
    pressure_GPa : float, GPa
        Of the integrators ``"npt"`` and ``"npt_full"``.
    interval : int
        The monitor observes every `interval`-th step.
    trajectory_interval : int
        A frame is written every so many steps.
    false_alarm_rate, threshold : float or None
        Exactly one; see `UncertaintyMonitor`, also for score, patience, cooldown, budget,
        on_budget, upper_limit, max_temperature_K and lone_atoms.
    action : {"continue", "stop", "rewind"}
        What follows an uncertain frame after it has been saved or recalculated. A rewind draws
        new velocities.
    frames_between_false_alarms : float or None
        Of a `CalibrationAlarm`, which warns; None for no alarm.
    continue_on_reference : bool
        Use the reference forces for the step after a recalculated frame.
    label_spacing : "correlation", int or None
        Observed frames from one label of the reference to the next, see `LabelSpacing`. None is
        ``"correlation"``, or 1 with `continue_on_reference`.
    max_labels : int or None
        Largest number of calls of the reference.
    label_timeout_s, force_limit, energy_limit
        See `Recalculate`.
    seed : int
        Of the velocities, the thermostat and the rewinds.
    """

    temperature_K: float  # noqa: N815
    n_steps: int
    time_step_fs: float = 0.5
    integrator: str = "langevin"
    friction_per_fs: float = 0.01
    schedule: tuple[tuple[int, float], ...] = ()
    final_temperature_K: float | None = None  # noqa: N815
    pressure_GPa: float = 0.0  # noqa: N815
    interval: int = 1
    trajectory_interval: int = 10
    false_alarm_rate: float | None = None
    threshold: float | None = None
    score: str | None = None
    action: str = "continue"
    patience: int = 1
    cooldown: int = 0
    budget: int | None = None
    on_budget: str = "ignore"
    upper_limit: float | None = None
    max_temperature_K: float | str | None = "auto"  # noqa: N815
    lone_atoms: str = "unphysical"
    frames_between_false_alarms: float | None = None
    continue_on_reference: bool = False
    label_spacing: str | int | None = None
    max_labels: int | None = MAX_LABELS
    label_timeout_s: float | None = None
    force_limit: float | str | None = "training"
    energy_limit: tuple[float, float] | str | None = "training"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that cannot work; the monitor checks its own."""
        positive = ("temperature_K", "time_step_fs", "friction_per_fs", "n_steps", "interval")
        for name in (*positive, "trajectory_interval"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, not {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if self.integrator not in INTEGRATORS:
            raise ValueError(
                f"unknown integrator {self.integrator!r}; known: {', '.join(INTEGRATORS)}"
            )
        if self.action not in ("continue", "stop", "rewind"):
            raise ValueError(f"action must be 'continue', 'stop' or 'rewind', not {self.action!r}")
        if self.pressure_GPa and self.integrator not in BAROSTATS:
            raise ValueError(
                f"{self.integrator} has no barostat for a pressure of {self.pressure_GPa:g} GPa; "
                f"take {' or '.join(BAROSTATS)}"
            )
        if not math.isfinite(self.pressure_GPa):
            raise ValueError(f"pressure_GPa must be finite, not {self.pressure_GPa}")
        self._check_temperatures()

    def _check_temperatures(self) -> None:
        final = () if self.final_temperature_K is None else (self.final_temperature_K,)
        later = [temperature for _, temperature in self.schedule] + [*final]
        if later and self.integrator == "velocity_verlet":
            raise ValueError("a temperature schedule needs a thermostat; velocity_verlet has none")
        if self.schedule and final:
            raise ValueError("give a schedule or a final_temperature_K, not both")
        if any(not 0 < temperature < math.inf for temperature in later):
            raise ValueError(f"temperatures must be positive and finite, not {later}")
        steps = [step for step, _ in self.schedule]
        if steps != sorted(set(steps)) or any(not 0 < step < self.n_steps for step in steps):
            raise ValueError(
                f"the steps of the schedule must increase and lie between 0 and {self.n_steps}, "
                f"got {steps}"
            )


def run_simulation(
    atoms: Atoms,
    calculator: BaseCalculator,
    config: SimulationConfig,
    out: str | Path,
    reference: BaseCalculator | str | None = None,
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
    reference : Calculator, str or None
        Recalculates uncertain frames; a name is one of `reference_calculator`.
    progress : bool
        Show a progress bar on stderr.
    overwrite : bool
        Replace the files of an earlier run in `out`. They are moved aside when everything that can
        be checked has been, and deleted when the new run has come to its end.

    Raises
    ------
    FileExistsError
        If the folder holds files of an earlier run and `overwrite` is false.
    ValueError
        If the calculator refuses the start structure. A structure that it refuses later, because
        the simulation has exploded, ends the run with a reason in the summary.
    """
    out = Path(out)
    refuse_earlier_run(out, overwrite)
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
        pressure_GPa=config.pressure_GPa,
    )
    recalculate, rewind, actions = _actions(config, out, reference, rewind_rng)
    if recalculate is not None:
        recalculate.refuse(atoms)
    monitor = _monitor(dyn, config, actions, out)
    writer = TrajectoryWriter(monitor, out / TRAJECTORY)
    dyn.attach(monitor, interval=config.interval)
    dyn.attach(writer, interval=config.trajectory_interval)
    out.mkdir(parents=True, exist_ok=True)
    for file in (writer, *actions):
        if hasattr(file, "check"):
            file.check(atoms)
    started = time.perf_counter()
    with replaced_run(out) as replacement:
        stop_reason = _drive(dyn, monitor, config, progress)
        replacement.finished = stop_reason == monitor.stop_reason
    return summarise(
        monitor,
        recalculate,
        rewind.rewinds if rewind else [],
        stop_reason=stop_reason,
        wall_s=time.perf_counter() - started,
        out=out,
    )


def _monitor(
    dyn: MolecularDynamics, config: SimulationConfig, actions: list[Action], out: Path
) -> UncertaintyMonitor:
    every = config.frames_between_false_alarms
    return UncertaintyMonitor(
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
        max_temperature_K=config.max_temperature_K,
        lone_atoms=config.lone_atoms,
    )


def _actions(
    config: SimulationConfig,
    out: Path,
    reference: BaseCalculator | str | None,
    generator: np.random.Generator,
) -> tuple[Recalculate | None, Rewind | None, list[Action]]:
    recalculate = rewind = None
    actions: list[Action] = []
    if reference is None:
        actions.append(WriteFrame(out / FLAGGED))
    else:
        every_event = 1 if config.continue_on_reference else "correlation"
        recalculate = Recalculate(
            reference,
            out / RECALCULATED,
            config.continue_on_reference,
            spacing=every_event if config.label_spacing is None else config.label_spacing,
            max_labels=config.max_labels,
            timeout_s=config.label_timeout_s,
            force_limit=config.force_limit,
            energy_limit=config.energy_limit,
        )
        recalculate.plan.follows_ramp = config.final_temperature_K is not None
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
    start, final = 0, config.final_temperature_K
    for end, temperature_K in (*config.schedule, (config.n_steps, None)):
        for state in dyn.irun(end - start):
            if final is not None:
                done = dyn.nsteps / config.n_steps
                set_temperature(dyn, (1 - done) * config.temperature_K + done * final)
            yield state
        if monitor.stop_reason:
            return
        if temperature_K is not None:
            set_temperature(dyn, temperature_K)
            for action in monitor.actions:
                if isinstance(action, Recalculate):
                    action.plan.restart(monitor.n_observed)
        start = end
