"""Jacobians by the weights against finite differences, and the matrices made of them."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2, multivariate_normal, norm
from tiny import mixture_set, seeded, tiny_config, tiny_potential
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ase_bayesmlip.nn.potential import readout_weights, set_readout_weights
from ase_bayesmlip.posteriors.curvature import (
    GaussNewton,
    Linearised,
    _by_columns,
    _by_rows,
    estimated_diagonal,
    linearise_all,
    linearise_last_layer,
    predictive_nll,
)
from ase_bayesmlip.posteriors.linear_gaussian import posterior_precision
from ase_bayesmlip.training.loss import negative_log_likelihood
from ase_bayesmlip.training.outputs import evaluate

KINDS = ["nll_jef", "nll_e", "mse"]
each_kind = pytest.mark.parametrize("kind", KINDS)


def setup(kind="nll_jef", **sections):
    config = tiny_config(loss={"kind": kind}, **sections)
    return tiny_potential(config), mixture_set(config)


def whole(data):
    return next(data.batches(range(len(data)), len(data)))


def one(data, index=0):
    return next(data.batches([index], 1))


def assert_close(found, expected, tolerance):
    """To a tolerance relative to the largest value."""
    found, expected = found.detach(), expected.detach()
    size = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0.0, atol=tolerance * size)


# --- Jacobians


@each_kind
@pytest.mark.parametrize("size", [1.0, 1e3])
def test_predictions_are_linear_in_the_readout_however_large_the_change(kind, size):
    potential, data = setup(kind)
    graph, labels = whole(data)
    found = linearise_last_layer(potential, graph, labels)
    weights = readout_weights(potential).detach()
    change = size * torch.randn(weights.shape, generator=seeded(1), dtype=torch.float64)
    before = evaluate(potential, graph, False, create_graph=False)
    set_readout_weights(potential, weights + change)
    after = evaluate(potential, graph, False, create_graph=False)
    assert_close(found.energy_jacobian @ change, after.energy - before.energy, 1e-8)
    assert_close(found.force_jacobian @ change, after.forces - before.forces, 1e-8)
    # The noise does not depend on these weights.
    for name in ("energy_var", "forces_cov"):
        noise = getattr(before, name)
        assert noise is None or torch.equal(noise, getattr(after, name))


def test_by_element_each_atom_counts_for_its_own():
    """Against slopes of the energies of one element alone; together they are the shared ones."""
    potential, data = setup()
    graph, labels = whole(data)
    shared = linearise_last_layer(potential, graph, labels)
    found = linearise_last_layer(potential, graph, labels, True)
    n_weights = shared.energy_jacobian.shape[1]
    numbers = potential.atomic_numbers
    energy = found.energy_jacobian.unflatten(1, (len(numbers), n_weights))
    forces = found.force_jacobian.unflatten(2, (len(numbers), n_weights))
    assert_close(energy.sum(1), shared.energy_jacobian, 1e-12)
    assert_close(forces.sum(2), shared.force_jacobian, 1e-12)
    positions = graph.positions.clone().requires_grad_(True)
    basis = potential.strata(graph._replace(positions=positions)).basis
    for k, z in enumerate(numbers):
        for p in (0, n_weights - 1):
            total = basis[graph.atomic_numbers == z, p].sum()
            (slopes,) = torch.autograd.grad(total, positions, retain_graph=True)
            assert_close(forces[..., k, p], -slopes, 1e-10)
            assert_close(energy[:, k, p].sum(), total, 1e-12)
    for name in Linearised._fields[2:]:
        assert torch.equal(getattr(found, name), getattr(shared, name))


@pytest.mark.parametrize("n_structures", [1, 3])
def test_slopes_by_rows_are_those_by_columns(n_structures):
    """Of structures of different size, too."""
    potential, data = setup()
    graph, _ = next(data.batches(range(n_structures), n_structures))
    sizes = torch.bincount(graph.batch)
    assert n_structures == 1 or len(set(sizes.tolist())) > 1
    positions = graph.positions.clone().requires_grad_(True)
    basis = potential.strata(graph._replace(positions=positions)).basis
    rows, columns = (f(basis, positions, graph) for f in (_by_rows, _by_columns))
    assert rows.shape == (*positions.shape, basis.shape[1])
    assert_close(rows, columns, 1e-12)


def test_a_change_of_weights_moves_the_residuals():
    potential, data = setup()
    graph, labels = whole(data)
    weights = readout_weights(potential).detach()
    change = torch.randn(weights.shape, generator=seeded(1), dtype=torch.float64)
    moved = linearise_last_layer(potential, graph, labels).moved(change)
    set_readout_weights(potential, weights + change)
    expected = linearise_last_layer(potential, graph, labels)
    for one_field, other in zip(moved, expected, strict=True):
        assert_close(one_field, other, 1e-8)


def test_weights_of_the_readout_are_set_in_their_order():
    potential, _ = setup()
    weights = readout_weights(potential).detach()
    others = {name: p.clone() for name, p in potential.named_parameters()}
    set_readout_weights(potential, torch.arange(len(weights), dtype=torch.float64))
    assert torch.equal(readout_weights(potential), torch.arange(len(weights)).double())
    changed = [n for n, p in potential.named_parameters() if not torch.equal(p, others[n])]
    assert changed == ["readouts.0.network.weights.1", "readouts.1.network.weights.1"]
    set_readout_weights(potential, weights)
    assert all(torch.equal(p, others[name]) for name, p in potential.named_parameters())


@each_kind
def test_all_weights_include_those_of_the_readout(kind):
    potential, data = setup(kind)
    n_weights = len(parameters_to_vector(potential.parameters()))
    numbered, _ = setup(kind)
    vector_to_parameters(torch.arange(n_weights, dtype=torch.float64), numbered.parameters())
    chosen = readout_weights(numbered).long()
    for index in range(2):
        everything = linearise_all(potential, *one(data, index))
        last = linearise_last_layer(potential, *one(data, index))
        assert everything.energy_jacobian.shape == (1, n_weights)
        assert_close(everything.energy_jacobian[:, chosen], last.energy_jacobian, 1e-12)
        assert_close(everything.force_jacobian[..., chosen], last.force_jacobian, 1e-12)
        for name in Linearised._fields[2:]:
            torch.testing.assert_close(getattr(everything, name), getattr(last, name))


def test_all_weights_by_finite_differences():
    potential, data = setup()
    graph, labels = one(data)
    found = linearise_all(potential, graph, labels)
    weights = parameters_to_vector(potential.parameters()).detach()
    direction = torch.randn(weights.shape, generator=seeded(2), dtype=torch.float64)
    # A difference of fourth order is off by h⁴, and by round-off ε/h: h = ε^(1/5).
    eps = torch.finfo(torch.float64).eps
    h = eps**0.2
    energy, forces = 0.0, 0.0
    for step, factor in ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12)):
        vector_to_parameters(weights + step * h * direction, potential.parameters())
        outputs = evaluate(potential, graph, False, create_graph=False)
        energy = energy + factor * outputs.energy / h
        forces = forces + factor * outputs.forces / h
    scale = float(direction.norm())
    assert_close(energy, found.energy_jacobian @ direction, 10 * scale * h**4)
    assert_close(forces, found.force_jacobian @ direction, 10 * scale * h**4)


def test_a_batch_is_its_structures():
    potential, data = setup()
    batch = linearise_last_layer(potential, *whole(data))
    singles = [linearise_last_layer(potential, *one(data, k)) for k in range(len(data))]
    assert batch.energy_jacobian.shape[0] == 4
    assert batch.force_jacobian.shape[:2] == (2 * 9 + 2 * 12, 3)
    for name in Linearised._fields:
        joined = torch.cat([getattr(single, name) for single in singles])
        assert_close(getattr(batch, name), joined, 1e-11)


def test_jacobians_turn_with_the_structure():
    potential, data = setup()
    graph, labels = whole(data)
    q = torch.linalg.qr(torch.randn(3, 3, generator=seeded(3), dtype=torch.float64))[0]
    turned = graph._replace(
        positions=graph.positions @ q.T, cell=graph.cell @ q.T, edge_shift=graph.edge_shift @ q.T
    )
    before = linearise_last_layer(potential, graph, labels)
    after = linearise_last_layer(potential, turned, labels._replace(forces=labels.forces @ q.T))
    assert_close(after.energy_jacobian, before.energy_jacobian, 1e-10)
    assert_close(after.force_jacobian, torch.einsum("ab,nbp->nap", q, before.force_jacobian), 1e-10)
    assert_close(after.force_residual, before.force_residual @ q.T, 1e-10)
    curvatures = [GaussNewton.of(item, False) for item in (before, after)]
    assert_close(curvatures[1].energy, curvatures[0].energy, 1e-10)
    assert_close(curvatures[1].forces, curvatures[0].forces, 1e-10)


@each_kind
def test_residuals_and_noise_are_those_of_the_potential(kind):
    potential, data = setup(kind)
    graph, labels = whole(data)
    found = linearise_last_layer(potential, graph, labels)
    outputs = evaluate(potential, graph, False, create_graph=False)
    torch.testing.assert_close(found.energy_residual, labels.energy - outputs.energy)
    torch.testing.assert_close(found.force_residual, labels.forces - outputs.forces)
    if kind == "mse":  # 1 eV² per atom: a noise to be scaled
        assert found.energy_var.tolist() == [9.0, 12.0, 9.0, 12.0]
    else:
        torch.testing.assert_close(found.energy_var, outputs.energy_var)
    if kind == "nll_jef":
        torch.testing.assert_close(found.forces_cov, outputs.forces_cov)
    else:
        assert torch.equal(found.forces_cov, torch.eye(3).double().expand(42, 3, 3))
    assert not any(field.requires_grad for field in found)


def test_single_precision_differs_by_its_round_off():
    results = []
    for dtype in ("float64", "float32"):
        potential, data = setup(training={"dtype": dtype})
        results.append(linearise_last_layer(potential, *whole(data)))
    for name in Linearised._fields:
        wide, narrow = (getattr(result, name) for result in results)
        assert narrow.dtype == torch.float64
        # Some hundred operations of relative error 6e-8 each.
        assert_close(narrow, wide, 100 * torch.finfo(torch.float32).eps)


def test_all_weights_take_one_structure():
    potential, data = setup()
    with pytest.raises(ValueError, match="one structure at a time, not 4"):
        linearise_all(potential, *whole(data))
    with pytest.raises(ValueError, match="one structure at a time, not 4"):
        estimated_diagonal(potential, *whole(data), 2, seeded(0))


# --- matrices


def dense(data):
    """G_E, G_F and both χ² from explicit inverses."""
    energy = data.energy_jacobian.numpy()
    forces, cov = data.force_jacobian.numpy(), data.forces_cov.numpy()
    precision = np.diag(1 / data.energy_var.numpy())
    inverses = np.linalg.inv(cov)
    r, f = data.energy_residual.numpy(), data.force_residual.numpy()
    return (
        energy.T @ precision @ energy,
        sum(j.T @ inverse @ j for j, inverse in zip(forces, inverses, strict=True)),
        r @ precision @ r,
        np.einsum("na,nab,nb->", f, inverses, f),
    )


@each_kind
def test_curvature_is_that_of_explicit_inverses(kind):
    potential, data = setup(kind)
    linearised = linearise_last_layer(potential, *whole(data))
    energy, forces, energy_chi2, forces_chi2 = dense(linearised)
    for diagonal in (False, True):
        found = GaussNewton.of(linearised, diagonal)
        for curvature, expected in ((found.energy, energy), (found.forces, forces)):
            exact = torch.tensor(np.diag(expected) if diagonal else expected)
            assert_close(curvature, exact, 1e-10)
        assert found.energy_chi2 == pytest.approx(energy_chi2, rel=1e-10)
        assert found.forces_chi2 == pytest.approx(forces_chi2, rel=1e-10)
        assert (found.n_energies, found.n_forces) == (4, 3 * 42)


def test_curvature_is_the_hessian_of_the_likelihood():
    """By second differences of -log p in the readout, exact for a quadratic of any step."""
    potential, data = setup()
    graph, labels = whole(data)
    found = GaussNewton.of(linearise_last_layer(potential, graph, labels), False)
    weights = readout_weights(potential).detach()
    direction = torch.randn(weights.shape, generator=seeded(4), dtype=torch.float64)
    values = []
    for step in (-1.0, 0.0, 1.0):
        set_readout_weights(potential, weights + step * direction)
        outputs = evaluate(potential, graph, False, create_graph=False)
        values.append(negative_log_likelihood(outputs, labels, graph).sum().item())
    second = values[0] - 2 * values[1] + values[2]
    expected = direction @ (found.energy + found.forces) @ direction
    assert second == pytest.approx(float(expected), rel=1e-9)


def test_curvatures_of_batches_add_up():
    potential, data = setup()
    parts = [
        GaussNewton.of(linearise_last_layer(potential, *batch), False)
        for batch in data.batches(range(4), 3)
    ]
    total = parts[0] + parts[1]
    at_once = GaussNewton.of(linearise_last_layer(potential, *whole(data)), False)
    assert_close(total.energy, at_once.energy, 1e-11)
    assert_close(total.forces, at_once.forces, 1e-11)
    assert (total.n_energies, total.n_forces) == (at_once.n_energies, at_once.n_forces)
    assert total.energy_chi2 == pytest.approx(at_once.energy_chi2, rel=1e-11)
    assert total.forces_chi2 == pytest.approx(at_once.forces_chi2, rel=1e-11)


@pytest.mark.slow
@each_kind
def test_probes_estimate_the_diagonal_without_bias(kind):
    """A probe is Gaussian with the diagonal as its variance: the mean over n is χ²_n/n times it.

    Of all weights together, one leaves its range in one of a thousand runs.
    """
    potential, data = setup(kind)
    n_probes = 100
    for index in range(2):
        exact = GaussNewton.of(linearise_all(potential, *one(data, index)), True)
        found = estimated_diagonal(potential, *one(data, index), n_probes, seeded(index))
        assert_close(found.energy, exact.energy, 1e-12)
        seen = exact.forces > 1e-20 * exact.forces.max()
        ratio = (found.forces / exact.forces)[seen].numpy()
        assert len(ratio) > 100
        tail = 1e-3 / len(ratio)
        low, high = chi2.ppf(tail / 2, n_probes), chi2.isf(tail / 2, n_probes)
        assert low < n_probes * ratio.min() <= n_probes * ratio.max() < high
        assert not found.forces[~seen].gt(1e-15 * exact.forces.max()).any()
        assert found.energy_chi2 == pytest.approx(exact.energy_chi2, rel=1e-10)
        assert found.forces_chi2 == pytest.approx(exact.forces_chi2, rel=1e-10)
        assert (found.n_energies, found.n_forces) == (exact.n_energies, exact.n_forces)


def test_probes_come_from_the_generator():
    potential, data = setup()
    draws = [estimated_diagonal(potential, *one(data), 2, seeded(s)).forces for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.allclose(draws[0], draws[2])


# --- the predictive density


@each_kind
@pytest.mark.parametrize("diagonal", [False, True])
def test_predictive_density_against_dense_normals(kind, diagonal):
    potential, data = setup(kind)
    linearised = linearise_last_layer(potential, *whole(data))
    found = GaussNewton.of(linearised, diagonal)
    noise = (0.7, 2.5)
    precision = posterior_precision([found.energy, found.forces], noise, 0.3)
    if diagonal:
        values, vectors = precision, None
        covariance = np.diag(1 / precision.numpy())
    else:
        values, vectors = torch.linalg.eigh(precision)
        covariance = np.linalg.inv(precision.numpy())
    expected = 0.0
    for k, row in enumerate(linearised.energy_jacobian.numpy()):
        variance = noise[0] * linearised.energy_var[k].item() + row @ covariance @ row
        residual = linearised.energy_residual[k].item()
        expected -= norm.logpdf(residual, scale=np.sqrt(variance)) + 0.5 * np.log(2 * np.pi)
    for k, rows in enumerate(linearised.force_jacobian.numpy()):
        cov = noise[1] * linearised.forces_cov[k].numpy() + rows @ covariance @ rows.T
        density = multivariate_normal.logpdf(linearised.force_residual[k].numpy(), cov=cov)
        expected -= density + 1.5 * np.log(2 * np.pi)
    value = predictive_nll(linearised, vectors, values, noise)
    assert value.shape == ()
    assert float(value) == pytest.approx(expected, rel=1e-8)
