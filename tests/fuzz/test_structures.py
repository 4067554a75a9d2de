"""Random structures through both backends, against what must be true of any of them.

The number of structures for each backend is BAYESMLIP_FUZZ, see the README beside this file.
"""

import warnings

import numpy as np
import pytest
from ase import Atoms
from fuzz_cases import n_cases

from ase_bayesmlip.serving.runtime import load_model
from ase_bayesmlip.structures.checks import check_distances, check_structure
from ase_bayesmlip.structures.neighbors import NeighborList
from ase_bayesmlip.testing import (
    PER_ATOM,
    SPREAD_TOLERANCE,
    TOLERANCE,
    _orthogonal,
    _rotate,
    predict,
)

N_CASES = n_cases(6)
# Posteriors whose variances of n copies are n or n² times as large; cholesky does not rotate.
KINDS = ["ensemble", "small", "nll_e", "point", "race", "mse", "iso"]
# Per structure, not per atom; the epistemic variance of n copies is n² times as large.
WHOLE = {"energy": 1, "energy_var_aleatoric": 1, "energy_var_epistemic": 2}


@pytest.fixture(scope="module")
def reference(data_folder):
    return load_model(data_folder / "ethanol_ensemble.pt", dtype="float64")


@pytest.fixture(scope="module")
def single(data_folder):
    return load_model(data_folder / "ethanol_ensemble.pt", dtype="float32")


@pytest.fixture(scope="module")
def compiled(compiled_shipped):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_model(compiled_shipped, backend="aoti")
    assert model.backend == "aoti"
    return model


def random_cell(generator, n_periodic, cutoff):
    """Oblique, of either hand, from a third of the cutoff to three times it; or none."""
    pbc = generator.permutation(np.arange(3) < n_periodic)
    lengths = cutoff * generator.choice([0.35, 0.6, 1.0, 1.6, 3.0], size=3)
    directions = np.linalg.qr(generator.normal(size=(3, 3)))[0]
    directions = directions + generator.uniform(-0.5, 0.5, size=(3, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    cell = lengths[:, None] * directions
    if generator.integers(2):
        cell[~pbc] = 0.0
    return cell, pbc


def random_structure(generator, card):
    """Any number of atoms from one to thirty, in groups near and far, in and out of the cell."""
    cell, pbc = random_cell(generator, int(generator.integers(4)), card.cutoff)
    n_atoms = int(generator.choice([1, 2, 3, 5, 9, 14, 30]))
    n_groups = int(generator.integers(1, 4))
    far = generator.choice([0.0, card.cutoff, 30.0, 1e4], p=[0.6, 0.2, 0.15, 0.05])
    centres = far * generator.normal(size=(n_groups, 3))
    size = generator.uniform(0.6, 1.6) * n_atoms ** (1.0 / 3.0)
    group = generator.integers(n_groups, size=n_atoms)
    positions = centres[group] + size * generator.uniform(-1.0, 1.0, size=(n_atoms, 3))
    numbers = generator.choice(card.atomic_numbers, size=n_atoms)
    return Atoms(numbers, positions, cell=cell, pbc=pbc)


def accepted_structure(seed, card):
    """The first structure of this seed that the calculator takes."""
    generator = np.random.default_rng(seed)
    while True:
        atoms = random_structure(generator, card)
        try:
            check_structure(atoms, card)
            edges, _, squared = NeighborList(card.cutoff, skin=0.0).measured(atoms)
            check_distances(edges, squared)
        except ValueError:
            continue
        if edges.shape[1] < 400:  # for time's sake
            return atoms


def is_spread(name):
    return name.endswith("epistemic") or name == "energy_shares"


def allowed(model, name):
    return (SPREAD_TOLERANCE if is_spread(name) else TOLERANCE)[model.dtype]


# Times the error of TorchScript in the same precision on the same structure: atoms at half the
# length of a bond have forces of 1e5 eV/Å, of which float32 keeps fewer digits.
OF_PRECISION = 8.0


def assert_same(model, label, found, expected, precision=None):
    """Fields of two evaluations that must be equal, to the size of what adds up to them.

    `precision` has, by field, what the precision itself costs on this structure.
    """
    assert found.keys() == expected.keys()
    energies = np.abs(expected["atomic_energies"])
    for name, value in expected.items():
        size = np.abs(value).max()
        if name == "energy":
            size = max(size, energies.sum())
        elif name in ("forces", "stress"):  # which symmetry may make zero
            size = max(size, 0.1 * energies.max())
        room = allowed(model, name) * size
        if is_spread(name):
            room += rounding_of_spread(model, name, expected)
        room += OF_PRECISION * (precision or {}).get(name, 0.0)
        deviation = np.abs(found[name] - value).max()
        assert deviation <= room + 1e-15, (name, label, deviation, size)


def rounding_of_spread(model, name, fields):
    """What an error δ of each member does to a variance: 2 σ δ + δ², see `serving.runtime`."""
    energies = np.abs(fields["atomic_energies"])
    size = energies.sum()
    if name.startswith(("forces", "stress")):
        kind = name.split("_")[0]
        # A force that symmetry makes zero is a sum of terms as large as the energies over 0.5 Å.
        size = max(np.abs(fields.get(kind, 0.0)).max(), 2.0 * energies.max())
    delta = size * {"float32": 1e-5, "float64": 1e-12}[model.dtype]
    return 2.0 * np.sqrt(np.abs(fields[name]).max()) * delta + delta**2


def check_rotation(model, atoms, base, generator, precision=None):
    """Rotation or reflection, and another order of the atoms."""
    q = _orthogonal(generator, generator.choice([-1.0, 1.0]))
    order = generator.permutation(len(atoms))
    turned = atoms[order]
    turned.set_cell(atoms.cell.array @ q.T, scale_atoms=False)
    turned.positions = atoms.positions[order] @ q.T
    expected = {
        name: _rotate(value[order] if name in (*PER_ATOM, "energy_shares") else value, q)
        for name, value in base.items()
    }
    assert_same(model, "turned", predict(model, [turned]), expected, precision)


def check_translations(model, atoms, base, generator, precision=None):
    """By a vector, and each atom by lattice vectors of its own."""
    moved = atoms.copy()
    moved.positions += generator.uniform(-50.0, 50.0, size=3)
    images = generator.integers(-3, 4, size=(len(atoms), 3)) * atoms.pbc
    moved.positions += images @ atoms.cell.array
    assert_same(model, "translated", predict(model, [moved]), base, precision)


def check_supercell(model, atoms, base, precision=None):
    """Twice along each periodic direction."""
    for axis in np.flatnonzero(atoms.pbc):
        double = atoms.repeat([2 if k == axis else 1 for k in range(3)])
        expected = {}
        for name, value in base.items():
            if name in WHOLE:
                expected[name] = 2.0 ** WHOLE[name] * value
            elif name == "energy_shares":  # Cov(e_i, E): noise is independent, weights are not
                noise = base.get("atomic_energies_var_aleatoric", 0.0)
                expected[name] = np.tile(2.0 * (value - noise) + noise, 2)
            elif name.startswith("stress"):
                expected[name] = value
            else:
                expected[name] = np.concatenate([value, value])
        assert_same(model, f"twice along {axis}", predict(model, [double]), expected, precision)


def energy(model, atoms):
    return float(predict(model, [atoms])["energy"][0])


def slope(value, step):
    """Fourth order: (8 (f₁ - f₋₁) - (f₂ - f₋₂)) / 12 h."""
    near, far = value(step) - value(-step), value(2 * step) - value(-2 * step)
    return (8.0 * near - far) / (12.0 * step)


def check_slopes(model, atoms, base, generator):
    """Forces and stress along random directions against differences of the energy."""
    direction = generator.normal(size=(len(atoms), 3))
    direction /= np.linalg.norm(direction)

    def moved(step):
        other = atoms.copy()
        other.positions += step * direction
        return energy(model, other)

    size = max(float(np.abs(base["forces"]).max()), 1e-2)
    expected = -float((base["forces"] * direction).sum())
    assert abs(slope(moved, 2e-4) - expected) < 1e-5 * size, "forces"
    if "stress" not in base or not atoms.pbc.all():
        return
    strain = generator.normal(size=(3, 3))
    strain = 0.5 * (strain + strain.T) / np.linalg.norm(strain)

    def strained(step):
        other = atoms.copy()
        other.set_cell(atoms.cell.array @ (np.eye(3) + step * strain), scale_atoms=False)
        other.positions = atoms.positions @ (np.eye(3) + step * strain)
        return energy(model, other)

    expected = atoms.get_volume() * float((base["stress"][0] * strain).sum())
    size = max(atoms.get_volume() * float(np.abs(base["stress"]).max()), 1e-1)
    assert abs(slope(strained, 2e-4) - expected) < 1e-4 * size, "stress"


@pytest.mark.parametrize("seed", range(N_CASES))
def test_symmetries_and_slopes(loaded, seed):
    """TorchScript in float64."""
    model = loaded(KINDS[seed % len(KINDS)])
    atoms = accepted_structure(seed, model.card)
    generator = np.random.default_rng([seed, 1])
    base = predict(model, [atoms])
    assert all(np.isfinite(value).all() for value in base.values())
    if np.abs(atoms.positions).max() < 1e3:  # turning what is far away costs digits
        check_rotation(model, atoms, base, generator)
    check_translations(model, atoms, base, generator)
    check_supercell(model, atoms, base)
    check_slopes(model, atoms, base, generator)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(N_CASES))
def test_the_compiled_program_follows(reference, single, compiled, seed):
    """The program in float32 against TorchScript in float64, and against itself."""
    atoms = accepted_structure(seed, reference.card)
    generator = np.random.default_rng([seed, 1])
    expected = predict(reference, [atoms])
    base = predict(compiled, [atoms])
    own = predict(single, [atoms])
    precision = {name: np.abs(own[name] - value).max() for name, value in expected.items()}
    given = {name: base[name] for name in expected}
    assert_same(compiled, "TorchScript", given, expected, precision)
    if np.abs(atoms.positions).max() < 1e3:
        check_rotation(compiled, atoms, base, generator, precision)
    check_translations(compiled, atoms, base, generator, precision)
    check_supercell(compiled, atoms, base, precision)
    other = accepted_structure(seed + 1, reference.card)
    batch = predict(compiled, [atoms, other])
    alone = predict(compiled, [other])
    for name in ("forces", "atomic_energies_var_epistemic", "forces_cov_aleatoric"):
        joined = np.concatenate([base[name], alone[name]])
        assert np.abs(batch[name] - joined).max() <= allowed(compiled, name) * np.abs(joined).max()
