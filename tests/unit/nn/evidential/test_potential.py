"""Evidential potentials on real structures: what rotates, what is left alone, what is refused."""

import io
import warnings

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from noise import wake_noise

from ase_bayesmlip.config import EvidenceConfig, LossConfig, ModelConfig
from ase_bayesmlip.graph import AtomicGraph
from ase_bayesmlip.nn.build import DataStatistics, build_potential
from ase_bayesmlip.nn.evidential.law import scale_matrix
from ase_bayesmlip.nn.evidential.potential import HEAD, freeze_features
from ase_bayesmlip.nn.evidential.tensor_source import TensorMix
from ase_bayesmlip.nn.last_layer import LastLayerPotential
from ase_bayesmlip.nn.potential import readout_weights
from ase_bayesmlip.structures.neighbors import graph_of
from ase_bayesmlip.training.outputs import evaluate

CUTOFF = 4.0
VECTORS, TENSORS = "4x0e + 4x1o", "4x0e + 4x1o + 4x2e"


def make(
    hidden=VECTORS, elements=(1, 6, 8), kind="evidential", mode="coupled", size=1.0, **changes
):
    """A potential whose laws differ from atom to atom; `size` enlarges the anisotropic part."""
    options = {"n_radial": 5, "radial_hidden": [8], "readout_hidden": 8, "backbone": "race_plus"}
    model = ModelConfig(cutoff=CUTOFF, hidden_irreps=hidden, **{**options, **changes})
    loss = LossConfig(kind=kind, evidence=EvidenceConfig(mode=mode))
    statistics = DataStatistics(list(elements), [0.0] * len(elements), 9.0, 0.7, anchored=True)
    potential = wake_noise(build_potential(model, loss, statistics, seed=1), size=2.0)
    if size != 1.0 and kind == "evidential" and isinstance(potential.head.source, TensorMix):
        with torch.no_grad():
            potential.head.source.mixing *= size
    potential.noise.set_scales(0.02, 0.05)
    return potential


def ethanol() -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=3)
    return atoms


def silicon(rattle: float = 0.0) -> Atoms:
    atoms = bulk("Si", cubic=True)
    atoms.rattle(rattle, seed=0)
    return atoms


def evidence(potential, atoms):
    potential.requires_grad_(False)
    return potential.evidence(potential.strata(graph_of(atoms, CUTOFF)))


def orthogonal(seed: int) -> torch.Tensor:
    """Proper and improper in turn."""
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return torch.tensor(q * np.sign(np.linalg.det(q)) * (-1) ** seed)


backbones = pytest.mark.parametrize(
    ("hidden", "backbone"), [(VECTORS, "race_plus"), (TENSORS, "race_plus"), (TENSORS, "race")]
)


@backbones
@pytest.mark.parametrize("mode", ["coupled", "paper"])
def test_scale_matrices_rotate_and_everything_else_stays(hidden, backbone, mode):
    potential, atoms = make(hidden, backbone=backbone, mode=mode, size=10.0), ethanol()
    before = evidence(potential, atoms)
    # Anisotropic enough for the test to mean something.
    assert float(before.niw.tensor.norm(dim=1).max()) > 0.5
    for seed in range(6):
        q = orthogonal(seed)
        moved = atoms.copy()
        moved.positions = atoms.positions @ q.numpy().T + np.array([3.0, -7.0, 0.4])
        after = evidence(potential, moved)
        scale = scale_matrix(before.niw, before.unit_squared)
        expected = q @ scale @ q.T
        found = scale_matrix(after.niw, after.unit_squared)
        assert float((found - expected).abs().max()) < 1e-10 * float(scale.abs().max())
        for name in ("log_scale", "dof", "evidence"):
            torch.testing.assert_close(getattr(after.niw, name), getattr(before.niw, name))
        torch.testing.assert_close(after.energy_scale, before.energy_scale)
        torch.testing.assert_close(after.coherent, before.coherent)


@pytest.mark.parametrize(
    ("kind", "changes"), [("eip", {}), ("evidential", {"covariance": "invariant"})]
)
def test_the_baselines_do_not_rotate(kind, changes):
    """Otherwise they would be no baselines for equivariance."""
    potential, atoms = make(kind=kind, **changes).requires_grad_(False), ethanol()
    before = potential(graph_of(atoms, CUTOFF)).forces_cov[0]
    q = orthogonal(0)
    atoms.positions = atoms.positions @ q.numpy().T
    after = potential(graph_of(atoms, CUTOFF)).forces_cov[0]
    assert float((after - q @ before @ q.T).abs().max()) > 1e-2 * float(before.abs().max())


def test_permutation_and_wrapping_change_nothing():
    potential = make(elements=(14,))
    atoms = silicon(0.1)
    atoms.positions += 1.0
    before = evidence(potential, atoms).niw
    order = np.random.default_rng(0).permutation(len(atoms))
    after = evidence(potential, atoms[order]).niw
    wrapped = atoms.copy()
    wrapped.positions += 2.0 * atoms.cell.array[0] - atoms.cell.array[2]
    wrapped.positions[3] += atoms.cell.array[1]
    for field, permuted, moved in zip(before, after, evidence(potential, wrapped).niw, strict=True):
        torch.testing.assert_close(permuted, field[order], rtol=0.0, atol=1e-10)
        torch.testing.assert_close(moved, field, rtol=0.0, atol=1e-10)


@backbones
def test_cubic_sites_are_isotropic_until_rattled(hidden, backbone):
    potential = make(hidden, elements=(14,), backbone=backbone, size=100.0)
    assert float(evidence(potential, silicon()).niw.tensor.abs().max()) < 1e-10
    rattled = evidence(potential, silicon(0.1)).niw.tensor.norm(dim=1)
    assert float(rattled.min()) > 1e-3
    assert float(rattled.max()) > 0.1


def test_forces_are_finite_differences_of_the_energy_and_know_no_head():
    potential, atoms = make(), ethanol()
    forces = evaluate(potential, graph_of(atoms, CUTOFF), False, False).forces
    step = 1e-5
    for index, axis in ((0, 0), (4, 2), (8, 1)):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[index, axis] += sign * step
            energies.append(
                float(evaluate(potential, graph_of(moved, CUTOFF), False, False).energy.detach())
            )
        slope = (energies[0] - energies[1]) / (2 * step)
        assert float(forces[index, axis].detach()) == pytest.approx(-slope, abs=1e-7)
    wake_noise(potential, seed=5, size=7.0)
    assert torch.equal(evaluate(potential, graph_of(atoms, CUTOFF), False, False).forces, forces)


def test_the_backbone_is_that_of_squared_errors_weight_for_weight():
    plain, evidential = make(kind="mse"), make()
    state = evidential.state_dict()
    assert {name for name in state if not name.startswith(HEAD)} == set(plain.state_dict())
    for name, value in plain.named_parameters():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_features_get_no_gradient(frozen):
    potential, graph = make(), graph_of(ethanol(), CUTOFF)
    if frozen:
        freeze_features(potential)
    outputs = evaluate(potential, graph, False, create_graph=not frozen)
    outputs.forces_cov.sum().backward()
    for name, parameter in potential.named_parameters():
        read = name.startswith(HEAD) and "head.bias" not in name
        if read:
            assert parameter.grad is not None
        elif frozen and not name.startswith(HEAD):
            assert parameter.grad is None
    if not frozen:
        assert float(potential.embedding.grad.abs().max()) > 0.0


def test_initial_laws_have_the_measured_errors():
    """Whatever the mode, an untrained head starts at the scales that the warm-up left."""
    for mode in ("coupled", "paper"):
        potential = make(mode=mode)
        with torch.no_grad():
            for name, parameter in potential.named_parameters():
                if name in ("head.network.weights.1", "head.source.weight"):
                    parameter.zero_()
        output = potential(graph_of(ethanol(), CUTOFF))
        total = (output.forces_cov + output.forces_cov_epistemic)[0]
        expected = 0.05 * torch.eye(3, dtype=torch.float64).expand(9, 3, 3)
        torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-9)
        energy = output.atomic_energies_var + output.atomic_energies_var_epistemic
        torch.testing.assert_close(
            energy[0], torch.full((9,), 0.02, dtype=torch.float64), rtol=1e-6, atol=0.0
        )


def test_the_trace_needs_no_matrices():
    potential, graph = make(), graph_of(ethanol(), CUTOFF)
    full, lazy = potential(graph), potential(graph, True)
    assert lazy.forces_cov is None
    assert lazy.forces_cov_epistemic is None
    trace = full.forces_cov_epistemic[0].diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(lazy.forces_trace_epistemic[0], trace)
    torch.testing.assert_close(lazy.forces_dof[0], evidence(potential, ethanol()).niw.dof - 2.0)


def test_coupled_evidence_divides_by_the_ratio():
    output = make()(graph_of(ethanol(), CUTOFF))
    dof = output.forces_dof[0] + 2.0
    ratio = output.forces_cov_epistemic[0] / output.forces_cov[0]
    torch.testing.assert_close(ratio, (5.0 / dof).view(-1, 1, 1).expand(-1, 3, 3))


def test_beside_a_laplace_approximation_all_of_the_law_is_noise():
    potential, graph = make(), graph_of(ethanol(), CUTOFF)
    n_weights = len(readout_weights(potential))
    factor = 0.1 * torch.eye(n_weights, dtype=torch.float64)
    own, output = potential(graph), LastLayerPotential(potential, factor, factor)(graph)
    assert torch.equal(output.forces_cov, own.forces_cov + own.forces_cov_epistemic)
    noise = own.atomic_energies_var + own.atomic_energies_var_epistemic
    assert torch.equal(output.atomic_energies_var, noise)
    # What atoms have in common is one direction more.
    assert output.directions.shape == (n_weights + 1, 9)
    assert torch.equal(output.directions[-1:], own.directions)
    assert output.forces_cov_epistemic is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "dtype"),
    [("vectors", torch.float32)]
    + [(case, torch.float64) for case in ("tensors", "invariant", "iso", "paper", "eip")],
    ids=str,
)
def test_scripted_saved_loaded_and_frozen_are_eager(case, dtype):
    changes = {
        "tensors": {"hidden": TENSORS},
        "invariant": {"covariance": "invariant"},
        "iso": {"covariance": "iso"},
        "paper": {"mode": "paper"},
        "eip": {"kind": "eip"},
    }.get(case, {})
    potential = make(**changes).to(dtype).eval().requires_grad_(False)
    graph, buffer = graph_of(ethanol(), CUTOFF), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(potential)
        torch.jit.save(scripted, buffer)
        buffer.seek(0)
        loaded = torch.jit.load(buffer)
        modules = [loaded, torch.jit.freeze(scripted)]
    for module in modules:
        for lazy in (False, True, False):
            expected, found = potential(graph, lazy), module(graph, lazy)
            for wanted, value in zip(expected, found, strict=True):
                assert (wanted is None) == (value is None)
                if wanted is not None:
                    torch.testing.assert_close(value, wanted, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("changes", [{"hidden": "4x0e"}, {"n_layers": 1}])
def test_a_tensor_needs_features_that_rotate(changes):
    with pytest.raises(ValueError, match="add 1o to hidden_irreps and use two layers or more"):
        make(**changes)
    with pytest.raises(ValueError, match=r"loss\.kind eip is read from vectors"):
        make(kind="eip", **changes)
    make(covariance="iso", **changes)  # needs none


def test_a_gradient_reaches_positions_only_in_training():
    """In evaluation the head reads copies: derivatives of forces cost nothing more."""
    potential, atoms = make().requires_grad_(False), ethanol()
    graph = graph_of(atoms, CUTOFF)
    positions = graph.positions.clone().requires_grad_(True)
    leaf = AtomicGraph(*[positions if f is graph.positions else f for f in graph])
    assert potential(leaf).forces_cov.requires_grad
    assert not potential.eval()(leaf).forces_cov.requires_grad
