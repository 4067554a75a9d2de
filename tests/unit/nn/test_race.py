"""RACE: body order of the features, and the folded form against the published one."""

import itertools
import math

import numpy as np
import pytest
import torch
from ase import Atoms
from e3nn import o3

from ase_bayesmlip.config import LossConfig, ModelConfig
from ase_bayesmlip.nn.angular import component_slices, n_components, parse_irreps
from ase_bayesmlip.nn.build import DataStatistics, build_potential
from ase_bayesmlip.nn.interaction import SpeciesLinear
from ase_bayesmlip.nn.race import RaceLayer
from ase_bayesmlip.testing import graph_of

CUTOFF = 5.0
N_ATOMS = 5


def cluster() -> Atoms:
    """Five atoms of three elements, all within reach of each other."""
    generator = np.random.default_rng(0)
    positions = np.array(
        [[0, 0, 0], [1.4, 0, 0], [0, 1.5, 0], [0.1, 0.2, 1.6], [-1.3, -0.4, 0.3]], dtype=float
    )
    return Atoms("COHCO", positions=positions + 0.1 * generator.normal(size=(N_ATOMS, 3)))


def make_potential(**changes):
    config = ModelConfig(cutoff=CUTOFF, radial_hidden=[8], readout_hidden=8, **changes)
    statistics = DataStatistics([1, 6, 8], [0.0, 0.0, 0.0], 4.0, 1.0)
    return build_potential(config, LossConfig(), statistics, seed=0).requires_grad_(False)


def summed_features(potential, atoms: Atoms) -> list[torch.Tensor]:
    """Σ_i A_i after each layer, (components, channels)."""
    found: list[torch.Tensor] = []
    handles = [
        layer.register_forward_hook(lambda module, inputs, output: found.append(output.sum(0)))
        for layer in potential.layers
    ]
    potential(graph_of(atoms, CUTOFF))
    for handle in handles:
        handle.remove()
    return found


def body_parts(potential, atoms: Atoms) -> np.ndarray:
    """Largest n-body part of the summed features, (layers, n = 1 … 5), relative.

    Inclusion-exclusion: V(S) = Σ_{T ⊆ S} (-1)^{|S| - |T|} f(T), with f(∅) = 0.
    """
    indices = range(len(atoms))
    subsets = [s for n in range(1, N_ATOMS + 1) for s in itertools.combinations(indices, n)]
    values = {subset: summed_features(potential, atoms[list(subset)]) for subset in subsets}
    n_layers = len(potential.layers)
    parts = np.zeros((n_layers, N_ATOMS))
    for layer in range(n_layers):
        size = max(float(value[layer].abs().max()) for value in values.values())
        for subset in subsets:
            part = sum(
                (-1) ** (len(subset) - len(inner)) * values[inner][layer]
                for inner in subsets
                if set(inner) <= set(subset)
            )
            largest = float(part.abs().max()) / size
            parts[layer, len(subset) - 1] = max(parts[layer, len(subset) - 1], largest)
    return parts


@pytest.mark.parametrize(
    "irreps", ["4x0e + 4x1o + 4x2e", "4x0o + 4x0e + 4x1o + 4x1e + 4x2o + 4x2e"]
)
def test_features_after_t_layers_are_exactly_t_plus_one_body(irreps):
    potential = make_potential(backbone="race", n_layers=4, hidden_irreps=irreps)
    parts = body_parts(potential, cluster())
    for layer, n in itertools.product(range(4), range(1, N_ATOMS + 1)):
        if n <= layer + 2:
            assert parts[layer, n - 1] > 1e-6, (layer, n)
        else:
            assert parts[layer, n - 1] < 1e-13, (layer, n)


def test_one_layer_of_race_plus_is_exactly_four_body():
    potential = make_potential(backbone="race_plus", n_layers=2, hidden_irreps="4x0e + 4x1o + 4x2e")
    parts = body_parts(potential, cluster())
    assert (parts[0, :4] > 1e-6).all()
    assert parts[0, 4] < 1e-13
    assert (parts[1] > 1e-6).all()


def test_energy_is_not_truncated():
    # The non-linear readout mixes body orders: "stratum" is a label and not a truncation.
    potential = make_potential(backbone="race", n_layers=1, hidden_irreps="4x0e + 4x2e")
    atoms = cluster()
    subsets = [s for n in (1, 2, 3) for s in itertools.combinations(range(3), n)]
    three_body = sum(
        (-1) ** (3 - len(subset))
        * float(potential(graph_of(atoms[list(subset)], CUTOFF)).atomic_energies.sum())
        for subset in subsets
    )
    assert abs(three_body) > 1e-8


def test_layer_is_linear_in_the_features():
    irreps, channels = parse_irreps("3x0e + 3x1o + 3x2e")
    generator = torch.Generator().manual_seed(0)
    layer = RaceLayer(irreps, irreps, channels, 2, 2, [4, 4], 3.0, generator).double()

    def randn(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    species = torch.nn.functional.one_hot(torch.tensor([0, 1, 1]), 2).double()
    edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
    harmonics, radial = randn(3, 9), randn(3, 4)
    x, y = randn(3, 9, channels), randn(3, 9, channels)

    def apply(features):
        return layer(features, species, harmonics, radial, edges)

    torch.testing.assert_close(apply(2.0 * x - y), 2.0 * apply(x) - apply(y), rtol=0.0, atol=1e-12)


def test_folded_product_is_the_published_one():
    """M[z] D = W_prod (a ⊗ D), with e3nn's fully connected tensor product as W_prod."""
    irreps, channels = parse_irreps("3x0e + 3x1o + 3x1e + 3x2e")
    n_species, n_factors = 4, 5
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    notation = o3.Irreps([(channels, (irrep.degree, irrep.parity)) for irrep in irreps])
    published = o3.FullyConnectedTensorProduct(f"{n_factors}x0e", notation, notation).double()
    published.weight.data = randn(published.weight_numel)
    factors = randn(n_species, n_factors)

    folded = SpeciesLinear(irreps, n_species, channels, channels, generator).double()
    with torch.no_grad():
        for k, path in enumerate(published.weight_views()):
            matrices = torch.einsum("zf,fcd->zcd", factors, path) / math.sqrt(n_factors)
            folded.weight[k] = matrices

    species = torch.tensor([3, 0, 0, 2, 1, 3])
    density = randn(len(species), n_components(irreps), channels)
    blocks = [density[:, s].transpose(1, 2).flatten(1) for s in component_slices(irreps)]
    expected = published(factors[species], torch.cat(blocks, dim=1))
    one_hot = torch.nn.functional.one_hot(species, n_species).double()
    found = folded(density, one_hot)
    found = torch.cat(
        [found[:, s].transpose(1, 2).flatten(1) for s in component_slices(irreps)], dim=1
    )
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5)


def test_folding_is_exact():
    """The same by hand in float64, where the constants of e3nn do not limit the comparison."""
    irreps, channels = parse_irreps("3x0e + 3x1o + 3x2e")
    n_species, n_factors = 3, 5
    generator = torch.Generator().manual_seed(1)
    factors = torch.randn(n_species, n_factors, dtype=torch.float64, generator=generator)
    weights = torch.randn(
        len(irreps), n_factors, channels, channels, dtype=torch.float64, generator=generator
    )
    folded = SpeciesLinear(irreps, n_species, channels, channels, generator).double()
    with torch.no_grad():
        folded.weight.copy_(torch.einsum("zf,lfcd->lzcd", factors, weights) / math.sqrt(n_factors))
    species = torch.tensor([2, 0, 1, 2])
    density = torch.randn(4, 9, channels, dtype=torch.float64, generator=generator)
    outer = torch.einsum("if,imc->imfc", factors[species], density).flatten(2)
    expected = torch.zeros_like(density)
    for k, components in enumerate(component_slices(irreps)):
        matrix = weights[k].flatten(0, 1) / math.sqrt(n_factors * channels)
        expected[:, components] = outer[:, components] @ matrix
    one_hot = torch.nn.functional.one_hot(species, n_species).double()
    torch.testing.assert_close(folded(density, one_hot), expected, rtol=0.0, atol=1e-14)


def test_odd_features_appear_in_the_second_layer():
    irreps = "4x0o + 4x0e + 4x1o + 4x1e + 4x2o + 4x2e"
    potential = make_potential(backbone="race", n_layers=4, hidden_irreps=irreps)
    first, second, third, _ = summed_features(potential, cluster())
    slices = component_slices(parse_irreps(irreps)[0])
    unnatural = [slices[0], slices[3], slices[4]]  # 0o, 1e, 2o
    assert all(not first[block].any() for block in unnatural)
    assert second[slices[3]].abs().max() > 1e-6
    assert second[slices[4]].abs().max() > 1e-6
    # A pseudoscalar needs three directions: l = 1 with 1e.
    assert third[slices[0]].abs().max() > 1e-8


def test_last_layer_keeps_what_the_readouts_see():
    potential = make_potential(
        backbone="race", n_layers=2, hidden_irreps="4x0e + 4x1o + 4x2e + 4x2o"
    )
    _, last = summed_features(potential, cluster())
    assert last.shape == (1 + 5, 4)
