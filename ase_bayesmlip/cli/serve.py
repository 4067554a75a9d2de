"""``bayesmlip serve``: from the folder of a run to one file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ase_bayesmlip.cli.compile import compile_file

if TYPE_CHECKING:
    from ase_bayesmlip.config import Config
    from ase_bayesmlip.serving.home import Home


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser("serve", help="write the posterior of a run as one file")
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of a run")
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
    parser.add_argument(
        "--unfinished",
        action="store_true",
        help="serve a run that has not come to its end as it is, and say so in the file",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Draw from the posterior of a run and write the file."""
    import torch

    from ase_bayesmlip.cli.calibrate import frames_of_folds, score_folds, score_frames
    from ase_bayesmlip.cli.inspect import thresholds
    from ase_bayesmlip.metrics.reach import promise
    from ase_bayesmlip.posteriors import POSTERIORS
    from ase_bayesmlip.posteriors.run_folder import read_run
    from ase_bayesmlip.serving.export import export_members
    from ase_bayesmlip.structures.labelled import read_frames
    from ase_bayesmlip.structures.overlap import unseen

    run_config, _ = read_run(arguments.folder)
    posterior = POSTERIORS[run_config.posterior.kind]
    state = posterior.load(arguments.folder, arguments.unfinished)
    generator = torch.Generator().manual_seed(arguments.seed)
    members = posterior.draw(state, arguments.samples, generator)
    data = state.config.data
    paths = arguments.calibration or data.calibration
    # Read before anything is written: a mistake here must not leave a file without thresholds.
    frames = read_frames(paths, data.keys, data.units) if paths else []
    unseen(frames, state.record)  # refuses those of the training
    folds = None if frames else getattr(state.config.posterior, "folds", None)
    if folds and len(members) < state.config.posterior.members:
        raise ValueError(
            f"{len(members)} of {state.config.posterior.members} members are served, and the folds "
            "of the training frames are scored by all; serve them all, or give --calibration frames"
        )
    parts = frames_of_folds(state.config, state.record) if folds else []
    out, home = arguments.output, _home(state.config, state.record)
    card = export_members(
        members, state.config, state.record, out, arguments.seed, state.unfinished, home
    )
    for note in card.unfinished:
        print(f"unfinished: {note}", file=sys.stderr)
    if frames and card.has_score:
        print(thresholds(score_frames(out, frames)))
    elif parts:
        n, least = sum(map(len, parts)), min(map(len, parts))
        print(f"{n} training frames in {folds} folds, no others: {promise(least)}")
        score_folds(out, parts)
    elif not frames:
        print(
            "no calibration frames: a monitor will need a threshold in eV/Å. The training frames "
            "cannot take their place, for every member has seen them (see posterior.folds)",
            file=sys.stderr,
        )
    print(f"wrote {out}; look at it with: bayesmlip inspect {out}")
    if arguments.backend == "aoti":
        compile_file(out, "cpu", None)


def _home(config: Config, record: dict[str, Any]) -> Home | None:
    """The frames of a run; where they are no longer there, the file is written without them."""
    from ase_bayesmlip.serving.home import load_home

    try:
        return load_home(config, record)
    except (OSError, ValueError) as error:
        print(f"nothing is fitted to the training frames: {error}", file=sys.stderr)
        return None
