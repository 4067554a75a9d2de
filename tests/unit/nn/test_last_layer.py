"""A mixture of potentials with uncertain readouts, against closed forms."""

import dataclasses

import pytest
import torch
from scipy.stats import chi2
from tiny import (
    BY_ELEMENT,
    N_WEIGHTS,
    assert_close,
    batch_of,
    covariance,
    jacobians,
    laplace_state,
    seeded,
    serve,
    trained,
)

from ase_bayesmlip.graph import sum_by_graph
from ase_bayesmlip.nn.last_layer import by_element, with_uncertain_readout
from ase_bayesmlip.nn.potential import readout_weights, set_readout_weights
from ase_bayesmlip.posteriors import laplace
from ase_bayesmlip.prediction import MemberOutput, to_voigt
from ase_bayesmlip.training.outputs import evaluate

KINDS = ["nll_jef", "nll_e", "mse"]
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
@pytest.mark.parametrize("resolved", [False, True])
def test_energy_variances_are_in_closed_form(kind, resolved):
    state = laplace_state(kind, by_element=resolved)
    graph, _ = batch_of(state)
    strata = state.run.potentials()[0].strata(graph)
    basis = by_element(strata.basis, strata.species) if resolved else strata.basis
    per_structure, _ = jacobians(state)
    for n in (2, 3):  # whatever the number of draws
        found = serve(state, n)(graph, False, False)
        expected = torch.einsum("ip,pq,iq->i", basis, covariance(state), basis)
        assert_close(found.atomic_energies_var_epistemic, expected)
        expected = torch.einsum("gp,pq,gq->g", per_structure, covariance(state), per_structure)
        assert_close(found.energy_var_epistemic, expected)


@each_kind
@pytest.mark.parametrize("n", [N_WEIGHTS, 50])
def test_force_covariance_of_enough_draws_is_exact(kind, n):
    state = laplace_state(kind)
    graph, _ = batch_of(state)
    found = serve(state, n)(graph, True, False)
    _, rows = jacobians(state)
    exact = torch.einsum("nap,pq,nbq->nab", rows, covariance(state), rows)
    assert_close(found.forces_cov_epistemic, exact)
    # Stress is linear in the weights as well: its derivative is a difference of any size.
    (potential,) = state.run.potentials()
    mean, stresses = readout_weights(potential), []
    for change in torch.cat([torch.zeros(1, N_WEIGHTS), torch.eye(N_WEIGHTS)]):
        set_readout_weights(potential, mean + change)
        stresses.append(to_voigt(evaluate(potential, graph, True, create_graph=False).stress))
    columns = torch.stack(stresses[1:], dim=2) - stresses[0].unsqueeze(2)
    exact = torch.einsum("gap,pq,gbq->gab", columns, covariance(state), columns)
    assert_close(found.stress_cov_epistemic, exact)


def of_element(state, weights):
    """The potential as a sum of one for each element: brute force for readouts by element.

    From weights (n_species · P,) to energies and forces of all atoms.
    """
    graph, _ = batch_of(state)
    (potential,) = state.run.potentials()
    positions = graph.positions.clone().requires_grad_(True)
    graph = graph._replace(positions=positions)
    energies = torch.zeros_like(positions[:, 0])
    for z, part in zip(potential.atomic_numbers, weights.split(N_WEIGHTS), strict=True):
        set_readout_weights(potential, part)
        energies = energies + potential(graph).atomic_energies[0] * (graph.atomic_numbers == z)
    (slopes,) = torch.autograd.grad(energies.sum(), positions)
    return energies.detach(), -slopes


def test_by_element_every_number_is_that_of_readouts_of_their_own():
    """Mean after an update, its rows, and covariances by their columns, against brute force."""
    state = laplace_state(by_element=True)
    (potential,) = state.run.potentials()
    assert readout_weights(potential).repeat(3).allclose(state.gaussians[0].mean)
    change = 0.3 * torch.randn(BY_ELEMENT, generator=seeded(4), dtype=torch.float64)
    mean = state.gaussians[0].mean + change
    moved = dataclasses.replace(state.gaussians[0], mean=mean)
    state = laplace.State(state.run, (moved,))
    graph, _ = batch_of(state)
    model = serve(state, 3)
    found = model(graph, False, True)
    energies, forces = of_element(state, mean)
    reference = model.reference_energies[graph.atomic_numbers]
    assert_close(found.atomic_energies - reference, energies)
    assert_close(found.forces, forces)
    for row, deviation in enumerate(model.members[0].deviations.T):
        assert_close(found.forces_members[row], of_element(state, mean + deviation)[1])
    exact = serve(state, BY_ELEMENT)(graph, False, False)
    changes = [of_element(state, mean + c) for c in state.gaussians[0].factor().T]
    squares = torch.stack([(e - energies) ** 2 for e, _ in changes]).sum(0)
    assert_close(exact.atomic_energies_var_epistemic, squares)
    spread = torch.stack([f - forces for _, f in changes])
    assert_close(exact.forces_cov_epistemic, torch.einsum("rna,rnb->nab", spread, spread))


def test_the_basis_stands_in_the_block_of_the_element():
    basis = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    species = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    expected = torch.tensor([[0.0, 0, 1, 2, 0, 0], [3, 4, 0, 0, 0, 0]])
    assert torch.equal(by_element(basis, species), expected)
    assert torch.equal(by_element(torch.stack([basis, -basis]), species)[1], -expected)


def test_force_covariance_of_few_draws_is_that_of_their_weights():
    state = laplace_state()
    model = serve(state, 3)
    deviations = model.members[0].deviations
    assert deviations.shape == (N_WEIGHTS, 3)
    _, rows = jacobians(state)
    expected = torch.einsum("nap,pq,nbq->nab", rows, deviations @ deviations.T / 3, rows)
    found = model(batch_of(state)[0], False, False).forces_cov_epistemic
    assert_close(found, expected)


@pytest.mark.parametrize("n", [2, 7])
def test_drawn_covariances_scatter_like_one_over_the_root_of_their_number(n):
    """A mean over D draws of Gaussians: unbiased, variance (Σ_ii Σ_jj + Σ_ij²)/D, entry by entry.

    Over 4000 seeds, to 4.5 standard errors; those of a squared deviation are estimated.
    """
    state, n_seeds = laplace_state(), 4000
    exact = covariance(state)
    generator = seeded(1)
    factor = state.gaussians[0].factor()
    torch.testing.assert_close(
        laplace.draw(state, n, seeded(0))[0].deviations,
        factor @ torch.randn(N_WEIGHTS, n, generator=seeded(0), dtype=torch.float64),
    )
    z = torch.randn(n_seeds, N_WEIGHTS, n, generator=generator, dtype=torch.float64)
    drawn = factor @ z
    deviation = drawn @ drawn.transpose(1, 2) / n - exact
    variances = exact.diagonal()
    expected = (torch.outer(variances, variances) + exact**2) / n
    assert ((deviation.mean(0)).abs() < 4.5 * (expected / n_seeds).sqrt()).all()
    squares = deviation**2
    error = squares.std(0) / n_seeds**0.5
    assert ((squares.mean(0) - expected).abs() < 4.5 * error).all()


def test_draws_come_from_the_generator():
    state = laplace_state()
    one, same, other = (laplace.draw(state, 3, seeded(s))[0].deviations for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
    (default,) = laplace.draw(laplace_state(samples=5), None, seeded(0))
    assert default.deviations.shape == (N_WEIGHTS, 5)


@each_kind
@pytest.mark.parametrize("resolved", [False, True])
def test_the_mean_is_the_trained_potential(kind, resolved):
    state = laplace_state(kind, by_element=resolved)
    graph, _ = batch_of(state)
    found, expected = serve(state, 3)(graph, True, False), trained(state)(graph, True, False)
    for name in ("energy", "atomic_energies", "forces", "stress"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    for name in ("energy_var_aleatoric", "atomic_energies_var_aleatoric", "forces_cov_aleatoric"):
        value, other = getattr(found, name), getattr(expected, name)
        known = kind == "nll_jef" or (kind == "nll_e" and "energ" in name)
        assert (value is not None) == known
        assert not known or torch.equal(value, other), name
    assert expected.energy_var_epistemic is None


def test_a_mixture_follows_the_law_of_total_variance():
    state = laplace_state(members=2)
    graph, _ = batch_of(state)
    found = serve(state, N_WEIGHTS)(graph, True, False)
    one, two = (
        serve(laplace.State(dataclasses.replace(state.run, weights=(w,)), (g,)), N_WEIGHTS)(
            graph, True, False
        )
        for w, g in zip(state.run.weights, state.gaussians, strict=True)
    )
    for name in ("energy", "atomic_energies", "forces", "stress"):
        assert_close(getattr(found, name), (getattr(one, name) + getattr(two, name)) / 2, 1e-12)
    # The sample variance of two numbers is half their squared difference.
    for name, mean in (
        ("energy_var_epistemic", "energy"),
        ("atomic_energies_var_epistemic", "atomic_energies"),
    ):
        own = (getattr(one, name) + getattr(two, name)) / 2
        between = (getattr(one, mean) - getattr(two, mean)) ** 2 / 2
        assert_close(getattr(found, name), own + between, 1e-10)
    for name, mean in (("forces_cov_epistemic", "forces"), ("stress_cov_epistemic", "stress")):
        own = (getattr(one, name) + getattr(two, name)) / 2
        difference = getattr(one, mean) - getattr(two, mean)
        difference = to_voigt(difference) if mean == "stress" else difference
        between = torch.einsum("na,nb->nab", difference, difference) / 2
        assert_close(getattr(found, name), own + between, 1e-10)
    aleatoric = (one.forces_cov_aleatoric + two.forces_cov_aleatoric) / 2
    assert_close(found.forces_cov_aleatoric, aleatoric, 1e-12)


@pytest.mark.parametrize("members", [1, 2])
def test_without_the_force_spread_all_else_is_equal(members):
    state = laplace_state(members=members, by_element=members == 2)
    graph, _ = batch_of(state)
    model = serve(state, 3)
    whole, part = model(graph, True, False), model(graph, True, False, False)
    left_out = {"forces_cov_epistemic", "stress_cov_epistemic"}
    for name, value in whole._asdict().items():
        if name in left_out:
            assert value is not None
            assert getattr(part, name) is None
        else:
            assert value is None or torch.equal(value, getattr(part, name)), name


@pytest.mark.parametrize("members", [1, 2])
def test_rows_of_an_ensemble_are_draws_around_their_member(members):
    state, n = laplace_state(members=members), 3
    graph, _ = batch_of(state)
    model = serve(state, n)
    found = model(graph, True, True)
    offset = model.reference_energies[graph.atomic_numbers]
    offset = sum_by_graph(offset, graph.batch, graph.n_graphs)
    assert found.energy_members.shape == (members * n, 4)
    assert found.forces_members.shape == (members * n, 42, 3)
    assert found.stress_members.shape == (members * n, 4, 3, 3)
    for row in range(members * n):
        potential = state.run.potentials()[row // n]
        change = model.members[row // n].deviations[:, row % n]
        set_readout_weights(potential, readout_weights(potential) + change)
        drawn = evaluate(potential, graph, True, create_graph=False)
        assert_close(found.energy_members[row], drawn.energy.detach() + offset, 1e-10)
        assert_close(found.forces_members[row], drawn.forces.detach(), 1e-8)
        assert_close(found.stress_members[row], drawn.stress.detach(), 1e-8)


def test_mean_square_deviation_of_the_rows_approaches_the_variance():
    """Of one member: its rows deviate from the mean by the columns of the factor, exactly."""
    state = laplace_state()
    graph, _ = batch_of(state)
    found = serve(state, N_WEIGHTS)(graph, False, True)
    squares = ((found.energy_members - found.energy) ** 2).mean(0)
    # Energies of 10⁴ eV are rounded to 10⁻¹² eV.
    size = float(found.energy.abs().max()) * torch.finfo(torch.float64).eps
    error = 8 * size * float(squares.max().sqrt())
    torch.testing.assert_close(squares, found.energy_var_epistemic, rtol=1e-8, atol=error)
    # Of few drawn ones, to the standard error of a mean of D squares: χ²_D/D.
    n_seeds, n = 60, 5
    ratios = []
    for seed in range(n_seeds):
        found = serve(state, n, seed)(graph, False, True, False)
        ratios.append(((found.energy_members - found.energy) ** 2).mean(0)[0])
    total = float(sum(ratios) / found.energy_var_epistemic[0]) * n
    low, high = chi2.ppf([5e-4, 1 - 5e-4], n * n_seeds)
    assert low < total < high


def test_fewer_than_two_draws_are_refused():
    for weights, message in (
        ("last_layer", "1 draws asked of a Laplace posterior; at least 2"),
        ("all", "1 samples asked of a posterior of kind laplace; at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            laplace.draw(laplace_state(weights=weights, probes=2), 1, seeded(0))


def test_both_parts_of_a_law_are_noise_beside_an_uncertain_readout():
    """And what atoms have in common stays a direction, after those of the weights."""
    n, n_weights = 4, 3

    def normal(*shape, seed):
        return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)

    output = MemberOutput(
        normal(1, n, seed=0),
        normal(1, n, seed=1).exp(),
        normal(1, n, 3, 3, seed=2),
        directions=normal(1, n, seed=3),
        atomic_energies_var_epistemic=normal(1, n, seed=4).exp(),
        forces_cov_epistemic=normal(1, n, 3, 3, seed=5),
    )
    basis, factor = normal(n, n_weights, seed=6), normal(n_weights, n_weights, seed=7)
    deviations = normal(n_weights, 2, seed=8)
    shift = normal(n_weights, seed=9)
    found = with_uncertain_readout(output, basis, factor, deviations, shift)
    expected = output.atomic_energies_var + output.atomic_energies_var_epistemic
    assert_close(found.atomic_energies_var, expected)
    assert_close(found.forces_cov, output.forces_cov + output.forces_cov_epistemic)
    assert_close(found.directions, torch.cat([(basis @ factor).T, output.directions]))
    assert_close(found.draws, (basis @ deviations).T)
    assert_close(found.atomic_energies[0], output.atomic_energies[0] + basis @ shift)
    assert found.atomic_energies_var_epistemic is None
    assert found.forces_cov_epistemic is None
