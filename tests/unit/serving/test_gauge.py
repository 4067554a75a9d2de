"""The gauge of atomic energies against a brute-force search over all of them."""

import numpy as np
import pytest
import torch
from ase.build import molecule
from scipy.optimize import minimize
from tiny import mixture_set, tiny_config, tiny_potential, tiny_sets

from ase_bayesmlip.card import read_card
from ase_bayesmlip.graph import sum_by_graph
from ase_bayesmlip.nn.last_layer import LastLayerPotential
from ase_bayesmlip.nn.potential import readout_weights
from ase_bayesmlip.serving.export import export_members
from ase_bayesmlip.serving.gauge import fix_gauge, free_constants, least_spread
from ase_bayesmlip.serving.home import Home, load_home
from ase_bayesmlip.serving.runtime import load_model
from ase_bayesmlip.serving.served_model import ServedModel
from ase_bayesmlip.structures.neighbors import graph_of
from ase_bayesmlip.training.data import load_training_data

REFERENCES = {1: -13.6, 6: -1027.5, 8: -2041.9}
ETHANOL, CO2 = [6, 2, 1], [0, 4, 8]


def members_with_gauges(config, n=3):
    """Potentials whose energies of elements differ by far more than all else."""
    members = [tiny_potential(config, seed).requires_grad_(False) for seed in range(n)]
    generator = np.random.default_rng(0)
    for member in members:
        member.bias[:, 0] += torch.from_numpy(generator.normal(size=3)) / member.scale
    return members


def home_with(data, *compositions):
    return Home(data, data, np.array(compositions))


def predict(members, data):
    graph, _ = next(data.batches(range(len(data)), len(data)))
    return ServedModel(members, REFERENCES)(graph, True, True), graph


def brute_force(energies, numbers, compositions):
    """Constants (S, 3) by a search: least Σ_i Var_s(e_i) with totals bound by a penalty."""
    place = np.searchsorted([1, 6, 8], numbers)
    n = np.array(compositions, dtype=float)

    def objective(flat):
        c = flat.reshape(-1, 3)
        shifted = energies - c[:, place]
        spread = ((shifted - shifted.mean(0)) ** 2).sum()
        return spread + 1e6 * ((c @ n.T) ** 2).sum() + 1e3 * (c.sum(0) ** 2).sum()

    start = np.zeros(3 * len(energies))
    return minimize(objective, start, method="BFGS", options={"gtol": 1e-10}).x.reshape(-1, 3)


@pytest.mark.parametrize("compositions", [[ETHANOL], [CO2], [ETHANOL, CO2]])
def test_atomic_energies_spread_as_little_as_in_any_gauge(compositions):
    config = tiny_config()
    data = mixture_set(config)
    members = members_with_gauges(config)
    graph, _ = next(data.batches(range(len(data)), len(data)))
    before = torch.cat([member(graph).atomic_energies for member in members]).numpy()
    fix_gauge(members, home_with(data, *compositions))
    after = torch.cat([member(graph).atomic_energies for member in members]).numpy()
    found = brute_force(before, graph.atomic_numbers.numpy(), compositions)
    place = np.searchsorted([1, 6, 8], graph.atomic_numbers.numpy())
    np.testing.assert_allclose(before - after, found[:, place], atol=2e-4)
    assert np.abs(before - after).max() > 0.1


def test_totals_forces_and_stress_stay_what_they_were():
    config = tiny_config()
    data = mixture_set(config)
    members = members_with_gauges(config)
    before, graph = predict(members, data)
    fix_gauge(members, home_with(data, ETHANOL, CO2))
    after, _ = predict(members, data)
    for name in ("energy_members", "forces_members", "stress_members", "energy_var_epistemic"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=0, atol=1e-9)
    torch.testing.assert_close(after.atomic_energies, before.atomic_energies, rtol=0, atol=1e-9)
    assert after.atomic_energies_var_epistemic.mean() < before.atomic_energies_var_epistemic.mean()
    totals = sum_by_graph(after.energy_shares - before.energy_shares, graph.batch, graph.n_graphs)
    assert totals.abs().max() < 1e-9


def test_twice_is_once():
    config = tiny_config()
    members, home = members_with_gauges(config), home_with(tiny_sets(config)[0], ETHANOL)
    words = fix_gauge(members, home)
    biases = [member.bias.clone() for member in members]
    fix_gauge(members, home)
    for member, bias in zip(members, biases, strict=True):
        torch.testing.assert_close(member.bias, bias, rtol=0, atol=1e-12)
    assert "7 training frames; 2 of 3 constants" in words


def test_nothing_changes_where_totals_fix_every_element():
    config = tiny_config()
    members = members_with_gauges(config)
    before = [member.bias.clone() for member in members]
    home = home_with(tiny_sets(config)[0], ETHANOL, CO2, [2, 0, 1])
    assert "every element" in fix_gauge(members, home)
    assert all(torch.equal(m.bias, bias) for m, bias in zip(members, before, strict=True))


def test_members_with_an_uncertain_readout_take_part():
    config = tiny_config()
    plain, wrapped = members_with_gauges(config), members_with_gauges(config)
    zeros = torch.zeros(len(readout_weights(plain[0])), 2, dtype=torch.float64)
    home = home_with(tiny_sets(config)[0], ETHANOL)
    fix_gauge(plain, home)
    fix_gauge([LastLayerPotential(member, zeros, zeros) for member in wrapped], home)
    assert all(torch.equal(a.bias, b.bias) for a, b in zip(plain, wrapped, strict=True))


@pytest.mark.parametrize(
    ("compositions", "free"),
    [
        ([[6, 2, 1]], 2),
        ([[6, 2, 1], [12, 4, 2]], 2),
        ([[6, 2, 1], [0, 1, 2]], 1),
        ([[0, 1, 2], [0, 4, 8]], 2),
        ([[2000, 1000, 1], [2000, 1001, 1]], 1),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1], [5, 4, 3]], 0),
        ([[1]], 0),
    ],
)
def test_free_constants_are_the_null_space_of_the_compositions(compositions, free):
    found = free_constants(np.array(compositions))
    assert found.shape == (len(compositions[0]), free)
    np.testing.assert_allclose(np.array(compositions) @ found, 0.0, atol=1e-11)
    np.testing.assert_allclose(found.T @ found, np.eye(free), atol=1e-12)


def test_an_element_without_atoms_keeps_its_constant():
    means = np.array([[1.0, 5.0, 0.0], [-1.0, 3.0, 0.0]])
    free = free_constants(np.array([[2, 1, 0]]))
    found = least_spread(means, np.array([20.0, 10.0, 0.0]), free)
    np.testing.assert_allclose(found[:, 2], 0.0, atol=1e-14)
    np.testing.assert_allclose(found.sum(axis=0), 0.0, atol=1e-14)


@pytest.mark.slow
def test_a_file_with_the_gauge_gives_the_totals_of_one_without(tmp_path):
    """Weights are rounded to float32 in a file, the gauge is not."""
    posterior = {"kind": "ensemble", "members": 3}
    config = tiny_config(posterior=posterior, training={"dtype": "float32"}, loss={"kind": "mse"})
    record = load_training_data(config).record()
    home = load_home(config, record)
    graph = graph_of(molecule("CH3CH2OH"), config.model.cutoff)
    found = {}
    for name, given in (("without", None), ("with", home)):
        members = [member.double() for member in members_with_gauges(config)]
        export_members(members, config, record, tmp_path / f"{name}.pt", home=given)
        model = load_model(tmp_path / f"{name}.pt", dtype="float64")
        found[name] = model.predict([graph], members=True)
    for name in ("energy", "energy_members", "forces", "energy_var_epistemic"):
        one, other = (getattr(found[key], name) for key in ("without", "with"))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    spread = [found[key].atomic_energies_var_epistemic.mean() for key in ("with", "without")]
    assert spread[0] < spread[1]
    assert "gauge" not in read_card(tmp_path / "without.pt").home
    assert "2 of 3" in read_card(tmp_path / "with.pt").home["gauge"]
