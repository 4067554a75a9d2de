"""Radial networks as tables: cubic Hermite interpolation on a grid of distances.

A radial network sees the distance alone, so its output is tabulated once per potential. Bessel
functions and weights vary fastest at short distances, so the grid is uniform in

    u(r) = r / (r + a) · (r_c + a) / r_c,

which runs from 0 to 1 at the cutoff. The error of Hermite interpolation falls as the fourth power
of the spacing; it is measured, never assumed. The slope is the exact derivative of the value, so
forces remain the exact gradient of the energy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# The a of the grid, Å: half of the places lie below about this distance.
GRID_SCALE = 1.0
FIRST_SIZE, LARGEST_SIZE = 512, 8192

RadialFunction = Callable[[Tensor], Tensor]


def tabulate(
    functions: Sequence[RadialFunction], cutoff: float, tolerance: float = 1e-6
) -> tuple[Tensor, float]:
    """Tables of values and slopes, refined until their error is below the tolerance.

    Parameters
    ----------
    functions : sequence of callable
        (n,) distances in Å, float64, to (n, m); zero at the cutoff.
    cutoff : float, Å
    tolerance : float
        Of the value, relative to the largest value of each of the m outputs.

    Returns
    -------
    tables : Tensor of float64, (n_functions, n_intervals + 2, 3, m)
        Value f, step to the next value s and slope per interval d at the grid points. Rows from
        the cutoff on are zero. The step is kept because in float32 a difference of two values
        has too few digits to make a slope of.
    error : float
        Of the worst function, measured in the middle of every interval, where it peaks.

    Raises
    ------
    ValueError
        If the largest table does not reach the tolerance.
    """
    n_intervals = FIRST_SIZE
    while True:
        tables = [_table(function, cutoff, n_intervals) for function in functions]
        pairs = zip(functions, tables, strict=True)
        errors = [_error(function, table, cutoff) for function, table in pairs]
        error = float(torch.tensor(errors).max())  # unlike Python's, this maximum keeps NaN
        if error < tolerance:
            return torch.stack(tables), error
        if n_intervals == LARGEST_SIZE:
            raise ValueError(
                f"a radial network changes too fast to be tabulated: relative error {error:.1e} "
                f"with {n_intervals} intervals (allowed {tolerance:.1e}); serve the model without "
                "a compiled backend"
            )
        n_intervals *= 2


def interpolate(table: Tensor, distances: Tensor, cutoff: float) -> tuple[Tensor, Tensor]:
    """Value and derivative of tabulated functions, zero from the cutoff on.

    Parameters
    ----------
    table : Tensor, (..., n_intervals + 2, 3, m)
        Leading dimensions, such as members, are kept in front.
    distances : Tensor, (n_atoms, n_neighbors), Å

    Returns
    -------
    value, slope : Tensor, (..., n_atoms, n_neighbors, m)
        Slopes are per Å.
    """
    n_intervals = table.shape[-3] - 2
    stretch = n_intervals * (cutoff + GRID_SCALE) / cutoff
    shifted = distances + GRID_SCALE
    place = torch.clamp(stretch * distances / shifted, max=float(n_intervals))
    interval = place.to(torch.int64)
    t = (place - interval).unsqueeze(-1)
    left = table[..., interval, :, :]
    f0, step, d0 = left[..., 0, :], left[..., 1, :], left[..., 2, :]
    d1 = table[..., interval + 1, 2, :]
    c2, c3 = 3.0 * step - 2.0 * d0 - d1, d0 + d1 - 2.0 * step
    value = f0 + t * (d0 + t * (c2 + t * c3))
    places_per_length = (stretch * GRID_SCALE / (shifted * shifted)).unsqueeze(-1)
    slope = (d0 + t * (2.0 * c2 + t * (3.0 * c3))) * places_per_length
    return value, slope


def _distance(u: Tensor, cutoff: float) -> Tensor:
    """The inverse of u(r), Å."""
    v = u * (cutoff / (cutoff + GRID_SCALE))
    # Bessel functions divide by the distance; their limit is reached long before 1e-6 Å.
    return torch.clamp(GRID_SCALE * v / (1.0 - v), min=1e-6)


def _table(function: RadialFunction, cutoff: float, n_intervals: int) -> Tensor:
    grid = torch.linspace(0.0, 1.0, n_intervals + 1, dtype=torch.float64).requires_grad_(True)
    value = function(_distance(grid, cutoff))
    # Two reverse passes make one forward pass: the pulled-back weights are linear in the weights.
    weights = torch.zeros_like(value, requires_grad=True)
    (pulled,) = torch.autograd.grad(value, grid, weights, create_graph=True)
    (slope,) = torch.autograd.grad(pulled.sum(), weights)
    value, slope = value.detach(), slope / n_intervals
    step = torch.cat([value[1:] - value[:-1], torch.zeros_like(value[:1])])
    table = torch.stack([value, step, slope], dim=1)
    table[-1] = 0.0
    return torch.cat([table, torch.zeros_like(table[:1])])


def _error(function: RadialFunction, table: Tensor, cutoff: float) -> float:
    n_intervals = table.shape[0] - 2
    middle = (torch.arange(n_intervals, dtype=torch.float64) + 0.5) / n_intervals
    distances = _distance(middle, cutoff)
    exact = function(distances).detach()
    found, _ = interpolate(table, distances.unsqueeze(0), cutoff)
    size = exact.abs().amax(dim=0).clamp(min=1e-12)
    return float(((found[0] - exact).abs().amax(dim=0) / size).max())
