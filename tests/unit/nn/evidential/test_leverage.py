"""Evidence from the leverage of features: κ = min(κ_cap, 1/(τ hᵍ))."""

import pytest
import torch

from ase_bayesmlip.nn.evidential.leverage import EVIDENCE_CAP, LeverageEvidence
from ase_bayesmlip.nn.leverage import fit_leverage


def test_evidence_is_one_over_the_tempered_leverage_up_to_the_cap():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((40, 3), generator=generator, dtype=torch.float64)
    species = torch.ones((40, 1), dtype=torch.float64)
    leverage = fit_leverage(x, species)
    given = LeverageEvidence(1, 3)
    given.leverage.load_state_dict(leverage.state_dict())
    given.temper.copy_(torch.tensor([2.0, 0.5]))
    torch.testing.assert_close(given(x, species), 1.0 / (2.0 * leverage(x, species).sqrt()))
    assert float(given(leverage.centre, species[:1])) == pytest.approx(EVIDENCE_CAP)


def test_before_there_is_a_leverage_evidence_is_the_cap_and_gradients_are_none():
    given = LeverageEvidence(2, 3)
    x = torch.ones((4, 3), dtype=torch.float64, requires_grad=True)
    found = given(x, torch.eye(2, dtype=torch.float64).repeat(2, 1))
    assert found.tolist() == pytest.approx([EVIDENCE_CAP] * 4)
    assert not found.requires_grad
