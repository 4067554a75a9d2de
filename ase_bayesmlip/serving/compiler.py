"""Compile a served file for this machine: kernels by the C++ compiler, the rest by AOTInductor.

The compiled program goes into the file, beside the TorchScript program that stays the reference.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

from ase_bayesmlip.card import ModelCard
from ase_bayesmlip.config import LossConfig, ModelConfig, completed
from ase_bayesmlip.config.strict import from_dict
from ase_bayesmlip.graph import AtomicGraph, batch_graphs
from ase_bayesmlip.nn.build import DataStatistics, build_potential
from ase_bayesmlip.nn.last_layer import LastLayerPotential
from ase_bayesmlip.nn.leverage import Leverage
from ase_bayesmlip.nn.potential import Potential
from ase_bayesmlip.nn.stacked.operators import INTERFACE, load_kernels
from ase_bayesmlip.serving.agreement import deviations, disagreement, excess, largest
from ase_bayesmlip.serving.archive import add_compiled, quiet_torchscript
from ase_bayesmlip.serving.compiled import CompiledProgram, machine_of, program_inputs
from ase_bayesmlip.serving.parts import remember
from ase_bayesmlip.serving.program import MixtureProgram
from ase_bayesmlip.serving.runtime import (
    DTYPES,
    LoadedModel,
    find_device,
    load_model,
)
from ase_bayesmlip.serving.self_test import both, probe_graph
from ase_bayesmlip.serving.variance_scaling import set_factors, total_factors
from ase_bayesmlip.structures.neighbors import graph_of

FLAGS = ["-std=c++17", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]

# With AOTInductor's own vector code (torch 2.13) a program of 16 members of the default shape ended
# in a corrupted heap; without it the same program was clean under a memory checker, and the C++
# compiler vectorises the loops by itself. The cause in torch was not found (November 2026).
OPTIONS = {"cpp.simdlen": 1}


def compile_served(path: Path, device: str = "cpu", dtype: str | None = None) -> ModelCard:
    """Compile the posterior in a served file for this machine and keep the result in the file.

    Parameters
    ----------
    path : Path
        Rewritten with the compiled program and its checksums, which are also noted down on this
        machine (`serving.parts`); an interruption leaves the file as it was.
    device : "cpu" or "cuda"
    dtype : "float32", "float64" or None
        None takes the precision of the training.

    Returns
    -------
    ModelCard
        With the record of the compilation in `compiled`.

    Warns
    -----
    UserWarning
        If the note cannot be written, e.g. where the home folder is read-only.

    Raises
    ------
    FileNotFoundError, ValueError
        As `load_model`; if radial networks cannot be tabulated.
    RuntimeError
        If there is no C++ compiler, if compilation fails, or if the compiled program deviates from
        the reference.
    """
    path = Path(path)
    target = find_device(device)
    started = time.monotonic()
    reference = load_model(path, dtype="float64", backend="torchscript")
    card = reference.card
    dtype = dtype or card.dtype
    members, references, leverage = rebuild_members(path, card)
    program = MixtureProgram(members, references, DTYPES[dtype], leverage)
    set_factors(program.variance_scaling, total_factors(card))
    program = program.to(target)
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.filterwarnings("ignore")  # notes of the compiler that a user cannot act on
        folder = Path(name)
        files: dict[str, bytes] = {}
        digest = ""
        if target.type == "cpu":
            library, digest = build_kernels(program.stacked.kernel_source(DTYPES[dtype]), folder)
            load_kernels(library, digest)
            program.stacked.use_kernels(digest)
            files["kernels.so"] = library.read_bytes()
        fields = {}
        for file in ("program.pt2", "lean.pt2") if program.n_draws > 0 else ("program.pt2",):
            program.lazy = file == "lean.pt2"
            try:
                fields[file] = _compile(program, card, target, folder / file)
            except Exception as error:  # whatever the exporter or compiler may raise
                raise RuntimeError(f"AOTInductor cannot compile {path}: {error}") from error
            files[file] = (folder / file).read_bytes()
        record = {
            "device": target.type,
            "dtype": dtype,
            "fields": fields["program.pt2"],
            "lean_fields": fields.get("lean.pt2", []),
            "digest": digest,
            "interface": INTERFACE,
            "torch": str(torch.__version__),
            "machine": machine_of(target),
            "table_error": program.table_error,
        }
        compiled = CompiledProgram(record, files, target)
        record["deviation"] = _compare(compiled, reference, dtype)
    record["seconds"] = round(time.monotonic() - started, 1)
    # Another program may have come into the file in these minutes.
    card = add_compiled(path, record, files, card if reference.is_current else None)
    _remember(card.compiled[-1], path)
    return card


def _remember(record: dict[str, Any], path: Path) -> None:
    """Note down that this machine made the parts, so that they run here without being asked for."""
    try:
        remember(record["sha256"].values())
    except OSError as error:
        warnings.warn(
            f"what was compiled here cannot be noted down ({error}): {path} runs its compiled "
            'program only when asked to, with backend="aoti"',
            stacklevel=3,
        )


def rebuild_members(
    path: Path, card: ModelCard
) -> tuple[list[Potential | LastLayerPotential], torch.Tensor, Leverage | None]:
    """Potentials of a served file, in float64, its reference energies, and its leverage."""
    model = from_dict(ModelConfig, completed(card.config)["model"])
    loss = from_dict(LossConfig, card.config["loss"])
    with quiet_torchscript():
        module = torch.jit.load(str(path), map_location="cpu")
    members: list[Potential | LastLayerPotential] = []
    for scripted in module.members.children():
        network = scripted.potential if card.n_draws > 0 else scripted
        state = network.state_dict()
        convolution = next(network.layers.children()).convolution
        statistics = DataStatistics(
            card.atomic_numbers,
            list(card.reference_energies.values()),
            avg_n_neighbors=1.0 / convolution.normalisation,
            force_rms=float(state["scale"]),
            anchored=bool(card.anchored),
        )
        potential = build_potential(model, loss, statistics, seed=0)
        potential.load_state_dict({name: state[name] for name in potential.state_dict()})
        if potential.pairs is not None:
            potential.pairs.table.copy_(network.pairs.table)
        potential.eval().requires_grad_(False)
        if card.n_draws > 0:
            # Files from before readouts were resolved by element have no shift.
            names = [n for n in ("factor", "deviations", "shift") if hasattr(scripted, n)]
            tensors = [getattr(scripted, name).double() for name in names]
            members.append(LastLayerPotential(potential, *tensors))
        else:
            members.append(potential)
    found = getattr(module, "leverage", None)
    leverage = None if found is None else Leverage(found.centre.double(), found.factor.double())
    return members, module.reference_energies.detach().to(torch.float64), leverage


def build_kernels(source: str, folder: Path) -> tuple[Path, str]:
    """Compile C++ source to a shared library.

    Returns
    -------
    path : Path
    digest : str
        Of source, compiler and flags: names the library for `operators.load_kernels`.

    Raises
    ------
    RuntimeError
        If there is no C++ compiler or it fails; the message has its output.
    """
    compiler = os.environ.get("CXX", "g++")
    digest = hashlib.sha256("\n".join([source, compiler, *FLAGS]).encode()).hexdigest()[:16]
    text, library = folder / "kernels.cpp", folder / "kernels.so"
    text.write_text(source, encoding="utf-8")
    command = [*shlex.split(compiler), *FLAGS, "-shared", "-fPIC", "-o", str(library), str(text)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise RuntimeError(
            f"the C++ compiler {compiler!r} cannot be run ({error}): install g++, or name yours in "
            "the environment variable CXX"
        ) from error
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return library, digest


def _compile(
    program: MixtureProgram, card: ModelCard, device: torch.device, package: Path
) -> list[str]:
    """Export with dynamic sizes and compile to that file; returns the fields it gives."""
    inputs = program_inputs(_example_graph(card), device)
    known = program.prediction(*inputs)._asdict()
    n_atoms = torch.export.Dim("n_atoms", min=2)
    width = torch.export.Dim("width", min=2)
    n_graphs = torch.export.Dim("n_graphs", min=1)
    table = {0: n_atoms, 1: width}
    shapes = ({0: n_atoms}, {0: n_atoms}, {0: n_graphs}, {0: n_atoms}, table, table, {0: n_atoms})
    exported = torch.export.export(program, inputs, dynamic_shapes=(shapes,), strict=False)
    torch._inductor.aoti_compile_and_package(
        exported, package_path=str(package), inductor_configs=OPTIONS
    )
    return [name for name, value in known.items() if value is not None]


def _example_graph(card: ModelCard) -> AtomicGraph:
    """Two boxes of atoms for tracing; no size coincides with another, lest they be tied."""
    generator = np.random.default_rng(0)
    boxes = []
    for n_atoms in (13, 10):
        grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3)[:n_atoms]
        positions = 0.4 * card.cutoff * (grid + 0.1 * generator.standard_normal((n_atoms, 3)))
        numbers = generator.choice(card.atomic_numbers, n_atoms)
        cell = 1.2 * card.cutoff * np.eye(3)
        boxes.append(Atoms(numbers, positions, cell=cell, pbc=[True, True, False]))
    return batch_graphs([graph_of(atoms, card.cutoff) for atoms in boxes])


def _compare(compiled: CompiledProgram, reference: LoadedModel, dtype: str) -> dict[str, float]:
    """Largest deviation of each field from the TorchScript program in float64, relative.

    Raises
    ------
    RuntimeError
        If one is larger than it may be.
    """
    card = reference.card
    graphs = [_example_graph(card)] + ([probe_graph(card.probe, card.cutoff)] if card.probe else [])
    found: list[dict[str, float]] = []
    for run, says in both(compiled, reference):
        found += [deviations(run(graph), says(graph), graph, card) for graph in graphs]
        found.append(disagreement(card, run, says))
    worst = largest(found)
    problem = excess(worst, dtype)
    if problem is not None:
        raise RuntimeError(
            f"the compiled program deviates from the reference: {problem}; the file is unchanged"
        )
    return worst
