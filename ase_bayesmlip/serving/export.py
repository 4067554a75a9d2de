"""From posterior samples to one TorchScript file.

`ServedModel` mixes concrete potentials by the law of total variance (`mixture`) and does not know
how the samples were obtained.
"""

import copy
import datetime
import platform
from pathlib import Path
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from ase_bayesmlip._version import __version__
from ase_bayesmlip.card import ModelCard
from ase_bayesmlip.config import Config, to_dict
from ase_bayesmlip.graph import AtomicGraph
from ase_bayesmlip.nn.derivatives import (
    gradients,
    stress_from_strain_gradient,
    with_derivative_inputs,
)
from ase_bayesmlip.nn.potential import MAX_ATOMIC_NUMBER, Potential
from ase_bayesmlip.prediction import Prediction
from ase_bayesmlip.serving.archive import quiet_torchscript, write_served
from ase_bayesmlip.serving.mixture import mix
from ase_bayesmlip.serving.runtime import (
    DTYPES,
    expected_numbers,
    probe_graph,
)


class ServedModel(nn.Module):
    """A mixture of potentials: graph -> `Prediction`.

    Parameters
    ----------
    members : list of Potential
        Samples of the posterior, in float64.
    reference_energies : dict of int to float, eV
    """

    reference_energies: Tensor

    def __init__(self, members: list[Potential], reference_energies: dict[int, float]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        table = torch.zeros(MAX_ATOMIC_NUMBER + 1, dtype=torch.float64)
        for number, energy in reference_energies.items():
            table[number] = energy
        self.register_buffer("reference_energies", table)

    def forward(self, graph: AtomicGraph, stress: bool, members: bool) -> Prediction:
        """Mean and covariance of the posterior for a batch of structures.

        Parameters
        ----------
        graph : AtomicGraph
        stress : bool
            Whether to compute stress; structures without a volume get zero.
        members : bool
            Whether to return each sample's energies, forces and stress.
        """
        energies: list[Tensor] = []
        forces: list[Tensor] = []
        stresses: list[Tensor] = []
        energy_noise: list[Tensor] = []
        force_noise: list[Tensor] = []
        for member in self.members:
            leaf, positions, strain = with_derivative_inputs(graph, stress)
            output = member(leaf)
            leaves = [positions]
            if stress:
                leaves.append(strain)
            for k in range(output.atomic_energies.shape[0]):
                slopes = gradients(output.atomic_energies[k].sum(), leaves, False)
                energies.append(output.atomic_energies[k].detach().to(torch.float64))
                forces.append(-slopes[0])
                if stress:
                    stresses.append(stress_from_strain_gradient(slopes[1], graph.cell))
            variance, covariance = output.atomic_energies_var, output.forces_cov
            if variance is not None:
                energy_noise.append(variance.detach().mean(dim=0).to(torch.float64))
            if covariance is not None:
                force_noise.append(covariance.detach().mean(dim=0).to(torch.float64))
        all_stresses: Tensor | None = None
        atomic_noise: Tensor | None = None
        mean_force_noise: Tensor | None = None
        if len(stresses) > 0:
            all_stresses = torch.stack(stresses)
        if len(energy_noise) > 0:
            atomic_noise = torch.stack(energy_noise).mean(dim=0)
        if len(force_noise) > 0:
            mean_force_noise = torch.stack(force_noise).mean(dim=0)
        return mix(
            graph,
            self.reference_energies,
            torch.stack(energies),
            torch.stack(forces),
            all_stresses,
            atomic_noise,
            mean_force_noise,
            members,
        )


def export_members(
    members: list[Potential], config: Config, record: dict[str, Any], path: Path
) -> ModelCard:
    """Mix posterior samples and write them as one served file.

    Parameters
    ----------
    members : list of Potential
        In float64, on the CPU.
    config : Config
        Of the training run.
    record : dict
        What the run kept of its data (`TrainingData.record`).

    Returns
    -------
    ModelCard
        As it is in the file.
    """
    statistics = record["statistics"]
    references = dict(
        zip(statistics["atomic_numbers"], statistics["reference_energies"], strict=True)
    )
    model = ServedModel(members, references)
    graph = probe_graph(record["probe"], config.model.cutoff)
    expected = expected_numbers(model(graph, False, False))
    card = _card(members, config, record, {**record["probe"], "expected": expected})
    save_served(model, card, path)
    return card


def _card(
    members: list[Potential], config: Config, record: dict[str, Any], probe: dict[str, Any]
) -> ModelCard:
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
        has_epistemic=len(members) > 1,
        has_aleatoric_energy=members[0].has_energy_noise,
        has_aleatoric_forces=members[0].covariance != "none",
        n_parameters=sum(parameter.numel() for parameter in members[0].parameters()),
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
    return {**config, "data": data}


def save_served(model: ServedModel, card: ModelCard, path: Path) -> None:
    """Script the mixture and write it with its card; an interruption leaves no half file.

    Weights are stored in the precision they were trained in, which loses nothing; constants stay
    in float64, so that the file serves either precision. `load_model` casts to one of them; after
    a plain ``torch.jit.load`` call ``.double()``.
    """
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(DTYPES[card.dtype])
    with quiet_torchscript():
        scripted = torch.jit.script(model)
    write_served(scripted, card, path)
