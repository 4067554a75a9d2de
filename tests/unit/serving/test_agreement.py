"""The trial structures of compiled programs, and which faults they find."""

import dataclasses

import numpy as np
import pytest
import torch

from ase_bayesmlip.graph import batch_graphs
from ase_bayesmlip.prediction import Prediction
from ase_bayesmlip.serving.agreement import (
    deviations,
    disagreement,
    excess,
    largest,
    trial_graphs,
    trial_structures,
)
from ase_bayesmlip.structures.neighbors import neighbor_edges


@pytest.fixture(scope="module")
def model(loaded):
    return loaded("small")


def says(model):
    return lambda graph: model.predict([graph], stress=True, members=True)


def test_trial_structures_are_of_every_kind(model):
    frames = trial_structures(model.card)
    assert {tuple(atoms.pbc.tolist()) for atoms in frames} == {
        (a, b, c) for a in (False, True) for b in (False, True) for c in (False, True)
    }
    for atoms in frames:
        assert (atoms.cell.array.any(axis=1) == atoms.pbc).all()
        # Nothing is along an axis, so that no two components may be exchanged.
        assert atoms.cell.array[atoms.pbc].all()
        edges, _ = neighbor_edges(
            atoms.positions, atoms.cell.complete().array, atoms.pbc, 0.47 * model.card.cutoff
        )
        assert edges.size == 0
        assert set(atoms.numbers.tolist()) <= set(model.card.atomic_numbers)
    assert {int(z) for atoms in frames for z in atoms.numbers} == set(model.card.atomic_numbers)
    hands = {np.sign(np.linalg.det(atoms.cell.array)) for atoms in frames if atoms.pbc.all()}
    assert hands == {-1.0}
    assert all(graph.edge_index.shape[1] > 0 for graph in trial_graphs(model.card))


def test_a_model_agrees_with_itself_alone_and_in_a_batch(model):
    worst = disagreement(model.card, says(model), says(model))
    assert worst.keys() == model.fields
    assert max(worst.values()) < 1e-9
    assert excess(worst, "float64") is None


def transposed(graph):
    return graph._replace(cell=graph.cell.mT.contiguous())


def exchanged(graph):
    return graph._replace(edge_shift=graph.edge_shift.roll(1, dims=1))


def without_second(graph):
    cell = graph.cell.clone()
    cell[:, 1] = 0.0
    return graph._replace(cell=cell)


def right_handed(graph):
    hand = torch.linalg.det(graph.cell).sign().view(-1, 1, 1)
    return graph._replace(cell=torch.where(hand < 0, -graph.cell, graph.cell))


@pytest.mark.parametrize("fault", [transposed, exchanged, without_second, right_handed])
@pytest.mark.parametrize("where", ["alone", "in a batch"])
def test_faults_in_the_lattice_are_found(model, fault, where):
    def faulty(graph):
        single = graph.n_graphs == 1
        return says(model)(fault(graph) if single == (where == "alone") else graph)

    assert excess(disagreement(model.card, faulty, says(model)), "float32") is not None


def test_a_fault_of_wires_alone_is_found_beside_large_reference_energies(model):
    """0.3 eV of 4,209 eV is 7e-5 of it, and would pass."""
    card = dataclasses.replace(model.card, reference_energies={"H": -1e5, "C": -1e5, "O": -1e5})
    references = torch.zeros(119, dtype=torch.float64)
    references[[1, 6, 8]] = torch.tensor([model.card.reference_energies[x] for x in "HCO"]).double()

    def heavy(shift):
        def run(graph):
            found = says(model)(graph)
            own = -1e5 - references[graph.atomic_numbers]
            total = torch.zeros(graph.n_graphs, dtype=torch.float64)
            total = total.index_add(0, graph.batch, own)
            wire = graph.n_graphs == 1 and int(graph.edge_shift.abs().amax(dim=0).gt(0).sum()) == 1
            return found._replace(energy=found.energy + total + (shift if wire else 0.0))

        return run

    assert excess(disagreement(card, heavy(0.0), heavy(0.0)), "float32") is None
    problem = excess(disagreement(card, heavy(0.3), heavy(0.0)), "float32")
    assert problem is not None
    assert problem.startswith("energy by")


def test_what_is_not_a_number_is_too_much(model):
    graph = batch_graphs(trial_graphs(model.card))
    expected = says(model)(graph)
    found = expected._replace(forces=expected.forces * torch.nan)
    worst = largest([deviations(expected, expected, graph, model.card)] * 2)
    assert excess(worst, "float64") is None
    worst = largest([worst, deviations(found, expected, graph, model.card)])
    assert "forces by nan" in excess(worst, "float32")


def test_fields_that_one_side_lacks_are_not_compared(model):
    graph = trial_graphs(model.card)[0]
    expected = says(model)(graph)
    older = Prediction(**{**expected._asdict(), "energy_shares": None})
    assert "energy_shares" not in deviations(expected, older, graph, model.card)
    assert "energy_shares" not in deviations(older, expected, graph, model.card)
