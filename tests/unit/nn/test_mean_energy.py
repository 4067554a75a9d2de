"""The published energy noise, which does not grow with the structure."""

import math

import torch

from ase_bayesmlip.nn.mean_energy import MeanEnergyNoise


def test_each_atom_has_an_equal_share_of_the_exponential_of_the_mean():
    raw = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    batch, scale = torch.tensor([0, 1, 0, 1]), torch.tensor(0.3, dtype=torch.float64)
    first, second = 0.3 * math.exp(0.75) / 2, 0.3 * math.exp(0.5) / 2
    expected = torch.tensor([first, second, first, second], dtype=torch.float64)
    torch.testing.assert_close(MeanEnergyNoise()(raw, scale, batch, 2), expected)
    torch.testing.assert_close(MeanEnergyNoise()(raw, scale.expand(4), batch, 2), expected)
