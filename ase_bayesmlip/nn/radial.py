"""Radial part of an edge: Bessel functions, polynomial envelope and the radial network."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

# Second-moment normalisation: E[(c · SiLU(x))²] = 1 for x ~ N(0, 1), as in e3nn.
SILU_NORMALISATION = 1.6765324703310907


def bessel_basis(x: Tensor, n_radial: int) -> Tensor:
    """b_n(x) = √2 sin(nπx) / x for n = 1 … n_radial (arXiv 2003.03123, eq. 7).

    x, (n_edges,), is the distance in units of the cutoff; the result is (n_edges, n_radial).
    """
    n = torch.arange(1, n_radial + 1, device=x.device, dtype=x.dtype)
    return math.sqrt(2.0) * torch.sin(math.pi * x.unsqueeze(1) * n) / x.unsqueeze(1)


def polynomial_envelope(x: Tensor, p: int) -> Tensor:
    """Smooth cutoff with value, slope and curvature zero at x = 1 (arXiv 2003.03123, eq. 8).

    u(x) = 1 - (p+1)(p+2)/2 xᵖ + p(p+2) xᵖ⁺¹ - p(p+1)/2 xᵖ⁺² for x < 1, else 0.
    """
    power = x.pow(p)
    value = 1.0 + power * (-0.5 * (p + 1) * (p + 2) + x * (p * (p + 2) - x * (0.5 * p * (p + 1))))
    return value * (x < 1.0).to(x.dtype)


class RadialBasis(nn.Module):
    """Distances to enveloped Bessel functions."""

    def __init__(self, cutoff: float, n_radial: int, envelope_power: int) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.n_radial = n_radial
        self.envelope_power = envelope_power

    def forward(self, distances: Tensor) -> Tensor:
        """(n_edges,) in Å to (n_edges, n_radial)."""
        x = distances / self.cutoff
        envelope = polynomial_envelope(x, self.envelope_power).unsqueeze(1)
        return bessel_basis(x, self.n_radial) * envelope


class DenseNetwork(nn.Module):
    """Bias-free layers with normalised SiLU between them; unit-variance weights.

    The fan-in factor stands in the forward pass, not in the initial weights, so that one learning
    rate suits all layers. Without biases the network maps zero to zero, which keeps messages
    smooth at the cutoff.
    """

    def __init__(self, widths: list[int], generator: torch.Generator) -> None:
        super().__init__()
        self.weights = nn.ParameterList(
            nn.Parameter(torch.randn(n_in, n_out, generator=generator, dtype=torch.float64))
            for n_in, n_out in pairwise(widths)
        )
        self.factors: list[float] = [
            (1.0 if index == 0 else SILU_NORMALISATION) / math.sqrt(n_in)
            for index, n_in in enumerate(widths[:-1])
        ]

    def forward(self, x: Tensor) -> Tensor:
        """(n, widths[0]) to (n, widths[-1])."""
        return self.with_basis(x)[0]

    def with_basis(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (n, widths[-1]), and the (n, widths[-2]) that the last map is applied to."""
        basis = x
        for index, weight in enumerate(self.weights):
            if index > 0:
                x = nn.functional.silu(x)
            basis = x
            x = x @ (weight * self.factors[index])
        return x, basis
