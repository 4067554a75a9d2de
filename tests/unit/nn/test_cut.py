"""Structures whose edges are taken in parts, against the same as a whole."""

import itertools
import weakref
from types import SimpleNamespace

import pytest
import torch
from ase import Atoms
from ase.build import bulk
from hypothesis import given
from hypothesis import strategies as st

from ase_bayesmlip.config import LossConfig, ModelConfig
from ase_bayesmlip.graph import Part, batch_graphs, sorted_by_centre, split_edges
from ase_bayesmlip.nn.build import DataStatistics, build_potential
from ase_bayesmlip.serving import runtime
from ase_bayesmlip.serving.archive import quiet_torchscript
from ase_bayesmlip.serving.served_model import ServedModel
from ase_bayesmlip.testing import graph_of

CUTOFF = 4.0
NAMES = ["cholesky", "ensemble", "iso", "laplace", "laplace_elements", "mse", "nll_e", "point"]
NAMES += ["race", "small", "evidential", "evidence", "evidential_laplace", "eip"]


@pytest.fixture
def graph(small_cell, ethanol, strained_co2):
    """Several structures, atoms without neighbours among and after them, edges in any order."""
    frames = [Atoms("H"), small_cell, ethanol, Atoms("H"), strained_co2, Atoms("O")]
    graph = batch_graphs([graph_of(atoms, CUTOFF) for atoms in frames])
    order = torch.randperm(graph.edge_shift.shape[0], generator=torch.Generator().manual_seed(0))
    return graph._replace(edge_index=graph.edge_index[:, order], edge_shift=graph.edge_shift[order])


def in_parts(model):
    """The same served model, whose parts have some 20 edges."""
    model.numbers_at_once = 8 * 20 * model.numbers_per_edge
    return model


# --- the cut --------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 70), st.integers(0, 3))
def test_parts_hold_every_atom_and_its_edges_once(centres, size, n_more):
    centre = torch.tensor(sorted(centres))
    n_atoms = int(centre.max()) + 1 + n_more
    parts = split_edges(centre, n_atoms, size)
    assert [part.first_atom for part in parts] == [0, *(part.end_atom for part in parts[:-1])]
    assert [part.first_edge for part in parts] == [0, *(part.end_edge for part in parts[:-1])]
    assert (parts[-1].end_atom, parts[-1].end_edge) == (n_atoms, len(centre))
    most = int(torch.bincount(centre).max())
    for part in parts:
        inside = centre[part.first_edge : part.end_edge]
        assert len(inside) > 0
        assert part.first_atom <= int(inside.min()) <= int(inside.max()) < part.end_atom
        assert len(inside) < size + most


def test_parts_of_a_chain():
    centre = torch.tensor([1, 1, 1, 1, 2, 2, 4])
    assert split_edges(centre, 6, 3) == [Part(0, 4, 0, 6), Part(4, 6, 6, 7)]


def test_sorting_keeps_what_an_edge_is(graph):
    found = sorted_by_centre(graph)
    assert (found.edge_index[0, 1:] >= found.edge_index[0, :-1]).all()

    def edges(graph):
        return sorted(torch.cat([graph.edge_index.T, graph.edge_shift], dim=1).tolist())

    assert edges(found) == edges(graph)


# --- the same numbers -----------------------------------------------------------------------------


def assert_same(found, expected, tolerance=1e-10):
    for name, one, other in zip(expected._fields, found, expected, strict=True):
        if other is None:
            assert one is None, name
            continue
        size = max(float(other.abs().max()), 1e-9)
        # A spread is a difference of energies that have their reference energies in them.
        assert float((one - other).abs().max()) <= tolerance * size, name


@pytest.mark.slow
@pytest.mark.parametrize("force_spread", [True, False])
@pytest.mark.parametrize("stress", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_parts_say_what_the_whole_says(name, stress, force_spread, eager, graph):
    model = eager(name)
    assert model.divided(graph)[1] is None
    expected = model(graph, stress, True, force_spread)
    in_parts(model)
    assert len(model.divided(graph)[1]) > 10
    assert_same(model(graph, stress, True, force_spread), expected)


def program_of(model):
    with quiet_torchscript():
        return torch.jit.freeze(torch.jit.script(model.eval()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["laplace_mixture", "evidential", "race"])
def test_programs_take_parts_too(name, eager, graph):
    expected = eager(name)(graph, True, True)
    with quiet_torchscript():
        module = torch.jit.script(eager(name).eval())
        in_parts(module)  # as loading for a GPU does
        assert len(module.divided(graph)[1]) > 10
        program = torch.jit.freeze(module)
    for _ in range(3):  # the first calls specialise it, also to what has no need of parts
        program(graph_of(Atoms("H"), CUTOFF), True, True)
    for _ in range(3):
        assert_same(program(graph, True, True), expected)


@pytest.mark.parametrize("name", ["laplace", "point"])
def test_parts_in_single_precision(name, eager, graph):
    expected = eager(name)(graph, True, True)
    model = in_parts(eager(name))
    for parameter in model.members.parameters():
        parameter.data = parameter.data.float()
    for module in model.members.modules():
        for key, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(module, key, buffer.float())
    found = model(graph, True, True)
    # Round-off of float32 over some 100 neighbours and two layers.
    assert_same(found, expected, 1e-5)


def test_a_gpu_may_hold_half_its_memory(monkeypatch):
    memory = SimpleNamespace(total_memory=8_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    device = torch.device("cuda")
    assert runtime._numbers_that_fit(device, torch.float32) == 1000
    assert runtime._numbers_that_fit(device, torch.float64) == 500


# --- memory ---------------------------------------------------------------------------------------


class Kept:
    """Numbers that autograd keeps for derivatives: at most at once."""

    def __init__(self):
        self.now = self.most = 0
        self.storages = {}

    def pack(self, tensor):
        key = tensor.untyped_storage().data_ptr()
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        count, size = self.storages.get(key, (0, size))
        self.storages[key] = count + 1, size
        self.now += size if count == 0 else 0
        self.most = max(self.most, self.now)
        held = Held(tensor.detach())  # else what is kept would keep itself
        weakref.finalize(held, self.release, key)
        return held

    def release(self, key):
        count, size = self.storages[key]
        self.storages[key] = count - 1, size
        if count == 1:
            self.now -= size
            del self.storages[key]


class Held:
    def __init__(self, tensor):
        self.tensor = tensor


def most_kept(model, graph):
    """Most numbers that are kept for derivatives at a time."""
    kept = Kept()
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda held: held.tensor):
        model(graph, True, False)
    return kept.most


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["eager", "program"])
@pytest.mark.parametrize("backbone", ["race", "race_plus"])
def test_parts_keep_less(backbone, kind):
    config = ModelConfig(backbone=backbone, hidden_irreps="8x0e + 8x1o + 8x2e", cutoff=5.0)
    statistics = DataStatistics([8, 12], [0.0, 0.0], 50.0, 1.0)
    graph = graph_of(bulk("MgO", "rocksalt", 4.2, cubic=True).repeat(3), 5.0)
    pair = graph_of(Atoms("MgO", positions=[[0.0, 0.0, 0.0], [0.0, 0.0, 2.0]]), 5.0)
    shares = {}
    for n_members, whole in itertools.product((1, 3), (True, False)):
        members = [
            build_potential(config, LossConfig(kind="nll_jef"), statistics, k)
            for k in range(n_members)
        ]
        model = ServedModel(members, {}).requires_grad_(False)
        about = graph.edge_index.shape[1] * model.numbers_per_edge
        model.numbers_at_once = about if whole else about - 1
        assert whole or len(model.divided(graph)[1]) == pytest.approx(8, abs=1)
        if kind == "program":
            model = program_of(model)
            for _ in range(2):  # as the self-test of a file does
                model(pair, True, False)
        shares[n_members, whole] = most_kept(model, graph) / about
    # Of the numbers that a step holds at its peak about half are kept for derivatives.
    assert 0.3 < shares[1, True] < 0.7
    assert shares[1, False] < 0.2 * shares[1, True]
    for whole in (True, False):
        assert shares[3, whole] < 1.1 * shares[1, whole]
