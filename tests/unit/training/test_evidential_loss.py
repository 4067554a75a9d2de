"""Losses of evidential potentials against scipy's laws, and the corrections after training."""

import math

import numpy as np
import pytest
import torch
from evidential_laws import predictive_scale
from scipy.optimize import minimize_scalar
from scipy.stats import multivariate_t, t
from tiny import tiny_config, tiny_potential, tiny_sets

from ase_bayesmlip.config import EvidenceConfig, LossConfig
from ase_bayesmlip.nn.evidential.components import eip_student_t
from ase_bayesmlip.nn.evidential.head import Evidence
from ase_bayesmlip.nn.evidential.law import NormalInverseWishart, scale_distance
from ase_bayesmlip.training.evidential_loss import likely_force_factor, penalty_weight, saturated
from ase_bayesmlip.training.loss import loss
from ase_bayesmlip.training.outputs import evaluate
from ase_bayesmlip.training.validation import validation_metrics

UNIT = 0.7


def outputs_and_labels(**settings):
    """A batch of three molecules with the outputs of an untrained potential of uneven laws."""
    config = tiny_config(loss={"beta": 0.0, **settings}, posterior={"kind": "evidential"})
    potential = tiny_potential(config)
    potential.noise.set_scales(0.3, 0.8)
    data = tiny_sets(config)[0]
    graph, labels = next(data.batches(range(3), 3))
    return config, potential, graph, labels, evaluate(potential, graph, False, create_graph=True)


def scipy_force_nll(outputs, labels):
    evidence = outputs.evidence
    residual = (labels.forces - outputs.forces).detach().numpy()
    scale = predictive_scale(evidence.niw, evidence.unit_squared).detach().numpy()
    dof = evidence.niw.dof.detach().numpy() - 2.0
    return np.array(
        [
            -multivariate_t.logpdf(r, shape=a, df=n)
            for r, a, n in zip(residual, scale, dof, strict=True)
        ]
    )


@pytest.mark.parametrize("mode", ["coupled", "paper"])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_loss_is_that_of_scipys_laws(mode, beta):
    evidence = {"mode": mode, "weight": 0.03}
    config, _, graph, labels, outputs = outputs_and_labels(
        kind="evidential", evidence=evidence, beta=beta
    )
    found = loss("evidential", config.loss, outputs, labels, graph, UNIT).detach()
    law = outputs.evidence
    total = outputs.forces_cov.detach().diagonal(dim1=1, dim2=2).mean(dim=1).numpy()
    forces = scipy_force_nll(outputs, labels) * (total / UNIT**2) ** beta
    squared = ((labels.forces - outputs.forces) ** 2).sum(1) / law.unit_squared
    penalty = float((0.03 * (law.niw.dof + law.niw.evidence) * squared).mean().detach())
    # Atoms' energies have ν degrees of freedom; what they have in common is Gaussian.
    nu, kappa = law.niw.dof.detach().numpy(), law.niw.evidence.detach().numpy()
    each = nu / (nu - 2.0) * law.energy_scale.detach().numpy() * (1.0 + 1.0 / kappa)
    common = law.coherent.detach().numpy()
    energies = []
    for k in range(3):
        atoms = graph.batch.numpy() == k
        variance = each[atoms].sum() + common[atoms].sum() ** 2
        eta = 4.0 + variance**2 / (each[atoms] ** 2 / (nu[atoms] - 4.0)).sum()
        residual = float((labels.energy[k] - outputs.energy[k]).detach())
        nll = -t.logpdf(residual, df=eta, scale=math.sqrt(variance * (eta - 2.0) / eta))
        assert variance == pytest.approx(float(outputs.energy_var[k].detach()), rel=1e-10)
        energies.append(nll * (variance / UNIT**2) ** beta / atoms.sum())
    # Frames have equal sizes here, so that means over atoms and over frames are the same.
    expected = np.mean(energies) + 10.0 * (forces.mean() + penalty)
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_weights_of_energies_carry_no_gradient():
    """σ^(2β) of an energy is a constant of the loss, else error bars grow to shrink the weight."""
    config, potential, graph, labels, outputs = outputs_and_labels(kind="evidential", beta=0.5)
    fixed = outputs._replace(energy_var=outputs.energy_var.detach())
    trained = [p for p in potential.parameters() if p.requires_grad]
    slopes = [
        torch.autograd.grad(
            loss("evidential", config.loss, given, labels, graph, UNIT),
            trained,
            retain_graph=True,
            allow_unused=True,
        )
        for given in (outputs, fixed)
    ]
    for one, other in zip(*slopes, strict=True):
        assert one is other is None or torch.equal(one, other)


def test_eip_is_the_law_of_its_components():
    config, _, graph, labels, outputs = outputs_and_labels(
        kind="eip", evidence={"quantile": 0.4, "weight": 0.0}
    )
    found = loss("eip", config.loss, outputs, labels, graph, UNIT).detach()
    evidence = outputs.evidence
    dof, shift, scale = (x.detach().numpy() for x in eip_student_t(evidence.nig, 0.4))
    residual = (labels.forces - outputs.forces).detach() / evidence.unit_squared.sqrt()
    nll = -t.logpdf(residual.numpy(), df=dof, loc=shift, scale=scale).sum(axis=1).mean()
    size = (outputs.energy - labels.energy).abs().detach() / (UNIT * labels.n_atoms.sqrt())
    assert float(found) == pytest.approx(10.0 * nll + float(size.mean()), rel=1e-9)


@pytest.mark.parametrize("kind", ["evidential", "eip"])
def test_loss_has_the_slopes_of_finite_differences(kind):
    config, potential, graph, labels, outputs = outputs_and_labels(kind=kind)
    loss(kind, config.loss, outputs, labels, graph, UNIT).backward()
    names = ["embedding", "head.bias"]
    parameters = dict(potential.named_parameters())
    for name in names:
        parameter, step = parameters[name], 1e-5
        index = int(parameter.grad.abs().flatten().argmax())
        flat = parameter.data.view(-1)
        values = []
        for sign in (1, -1):
            flat[index] += sign * step
            moved = evaluate(potential, graph, False, create_graph=False)
            values.append(float(loss(kind, config.loss, moved, labels, graph, UNIT).detach()))
            flat[index] -= sign * step
        slope = (values[0] - values[1]) / (2 * step)
        assert float(parameter.grad.flatten()[index]) == pytest.approx(slope, rel=1e-5)


def test_the_penalty_of_the_paper_is_in_units_of_force():
    assert penalty_weight(EvidenceConfig(mode="paper"), 0.04) == pytest.approx(0.1 * 0.04)
    assert penalty_weight(EvidenceConfig(mode="coupled"), 0.04) == 0.0
    assert penalty_weight(EvidenceConfig(mode="coupled", weight=0.2), 0.04) == 0.2


def random_laws(n, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    dof = 5.0 + 10.0 * normal(n).abs()
    niw = NormalInverseWishart(0.5 * normal(n), 0.7 * normal(n, 5), dof, dof / 5.0)
    return niw, 0.3 * normal(n, 3)


def test_the_common_factor_is_the_most_likely_one():
    niw, residual = random_laws(400)
    unit = torch.tensor(0.05, dtype=torch.float64)
    distance = scale_distance(residual, niw, unit)
    spread = niw.dof * (1.0 + 1.0 / niw.evidence)
    found = likely_force_factor(distance, niw.dof, spread)

    def nll(log_factor):
        m, c = distance.numpy() / math.exp(log_factor), spread.numpy()
        return np.mean(1.5 * log_factor + 0.5 * (niw.dof.numpy() + 1.0) * np.log1p(m / c))

    best = minimize_scalar(nll, bracket=(-1.0, 1.0), tol=1e-10)
    assert math.log(found) == pytest.approx(best.x, abs=1e-6)


def test_validation_reports_that_factor_and_bent_atoms():
    config, potential, *_ = outputs_and_labels(kind="evidential")
    data = tiny_sets(config)[0]

    def metrics():
        return validation_metrics(potential, data, "evidential", config.loss, False, UNIT)

    before = metrics()
    potential.noise.force_scale *= before["forces_chi2"]
    assert metrics()["forces_chi2"] == pytest.approx(1.0, rel=1e-6)
    assert before["saturated"] == 0.0
    with torch.no_grad():
        potential.head.bias[:, 0] = 7.0
    assert metrics()["saturated"] == 1.0


def test_an_atom_is_bent_by_its_scale_or_its_anisotropy():
    zeros = torch.zeros(3, dtype=torch.float64)
    tensor = torch.zeros(3, 5, dtype=torch.float64)
    tensor[1, 2] = -4.2
    niw = NormalInverseWishart(
        torch.tensor([0.0, 0.0, -4.1], dtype=torch.float64), tensor, zeros + 10.0, zeros + 2.0
    )
    evidence = Evidence(niw, zeros[0], zeros, zeros)
    assert saturated(evidence).tolist() == [False, True, True]


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match=r"posterior\.kind evidential needs loss\.kind"):
        tiny_config(posterior={"kind": "evidential"})
    with pytest.raises(ValueError, match=r"model\.covariance spd, iso or invariant, not chol"):
        tiny_config(
            loss={"kind": "evidential"},
            model={"covariance": "cholesky"},
            posterior={"kind": "evidential"},
        )
    with pytest.raises(ValueError, match=r"invariant is for loss\.kind evidential, not nll_jef"):
        tiny_config(model={"covariance": "invariant"})
    with pytest.raises(ValueError, match=r"loss\.kind evidential goes with posterior\.kind eviden"):
        tiny_config(loss={"kind": "evidential"}, posterior={"kind": "point"})
    for name, value in (("ratio", 0.0), ("quantile", 1.0), ("weight", -1.0)):
        with pytest.raises(ValueError, match=rf"loss\.evidence\.{name} is"):
            tiny_config(
                loss={"kind": "evidential", "evidence": {name: value}},
                posterior={"kind": "evidential"},
            )
    assert LossConfig().evidence.coupling is None
    assert EvidenceConfig(mode="coupled").coupling == 5.0
    assert EvidenceConfig(mode="paper").coupling == 0.0
