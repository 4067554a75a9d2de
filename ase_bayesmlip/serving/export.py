"""From posterior samples to one TorchScript file.

`ServedModel` mixes concrete potentials by the law of total variance,

    mean = ⟨μ_s⟩,   Σ_epistemic = cov_s(μ_s) (divided by S - 1),   Σ_aleatoric = ⟨Σ_s⟩,

and does not know how the samples were obtained.
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
    sum_by_graph,
    with_derivative_inputs,
)
from ase_bayesmlip.nn.potential import MAX_ATOMIC_NUMBER, Potential
from ase_bayesmlip.prediction import Prediction, to_voigt
from ase_bayesmlip.serving.runtime import (
    DTYPES,
    expected_numbers,
    probe_graph,
    quiet_torchscript,
)
from ase_bayesmlip.statistics import sample_covariance, sample_variance


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
        return self.mix(graph, energies, forces, stresses, energy_noise, force_noise, members)

    def mix(
        self,
        graph: AtomicGraph,
        energies: list[Tensor],
        forces: list[Tensor],
        stresses: list[Tensor],
        energy_noise: list[Tensor],
        force_noise: list[Tensor],
        members: bool,
    ) -> Prediction:
        """Moments of the mixture from what each sample says."""
        reference = self.reference_energies.index_select(0, graph.atomic_numbers)
        atomic = torch.stack(energies)
        total = sum_by_graph(atomic, graph.batch, graph.n_graphs)
        offset = sum_by_graph(reference, graph.batch, graph.n_graphs)
        force = torch.stack(forces)
        stress: Tensor | None = None
        stress_cov: Tensor | None = None
        stress_members: Tensor | None = None
        energy_epistemic: Tensor | None = None
        atomic_epistemic: Tensor | None = None
        force_epistemic: Tensor | None = None
        energy_aleatoric: Tensor | None = None
        atomic_aleatoric: Tensor | None = None
        force_aleatoric: Tensor | None = None
        n_samples = atomic.shape[0]
        if n_samples > 1:
            energy_epistemic = sample_variance(total)
            atomic_epistemic = sample_variance(atomic)
            force_epistemic = sample_covariance(force)
        if len(stresses) > 0:
            all_stresses = torch.stack(stresses)
            stress = all_stresses.mean(dim=0)
            if n_samples > 1:
                stress_cov = sample_covariance(to_voigt(all_stresses))
            if members:
                stress_members = all_stresses
        if len(energy_noise) > 0:
            noise = torch.stack(energy_noise).mean(dim=0)
            atomic_aleatoric = noise
            energy_aleatoric = sum_by_graph(noise, graph.batch, graph.n_graphs)
        if len(force_noise) > 0:
            force_aleatoric = torch.stack(force_noise).mean(dim=0)
        energy_members: Tensor | None = None
        force_members: Tensor | None = None
        if members:
            energy_members, force_members = total + offset, force
        return Prediction(
            energy=total.mean(dim=0) + offset,
            atomic_energies=atomic.mean(dim=0) + reference,
            forces=force.mean(dim=0),
            stress=stress,
            energy_var_epistemic=energy_epistemic,
            energy_var_aleatoric=energy_aleatoric,
            atomic_energies_var_epistemic=atomic_epistemic,
            atomic_energies_var_aleatoric=atomic_aleatoric,
            forces_cov_epistemic=force_epistemic,
            forces_cov_aleatoric=force_aleatoric,
            stress_cov_epistemic=stress_cov,
            energy_members=energy_members,
            forces_members=force_members,
            stress_members=stress_members,
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
        _write(scripted, card, path)


def replace_card(path: Path, card: ModelCard) -> None:
    """Write a served file again with another card, its program unchanged."""
    with quiet_torchscript():
        _write(torch.jit.load(path, map_location="cpu"), card, path)


def _write(scripted: torch.jit.ScriptModule, card: ModelCard, path: Path) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        torch.jit.save(scripted, str(temporary), _extra_files={"model_card.json": card.to_json()})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
