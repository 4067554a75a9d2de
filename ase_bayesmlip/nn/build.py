"""From a configuration and the statistics of the data to an untrained potential."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from ase_bayesmlip.config import LossConfig, ModelConfig
from ase_bayesmlip.config.loss import EVIDENTIAL_LOSSES
from ase_bayesmlip.nn.angular import Irrep, parse_irreps
from ase_bayesmlip.nn.cholesky import CholeskyNoise
from ase_bayesmlip.nn.evidential.components import ComponentHead
from ase_bayesmlip.nn.evidential.head import EvidentialHead
from ase_bayesmlip.nn.evidential.invariant import InvariantHead
from ase_bayesmlip.nn.evidential.potential import EvidentialPotential
from ase_bayesmlip.nn.heads import EnergyNoise, IsoNoise, NoiseHeads, SpdNoise
from ase_bayesmlip.nn.layer import MessageLayer
from ase_bayesmlip.nn.mean_energy import MeanEnergyNoise
from ase_bayesmlip.nn.potential import Potential
from ase_bayesmlip.nn.race import RaceLayer
from ase_bayesmlip.nn.race_plus import RacePlusLayer

# The choices of `ModelConfig`; what is published and loses has files of its own.
LAYERS = {"race": RaceLayer, "race_plus": RacePlusLayer}
ENERGY_NOISE = {"sum": EnergyNoise, "mean": MeanEnergyNoise}
FORCE_NOISE = {"spd": SpdNoise, "iso": IsoNoise, "cholesky": CholeskyNoise}


@dataclass(frozen=True)
class DataStatistics:
    """What a potential must know of its training data before training.

    Attributes
    ----------
    atomic_numbers : list of int
        Elements, sorted.
    reference_energies : list of float, eV
        One per element, in that order.
    avg_n_neighbors : float
        Measured within the cutoff.
    force_rms : float, eV/Å
    mean_energies : list of float, eV
        Interaction energy of an atom of each element, by least squares: where training starts.
    anchored : bool
        Whether the reference energies are those of isolated atoms, not fitted.
    shortest : list of list of float, Å
        Distance of each pair of elements in the training, zero where there is none in the cutoff.
    """

    atomic_numbers: list[int]
    reference_energies: list[float]
    avg_n_neighbors: float
    force_rms: float
    # Runs of before had others or none; the energies themselves are compared.
    mean_energies: list[float] = field(default_factory=list, compare=False)
    anchored: bool = field(default=False, compare=False)
    shortest: list[list[float]] = field(default_factory=list, compare=False)


def build_potential(
    model: ModelConfig,
    loss: LossConfig,
    statistics: DataStatistics,
    seed: int,
    dtype: torch.dtype = torch.float64,
) -> Potential:
    """An untrained potential with weights drawn from its own generator.

    Constants such as Clebsch-Gordan coefficients are made in float64 and rounded to `dtype` here:
    to widen a float32 potential without loss, build it again in float64 and load its weights.

    Parameters
    ----------
    loss : LossConfig
        Its kind decides which noise heads exist: a head that no loss trains is left out, so that
        the model never reports an uncertainty it did not learn.

    Raises
    ------
    ValueError
        If the irreps do not suit the backbone or the covariance.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = _noise(model, loss)
    if noise.has_tensor and model.backbone == "race_plus" and model.l_max < 2:
        raise ValueError(
            f"covariance 'spd' is read from 2e features, which l_max = {model.l_max} cannot make; "
            "set model.l_max to 2 or more, or choose covariance 'iso'"
        )
    irreps, channels = _irreps(model, noise.has_tensor)
    shape: dict[str, Any] = {
        "layers": _layers(model, irreps, channels, statistics, generator),
        "irreps": irreps,
        "channels": channels,
        "atomic_numbers": statistics.atomic_numbers,
        "cutoff": model.cutoff,
        "l_max": model.l_max,
        "n_radial": model.n_radial,
        "envelope_power": model.envelope_power,
        "readout_hidden": model.readout_hidden,
        "scale": statistics.force_rms,
        "generator": generator,
        "anchored": model.anchor and statistics.anchored,
        "repulsion": model.repulsion,
        "shortest": statistics.shortest if model.repulsion else [],
    }
    potential: Potential
    if loss.kind in EVIDENTIAL_LOSSES:
        n_species = len(statistics.atomic_numbers)
        head = _head(model, loss, irreps, channels, n_species, generator)
        potential = EvidentialPotential(head, **shape)
    else:
        potential = Potential(noise=noise, **shape)
    if statistics.mean_energies:
        start = torch.tensor(statistics.mean_energies, dtype=torch.float64) / statistics.force_rms
        potential.bias.data[:, 0] = start
    return potential.to(dtype)


def _noise(model: ModelConfig, loss: LossConfig) -> NoiseHeads:
    """Heads of that noise alone which the loss trains."""
    energy = ENERGY_NOISE[model.energy_noise]() if loss.kind in ("nll_e", "nll_jef") else None
    has_forces = loss.kind == "nll_jef" and model.covariance != "none"
    return NoiseHeads(energy, FORCE_NOISE[model.covariance]() if has_forces else None)


def _head(
    model: ModelConfig,
    loss: LossConfig,
    irreps: list[list[Irrep]],
    channels: int,
    n_species: int,
    generator: torch.Generator,
) -> Callable[[], nn.Module]:
    """What makes the head of an evidential potential."""
    if loss.kind == "eip":
        return partial(ComponentHead, irreps, channels, generator)
    kind = InvariantHead if model.covariance == "invariant" else EvidentialHead
    anisotropic, coupling = model.covariance == "spd", loss.evidence.coupling
    return partial(kind, irreps, channels, n_species, anisotropic, coupling, generator)


def _irreps(model: ModelConfig, has_2e_noise: bool) -> tuple[list[list[Irrep]], int]:
    """Irreps after each layer, and their multiplicity."""
    hidden, channels = parse_irreps(model.hidden_irreps)
    # Readouts see 0e and 2e alone, so the last layer leaves out what nothing would read.
    read = [Irrep(0, 1)] + ([Irrep(2, 1)] if has_2e_noise else [])
    # The products of race_plus reach 2e whether or not the features in between carry it.
    last = [irrep for irrep in read if model.backbone == "race_plus" or irrep in hidden]
    return [hidden] * (model.n_layers - 1) + [last], channels


def _layers(
    model: ModelConfig,
    irreps: list[list[Irrep]],
    channels: int,
    statistics: DataStatistics,
    generator: torch.Generator,
) -> list[MessageLayer]:
    inputs = [[Irrep(0, 1)], *irreps[:-1]]
    layer = LAYERS[model.backbone]
    return [
        layer(
            irreps_in,
            irreps_out,
            channels=channels,
            n_species=len(statistics.atomic_numbers),
            l_max=model.l_max,
            radial_widths=[model.n_radial, *model.radial_hidden],
            avg_n_neighbors=statistics.avg_n_neighbors,
            generator=generator,
        )
        for irreps_in, irreps_out in zip(inputs, irreps, strict=True)
    ]
