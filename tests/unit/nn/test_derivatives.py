"""Stress from slopes, and what is kept of an output outside the autograd graph."""

import pytest
import torch
from torch import Tensor, nn

from ase_bayesmlip.nn.derivatives import stress_from_strain_gradient, without_graph
from ase_bayesmlip.prediction import MemberOutput
from ase_bayesmlip.serving.archive import quiet_torchscript


class Kept(nn.Module):
    """A field that was differentiated before, and one that never is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> MemberOutput:
        y = x * self.weight
        return without_graph(MemberOutput(y, forces_cov=y.exp()))


@pytest.mark.parametrize("kind", ["eager", "scripted", "frozen"])
def test_copies_are_outside_the_graph(kind):
    module = Kept().eval()
    with quiet_torchscript():
        if kind != "eager":
            module = torch.jit.script(module)
        if kind == "frozen":
            module = torch.jit.freeze(module)
    x = torch.arange(3.0).requires_grad_(True)
    for _ in range(3):  # the first calls of a scripted module specialise it
        energies, variance, covariance, *others = module(x)
        assert not energies.requires_grad
        assert not covariance.requires_grad
        assert variance is None
        assert others == [None] * 6
        torch.testing.assert_close(energies, x.detach(), rtol=0.0, atol=0.0)
        torch.testing.assert_close(covariance, x.detach().exp())


def test_stress_divides_by_the_volume_of_a_cell_of_either_hand():
    """And is zero without a volume, where a division would give NaN."""
    cell = torch.tensor([[0.0, 4.0, 0.5], [5.0, 0.0, 0.0], [0.2, 0.0, 6.0]], dtype=torch.float64)
    cells = torch.stack([cell, cell[[1, 0, 2]], torch.zeros(3, 3, dtype=torch.float64)])
    assert float(torch.linalg.det(cell)) < 0.0
    slope = torch.arange(27.0, dtype=torch.float64).view(3, 3, 3)
    expected = slope / abs(float(torch.linalg.det(cell)))
    expected[2] = 0.0
    torch.testing.assert_close(stress_from_strain_gradient(slope, cells), expected)
