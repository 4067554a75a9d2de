"""Train a committee of four MACE 0.3.16 models and keep what it says, for `calibration.py`.

Runs in MACE's environment, on one thread, and calls `evaluate_committee` of this package:

PYTHONPATH=. python examples/benchmarks/mace_committee.py acac runs/mace_acac --epochs 12

Frames, cutoff, width and number of layers are those of examples/configs/studies; choose the epochs
so that a training takes as long as one of ours. Other settings are those of `mace_acac.sh`. The
folder receives ``answers.pkl``, what the committee says of every set of frames, and ``about.json``.
"""

import argparse
import json
import os
import pickle
import resource
import subprocess
from pathlib import Path
from typing import Any

# MACE pickles whole models, which torch reads only with this switch.
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import ase.io
import yaml
from calibration_sets import DATASETS

from ase_bayesmlip.evaluation import evaluate_committee, read_evaluation_frames
from ase_bayesmlip.structures.labelled import read_frames

CONFIGS = Path(__file__).parents[1] / "configs" / "studies"
DEFAULT_CUTOFF = 5.0


def write_frames(path: str, target: Path) -> None:
    """Frames in the format that MACE reads, with the labels under its names."""
    frames = []
    for frame in read_frames(os.path.expandvars(path)):
        atoms = frame.atoms.copy()
        atoms.info["REF_energy"] = frame.energy
        atoms.arrays["REF_forces"] = frame.forces
        frames.append(atoms)
    ase.io.write(target, frames)


def atomic_energies(path: str | None) -> str:
    """Energies of isolated atoms as MACE takes them; fitted to the frames if there are none."""
    if path is None:
        return "average"
    atoms = ase.io.read(os.path.expandvars(path), ":")
    return str({int(a.numbers[0]): float(a.info["REF_energy"]) for a in atoms})


def train(config: dict[str, Any], folder: Path, seed: int, epochs: int) -> float:
    """Train one model with MACE's own command; seconds of the processor."""
    model = config["model"]
    options = {
        "name": f"member-{seed}",
        "work_dir": folder,
        "model_dir": folder,
        "train_file": folder / "train.xyz",
        "valid_file": folder / "valid.xyz",
        "E0s": atomic_energies(config["data"].get("reference_energies")),
        "model": "ScaleShiftMACE",
        "hidden_irreps": model["hidden_irreps"],
        "num_interactions": 2,
        "r_max": model.get("cutoff", DEFAULT_CUTOFF),
        "batch_size": config["training"].get("batch_size", 5),
        "valid_batch_size": 10,
        "default_dtype": "float32",
        "max_num_epochs": epochs,
        "start_swa": epochs * 4 // 5,
        "ema_decay": 0.99,
        "scheduler_patience": 5,
        "plot": False,
        "seed": seed,
        "device": "cpu",
    }
    command = ["mace_run_train", "--swa", "--ema", "--amsgrad"]
    command += [f"--{name}={value}" for name, value in options.items()]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with (folder / f"member-{seed}.log").open("w", encoding="utf-8") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def main() -> None:
    """Train what is missing, ask the committee, and keep its answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", choices=list(DATASETS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--members", type=int, default=4)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load((CONFIGS / f"{arguments.dataset}.yaml").read_text(encoding="utf-8"))
    for name in ("train", "valid"):
        write_frames(config["data"][name], folder / f"{name}.xyz")
    models, seconds = [], []
    for seed in range(1, arguments.members + 1):
        model, note = folder / f"member-{seed}_stagetwo.model", folder / f"member-{seed}.seconds"
        if not note.is_file():
            note.write_text(str(train(config, folder, seed, arguments.epochs)), encoding="utf-8")
        seconds.append(float(note.read_text(encoding="utf-8")))
        models.append(model)

    import mace
    import torch
    from mace.calculators import MACECalculator

    torch.set_num_threads(1)
    calculators = [MACECalculator(m, device="cpu", default_dtype="float64") for m in models]
    calibration, test, foreign = DATASETS[arguments.dataset]
    answers = {}
    for name, path in {"calibration": calibration, "known": test, **foreign}.items():
        frames = read_evaluation_frames(f"{os.environ['BAYESMLIP_DATA']}/{path}")
        answers[name] = evaluate_committee(calculators, [frame.atoms for frame in frames])
    (folder / "answers.pkl").write_bytes(pickle.dumps(answers))
    about = {
        "mace": mace.__version__,
        "epochs": arguments.epochs,
        "n_parameters": sum(p.numel() for p in calculators[0].models[0].parameters()),
        "training_core_seconds": seconds,
    }
    (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
