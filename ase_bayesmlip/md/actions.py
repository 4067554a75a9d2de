"""Actions: what happens when a monitor fires.

An action is any callable ``action(event, monitor) -> None``. One that also has a method
``on_frame(monitor)`` is called after every observed frame, when all actions have run; one that
has a method ``check_dynamics(dyn)`` can refuse dynamics when the monitor is made.
`Recalculate` and `Rewind` have modules of their own and can be imported from here as well.
"""

from __future__ import annotations

import csv
import io
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ase import Atoms

from ase_bayesmlip.files import append_whole, write_whole
from ase_bayesmlip.md.events import Event, LastFrame, Monitor, UncertaintyWarning, event_information
from ase_bayesmlip.md.recalculate import Recalculate, ReferenceRecord
from ase_bayesmlip.md.rewind import Rewind
from ase_bayesmlip.structures.extxyz import FrameFile, annotated_frame

__all__ = [
    "Call",
    "LogCSV",
    "Recalculate",
    "ReferenceRecord",
    "Rewind",
    "Stop",
    "TrajectoryWriter",
    "UncertaintyWarning",
    "Warn",
    "WriteFrame",
]


class LogCSV:
    """Every observed frame as one row of a CSV file.

    A row is written in one piece after the actions have run, and the file is closed between rows,
    so that an interrupted run keeps its log. An existing log with the same columns is continued;
    a last row that was cut short is removed.

    Parameters
    ----------
    path : path
        Columns: `COLUMNS`, in eV, eV/Å, fs, K, Å³ and GPa; the score and the threshold in the
        unit of the score. A field without a value is empty: time in a relaxation, the volume of a
        molecule, or the reference columns of frames that were not recalculated.
    """

    COLUMNS = (
        "step",
        "time_fs",
        "temperature_K",
        "energy",
        "energy_uncertainty",
        "volume",
        "pressure_GPa",
        "score",
        "threshold",
        "flagged",
        "event",
        "reference_energy",
        "energy_error",
        "force_rmse",
        "force_rms_uncertainty",
        "force_max_error",
        "force_max_uncertainty",
    )

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._ready = False

    def __repr__(self) -> str:
        return f"LogCSV({str(self.path)!r})"

    def __call__(self, event: Event, monitor: Monitor) -> None:
        """Do nothing: the row of the frame is written once, by `on_frame`."""

    def on_frame(self, monitor: Monitor) -> None:
        """Append the row of the present frame."""
        if not self._ready:
            self._prepare()
        row = _csv_line([_field(monitor.row.get(name)) for name in self.COLUMNS])
        append_whole(self.path, row.encode())

    def _prepare(self) -> None:
        header = _csv_line(self.COLUMNS)
        if not self.path.exists() or self.path.stat().st_size == 0:
            write_whole(self.path, header.encode())
        else:
            content = self.path.read_bytes()
            if not content.startswith(header.encode()):
                raise ValueError(
                    f"{self.path} exists and is not a log with the columns "
                    f"{', '.join(self.COLUMNS)}; choose another file or remove it"
                )
            if not content.endswith(b"\n"):
                # Cut, not written again: whole rows are safe whatever happens meanwhile.
                os.truncate(self.path, content.rindex(b"\n") + 1)
        self._ready = True


class WriteFrame:
    """Append the frame, with its results and uncertainties, to an extended XYZ file.

    Energy, forces and stress are where ASE expects them; variances are in ``info`` and ``arrays``
    under the names of the results, 3×3 covariances as 9 columns; ``info`` also holds step, time,
    score and threshold of the event. A quantity that is not finite is written as it is. The first
    frame that the monitor sees is tried in memory, see `FrameFile`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = FrameFile(path)

    def __repr__(self) -> str:
        return f"WriteFrame({str(self.path)!r})"

    def on_frame(self, monitor: Monitor) -> None:
        """Find out before the first step whether frames can be written."""
        self.check(monitor.atoms)

    def check(self, atoms: Atoms) -> None:
        """Try in memory, once, whether frames of these evaluated atoms can be written."""
        if not self._file.checked:
            self._file.check(annotated_frame(atoms, atoms.calc.results))

    def __call__(self, event: Event, monitor: Monitor) -> None:  # noqa: ARG002
        """Write one frame."""
        frame = annotated_frame(event.atoms, event.results)
        frame.info.update(event_information(event))
        self._file.append(frame)


class TrajectoryWriter:
    """Observer that appends frames with their uncertainties to an extended XYZ file.

    Attach it after the monitor, at any multiple of its interval::

        dyn.attach(TrajectoryWriter(monitor, "trajectory.extxyz"), interval=10)

    Energy and forces are those of the model, also in frames that continue on reference forces.
    A frame that was rewound, or is shown again, is left out. See `FrameFile` for what comes back
    when it is read.
    """

    def __init__(self, monitor: Monitor, path: str | Path) -> None:
        self.monitor = monitor
        self.path = Path(path)
        self._file = FrameFile(path)
        self._last_frame = LastFrame()

    def __repr__(self) -> str:
        return f"TrajectoryWriter({str(self.path)!r})"

    def check(self, atoms: Atoms) -> None:
        """Try in memory, once, whether frames of these evaluated atoms can be written."""
        self._file.check(annotated_frame(atoms, atoms.calc.results))

    def __call__(self) -> None:
        """Write the present frame."""
        monitor = self.monitor
        step, atoms = monitor.dyn.nsteps, monitor.atoms
        if self._last_frame.is_shown_again(step, atoms, atoms.calc.results.get("energy")):
            return
        row = monitor.row if monitor.row.get("step") == step else {}
        if "rewound_to" in row:
            return
        results = monitor.atoms.calc.results
        if monitor.events and monitor.events[-1].step == step:
            results = monitor.events[-1].results
        frame = annotated_frame(monitor.atoms, results)
        frame.info["step"] = step
        if row:
            frame.info["flagged"] = bool(row["flagged"])
        names = ("time_fs", "score", "threshold", "reference_energy")
        frame.info.update({name: row[name] for name in names if row.get(name) is not None})
        self._file.append(frame)


class Stop:
    """End the run cleanly: ``dyn.run()`` returns, and can be called again to continue."""

    def __repr__(self) -> str:
        return "Stop()"

    def __call__(self, event: Event, monitor: Monitor) -> None:
        """Stop after the present step and keep the reason in ``monitor.stop_reason``."""
        monitor.stop(f"{event.kind} frame at step {event.step}: {event.reason}")


class Warn:
    """Issue one `UncertaintyWarning` per event.

    The text names the step, so that Python's default filter, which shows a text only once, shows
    every event.
    """

    def __repr__(self) -> str:
        return "Warn()"

    def __call__(self, event: Event, monitor: Monitor) -> None:  # noqa: ARG002
        """Warn."""
        atoms = ", ".join(str(index) for index in event.worst_atoms)
        where = f" (atoms {atoms})" if atoms else ""
        warnings.warn(
            f"{event.kind} frame at step {event.step}: {event.reason}{where}",
            UncertaintyWarning,
            stacklevel=2,
        )


class Call:
    """Call a function with the event alone."""

    def __init__(self, function: Callable[[Event], Any]) -> None:
        self.function = function

    def __repr__(self) -> str:
        return f"Call({self.function!r})"

    def __call__(self, event: Event, monitor: Monitor) -> None:  # noqa: ARG002
        """Call it."""
        self.function(event)


def _field(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(float(value)) if isinstance(value, float) else value


def _csv_line(fields: Any) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(fields)
    return text.getvalue()
