"""Whether a served file is what its card says: its program, and the numbers of its probe."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols

from ase_bayesmlip.card import ModelCard
from ase_bayesmlip.graph import AtomicGraph
from ase_bayesmlip.prediction import Prediction
from ase_bayesmlip.serving.agreement import (
    Evaluate,
    disagreement,
    excess,
    largest,
    trial_graphs,
)
from ase_bayesmlip.serving.compiled import CompiledProgram
from ase_bayesmlip.structures.neighbors import graph_of

# Largest deviation of the self-test, relative to the size of what is compared.
PROBE_TOLERANCE = {"float32": 1e-3, "float64": 1e-7}

# Relative error of one member's energies and forces that a spread of members may show.
MEMBER_ERROR = {"float32": 1e-5, "float64": 1e-12}


class Model(Protocol):
    """What is tested: a `runtime.LoadedModel`."""

    @property
    def card(self) -> ModelCard:
        """What the file says of itself."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""

    @property
    def dtype(self) -> str:
        """In which precision."""

    @property
    def path(self) -> str:
        """Of the file, for messages."""

    @property
    def program(self) -> CompiledProgram | None:
        """What takes the place of the TorchScript program."""

    def predict(
        self,
        graphs: list[AtomicGraph],
        stress: bool = False,
        members: bool = False,
        lazy: bool = False,
    ) -> Prediction:
        """Mean and covariance for a list of structures."""


def check_program(module: Any, card: ModelCard, path: str | Path) -> None:
    """Refuse a card that speaks of another program: its error bars would be of something else."""
    if not hasattr(module, "members") or not hasattr(module, "reference_energies"):
        raise ValueError(f"{path} holds another program than its card says: no mixture of members")
    members = list(module.members.children())
    draws = {m.deviations.shape[1] if hasattr(m, "deviations") else 0 for m in members}
    energies = module.reference_energies[card.atomic_numbers].tolist()
    named = dict(zip(map(chemical_symbols.__getitem__, card.atomic_numbers), energies, strict=True))
    for what, there, here in (
        ("n_members", len(members), card.n_members),
        ("n_draws", draws, {card.n_draws}),
        ("reference_energies", named, card.reference_energies),
    ):
        if there != here:
            raise ValueError(
                f"{path}: the card says {what} {here}, the program has {there}; one of them was "
                "changed: take the file from where it was written, or serve it again"
            )


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


def both(program: CompiledProgram, model: Model) -> Iterator[tuple[Evaluate, Evaluate]]:
    """What to compare: the program and the TorchScript model, then lazy steps of both.

    A lazy step has other members: the networks in the place of their draws.
    """
    for lazy in (False, True) if program.has_lean else (False,):

        def says(graph: AtomicGraph, lazy: bool = lazy) -> Prediction:
            return model.predict([graph], True, True, lazy)

        yield partial(program, stress=True, members=True, lazy=lazy), says


def disagreement_of(program: CompiledProgram, model: Model) -> str | None:
    """In what a program says something else than the TorchScript model; None if in nothing."""
    found = largest(disagreement(model.card, *pair) for pair in both(program, model))
    problem = excess(found, model.dtype)
    return None if problem is None else f"it does not agree with TorchScript: {problem}"


def self_test(model: Model) -> frozenset[str]:
    """Evaluate the probe twice (the first calls specialise the program) and compare.

    A card without a probe has nothing to compare with; a crystal takes its place.

    Returns
    -------
    frozenset of str
        Fields of a `Prediction` that the model gives when asked for everything.
    """
    probe, cutoff = model.card.probe, model.card.cutoff
    repair = (
        f"It was written with torch {model.card.versions.get('torch')}, this is "
        f"{torch.__version__}; export it again from the training run"
    )
    try:
        graph = probe_graph(probe, cutoff) if probe else trial_graphs(model.card)[-1]
        everything = model.predict([graph], stress=True, members=True)
        prediction = model.predict([graph])
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(
            f"{model.path} cannot evaluate the probe structure of its card ({error}). {repair}"
        ) from error
    fields = frozenset(k for k, value in everything._asdict().items() if value is not None)
    if not probe:
        return fields
    _check_flags(prediction, model)
    found = expected_numbers(prediction)
    allowed = _allowed_deviations(model)
    for name, expected in probe["expected"].items():
        deviation = np.abs(np.asarray(found.get(name, np.nan)) - np.asarray(expected)).max()
        # Written so that NaN fails.
        if not deviation <= allowed[name]:
            raise ValueError(
                f"{model.path} fails its self-test on {model.device} in {model.dtype}: {name} of "
                f"the probe structure deviates by {deviation:.3g} (allowed {allowed[name]:.3g})."
                f" {repair}"
            )
    return fields


def _check_flags(prediction: Prediction, model: Model) -> None:
    """The card must claim the parts of the covariance that the program gives, and no others."""
    card = model.card
    # Of several evidential networks, the program gives no trace of its own.
    alone = card.evidential and card.n_members == 1
    for name, claimed, value in (
        ("has_epistemic", card.has_epistemic, prediction.forces_cov_epistemic),
        ("has_aleatoric_energy", card.has_aleatoric_energy, prediction.energy_var_aleatoric),
        ("has_aleatoric_forces", card.has_aleatoric_forces, prediction.forces_cov_aleatoric),
        ("evidential", alone, prediction.forces_trace_epistemic),
        ("home.n_features", card.has_feature_distance, prediction.feature_distance),
    ):
        if claimed != (value is not None):
            raise ValueError(
                f"{model.path}: the card says {name} {claimed}, the program does the opposite; the "
                "card was changed: take the file from where it was written, or serve it again"
            )


def _allowed_deviations(model: Model) -> dict[str, float]:
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
