"""Angular part: spherical harmonics and Clebsch-Gordan couplings.

Features are stored as (n, components, channels): the components of all irreps one after the other,
every irrep with the same number of channels. Couplings are dense matrices over components, so that
a tensor product is one batched matrix product whatever the irreps.
"""

import math
from typing import NamedTuple

import torch
from e3nn import o3
from torch import Tensor, nn


class Irrep(NamedTuple):
    """Degree and parity of an irreducible representation of O(3)."""

    degree: int
    parity: int

    @property
    def dim(self) -> int:
        """Number of components, 2l + 1."""
        return 2 * self.degree + 1


class Path(NamedTuple):
    """One allowed coupling left ⊗ right -> out, by position in the three lists of irreps."""

    left: int
    right: int
    out: int


def parse_irreps(text: str) -> tuple[list[Irrep], int]:
    """Read e3nn notation with one multiplicity, e.g. ``"32x0e + 32x1o"``.

    Returns
    -------
    irreps : list of Irrep, sorted by degree
    channels : int

    Raises
    ------
    ValueError
        If the text is not in e3nn notation, repeats an irrep, mixes multiplicities or lacks 0e.
    """
    try:
        parsed = o3.Irreps(text)
    except (ValueError, AssertionError) as error:
        raise ValueError(f"hidden_irreps {text!r} is not in e3nn notation ({error})") from error
    multiplicities = {item.mul for item in parsed}
    irreps = sorted(Irrep(item.ir.l, item.ir.p) for item in parsed)
    if len(multiplicities) != 1 or len(set(irreps)) != len(irreps):
        raise ValueError(
            f"hidden_irreps {text!r}: every irrep must appear once and with the same multiplicity, "
            "e.g. '32x0e + 32x1o + 32x2e'"
        )
    if 0 in multiplicities:
        raise ValueError(f"hidden_irreps {text!r}: the multiplicity must be at least 1")
    if Irrep(0, 1) not in irreps:
        raise ValueError(f"hidden_irreps {text!r} lacks 0e, from which the energy is read")
    return irreps, multiplicities.pop()


def edge_irreps(l_max: int) -> list[Irrep]:
    """Irreps of the spherical harmonics of a vector: parity (-1)^l."""
    return [Irrep(degree, (-1) ** degree) for degree in range(l_max + 1)]


def n_components(irreps: list[Irrep]) -> int:
    """Total number of components."""
    return sum(irrep.dim for irrep in irreps)


def component_irrep(irreps: list[Irrep]) -> Tensor:
    """(components,) position of the irrep that each component belongs to."""
    return torch.tensor(
        [index for index, irrep in enumerate(irreps) for _ in range(irrep.dim)], dtype=torch.int64
    )


def component_slices(irreps: list[Irrep]) -> list[slice]:
    """Range of components of each irrep."""
    slices, start = [], 0
    for irrep in irreps:
        slices.append(slice(start, start + irrep.dim))
        start += irrep.dim
    return slices


def component_positions(chosen: list[Irrep], irreps: list[Irrep]) -> Tensor:
    """Positions within `irreps` of the components of the irreps in `chosen`."""
    starts = dict(zip(irreps, component_slices(irreps), strict=True))
    return torch.tensor(
        [starts[irrep].start + m for irrep in chosen for m in range(irrep.dim)], dtype=torch.int64
    )


def coupling_paths(left: list[Irrep], right: list[Irrep], out: list[Irrep]) -> list[Path]:
    """All couplings that angular momentum and parity allow, ordered by `left`."""
    return [
        Path(i, j, k)
        for i, a in enumerate(left)
        for j, b in enumerate(right)
        for k, c in enumerate(out)
        if abs(a.degree - b.degree) <= c.degree <= a.degree + b.degree
        and a.parity * b.parity == c.parity
    ]


def coupling(left: Irrep, right: Irrep, out: Irrep) -> Tensor:
    """Clebsch-Gordan tensor (left.dim, right.dim, out.dim), "component" normalised, float64."""
    tensor = o3.wigner_3j(left.degree, right.degree, out.degree, dtype=torch.float64)
    return tensor * math.sqrt(out.dim)


class SphericalHarmonics(nn.Module):
    """Real spherical harmonics of unit vectors, degrees 0 … l_max, e3nn "component" norm."""

    def __init__(self, l_max: int) -> None:
        super().__init__()
        self.l_max = l_max
        self.harmonics = o3.SphericalHarmonics(
            list(range(l_max + 1)), normalize=False, normalization="component"
        )

    def forward(self, directions: Tensor) -> Tensor:
        """(n_edges, 3) unit vectors to (n_edges, (l_max + 1)²)."""
        return self.harmonics(directions)
