"""Runs and potentials as small as they can be, on real molecules and crystals."""

import functools
from pathlib import Path

import torch
from noise import wake_noise

from ase_bayesmlip.config import Config, from_dict
from ase_bayesmlip.nn.build import build_potential
from ase_bayesmlip.posteriors import laplace
from ase_bayesmlip.posteriors.curvature import linearise_last_layer
from ase_bayesmlip.posteriors.members import TrainedMembers
from ase_bayesmlip.serving.served_model import ServedModel
from ase_bayesmlip.structures.labelled import read_frames
from ase_bayesmlip.training.data import GraphDataset, load_training_data

DATA = Path(__file__).parents[1] / "data"

# Seven structures in batches of 2: the last batch is smaller.
CONTENT = {
    "data": {
        "train": f"{DATA}/ethanol_valid.extxyz@0:7",
        "valid": f"{DATA}/ethanol_valid.extxyz@30:33",
        "reference_energies": f"{DATA}/isolated_atoms.extxyz",
    },
    "model": {
        "cutoff": 2.5,
        "n_layers": 2,
        "hidden_irreps": "4x0e + 4x1o + 4x2e",
        "n_radial": 4,
        "radial_hidden": [4],
        "readout_hidden": 4,
    },
    "training": {
        "epochs": 4,
        "batch_size": 2,
        "warmup_steps": 3,
        "evaluate_every": 2,
        "dtype": "float64",
    },
    "loss": {"warmup_fraction": 0.5},
    "posterior": {"kind": "point"},
}


def tiny_config(**sections) -> Config:
    """A run whose sections are changed by those given; `posterior` is replaced as a whole."""
    content = dict(CONTENT)
    for name, values in sections.items():
        content[name] = values if name == "posterior" else {**content.get(name, {}), **values}
    return from_dict(Config, content)


def tiny_sets(config: Config) -> tuple[GraphDataset, GraphDataset]:
    """Training and validation set of a run."""
    data = load_training_data(config)
    dtype = getattr(torch, config.training.dtype)
    return tuple(
        GraphDataset(frames, data.references, config.model.cutoff, dtype)
        for frames in (data.train, data.valid)
    )


def tiny_potential(config: Config, seed: int = 0):
    """A potential of a run whose heads differ from structure to structure, as after training."""
    statistics = load_training_data(config).statistics
    dtype = getattr(torch, config.training.dtype)
    potential = build_potential(config.model, config.loss, statistics, seed, dtype)
    return wake_noise(potential, seed, size=0.3)


def mixture_set(config: Config) -> GraphDataset:
    """Molecules of nine atoms and crystals of twelve, in turns."""
    data = load_training_data(config)
    sources = (f"{DATA}/ethanol_valid.extxyz@0:2", f"{DATA}/co2_train.extxyz@0:2")
    molecules, crystals = (
        read_frames(source, config.data.keys, config.data.units) for source in sources
    )
    frames = [frame for pair in zip(molecules, crystals, strict=True) for frame in pair]
    return GraphDataset(
        frames, data.references, config.model.cutoff, getattr(torch, config.training.dtype)
    )


@functools.cache
def laplace_state(kind="nll_jef", members=1, **posterior) -> laplace.State:
    """A Laplace posterior around untrained potentials, whose weights are as good as any.

    One set of readout weights for all elements, unless `by_element` is asked for.
    """
    settings = {"kind": "laplace", "members": members, "by_element": False, **posterior}
    config = tiny_config(loss={"kind": kind}, posterior=settings)
    potentials = [tiny_potential(config, seed) for seed in range(members)]
    gaussians = []
    for seed, potential in enumerate(potentials):
        stage = laplace.Curvature(potential, *tiny_sets(config), config, seed)
        for index in range(stage.n_steps):
            stage.step(index)
        gaussians.append(stage.gaussian)
    weights = tuple(potential.state_dict() for potential in potentials)
    record = load_training_data(config).record()
    return laplace.State(TrainedMembers(config, record, weights), tuple(gaussians))


def mixture_of(members, state) -> ServedModel:
    """An unscripted mixture of potentials of a run."""
    statistics = state.run.statistics
    references = dict(zip(statistics.atomic_numbers, statistics.reference_energies, strict=True))
    return ServedModel(members, references).eval()


def assert_same(one, other) -> None:
    """Equal to the last bit, through nested states."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


# --- of the Laplace posteriors of `laplace_state`

N_WEIGHTS = 8  # two layers of four hidden functions
BY_ELEMENT = 3 * N_WEIGHTS  # H, C, O


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


def batch_of(state):
    """Two molecules and two crystals."""
    data = mixture_set(state.config)
    return next(data.batches(range(len(data)), len(data)))


def serve(state, n, seed=0):
    return mixture_of(laplace.draw(state, n, seeded(seed)), state)


def trained(state):
    """The mixture of the potentials that the posterior was made for."""
    return mixture_of(state.run.potentials(), state)


def jacobians(state, member=0):
    """∂(E, F)/∂w of the batch."""
    resolved = len(state.gaussians[member].mean) > N_WEIGHTS
    potential = state.run.potentials()[member]
    found = linearise_last_layer(potential, *batch_of(state), resolved)
    return found.energy_jacobian, found.force_jacobian


def covariance(state, member=0):
    return torch.inverse(state.gaussians[member].precision)


def assert_close(found, expected, tolerance=1e-8):
    """To a tolerance relative to the largest value."""
    size = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0.0, atol=tolerance * size)
