"""Stacked members against the potentials that they stack, one by one."""

from __future__ import annotations

import copy
import functools
import math
import os
import shutil

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from noise import wake_noise
from torch import nn

from ase_bayesmlip.config import LossConfig, ModelConfig
from ase_bayesmlip.graph import (
    AtomicGraph,
    batch_graphs,
    dense_edges,
    strained,
    sum_by_graph,
)
from ase_bayesmlip.nn.build import DataStatistics, build_potential
from ase_bayesmlip.nn.derivatives import stress_from_strain_gradient
from ase_bayesmlip.nn.stacked.geometry import DenseGeometry, forces_from_edges, virial_from_edges
from ase_bayesmlip.nn.stacked.operators import load_kernels
from ase_bayesmlip.nn.stacked.potential import StackedPotential
from ase_bayesmlip.nn.stacked.radial_table import interpolate
from ase_bayesmlip.serving.compiler import build_kernels
from ase_bayesmlip.testing import graph_of
from ase_bayesmlip.training.outputs import evaluate

CUTOFF = 4.0
MEMBERS = 3
SHORTEST = [[1.2, 1.3, 1.2], [1.3, 1.6, 1.5], [1.2, 1.5, 0.0]]  # Å: above some in the structures
STATISTICS = DataStatistics([1, 6, 8], [0.0, 0.0, 0.0], 12.0, 2.0, anchored=True, shortest=SHORTEST)
SIX = "4x0o + 4x0e + 4x1o + 4x1e + 4x2o + 4x2e"
NATURAL = "4x0e + 4x1o + 4x2e"
NO_PAIRS = {"anchor": False, "repulsion": False}
CASES = {
    "race": {"backbone": "race", "n_layers": 3, "hidden_irreps": NATURAL, **NO_PAIRS},
    "race-parities": {
        "backbone": "race",
        "n_layers": 3,
        "hidden_irreps": SIX,
        "covariance": "cholesky",
        "energy_noise": "mean",
    },
    # No path reaches 2e in the first layer.
    "race-l1": {"backbone": "race", "hidden_irreps": NATURAL, "l_max": 1, "n_layers": 3},
    "race-l3": {"backbone": "race", "hidden_irreps": f"{NATURAL} + 4x3o", "l_max": 3},
    "plus": {"hidden_irreps": "4x0e + 4x1o"},
    "plus-free": {"hidden_irreps": "4x0e + 4x1o", **NO_PAIRS},
    "plus-repelled": {"hidden_irreps": "4x0e + 4x1o", "anchor": False},
    "plus-mean": {"hidden_irreps": NATURAL, "energy_noise": "mean", "n_layers": 1},
    "plus-l0": {"hidden_irreps": "4x0e", "l_max": 0, "covariance": "iso"},
    "plus-l1": {"hidden_irreps": "4x0e + 4x1o", "l_max": 1, "covariance": "iso"},
    "plus-l3": {"hidden_irreps": "4x0e + 4x1o + 4x3o", "l_max": 3, "covariance": "cholesky"},
    "no covariance": {"hidden_irreps": "4x0e + 4x1o", "covariance": "none"},
    "nll_e": {"hidden_irreps": "4x0e + 4x1o", "loss": "nll_e"},
    "nll_e-mean": {"hidden_irreps": "4x0e", "loss": "nll_e", "energy_noise": "mean"},
    "mse": {"hidden_irreps": "4x0e + 4x1o", "loss": "mse"},
}
ALL = pytest.mark.parametrize("case", sorted(CASES))


def make_member(case, seed):
    """Weights, element biases, unit and noise scales differ between members."""
    options = {"cutoff": CUTOFF, "radial_hidden": [8], "readout_hidden": 8, "n_radial": 5}
    options |= CASES[case]
    loss = options.pop("loss", "nll_jef")
    potential = build_potential(ModelConfig(**options), LossConfig(kind=loss), STATISTICS, seed)
    generator = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        potential.bias += 0.3 * torch.randn(potential.bias.shape, generator=generator)
        potential.scale *= 1.0 + 0.2 * seed
    wake_noise(potential, seed)
    potential.noise.set_scales(0.02 * (1 + seed), 0.05 * (2 + seed))
    return potential.requires_grad_(False)


@functools.cache
def members_of(case):
    return [make_member(case, seed) for seed in range(MEMBERS)]


@functools.cache
def stacked_of(case):
    return StackedPotential(members_of(case))


class Distances(nn.Module):
    """In the place of a radial basis."""

    def forward(self, distances):
        return distances.unsqueeze(1)


class Tabulated(nn.Module):
    """In the place of a radial network."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, distances):
        return interpolate(self.table, distances.T, CUTOFF)[0][0]


def tabulated_members(case):
    """The members with the radial networks of the stack: what is left must agree exactly."""
    found = []
    for k, member in enumerate(members_of(case)):
        other = copy.deepcopy(member)
        other.basis = Distances()
        for own, layer in zip(stacked_of(case).layers, other.layers, strict=True):
            layer.convolution.radial = Tabulated(own.convolution.get_buffer("radial")[k])
        found.append(other)
    return found


# --- structures ----------------------------------------------------------------------------------


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=3)
    return atoms


def small_cell() -> Atoms:
    """Three atoms in a skewed cell whose edges are shorter than the cutoff."""
    cell = [[3.1, 0, 0], [0.3, 3.4, 0], [-0.2, 0.4, 3.3]]
    positions = [[0.1, 0.0, 0.05], [0.75, 0.8, 0.7], [-0.6, -0.75, -0.6]]
    return Atoms("CO2", positions, cell=cell, pbc=True)


def diamond() -> Atoms:
    atoms = bulk("C", "diamond", a=3.6)
    atoms.rattle(0.05, seed=2)
    return atoms


STRUCTURES = {
    "molecule": [ethanol],
    "small cell": [small_cell],
    "batch": [small_cell, diamond, lambda: Atoms("H", cell=[9.0, 9.0, 9.0])],
}


def make_graph(name, cutoff=CUTOFF) -> AtomicGraph:
    return batch_graphs([graph_of(make(), cutoff) for make in STRUCTURES[name]])


def stacked_outputs(stacked, graph):
    """Everything that a stack says of a graph, members first; None where it says nothing."""
    edges = dense_edges(graph)
    n_harmonics = stacked.layers[0].convolution.table.n_right
    geometry = DenseGeometry(stacked.cutoff, math.isqrt(n_harmonics) - 1).to(stacked.one_hot.dtype)
    around = geometry(graph.positions, graph.cell, graph.batch, edges)
    species = stacked.one_hot[graph.atomic_numbers]
    output, basis, record = stacked(species, around, graph.batch, graph.n_graphs)
    gradients = stacked.gradients(stacked.readout_weights, record, species, around)
    virial = virial_from_edges(gradients, around.vectors, graph.batch, graph.n_graphs)
    return {
        "atomic_energies": output.atomic_energies.detach(),
        "forces": forces_from_edges(gradients, edges),
        "stress": torch.stack([stress_from_strain_gradient(x, graph.cell) for x in virial]),
        "virial": virial,
        "atomic_energies_var": output.atomic_energies_var,
        "forces_cov": output.forces_cov,
        "basis": basis.detach(),
    }


def member_outputs(members, graph):
    """The same from the potentials themselves."""
    outputs = [member(graph) for member in members]
    slopes = [evaluate(member, graph, True, create_graph=False) for member in members]
    fields = {
        "atomic_energies": [output.atomic_energies[0] for output in outputs],
        "forces": [slope.forces for slope in slopes],
        "stress": [slope.stress for slope in slopes],
        "atomic_energies_var": [output.atomic_energies_var for output in outputs],
        "forces_cov": [output.forces_cov for output in outputs],
        "basis": [member.strata(graph).basis.detach() for member in members],
    }
    for name in ("atomic_energies_var", "forces_cov"):
        if fields[name][0] is not None:
            fields[name] = [value[0] for value in fields[name]]
    return fields


SLOPES = {"forces", "stress"}


def assert_fields(found, expected, tolerance, slope_tolerance=None):
    """Deviation of every member from its reference, relative to the largest value."""
    for name, values in expected.items():
        if values[0] is None:
            assert found[name] is None, name
            continue
        allowed = (slope_tolerance or tolerance) if name in SLOPES else tolerance
        for one, other in zip(found[name], values, strict=True):
            assert_near(one, other, allowed, name)


def table_tolerances(stacked):
    """Allowed errors of values and of slopes, from the measured error of the tables.

    Slopes of cubic Hermite interpolation lose a factor of 3 n du/dr, about n, to values.
    """
    n_intervals = stacked.layers[0].convolution.get_buffer("radial").shape[1] - 2
    return 3.0 * stacked.table_error, n_intervals * stacked.table_error


def assert_near(found, expected, tolerance, name=""):
    found, expected = found.detach().double(), expected.detach()
    assert found.shape == expected.shape, name
    size = float(expected.abs().max())
    assert float((found - expected).abs().max()) <= max(tolerance * max(size, 1e-6), 1e-15), name


# --- members -------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("structure", sorted(STRUCTURES))
def test_members_with_the_same_tables_agree_exactly(case, structure):
    graph = make_graph(structure)
    found = stacked_outputs(stacked_of(case), graph)
    expected = member_outputs(tabulated_members(case), graph)
    has_energy, has_forces = CASES[case].get("loss") != "mse", "loss" not in CASES[case]
    assert (found["atomic_energies_var"] is not None) == has_energy
    assert (found["forces_cov"] is not None) == (has_forces and case != "no covariance")
    assert_fields(found, expected, 1e-11)
    # Nothing above would fail if there were nothing to compare.
    assert float(found["forces"].std()) > 1e-3
    assert structure == "molecule" or float(found["stress"].abs().max()) > 1e-5


@ALL
def test_gradients_of_several_combinations_are_linear_in_them(case):
    """With members in their places; a sum of two is that of both.

    What depends on distances alone belongs to the first of them.
    """
    stacked, graph = stacked_of(case), make_graph("small cell")
    edges = dense_edges(graph)
    n_harmonics = stacked.layers[0].convolution.table.n_right
    geometry = DenseGeometry(stacked.cutoff, math.isqrt(n_harmonics) - 1).double()
    around = geometry(graph.positions, graph.cell, graph.batch, edges)
    species = stacked.one_hot[graph.atomic_numbers]
    _, _, record = stacked(species, around, graph.batch, graph.n_graphs)
    mean = stacked.readout_weights
    generator = torch.Generator().manual_seed(0)
    other = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
    together = stacked.gradients(
        torch.cat([mean, other, mean + other]), record, species, around
    ).unflatten(0, (3, len(mean)))
    assert_near(together[0], stacked.gradients(mean, record, species, around), 1e-13, case)
    direct = stacked.gradients(torch.zeros_like(mean), record, species, around)
    first = stacked.gradients(other, record, species, around)
    assert_near(together[1], first - direct, 1e-13, case)
    assert_near(together[2], together[0] - direct + together[1], 1e-12, case)
    assert float((together[1] - together[0]).abs().max()) > 1e-3


@ALL
def test_members_agree_within_the_error_of_the_tables(case):
    graph = make_graph("small cell")
    stacked = stacked_of(case)
    assert 0.0 < stacked.table_error < 1e-6
    found, expected = stacked_outputs(stacked, graph), member_outputs(members_of(case), graph)
    assert_fields(found, expected, *table_tolerances(stacked))


def test_a_finer_table_brings_the_members_closer():
    members, graph = members_of("plus"), make_graph("small cell")
    expected = member_outputs(members, graph)
    for tolerance in (1e-4, 1e-7, 1e-9):
        stacked = StackedPotential(members, tolerance)
        assert stacked.table_error < tolerance
        assert_fields(stacked_outputs(stacked, graph), expected, *table_tolerances(stacked))


def test_members_differ():
    """Were they alike, the comparisons above would not see members that are swapped or shared."""
    found = stacked_outputs(stacked_of("plus"), make_graph("molecule"))
    for name in ("atomic_energies", "forces", "atomic_energies_var", "forces_cov"):
        values = found[name].detach()
        for one, other in zip(values, values.roll(1, dims=0), strict=True):
            assert float((one - other).abs().max()) > 1e-2 * float(other.abs().max())


@pytest.mark.parametrize("case", ["race-parities", "plus"])
def test_a_member_alone_is_the_member_of_a_stack(case):
    """Up to the grid of its table, which is as fine as the worst member needs."""
    members, graph = members_of(case), make_graph("batch")
    together = stacked_outputs(StackedPotential(members, 1e-9), graph)
    alone = stacked_outputs(StackedPotential(members[1:2], 1e-9), graph)
    for name, values in together.items():
        assert alone[name].shape == (1, *values.shape[1:])
        assert_near(alone[name][0], values[1], 1e-6, name)


# --- derivatives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["race-parities", "plus", "plus-l3"])
def test_forces_and_virials_are_finite_differences_of_the_energies(case):
    stacked, graph = stacked_of(case), make_graph("batch")
    generator = torch.Generator().manual_seed(0)
    moves = torch.randn(graph.positions.shape, generator=generator, dtype=torch.float64)
    strain = torch.randn(graph.cell.shape, generator=generator, dtype=torch.float64)
    strain = 0.5 * (strain + strain.transpose(1, 2))
    # Curvatures jump at grid points, which a small step hardly sees.
    step = 1e-5
    outputs = stacked_outputs(stacked, graph)

    def energies(shift):
        moved = graph._replace(positions=graph.positions + shift * moves)
        return stacked_outputs(stacked, moved)["atomic_energies"].sum(1)

    def strained_energies(shift):
        atomic = stacked_outputs(stacked, strained(graph, shift * strain))["atomic_energies"]
        return sum_by_graph(atomic, graph.batch, graph.n_graphs)

    slopes = (energies(step) - energies(-step)) / (2.0 * step)
    assert_near(slopes, -(outputs["forces"] * moves).sum(dim=(1, 2)), 1e-6)
    slopes = (strained_energies(step) - strained_energies(-step)) / (2.0 * step)
    assert_near(slopes, (outputs["virial"] * strain).sum(dim=(2, 3)), 1e-6)


def test_nothing_in_a_stack_is_trained():
    stacked = StackedPotential([make_member("plus", 0).requires_grad_(True)])
    assert not any(item.requires_grad for item in (*stacked.parameters(), *stacked.buffers()))


# --- neighbours and precision --------------------------------------------------------------------


@pytest.mark.parametrize("case", ["race", "plus"])
def test_structures_of_a_batch_do_not_see_each_other(case):
    stacked = stacked_of(case)
    whole = stacked_outputs(stacked, make_graph("batch"))
    start = 0
    for k, make in enumerate(STRUCTURES["batch"]):
        graph = graph_of(make(), CUTOFF)
        single = stacked_outputs(stacked, graph)
        atoms = slice(start, start + len(graph.positions))
        for name, values in single.items():
            part = slice(k, k + 1) if name in ("stress", "virial") else atoms
            assert_near(whole[name][:, part], values, 1e-11, name)
        start = atoms.stop


@pytest.mark.parametrize("case", ["race", "plus"])
def test_a_skin_and_the_order_of_edges_change_nothing(case):
    stacked, graph = stacked_of(case), make_graph("batch")
    expected = stacked_outputs(stacked, graph)
    wide = make_graph("batch", CUTOFF + 0.7)
    order = np.random.default_rng(0).permutation(wide.edge_index.shape[1])
    wide = wide._replace(edge_index=wide.edge_index[:, order], edge_shift=wide.edge_shift[order])
    found = stacked_outputs(stacked, wide)
    assert wide.edge_index.shape[1] > graph.edge_index.shape[1]
    for name, values in expected.items():
        assert_near(found[name], values, 1e-11, name)


@pytest.mark.parametrize("case", ["race", "plus", "plus-l3"])
def test_single_precision(case):
    graph = make_graph("batch")
    rounded = copy.deepcopy(stacked_of(case)).float()
    found = stacked_outputs(rounded, graph)
    assert found["atomic_energies"].dtype == torch.float32
    for name, values in stacked_outputs(stacked_of(case), graph).items():
        assert_near(found[name], values, 1e-4, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "dtype", "tolerance"),
    [
        ("race-l1", torch.float64, 1e-12),
        ("plus", torch.float64, 1e-12),
        ("plus", torch.float32, 1e-4),
        ("plus-l0", torch.float64, 1e-12),
        ("plus-l3", torch.float64, 1e-12),
        ("race-parities", torch.float64, 1e-12),
    ],
)
def test_kernels_give_what_the_formulas_give(case, dtype, tolerance, tmp_path):
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("needs a C++ compiler")
    stacked, graph = copy.deepcopy(stacked_of(case)).to(dtype), make_graph("batch")
    library, digest = build_kernels(stacked.kernel_source(dtype), tmp_path)
    load_kernels(library, digest)
    stacked.use_kernels(digest)
    found = stacked_outputs(stacked, graph)
    for name, values in stacked_outputs(stacked_of(case), graph).items():
        if values is not None:
            assert_near(found[name], values, tolerance, name)
