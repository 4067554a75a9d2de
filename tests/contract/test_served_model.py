"""A served model keeps its promises, and the checker that we ship finds one that does not."""

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms

from ase_bayesmlip.prediction import Prediction, to_results
from ase_bayesmlip.serving import runtime
from ase_bayesmlip.serving.runtime import load_model, quiet_torchscript
from ase_bayesmlip.testing import (
    TOLERANCE,
    as_arrays,
    assert_close,
    assert_equivariant_prediction,
    check_served_model,
    graph_of,
    predict,
)

EQUIVARIANT = ["ensemble", "race", "nll_e", "point", "mse", "iso", "laplace", "laplace_mixture"]


CHECKED = [
    *((name, "float64") for name in EQUIVARIANT),
    ("ensemble", "float32"),
    ("race", "float32"),
]
# Members of either backbone and drawn readouts in the short run.
SHORT = ("ensemble", "race", "laplace")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(
            name, dtype, marks=[] if (name in SHORT) and dtype == "float64" else pytest.mark.slow
        )
        for name, dtype in CHECKED
    ],
)
def test_symmetries_batching_and_positivity(loaded, ethanol, strained_co2, name, dtype):
    check_served_model(loaded(name, dtype), ethanol, strained_co2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ensemble", "race"])
def test_symmetric_crystal(loaded, cubic_co2, ethanol, name):
    check_served_model(loaded(name), ethanol, cubic_co2)


def test_symmetric_crystal_has_symmetric_stress(loaded, cubic_co2):
    fields = predict(loaded("ensemble"), [cubic_co2])
    isotropic = fields["stress"][0, 0, 0] * np.eye(3)
    assert np.abs(fields["stress"][0] - isotropic).max() < 1e-10
    assert np.abs(fields["forces"][:4]).max() < 1e-10


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["ensemble", "race"])
def test_supercell(loaded, strained_co2, name, dtype):
    model = loaded(name, dtype)
    one, two = predict(model, [strained_co2]), predict(model, [strained_co2.repeat((2, 1, 1))])
    factors = {"energy": 2, "energy_var_epistemic": 4, "energy_var_aleatoric": 2}
    per_cell = ["stress", "stress_cov_epistemic"]
    for field, values in one.items():
        if field in factors or field in per_cell:
            expected = factors.get(field, 1) * values
        else:
            if field == "energy_shares":  # noise is the atom's own; the rest it shares with all
                noise = one["atomic_energies_var_aleatoric"]
                values = noise + 2 * (values - noise)
            expected = np.concatenate([values, values])
        assert_close(field, two[field], expected, TOLERANCE[dtype])


def test_atom_moved_by_a_lattice_vector(loaded, strained_co2):
    moved = strained_co2.copy()
    moved.positions[3] += moved.cell[0] - 2 * moved.cell[2]
    model = loaded("ensemble")
    expected, found = predict(model, [strained_co2]), predict(model, [moved])
    for name, values in expected.items():
        assert_close(name, found[name], values, 1e-8)


# --- The checker itself: each broken model must be found, by the check that is meant for it. ---


class Broken:
    """A model whose prediction is changed after the fact."""

    def __init__(self, module, change):
        self.module, self.change = module, change

    def __call__(self, graph, stress, members):
        prediction = self.module(graph, stress, members)
        changes = self.change(prediction, graph, stress)
        return prediction._replace(**changes)


def skew(matrix):
    wrong = torch.zeros_like(matrix)
    wrong[..., 0, 1] = 0.01 * matrix[..., 0, 0]
    return matrix + wrong


BROKEN = {
    "force along x": (
        "forces (det",
        lambda p, g, s: {"forces": p.forces + torch.tensor([1e-3, 0.0, 0.0])},
    ),
    "pseudovector forces": (
        "forces (det Q = -1)",
        lambda p, g, s: {
            "forces": p.forces
            + 0.1 * torch.linalg.cross(p.forces, g.positions - g.positions.mean(dim=0))
        },
    ),
    "energy that depends on the origin": (
        "energy (det",
        lambda p, g, s: {"energy": p.energy + 1e-3 * g.positions.sum()},
    ),
    "forces that depend on the order": (
        "forces (det",
        lambda p, g, s: {"forces": p.forces * torch.arange(1, len(p.forces) + 1).unsqueeze(1)},
    ),
    "covariance in a fixed frame": (
        "forces_cov_aleatoric (det",
        lambda p, g, s: {
            "forces_cov_aleatoric": p.forces_cov_aleatoric + torch.diag(torch.tensor([0.1, 0, 0]))
        },
    ),
    "covariance that is not symmetric": (
        "forces_cov_epistemic",
        lambda p, g, s: {"forces_cov_epistemic": skew(p.forces_cov_epistemic)},
    ),
    "negative covariance": (
        "forces_cov_aleatoric has the negative eigenvalue",
        lambda p, g, s: {
            "forces_cov_aleatoric": p.forces_cov_aleatoric
            - 0.5 * torch.eye(3) * torch.einsum("ncc->n", p.forces_cov_aleatoric).view(-1, 1, 1)
        },
    ),
    "negative variance": (
        "energy_var_epistemic is negative",
        lambda p, g, s: {"energy_var_epistemic": -p.energy_var_epistemic},
    ),
    "energy that is not extensive": (
        "energy (extensivity)",
        lambda p, g, s: {
            "energy": p.energy + 1e-3 * torch.bincount(g.batch, minlength=g.n_graphs) ** 2
        },
    ),
    "noise of atoms added as deviations": (
        "energy_var_aleatoric (extensivity)",
        lambda p, g, s: {
            "energy_var_aleatoric": torch.zeros_like(p.energy).index_add(
                0, g.batch, p.atomic_energies_var_aleatoric.sqrt()
            )
            ** 2
        },
    ),
    "shares that depend on the order": (
        "energy_shares (det",
        lambda p, g, s: {"energy_shares": p.energy_shares * torch.arange(len(p.forces))},
    ),
    "shares that count what atoms have in common once": (
        "energy_shares (extensivity)",
        lambda p, g, s: {
            "energy_shares": p.atomic_energies_var_epistemic + p.atomic_energies_var_aleatoric
        },
    ),
    "structures that see each other": (
        "forces (batch)",
        lambda p, g, s: {"forces": p.forces * g.n_graphs},
    ),
    "not a number": (
        "energy (det",
        lambda p, g, s: {"energy": p.energy * float("nan")},
    ),
    "stress in a fixed frame": (
        "stress (det",
        lambda p, g, s: {
            "stress": p.stress + 0.1 * torch.diag(torch.tensor([1.0, 0, 0])) if s else None
        },
    ),
    "stress covariance in a fixed frame": (
        "stress_cov_epistemic (det",
        lambda p, g, s: {
            "stress_cov_epistemic": p.stress_cov_epistemic + torch.eye(6) if s else None
        },
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", BROKEN)
def test_checker_finds(loaded, eager, ethanol, strained_co2, fault):
    message, change = BROKEN[fault]
    module = Broken(eager("small"), change)
    model = dataclasses.replace(loaded("small"), module=module)
    with pytest.raises(AssertionError) as caught:
        check_served_model(model, ethanol, strained_co2)
    assert str(caught.value).startswith(message), caught.value


def test_checker_passes_an_unbroken_model(loaded, eager, ethanol, strained_co2):
    module = Broken(eager("small"), lambda p, g, s: {})
    check_served_model(dataclasses.replace(loaded("small"), module=module), ethanol, strained_co2)


def test_published_covariance_does_not_rotate(loaded, ethanol):
    with pytest.raises(AssertionError, match=r"^forces_cov_aleatoric \(det"):
        assert_equivariant_prediction(loaded("cholesky"), ethanol)


def test_nan_and_sign_are_deviations():
    with pytest.raises(AssertionError, match="deviation nan"):
        assert_close("x", np.array([np.nan]), np.array([1.0]), 1e-3)
    with pytest.raises(AssertionError):
        assert_close("x", np.array([0.0]), np.array([1.0]), 1e-3)
    assert_close("x", np.array([1.0, 1e-9]), np.array([1.0, 0.0]), 1e-8)


# --- One program in four forms. ---


def arrays(module, graph, stress, members):
    with torch.enable_grad():
        return as_arrays(module(graph, stress, members))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small", "mse"])
def test_eager_scripted_reloaded_and_frozen_agree(eager, served, strained_co2, name):
    module = eager(name)
    graph = graph_of(strained_co2, 4.0)
    expected = arrays(module, graph, True, True)
    with quiet_torchscript():
        forms = {
            "scripted": torch.jit.script(module),
            "reloaded": torch.jit.load(str(served(name))),
            "frozen": load_model(served(name), dtype="float64").module,
        }
    for form, program in forms.items():
        for call in range(3):  # the first calls run other code than the later ones
            found = arrays(program, graph, True, True)
            assert found.keys() == expected.keys()
            for field, values in expected.items():
                assert_close(f"{form}, call {call}: {field}", found[field], values, 1e-11)


def test_calls_are_reproducible(loaded, strained_co2):
    model = loaded("ensemble")
    first, second = predict(model, [strained_co2]), predict(model, [strained_co2])
    for name, values in first.items():
        assert np.array_equal(values, second[name])


# --- What the fields mean. ---


def test_members_and_stress_only_when_asked(loaded, strained_co2):
    model = loaded("ensemble")
    graph = graph_of(strained_co2, model.card.cutoff)
    stress_fields = {"stress", "stress_cov_epistemic"}
    member_fields = {"energy_members", "forces_members"}
    found = {
        (stress, members): as_arrays(model.predict([graph], stress, members)).keys()
        for stress in (False, True)
        for members in (False, True)
    }
    base = found[False, False]
    assert not base & {*stress_fields, *member_fields, "stress_members"}
    assert found[True, False] == base | stress_fields
    assert found[False, True] == base | member_fields
    assert found[True, True] == base | stress_fields | member_fields | {"stress_members"}


@pytest.mark.parametrize("name", ["ensemble", "nll_e", "race"])
def test_spread_is_that_of_the_members_with_ddof_1(loaded, ethanol, strained_co2, name):
    model = loaded(name)
    frames = [ethanol, strained_co2]
    graphs = [graph_of(atoms, model.card.cutoff) for atoms in frames]
    fields = as_arrays(model.predict(graphs, True, True))
    energy, forces = fields["energy_members"], fields["forces_members"]
    assert energy.shape == (model.card.n_members, 2)
    assert forces.shape == (model.card.n_members, len(ethanol) + len(strained_co2), 3)
    assert model.card.ddof == 1
    assert_close("mean", fields["energy"], energy.mean(axis=0), 1e-12)
    assert_close("mean", fields["forces"], forces.mean(axis=0), 1e-12)
    assert_close("stress", fields["stress"], fields["stress_members"].mean(axis=0), 1e-12)
    # Energies carry the reference energies, so their spread loses some digits.
    assert_close("variance", fields["energy_var_epistemic"], energy.var(axis=0, ddof=1), 1e-9)
    expected = [np.cov(forces[:, i].T, ddof=1) for i in range(forces.shape[1])]
    assert_close("covariance", fields["forces_cov_epistemic"], np.array(expected), 1e-12)
    voigt = fields["stress_members"][:, 1][:, [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    assert_close("stress", fields["stress_cov_epistemic"][1], np.cov(voigt.T, ddof=1), 1e-12)


def test_energies_sum_and_noise_adds_up(loaded, ethanol, cubic_co2):
    model = loaded("ensemble")
    graphs = [graph_of(atoms, model.card.cutoff) for atoms in (ethanol, cubic_co2)]
    fields = as_arrays(model.predict(graphs))
    parts = np.split(fields["atomic_energies"], [len(ethanol)])
    assert_close("energy", np.array([part.sum() for part in parts]), fields["energy"], 1e-13)
    parts = np.split(fields["atomic_energies_var_aleatoric"], [len(ethanol)])
    noise = np.array([part.sum() for part in parts])
    assert_close("noise", noise, fields["energy_var_aleatoric"], 1e-13)


@pytest.mark.slow
def test_unknown_parts_are_none(loaded, ethanol):
    expected = {
        "ensemble": (True, True, True),
        "nll_e": (True, True, False),
        "point": (False, True, True),
        "mse": (False, False, False),
    }
    for name, (epistemic, energy_noise, force_noise) in expected.items():
        model = loaded(name)
        prediction = model.predict([graph_of(ethanol, model.card.cutoff)])
        for field in ("energy_var", "atomic_energies_var", "forces_cov"):
            assert (getattr(prediction, f"{field}_epistemic") is not None) == epistemic
        assert (prediction.energy_var_aleatoric is not None) == energy_noise
        assert (prediction.atomic_energies_var_aleatoric is not None) == energy_noise
        assert (prediction.forces_cov_aleatoric is not None) == force_noise
        assert model.card.has_epistemic == epistemic
        assert model.card.has_aleatoric_energy == energy_noise
        assert model.card.has_aleatoric_forces == force_noise


def test_single_atom_has_no_forces(loaded):
    fields = predict(loaded("ensemble"), [Atoms("O")])
    assert np.all(fields["forces"] == 0.0)
    assert np.all(np.isfinite(fields["energy_var_epistemic"]))


def test_energies_and_their_moments_are_float64_in_a_float32_model(loaded, ethanol):
    prediction = loaded("ensemble", "float32").predict([graph_of(ethanol, 4.0)])
    for name in ("energy", "atomic_energies", "energy_var_epistemic", "energy_var_aleatoric"):
        assert getattr(prediction, name).dtype == torch.float64, name
    assert prediction.forces.dtype == torch.float64


def test_predictions_of_both_precisions_agree(loaded, ethanol, strained_co2):
    for atoms in (ethanol, strained_co2):
        wide = predict(loaded("ensemble"), [atoms])
        narrow = predict(loaded("ensemble", "float32"), [atoms])
        for name, values in wide.items():
            assert_close(name, narrow[name], values, TOLERANCE["float32"])


def test_results_own_their_memory(loaded, strained_co2):
    for name in ("ensemble", "nll_e", "point"):
        model = loaded(name)
        prediction = model.predict([graph_of(strained_co2, 4.0)], True, True)
        results = to_results(prediction, [len(strained_co2)])[0]
        values = {key: value for key, value in results.items() if isinstance(value, np.ndarray)}
        tensors = {key: value.detach().numpy() for key, value in _tensors(prediction).items()}
        for key, value in values.items():
            others = {**tensors, **{k: v for k, v in values.items() if k != key}}
            shared = [other for other, array in others.items() if np.shares_memory(value, array)]
            assert not shared, f"{name}: {key} shares memory with {shared}"


def _tensors(prediction: Prediction):
    return {key: value for key, value in prediction._asdict().items() if value is not None}


def test_predictions_hold_no_autograd_graph(loaded, strained_co2):
    model = loaded("ensemble")
    for _ in range(3):
        prediction = model.predict([graph_of(strained_co2, 4.0)], True, True)
        assert [name for name, v in _tensors(prediction).items() if v.requires_grad] == []


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["ensemble", "race"])
@pytest.mark.parametrize("in_parts", [False, True])
def test_gpu_gives_what_the_cpu_gives(
    monkeypatch, loaded, served, ethanol, strained_co2, name, dtype, in_parts
):
    if in_parts:
        monkeypatch.setattr(runtime, "_numbers_that_fit", lambda device, dtype: 1)
    model = load_model(served(name), device="cuda", dtype=dtype)
    check_served_model(model, ethanol, strained_co2)
    for atoms in (ethanol, strained_co2):
        expected, found = predict(loaded(name, dtype), [atoms]), predict(model, [atoms])
        for field, values in expected.items():
            assert_close(field, found[field], values, TOLERANCE[dtype])
