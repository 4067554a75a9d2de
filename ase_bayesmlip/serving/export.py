"""From posterior samples to one TorchScript file."""

import copy
import dataclasses
import datetime
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ase.data import chemical_symbols

from ase_bayesmlip._version import __version__
from ase_bayesmlip.card import ModelCard
from ase_bayesmlip.config import Config, to_dict
from ase_bayesmlip.nn.evidential.potential import EvidentialPotential
from ase_bayesmlip.nn.last_layer import LastLayerPotential
from ase_bayesmlip.nn.leverage import leverage_at_home
from ase_bayesmlip.nn.potential import Potential
from ase_bayesmlip.serving.archive import quiet_torchscript, write_served
from ase_bayesmlip.serving.gauge import fix_gauge
from ase_bayesmlip.serving.home import Home
from ase_bayesmlip.serving.joint_noise import fit_joint_noise
from ase_bayesmlip.serving.runtime import DTYPES
from ase_bayesmlip.serving.self_test import expected_numbers, probe_graph
from ase_bayesmlip.serving.served_model import ServedModel


def export_members(
    members: Sequence[Potential | LastLayerPotential],
    config: Config,
    record: dict[str, Any],
    path: Path,
    seed: int | None = None,
    unfinished: Sequence[str] = (),
    home: Home | None = None,
) -> ModelCard:
    """Mix posterior samples and write them as one served file.

    Parameters
    ----------
    members : sequence of Potential or LastLayerPotential
        In float64, on the CPU. Their weights are rounded to the precision of the training.
    config : Config
        Of the training run.
    record : dict
        What the run kept of its data (`TrainingData.record`).
    seed : int or None
        Of the draw, for the card.
    unfinished : sequence of str
        What is missing of the training, for the card.
    home : Home, optional
        Frames of the run (`load_home`); without them nothing is fitted to any.

    Returns
    -------
    ModelCard
        As it is in the file.
    """
    statistics = record["statistics"]
    references = dict(
        zip(statistics["atomic_numbers"], statistics["reference_energies"], strict=True)
    )
    for parameter in (p for member in members for p in member.parameters()):
        parameter.data = parameter.data.to(DTYPES[config.training.dtype]).to(torch.float64)
    at_home: dict[str, Any] = {}
    leverage = None
    if home is not None:
        at_home = _fit_at_home(members, home)
        leverage = leverage_at_home(members[0], (graph for graph, _ in home.train.items))
        at_home["n_features"] = leverage.centre.shape[1]
    model = ServedModel(members, references, leverage)
    graph = probe_graph(record["probe"], config.model.cutoff)
    expected = expected_numbers(model(graph, False, False))
    card = _card(members, config, record, {**record["probe"], "expected": expected}, seed)
    card = dataclasses.replace(card, unfinished=list(unfinished), home=at_home)
    save_served(model, card, path)
    return card


def _fit_at_home(members: Sequence[Potential | LastLayerPotential], home: Home) -> dict[str, Any]:
    """What is done once, to all members together; returns what a card says of it."""
    record = home.record()
    if len(members) > 1:
        record["gauge"] = fix_gauge(members, home)
    if len(members) > 1 or isinstance(members[0], LastLayerPotential):
        record |= fit_joint_noise(members, home)
    return record


def _card(
    members: Sequence[Potential | LastLayerPotential],
    config: Config,
    record: dict[str, Any],
    probe: dict[str, Any],
    seed: int | None,
) -> ModelCard:
    first = members[0]
    n_draws = first.deviations.shape[1] if isinstance(first, LastLayerPotential) else 0
    evidential = isinstance(first, EvidentialPotential)
    statistics = record["statistics"]
    symbols = [chemical_symbols[z] for z in statistics["atomic_numbers"]]
    return ModelCard(
        kind=config.posterior.kind,
        n_members=len(members),
        backbone=config.model.backbone,
        cutoff=config.model.cutoff,
        atomic_numbers=statistics["atomic_numbers"],
        dtype=config.training.dtype,
        reference_energies=dict(zip(symbols, statistics["reference_energies"], strict=True)),
        ddof=1 if len(members) > 1 else 0,
        n_draws=n_draws,
        seed=seed,
        has_epistemic=len(members) > 1 or n_draws > 0 or evidential,
        evidential=evidential,
        anchored=config.model.anchor and statistics.get("anchored", False),
        has_aleatoric_energy=first.has_energy_noise,
        has_aleatoric_forces=first.has_force_noise,
        n_parameters=sum(parameter.numel() for parameter in first.parameters()),
        training={k: value for k, value in record.items() if k not in ("statistics", "probe")},
        config=_without_paths(to_dict(config)),
        probe=probe,
        versions={
            "ase_bayesmlip": __version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """Keep file names but not folders, which say nothing outside the machine of the training."""

    def strip(value: Any) -> Any:
        if isinstance(value, list):
            return [strip(item) for item in value]
        return Path(value).name if isinstance(value, str) else value

    data = dict(config["data"])
    for key in ("train", "valid", "calibration", "reference_energies"):
        data[key] = strip(data[key])
    posterior = dict(config["posterior"])
    if "start_from" in posterior:
        posterior["start_from"] = strip(posterior["start_from"])
    return {**config, "data": data, "posterior": posterior}


def save_served(model: ServedModel, card: ModelCard, path: Path) -> None:
    """Script the mixture and write it with its card; an interruption leaves no half file.

    Weights are stored in the precision they were trained in, which loses nothing; biases and
    constants stay in float64, so that the file serves either precision. `load_model` casts to one
    of them; after a plain ``torch.jit.load`` call ``.double()``.
    """
    write_served(script(model, card.dtype), card, path)


def script(model: ServedModel, dtype: str) -> torch.jit.ScriptModule:
    """A copy of a mixture as a TorchScript program, with weights in the given precision."""
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        # The gauge is in the biases: rounded, it would change totals.
        if not name.endswith("bias"):
            parameter.data = parameter.data.to(DTYPES[dtype])
    with quiet_torchscript():
        return torch.jit.script(model)
