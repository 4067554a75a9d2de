"""Load a served file and run it: device, dtype, backend, freezing, and the self-test."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from ase_bayesmlip.card import ModelCard, read_card
from ase_bayesmlip.card.describe import summary
from ase_bayesmlip.graph import AtomicGraph, batch_graphs
from ase_bayesmlip.nn.allocator import keep_freed_memory
from ase_bayesmlip.prediction import Prediction
from ase_bayesmlip.serving.archive import quiet_torchscript
from ase_bayesmlip.serving.compiled import CompiledProgram, obstacle
from ase_bayesmlip.serving.parts import PartError, check_names, checked_parts, made_here
from ase_bayesmlip.serving.self_test import (
    check_program,
    disagreement_of,
    self_test,
)

DTYPES = {"float32": torch.float32, "float64": torch.float64}
BACKENDS = ("auto", "torchscript", "aoti")


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
        Absolute, so that it names the file in another process, too.
    program : CompiledProgram or None
        Takes the place of the module.
    fields : frozenset of str
        Fields of a `Prediction` that this file gives, stress and members among them.
    sha256 : str
        Of the file.
    asked_backend : str
        What was asked for; `backend` is what came of it.

    Notes
    -----
    Copies share the model: it does not change. A pickle holds where the file is, its checksum and
    the settings, and loads it anew: the file must be there, and be the same.
    """

    module: Any
    card: ModelCard
    device: torch.device
    dtype: str
    path: str
    program: CompiledProgram | None = None
    fields: frozenset[str] = frozenset()
    sha256: str = ""
    asked_backend: str = "auto"

    def __repr__(self) -> str:
        where = f"in {self.dtype} on {self.device} ({self.backend})"
        return f"<{type(self).__name__} {Path(self.path).name} {where}: {summary(self.card)}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> LoadedModel:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # What ran here runs there: no warning of a program that is not run is repeated.
        backend = "torchscript" if self.program is None else self.asked_backend
        return _load_again, (self.path, str(self.device), self.dtype, backend, self.sha256)

    @property
    def backend(self) -> str:
        """What evaluates structures: "aoti" or "torchscript"."""
        return "torchscript" if self.program is None else "aoti"

    @property
    def is_current(self) -> bool:
        """Whether the file is still the one that was loaded."""
        return Path(self.path).is_file() and _checksum(self.path) == self.sha256

    @property
    def lazy(self) -> bool:
        """Whether a step without the covariances of forces takes less work, see `predict`."""
        return self.card.lazy if self.program is None else self.program.has_lean

    def predict(
        self,
        graphs: list[AtomicGraph],
        stress: bool = False,
        members: bool = False,
        lazy: bool = False,
    ) -> Prediction:
        """Mean and covariance for a list of structures.

        A `lazy` call leaves out the epistemic covariances of forces and stress where they take work
        of their own (property `lazy`).

        Works inside ``torch.inference_mode`` and ``torch.no_grad`` too: forces need gradients.
        """
        batch = batch_graphs(graphs)
        if self.program is not None:
            return self.program(batch, stress, members, lazy)
        with torch.inference_mode(False), torch.enable_grad():
            graph = _prepared(batch, self.device)
            # The switch `force_spread`, which files from before there were draws do not take.
            switch = (False,) if lazy and self.card.lazy else ()
            prediction = self.module(graph, stress, members, *switch)
        # Freezing drops the program's own detach(), and with it the end of the autograd graph.
        detached = (None if value is None else value.detach() for value in prediction)
        return Prediction(*detached)  # type: ignore[arg-type]


def _load_again(path: str, device: str, dtype: str, backend: str, sha256: str) -> LoadedModel:
    """A model from its pickle.

    Raises
    ------
    FileNotFoundError, ValueError
        If the file is not there, or is another than it was.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"no model file at {path}, from which a pickled calculator loads its model: a pickle "
            "holds the path of the file, which this machine must see, and not the model"
        )
    if _checksum(path) != sha256:
        raise ValueError(
            f"{path} has changed since the calculator was pickled (SHA-256 {sha256[:16]}... then): "
            "its numbers may be others; make the calculator again from the path"
        )
    return load_model(path, device, dtype, backend)


def _checksum(path: str | Path) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        "auto" takes the program that was compiled on this machine for the device and dtype, where
        the file has one. Machine code that was compiled elsewhere runs with "aoti" alone: ask for
        it if you trust where the file comes from (`serving.parts`). A compiled program that may
        not or cannot run here, is damaged, or is missing though "aoti" was asked for, gives way to
        TorchScript with one warning. "torchscript" loads no machine code.

    Raises
    ------
    FileNotFoundError
    ValueError
        If the file is not ours, cut short, or of a newer format, or holds anything that a served
        file does not; if the device, dtype or backend is unknown or absent; if card and program
        contradict each other; if the probe structure gives other numbers than when it was saved.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is unknown; choose {', '.join(BACKENDS)}")
    card = read_card(path)
    check_names(Path(path))
    absolute, digest = os.path.abspath(path), _checksum(path)  # noqa: PTH100 (keeps links)
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
    check_program(module, card, path)
    _cast(module, DTYPES[dtype])
    if target.type == "cuda" and hasattr(module, "numbers_at_once"):  # older files take all at once
        module.numbers_at_once = _numbers_that_fit(target, DTYPES[dtype])
    with quiet_torchscript():
        module = torch.jit.freeze(module.to(target).eval())
    model = LoadedModel(module, card, target, dtype, absolute, None, frozenset(), digest, backend)
    program = None
    if backend != "torchscript":
        program = _compiled_program(model, asked=backend == "aoti")
    if program is None and backend == "aoti" and not _records(card, target, dtype):
        warnings.warn(
            f"{path} has no program compiled for {target.type} in {dtype}; TorchScript is used. "
            f"Compile one with: bayesmlip compile {path}",
            stacklevel=2,
        )
    model = dataclasses.replace(model, program=program)
    return dataclasses.replace(model, fields=self_test(model))


def _records(card: ModelCard, device: torch.device, dtype: str) -> list[dict[str, Any]]:
    return [r for r in card.compiled if (r["device"], r["dtype"]) == (device.type, dtype)]


def _compiled_program(model: LoadedModel, asked: bool) -> CompiledProgram | None:
    """The program of the file for this device and dtype; None, with a warning, if it fails."""
    path = model.path
    for record in _records(model.card, model.device, model.dtype):
        problem = obstacle(record, model.device)
        if problem is None and not asked and not made_here(record.get("sha256", {}).values()):
            warnings.warn(
                f"the compiled program in {path} is machine code that this machine has not "
                "compiled; TorchScript is used. If you trust the file, allow it with "
                f'backend="aoti", or compile it here: bayesmlip compile {path}',
                stacklevel=3,
            )
            continue
        if problem is None:
            try:
                program = CompiledProgram(record, checked_parts(Path(path), record), model.device)
                problem = disagreement_of(program, model)
            except (RuntimeError, OSError, PartError) as error:
                problem = str(error)
            else:
                if problem is None:
                    return program
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
    except (RuntimeError, TypeError) as error:
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
