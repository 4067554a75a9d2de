"""Energies at the ends: atoms alone, atoms that leave, atoms that come too close."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.data import covalent_radii
from noise import wake_noise

from ase_bayesmlip.config import LossConfig, ModelConfig
from ase_bayesmlip.nn.build import DataStatistics, build_potential
from ase_bayesmlip.nn.last_layer import LastLayerPotential
from ase_bayesmlip.nn.pairs import (
    BOUND,
    FLOOR,
    FREE,
    PairFunctions,
    bond,
    bond_slope,
    bonded,
    bonded_slope,
    held,
    held_slope,
    zbl,
    zbl_slope,
)
from ase_bayesmlip.nn.potential import readout_weights
from ase_bayesmlip.structures.neighbors import graph_of

CUTOFF = 5.0
ELEMENTS = [1, 6, 8]
STATISTICS = DataStatistics(
    ELEMENTS, [0.0] * 3, 12.0, 1.5, mean_energies=[-2.0, -7.0, -4.0], anchored=True
)


def make(kind="nll_jef", statistics=STATISTICS, dtype=torch.float64, seed=0, **changes):
    config = ModelConfig(hidden_irreps="4x0e + 4x1o", cutoff=CUTOFF, **changes)
    potential = build_potential(config, LossConfig(kind=kind), statistics, seed, dtype)
    wake_noise(potential, seed)
    potential.noise.set_scales(0.02, 0.05)
    return potential.requires_grad_(False)


def functions(numbers, repulsion=True, cutoff=CUTOFF, shortest=()):
    return PairFunctions(numbers, cutoff, 2, repulsion, shortest)


def terms(atoms, cutoff=CUTOFF):
    numbers = sorted(set(atoms.numbers.tolist()))
    graph = graph_of(atoms, cutoff)
    distances = torch.tensor(atoms.get_all_distances(mic=True))[tuple(graph.edge_index)]
    species = torch.tensor(atoms.numbers[:, None] == np.array(numbers)).double()
    return functions(numbers, cutoff=cutoff)(distances, graph.edge_index, species)


def dimer(a, b, distance):
    return Atoms([a, b], positions=[[0.0, 0.0, 0.0], [0.0, 0.0, distance]])


@pytest.mark.parametrize("kind", ["mse", "nll_jef", "evidential"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_lone_atom_has_no_energy_of_its_own_and_hardly_any_variance(kind, dtype):
    potential = make(kind, dtype=dtype).eval()
    for element in (*ELEMENTS, *ELEMENTS):
        output = potential(graph_of(Atoms([element]), CUTOFF))
        assert abs(float(output.atomic_energies)) < 1e-6
        for name in ("atomic_energies_var", "forces_cov", "forces_trace_epistemic"):
            value = getattr(output, name)
            assert value is None or 0.0 < float(value.abs().max()) < 10.0 * FLOOR
        potential.fold()


def test_the_readout_of_a_lone_atom_is_certain():
    potential = make().eval()
    n = len(readout_weights(potential))
    uncertain = LastLayerPotential(potential, torch.eye(n).double(), torch.eye(n).double())
    lone, pair = (uncertain(graph_of(a, CUTOFF)) for a in (Atoms("O"), dimer("O", "H", 1.0)))
    assert float(lone.directions.abs().max()) < 1e-12 < 1e-3 < float(pair.directions.abs().max())


def test_energies_are_the_readout_of_the_basis_and_what_pairs_say():
    potential, atoms = make(), molecule("CH3CH2OH")
    graph = graph_of(atoms, CUTOFF)
    for _ in range(2):
        strata = potential.strata(graph)
        species = strata.species
        distances = torch.tensor(atoms.get_all_distances())[tuple(graph.edge_index)]
        found = potential.pairs(distances, graph.edge_index, species)
        assert torch.equal(found.bonded, torch.ones(len(atoms), dtype=torch.float64))
        binding = species @ torch.tensor([-2.0, -7.0, -4.0]).double()
        expected = strata.basis @ readout_weights(potential) + binding + found.repulsion
        torch.testing.assert_close(strata.energies, expected)
        potential.fold()


def test_a_shift_of_the_binding_energies_that_no_molecule_sees_changes_nothing():
    potential, atoms = make(), molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=1)
    before = potential(graph_of(atoms, CUTOFF)).atomic_energies.sum()
    potential.bias[:, 0] += torch.tensor([1.0, -3.5, 1.0]).double()  # 6 H, 2 C, 1 O
    after = potential(graph_of(atoms, CUTOFF)).atomic_energies.sum()
    assert float((after - before).abs()) < 1e-9


def test_fitted_energies_and_a_switch_leave_the_network_free():
    fitted = DataStatistics(ELEMENTS, [0.0] * 3, 12.0, 1.5)
    graphs = [graph_of(a, CUTOFF) for a in (molecule("CH3CH2OH"), Atoms("O"))]
    for one, other in ((make(statistics=fitted, repulsion=False), make(anchor=False)),):
        one.bias.copy_(other.bias)
        for graph in graphs:
            a, b = one(graph), other(graph)
            torch.testing.assert_close(a.atomic_energies_var, b.atomic_energies_var)
        assert float(b.atomic_energies.abs()) > 1e-3


@pytest.mark.parametrize(
    "atoms",
    [molecule("H2O"), molecule("NH3"), molecule("CH3CH2OH"), bulk("Si").repeat(3), bulk("Mo"),
     bulk("NaCl", "rocksalt", 5.64).repeat(3), bulk("Al", cubic=True).repeat(2)],
    ids=lambda atoms: atoms.get_chemical_formula("metal"),
)  # fmt: skip
def test_atoms_in_matter_are_bonded_exactly_and_have_all_their_noise(atoms):
    atoms = atoms.repeat(3) if len(atoms) == 1 else atoms
    atoms.rattle(0.08, seed=0)
    found = terms(atoms)
    assert torch.equal(found.bonded, torch.ones_like(found.bonded))
    assert torch.equal(found.presence, torch.ones_like(found.presence))


def test_an_atom_that_leaves_does_so_smoothly_and_for_good():
    radii = covalent_radii[1] + covalent_radii[8]
    distances = np.linspace(0.9 * BOUND * radii, 1.05 * FREE * radii, 2001)
    g = torch.stack([terms(dimer("O", "H", d)).bonded[1] for d in distances])
    steps = g.diff() / (distances[1] - distances[0])
    assert (float(g[0]), float(g[-1])) == (1.0, 0.0)
    assert float(steps.max()) <= 0.0
    assert float(steps.min()) > -1.5
    assert float((steps.diff() / (distances[1] - distances[0])).abs().max()) < 6.0
    last = terms(dimer("O", "H", CUTOFF - 1e-3))
    assert float(last.presence[0]) < 1e-9
    assert float(last.bonded[0]) == 0.0


def test_zbl_is_that_of_the_book():
    """Si-Si at 1 Å, from the formula as printed, well inside its envelope."""
    a = 0.8854 * units.Bohr / (2.0 * 14**0.23)
    x = 0.5 / a
    phi = sum(
        c * np.exp(-d * x)
        for c, d in ((0.1818, 3.2), (0.5099, 0.9423), (0.2802, 0.4029), (0.02817, 0.2016))
    )
    y = 0.5 / (2.0 * covalent_radii[14])
    envelope = 1.0 - 28.0 * y**6 + 48.0 * y**7 - 21.0 * y**8
    expected = 14.3996 * 14**2 / 0.5 * phi * envelope
    found = terms(dimer("Si", "Si", 0.5)).repulsion
    assert float(found.sum()) == pytest.approx(expected, rel=1e-3)
    assert float(found[0]) == float(found[1])
    assert float(terms(dimer("Si", "Si", 2.23)).repulsion.sum()) == 0.0
    pairs = functions([14], repulsion=False).of_pairs(torch.zeros(1, dtype=torch.int64))
    assert float(zbl(torch.tensor([0.5]), pairs)) == 0.0


def test_the_network_is_shown_what_it_knows_and_comes_to_a_halt_below():
    """Exact from 0.9 of the shortest distance on; from 0.6 down it stays at 0.75."""
    pairs = functions([1, 8], shortest=[[1.6, 0.0], [0.0, 0.0]])
    contact = covalent_radii[1] + covalent_radii[8]
    for pair, shortest in ((0, 1.6), (1, contact), (3, 2.0 * covalent_radii[8])):
        parameters = pairs.of_pairs(torch.tensor([pair]))
        known = shortest * torch.linspace(0.9001, 3.0, 50).double()
        assert torch.equal(held(known, parameters), known)
        below = shortest * torch.linspace(0.01, 0.5999, 50).double()
        torch.testing.assert_close(
            held(below, parameters), torch.full_like(below, 0.75 * shortest), rtol=1e-9, atol=0.0
        )
    every = functions([1, 8]).of_pairs(torch.tensor([1]))
    small = torch.linspace(0.01, 5.0, 500).double()
    assert torch.equal(held(small, every), small)


@pytest.mark.parametrize("cutoff", [1.0, 5.0])
@pytest.mark.parametrize(("value", "slope"), [(bond, bond_slope), (zbl, zbl_slope)])
def test_slopes_are_derivatives_and_nothing_reaches_beyond_the_cutoff(value, slope, cutoff):
    pairs = functions([1, 8, 55], cutoff=cutoff).of_pairs(torch.arange(9).repeat_interleave(200))
    distances = torch.linspace(0.2, 6.0, 200).double().repeat(9).requires_grad_(True)
    (expected,) = torch.autograd.grad(value(distances, pairs).sum(), distances)
    torch.testing.assert_close(slope(distances, pairs), expected)
    assert not value(distances, pairs)[distances >= cutoff].any()


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations_with_replacement("HCO", 2)))
def test_far_below_the_training_an_untrained_network_digs_no_hole(a, b):
    shortest = [[1.4, 1.0, 0.9], [1.0, 1.4, 1.3], [0.9, 1.3, 0.0]]
    potential = make(statistics=dataclasses.replace(STATISTICS, shortest=shortest))
    energies, repulsion = [], []
    for distance in np.linspace(0.1, 0.36, 14):
        atoms = dimer(a, b, distance)
        energies.append(float(potential(graph_of(atoms, CUTOFF)).atomic_energies.sum()))
        repulsion.append(float(terms(atoms).repulsion.sum()))
    np.testing.assert_allclose(np.diff(energies), np.diff(repulsion), rtol=1e-9)


def test_the_slope_of_what_is_seen():
    pairs = functions([1], shortest=[[0.7]]).of_pairs(torch.zeros(200, dtype=torch.int64))
    distances = torch.linspace(0.05, 1.5, 200).double().requires_grad_(True)
    (expected,) = torch.autograd.grad(held(distances, pairs).sum(), distances)
    torch.testing.assert_close(held_slope(distances, pairs), expected, atol=1e-12, rtol=1e-9)


def test_the_slope_of_g():
    bonds = torch.tensor([0.0, 0.3, 0.7, 1.4]).double().requires_grad_(True)
    (expected,) = torch.autograd.grad(bonded(bonds).sum(), bonds)
    torch.testing.assert_close(bonded_slope(bonds), expected)


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations_with_replacement("HCO", 2)))
def test_repulsion_alone_rises_all_the_way(a, b):
    contact = sum(covalent_radii[Atoms([a, b]).numbers])
    energies = [
        float(terms(dimer(a, b, d)).repulsion.sum()) for d in np.linspace(0.3, contact, 100)
    ]
    assert (np.diff(energies) < 0.0).all()
