"""The folder of a run: what `fit` writes first and `load` reads.

``config.yaml`` (resolved), ``run.json`` (statistics and checksums of the data) and one folder per
member, each with its own checkpoints.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from ase_bayesmlip.config import Config, to_dict
from ase_bayesmlip.config.strict import from_dict
from ase_bayesmlip.training.announcement import announce
from ase_bayesmlip.training.data import TrainingData
from ase_bayesmlip.training.distributed import barrier, rank
from ase_bayesmlip.training.state import differences, run_identity


def member_name(index: int) -> str:
    """Name of a member's folder."""
    return f"member-{index:02d}"


def prepare_run(config: Config, data: TrainingData, folder: Path, resume: bool) -> None:
    """Say what is trained; write ``config.yaml`` and ``run.json``, or check them to resume."""
    announce(config, data)
    record = data.record()
    written = folder / "run.json"
    if any(folder.glob("member-*/*.pt")) and written.exists():
        if not resume:
            raise FileExistsError(
                f"{folder} already holds a run; continue it with --resume, or train elsewhere"
            )
        _check_same_run(config, record, folder)
    barrier()  # the others must not read what rank 0 is writing
    if rank() > 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    written.write_text(json.dumps(record, indent=1), encoding="utf-8")


def _check_same_run(config: Config, record: dict[str, Any], folder: Path) -> None:
    stored, old = read_run(folder)
    changed = differences(run_identity(stored), run_identity(config))
    if changed:
        raise ValueError(
            f"{folder} holds a run with other settings ({'; '.join(changed)}); restore them, or "
            "train into another folder"
        )
    for name in ("train", "valid"):
        if old[f"{name}_sha256"] != record[f"{name}_sha256"]:
            raise ValueError(f"{folder}: the {name} frames have changed since the run began")
    if old["statistics"] != record["statistics"]:
        raise ValueError(f"{folder}: the reference energies have changed since the run began")


def read_run(folder: Path) -> tuple[Config, dict[str, Any]]:
    """Configuration and record of a run.

    Raises
    ------
    FileNotFoundError
        If the folder is no run.
    """
    folder = Path(folder)
    if not (folder / "run.json").is_file() or not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"{folder} is no run written by `bayesmlip train`")
    content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return from_dict(Config, content), record
