"""Monitored dynamics: observers that turn error bars into decisions while a simulation runs.

A *score* reads one number off the results of a step (`scores`), a *trigger* compares it with a
threshold that comes from calibration data (`threshold`), and *actions* respond (`actions`). An
*alarm* (`alarm`) tells when the scores of many frames together have left the calibration. The
`UncertaintyMonitor` ties the three together as one ordinary ASE observer, which never evaluates
the calculator; `simulation` runs a whole monitored trajectory.
"""

from __future__ import annotations

from ase_bayesmlip.md.actions import (
    Call,
    LogCSV,
    Stop,
    UncertaintyWarning,
    Warn,
    WriteFrame,
)
from ase_bayesmlip.md.alarm import CalibrationAlarm
from ase_bayesmlip.md.events import Event, History
from ase_bayesmlip.md.monitor import UncertaintyMonitor
from ase_bayesmlip.md.recalculate import Recalculate, ReferenceRecord
from ase_bayesmlip.md.rewind import Rewind
from ase_bayesmlip.md.threshold import false_alarm_threshold
from ase_bayesmlip.scores import SCORES, Score

__all__ = [
    "SCORES",
    "CalibrationAlarm",
    "Call",
    "Event",
    "History",
    "LogCSV",
    "Recalculate",
    "ReferenceRecord",
    "Rewind",
    "Score",
    "Stop",
    "UncertaintyMonitor",
    "UncertaintyWarning",
    "Warn",
    "WriteFrame",
    "false_alarm_threshold",
]
