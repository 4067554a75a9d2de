"""The result of a monitored simulation in a few numbers and in a few sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms

from ase_bayesmlip.md.monitor import UncertaintyMonitor
from ase_bayesmlip.md.recalculate import Recalculate
from ase_bayesmlip.scores import SCORE_UNITS


@dataclass(frozen=True, eq=False)
class SimulationSummary:
    """What happened in a monitored simulation.

    Attributes
    ----------
    n_steps : int
        Steps integrated.
    time_fs : float, fs
    n_observed, n_flagged, n_events : int
        Frames seen, frames above the threshold, and frames on which the actions were run.
    score_name : str
    threshold, max_score : float, unit of the score
    false_alarm_rate : float or None
        That the threshold was made from.
    meaning : str
        What was flagged, see `UncertaintyMonitor`.
    n_recalculated, n_failed : int
        Answers and failures of the reference calculator.
    n_correlated, n_over_budget : int
        Frames that it was not asked about: too close to the last one, and beyond the budget.
    energy_mae : float, eV
        Mean absolute error of the energy over the recalculated frames; NaN if there are none.
    force_rmse, force_rms_uncertainty : float, eV/Å
        True error over the recalculated frames, and what the model predicted for it.
    n_rewinds : int
    stop_reason : str
        Empty when all steps were made.
    wall_s : float, s
    out : Path
    final_atoms : Atoms
        With velocities, without calculator.
    """

    n_steps: int
    time_fs: float
    n_observed: int
    n_flagged: int
    n_events: int
    score_name: str
    threshold: float
    max_score: float
    false_alarm_rate: float | None
    meaning: str
    n_recalculated: int
    n_failed: int
    n_correlated: int
    n_over_budget: int
    energy_mae: float
    force_rmse: float
    force_rms_uncertainty: float
    n_rewinds: int
    stop_reason: str
    wall_s: float
    out: Path
    final_atoms: Atoms

    def __str__(self) -> str:
        """Sentences for a reader who has not used the program before."""
        unit = SCORE_UNITS.get(self.score_name, "")
        early = f", ended early: {self.stop_reason}" if self.stop_reason else ""
        lines = [
            f"{self.n_steps} steps ({self.time_fs / 1000:.2f} ps) in {self.wall_s:.1f} s{early}",
        ]
        lines.append(
            f"{self.n_flagged} of {self.n_observed} observed frames "
            f"({self.n_flagged / max(self.n_observed, 1):.1%}) were above the threshold "
            f"{self.threshold:.4g} {unit}; the largest {self.score_name} was "
            f"{self.max_score:.4g} {unit}"
        )
        if self.false_alarm_rate is not None:
            lines.append(f"({self.meaning})")
        if self.n_recalculated:
            lines.append(
                f"{self.n_recalculated} frames were recalculated with the reference: force RMSE "
                f"{self.force_rmse:.4f} eV/Å where the model predicted "
                f"{self.force_rms_uncertainty:.4f} eV/Å, mean energy error "
                f"{self.energy_mae:.4f} eV"
            )
        lines += self._labels()
        if self.n_rewinds:
            lines.append(f"the run went back to a trusted frame {self.n_rewinds} times")
        lines.append(f"files in {self.out}")
        return "\n".join(lines)

    def _labels(self) -> list[str]:
        """How often the reference was asked, and why not more often."""
        asked = self.n_recalculated + self.n_failed
        skipped = self.n_correlated + self.n_over_budget
        if not asked + skipped:
            return []
        return [
            f"labels of the reference: {asked} asked for, {self.n_failed} of them failed; "
            f"{self.n_correlated} flagged frames left out as correlated with the one before, "
            f"{self.n_over_budget} beyond the budget"
        ]


def summarise(
    monitor: UncertaintyMonitor,
    recalculate: Recalculate | None,
    rewinds: Sequence[tuple[int, int]],
    *,
    stop_reason: str,
    wall_s: float,
    out: Path,
) -> SimulationSummary:
    """Collect the numbers of a finished run."""
    history = monitor.history
    finite = history.score[np.isfinite(history.score)]
    records = [] if recalculate is None else recalculate.records
    answered = [record for record in records if not record.failure]
    return SimulationSummary(
        n_steps=monitor.dyn.nsteps,
        time_fs=float(history.time_fs[-1]) if len(history.time_fs) else 0.0,
        n_observed=monitor.n_observed,
        n_flagged=monitor.n_flagged,
        n_events=monitor.n_events,
        score_name=monitor.score_name,
        threshold=monitor.threshold,
        max_score=float(finite.max()) if len(finite) else float("nan"),
        false_alarm_rate=monitor.false_alarm_rate,
        meaning=monitor.meaning,
        n_recalculated=len(answered),
        n_failed=len(records) - len(answered),
        n_correlated=0 if recalculate is None else recalculate.plan.n_correlated,
        n_over_budget=0 if recalculate is None else recalculate.plan.n_over_budget,
        energy_mae=_mean([abs(record.energy_error) for record in answered]),
        force_rmse=_root_mean_square([record.force_rmse for record in answered]),
        force_rms_uncertainty=_root_mean_square(
            [record.force_rms_uncertainty for record in answered]
        ),
        n_rewinds=len(rewinds),
        stop_reason=stop_reason,
        wall_s=wall_s,
        out=out,
        final_atoms=monitor.atoms.copy(),
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def _root_mean_square(values: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values else float("nan")
