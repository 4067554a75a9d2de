"""The stage around IVON: where it starts, what it minimises, and what is drawn from it."""

import copy
import math

import pytest
import torch
from scipy.stats import chi2
from tiny import seeded, tiny_config, tiny_potential, tiny_sets
from torch.nn.utils import parameters_to_vector

from ase_bayesmlip.posteriors import ivon
from ase_bayesmlip.posteriors.curvature import GaussNewton, linearise_all
from ase_bayesmlip.posteriors.members import TrainedMembers
from ase_bayesmlip.training.data import load_training_data


def stage_of(**settings):
    config = tiny_config(posterior={"kind": "ivon", "epochs": 2, **settings})
    return ivon.Variational(tiny_potential(config), *tiny_sets(config), config, 0)


def flat(potential):
    return parameters_to_vector(potential.parameters()).detach()


# --- the start


@pytest.mark.parametrize(("given", "ess"), [(None, 7.0), (50.0, 50.0)])
def test_deviations_start_from_the_curvature_given(given, ess):
    """σ² = 1/(λ (h + δ)); λ is the number of structures if not given."""
    stage = stage_of(hess_init=3.0, weight_decay=0.5, effective_sample_size=given)
    deviations = stage.state()["deviations"]
    expected = torch.full_like(deviations, 1.0 / math.sqrt(ess * 3.5))
    torch.testing.assert_close(deviations, expected, rtol=1e-14, atol=0.0)


@pytest.mark.slow
def test_the_curvature_at_the_start_is_that_of_the_data(monkeypatch):
    """The mean Gauss-Newton diagonal, its forces by probes: over n of them χ²_n/n times the exact.

    A mean of several of those scatters less. One weight in 10⁶ would leave its range.
    """
    n_probes = 100
    monkeypatch.setattr(ivon, "N_PROBES", n_probes)
    monkeypatch.setattr(ivon, "LARGEST", math.inf)
    stage = stage_of(weight_decay=0.0)
    items = stage.train_set.batches(range(7), 1)
    parts = [GaussNewton.of(linearise_all(stage.potential, *item), True) for item in items]
    energy, forces = (sum(getattr(p, name) for p in parts) / 7 for name in ("energy", "forces"))
    found = 1.0 / (7 * stage.state()["deviations"] ** 2)
    floor = float(found.min())
    assert floor == pytest.approx(ivon.FLOOR * float((energy + forces).mean()), rel=0.2)
    seen = (energy + forces) > 2.0 * floor
    assert 50 < seen.sum() < len(seen)
    low, high = chi2.ppf([5e-7, 1 - 5e-7], n_probes) / n_probes
    assert (found >= energy + low * forces)[seen].all()
    assert (found <= energy + high * forces)[seen].all()
    # Weights that the data do not see start at the floor.
    assert torch.allclose(found[energy + forces == 0.0], torch.tensor(floor).double())


def test_no_deviation_is_large_at_the_start():
    """One of five for a bias made the first loss 10⁵⁵ and all later ones those of a point."""
    stage = stage_of(weight_decay=0.0)
    assert float(stage.state()["deviations"].max()) == pytest.approx(ivon.LARGEST)
    assert stage.step(0)["train_nll"] < 1e6


def test_the_start_depends_on_the_seed_only():
    one, two = (stage_of().state()["deviations"] for _ in range(2))
    assert torch.equal(one, two)


@pytest.mark.parametrize(("n_steps", "expected"), [(3200, 640.0), (500, 100.0), (5, 100.0)])
def test_the_memory_of_the_hessian_is_a_fifth_of_the_run(n_steps, expected):
    assert 1.0 / (1.0 - ivon.memory(n_steps)) == pytest.approx(expected)


def test_the_memory_fits_unless_it_is_given():
    n_steps = 200 * 4  # seven structures, two a batch
    assert stage_of(epochs=200).optimizer.defaults["beta2"] == 1.0 - 5.0 / n_steps
    assert stage_of(epochs=200, beta2=0.5).optimizer.defaults["beta2"] == 0.5


@pytest.mark.parametrize("hess_init", [None, 50.0])
def test_readouts_alone_have_a_spread(hess_init):
    """The others stay as they were trained, to the bit; curvatures are those of all weights."""
    stage = stage_of(weights="readouts", hess_init=hess_init)
    before = {name: p.clone() for name, p in stage.potential.named_parameters()}
    start = stage.state()["deviations"]
    of_all = stage_of(hess_init=hess_init).state()["deviations"]
    inside = torch.cat(
        [torch.full((p.numel(),), name.startswith("readouts.")) for name, p in before.items()]
    )
    assert 0 < inside.sum() < len(inside)
    assert torch.equal(start[inside], of_all[inside])
    stage.step(0)
    after = stage.state()["deviations"]
    assert (after[~inside] == 0.0).all()
    assert (after[inside] > 0.0).all()
    for name, p in stage.potential.named_parameters():
        assert torch.equal(p, before[name]) == (not name.startswith("readouts.")), name


# --- what it learns


def test_without_noise_it_descends_to_a_smaller_likelihood():
    stage = stage_of(epochs=6, hess_init=1e4, learning_rate=0.5)
    losses = [stage.step(index)["train_nll"] for index in range(6)]
    assert losses[-1] < losses[0]
    assert stage.optimizer.param_groups[0]["lr"] < 0.02 * 0.5  # the last batch of the cosine


def test_steps_depend_on_the_state_and_the_index_only():
    """Restored into another stage, the next epoch is the same to the bit."""
    one, two = stage_of(), stage_of()
    one.step(0)
    two.restore(copy.deepcopy(one.state()))
    assert one.step(1) == two.step(1)
    assert torch.equal(flat(one.potential), flat(two.potential))
    assert torch.equal(one.state()["deviations"], two.state()["deviations"])


# --- draws


def state_of(n_members, **settings):
    """A posterior with deviations made by hand, spread over six orders of magnitude."""
    config = tiny_config(posterior={"kind": "ivon", "members": n_members, **settings})
    weights = tuple(tiny_potential(config, seed).state_dict() for seed in range(n_members))
    run = TrainedMembers(config, load_training_data(config).record(), weights)
    n_weights = len(flat(run.potentials()[0]))
    deviations = tuple(
        torch.logspace(-6, 0, n_weights, dtype=torch.float64).roll(k) for k in range(n_members)
    )
    return ivon.State(run, deviations)


def test_draws_have_the_mean_and_the_deviations():
    """Members take turns; χ² of all weights over twenty draws of each."""
    state = state_of(2)
    drawn = ivon.draw(state, 40, seeded(0))
    for member, potential in enumerate(state.run.potentials()):
        weights = torch.stack([flat(item) for item in drawn[member::2]])
        z = (weights - flat(potential)) / state.deviations[member]
        low, high = chi2.ppf([5e-4, 1 - 5e-4], z.numel())
        assert low < float(z.square().sum()) < high
        # A mean of z over all weights and draws, to four standard errors.
        assert abs(float(z.mean())) < 4 / math.sqrt(z.numel())
        assert float(z.abs().max()) < 6


def test_draws_repeat_and_their_number_is_configured():
    state = state_of(1, samples=5)
    one, same, other = (ivon.draw(state, None, seeded(seed)) for seed in (1, 1, 2))
    assert len(one) == 5
    for a, b, c in zip(one, same, other, strict=True):
        assert torch.equal(flat(a), flat(b))
        assert not torch.equal(flat(a), flat(c))
    assert not any(p.requires_grad for potential in one for p in potential.parameters())
    with pytest.raises(ValueError, match="1 samples asked of a posterior of kind ivon; at least 2"):
        ivon.draw(state, 1, seeded(0))
