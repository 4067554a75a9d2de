"""What is kept of a member's output keeps nothing of the autograd graph alive."""

import pytest
import torch
from torch import Tensor, nn

from ase_bayesmlip.nn.derivatives import without_graph
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
