"""Potentials: symmetry, derivatives, limits and the programs made of them."""

import warnings

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from noise import wake_noise

from ase_bayesmlip.config import LossConfig, ModelConfig
from ase_bayesmlip.graph import batch_graphs, graph_to
from ase_bayesmlip.nn.build import DataStatistics, build_potential
from ase_bayesmlip.testing import graph_of
from ase_bayesmlip.training.data import Labels
from ase_bayesmlip.training.loss import loss
from ase_bayesmlip.training.outputs import evaluate

CUTOFF = 5.0
SHORTEST = [[1.2, 1.3, 1.2], [1.3, 1.6, 1.5], [1.2, 1.5, 0.0]]  # Å: above some in the structures
STATISTICS = DataStatistics([1, 6, 8], [0.0, 0.0, 0.0], 12.0, 2.0, anchored=True, shortest=SHORTEST)
CASES = {
    "race": {"backbone": "race", "n_layers": 3, "hidden_irreps": "4x0e + 4x1o + 4x2e"},
    "race-parities": {
        "backbone": "race",
        "n_layers": 3,
        "hidden_irreps": "4x0o + 4x0e + 4x1o + 4x1e + 4x2o + 4x2e",
    },
    "race-l1": {"backbone": "race", "hidden_irreps": "4x0e + 4x1o + 4x2e", "l_max": 1},
    "race-l3": {
        "backbone": "race",
        "n_layers": 3,
        "hidden_irreps": "4x0e + 4x1o + 4x2e + 4x3o + 4x3e",
        "l_max": 3,
        "envelope_power": 2,
    },
    "plus": {"hidden_irreps": "4x0e + 4x1o + 4x2e"},
    "plus-free": {"hidden_irreps": "4x0e + 4x1o + 4x2e", "anchor": False, "repulsion": False},
    "plus-scalars": {"hidden_irreps": "4x0e", "l_max": 2},
    "plus-l1": {"hidden_irreps": "4x0e + 4x1o", "l_max": 1, "covariance": "iso"},
    "plus-l3": {"hidden_irreps": "4x0e + 4x1o + 4x2e + 4x3o", "l_max": 3, "n_layers": 1},
}
ALL = pytest.mark.parametrize("case", sorted(CASES))
BOTH = pytest.mark.parametrize("case", ["race-parities", "plus"])


def make_potential(case="plus", loss_kind="nll_jef", dtype=torch.float64, seed=0, **changes):
    shape = {"cutoff": CUTOFF, "radial_hidden": [8], "readout_hidden": 8, "n_radial": 5}
    config = ModelConfig(**{**shape, **CASES[case], **changes})
    potential = build_potential(config, LossConfig(kind=loss_kind), STATISTICS, seed, dtype)
    # Away from the symmetric start, where biases are zero.
    generator = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        potential.bias += 0.3 * torch.randn(potential.bias.shape, generator=generator).to(dtype)
    wake_noise(potential, seed)
    potential.noise.set_scales(0.02, 0.05)
    return potential.requires_grad_(False)


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=3)
    return atoms


def dry_ice() -> Atoms:
    """12 atoms in a strained cell hardly larger than the cutoff."""
    a, bond = 5.5, 1.16
    carbons = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]) * a
    axes = np.array([[1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]]) * bond / np.sqrt(3.0)
    positions = np.concatenate([carbons, carbons + axes, carbons - axes])
    atoms = Atoms("C4O8", positions=positions, cell=a * np.eye(3), pbc=True)
    strain = np.array([[0.02, 0.01, 0.0], [0.01, -0.02, 0.015], [0.0, 0.015, 0.01]])
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    atoms.rattle(0.05, seed=4)
    return atoms


def one_atom_cell() -> Atoms:
    """A triclinic cell of one atom, much smaller than the cutoff."""
    atoms = bulk("C", "fcc", a=3.6)
    strain = np.array([[0.0, 0.05, 0.0], [0.0, 0.03, 0.0], [0.02, 0.0, 0.0]])
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain))
    return atoms


STRUCTURES = {"ethanol": ethanol, "dry ice": dry_ice, "one-atom cell": one_atom_cell}


def predict(potential, atoms: Atoms) -> dict[str, np.ndarray]:
    dtype = potential.scale.dtype
    graph = graph_to(graph_of(atoms, CUTOFF), torch.device("cpu"), dtype)
    outputs = evaluate(potential, graph, atoms.cell.rank == 3, create_graph=False)
    return {
        name: value.detach().double().numpy()
        for name, value in outputs._asdict().items()
        if value is not None
    }


def assert_close(found, expected, tolerance, name=""):
    size = max(np.abs(expected).max(), 1e-12)
    assert np.abs(found - expected).max() <= tolerance * size, name


def orthogonal(seed: int, sign: float) -> np.ndarray:
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return q * sign * np.sign(np.linalg.det(q))


def rotated(values: np.ndarray, q: np.ndarray) -> np.ndarray:
    if values.ndim == 1:
        return values
    return values @ q.T if values.shape[1:] == (3,) else q @ values @ q.T


# --- symmetry ------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("structure", ["ethanol", "dry ice"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_every_output_is_equivariant(case, structure, sign):
    potential, atoms = make_potential(case), STRUCTURES[structure]()
    q = orthogonal(1, sign)
    order = np.random.default_rng(2).permutation(len(atoms))
    moved = atoms[order]
    moved.set_cell(atoms.cell.array @ q.T)
    moved.positions = atoms.positions[order] @ q.T + np.array([3.0, -7.0, 0.4])
    before, after = predict(potential, atoms), predict(potential, moved)
    assert before.keys() == after.keys() >= {"energy", "forces", "energy_var", "forces_cov"}
    for name, values in before.items():
        expected = rotated(values, q)
        expected = expected[order] if name.startswith("forces") else expected
        assert_close(after[name], expected, 1e-10, name)


def features_of(potential, atoms: Atoms) -> list[torch.Tensor]:
    """Features after each layer, (n_atoms, components, channels)."""
    found: list[torch.Tensor] = []
    handles = [
        layer.register_forward_hook(lambda module, inputs, output: found.append(output))
        for layer in potential.layers
    ]
    potential(graph_of(atoms, CUTOFF))
    for handle in handles:
        handle.remove()
    return found


def test_pseudoscalars_change_sign_under_reflection():
    # The parities are no decoration: hidden 0o features exist and tell mirror images apart.
    potential, atoms = make_potential("race-parities", n_layers=4), ethanol()
    mirrored = atoms.copy()
    mirrored.positions[:, 0] *= -1.0
    one, other = (features_of(potential, structure)[2][:, 0] for structure in (atoms, mirrored))
    assert float(one.abs().max()) > 1e-6
    torch.testing.assert_close(other, -one, rtol=1e-8, atol=1e-12)


@BOTH
def test_covariance_is_anisotropic(case):
    # Guards the equivariance test: a multiple of the identity would pass it.
    eigenvalues = np.linalg.eigvalsh(predict(make_potential(case), ethanol())["forces_cov"])
    assert (eigenvalues[:, 2] / eigenvalues[:, 0]).max() > 1.1
    assert (eigenvalues > 0.0).all()


@BOTH
def test_cholesky_covariance_does_not_rotate(case):
    potential, atoms = make_potential(case, covariance="cholesky"), ethanol()
    q = orthogonal(1, 1.0)
    moved = atoms.copy()
    moved.positions = atoms.positions @ q.T
    before, after = predict(potential, atoms), predict(potential, moved)
    assert_close(after["forces_cov"], before["forces_cov"], 1e-10)
    assert np.abs(before["forces_cov"] - rotated(before["forces_cov"], q)).max() > 1e-3
    assert_close(after["forces"], rotated(before["forces"], q), 1e-10)


@BOTH
def test_published_energy_variance_is_the_geometric_mean_and_does_not_grow(case):
    summed, mean = make_potential(case), make_potential(case, energy_noise="mean")
    for potential in (summed, mean):
        for readout in potential.readouts:
            readout.network.weights[-1][:, 1] *= 0.02  # below the damper, where it is exp itself
    atoms = ethanol()
    other = atoms.copy()
    other.positions[:, 0] += 40.0
    per_atom = summed(graph_of(atoms, CUTOFF)).atomic_energies_var[0]
    shared = mean(graph_of(atoms, CUTOFF)).atomic_energies_var[0]
    assert per_atom.std() > 0.01 * per_atom.mean()
    torch.testing.assert_close(shared, (per_atom.log().mean().exp() / 9).expand(9))
    twice = mean(graph_of(atoms + other, CUTOFF)).atomic_energies_var[0]
    torch.testing.assert_close(twice.sum(), shared.sum())


@BOTH
def test_isotropic_covariance_is_a_multiple_of_the_identity(case):
    covariance = predict(make_potential(case, covariance="iso"), ethanol())["forces_cov"]
    expected = covariance[:, :1, :1] * np.eye(3)
    assert_close(covariance, expected, 1e-15)


# --- extensivity and batching --------------------------------------------------------------------


@ALL
def test_two_distant_copies_are_two_molecules(case):
    potential, atoms = make_potential(case), ethanol()
    copy = atoms.copy()
    copy.positions[:, 0] += 30.0
    one, two = predict(potential, atoms), predict(potential, atoms + copy)
    for name in ("energy", "energy_var"):
        assert_close(two[name], 2.0 * one[name], 1e-12, name)
    for name in ("forces", "forces_cov"):
        assert_close(two[name], np.concatenate([one[name]] * 2), 1e-11, name)


@ALL
def test_supercell_has_twice_the_energy_and_the_same_stress(case):
    potential = make_potential(case)
    for atoms in (dry_ice(), one_atom_cell()):
        one, two = predict(potential, atoms), predict(potential, atoms * (2, 1, 1))
        for name in ("energy", "energy_var"):
            assert_close(two[name], 2.0 * one[name], 1e-11, name)
        assert_close(two["stress"], one["stress"], 1e-10)
        # One atom per cell feels no force, so compare with the size of its covariance.
        size = max(np.abs(one["forces"]).max(), 1.0)
        assert np.abs(two["forces"] - np.concatenate([one["forces"]] * 2)).max() < 1e-9 * size
        assert_close(two["forces_cov"], np.concatenate([one["forces_cov"]] * 2), 1e-10)


def test_choice_of_cell_does_not_matter():
    potential, atoms = make_potential("plus"), dry_ice()
    skewed = atoms.copy()
    skewed.set_cell(np.array([[1, 1, 0], [0, 1, 0], [0, -1, 1]]) @ atoms.cell.array)
    skewed.wrap()
    one, other = predict(potential, atoms), predict(potential, skewed)
    for name, values in one.items():
        assert_close(other[name], values, 1e-10, name)


@BOTH
def test_a_batch_gives_what_its_structures_give(case):
    potential = make_potential(case)
    frames = [dry_ice(), one_atom_cell(), dry_ice()]
    frames[2].rattle(0.1, seed=9)
    graph = batch_graphs([graph_of(atoms, CUTOFF) for atoms in frames])
    outputs = evaluate(potential, graph, stress=True, create_graph=False)._asdict()
    singles = [predict(potential, atoms) for atoms in frames]
    assert outputs.pop("evidence") is None
    for name, values in outputs.items():
        expected = np.concatenate([single[name] for single in singles])
        assert_close(values.detach().numpy(), expected, 1e-11, name)


def test_molecules_and_crystals_share_a_batch():
    potential = make_potential("plus")
    frames = [ethanol(), dry_ice()]
    graph = batch_graphs([graph_of(atoms, CUTOFF) for atoms in frames])
    outputs = evaluate(potential, graph, stress=True, create_graph=False)
    assert not outputs.stress[0].any()
    crystal = predict(potential, frames[1])
    assert_close(outputs.stress[1].detach().numpy(), crystal["stress"][0], 1e-11)


# --- derivatives ---------------------------------------------------------------------------------


def energy(potential, atoms: Atoms) -> float:
    with torch.no_grad():
        return float(potential(graph_of(atoms, CUTOFF)).atomic_energies.sum())


def central(function, step: float) -> float:
    """Fourth-order central difference, whose error is far below the tolerance."""
    near = function(step) - function(-step)
    far = function(2.0 * step) - function(-2.0 * step)
    return (8.0 * near - far) / (12.0 * step)


@ALL
@pytest.mark.parametrize("structure", ["ethanol", "dry ice", "one-atom cell"])
def test_forces_are_minus_the_slope_of_the_energy(case, structure):
    potential, atoms = make_potential(case), STRUCTURES[structure]()
    forces = predict(potential, atoms)["forces"]
    size = max(np.abs(forces).max(), 1.0)
    for atom, axis in {(0, 0), (len(atoms) - 1, 1), (len(atoms) // 2, 2)}:

        def moved(step, atom=atom, axis=axis):
            other = atoms.copy()
            other.positions[atom, axis] += step
            return energy(potential, other)

        assert abs(forces[atom, axis] + central(moved, 1e-3)) < 1e-6 * size


@ALL
@pytest.mark.parametrize("structure", ["dry ice", "one-atom cell"])
def test_stress_is_the_slope_of_the_energy_by_strain(case, structure):
    potential, atoms = make_potential(case), STRUCTURES[structure]()
    stress = predict(potential, atoms)["stress"][0]
    np.testing.assert_allclose(stress, stress.T, atol=1e-12 * np.abs(stress).max())
    size = max(np.abs(stress).max(), 1e-3)
    for a, b in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):

        def strained(step, a=a, b=b):
            strain = np.zeros((3, 3))
            strain[a, b] += 0.5 * step
            strain[b, a] += 0.5 * step
            other = atoms.copy()
            other.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            return energy(potential, other)

        expected = central(strained, 5e-4) / atoms.get_volume()
        assert abs(stress[a, b] - expected) < 1e-6 * size, (a, b)


@ALL
def test_forces_of_a_structure_add_up_to_zero(case):
    for atoms in (ethanol(), dry_ice()):
        forces = predict(make_potential(case), atoms)["forces"]
        assert np.abs(forces.sum(0)).max() < 1e-11 * np.abs(forces).max()


def test_torque_of_a_molecule_is_zero():
    atoms = ethanol()
    forces = predict(make_potential("plus"), atoms)["forces"]
    torque = np.cross(atoms.positions, forces).sum(0)
    assert np.abs(torque).max() < 1e-10 * np.abs(forces).max()


@BOTH
def test_loss_on_forces_has_exact_second_derivatives(case):
    """The gradient of |F|² by a weight against a finite difference."""
    potential = make_potential(case).requires_grad_(True)
    graph = graph_of(ethanol(), CUTOFF)

    def squared_forces() -> torch.Tensor:
        return (evaluate(potential, graph, False, create_graph=True).forces ** 2).sum()

    potential.zero_grad()
    squared_forces().backward()
    weight = potential.embedding
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).double()
    slope = float((weight.grad * direction).sum())
    start = weight.detach().clone()

    def moved(step):
        with torch.no_grad():
            weight.copy_(start + step * direction)
        return float(squared_forces().detach())

    assert central(moved, 1e-4) == pytest.approx(slope, rel=1e-7)


# --- limits --------------------------------------------------------------------------------------


@ALL
def test_isolated_atom_feels_nothing(case):
    prediction = predict(make_potential(case), Atoms("O"))
    assert np.isfinite(prediction["energy"]).all()
    assert not prediction["forces"].any()
    covariance = prediction["forces_cov"][0]
    # Nothing around the atom singles out a direction.
    np.testing.assert_allclose(covariance, covariance[0, 0] * np.eye(3), rtol=1e-13)


@ALL
def test_atom_out_of_reach_changes_nothing(case):
    potential, atoms = make_potential(case), ethanol()
    lone = Atoms("H", [[40.0, 0.0, 0.0]])
    together = predict(potential, atoms + lone)
    apart, alone = predict(potential, atoms), predict(potential, lone)
    assert_close(together["energy"], apart["energy"] + alone["energy"], 1e-12)
    assert_close(together["forces"][:-1], apart["forces"], 1e-12)
    assert not together["forces"][-1].any()


@ALL
def test_energy_is_smooth_where_an_atom_crosses_the_cutoff(case):
    """Bessel functions vanish at the cutoff once and the envelope three times: E ~ (r_c - r)⁴."""
    potential = make_potential(case)

    def dimer(distance: float) -> tuple[float, float]:
        prediction = predict(potential, Atoms("CO", [[0, 0, 0], [0, 0, distance]]))
        return float(prediction["energy"][0]), float(prediction["forces"][1, 2])

    apart, _ = dimer(CUTOFF + 1e-6)
    energies, forces = [], []
    for gap in (0.04, 0.02, 0.01):
        value, force = dimer(CUTOFF - gap)
        energies.append(value - apart)
        forces.append(force)
    assert energies[0] != 0.0
    for order, values in ((4, energies), (3, forces)):
        orders = np.log2(np.abs(np.array(values[:-1]) / np.array(values[1:])))
        np.testing.assert_allclose(orders, order, atol=0.25)
    assert dimer(CUTOFF + 1e-6) == (apart, 0.0)


@BOTH
def test_molecule_is_smooth_where_a_neighbour_crosses_the_cutoff(case):
    potential, atoms = make_potential(case), ethanol()
    # Push one atom through the cutoff of every other atom in turn.
    start = atoms.positions[-1].copy()
    direction = start - atoms.positions[:-1].mean(0)
    direction /= np.linalg.norm(direction)

    def at(t: float):
        moved = atoms.copy()
        moved.positions[-1] = start + t * direction
        return predict(potential, moved), moved

    def gap(t: float) -> float:
        moved = at(t)[1]
        return np.linalg.norm(moved.positions[-1] - moved.positions[0]) - CUTOFF

    low, high = 0.0, 10.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if gap(middle) < 0.0 else (low, middle)
    below, above = at(low - 1e-5)[0], at(low + 1e-5)[0]
    size = np.abs(below["forces"]).max()
    # Continuous: what remains is slope times the step of 2e-5 Å.
    assert np.abs(below["forces"] - above["forces"]).max() < 1e-3 * size
    slopes = (below["energy"][0] - above["energy"][0]) / 2e-5
    expected = 0.5 * (below["forces"][-1] + above["forces"][-1]) @ direction
    assert slopes == pytest.approx(expected, abs=1e-5 * size)


# --- precision and programs ----------------------------------------------------------------------


@ALL
def test_single_precision_agrees_with_double(case):
    double = make_potential(case)
    single = make_potential(case, dtype=torch.float32)
    single.load_state_dict(double.state_dict())
    for atoms in (ethanol(), dry_ice()):
        expected, found = predict(double, atoms), predict(single, atoms)
        for name, values in expected.items():
            assert_close(found[name], values, 2e-4, name)


def test_weights_do_not_depend_on_the_dtype():
    double, single = (
        build_potential(ModelConfig(), LossConfig(), STATISTICS, 0, dtype)
        for dtype in (torch.float64, torch.float32)
    )
    for name, value in double.state_dict().items():
        assert torch.equal(value.to(torch.float32).double(), single.state_dict()[name].double())


def test_weights_follow_their_seed_and_not_the_global_generator():
    first = make_potential("plus", seed=1).state_dict()
    torch.manual_seed(1234)
    again, other = (make_potential("plus", seed=s).state_dict() for s in (1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding"], other["embedding"])
    before = torch.random.get_rng_state()
    make_potential("plus")
    assert torch.equal(before, torch.random.get_rng_state())


@BOTH
@pytest.mark.parametrize("covariance", ["spd", "iso", "cholesky"])
def test_scripted_potential_is_the_eager_one(case, covariance):
    energy_noise = "mean" if covariance == "cholesky" else "sum"
    potential = make_potential(case, covariance=covariance, energy_noise=energy_noise)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(potential)
    graph = graph_of(ethanol(), CUTOFF)
    for _ in range(3):
        found, expected = scripted(graph), potential(graph)
        torch.testing.assert_close(
            found.atomic_energies, expected.atomic_energies, rtol=1e-12, atol=0.0
        )
        torch.testing.assert_close(found.atomic_energies_var, expected.atomic_energies_var)
        torch.testing.assert_close(found.forces_cov, expected.forces_cov, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("loss_kind", ["mse", "nll_e"])
def test_scripted_potential_without_heads(loss_kind):
    potential = make_potential("plus", loss_kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(potential)
    output = scripted(graph_of(ethanol(), CUTOFF))
    assert (output.atomic_energies_var is None) == (loss_kind == "mse")
    assert output.forces_cov is None


# --- heads ---------------------------------------------------------------------------------------


@BOTH
def test_a_head_that_no_loss_trains_is_missing(case):
    graph = graph_of(ethanol(), CUTOFF)
    known = {}
    for kind in ("mse", "nll_e", "nll_jef"):
        output = make_potential(case, kind)(graph)
        known[kind] = (output.atomic_energies_var is not None, output.forces_cov is not None)
    assert known == {"mse": (False, False), "nll_e": (True, False), "nll_jef": (True, True)}


@BOTH
@pytest.mark.parametrize("covariance", ["spd", "iso", "cholesky"])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_every_parameter_has_a_gradient_under_the_joint_likelihood(case, covariance, beta):
    potential = make_potential(case, covariance=covariance, n_layers=3).requires_grad_(True)
    frames = [ethanol(), dry_ice()]
    graph = batch_graphs([graph_of(atoms, CUTOFF) for atoms in frames])
    generator = torch.Generator().manual_seed(0)
    labels = Labels(
        energy=torch.randn(2, generator=generator, dtype=torch.float64),
        forces=torch.randn(graph.positions.shape, generator=generator, dtype=torch.float64),
        stress=torch.zeros(2, 3, 3, dtype=torch.float64),
        has_stress=torch.tensor([False, False]),
        n_atoms=torch.tensor([len(atoms) for atoms in frames], dtype=torch.float64),
    )
    outputs = evaluate(potential, graph, stress=False, create_graph=True)
    loss("nll_jef", LossConfig(beta=beta), outputs, labels, graph, 2.0).backward()
    silent = [
        name
        for name, parameter in potential.named_parameters()
        if parameter.numel() and (parameter.grad is None or not parameter.grad.any())
    ]
    assert silent == []
    # Each of the outputs of each readout, not only some.
    for readout in potential.readouts:
        columns = readout.network.weights[-1].grad.abs().sum(0)
        assert columns.shape == (2 + {"spd": 1, "iso": 1, "cholesky": 6}[covariance],)
        assert (columns > 0.0).all()
    assert (potential.bias.grad.abs().sum(0) > 0.0).all()


def test_two_layers_of_noise_are_averaged_and_energies_added():
    """With readouts set to zero only the biases remain, once each."""
    potential = make_potential("plus-free", n_layers=3)
    with torch.no_grad():
        for readout in potential.readouts:
            readout.network.weights[-1].zero_()
            readout.tensor_weight.zero_()
    atoms = ethanol()
    output = potential(graph_of(atoms, CUTOFF))
    column = torch.tensor([[1, 6, 8].index(z) for z in atoms.numbers])
    bias = potential.bias[column]
    torch.testing.assert_close(output.atomic_energies[0], 2.0 * bias[:, 0])
    torch.testing.assert_close(output.atomic_energies_var[0], 0.02 * torch.exp(bias[:, 1]))
    identity = torch.eye(3, dtype=torch.float64)
    expected = 0.05 * torch.exp(bias[:, 2]).view(-1, 1, 1) * identity
    torch.testing.assert_close(output.forces_cov[0], expected, rtol=1e-7, atol=0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "race", "hidden_irreps": "4x0e + 4x1o"}, "read from 2e features"),
        ({"backbone": "race_plus", "hidden_irreps": "4x0e + 4x1e"}, "natural parity"),
        ({"backbone": "race_plus", "hidden_irreps": "4x0e + 4x3o", "l_max": 2}, "l_max = 2"),
        ({"hidden_irreps": "4x1o"}, "lacks 0e"),
    ],
)
def test_shapes_that_do_not_fit_say_what_to_change(changes, message):
    with pytest.raises(ValueError, match=message):
        make_potential("plus", **changes)


def test_spd_covariance_needs_harmonics_of_degree_two():
    with pytest.raises(ValueError, match=r"l_max.*2|covariance"):
        make_potential("plus", hidden_irreps="4x0e + 4x1o", l_max=1)


def test_unknown_elements_have_no_column():
    potential = make_potential("plus")
    assert potential.one_hot[[1, 6, 8]].tolist() == torch.eye(3).tolist()
    assert not potential.one_hot[7].any()
