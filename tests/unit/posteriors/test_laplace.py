"""Laplace approximation: what is fitted and how it takes in new labels, in closed form."""

import dataclasses
import functools

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.stats import chi2, multivariate_normal, norm
from tiny import (
    BY_ELEMENT,
    DATA,
    N_WEIGHTS,
    assert_close,
    batch_of,
    covariance,
    jacobians,
    laplace_state,
    mixture_of,
    seeded,
    serve,
    tiny_config,
    tiny_potential,
    tiny_sets,
    trained,
)
from torch.nn.utils import parameters_to_vector

from ase_bayesmlip.nn.potential import readout_weights, set_readout_weights
from ase_bayesmlip.posteriors import laplace
from ase_bayesmlip.posteriors.curvature import (
    GaussNewton,
    linearise_all,
    linearise_last_layer,
)
from ase_bayesmlip.posteriors.linear_gaussian import Gaussian, maximise_evidence
from ase_bayesmlip.structures.labelled import read_frames
from ase_bayesmlip.structures.reading import DataError

KINDS = ["nll_jef", "nll_e", "mse"]
each_kind = pytest.mark.parametrize("kind", KINDS)


# --- what is fitted


def config_of(**posterior):
    return tiny_config(posterior={"kind": "laplace", **posterior})


def dense(kind, potential, data):
    """Precisions of energies and forces from explicit inverses, and both χ²."""
    energy, forces, chi2s = 0.0, 0.0, np.zeros(2)
    for batch in data.batches(range(len(data)), 1):
        item = linearise_last_layer(potential, *batch)
        row, residual = item.energy_jacobian.numpy(), item.energy_residual.numpy()
        variance = 9.0 if kind == "mse" else item.energy_var.item()
        energy = energy + row.T @ row / variance
        chi2s[0] += residual @ residual / variance
        for k, rows in enumerate(item.force_jacobian.numpy()):
            noise = item.forces_cov[k].numpy() if kind == "nll_jef" else np.eye(3)
            inverse = np.linalg.inv(noise)
            forces = forces + rows.T @ inverse @ rows
            chi2s[1] += (r := item.force_residual[k].numpy()) @ inverse @ r
    return energy, forces, chi2s


@each_kind
def test_precision_is_curvature_over_noise_plus_prior(kind):
    state = laplace_state(kind)
    potential = tiny_potential(state.config)
    train, _ = tiny_sets(state.config)
    energy, forces, chi2s = dense(kind, potential, train)
    (gaussian,) = state.gaussians
    best = maximise_evidence(
        [torch.tensor(energy), torch.tensor(forces)],
        list(chi2s),
        [7, 7 * 27],
        [kind == "mse", kind != "nll_jef"],
        readout_weights(potential).detach(),
    )
    assert gaussian.prior == pytest.approx(best.prior, rel=1e-7)
    assert (gaussian.energy_noise, gaussian.forces_noise) == pytest.approx(best.noise, rel=1e-7)
    # Noise that the heads were trained for stays as they say.
    assert (gaussian.energy_noise == 1.0) == (kind != "mse")
    assert (gaussian.forces_noise == 1.0) == (kind == "nll_jef")
    expected = energy / gaussian.energy_noise + forces / gaussian.forces_noise
    expected += gaussian.prior * np.eye(N_WEIGHTS)
    assert_close(gaussian.precision, torch.tensor(expected), 1e-10)
    assert torch.equal(gaussian.mean, readout_weights(potential).detach())


@pytest.mark.parametrize("by_element", [True, False])
def test_curvature_is_summed_over_batches(by_element, monkeypatch):
    whole = laplace_state(by_element=by_element).gaussians[0]
    monkeypatch.setattr(laplace, "BATCH", 3)
    config = config_of(by_element=by_element)
    stage = laplace.Curvature(tiny_potential(config), *tiny_sets(config), config, 0)
    assert stage.n_steps == 3
    metrics = [stage.step(index) for index in range(3)]
    assert_close(stage.gaussian.precision, whole.precision, 1e-8)
    _, _, chi2s = dense("nll_jef", tiny_potential(config), tiny_sets(config)[0])
    assert metrics[-1]["energy_chi2"] == pytest.approx(chi2s[0] / 7, rel=1e-9)
    assert metrics[-1]["forces_chi2"] == pytest.approx(chi2s[1] / (7 * 27), rel=1e-9)


@pytest.mark.parametrize("weights", ["last_layer", "all"])
def test_prior_may_be_a_number(weights):
    options = {"weights": weights, "probes": 3}
    one, two = (laplace_state(prior=prior, **options).gaussians[0] for prior in (0.5, 8.0))
    assert (one.prior, two.prior) == (0.5, 8.0)
    difference = two.precision - one.precision
    diagonal = difference if weights == "all" else difference.diagonal()
    # Round-off of a difference of precisions.
    eps = torch.finfo(torch.float64).eps
    assert float((diagonal - 7.5).abs().max()) < 4 * eps * float(one.precision.abs().max())


def log_density(item, covariance, noise):
    """Of the labels of a structure, energy and the force of each atom as they are served."""
    value = 0.0
    if covariance.ndim == 1:  # variances
        covariance = scipy.sparse.diags_array(covariance)
    for k, row in enumerate(item.energy_jacobian.numpy()):
        variance = noise[0] * item.energy_var[k].item() + row @ covariance @ row
        value += norm.logpdf(item.energy_residual[k].item(), scale=np.sqrt(variance))
    for k, rows in enumerate(item.force_jacobian.numpy()):
        cov = noise[1] * item.forces_cov[k].numpy() + rows @ covariance @ rows.T
        value += multivariate_normal.logpdf(item.force_residual[k].numpy(), cov=cov)
    return value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "weights"), [("nll_jef", "last_layer"), ("mse", "last_layer"), ("nll_e", "all")]
)
def test_validated_prior_is_the_best_of_the_grid(kind, weights):
    state = laplace_state(kind, prior="validation", weights=weights, probes=2)
    (found,) = state.gaussians
    (other,) = laplace_state(kind, weights=weights, probes=2).gaussians
    diagonal = weights == "all"
    identity = torch.ones(len(found.mean)) if diagonal else torch.eye(N_WEIGHTS)
    identity = identity.double()  # the prior, rounded, would leave curvatures below zero
    curvature = other.precision - other.prior * identity
    unit = float(curvature.mean() if diagonal else curvature.diagonal().mean())
    _, valid = tiny_sets(state.config)
    linearise = linearise_all if diagonal else linearise_last_layer
    potential = tiny_potential(state.config)
    items = [linearise(potential, *batch) for batch in valid.batches(range(3), 1)]
    values = {}
    noise = (found.energy_noise, found.forces_noise)
    for exponent in np.linspace(-8, 2, 41):
        tau = 10.0**exponent * unit
        precision = (curvature + tau * identity).numpy()
        covariance = 1 / precision if diagonal else np.linalg.inv(precision)
        values[tau] = sum(log_density(item, covariance, noise) for item in items)
    assert found.prior == pytest.approx(max(values, key=values.get), rel=1e-6)
    assert max(values.values()) - min(values.values()) > 0.1
    assert_close(found.precision, (curvature + found.prior * identity).double(), 1e-8)


# --- new labels


def rows_and_labels(state, data):
    """Whitened rows, and labels as if all weights of the readout were zero."""
    (potential,) = state.run.potentials()
    (gaussian,) = state.gaussians
    set_readout_weights(potential, torch.zeros(N_WEIGHTS).double())
    parts = []
    for batch in data.batches(range(len(data)), 1):
        energy, energy_label, forces, force_label = linearise_last_layer(
            potential, *batch
        ).whitened()
        scales = gaussian.energy_noise**0.5, gaussian.forces_noise**0.5
        parts.append((energy / scales[0], energy_label / scales[0]))
        parts.append((forces / scales[1], force_label / scales[1]))
    rows, labels = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return rows, labels


def at_the_map(state):
    """The same posterior with its mean where the labels and the prior put it."""
    train, _ = tiny_sets(state.config)
    rows, labels = rows_and_labels(state, train)
    (gaussian,) = state.gaussians
    mean = np.linalg.solve(gaussian.precision.numpy(), rows.T @ labels)
    moved = dataclasses.replace(gaussian, mean=torch.tensor(mean))
    return laplace.State(state.run, (moved,)), rows, labels


NEW = f"{DATA}/ethanol_valid.extxyz@40:45"


def new_frames():
    data = tiny_config().data
    return read_frames(NEW, data.keys, data.units)


def new_set(kind):
    """The same frames as graphs."""
    return tiny_sets(tiny_config(loss={"kind": kind}, data={"valid": NEW}))[1]


@pytest.mark.parametrize("kind", ["nll_jef", "mse"])
def test_by_element_the_posterior_is_that_of_resolved_rows(kind):
    """Precision, evidence and two updates in a row, against explicit rows."""
    state = laplace_state(kind, by_element=True)
    (potential,), (gaussian,) = state.run.potentials(), state.gaussians
    train, _ = tiny_sets(state.config)
    assert gaussian.mean.shape == (BY_ELEMENT,)

    def rows_of(data):
        item = linearise_last_layer(potential, *next(data.batches(range(len(data)), 99)), True)
        parts = item.whitened()
        scales = gaussian.energy_noise**0.5, gaussian.forces_noise**0.5
        rows = torch.cat([parts[0] / scales[0], parts[2] / scales[1]])
        return rows, torch.cat([parts[1] / scales[0], parts[3] / scales[1]])

    rows, _ = rows_of(train)
    prior = gaussian.prior * torch.eye(BY_ELEMENT, dtype=torch.float64)
    assert_close(gaussian.precision, rows.T @ rows + prior, 1e-10)
    # Shared weights are a restriction of these, by which elements are summed.
    shared = laplace_state(kind, by_element=False, prior=0.5).gaussians[0]
    if kind == "nll_jef":
        blocks = (gaussian.precision - prior).unflatten(0, (3, -1)).unflatten(2, (3, -1))
        expected = shared.precision - 0.5 * torch.eye(N_WEIGHTS)
        assert_close(blocks.sum((0, 2)), expected.double(), 1e-8)
    updated = laplace.update(laplace.update(state, new_frames()[:2]), new_frames()[2:])
    rows, residuals = rows_of(new_set(kind))
    precision = gaussian.precision + rows.T @ rows
    change = torch.linalg.solve(precision, rows.T @ residuals)
    assert_close(updated.gaussians[0].precision, precision, 1e-10)
    assert_close(updated.gaussians[0].mean - gaussian.mean, change, 1e-7)
    energies, forces = zip(*laplace.linearised_variances(updated, ethanol_frames()), strict=True)
    data = laplace._dataset(state, ethanol_frames())
    graph, _ = next(data.batches(range(2), 2))
    prediction = serve(updated, BY_ELEMENT)(graph, False, False)
    expected = torch.tensor(energies, dtype=torch.float64)
    assert_close(expected, prediction.energy_var_epistemic)
    assert_close(torch.cat(forces), prediction.forces_cov_epistemic)


@each_kind
def test_an_update_is_a_fit_to_all_labels(kind):
    """Ridge regression of old and new labels at once, by least squares on stacked rows."""
    state, rows, labels = at_the_map(laplace_state(kind))
    frames = new_frames()
    updated = laplace.update(state, frames)
    new_rows, new_labels = rows_and_labels(state, new_set(kind))
    (gaussian,) = updated.gaussians
    stacked = np.concatenate([rows, new_rows, gaussian.prior**0.5 * np.eye(N_WEIGHTS)])
    targets = np.concatenate([labels, new_labels, np.zeros(N_WEIGHTS)])
    expected = np.linalg.lstsq(stacked, targets, rcond=None)[0]
    assert_close(gaussian.mean, torch.tensor(expected), 1e-8)
    assert_close(gaussian.precision, torch.tensor(stacked.T @ stacked), 1e-8)
    assert gaussian.prior == state.gaussians[0].prior
    assert gaussian.energy_noise == state.gaussians[0].energy_noise
    # Nothing but the readout has changed, and the old state has not.
    assert updated.run is state.run
    assert not torch.allclose(state.gaussians[0].mean, gaussian.mean)


def test_updates_one_by_one_are_one_update():
    frames = new_frames()
    (at_once,) = laplace.update(laplace_state(), frames).gaussians
    state = laplace_state()
    for frame in frames[::-1]:
        state = laplace.update(state, [frame])
    assert_close(state.gaussians[0].mean, at_once.mean, 1e-8)
    assert_close(state.gaussians[0].precision, at_once.precision, 1e-10)


def test_members_are_updated_each_by_itself():
    state = laplace_state(members=2)
    updated = laplace.update(state, new_frames())
    for k in range(2):
        alone = laplace.State(
            dataclasses.replace(state.run, weights=(state.run.weights[k],)), (state.gaussians[k],)
        )
        (expected,) = laplace.update(alone, new_frames()).gaussians
        assert torch.equal(updated.gaussians[k].mean, expected.mean)


def test_new_labels_lower_the_variance_there_and_raise_it_nowhere():
    state = laplace_state("mse")
    updated = laplace.update(state, new_frames())
    gained = covariance(state) - covariance(updated)
    eigenvalues = torch.linalg.eigvalsh(gained)
    assert eigenvalues.min() > -1e-10 * eigenvalues.max()
    graph, _ = next(new_set("mse").batches(range(5), 5))
    before, after = (serve(s, N_WEIGHTS)(graph, False, False) for s in (state, updated))
    assert (after.energy_var_epistemic < before.energy_var_epistemic).all()
    traces = [p.forces_cov_epistemic.diagonal(dim1=1, dim2=2).sum(1) for p in (before, after)]
    assert (traces[1] < traces[0]).all()
    assert not torch.equal(before.energy, after.energy)


def test_an_updated_mean_is_served():
    state = laplace.update(laplace_state(), new_frames())
    graph, _ = batch_of(state)
    (potential,) = state.run.potentials()
    rows, _ = jacobians(state)
    change = state.gaussians[0].mean - readout_weights(potential)
    expected = trained(state)(graph, False, False).energy + rows @ change
    found = serve(state, 2)(graph, False, False).energy
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-9)


def test_an_update_needs_known_elements_and_the_last_layer():
    state = laplace_state()
    source = new_frames()
    strange = source[0].atoms.copy()
    strange.numbers[0] = 7
    frame = dataclasses.replace(source[0], atoms=strange)
    with pytest.raises(DataError, match=r"does not know the element\(s\) N"):
        laplace.update(state, [frame])
    with pytest.raises(ValueError, match="only a last-layer Laplace posterior takes new labels"):
        laplace.update(laplace_state(weights="all", probes=2), source)


# --- all weights


@pytest.mark.slow
@each_kind
def test_the_diagonal_of_all_weights(kind):
    state = laplace_state(kind, weights="all", probes=0, prior=0.4)
    potential = tiny_potential(state.config)
    train, _ = tiny_sets(state.config)
    parts = [
        GaussNewton.of(linearise_all(potential, *batch), True)
        for batch in train.batches(range(7), 1)
    ]
    total = functools.reduce(GaussNewton.__add__, parts)
    (gaussian,) = state.gaussians
    expected = total.energy / gaussian.energy_noise + total.forces / gaussian.forces_noise + 0.4
    assert_close(gaussian.precision, expected, 1e-10)
    assert torch.equal(gaussian.mean, parameters_to_vector(potential.parameters()).detach())
    # An estimate: each element a mean of squares of at least eight Gaussians of unequal size.
    (estimated,) = laplace_state(kind, weights="all", probes=8, prior=0.4).gaussians
    noise = (estimated.energy_noise, estimated.forces_noise)
    assert noise == pytest.approx((gaussian.energy_noise, gaussian.forces_noise), rel=0.2)
    large = gaussian.precision > gaussian.precision.median()
    ratio = (estimated.precision / gaussian.precision)[large]
    low, high = chi2.ppf([1e-6, 1 - 1e-6], 8) / 8
    assert low < float(ratio.min()) <= float(ratio.max()) < high


def test_draws_of_all_weights_have_its_variances():
    state = laplace_state(weights="all", probes=2, members=2)
    n = 40
    drawn = laplace.draw(state, n, seeded(3))
    assert len(drawn) == n
    for member in range(2):
        gaussian = state.gaussians[member]
        weights = torch.stack(
            [parameters_to_vector(potential.parameters()) for potential in drawn[member::2]]
        )
        total = float(((weights - gaussian.mean) ** 2 * gaussian.precision).sum())
        low, high = chi2.ppf([5e-4, 1 - 5e-4], weights.numel())
        assert low < total < high
    again = laplace.draw(state, 2, seeded(3))
    assert all(
        torch.equal(a, b) for a, b in zip(again[0].parameters(), drawn[0].parameters(), strict=True)
    )


def test_a_gaussian_is_kept_as_it_is():
    """Through the checkpoint of the stage."""
    config = config_of()
    stages = [
        laplace.Curvature(tiny_potential(config), *tiny_sets(config), config, 0) for _ in range(2)
    ]
    stages[0].step(0)
    stages[1].restore(stages[0].state())
    for field in dataclasses.fields(Gaussian):
        one, two = (getattr(stage.gaussian, field.name) for stage in stages)
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(two))
    assert stages[1].total.n_forces == 7 * 27


# --- the linearised potential


def ethanol_frames(n=2):
    return read_frames(f"{DATA}/ethanol_valid.extxyz@0:{n}")


def test_linearised_variances_are_the_served_ones_of_the_last_layer():
    state, frames = laplace_state(), ethanol_frames()
    data = laplace._dataset(state, frames)
    graph, _ = next(data.batches(range(len(frames)), len(frames)))
    prediction = serve(state, N_WEIGHTS)(graph, False, False)
    energies, forces = zip(*laplace.linearised_variances(state, frames), strict=True)
    assert_close(torch.tensor(energies, dtype=torch.float64), prediction.energy_var_epistemic)
    assert_close(torch.cat(forces), prediction.forces_cov_epistemic)


@pytest.mark.parametrize("place", [0.1, 0.3, 0.5])
def test_linearised_variances_follow_from_slopes_by_the_weights(place):
    """With a single uncertain weight: (dE/dw)² and dF/dw dF/dwᵀ, by finite differences."""
    state = laplace_state(weights="all")
    gaussian = state.gaussians[0]
    index = int(place * len(gaussian.mean))
    precision = torch.full_like(gaussian.mean, 1e30)
    precision[index] = 4.0
    only = dataclasses.replace(gaussian, precision=precision)
    state = dataclasses.replace(state, gaussians=(only,))
    (frame,) = ethanol_frames(1)
    graph, _ = next(laplace._dataset(state, [frame]).batches([0], 1))
    step = 1e-4

    def moved(sign):
        potential = state.run.potentials()[0]
        weights = parameters_to_vector(potential.parameters())
        weights[index] += sign * step
        torch.nn.utils.vector_to_parameters(weights, potential.parameters())
        return mixture_of([potential], state)(graph, False, False)

    above, below = moved(1.0), moved(-1.0)
    energy_slope = (above.energy - below.energy) / (2 * step)
    force_slope = (above.forces - below.forces) / (2 * step)
    assert float(force_slope.abs().max()) > 1e-6  # a weight that matters
    ((energy_var, forces_cov),) = laplace.linearised_variances(state, [frame])
    # Central differences: third derivatives are of the order of the slopes.
    expected = torch.einsum("ia,ib->iab", force_slope, force_slope) / 4.0
    assert_close(forces_cov, expected, 1e-5)
    assert energy_var == pytest.approx(float(energy_slope**2) / 4.0, rel=1e-5, abs=1e-12)
