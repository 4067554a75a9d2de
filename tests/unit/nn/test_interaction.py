"""Linear maps and products of features against e3nn."""

import math

import torch
from e3nn import o3
from tiny import randn, seeded

from ase_bayesmlip.nn.angular import (
    Irrep,
    component_irrep,
    component_slices,
    coupling_paths,
    edge_irreps,
    n_components,
    parse_irreps,
)
from ase_bayesmlip.nn.interaction import ChannelProduct, EquivariantLinear, SpeciesLinear


def to_e3nn(features: torch.Tensor, irreps: list[Irrep]) -> torch.Tensor:
    """(n, components, channels) to e3nn's (n, Σ channels · dim), multiplicity first."""
    blocks = [features[:, block].transpose(1, 2).flatten(1) for block in component_slices(irreps)]
    return torch.cat(blocks, dim=1)


def e3nn_irreps(irreps: list[Irrep], channels: int) -> o3.Irreps:
    return o3.Irreps([(channels, (irrep.degree, irrep.parity)) for irrep in irreps])


def test_equivariant_linear_is_that_of_e3nn():
    irreps, channels = parse_irreps("4x0e + 4x1o + 4x1e + 4x2e")
    linear = EquivariantLinear(irreps, channels, channels, seeded()).double()
    reference = o3.Linear(e3nn_irreps(irreps, channels), e3nn_irreps(irreps, channels)).double()
    reference.weight.data = linear.weight.detach().flatten()
    features = randn(6, n_components(irreps), channels)
    found = to_e3nn(linear(features), irreps)
    torch.testing.assert_close(found, reference(to_e3nn(features, irreps)), rtol=0.0, atol=1e-6)


def test_species_linear_uses_the_weights_of_the_element():
    irreps, channels = parse_irreps("4x0e + 4x1o")
    linear = SpeciesLinear(irreps, 3, channels, 2, seeded()).double()
    features, elements = randn(5, 4, channels), torch.tensor([2, 0, 1, 1, 2])
    one_hot = torch.nn.functional.one_hot(elements, 3).double()
    found = linear(features, one_hot)
    for atom, element in enumerate(elements.tolist()):
        for component, irrep in enumerate(component_irrep(irreps).tolist()):
            weight = linear.weight[irrep, element] / math.sqrt(channels)
            expected = features[atom, component] @ weight
            torch.testing.assert_close(found[atom, component], expected)


def test_channel_product_is_the_uuu_tensor_product_of_e3nn():
    left, channels = parse_irreps("3x0e + 3x1o + 3x2e")
    right, out = edge_irreps(2), parse_irreps("3x0e + 3x1o + 3x1e + 3x2e")[0]
    product = ChannelProduct(left, right, out, channels, False, seeded()).double()
    paths = coupling_paths(left, right, out)
    x, y = randn(4, 9, channels), randn(4, 9, channels, seed=1)
    uncoupled = torch.zeros(4, n_components(out), channels, dtype=torch.float64)
    counts = [sum(path.out == k for path in paths) for k in range(len(out))]
    slot = [0] * len(out)
    out_slices = component_slices(out)
    for path in paths:
        reference = o3.TensorProduct(
            e3nn_irreps([left[path.left]], channels),
            e3nn_irreps([right[path.right]], channels),
            e3nn_irreps([out[path.out]], channels),
            [(0, 0, 0, "uuu", False)],
        ).double()
        value = reference(
            to_e3nn(x[:, component_slices(left)[path.left]], [left[path.left]]),
            to_e3nn(y[:, component_slices(right)[path.right]], [right[path.right]]),
        ).view(4, channels, -1)
        weight = product.mix.weight[path.out, slot[path.out]]
        norm = math.sqrt(counts[path.out] * channels)
        mixed = torch.einsum("nci,cd->nid", value, weight) / norm
        uncoupled[:, out_slices[path.out]] += mixed.detach()
        slot[path.out] += 1
    torch.testing.assert_close(product(x, y), uncoupled, rtol=0.0, atol=1e-6)


def test_product_of_a_feature_with_itself_leaves_out_nothing():
    # The paths kept for x ⊗ x span what all paths span: same rank of the outputs.
    irreps, channels = parse_irreps("1x0e + 1x1o + 1x2e")
    full = ChannelProduct(irreps, irreps, irreps, channels, False, seeded()).double()
    square = ChannelProduct(irreps, irreps, irreps, channels, True, seeded()).double()
    features = randn(40, 9, 1)
    outer = (features.unsqueeze(2) * features.unsqueeze(1)).flatten(1, 2)
    for component in range(9):
        ranks = []
        for product in (full, square):
            rows = torch.matmul(product.coupling, outer)[:, :, 0]
            n_paths = product.mix.weight.shape[1]
            mask = product.mix.mask[product.mix.irrep_of[component], :, 0, 0] > 0
            chosen = product.mix.gather.view(9, n_paths)[component][mask]
            columns = rows[:, chosen]
            ranks.append((int(torch.linalg.matrix_rank(columns, rtol=1e-9)), columns.shape[1]))
        assert ranks[0][0] == ranks[1][0] == ranks[1][1]
        assert ranks[0][1] >= ranks[1][1]
