"""From a configuration and the statistics of the data to an untrained potential."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ase_bayesmlip.config import ModelConfig
from ase_bayesmlip.nn.angular import Irrep, parse_irreps
from ase_bayesmlip.nn.potential import Potential
from ase_bayesmlip.nn.race import RaceLayer
from ase_bayesmlip.nn.race_plus import RacePlusLayer


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
    """

    atomic_numbers: list[int]
    reference_energies: list[float]
    avg_n_neighbors: float
    force_rms: float
    mean_energies: list[float] = field(default_factory=list)


def build_potential(
    model: ModelConfig,
    loss_kind: str,
    statistics: DataStatistics,
    seed: int,
    dtype: torch.dtype = torch.float64,
) -> Potential:
    """An untrained potential with weights drawn from its own generator.

    Constants such as Clebsch-Gordan coefficients are made in float64 and rounded to `dtype` here:
    to widen a float32 potential without loss, build it again in float64 and load its weights.

    Parameters
    ----------
    loss_kind : "nll_jef", "nll_e" or "mse"
        Decides which noise heads exist: a head that no loss trains is left out, so that the model
        never reports an uncertainty it did not learn.

    Raises
    ------
    ValueError
        If the irreps do not suit the backbone or the covariance.
    """
    generator = torch.Generator().manual_seed(seed)
    needs_2e = loss_kind == "nll_jef" and model.covariance == "spd"
    if needs_2e and model.backbone == "race_plus" and model.l_max < 2:
        raise ValueError(
            f"covariance 'spd' is read from 2e features, which l_max = {model.l_max} cannot make; "
            "set model.l_max to 2 or more, or choose covariance 'iso'"
        )
    hidden, channels = parse_irreps(model.hidden_irreps)
    covariance = model.covariance if loss_kind == "nll_jef" else "none"
    # Readouts see 0e and 2e alone, so the last layer leaves out what nothing would read.
    read = [Irrep(0, 1)] + ([Irrep(2, 1)] if covariance == "spd" else [])
    # The products of race_plus reach 2e whether or not the features in between carry it.
    last = [irrep for irrep in read if model.backbone == "race_plus" or irrep in hidden]
    outputs = [hidden] * (model.n_layers - 1) + [last]
    inputs = [[Irrep(0, 1)], *outputs[:-1]]
    layers: list[nn.Module] = []
    for irreps_in, irreps_out in zip(inputs, outputs, strict=True):
        shape: dict[str, Any] = {
            "channels": channels,
            "n_species": len(statistics.atomic_numbers),
            "l_max": model.l_max,
            "radial_widths": [model.n_radial, *model.radial_hidden],
            "avg_n_neighbors": statistics.avg_n_neighbors,
            "generator": generator,
        }
        if model.backbone == "race":
            layers.append(RaceLayer(irreps_in, irreps_out, **shape))
        else:
            layers.append(RacePlusLayer(irreps_in, irreps_out, **shape))
    potential = Potential(
        layers,
        outputs,
        channels,
        statistics.atomic_numbers,
        model.cutoff,
        model.l_max,
        model.n_radial,
        model.envelope_power,
        model.readout_hidden,
        scale=statistics.force_rms,
        has_energy_noise=loss_kind != "mse",
        covariance=covariance,
        generator=generator,
        energy_noise=model.energy_noise,
    )
    if statistics.mean_energies:
        start = torch.tensor(statistics.mean_energies, dtype=torch.float64) / statistics.force_rms
        potential.bias.data[:, 0] = start
    return potential.to(dtype)
