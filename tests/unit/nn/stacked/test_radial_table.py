"""Tables of radial networks: exact where Hermite interpolation is, honest about the rest."""

import math
from itertools import pairwise

import pytest
import torch

from ase_bayesmlip.nn.radial import DenseNetwork, RadialBasis
from ase_bayesmlip.nn.stacked.radial_table import (
    FIRST_SIZE,
    GRID_SCALE,
    LARGEST_SIZE,
    interpolate,
    tabulate,
)

CUTOFFS = [3.0, 4.5, 5.2, 6.0]


def coordinate(distances, cutoff):
    """u(r) of the module's docstring."""
    return distances / (distances + GRID_SCALE) * (cutoff + GRID_SCALE) / cutoff


def distance(u, cutoff):
    """Its inverse, by solving for r."""
    v = u * cutoff / (cutoff + GRID_SCALE)
    return GRID_SCALE * v / (1.0 - v)


def of_coordinate(function, cutoff):
    """A radial function from one of u, (n,) to (n, 1)."""
    return lambda distances: function(coordinate(distances, cutoff)).unsqueeze(1)


def bump(u):
    """The cubic with zero slope at both ends that falls from 1 to 0."""
    return (1.0 - u) ** 2 * (1.0 + 2.0 * u)


def wave(frequency):
    """Oscillations that end smoothly at u = 1 and begin without slope."""
    return lambda u: torch.cos(frequency * u) * (1.0 - u * u) ** 3


def radial_network(cutoff=5.0, n_radial=8, power=2, seed=0, width=20):
    generator = torch.Generator().manual_seed(seed)
    basis = RadialBasis(cutoff, n_radial, power)
    network = DenseNetwork([n_radial, 16, width], generator)
    network.requires_grad_(False)
    return lambda distances: network(basis(distances))


def table_of(values, slopes):
    """The table of these values and slopes per interval at the grid points, (n_intervals + 1, m).

    Rows hold value, step to the next value and slope; one more row of zeros lies beyond the cutoff.
    """
    zeros = torch.zeros_like(values[:1])
    steps = torch.cat([values[1:] - values[:-1], zeros])
    rows = torch.stack([values, steps, slopes], dim=1)
    return torch.cat([rows, torch.zeros_like(rows[:1])])


def random_table(n_intervals=16, n_functions=3, seed=0):
    """Any values and slopes, zero at the cutoff."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, n_intervals + 1, n_functions)
    values, slopes = torch.randn(shape, generator=generator, dtype=torch.float64)
    values[-1], slopes[-1] = 0.0, 0.0
    return table_of(values, slopes)


def derivative(function, x):
    """Slopes of a function of every x alone, (n,) to (n, m)."""
    x = x.clone().requires_grad_(True)
    columns = function(x).unbind(1)
    slopes = [torch.autograd.grad(column.sum(), x, retain_graph=True)[0] for column in columns]
    return torch.stack(slopes, dim=1)


def lookup(table, distances, cutoff):
    """`interpolate` for a list of distances: value and slope, (..., n, m)."""
    value, slope = interpolate(table, distances.unsqueeze(0), cutoff)
    return value.squeeze(-3), slope.squeeze(-3)


def relative_error(function, table, cutoff, n_points):
    """Largest deviation of the table, relative to the largest value of each output."""
    u = (torch.arange(n_points, dtype=torch.float64) + 0.5) / n_points
    distances = distance(u, cutoff)
    exact = function(distances)
    found, _ = lookup(table, distances, cutoff)
    return float(((found - exact).abs().amax(0) / exact.abs().amax(0)).max())


# --- what is exact -------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_cubic_polynomials_are_reproduced_exactly(degree, cutoff):
    n_intervals = 8
    generator = torch.Generator().manual_seed(degree)
    coefficients = torch.randn(degree + 1, generator=generator, dtype=torch.float64)
    powers = torch.arange(degree + 1, dtype=torch.float64)

    def polynomial(u):
        return (coefficients * u.unsqueeze(1) ** powers).sum(1, keepdim=True)

    grid = torch.linspace(0.0, 1.0, n_intervals + 1, dtype=torch.float64)
    table = table_of(polynomial(grid), derivative(polynomial, grid) / n_intervals)
    distances = torch.rand(200, generator=generator, dtype=torch.float64) * 0.999 * cutoff

    def exact(r):
        return polynomial(coordinate(r, cutoff))

    value, slope = lookup(table, distances, cutoff)
    torch.testing.assert_close(value, exact(distances), rtol=0.0, atol=1e-13)
    torch.testing.assert_close(slope, derivative(exact, distances), rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_a_cubic_without_slope_at_its_ends_is_tabulated_exactly(cutoff):
    function = of_coordinate(bump, cutoff)
    tables, error = tabulate([function], cutoff)
    assert tables.shape == (1, FIRST_SIZE + 2, 3, 1)
    # At the origin the table has the value at 1e-6 Å.
    assert error < 1e-10
    assert relative_error(function, tables[0], cutoff, 4999) < 1e-10


def test_grid_points_carry_value_step_and_slope_per_interval():
    cutoff, function = 5.0, radial_network()
    tables, _ = tabulate([function], cutoff)
    n_intervals = tables.shape[1] - 2
    places = torch.tensor([1, 7, n_intervals // 2, n_intervals - 1])
    u = places / n_intervals
    at = distance(u.double(), cutoff)
    torch.testing.assert_close(tables[0, places, 0], function(at), rtol=0.0, atol=1e-12)
    ahead = function(distance((places + 1).double() / n_intervals, cutoff)) - function(at)
    torch.testing.assert_close(tables[0, places, 1], ahead, rtol=0.0, atol=1e-12)
    step = 1e-5
    above, below = (function(distance(u.double() + s, cutoff)) for s in (step, -step))
    slope = (above - below) / (2.0 * step * n_intervals)
    torch.testing.assert_close(tables[0, places, 2], slope, rtol=0.0, atol=1e-8)


@pytest.mark.parametrize("cutoff", CUTOFFS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n_intervals", [FIRST_SIZE, 1000])
def test_zero_from_the_cutoff_on(cutoff, dtype, n_intervals):
    ones = torch.ones(n_intervals + 1, 2, dtype=dtype)
    ones[-1] = 0.0
    table = table_of(ones, ones)
    beyond = torch.tensor([1.0, 1.0 + 1e-6, 1.3, math.sqrt(3.0), 1e4], dtype=dtype) * cutoff
    inside = torch.tensor([0.5, 0.99], dtype=dtype) * cutoff
    for found in lookup(table, beyond, cutoff):
        assert not found.any()
    for found in lookup(table, inside, cutoff):
        assert found.all()


def test_the_last_rows_of_a_table_are_zero():
    tables, _ = tabulate([radial_network()], 5.0)
    assert not tables[0, -2:].any()
    assert tables[0, -3].all()


# --- slope and smoothness ------------------------------------------------------------------------


@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_slope_is_the_derivative_of_the_value(cutoff):
    table = random_table()
    distances = torch.linspace(0.01, cutoff * 1.1, 301, dtype=torch.float64)
    _, slope = lookup(table, distances, cutoff)
    expected = derivative(lambda r: lookup(table, r, cutoff)[0], distances)
    assert expected.abs().max() > 1.0
    torch.testing.assert_close(slope, expected, rtol=1e-12, atol=1e-12)


def test_slope_is_the_finite_difference_inside_an_interval():
    cutoff, table, step = 5.0, random_table(), 1e-6
    middles = distance((torch.arange(16, dtype=torch.float64) + 0.37) / 16, cutoff)
    _, slope = lookup(table, middles, cutoff)
    above, below = (lookup(table, middles + s, cutoff)[0] for s in (step, -step))
    torch.testing.assert_close((above - below) / (2.0 * step), slope, rtol=1e-7, atol=1e-7)


def test_value_and_slope_are_continuous_at_grid_points():
    cutoff, table = 5.0, random_table()
    u = torch.arange(1, 17, dtype=torch.float64) / 16
    step = 1e-9
    sides = [lookup(table, distance(u + s, cutoff), cutoff) for s in (-step, step)]
    curvature = 16**2 * 100.0
    for before, after in zip(*sides, strict=True):
        torch.testing.assert_close(before, after, rtol=0.0, atol=curvature * step)
    torch.testing.assert_close(sides[0][0], table[1:-1, 0], rtol=0.0, atol=curvature * step)


def test_slopes_of_a_network_are_nearly_as_good_as_its_values():
    cutoff, function = 5.0, radial_network()
    tables, error = tabulate([function], cutoff)
    distances = torch.linspace(0.05, cutoff, 20001, dtype=torch.float64)
    _, found = lookup(tables[0], distances, cutoff)
    exact = derivative(function, distances)
    deviation = (found - exact).abs().amax(0) / exact.abs().amax(0)
    # Of f⁗h⁴, the value loses 1/384 and the slope √3/216 per interval.
    assert float(deviation.max()) < 100.0 * error


# --- accuracy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [2, 5])
@pytest.mark.parametrize("n_radial", [4, 8])
@pytest.mark.parametrize("cutoff", [3.0, 6.0])
def test_the_error_is_below_the_tolerance_and_honest(cutoff, n_radial, power):
    function = radial_network(cutoff, n_radial, power)
    tolerance = 1e-6
    tables, error = tabulate([function], cutoff, tolerance)
    n_intervals = tables.shape[1] - 2
    fine = relative_error(function, tables[0], cutoff, 25 * n_intervals)
    assert error < tolerance
    assert fine == pytest.approx(error, rel=0.01)


def test_tables_are_refined_and_the_error_falls_as_the_fourth_power():
    function, sizes, errors = of_coordinate(wave(200.0), 5.0), [], []
    for tolerance in (1e-3, 1e-5, 1e-6):
        tables, error = tabulate([function], 5.0, tolerance)
        assert error < tolerance
        sizes.append(tables.shape[1] - 2)
        errors.append(error)
    assert sizes == [FIRST_SIZE, 2 * FIRST_SIZE, 4 * FIRST_SIZE]
    for one, other in pairwise(errors):
        assert math.log2(one / other) == pytest.approx(4.0, abs=0.1)


def test_a_function_that_is_too_rough_is_refused():
    function = of_coordinate(wave(10_000.0), 5.0)
    with pytest.raises(ValueError, match=f"too fast.*{LARGEST_SIZE} intervals.*allowed 1.0e-06"):
        tabulate([function], 5.0)


def test_the_error_is_relative_to_every_output():
    """A small output must not hide behind a large one."""
    cutoff = 5.0
    large, small = of_coordinate(bump, cutoff), of_coordinate(wave(200.0), cutoff)
    tables, error = tabulate([lambda r: torch.cat([large(r), 1e-6 * small(r)], dim=1)], cutoff)
    alone, expected = tabulate([small], cutoff)
    assert tables.shape[1] == alone.shape[1] > FIRST_SIZE + 2
    assert error == pytest.approx(expected, rel=1e-6)


def test_several_functions_get_the_grid_of_the_worst():
    cutoff = 5.0
    smooth, rough = of_coordinate(bump, cutoff), of_coordinate(wave(200.0), cutoff)
    coarse, _ = tabulate([smooth], cutoff)
    fine, error = tabulate([rough], cutoff)
    assert fine.shape[1] > coarse.shape[1]
    for functions in ([smooth, rough], [rough, smooth]):
        tables, worst = tabulate(functions, cutoff)
        assert tables.shape == (2, *fine.shape[1:])
        assert worst == error
        for function, table in zip(functions, tables, strict=True):
            assert relative_error(function, table, cutoff, 7001) <= 1.001 * error


# --- shapes and precision ------------------------------------------------------------------------


def test_members_stay_in_front():
    cutoff = 5.0
    tables = torch.stack([random_table(seed=seed) for seed in range(3)])
    generator = torch.Generator().manual_seed(1)
    distances = 6.0 * torch.rand(4, 5, generator=generator, dtype=torch.float64)
    found = interpolate(tables, distances, cutoff)
    for table, value, slope in zip(tables, *found, strict=True):
        alone = interpolate(table, distances, cutoff)
        assert value.shape == slope.shape == (4, 5, 3)
        assert torch.equal(value, alone[0])
        assert torch.equal(slope, alone[1])


def test_single_precision_keeps_its_digits():
    cutoff = 5.0
    tables, _ = tabulate([radial_network()], cutoff)
    distances = torch.linspace(0.3, 1.2 * cutoff, 2001, dtype=torch.float64)
    rounded = distances.float()
    expected = lookup(tables[0], rounded.double(), cutoff)
    found = lookup(tables[0].float(), rounded, cutoff)
    for one, other, allowed in zip(found, expected, (1e-6, 1e-4), strict=True):
        assert one.dtype == torch.float32
        size = float(other.abs().max())
        torch.testing.assert_close(one.double(), other, rtol=0.0, atol=allowed * size)
