"""Predictions to ASE results: keys, shapes, Voigt order and what is left out."""

import numpy as np
import pytest
import torch

from ase_bayesmlip.prediction import (
    VOIGT_COLUMNS,
    VOIGT_ROWS,
    Prediction,
    add_derived,
    to_results,
    to_voigt,
)

COUNTS = [2, 3]


def symmetric(generator: np.random.Generator, n: int, dim: int) -> torch.Tensor:
    root = generator.normal(size=(n, dim, dim))
    return torch.tensor(root @ root.transpose(0, 2, 1))


def make_prediction(**changes) -> Prediction:
    generator = np.random.default_rng(0)
    n_atoms, n_graphs, n_samples = sum(COUNTS), len(COUNTS), 4

    def normal(*shape: int) -> torch.Tensor:
        return torch.tensor(generator.normal(size=shape))

    fields = {
        "energy": normal(n_graphs),
        "atomic_energies": normal(n_atoms),
        "forces": normal(n_atoms, 3),
        "stress": symmetric(generator, n_graphs, 3),
        "energy_var_epistemic": normal(n_graphs) ** 2,
        "energy_var_aleatoric": normal(n_graphs) ** 2,
        "atomic_energies_var_epistemic": normal(n_atoms) ** 2,
        "atomic_energies_var_aleatoric": normal(n_atoms) ** 2,
        "forces_cov_epistemic": symmetric(generator, n_atoms, 3),
        "forces_cov_aleatoric": symmetric(generator, n_atoms, 3),
        "stress_cov_epistemic": symmetric(generator, n_graphs, 6),
        "energy_members": normal(n_samples, n_graphs),
        "forces_members": normal(n_samples, n_atoms, 3),
        "stress_members": normal(n_samples, n_graphs, 3, 3),
    }
    return Prediction(**{**fields, **changes})


def test_voigt_order_is_that_of_ase():
    matrix = torch.tensor([[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]])
    assert to_voigt(matrix).tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert matrix[VOIGT_ROWS, VOIGT_COLUMNS].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_voigt_keeps_leading_axes():
    matrices = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(to_voigt(matrices)[3, 1], to_voigt(matrices[3, 1]))


def test_structures_are_split_in_order():
    prediction = make_prediction()
    results = to_results(prediction, COUNTS)
    assert [result["energy"] for result in results] == prediction.energy.tolist()
    joined = np.concatenate([result["forces"] for result in results])
    np.testing.assert_array_equal(joined, prediction.forces.numpy())
    np.testing.assert_array_equal(
        results[1]["forces_ensemble"], prediction.forces_members[:, 2:].numpy()
    )
    np.testing.assert_array_equal(
        results[1]["stress_ensemble"], to_voigt(prediction.stress_members[:, 1]).numpy()
    )
    np.testing.assert_array_equal(
        results[0]["energy_ensemble"], prediction.energy_members[:, 0].numpy()
    )


def test_shapes_are_those_of_the_contract():
    result = to_results(make_prediction(), COUNTS)[1]
    shapes = {
        "energies": (3,),
        "forces": (3, 3),
        "stress": (6,),
        "energies_var": (3,),
        "forces_cov": (3, 3, 3),
        "forces_var": (3, 3),
        "forces_std": (3,),
        "forces_uncertainty": (3, 3),
        "stress_var": (6,),
        "stress_cov": (6, 6),
        "energy_ensemble": (4,),
        "forces_ensemble": (4, 3, 3),
        "stress_ensemble": (4, 6),
    }
    for name, shape in shapes.items():
        assert result[name].shape == shape, name
        assert result[name].dtype == np.float64, name
    for name in ("energy", "free_energy", "energy_var", "energy_uncertainty"):
        assert type(result[name]) is float, name


def test_totals_are_sums_of_the_parts():
    for result in to_results(make_prediction(), COUNTS):
        for name in ("energy_var", "energies_var", "forces_cov"):
            parts = result[f"{name}_epistemic"] + result[f"{name}_aleatoric"]
            np.testing.assert_array_equal(result[name], parts)


@pytest.mark.parametrize("missing", ["epistemic", "aleatoric"])
def test_an_unknown_part_has_no_key_and_is_not_zero(missing):
    known = "aleatoric" if missing == "epistemic" else "epistemic"
    names = ("energy_var", "atomic_energies_var", "forces_cov")
    prediction = make_prediction(**{f"{name}_{missing}": None for name in names})
    result = to_results(prediction, COUNTS)[0]
    for name in ("energy_var", "energies_var", "forces_cov"):
        assert f"{name}_{missing}" not in result
        np.testing.assert_array_equal(result[name], result[f"{name}_{known}"])


def test_a_point_prediction_has_no_uncertainty_at_all():
    required = ("energy", "atomic_energies", "forces")
    empty = {name: None for name in Prediction._fields if name not in required}
    result = to_results(make_prediction(**empty), COUNTS)[0]
    assert set(result) == {"energy", "free_energy", "energies", "forces"}


def test_derived_quantities_in_closed_form():
    covariance = np.diag([0.01, 0.04, 0.04])[None]
    derived = add_derived(
        {"energy_var": 0.25, "forces_cov": covariance, "stress_cov": np.diag(np.arange(6.0))}
    )
    assert derived["energy_uncertainty"] == 0.5
    np.testing.assert_allclose(derived["forces_uncertainty"], [[0.1, 0.2, 0.2]], rtol=1e-15)
    np.testing.assert_allclose(derived["forces_std"], [0.3], rtol=1e-15)
    np.testing.assert_array_equal(derived["stress_var"], np.arange(6.0))


def test_results_are_fresh_arrays():
    prediction = make_prediction()
    before = prediction.forces.clone()
    result = to_results(prediction, COUNTS)[0]
    for value in result.values():
        if isinstance(value, np.ndarray):
            value += 1.0
    assert torch.equal(prediction.forces, before)
    again = to_results(prediction, COUNTS)[0]
    np.testing.assert_array_equal(again["forces"], before[:2].numpy())


def test_float32_predictions_become_float64_results():
    prediction = make_prediction()
    single = Prediction(*(None if f is None else f.to(torch.float32) for f in prediction))
    result = to_results(single, COUNTS)[0]
    assert result["forces"].dtype == np.float64
    np.testing.assert_allclose(result["forces"], prediction.forces[:2].numpy(), rtol=1e-6)
