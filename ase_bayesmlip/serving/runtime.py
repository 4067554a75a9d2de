"""Load a served file and run it: device, dtype, backend, freezing, and the self-test."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

from ase_bayesmlip.card import ModelCard, read_card
from ase_bayesmlip.graph import AtomicGraph, batch_graphs
from ase_bayesmlip.nn.allocator import keep_freed_memory
from ase_bayesmlip.prediction import Prediction
from ase_bayesmlip.serving.archive import folder_of, quiet_torchscript, read_compiled
from ase_bayesmlip.serving.compiled import CompiledProgram, obstacle
from ase_bayesmlip.structures.neighbors import graph_of

DTYPES = {"float32": torch.float32, "float64": torch.float64}
BACKENDS = ("auto", "torchscript", "aoti")

# Largest deviation of the self-test, relative to the size of what is compared.
PROBE_TOLERANCE = {"float32": 1e-3, "float64": 1e-7}

# Relative error of one member's energies and forces that a spread of members may show.
MEMBER_ERROR = {"float32": 1e-5, "float64": 1e-12}


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A served model, ready to run.

    Attributes
    ----------
    module : torch.jit.ScriptModule
    card : ModelCard
    device : torch.device
    dtype : str
    path : str
    program : CompiledProgram or None
        Takes the place of the module where it can.
    """

    module: Any
    card: ModelCard
    device: torch.device
    dtype: str
    path: str
    program: CompiledProgram | None = None

    @property
    def backend(self) -> str:
        """What evaluates structures: "aoti" or "torchscript"."""
        return "torchscript" if self.program is None else "aoti"

    @property
    def lazy(self) -> bool:
        """Whether a step without the covariances of forces takes less work, see `predict`."""
        return self.card.lazy if self.program is None else self.program.has_lean

    def predict(
        self,
        graphs: list[AtomicGraph],
        stress: bool = False,
        members: bool = False,
        force_spread: bool = True,
    ) -> Prediction:
        """Mean and covariance for a list of structures.

        Without `force_spread` the epistemic covariances of forces and stress are left out where
        they take work of their own (`lazy`).

        Works inside ``torch.inference_mode`` and ``torch.no_grad`` too: forces need gradients.
        """
        batch = batch_graphs(graphs)
        # Compiled programs leave out the special cases of a single atom.
        if self.program is not None and len(batch.positions) > 1:
            return self.program(batch, stress, members, force_spread)
        with torch.inference_mode(False), torch.enable_grad():
            graph = _prepared(batch, self.device)
            # Files from before there were draws take no third switch.
            left_out = (False,) if self.card.lazy and not force_spread else ()
            prediction = self.module(graph, stress, members, *left_out)
        # Freezing drops the program's own detach(), and with it the end of the autograd graph.
        detached = (None if value is None else value.detach() for value in prediction)
        return Prediction(*detached)  # type: ignore[arg-type]


def _prepared(graph: AtomicGraph, device: torch.device) -> AtomicGraph:
    """A contiguous copy on the device that gradients may be taken of, whatever made the original.

    Coordinates stay in float64; a float32 model rounds the differences it takes of them.
    """
    floating = ("positions", "cell", "edge_shift")
    fields = {
        name: value
        if name == "n_graphs"
        else value.to(
            device=device,
            dtype=torch.float64 if name in floating else torch.int64,
            copy=True,
            memory_format=torch.contiguous_format,
        )
        for name, value in graph._asdict().items()
    }
    return AtomicGraph(**fields)


def load_model(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: str | None = None,
    backend: str = "auto",
) -> LoadedModel:
    """Load a served file, move it to a device and check that it still gives its own numbers.

    For the CPU the process then keeps freed memory, see `keep_freed_memory`.

    Parameters
    ----------
    path : path
    device : str or torch.device
    dtype : "float32", "float64" or None
        None takes the precision of the training; reductions are in float64 either way.
    backend : "auto", "torchscript" or "aoti"
        "auto" takes the program compiled for this machine, device and dtype where the file has
        one. A compiled program that cannot run here, or is missing though "aoti" was asked for,
        gives way to TorchScript with one warning.

    Raises
    ------
    FileNotFoundError
    ValueError
        If the file is not ours, cut short, or of a newer format; if the device, dtype or backend
        is unknown or absent; if the probe structure gives other numbers than when it was saved.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is unknown; choose {', '.join(BACKENDS)}")
    card = read_card(path)
    dtype = card.dtype if dtype is None else str(dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown; choose {' or '.join(DTYPES)}")
    target = find_device(device)
    if target.type == "cpu":
        keep_freed_memory()
    try:
        with quiet_torchscript():
            module = torch.jit.load(str(path), map_location="cpu")
    except RuntimeError as error:
        raise ValueError(
            f"{path}: torch {torch.__version__} cannot load the program in the file ({error}); "
            f"the file was written with torch {card.versions.get('torch', 'unknown')}"
        ) from error
    _cast(module, DTYPES[dtype])
    if target.type == "cuda" and hasattr(module, "numbers_at_once"):  # older files take all at once
        module.numbers_at_once = _numbers_that_fit(target, DTYPES[dtype])
    with quiet_torchscript():
        module = torch.jit.freeze(module.to(target).eval())
    program = None if backend == "torchscript" else _compiled_program(path, card, target, dtype)
    if program is None and backend == "aoti" and not _records(card, target, dtype):
        warnings.warn(
            f"{path} has no program compiled for {target.type} in {dtype}; TorchScript is used. "
            f"Compile one with: bayesmlip compile {path}",
            stacklevel=2,
        )
    model = LoadedModel(module, card, target, dtype, str(path), program)
    _self_test(model)
    return model


def _records(card: ModelCard, device: torch.device, dtype: str) -> list[dict[str, Any]]:
    return [r for r in card.compiled if (r["device"], r["dtype"]) == (device.type, dtype)]


def _compiled_program(
    path: str | Path, card: ModelCard, device: torch.device, dtype: str
) -> CompiledProgram | None:
    """The program of the file for this device and dtype; None, with a warning, if it fails."""
    for record in _records(card, device, dtype):
        problem = obstacle(record, device)
        if problem is None:
            folder = folder_of(record)
            content = read_compiled(Path(path), [record])
            files = {name.removeprefix(folder): data for name, data in content.items()}
            try:
                return CompiledProgram(record, files, device)
            except (RuntimeError, OSError) as error:
                problem = str(error)
        warnings.warn(
            f"the compiled program in {path} cannot run here ({problem}); TorchScript is used. "
            f"Compile it again with: bayesmlip compile {path}",
            stacklevel=3,
        )
    return None


def find_device(device: str | torch.device) -> torch.device:
    """The device of that name, or a `ValueError` that says which there are."""
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is unknown; choose 'cpu' or 'cuda'") from error
    if target.type not in ("cpu", "cuda"):
        raise ValueError(f"device {str(device)!r} is not supported; choose 'cpu' or 'cuda'")
    if target.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device 'cuda' was asked for, but torch sees no GPU; use device='cpu', or install a "
            "CUDA build of torch"
        )
    return target


def _numbers_that_fit(device: torch.device, dtype: torch.dtype) -> int:
    """How many a step may hold on a GPU: those of half its memory, the same in every run."""
    return torch.cuda.get_device_properties(device).total_memory // (2 * dtype.itemsize)


# Buffers that stay in float64: reference energies dwarf the rest, and moments are in float64.
IN_FLOAT64 = ("reference_energies", "variance_scaling")


def _cast(module: Any, dtype: torch.dtype) -> None:
    """Cast weights and constants, but those `IN_FLOAT64`."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point() and not name.startswith(IN_FLOAT64):
            tensor.data = tensor.data.to(dtype)


def probe_graph(probe: dict[str, Any], cutoff: float) -> AtomicGraph:
    """The probe structure of a card as a graph."""
    atoms = Atoms(probe["numbers"], probe["positions"], cell=probe["cell"], pbc=probe["pbc"])
    return graph_of(atoms, cutoff)


def expected_numbers(prediction: Prediction) -> dict[str, Any]:
    """What the self-test compares: energy, forces, and every variance the model gives."""
    names = [
        "energy",
        "forces",
        "energy_var_epistemic",
        "energy_var_aleatoric",
        "forces_cov_epistemic",
        "forces_cov_aleatoric",
    ]
    values = {name: getattr(prediction, name) for name in names}
    return {
        name: value.detach().to("cpu", torch.float64).tolist()
        for name, value in values.items()
        if value is not None
    }


def _self_test(model: LoadedModel) -> None:
    """Evaluate the probe twice (the first calls specialise the program) and compare."""
    probe = model.card.probe
    if not probe:
        return
    graph = probe_graph(probe, model.card.cutoff)
    for _ in range(2):
        found = expected_numbers(model.predict([graph]))
    allowed = _allowed_deviations(model)
    for name, expected in probe["expected"].items():
        deviation = np.abs(np.asarray(found[name]) - np.asarray(expected)).max()
        # Written so that NaN fails.
        if not deviation <= allowed[name]:
            raise ValueError(
                f"{model.path} fails its self-test on {model.device} in {model.dtype}: {name} of "
                f"the probe structure deviates by {deviation:.3g} (allowed {allowed[name]:.3g})."
                f" It was written with torch {model.card.versions.get('torch')}, this is "
                f"{torch.__version__}; export it again from the training run"
            )


def _allowed_deviations(model: LoadedModel) -> dict[str, float]:
    """Largest deviation of each probe number.

    A variance over members is a square of small differences: with a rounding error δ in each
    member, σ² may change by 2σδ + δ².
    """
    probe = model.card.probe
    symbols = Atoms(probe["numbers"]).get_chemical_symbols()
    offset = sum(model.card.reference_energies[symbol] for symbol in symbols)
    expected = {name: np.abs(np.asarray(value)) for name, value in probe["expected"].items()}
    interaction = np.abs(np.asarray(probe["expected"]["energy"]) - offset).max()
    scales = {"energy": interaction, "forces": expected["forces"].max()}
    # What a compiled program was off by when it was compiled, and a little more.
    measured = {} if model.program is None else model.program.record["deviation"]
    allowed = {}
    for name, size in expected.items():
        largest = interaction if name == "energy" else size.max()
        tolerance = max(PROBE_TOLERANCE[model.dtype], 2.0 * measured.get(name, 0.0))
        allowed[name] = tolerance * max(largest, 1e-6)
        if name.endswith("epistemic"):
            rounding = MEMBER_ERROR[model.dtype] * scales[name.split("_")[0]]
            allowed[name] += rounding * (2.0 * np.sqrt(largest) + rounding)
    return allowed
