"""`BayesianCalculator`: what it returns, what it refuses, and what it leaves alone."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import (
    Calculator,
    PropertyNotImplementedError,
    all_properties,
)
from ase.outputs import all_outputs

from ase_bayesmlip.calculator import BayesianCalculator
from ase_bayesmlip.card import read_card
from ase_bayesmlip.serving.archive import replace_card
from ase_bayesmlip.serving.runtime import load_model

PARTS = ["epistemic", "aleatoric"]


def contract(n, samples=0, stress=False, epistemic=True, energy_noise=True, force_noise=True):
    """Key -> shape of every result that such a model gives."""
    shapes = {"energy": (), "free_energy": (), "energies": (n,), "forces": (n, 3)}
    energy_parts = [epistemic, energy_noise]
    force_parts = [epistemic, force_noise]
    for name, shape, parts in [
        ("energy_var", (), energy_parts),
        ("energies_var", (n,), energy_parts),
        ("forces_cov", (n, 3, 3), force_parts),
    ]:
        names = [f"{name}_{part}" for part, known in zip(PARTS, parts, strict=True) if known]
        shapes |= dict.fromkeys([name, *names] if names else [], shape)
    if any(energy_parts):
        shapes |= {"energy_uncertainty": (), "energy_shares": (n,)}
    if any(force_parts):
        shapes |= {"forces_var": (n, 3), "forces_uncertainty": (n, 3), "forces_std": (n,)}
    if force_parts[0]:
        shapes["forces_std_epistemic"] = (n,)
    if samples:
        shapes |= {"energy_ensemble": (samples,), "forces_ensemble": (samples, n, 3)}
    if stress:
        shapes["stress"] = (6,)
        shapes |= {"stress_var": (6,), "stress_cov": (6, 6)} if epistemic else {}
        shapes |= {"stress_ensemble": (samples, 6)} if samples else {}
    return shapes


KINDS = {
    "ensemble": {},
    "race": {},
    "nll_e": {"force_noise": False},
    "point": {"epistemic": False},
    "mse": {"epistemic": False, "energy_noise": False, "force_noise": False},
}


def same(first, second, tolerance=1e-9):
    """Whether two sets of results agree; deviations are relative to the size of each quantity."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        size = max(np.abs(value).max(), 1e-6)
        assert np.abs(np.subtract(value, second[name])).max() <= tolerance * size, name


# --- What it returns. ---


@pytest.mark.parametrize("members", [False, True])
@pytest.mark.parametrize("structure", ["ethanol", "strained_co2"])
@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float64") for name in KINDS), ("ensemble", "float32")]
)
def test_keys_shapes_and_types(request, calculator, name, structure, dtype, members):
    atoms = request.getfixturevalue(structure)
    calc = calculator(name, dtype, return_members=members)
    calc.calculate(atoms)
    shapes = contract(
        len(atoms),
        samples=calc.card.n_members if members else 0,
        stress=structure == "strained_co2",
        **KINDS[name],
    )
    assert {key: np.shape(value) for key, value in calc.results.items()} == shapes
    for key, value in calc.results.items():
        if shapes[key] == ():
            assert type(value) is float, key
        else:
            assert type(value) is np.ndarray, key
            assert value.dtype == np.float64, key
            assert value.flags.writeable, key
        assert np.all(np.isfinite(value)), key


@pytest.mark.parametrize("name", KINDS)
def test_implemented_properties_are_what_a_crystal_gives(calculator, strained_co2, name):
    for members in (False, True):
        calc = calculator(name, return_members=members)
        calc.calculate(strained_co2)
        assert sorted(calc.implemented_properties) == sorted(calc.results)
        assert "implemented_properties" in vars(calc)
    assert Calculator.implemented_properties == []
    assert BayesianCalculator.implemented_properties == []


def test_totals_are_sums_and_derived_values_follow(calculator, strained_co2):
    calc = calculator("ensemble", return_members=True)
    calc.calculate(strained_co2)
    r = calc.results
    for name in ("energy_var", "energies_var", "forces_cov"):
        assert np.array_equal(r[name], r[f"{name}_epistemic"] + r[f"{name}_aleatoric"])
    assert r["free_energy"] == r["energy"]
    assert r["energies"].sum() == pytest.approx(r["energy"], rel=1e-13)
    assert r["energy_uncertainty"] == pytest.approx(r["energy_var"] ** 0.5, rel=1e-14)
    diagonal = r["forces_cov"][:, range(3), range(3)]
    assert np.array_equal(r["forces_var"], diagonal)
    assert np.allclose(r["forces_uncertainty"] ** 2, diagonal, rtol=1e-13)
    assert np.allclose(r["forces_std"] ** 2, np.trace(r["forces_cov"], axis1=1, axis2=2))
    assert np.array_equal(r["stress_var"], np.diag(r["stress_cov"]))
    # The contract states numpy's ddof = 1.
    close = {"rtol": 1e-9, "atol": 1e-14}
    assert np.allclose(r["energy_var_epistemic"], r["energy_ensemble"].var(ddof=1), **close)
    forces_var = r["forces_cov_epistemic"][:, range(3), range(3)]
    assert np.allclose(forces_var, r["forces_ensemble"].var(axis=0, ddof=1), **close)
    assert np.allclose(r["stress_cov"], np.cov(r["stress_ensemble"].T, ddof=1), **close)
    assert np.allclose(r["forces"], r["forces_ensemble"].mean(axis=0), **close)
    assert np.allclose(r["stress"], r["stress_ensemble"].mean(axis=0), **close)


def test_stress_in_ase_voigt_order(calculator, small_cell):
    """Turn the crystal so that x -> y -> z -> x: components move as the indices do."""
    calc = calculator("ensemble")
    calc.calculate(small_cell)
    before = dict(calc.results)
    turned = small_cell.copy()
    turned.set_cell(small_cell.cell.array[:, [2, 0, 1]])
    turned.positions = small_cell.positions[:, [2, 0, 1]]
    calc.calculate(turned)
    # xx yy zz yz xz xy of the turned crystal were zz xx yy xy yz xz.
    order = [2, 0, 1, 5, 3, 4]
    assert np.allclose(calc.results["stress"], before["stress"][order], rtol=1e-9)
    moved = before["stress_cov"][np.ix_(order, order)]
    assert np.allclose(calc.results["stress_cov"], moved, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize(
    ("pbc", "cell", "has_stress"),
    [
        (False, None, False),
        (False, [9, 9, 9], True),
        ([True, True, False], [9, 9, 0], False),
        ([True, False, False], [9, 0, 0], False),
        (True, [9, 9, 9], True),
    ],
)
def test_stress_only_for_three_cell_vectors(calculator, ethanol, pbc, cell, has_stress):
    ethanol.set_cell(cell)
    ethanol.pbc = pbc
    calc = calculator("race")
    calc.calculate(ethanol)
    for name in ("stress", "stress_var", "stress_cov"):
        assert (name in calc.results) == has_stress
    if not has_stress:
        ethanol.calc = calc
        with pytest.raises(PropertyNotImplementedError, match="stress"):
            ethanol.get_stress()


def test_cell_of_a_molecule_changes_nothing_but_stress(calculator, ethanol):
    calc = calculator("race")
    free = calc.evaluate([ethanol])[0]
    ethanol.set_cell([30, 30, 30])
    for pbc in (False, True):
        ethanol.pbc = pbc
        boxed = calc.evaluate([ethanol])[0]
        same(free, {key: value for key, value in boxed.items() if key in free})


def test_changing_results_changes_nothing_else(calculator, strained_co2):
    calc = calculator("nll_e", return_members=True)
    calc.calculate(strained_co2)
    first = calc.results
    expected = {key: np.copy(value) for key, value in first.items()}
    for value in first.values():
        if isinstance(value, np.ndarray):
            value += 1.0
    calc.calculate(strained_co2)
    same(expected, calc.results, 1e-12)
    copy = calc.get_property("forces", strained_co2)
    copy += 1.0
    same(expected, calc.results, 1e-12)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("point", ["energy_var_epistemic", "forces_cov_epistemic", "stress_var", "stress_cov"]),
        ("mse", ["energy_var", "forces_cov", "forces_std", "energy_uncertainty"]),
        ("nll_e", ["forces_cov_aleatoric"]),
        ("ensemble", ["energy_ensemble", "forces_ensemble", "dipole", "nonsense"]),
    ],
)
def test_what_is_unknown_is_refused_by_name(calculator, ethanol, name, missing):
    calc = calculator(name)
    kind = "point" if name in ("point", "mse") else "ensemble"
    for key in missing:
        with pytest.raises(PropertyNotImplementedError) as caught:
            calc.get_property(key, ethanol)
        assert key in str(caught.value)
        assert f"'{kind}'" in str(caught.value)
        assert f"{calc.card.n_members} member" in str(caught.value)
        assert key not in calc.implemented_properties


def test_every_implemented_property_can_be_asked_for_first(calculator, strained_co2):
    expected = calculator("race", return_members=True)
    expected.calculate(strained_co2)
    for name in expected.implemented_properties:
        calc = calculator("race", return_members=True)
        found = calc.get_property(name, strained_co2)
        assert np.allclose(found, expected.results[name], rtol=1e-12), name


@pytest.mark.parametrize("members", [False, True])
@pytest.mark.parametrize("lazy", [False, True])
def test_what_is_listed_is_what_can_be_got(calculator, served_name, lazy, members, strained_co2):
    """Of every kind of file."""
    assert_listed(calculator(served_name, lazy=lazy, return_members=members), strained_co2)


def assert_listed(calc, atoms):
    atoms.calc = calc
    atoms.get_potential_energy()
    assert calc.results.keys() <= {*calc.implemented_properties}
    for name in calc.implemented_properties:
        assert calc.get_property(name, atoms) is not None, name
        assert calc.results.keys() <= {*calc.implemented_properties}


@pytest.mark.slow
def test_the_shipped_file_lists_no_shares(data_folder, strained_co2):
    """Its program is from before there were any."""
    calc = BayesianCalculator(data_folder / "ethanol_ensemble.pt")
    assert_listed(calc, strained_co2)
    assert "energy_shares" not in calc.implemented_properties
    with pytest.raises(PropertyNotImplementedError, match="energy_shares is not available"):
        calc.get_property("energy_shares", strained_co2)


@pytest.mark.slow
@pytest.mark.slow
def test_a_file_without_a_probe_lists_what_it_gives(served, tmp_path):
    path = shutil.copy(served("nll_e"), tmp_path / "model.pt")
    replace_card(path, dataclasses.replace(read_card(path), probe={}))
    assert load_model(path).fields == load_model(served("nll_e")).fields


# --- What it leaves alone. ---


def test_global_state_is_untouched(calculator, ethanol):
    calc = calculator("ensemble")
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 (the global state is what is tested)
    before = (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        list(all_properties),
        dict(all_outputs),
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
    )
    calc.calculate(ethanol)
    calc.evaluate([ethanol, ethanol])
    calc.attach_uncertainty(ethanol)
    after = (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        list(all_properties),
        dict(all_outputs),
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
    )
    assert after == before


def test_atoms_are_not_changed(calculator, strained_co2):
    before = strained_co2.copy()
    strained_co2.calc = calculator("race")
    strained_co2.get_forces()
    assert strained_co2 == before
    assert strained_co2.info == before.info
    assert strained_co2.arrays.keys() == before.arrays.keys()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(calculator, strained_co2, mode):
    expected = calculator("race")
    expected.calculate(strained_co2)
    calc = calculator("race")
    with mode():
        calc.calculate(strained_co2)
        (evaluated,) = calc.evaluate([strained_co2])
    same(expected.results, calc.results, 1e-12)
    same(expected.results, evaluated, 1e-12)


def test_works_under_another_default_dtype(calculator, ethanol):
    expected = calculator("race")
    expected.calculate(ethanol)
    previous = torch.get_default_dtype()
    try:
        for dtype in (torch.float16, torch.float64):
            torch.set_default_dtype(dtype)
            calc = calculator("race")
            calc.calculate(ethanol)
            same(expected.results, calc.results, 1e-12)
    finally:
        torch.set_default_dtype(previous)


# --- One evaluation for a structure. ---


def test_second_request_is_answered_from_the_cache(counted, ethanol):
    model = counted("race")
    ethanol.calc = BayesianCalculator(model)
    ethanol.get_forces()
    ethanol.get_potential_energy()
    ethanol.calc.get_property("forces_cov_epistemic", ethanol)
    ethanol.set_initial_charges([0.1] * len(ethanol))
    ethanol.set_initial_magnetic_moments([1.0] * len(ethanol))
    ethanol.get_forces()
    assert model.module.calls == 1
    ethanol.positions[0, 0] += 1e-9
    ethanol.get_forces()
    assert model.module.calls == 2


def test_neighbour_list_with_skin_along_a_walk(calculator, strained_co2):
    generator = np.random.default_rng(5)
    calc = calculator("race", skin=0.4)
    strained_co2.calc = calc
    for step in range(25):
        strained_co2.positions += generator.normal(scale=0.02, size=(len(strained_co2), 3))
        if step == 12:
            strained_co2.set_cell(strained_co2.cell * 1.01, scale_atoms=True)
        strained_co2.get_forces()
        fresh = calculator("race", skin=0.0)
        fresh.calculate(strained_co2)
        same(fresh.results, calc.results)
    assert 2 <= calc._neighbors.n_builds < 20


def test_one_calculator_for_several_structures(calculator, ethanol, strained_co2):
    calc = calculator("race")
    swapped = ethanol[[*range(1, len(ethanol)), 0]]
    for atoms in (ethanol, strained_co2, ethanol, swapped):
        expected = calculator("race")
        expected.calculate(atoms)
        atoms.calc = calc
        atoms.get_forces()
        same(expected.results, calc.results)


# --- Many structures at once. ---


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_evaluate_gives_what_calculate_gives(
    calculator, ethanol, strained_co2, small_cell, batch_size
):
    shaken = ethanol.copy()
    shaken.rattle(0.03, seed=2)
    frames = [ethanol, strained_co2, Atoms("H"), shaken, small_cell]
    calc = calculator("ensemble", return_members=True)
    results = calc.evaluate(frames, batch_size=batch_size)
    assert len(results) == len(frames)
    assert calc.results == {}
    for atoms, found in zip(frames, results, strict=True):
        single = calculator("ensemble", return_members=True)
        single.calculate(atoms)
        same(single.results, found)


def test_lone_atoms_are_those_of_the_last_evaluation(calculator, ethanol):
    calc = calculator("ensemble")
    assert calc.lone_atoms == ()
    calc.get_forces(ethanol)
    assert calc.lone_atoms == ()
    apart = ethanol.copy()
    apart.positions[[2, 5]] += [[40.0, 0.0, 0.0], [0.0, 40.0, 0.0]]
    forces = calc.get_forces(apart)
    assert calc.lone_atoms == (2, 5)
    np.testing.assert_array_equal(forces[[2, 5]], 0.0)
    # Two atoms that are near each other only, and an atom that neighbours its own images.
    pair = ethanol.copy()
    pair.positions[[2, 5]] += 40.0
    calc.get_forces(pair)
    assert calc.lone_atoms == ()
    for size, lone in [(8.0, (0,)), (3.0, ())]:
        calc.get_forces(Atoms("C", cell=[size] * 3, pbc=True))
        assert calc.lone_atoms == lone
    calc.evaluate([ethanol, apart])
    calc.get_forces(apart)
    with pytest.raises(ValueError, match="no atoms"):
        calc.get_forces(Atoms())
    assert calc.lone_atoms == ()


def test_evaluate_nothing_and_leave_the_cache(counted, ethanol, strained_co2):
    model = counted("race")
    calc = BayesianCalculator(model)
    assert calc.evaluate([]) == []
    ethanol.calc = calc
    expected = ethanol.get_forces()
    calc.evaluate([strained_co2])
    assert np.array_equal(ethanol.get_forces(), expected)
    assert model.module.calls == 2


# --- What it refuses, before the model runs. ---


def unknown_element(atoms):
    atoms.numbers[2] = 26


def nan_position(atoms):
    atoms.positions[1, 2] = np.nan


def infinite_position(atoms):
    atoms.positions[4, 0] = np.inf


def overlapping(atoms):
    atoms.positions[3] = atoms.positions[5] + [0.0, 0.05, 0.0]


def coinciding(atoms):
    atoms.positions[3] = atoms.positions[5]


def overlapping_images(atoms):
    atoms.set_cell([12, 12, 12])
    atoms.pbc = True
    atoms.positions[3] = atoms.positions[5] + [12.05, 0.0, -12.0]


def own_image(atoms):
    atoms.set_cell([12, 12, 0.1])
    atoms.pbc = [False, False, True]


def no_cell(atoms):
    atoms.pbc = True


def flat_cell(atoms):
    atoms.set_cell([[5, 0, 0], [10, 0, 0], [0, 0, 5]])
    atoms.pbc = True


def flat_cell_with_round_off(atoms):
    cell = 1e5 * np.random.default_rng(0).uniform(size=(3, 3))
    cell[2] = cell[0] / 3 + cell[1] / 7  # a determinant of 0.03 Å³ is left
    atoms.set_cell(cell)
    atoms.pbc = True


def open_vector_for_a_periodic_one(atoms):
    atoms.set_cell([9, 9, 0])
    atoms.pbc = [False, False, True]


def two_vectors_for_three(atoms):
    atoms.set_cell([9, 9, 0])
    atoms.pbc = True


def nan_cell(atoms):
    atoms.set_cell([9, 9, np.nan])
    atoms.pbc = True


def no_atoms(atoms):
    del atoms[:]


REFUSED = {
    unknown_element: r"does not know Fe; it was trained on H, C, O",
    nan_position: r"positions of atoms \[1\] are not finite",
    infinite_position: r"positions of atoms \[4\] are not finite",
    overlapping: r"atoms (3 and 5|5 and 3) overlap.*0\.050 Å",
    coinciding: r"atoms (3 and 5|5 and 3) overlap.*0\.000 Å",
    overlapping_images: r"atoms (3 and 5|5 and 3) overlap.*0\.050 Å",
    own_image: r"overlap.*0\.100 Å",
    no_cell: r"pbc is \[True, True, True\].*no volume",
    flat_cell: r"no volume",
    flat_cell_with_round_off: r"no volume",
    open_vector_for_a_periodic_one: r"no volume",
    two_vectors_for_three: r"no volume",
    nan_cell: r"cell is not finite",
    no_atoms: r"no atoms",
}


def test_an_open_direction_may_be_any_length(calculator, ethanol):
    for length in (0.0, 1e-3, 20.0, 1e8):
        atoms = ethanol.copy()
        atoms.set_cell([12, 12, length])
        atoms.pbc = [True, True, False]
        atoms.calc = calculator("small")
        assert np.isfinite(atoms.get_potential_energy())


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda function: function.__name__)
def test_bad_input_is_refused_before_the_model_runs(counted, ethanol, spoil):
    calc = BayesianCalculator(counted(limit=0))
    bad = ethanol.copy()
    spoil(bad)
    bad.calc = calc
    for _ in range(2):
        with pytest.raises(ValueError, match=REFUSED[spoil]):
            bad.get_potential_energy()
    with pytest.raises(ValueError, match=r"frame 2: .*" + REFUSED[spoil]):
        calc.evaluate([ethanol, ethanol, bad])
    with pytest.raises(ValueError, match=r"frame 1: "):
        BayesianCalculator(counted("race")).evaluate([ethanol, bad], batch_size=1)


@pytest.mark.parametrize("spoil", [unknown_element, overlapping], ids=lambda f: f.__name__)
def test_refused_input_leaves_no_results_behind(calculator, ethanol, spoil):
    calc = calculator("race")
    calc.calculate(ethanol)
    bad = ethanol.copy()
    spoil(bad)
    with pytest.raises(ValueError):
        calc.calculate(bad)
    assert calc.results == {}
    with pytest.raises(ValueError):
        calc.get_property("energy", bad)
    assert np.isfinite(calc.get_property("energy", ethanol))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_failed_neighbour_search_is_not_remembered(calculator, ethanol, value):
    calc = calculator("race")
    expected = calc.get_property("forces", ethanol)
    bad = ethanol.copy()
    bad.positions[0, 0] = value
    with pytest.raises(ValueError):
        calc.get_property("forces", bad)
    assert np.allclose(calc.get_property("forces", ethanol), expected, rtol=1e-12)


def test_close_atoms_far_apart_in_the_cell_are_allowed(calculator):
    """A bond as short as real ones get under compression is not refused."""
    calc = calculator("race")
    (result,) = calc.evaluate([Atoms("H2", [[0, 0, 0], [0, 0, 0.4]])])
    assert np.isfinite(result["energy"])


@pytest.mark.parametrize("settings", [{"skin": -0.1}, {"device": "nowhere"}, {"dtype": "int8"}])
def test_settings_are_checked(served, settings):
    with pytest.raises(ValueError):
        BayesianCalculator(served("race"), **settings)


# --- attach_uncertainty. ---


def test_attach_before_evaluation_or_to_another_structure(calculator, ethanol, small_cell):
    calc = calculator("race")
    with pytest.raises(ValueError, match="evaluate first"):
        calc.attach_uncertainty(ethanol)
    calc.calculate(ethanol)
    with pytest.raises(ValueError, match="9 atoms, these are 3"):
        calc.attach_uncertainty(small_cell)


def test_attached_numbers_are_copies(calculator, strained_co2):
    calc = calculator("race")
    calc.calculate(strained_co2)
    before = {key: np.copy(value) for key, value in calc.results.items()}
    calc.attach_uncertainty(strained_co2)
    for value in [*strained_co2.info.values(), *strained_co2.arrays.values()]:
        if isinstance(value, np.ndarray):
            value *= 0
    same(before, calc.results, 0.0)


def test_stress_of_six_atoms_is_not_taken_for_a_value_of_each_atom(calculator, small_cell):
    six = small_cell.repeat((2, 1, 1))
    assert len(six) == 6
    calc = calculator("race")
    calc.calculate(six)
    calc.attach_uncertainty(six)
    assert six.info["stress_cov"].shape == (6, 6)
    assert six.info["stress_var"].shape == (6,)
    assert not {name for name in six.arrays if name.startswith("stress")}


def test_attach_without_any_uncertainty_adds_nothing(calculator, ethanol):
    calc = calculator("mse")
    calc.calculate(ethanol)
    calc.attach_uncertainty(ethanol)
    assert ethanol.info == {}
    assert set(ethanol.arrays) == {"numbers", "positions"}


@pytest.mark.gpu
def test_results_from_the_gpu_are_ordinary_arrays(served, ethanol, calculator):
    calc = BayesianCalculator(served("ensemble"), device="cuda", dtype="float64")
    calc.calculate(ethanol)
    expected = calculator("ensemble")
    expected.calculate(ethanol)
    same(expected.results, calc.results, 1e-8)
