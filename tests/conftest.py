"""Fixtures shared by all tests: tiny served files, structures, and silence."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import read
from hypothesis import settings
from noise import wake_noise

from ase_bayesmlip.calculator import BayesianCalculator
from ase_bayesmlip.card import read_card
from ase_bayesmlip.config import (
    Config,
    DataConfig,
    EvidenceConfig,
    LossConfig,
    ModelConfig,
    TrainingConfig,
)
from ase_bayesmlip.config.posterior import (
    EnsembleConfig,
    EvidentialConfig,
    LaplaceConfig,
    PointConfig,
)
from ase_bayesmlip.nn.build import DataStatistics, build_potential
from ase_bayesmlip.nn.last_layer import LastLayerPotential
from ase_bayesmlip.nn.potential import readout_weights
from ase_bayesmlip.serving.compiler import compile_served
from ase_bayesmlip.serving.export import export_members
from ase_bayesmlip.serving.parts import remember
from ase_bayesmlip.serving.runtime import load_model
from ase_bayesmlip.serving.served_model import ServedModel

# Property tests try the same cases every time, so that a failure is due to a change; to try others:
# HYPOTHESIS_PROFILE=search pytest
settings.register_profile("repeat", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))

DATA = Path(__file__).parents[1] / "data"
REFERENCE_ENERGIES = {1: -13.6, 6: -1027.5, 8: -2041.9}

VECTORS, TENSORS = "4x0e + 4x1o", "4x0e + 4x1o + 4x2e"

# One file for each answer that a calculator must be able to give. The potentials are untrained:
# contracts hold for any weights.
SERVED = {
    "ensemble": {"members": 4},
    "race": {"members": 2, "backbone": "race", "dtype": "float32"},
    "nll_e": {"members": 3, "loss": "nll_e"},
    "point": {"kind": "point", "members": 1},
    "mse": {"kind": "point", "members": 1, "loss": "mse"},
    "iso": {"members": 2, "covariance": "iso"},
    "cholesky": {"members": 2, "covariance": "cholesky"},
    "laplace": {"kind": "laplace", "members": 1, "draws": 3},
    "laplace_mixture": {"kind": "laplace", "members": 2, "draws": 3, "loss": "mse"},
    "laplace_elements": {"kind": "laplace", "members": 2, "draws": 3, "by_element": True},
    "evidential": {"kind": "evidential", "members": 1, "loss": "evidential", "hidden": VECTORS},
    "evidence": {"kind": "evidential", "members": 3, "loss": "evidential", "mode": "paper"},
    "evidential_laplace": {"kind": "laplace", "members": 1, "draws": 3, "loss": "evidential"},
    "eip": {"kind": "evidential", "members": 1, "loss": "eip"},
    "small": {"members": 2, "backbone": "race", "n_layers": 1},
}

# Those of the short run: members, one potential with noise, drawn readouts, an evidential law.
SHORT = ("ensemble", "point", "laplace", "evidential")


def pytest_configure(config):
    config.addinivalue_line("markers", "prints: writes to stdout or stderr on purpose")
    if hasattr(config, "workerinput"):  # one of several processes: a thread each
        torch.set_num_threads(1)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    elif getattr(config.option, "dist", "no") == "load":  # what a file makes is made once
        config.option.dist = "loadfile"


def pytest_generate_tests(metafunc):
    if "served_name" in metafunc.fixturenames:
        metafunc.parametrize(
            "served_name",
            [
                pytest.param(name, marks=[] if name in SHORT else pytest.mark.slow)
                for name in SERVED
            ],
        )


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if item.get_closest_marker("reference_data") and "BAYESMLIP_DATA" not in os.environ:
        pytest.skip("needs the reference data: set BAYESMLIP_DATA to its folder")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """A cache for the session: what tests compile is not noted down among the user's programs."""
    patch = pytest.MonkeyPatch()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    # Its fonts would be searched again, and it would say so.
    patch.setenv("MPLCONFIGDIR", os.environ.get("MPLCONFIGDIR", f"{cache}/matplotlib"))
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def silence(request):
    """A library does not print: fail a test in which something is written to stdout or stderr."""
    capturing = {"capsys", "capfd", "capsysbinary", "capfdbinary"} & {*request.fixturenames}
    if capturing or request.node.get_closest_marker("prints"):
        yield
        return
    captured = request.getfixturevalue("capfd")
    yield
    written = captured.readouterr()
    if written.out or written.err:
        pytest.fail(f"the test wrote to stdout or stderr: {written.out!r}, {written.err!r}")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The small data sets that come with the package."""
    return DATA


@pytest.fixture
def reference_data() -> Path:
    """Folder of the large reference data, which is not part of the package."""
    folder = os.environ.get("BAYESMLIP_DATA", "")
    if not Path(folder).is_dir() or not folder:
        pytest.skip("needs the reference data: set BAYESMLIP_DATA to its folder")
    return Path(folder)


def _ethanol() -> Atoms:
    return _bare(read(DATA / "ethanol_test.extxyz", 0))


def _bare(frame: Atoms) -> Atoms:
    """A structure without its labels."""
    return Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=frame.pbc)


@pytest.fixture
def ethanol() -> Atoms:
    """A molecule without a cell."""
    return _ethanol()


@pytest.fixture
def strained_co2() -> Atoms:
    """Four molecules of CO2 in a strained triclinic cell."""
    return _bare(read(DATA / "co2_test.extxyz", 0))


@pytest.fixture
def cubic_co2() -> Atoms:
    """CO2-I, Pa-3 (No. 205), a = 5.5 Å: four molecules along the four body diagonals."""
    centres = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    axes = np.array([[1, 1, 1], [-1, 1, -1], [1, -1, -1], [-1, -1, 1]])
    fractional = np.concatenate([centres, centres + 0.12 * axes, centres - 0.12 * axes])
    return Atoms("C4O8", cell=[5.5] * 3, pbc=True, scaled_positions=fractional)


@pytest.fixture
def small_cell() -> Atoms:
    """One CO2 in a skewed cell whose edges are shorter than the cutoff."""
    cell = [[3.1, 0, 0], [0.3, 3.4, 0], [-0.2, 0.4, 3.3]]
    positions = [[0.1, 0.0, 0.05], [0.75, 0.8, 0.7], [-0.6, -0.75, -0.6]]
    return Atoms("CO2", positions, cell=cell, pbc=True)


POSTERIOR_CONFIGS = {
    "ensemble": lambda members: EnsembleConfig(members=members),
    "evidential": lambda members: EvidentialConfig(members=members),
    "laplace": lambda members: LaplaceConfig(members=members),
    "point": lambda members: PointConfig(),
}


def uncertain_readout(potential, n_draws, seed=0, by_element=False):
    """A last-layer Laplace approximation with a random factor, correlated and not small.

    By element its mean has changed as well.
    """
    n_weights = len(readout_weights(potential))
    if by_element:
        n_weights *= len(potential.atomic_numbers)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    factor = 0.05 * normal(n_weights, n_weights).tril()
    draws = factor @ normal(n_weights, n_draws)
    shift = 0.1 * normal(n_weights) if by_element else None
    return LastLayerPotential(potential, factor, draws, shift)


def _members(spec, references):
    options = {
        "kind": "ensemble",
        "loss": "nll_jef",
        "covariance": "spd",
        "backbone": "race_plus",
        "dtype": "float64",
        "n_layers": 2,
        "draws": 0,
        "hidden": TENSORS,
        "mode": "coupled",
        "by_element": False,
        **spec,
    }
    model = ModelConfig(
        backbone=options["backbone"],
        cutoff=4.0,
        n_layers=options["n_layers"],
        hidden_irreps=options["hidden"],
        n_radial=4,
        radial_hidden=[8],
        readout_hidden=8,
        covariance=options["covariance"],
    )
    loss = LossConfig(kind=options["loss"], evidence=EvidenceConfig(mode=options["mode"]))
    config = Config(
        data=DataConfig(train="/somewhere/train.extxyz"),
        model=model,
        loss=loss,
        training=TrainingConfig(dtype=options["dtype"]),
        posterior=POSTERIOR_CONFIGS[options["kind"]](options["members"]),
    )
    elements = sorted(references)
    statistics = DataStatistics(
        elements, [references[z] for z in elements], 9.0, 0.2, anchored=True
    )
    members = [
        wake_noise(build_potential(model, loss, statistics, seed), seed)
        .eval()
        .requires_grad_(False)
        for seed in range(options["members"])
    ]
    # As after training: weights carry no more digits than the precision they were trained in.
    dtype = getattr(torch, options["dtype"])
    for parameter in (p for member in members for p in member.parameters()):
        parameter.data = parameter.data.to(dtype).to(torch.float64)
    if options["draws"] > 0:
        resolved = options["by_element"]
        members = [
            uncertain_readout(m, options["draws"], k, resolved) for k, m in enumerate(members)
        ]
    return members, config, statistics


@pytest.fixture(scope="session")
def eager():
    """Function: name or specification -> an unscripted `ServedModel`."""

    def make(spec, references=REFERENCE_ENERGIES):
        spec = SERVED[spec] if isinstance(spec, str) else spec
        return ServedModel(_members(spec, references)[0], references).eval()

    return make


@pytest.fixture(scope="session")
def serve():
    """Function that writes a served file: specification, path -> card."""

    def write(spec, path, references=REFERENCE_ENERGIES, home=None):
        spec = SERVED[spec] if isinstance(spec, str) else spec
        members, config, statistics = _members(spec, references)
        atoms = _ethanol()
        record = {
            "statistics": dataclasses.asdict(statistics),
            "n_train": 1,
            "n_valid": 1,
            "train_sha256": "0" * 64,
            "valid_sha256": "1" * 64,
            "has_stress": False,
            "probe": {
                "numbers": atoms.numbers.tolist(),
                "positions": atoms.positions.tolist(),
                "cell": atoms.cell.array.tolist(),
                "pbc": atoms.pbc.tolist(),
            },
        }
        return export_members(members, config, record, path, home=home)

    return write


@pytest.fixture(scope="session")
def served(tmp_path_factory, serve):
    """Function: name in `SERVED` -> path of the file, written once and not to be changed."""
    folder = tmp_path_factory.mktemp("served")

    def path(name):
        target = folder / f"{name}.pt"
        if not target.exists():
            serve(name, target)
        return target

    return path


@pytest.fixture(scope="session")
def loaded(served):
    """Function: name, dtype -> `LoadedModel`, loaded once."""
    cache = {}

    def load(name, dtype="float64"):
        if (name, dtype) not in cache:
            cache[name, dtype] = load_model(served(name), dtype=dtype)
        return cache[name, dtype]

    return load


@pytest.fixture
def calculator(loaded):
    """Function: name, dtype, options -> a fresh `BayesianCalculator` on a model loaded once."""

    def make(name="ensemble", dtype="float64", **options):
        return BayesianCalculator(loaded(name, dtype), **options)

    return make


@pytest.fixture(scope="session")
def compiled_shipped(tmp_path_factory):
    """The shipped ensemble with a program compiled in its own precision, float32.

    BAYESMLIP_COMPILED names one that is there already, for runs of a few tests.
    """
    if "BAYESMLIP_COMPILED" in os.environ:
        path = Path(os.environ["BAYESMLIP_COMPILED"])
        for record in read_card(path).compiled:
            remember(record["sha256"].values())
        return path
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        pytest.skip(f"needs the C++ compiler {compiler}")
    path = tmp_path_factory.mktemp("compiled") / "ethanol.pt"
    shutil.copy(DATA / "ethanol_ensemble.pt", path)
    compile_served(path)
    return path


class CountedModule:
    """A module that counts how often it is called, and may forbid it."""

    def __init__(self, module, limit=10**9):
        self.module, self.limit, self.calls = module, limit, 0

    def __call__(self, graph, stress, members):
        self.calls += 1
        if self.calls > self.limit:
            raise AssertionError("the model ran")
        return self.module(graph, stress, members)


@pytest.fixture
def counted(loaded):
    """Function: name, limit -> `LoadedModel` whose module is a `CountedModule`."""

    def make(name="ensemble", limit=10**9):
        model = loaded(name)
        return dataclasses.replace(model, module=CountedModule(model.module, limit))

    return make
