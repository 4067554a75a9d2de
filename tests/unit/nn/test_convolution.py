"""Messages over edges against sums of tensor products."""

import math

import pytest
import torch
from e3nn import o3
from tiny import randn, seeded

from ase_bayesmlip.nn.angular import (
    SphericalHarmonics,
    component_slices,
    coupling_paths,
    edge_irreps,
    n_components,
    parse_irreps,
)
from ase_bayesmlip.nn.convolution import Convolution


@pytest.mark.parametrize("l_max", [1, 2, 3])
def test_convolution_is_a_sum_of_tensor_products_over_edges(l_max):
    irreps_in, channels = parse_irreps("3x0e + 3x1o + 3x1e")
    irreps_out, _ = parse_irreps("3x0o + 3x0e + 3x1o + 3x1e + 3x2e")
    convolution = Convolution(
        irreps_in, irreps_out, channels, l_max, [4, 5], 7.0, seeded()
    ).double()
    harmonics_irreps = edge_irreps(l_max)
    paths = coupling_paths(irreps_in, harmonics_irreps, irreps_out)
    edges = torch.tensor([[0, 0, 1, 2, 2, 2], [1, 2, 0, 0, 1, 2]])
    features, radial = randn(3, 7, channels), randn(6, 4, seed=1)
    directions = torch.nn.functional.normalize(randn(6, 3, seed=2), dim=1)
    harmonics = SphericalHarmonics(l_max).double()(directions)
    weights = convolution.radial(radial).view(6, len(paths), channels)
    in_slices, out_slices = component_slices(irreps_in), component_slices(irreps_out)
    sh_slices = component_slices(harmonics_irreps)
    counts = [sum(path.out == k for path in paths) for k in range(len(irreps_out))]
    slot = [0] * len(irreps_out)
    expected = torch.zeros(3, n_components(irreps_out), channels, dtype=torch.float64)
    for number, path in enumerate(paths):
        irrep = irreps_out[path.out]
        tensor = o3.wigner_3j(
            irreps_in[path.left].degree,
            harmonics_irreps[path.right].degree,
            irrep.degree,
            dtype=torch.float64,
        ) * math.sqrt(irrep.dim)
        message = torch.einsum(
            "eic,ej,ijk,ec->ekc",
            features[edges[1], in_slices[path.left]],
            harmonics[:, sh_slices[path.right]],
            tensor,
            weights[:, number],
        )
        density = torch.zeros(3, irrep.dim, channels, dtype=torch.float64)
        density = density.index_add(0, edges[0], message) / 7.0
        matrix = convolution.mix.weight[path.out, slot[path.out]]
        norm = math.sqrt(counts[path.out] * channels)
        expected[:, out_slices[path.out]] += (density @ matrix / norm).detach()
        slot[path.out] += 1
    found = convolution(features, harmonics, radial, edges).detach()
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-12)
