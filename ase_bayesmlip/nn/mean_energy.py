"""The published energy noise, exp⟨s_i⟩, which does not grow with the structure: a baseline."""

import torch
from torch import Tensor, nn

from ase_bayesmlip.nn.heads import energy_variance


class MeanEnergyNoise(nn.Module):
    """In the place of `heads.EnergyNoise`: one variance a structure, in equal shares."""

    def forward(self, raw: Tensor, scale: Tensor, batch: Tensor, n_graphs: int) -> Tensor:
        """Raw log-variance (n,) to the share of each atom, (n,), eV²."""
        zeros = torch.zeros(n_graphs, dtype=raw.dtype, device=raw.device)
        count = zeros.index_add(0, batch, torch.ones_like(raw))
        mean = zeros.index_add(0, batch, raw) / count
        variance = energy_variance(mean.index_select(0, batch), scale)
        return variance / count.index_select(0, batch)
