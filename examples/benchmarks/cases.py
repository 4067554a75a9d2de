"""What the benchmarks of the serving path measure: structures, untrained potentials, machine.

The time of a step does not depend on the weights, so potentials need no training here.
"""

import contextlib
import datetime
import hashlib
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import ase.io
import torch
from ase import Atoms

import ase_bayesmlip
from ase_bayesmlip.card import read_card
from ase_bayesmlip.config import Config, DataConfig, LossConfig
from ase_bayesmlip.config.posterior import EnsembleConfig, EvidentialConfig
from ase_bayesmlip.nn.build import build_potential
from ase_bayesmlip.nn.last_layer import LastLayerPotential
from ase_bayesmlip.nn.potential import Potential, readout_weights
from ase_bayesmlip.nn.stacked.potential import StackedPotential
from ase_bayesmlip.serving.export import export_members
from ase_bayesmlip.training.data import load_training_data

# Training frames, of which the first is the structure, and how often it is repeated.
SYSTEMS = {
    "3bpa": ("3bpa/train_300K.extxyz.xz", (1, 1, 1)),
    "water_192": ("water_deepmd/train.extxyz.xz", (1, 1, 1)),
    "water_1536": ("water_deepmd/train.extxyz.xz", (2, 2, 2)),
}
CACHE = Path(tempfile.gettempdir()) / "bayesmlip-benchmarks"


def data_file(name: str) -> Path:
    """A file of the reference data, whose folder is in $BAYESMLIP_DATA."""
    folder = os.environ.get("BAYESMLIP_DATA")
    if folder is None:
        raise SystemExit("set BAYESMLIP_DATA to the folder of the reference data")
    return Path(folder) / name


def structure(frames: str, repeat: tuple[int, int, int] = (1, 1, 1)) -> Atoms:
    """The first of the frames, repeated; without labels, and without cell if not periodic."""
    frame = ase.io.read(data_file(frames), index=0)
    atoms = Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=frame.pbc)
    if not atoms.pbc.any():
        atoms.cell = None
    return atoms.repeat(repeat)


def served_file(
    frames: str,
    n_members: int,
    compile_for: tuple[str, str] | None = None,
    n_draws: int = 0,
    loss: str = "nll_jef",
    kernels: bool = True,
) -> Path:
    """A served file of untrained potentials of the default shape for the elements of the frames.

    Made once for each version of the package's source.

    Parameters
    ----------
    compile_for : (device, dtype) or None
        What the file must hold a compiled program for.
    n_draws : int
        Drawn readouts of each potential, as a last-layer Laplace approximation has them.
    loss : str
        Decides about the heads: "nll_jef" has noise heads, "mse" none, "evidential" laws.
    kernels : bool
        Whether a compiled program runs the generated C++ kernels, or the formulas in torch that
        define them (`nn.stacked.products`), as AOTInductor compiles them.
    """
    suffix = "" if kernels else "-formulas"
    name = f"{Path(frames).parent.name}-{loss}-{n_members}-{n_draws}{suffix}.pt"
    path = CACHE / _source_digest() / name
    if not path.exists():
        source = str(data_file(frames))
        posterior = EvidentialConfig() if loss == "evidential" else EnsembleConfig()
        config = Config(
            data=DataConfig(train=f"{source}@0:2", valid=f"{source}@2:3"),
            loss=LossConfig(kind=loss),  # type: ignore[arg-type]
            posterior=posterior,
        )
        data = load_training_data(config)
        members = [
            build_potential(config.model, config.loss, data.statistics, seed=seed)
            for seed in range(n_members)
        ]
        if n_draws > 0:
            members = [_uncertain(member, n_draws) for member in members]
        # A probe of a few atoms: loading evaluates it, and should not take long.
        few = data.train[0].atoms
        few = few[:: max(1, len(few) // 24)]
        probe = {
            "numbers": few.numbers.tolist(),
            "positions": few.positions.tolist(),
            "cell": few.cell.array.tolist(),
            "pbc": few.pbc.tolist(),
        }
        export_members(members, config, {**data.record(), "probe": probe}, path)
    if compile_for is not None and compiled_record(path, *compile_for) is None:
        from ase_bayesmlip.serving.compiler import compile_served

        device, dtype = compile_for
        with contextlib.nullcontext() if kernels else _no_kernels():
            compile_served(path, device=device, dtype=dtype)
    return path


def _no_kernels() -> contextlib.AbstractContextManager[Any]:
    """While it lasts, programs are compiled from the formulas in torch."""
    return mock.patch.object(StackedPotential, "use_kernels")


def _uncertain(potential: Potential, n_draws: int) -> LastLayerPotential:
    n_weights = len(readout_weights(potential))
    factor = 1e-3 * torch.eye(n_weights, dtype=torch.float64)
    noise = torch.randn(
        n_weights, n_draws, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    return LastLayerPotential(potential, factor, factor @ noise)


def compiled_record(path: Path, device: str, dtype: str) -> dict[str, Any] | None:
    """What the card says of the program compiled for this device and dtype."""
    for record in read_card(path).compiled:
        if (record["device"], record["dtype"]) == (device, dtype):
            return record
    return None


def _source_digest() -> str:
    folder = Path(ase_bayesmlip.__file__).parent
    content = b"".join(path.read_bytes() for path in sorted(folder.rglob("*.py")))
    return hashlib.sha256(content + torch.__version__.encode()).hexdigest()[:12]


def record(line: dict[str, Any], path: Path | None) -> None:
    """Print a line at once, and append it to the file if there is one: a later case may fail."""
    text = json.dumps(line, ensure_ascii=False)
    print(text, flush=True)
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")


def conditions(device: str = "cpu") -> dict[str, Any]:
    """When and where: the first entries of every JSON line."""
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "device": device,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "ase_bayesmlip": ase_bayesmlip.__version__,
    }


def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
