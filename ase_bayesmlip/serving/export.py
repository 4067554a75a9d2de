"""From posterior samples to one TorchScript file.

`ServedModel` mixes concrete potentials by the law of total variance (`mixture`) and does not know
how the samples were obtained.
"""

import copy
import datetime
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from ase_bayesmlip._version import __version__
from ase_bayesmlip.card import ModelCard
from ase_bayesmlip.config import Config, to_dict
from ase_bayesmlip.graph import AtomicGraph, Part, sorted_by_centre, split_edges
from ase_bayesmlip.nn.derivatives import (
    gradients,
    stress_from_strain_gradient,
    with_derivative_inputs,
    without_graph,
)
from ase_bayesmlip.nn.evidential_potential import ComponentPotential, EvidentialPotential
from ase_bayesmlip.nn.last_layer import LastLayerPotential
from ase_bayesmlip.nn.potential import MAX_ATOMIC_NUMBER, Potential
from ase_bayesmlip.prediction import MemberOutput, Prediction
from ase_bayesmlip.serving.archive import quiet_torchscript, write_served
from ase_bayesmlip.serving.mixture import Means, OwnSpread, mix
from ase_bayesmlip.serving.runtime import (
    DTYPES,
    expected_numbers,
    probe_graph,
)
from ase_bayesmlip.serving.variance_scaling import VarianceScaling

# Numbers that a member may keep for its derivatives, 8 GiB in float32. Beyond it edges are taken in
# parts of an eighth, which takes 1.4 to 1.7 times as long.
NUMBERS_AT_ONCE = 2**31


class ServedModel(nn.Module):
    """A mixture of potentials: graph -> `Prediction`.

    Parameters
    ----------
    members : sequence of Potential or LastLayerPotential
        Samples of the posterior, in float64.
    reference_energies : dict of int to float, eV
    """

    reference_energies: Tensor

    def __init__(
        self,
        members: Sequence[Potential | LastLayerPotential],
        reference_energies: dict[int, float],
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        table = torch.zeros(MAX_ATOMIC_NUMBER + 1, dtype=torch.float64)
        for number, energy in reference_energies.items():
            table[number] = energy
        self.register_buffer("reference_energies", table)
        self.numbers_at_once = NUMBERS_AT_ONCE
        first = members[0]
        potential = first.potential if isinstance(first, LastLayerPotential) else first
        self.numbers_per_edge = sum(layer.numbers_per_edge for layer in potential.layers)  # type: ignore[misc]
        self.variance_scaling = VarianceScaling()

    def forward(
        self, graph: AtomicGraph, stress: bool, members: bool, force_spread: bool = True
    ) -> Prediction:
        """Mean and covariance of the posterior for a batch of structures.

        Parameters
        ----------
        graph : AtomicGraph
        stress : bool
            Whether to compute stress; structures without a volume get zero.
        members : bool
            Whether to return each sample's energies, forces and stress.
        force_spread : bool
            Whether to compute the epistemic covariance of forces and stress where that takes
            derivatives of its own (`MemberOutput.draws`), and the matrices of evidential laws;
            elsewhere it is always there.
        """
        outputs: list[MemberOutput] = []
        energies: list[Tensor] = []
        forces: list[Tensor] = []
        stresses: list[Tensor] = []
        draw_forces: list[Tensor] = []
        draw_stresses: list[Tensor] = []
        energy_noise: list[Tensor | None] = []
        force_noise: list[Tensor | None] = []
        graph, parts = self.in_parts(graph)
        for member in self.members:
            leaf, positions, strain = with_derivative_inputs(graph, stress)
            leaves = [positions, strain] if stress else [positions]
            strata = member.strata(leaf, parts)  # type: ignore[operator]
            output = member.output(strata, leaf, force_spread)  # type: ignore[operator]
            wanted, draws = output.atomic_energies, output.draws
            if draws is not None and force_spread:
                wanted = torch.cat([wanted, draws])
            totals, cut = wanted.sum(dim=1), strata.cut
            if parts is not None and cut is not None:
                totals = member.rejoined(wanted, cut, graph.edge_index, parts)  # type: ignore[operator]
            force, sigma = derivatives(totals, leaves, graph.cell)
            forces.append(force[:1])
            stresses.append(sigma[:1])
            if draws is not None and force_spread:
                draw_forces.append(force[1:])
                draw_stresses.append(sigma[1:])
            # Nothing that is kept may keep the activations of a member alive.
            output = without_graph(output)
            energies.append(output.atomic_energies.to(torch.float64))
            energy_noise.append(output.atomic_energies_var)
            force_noise.append(output.forces_cov)
            outputs.append(output)
        all_stresses: Tensor | None = None
        if stress:
            all_stresses = torch.cat(stresses)
        prediction = mix(
            graph,
            self.reference_energies,
            Means(torch.cat(energies), torch.cat(forces), all_stresses),
            own_spread(outputs, draw_forces, draw_stresses, stress),
            mean_noise(energy_noise),
            mean_noise(force_noise),
            members,
        )
        return self.variance_scaling(graph.atomic_numbers, prediction)

    def in_parts(self, graph: AtomicGraph) -> tuple[AtomicGraph, list[Part] | None]:
        """The graph with its edges in an order for parts, and these; None where it has no need."""
        kept = graph.edge_index.shape[1] * self.numbers_per_edge
        if kept <= self.numbers_at_once:
            return graph, None
        graph = sorted_by_centre(graph)
        size = max(self.numbers_at_once // (8 * self.numbers_per_edge), 1)
        return graph, split_edges(graph.edge_index[0], graph.positions.shape[0], size)


def derivatives(totals: Tensor, leaves: list[Tensor], cell: Tensor) -> tuple[Tensor, Tensor]:
    """Forces (K, n_atoms, 3) and, with a strain among the leaves, stress (K, n_graphs, 3, 3).

    Of K sums of energies. Without a strain the second tensor is empty.
    """
    forces: list[Tensor] = []
    stresses: list[Tensor] = []
    for k in range(totals.shape[0]):
        slopes = gradients(totals[k], leaves, False)
        forces.append(-slopes[0])
        if len(leaves) > 1:
            stresses.append(stress_from_strain_gradient(slopes[1], cell))
    stress = torch.stack(stresses) if len(stresses) > 0 else cell[:0]
    return torch.stack(forces), stress


def own_spread(
    outputs: list[MemberOutput], forces: list[Tensor], stresses: list[Tensor], stress: bool
) -> OwnSpread | None:
    """What the members know of their own uncertainty, stacked; None if they know nothing."""
    directions: list[Tensor | None] = []
    independent: list[Tensor | None] = []
    covariances: list[Tensor | None] = []
    traces: list[Tensor | None] = []
    dofs: list[Tensor | None] = []
    draws: list[Tensor | None] = []
    for output in outputs:
        directions.append(output.directions)
        draws.append(output.draws)
        independent.append(_first(output.atomic_energies_var_epistemic))
        covariances.append(_first(output.forces_cov_epistemic))
        traces.append(_first(output.forces_trace_epistemic))
        dofs.append(_first(output.forces_dof))
    all_directions, all_traces = stacked(directions), stacked(traces)
    if all_directions is None and all_traces is None:
        return None
    all_forces: Tensor | None = None
    all_stresses: Tensor | None = None
    if len(forces) > 0:
        all_forces = torch.stack(forces)
        if stress:
            all_stresses = torch.stack(stresses)
    return OwnSpread(
        all_directions,
        stacked(independent),
        stacked(covariances),
        all_traces,
        stacked(dofs),
        stacked(draws),
        all_forces,
        all_stresses,
    )


def _first(heads: Tensor | None) -> Tensor | None:
    """Of the one head that every potential has."""
    return None if heads is None else heads[0]


def stacked(parts: list[Tensor | None]) -> Tensor | None:
    """Tensors of all members in float64, (S, ...); None where they are unknown."""
    known: list[Tensor] = []
    for part in parts:
        if part is not None:
            known.append(part.detach().to(torch.float64))
    return torch.stack(known) if len(known) > 0 else None


def mean_noise(parts: list[Tensor | None]) -> Tensor | None:
    """Average of the members' (K, ...) noise in float64; None where it is not trained."""
    known = stacked(parts)
    return None if known is None else known.mean(dim=(0, 1))


def export_members(
    members: Sequence[Potential | LastLayerPotential],
    config: Config,
    record: dict[str, Any],
    path: Path,
    seed: int | None = None,
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
    model = ServedModel(members, references)
    graph = probe_graph(record["probe"], config.model.cutoff)
    expected = expected_numbers(model(graph, False, False))
    card = _card(members, config, record, {**record["probe"], "expected": expected}, seed)
    save_served(model, card, path)
    return card


def _card(
    members: Sequence[Potential | LastLayerPotential],
    config: Config,
    record: dict[str, Any],
    probe: dict[str, Any],
    seed: int | None,
) -> ModelCard:
    first = members[0]
    n_draws = first.deviations.shape[1] if isinstance(first, LastLayerPotential) else 0
    evidential = isinstance(first, EvidentialPotential | ComponentPotential)
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
        has_aleatoric_energy=first.has_energy_noise,
        has_aleatoric_forces=first.covariance != "none",
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

    Weights are stored in the precision they were trained in, which loses nothing; constants stay
    in float64, so that the file serves either precision. `load_model` casts to one of them; after
    a plain ``torch.jit.load`` call ``.double()``.
    """
    write_served(script(model, card.dtype), card, path)


def script(model: ServedModel, dtype: str) -> torch.jit.ScriptModule:
    """A copy of a mixture as a TorchScript program, with weights in the given precision."""
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(DTYPES[dtype])
    with quiet_torchscript():
        return torch.jit.script(model)
