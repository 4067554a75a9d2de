"""Run a compiled program from a served file, if this machine is like the one it was made on."""

from __future__ import annotations

import logging
import platform
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ase_bayesmlip.graph import AtomicGraph, batch_graphs, dense_edges
from ase_bayesmlip.nn.stacked.operators import INTERFACE, load_kernels
from ase_bayesmlip.prediction import Prediction
from ase_bayesmlip.serving.parts import PARTS

CPU_INFO = Path("/proc/cpuinfo")
# Prefixes of the instruction sets that compilers use for numerics.
INSTRUCTION_SETS = ("sse", "avx", "fma", "f16c", "bmi", "amx", "asimd", "sve")

# Fields of a prediction that are given only when asked for.
NO_STRESS = {name: None for name in Prediction._fields if name.startswith("stress")}
NO_MEMBERS = {name: None for name in Prediction._fields if name.endswith("_members")}


def machine_of(device: torch.device) -> dict[str, Any]:
    """What a compiled program depends on, besides the version of torch."""
    found: dict[str, Any] = {"system": platform.system(), "machine": platform.machine()}
    if device.type == "cuda":
        return found | {"capability": list(torch.cuda.get_device_capability(device))}
    return found | {"instructions": _instructions()}


def _instructions() -> list[str]:
    if not CPU_INFO.is_file():
        return []
    for line in CPU_INFO.read_text(encoding="utf-8").splitlines():
        if line.lower().startswith(("flags", "features")):
            flags = line.split(":", 1)[1].split()
            return sorted(flag for flag in flags if flag.startswith(INSTRUCTION_SETS))
    return []


def obstacle(record: dict[str, Any], device: torch.device) -> str | None:
    """Why a compiled program cannot run here, None if it can."""
    if record["torch"] != torch.__version__:
        return f"it was compiled for torch {record['torch']}, this is {torch.__version__}"
    if record.get("interface", 1) != INTERFACE:
        return "it was compiled by another version of ase_bayesmlip"
    here, there = machine_of(device), dict(record["machine"])
    missing = sorted(set(there.pop("instructions", [])) - set(here.pop("instructions", [])))
    if missing:
        return f"it was compiled for a processor with {', '.join(missing)}, which this one lacks"
    if here != there:
        return f"it was compiled for {there}, this machine is {here}"
    return None


def program_inputs(graph: AtomicGraph, device: torch.device) -> tuple[Tensor, ...]:
    """A graph as the arguments of `MixtureProgram`, on the device."""
    return _atom_inputs(graph, device) + _on_device(dense_edges(graph), device)


def _atom_inputs(graph: AtomicGraph, device: torch.device) -> tuple[Tensor, ...]:
    atoms = (graph.positions, graph.atomic_numbers, graph.cell, graph.batch)
    return _on_device(atoms, device)


def _on_device(items: Iterable[Tensor], device: torch.device) -> tuple[Tensor, ...]:
    """What enters a program: it reads memory in order and takes no notice of strides."""
    return tuple(
        item.to(device, torch.float64 if item.is_floating_point() else torch.int64).contiguous()
        for item in items
    )


class EdgeTable:
    """`dense_edges` on a device, kept from one graph to the next while the edges are the same.

    A step of a small system seldom brings a neighbour into the cutoff or out of it.

    Parameters
    ----------
    device : torch.device
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._last: tuple[AtomicGraph, tuple[Tensor, ...]] | None = None

    def __call__(self, graph: AtomicGraph) -> tuple[Tensor, ...]:
        """Fields of the `DenseEdges` of a graph, on the device; not to be written to."""
        # Read once and set once, so that threads do not mix their graphs.
        last = self._last
        if last is not None and _same_edges(last[0], graph):
            return last[1]
        table = _on_device(dense_edges(graph), self.device)
        # A copy: the graph may be changed in place.
        copied = {name: getattr(graph, name).clone() for name in ("edge_index", "edge_shift")}
        self._last = graph._replace(**copied), table
        return table


def _same_edges(one: AtomicGraph, other: AtomicGraph) -> bool:
    return (
        len(one.positions) == len(other.positions)
        and one.edge_index.device == other.edge_index.device
        and torch.equal(one.edge_index, other.edge_index)
        and torch.equal(one.edge_shift, other.edge_shift)
    )


def _first_half(name: str, value: Tensor | None) -> Tensor | None:
    """Of two equal structures of one atom, the first; members have an axis before it."""
    return None if value is None else value.narrow(int(name.endswith("_members")), 0, 1)


@contextmanager
def _quiet_loader() -> Iterator[None]:
    """Silence torch's comparison of vector instructions: `obstacle` has made a stricter one."""
    logger = logging.getLogger("torch.export.pt2_archive._package")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class CompiledProgram:
    """A compiled mixture, unpacked and loaded.

    Parameters
    ----------
    record : dict
        From `ModelCard.compiled`.
    files : dict of str to bytes
        ``program.pt2``, ``lean.pt2`` where covariances of forces take work that a step may leave
        out, and, for the CPU, ``kernels.so``.
    device : torch.device

    Raises
    ------
    RuntimeError, OSError
        If the program cannot be loaded here.
    """

    def __init__(
        self, record: dict[str, Any], files: dict[str, bytes], device: torch.device
    ) -> None:
        self.record, self.device = record, device
        self.has_lean = "lean.pt2" in files
        self._edge_table = EdgeTable(device)
        # Libraries stay mapped after their files are gone.
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for file in PARTS:  # no name from the file ends in a path
                if file in files:
                    (folder / file).write_bytes(files[file])
            if "kernels.so" in files:
                load_kernels(folder / "kernels.so", record["digest"])
            load = torch._inductor.aoti_load_package
            with _quiet_loader():
                self._run = load(str(folder / "program.pt2"))
                self._lean = load(str(folder / "lean.pt2")) if self.has_lean else self._run

    def __call__(
        self, graph: AtomicGraph, stress: bool, members: bool, lazy: bool = False
    ) -> Prediction:
        """Evaluate a graph; fields not asked for are None.

        Programs leave out the special cases of a single atom: it is evaluated twice at once.
        """
        single = len(graph.positions) == 1
        if single:
            graph = batch_graphs([graph, graph])
        lazy = lazy and self.has_lean
        run, names = (self._lean, "lean_fields") if lazy else (self._run, "fields")
        values: dict[str, Any] = dict.fromkeys(Prediction._fields)
        outputs = run(*_atom_inputs(graph, self.device), *self._edge_table(graph))
        values.update(zip(self.record[names], outputs, strict=True))
        if single:
            values = {name: _first_half(name, value) for name, value in values.items()}
        if not stress:
            values.update(NO_STRESS)
        if not members:
            values.update(NO_MEMBERS)
        return Prediction(**values)
