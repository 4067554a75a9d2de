"""Tempering of the leverage on validation frames, where the answer is known."""

import pytest
import torch
from tiny import tiny_config

from ase_bayesmlip.config.loss import EvidenceConfig, LossConfig
from ase_bayesmlip.nn.build import build_potential
from ase_bayesmlip.nn.leverage import invariant_starts, invariants
from ase_bayesmlip.serving.home import load_home
from ase_bayesmlip.training.data import load_training_data
from ase_bayesmlip.training.evidence import GIVEN, fit_evidence, most_likely_temper


@pytest.mark.parametrize(("tau", "exponent"), [(10.0, 1.0), (10.0, 0.5)])
def test_the_law_that_errors_were_drawn_from_is_found(tau, exponent):
    generator = torch.Generator().manual_seed(0)
    n, dof = 8_000, 12.0
    leverage = torch.exp(2.0 * torch.randn(n, generator=generator, dtype=torch.float64)) * 0.1
    spread = dof * (1.0 + tau * leverage**exponent)
    normal = torch.randn((n, 3), generator=generator, dtype=torch.float64)
    chi2 = torch.randn((n, int(dof) - 2), generator=generator, dtype=torch.float64).square().sum(1)
    distance = spread * normal.square().sum(dim=1) / chi2
    found = most_likely_temper(distance, torch.full((n,), dof, dtype=torch.float64), leverage)
    assert found == pytest.approx((tau, exponent), rel=1e-6)


def test_the_evidence_of_training_atoms_follows_their_leverage():
    config = tiny_config()
    data = load_training_data(config)
    home = load_home(config, data.record())
    loss = LossConfig(kind="evidential", evidence=EvidenceConfig(mode="leverage"))
    potential = build_potential(config.model, loss, data.statistics, 0).eval()
    state = fit_evidence(potential, home.train, home.valid)
    assert set(state) == {name for name in potential.state_dict() if name.startswith(GIVEN)}
    graph, _ = home.valid.items[0]
    with torch.no_grad():
        strata = potential.strata(graph)
        given = potential.head.given
        x = invariants(strata.features, invariant_starts(potential))
        h = given.leverage(x, strata.species)
        expected = 1.0 / (given.temper[0] * h ** given.temper[1])
        torch.testing.assert_close(potential.evidence(strata).niw.evidence, expected)


def test_other_modes_have_nothing_to_fit():
    config = tiny_config()
    data = load_training_data(config)
    home = load_home(config, data.record())
    loss = LossConfig(kind="evidential", evidence=EvidenceConfig(mode="coupled"))
    potential = build_potential(config.model, loss, data.statistics, 0)
    assert fit_evidence(potential, home.train, home.valid) == {}
