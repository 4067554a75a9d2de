"""The mixture as one program against `ServedModel`, and the compiler of its kernels."""

from __future__ import annotations

import copy
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from ase import Atoms
from ase.data import chemical_symbols

from ase_bayesmlip.graph import batch_graphs, dense_edges
from ase_bayesmlip.nn.evidential.potential import EvidentialPotential
from ase_bayesmlip.nn.leverage import leverage_at_home
from ase_bayesmlip.nn.mean_energy import MeanEnergyNoise
from ase_bayesmlip.nn.stacked.operators import load_kernels
from ase_bayesmlip.prediction import Prediction
from ase_bayesmlip.serving.compiled import program_inputs
from ase_bayesmlip.serving.compiler import build_kernels
from ase_bayesmlip.serving.program import MixtureProgram
from ase_bayesmlip.serving.served_model import ServedModel
from ase_bayesmlip.testing import check_served_model, graph_of

CUTOFF = 4.0
CPU = torch.device("cpu")
NAMES = ["cholesky", "ensemble", "iso", "laplace", "laplace_mixture", "mse", "nll_e", "point"]
NAMES += ["race", "small", "evidential", "evidence", "evidential_laplace", "eip"]
NAMES += ["laplace_elements"]
STRUCTURES = ["molecule", "crystal", "batch"]
SLOPES = {
    "forces",
    "stress",
    "forces_members",
    "stress_members",
    "forces_cov_epistemic",
    "stress_cov_epistemic",
}


@pytest.fixture(scope="session")
def programs(eager):
    """Function: name, dtype -> (`ServedModel`, `MixtureProgram` of its members), made once."""
    made = {}

    def make(name, dtype=torch.float64):
        if (name, dtype) not in made:
            model = eager(name)
            program = MixtureProgram(list(model.members), model.reference_energies, dtype)
            made[name, dtype] = model, program
        return made[name, dtype]

    return make


@pytest.fixture(scope="session")
def compiled(eager, tmp_path_factory):
    """Function: name -> (`ServedModel`, its program in float32 with kernels), made once."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("needs a C++ compiler")
    made = {}

    def make(name):
        if name not in made:
            model = eager(name)
            program = MixtureProgram(list(model.members), model.reference_energies, torch.float32)
            source = program.stacked.kernel_source(torch.float32)
            library, digest = build_kernels(source, tmp_path_factory.mktemp(name))
            load_kernels(library, digest)
            program.stacked.use_kernels(digest)
            made[name] = model, program
        return made[name]

    return make


@pytest.fixture
def graphs(ethanol, strained_co2, small_cell, cubic_co2):
    """Function: name of a structure -> graph."""
    frames = {
        "molecule": [ethanol],
        "crystal": [strained_co2],
        "batch": [small_cell, cubic_co2, Atoms("H"), strained_co2],
    }
    return lambda name: batch_graphs([graph_of(atoms, CUTOFF) for atoms in frames[name]])


def run(program, graph) -> Prediction:
    return program.prediction(*program_inputs(graph, CPU))


def interaction(model, graph, prediction):
    """Fields without reference energies, next to which the others are small."""
    own = model.reference_energies[graph.atomic_numbers]
    total = torch.zeros(graph.n_graphs, dtype=torch.float64).index_add(0, graph.batch, own)
    fields = {"energy": total, "energy_members": total, "atomic_energies": own}
    return {
        name: value if value is None else value.detach() - fields.get(name, 0.0)
        for name, value in prediction._asdict().items()
    }


def assert_same_fields(model, program, graph, tolerances):
    """`tolerances`: function of the name of a field, relative to its largest value."""
    found = interaction(model, graph, run(program, graph))
    expected = interaction(model, graph, model(graph, True, True, not program.lazy))
    for name, value in expected.items():
        if value is None:
            assert found[name] is None, name
            continue
        assert found[name].dtype == torch.float64, name
        assert found[name].shape == value.shape, name
        size = max(float(value.abs().max()), 1e-9)
        deviation = float((found[name] - value).abs().max())
        assert deviation <= tolerances(name) * size, name


# --- the same numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", NAMES)
def test_a_program_says_what_the_served_model_says(name, structure, programs, graphs):
    model, program = programs(name)
    assert 0.0 < program.table_error < 1e-8
    assert_same_fields(model, program, graphs(structure), tolerances_of(program))


def tolerances_of(program):
    """What the error of the tables may do to each field, relative to its largest value."""
    n_intervals = program.stacked.layers[0].convolution.get_buffer("radial").shape[1] - 2

    def tolerance(field):
        # Slopes of cubic Hermite interpolation lose a factor of 3 n du/dr, about n, to values.
        loss = n_intervals if field in SLOPES else 3.0
        # Squares have twice the error; the energy's is of the difference of sums over atoms.
        squared = 3.0 if field == "energy_var_epistemic" else 2.0
        return (
            program.table_error * loss * (squared if "_cov_" in field or "_var_" in field else 1.0)
        )

    return tolerance


@pytest.mark.parametrize("name", ["laplace", "laplace_elements", "evidential_laplace"])
def test_a_lean_program_leaves_out_what_the_draws_are_for(name, programs, graphs, monkeypatch):
    model, program = programs(name)
    full = run(program, graphs("batch"))
    monkeypatch.setattr(program, "lazy", True)
    lean = run(program, graphs("batch"))
    assert full.forces_cov_epistemic is not None
    assert full.stress_cov_epistemic is not None
    assert lean.forces_cov_epistemic is None
    assert lean.stress_cov_epistemic is None
    assert lean.energy_var_epistemic is not None
    assert_same_fields(model, program, graphs("batch"), tolerances_of(program))


@pytest.mark.slow
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", ["ensemble", "laplace", "laplace_elements", "race"])
def test_kernels_in_single_precision_say_the_same(name, structure, compiled, graphs):
    model, program = compiled(name)
    # Weights by element are known less well: squares of their deviations amplify the round-off.
    squares = 1e-3 if name == "laplace_elements" else 1e-4
    assert_same_fields(
        model, program, graphs(structure), lambda field: squares if "_cov_" in field else 1e-4
    )


def test_the_published_energy_noise(eager, graphs):
    """`energy_noise` is "mean": one noise for all atoms of each structure of a batch."""
    model = eager({"members": 2})
    for member in model.members:
        member.noise.energy = MeanEnergyNoise()
    program = MixtureProgram(list(model.members), model.reference_energies, torch.float64)
    graph = graphs("batch")
    assert_same_fields(model, program, graph, lambda field: 1e-5)
    noise = run(program, graph).atomic_energies_var_aleatoric
    for k in range(graph.n_graphs):
        assert len(noise[graph.batch == k].unique()) == 1
    assert len(noise.unique()) == graph.n_graphs


@pytest.mark.parametrize(
    "name", ["ensemble", "iso", "nll_e", "point", "race", "evidential", "evidential_laplace"]
)
def test_a_program_keeps_every_symmetry(name, programs, ethanol, strained_co2):
    """Rotation, reflection, permutation, batching and extensivity to 1e-8."""
    model, program = programs(name)
    check_served_model(as_loaded(model, program, "float64"), ethanol, strained_co2)


@pytest.mark.parametrize("name", ["ensemble", "laplace", "race"])
def test_kernels_keep_every_symmetry(name, compiled, ethanol, strained_co2):
    model, program = compiled(name)
    check_served_model(as_loaded(model, program, "float32"), ethanol, strained_co2)


def as_loaded(model, program, dtype):
    """What the checks of `testing` need of a loaded model."""
    references = {
        chemical_symbols[z]: float(energy)
        for z, energy in enumerate(model.reference_energies)
        if energy != 0.0
    }

    def predict(graphs, stress):
        prediction = run(program, batch_graphs(graphs))
        return prediction if stress else prediction._replace(stress=None)

    first = next(iter(model.members))
    evidential = isinstance(first, EvidentialPotential)
    card = SimpleNamespace(cutoff=CUTOFF, reference_energies=references, evidential=evidential)
    return SimpleNamespace(predict=predict, card=card, dtype=dtype)


def test_forces_are_the_finite_differences_of_the_energy(programs, graphs):
    _, program = programs("ensemble")
    graph, step = graphs("batch"), 1e-5
    generator = torch.Generator().manual_seed(0)
    moves = torch.randn(graph.positions.shape, generator=generator, dtype=torch.float64)

    def members(shift):
        moved = graph._replace(positions=graph.positions + shift * moves)
        return run(program, moved).energy_members.sum(1)

    slopes = (members(step) - members(-step)) / (2.0 * step)
    expected = -(run(program, graph).forces_members * moves).sum(dim=(1, 2))
    torch.testing.assert_close(slopes, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


# --- fields --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_the_known_fields_in_order(name, programs, graphs):
    model, program = programs(name)
    graph = graphs("crystal")
    outputs = program(*program_inputs(graph, CPU))
    known = {k: v for k, v in run(program, graph)._asdict().items() if v is not None}
    reference = model(graph, True, True)._asdict()
    assert list(known) == [field for field, value in reference.items() if value is not None]
    assert len(outputs) == len(known)
    for output, value in zip(outputs, known.values(), strict=True):
        assert torch.equal(output, value)
        assert not output.requires_grad


def test_a_single_member_knows_nothing_epistemic(programs, graphs):
    _, program = programs("point")
    prediction = run(program, graphs("batch"))
    for name, value in prediction._asdict().items():
        unknown = "epistemic" in name or name in ("forces_dof", "feature_distance")
        assert (value is None) == unknown, name
    torch.testing.assert_close(prediction.forces_members[0], prediction.forces, rtol=0.0, atol=0.0)


@pytest.mark.parametrize(
    ("name", "unknown"),
    [
        ("ensemble", set()),
        ("nll_e", {"forces_cov_aleatoric"}),
        ("evidence", {"stress_cov_epistemic"}),
        (
            "mse",
            {
                "energy_var_aleatoric",
                "atomic_energies_var_aleatoric",
                "forces_cov_aleatoric",
                "energy_var_epistemic",
                "atomic_energies_var_epistemic",
                "forces_cov_epistemic",
                "stress_cov_epistemic",
                "energy_shares",
            },
        ),
    ],
)
def test_what_no_loss_trained_is_unknown(name, unknown, programs, graphs):
    prediction = run(programs(name)[1], graphs("molecule"))
    assert {field for field, value in prediction._asdict().items() if value is None} == unknown | {
        "forces_trace_epistemic",  # of a single evidential network, as are the others
        "forces_dof",
        "feature_distance",
    }


def test_a_structure_without_a_volume_has_no_stress(programs, graphs):
    prediction = run(programs("ensemble")[1], graphs("batch"))
    stressed = prediction.stress.flatten(1).any(dim=1)
    assert stressed.tolist() == [True, True, False, True]


def test_the_graph_needs_no_list_of_edges(programs, graphs):
    """Fields and `predict` agree, whatever the graph says of its edges."""
    _, program = programs("ensemble")
    graph = graphs("batch")
    bare = graph._replace(edge_index=graph.edge_index[:, :0], edge_shift=graph.edge_shift[:0])
    found = program.predict(bare, dense_edges(graph))
    for one, other in zip(found, run(program, graph), strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


def test_the_members_stay_as_they_were(eager, graphs):
    model, graph = eager("ensemble"), graphs("molecule")
    before = model(graph, False, True).forces_members
    program = MixtureProgram(list(model.members), model.reference_energies, torch.float32)
    assert run(program, graph).forces.dtype == torch.float64
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert torch.equal(model(graph, False, True).forces_members, before)


# --- the compiler --------------------------------------------------------------------------------


def script(folder, text):
    """An executable that stands for the compiler."""
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_a_missing_compiler_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/does/not/exist")
    with pytest.raises(RuntimeError, match=r"'/does/not/exist' cannot be run.*install g\+\+.*CXX"):
        build_kernels("int x;", tmp_path)


def test_a_compiler_that_is_no_program_is_named(tmp_path, monkeypatch):
    (tmp_path / "text").write_text("no program")
    monkeypatch.setenv("CXX", str(tmp_path / "text"))
    with pytest.raises(RuntimeError, match="text' cannot be run"):
        build_kernels("int x;", tmp_path)


def test_what_the_compiler_complains_of_is_passed_on(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", script(tmp_path, "echo no space left >&2; exit 3"))
    with pytest.raises(RuntimeError, match=r"(?s)compiler -std.*failed:\nno space left"):
        build_kernels("int x;", tmp_path)


def test_source_that_does_not_compile_is_refused(tmp_path):
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("needs a C++ compiler")
    with pytest.raises(RuntimeError, match=r"(?s)failed:.*this_is_no_type"):
        build_kernels("this_is_no_type x;", tmp_path)


def test_the_digest_names_source_and_compiler(tmp_path, monkeypatch):
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
    monkeypatch.setenv("CXX", script(folders[0], "exit 0"))
    same = [build_kernels("int x;", folder)[1] for folder in folders]
    assert same[0] == same[1]
    assert build_kernels("int y;", folders[0])[1] != same[0]
    monkeypatch.setenv("CXX", script(folders[1], "exit 0"))
    assert build_kernels("int x;", folders[0])[1] != same[0]


def test_source_depends_on_architecture_and_precision_alone(programs, eager):
    """Two posteriors of one architecture share a library, whatever their weights."""
    _, program = programs("iso")
    source = program.stacked.kernel_source(torch.float64)
    single = program.stacked.kernel_source(torch.float32)
    assert single != source
    assert single.replace("using real = float", "using real = double") == source
    members = eager({"members": 3, "covariance": "iso"}).members
    for member in members:
        for parameter in member.parameters():
            parameter.data *= 1.1
    other = MixtureProgram(list(members), program.reference_energies, torch.float32)
    assert other.stacked.kernel_source(torch.float64) == source
    assert programs("race")[1].stacked.kernel_source(torch.float64) != source


@pytest.mark.parametrize("name", ["ensemble", "laplace", "evidential"])
def test_a_program_says_how_far_features_are_from_home(name, eager, graphs):
    model = eager(name)
    members, energies = list(model.members), model.reference_energies
    leverage = leverage_at_home(members[0], [graphs("molecule"), graphs("crystal")])
    references = {z: float(energies[z]) for z in range(1, 119)}
    knowing = ServedModel(members, references, leverage).eval()
    program = MixtureProgram(members, energies, torch.float64, copy.deepcopy(leverage))
    graph = graphs("batch")
    assert knowing(graph, False, False).feature_distance.max() > 1.0
    assert_same_fields(knowing, program, graph, tolerances_with_distance(program))


def tolerances_with_distance(program):
    others = tolerances_of(program)
    # Of the error of a feature in units of λ, the least that training is taken to have varied by.
    return lambda field: 1e-4 if field == "feature_distance" else others(field)


def test_a_program_takes_the_evidence_from_the_leverage(eager, graphs):
    spec = {"kind": "evidential", "loss": "evidential", "members": 1, "mode": "leverage"}
    model = eager(spec)
    head = model.members[0].head
    found = leverage_at_home(model.members[0], [graphs("molecule"), graphs("crystal")])
    head.given.leverage.load_state_dict(found.state_dict())
    program = MixtureProgram(list(model.members), model.reference_energies, torch.float64)
    # Errors of features count in units of λ here, too.
    assert_same_fields(model, program, graphs("batch"), lambda field: 1e-4)
