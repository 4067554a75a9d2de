"""IVON against closed forms, against its equations in numpy, and its promises on state.

Statistics come from replicas: parameters of shape (replicas, weights) under one loss, which IVON,
elementwise and with noise of its own for every element, trains as independent runs.
"""

import copy
import math
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import seeded
from torch import nn

from ase_bayesmlip.posteriors.ivon_optimizer import IVON

N_REPLICAS = 400


def normal(*shape, seed, dtype=torch.float64):
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def parameter(values):
    return nn.Parameter(torch.as_tensor(values).clone())


def half_square(weights):
    """A loss with gradient θ and Hessian 1."""
    return 0.5 * sum(p.square().sum() for p in weights)


def sampled_step(optimizer, generator, loss, n_samples=1):
    for _ in range(n_samples):
        with optimizer.sampled_params(generator):
            loss().backward()
    optimizer.step()


# --- closed forms


def train(optimizer, weights, loss, seed, burn_in, n_tail):
    """Train the replicas; averages over the tail of m and of the precision 1/σ², per replica."""
    generator = seeded(seed)
    means, precisions = torch.zeros_like(weights), torch.zeros_like(weights)
    for step in range(burn_in + n_tail):
        sampled_step(optimizer, generator, loss)
        if step >= burn_in:
            means += weights.detach() / n_tail
            precisions += optimizer.posterior_std()[0] ** -2 / n_tail
    return means.detach(), precisions


def average_and_error(samples):
    """Mean over the replicas and its standard error, for every weight."""
    return samples.mean(dim=0), samples.std(dim=0) / math.sqrt(len(samples))


# Of 8 Gaussian errors (4 weights, m and σ), one exceeds 4.5 standard errors in one of 18000 runs.
N_ERRORS = 4.5
ESS, BETA2 = 32, 0.998
RHO = 1.0 - BETA2
# Six memories of h and dozens of m forget the start to exp(-6) = 0.2 % of the initial distance;
# the curvature starts within 0.2 of the exact one, so that less than 0.05 % of it is left.
BURN_IN, N_TAIL = 3000, 1000
LEFT = 5e-4


@pytest.mark.slow
@pytest.mark.parametrize("decay", [0.0, 0.4])
def test_linear_regression_with_an_orthogonal_design(decay):
    """Posterior of y = Xw + noise, XᵀX = n s² diag(d), under the prior N(0, 1/(nδ)).

    It is diagonal: precision n (d + δ), mean d/(d + δ) of the least-squares weights. A stationary
    f = h + δ is expected above d + δ by ½ρ Var(ĥ)/f, ρ = 1 - β₂, and since
    ĥ = d ε² + d (m - w) ε/σ, Var(ĥ) = 2d² + d² (m - w)²/σ². Second orders of ρ, and the scatter of
    m, whose variance is lr/2 of that of θ, change this shift by some percent.
    """
    n, noise = ESS, 0.7
    orthogonal, _ = torch.linalg.qr(normal(n, 4, seed=1))
    curvature = torch.linspace(0.9, 1.2, 4, dtype=torch.float64)
    design = orthogonal * (noise**2 * n * curvature).sqrt()
    target = design @ normal(4, seed=2) + noise * normal(n, seed=3)
    least_squares = torch.linalg.lstsq(design, target[:, None]).solution[:, 0]
    weights = parameter(torch.zeros(N_REPLICAS, 4, dtype=torch.float64))
    optimizer = IVON([weights], lr=0.05, ess=n, beta2=BETA2, weight_decay=decay)

    def loss():
        residuals = target - weights @ design.T
        return residuals.square().sum() / (2 * n * noise**2)

    means, precisions = train(optimizer, weights, loss, 4, BURN_IN, N_TAIL)

    exact_mean = curvature / (curvature + decay) * least_squares
    exact_f = curvature + decay
    offset = exact_mean - least_squares
    variance = curvature**2 * (2 + offset**2 * n * exact_f)
    shift = 0.5 * RHO * variance / exact_f
    mean, error = average_and_error(means)
    assert ((mean - exact_mean).abs() < N_ERRORS * error).all()
    assert (error < 0.02 / (n * exact_f).sqrt()).all()  # of a σ: the test can see small errors
    f, error = average_and_error(precisions / n)
    assert ((f - exact_f - shift).abs() < N_ERRORS * error + (LEFT + 0.1 * shift)).all()
    assert (error < 0.005 * exact_f).all()


def test_mean_field_optimum_of_a_correlated_quadratic():
    """L = ½ (θ - w)ᵀA(θ - w): the best diagonal Gaussian has precision λ diag(A) and mean w.

    The marginal variances, the diagonal of A⁻¹, are 1.2 to 1.4 times larger. Without a prior
    ĥᵢ = εᵢ/σᵢ Σⱼ Aᵢⱼ σⱼ εⱼ has the variance 2Aᵢᵢ² + Σ_{j≠i} Aᵢⱼ² Aᵢᵢ/Aⱼⱼ about Aᵢᵢ.
    """
    correlation = torch.tensor(
        [[1.0, 0.5, 0.2, 0.0], [0.5, 1.0, 0.3, 0.1], [0.2, 0.3, 1.0, 0.4], [0.0, 0.1, 0.4, 1.0]],
        dtype=torch.float64,
    )
    diagonal = torch.tensor([0.85, 0.95, 1.05, 1.15], dtype=torch.float64)
    matrix = correlation * (diagonal[:, None] * diagonal).sqrt()
    centre = torch.tensor([0.3, -0.2, 0.1, 0.4], dtype=torch.float64)
    weights = parameter(torch.zeros(N_REPLICAS, 4, dtype=torch.float64))
    optimizer = IVON([weights], lr=0.05, ess=ESS, beta2=BETA2, weight_decay=0.0)

    def loss():
        offset = weights - centre
        return 0.5 * (offset @ matrix * offset).sum()

    means, precisions = train(optimizer, weights, loss, 5, BURN_IN, N_TAIL)

    ratio = diagonal[:, None] / diagonal
    variance = diagonal**2 + (matrix**2 * ratio).sum(dim=1)
    shift = 0.5 * RHO * variance / diagonal
    mean, error = average_and_error(means)
    assert ((mean - centre).abs() < N_ERRORS * error).all()
    assert (error < 0.02 / (ESS * diagonal).sqrt()).all()
    f, error = average_and_error(precisions / ESS)
    assert ((f - diagonal - shift).abs() < N_ERRORS * error + (LEFT + 0.1 * shift)).all()
    marginal = 1 / torch.linalg.inv(matrix).diagonal()
    assert (diagonal - marginal > 20 * error).all()  # far from what it must not be


# --- the equations


class ByHand:
    """IVON in numpy as the paper writes it, for a loss ½ a θ⁴ of one array."""

    def __init__(self, mean, scale, lr, ess, h, beta1, beta2, decay, radius):
        self.m, self.scale, self.h, self.lr = mean, scale, h, lr
        self.ess, self.beta1, self.beta2, self.decay = ess, beta1, beta2, decay
        self.radius, self.g, self.t = radius, 0.0, 0

    def sample(self, noise):
        sigma = 1 / np.sqrt(self.ess * (self.h + self.decay))
        theta = self.m + sigma * noise
        g_hat = 2 * self.scale * theta**3
        return g_hat, g_hat * (theta - self.m) / sigma**2

    def step(self, g_hat, h_hat):
        self.t += 1
        keep, h, decay = self.beta2, self.h, self.decay
        self.g = self.beta1 * self.g + (1 - self.beta1) * g_hat
        third = 0.5 * (1 - keep) ** 2 * (h - h_hat) ** 2 / (h + decay)
        self.h = keep * h + (1 - keep) * h_hat + third
        g_bar = self.g / (1 - self.beta1**self.t)
        newton = (g_bar + decay * self.m) / (self.h + decay)
        self.m = self.m - self.lr * np.clip(newton, -self.radius, self.radius)

    @property
    def std(self):
        return 1 / np.sqrt(self.ess * (self.h + self.decay))


def quartic(weights, scale):
    return 0.5 * scale * weights.pow(4).sum()


@pytest.mark.parametrize("radius", [None, math.inf, 0.3])
def test_steps_by_hand(radius):
    """Three steps of two samples each, two groups that differ in lr, weight decay and λ."""
    first, second = normal(3, 2, seed=6), normal(5, seed=7)
    hessians = [normal(3, 2, seed=8).abs() + 0.5, normal(5, seed=9).abs() + 0.5]
    weights = [parameter(first), parameter(second)]
    groups = [
        {"params": [weights[0]]},
        {"params": [weights[1]], "lr": 0.02, "weight_decay": 0.3, "ess": 7.0},
    ]
    optimizer = IVON(
        groups, 0.1, 40.0, hessians, beta1=0.8, beta2=0.9, weight_decay=0.1, clip_radius=radius
    )
    common = {"scale": 1.7, "beta1": 0.8, "beta2": 0.9, "radius": radius or math.inf}
    hands = [
        ByHand(first.numpy(), lr=0.1, ess=40.0, h=hessians[0].numpy(), decay=0.1, **common),
        ByHand(second.numpy(), lr=0.02, ess=7.0, h=hessians[1].numpy(), decay=0.3, **common),
    ]
    generator, again = seeded(10), seeded(10)
    for step in range(3):
        optimizer.param_groups[0]["lr"] = hands[0].lr = 0.1 / (1 + step)  # a schedule
        samples = []
        for _ in range(2):
            with optimizer.sampled_params(generator):
                (quartic(weights[0], 1.7) + quartic(weights[1], 1.7)).backward()
            noise = [
                torch.randn(p.shape, generator=again, dtype=torch.float64).numpy() for p in weights
            ]
            samples.append([hand.sample(eps) for hand, eps in zip(hands, noise, strict=True)])
        optimizer.step()
        for hand, *estimates in zip(hands, *samples, strict=True):
            hand.step(*np.mean(estimates, axis=0))
        for p, std, hand in zip(weights, optimizer.posterior_std(), hands, strict=True):
            np.testing.assert_allclose(p.detach(), hand.m, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(std, hand.std, rtol=1e-12, atol=0)


def test_clipping_limits_every_weight_alone():
    """A step is lr × radius where Newton's is longer, and Newton's elsewhere."""
    start = torch.tensor([10.0, -10.0, 0.1], dtype=torch.float64)
    free, clipped = parameter(start), parameter(start)
    for weights, radius in ((free, None), (clipped, 0.5)):
        optimizer = IVON([weights], lr=0.1, ess=400.0, clip_radius=radius)
        sampled_step(optimizer, seeded(11), lambda p=weights: half_square([p]))
    assert (clipped - start).tolist()[:2] == pytest.approx([-0.05, 0.05], rel=1e-12)
    assert (free - start).abs()[:2].min() > 0.5
    assert 0 < (free - start).abs()[2] < 0.05
    assert clipped[2] == free[2]


# --- samples


def two_parameters(dtype=torch.float64):
    return [
        parameter(normal(4, 3, seed=12, dtype=dtype)),
        parameter(normal(2, seed=13, dtype=dtype)),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mean_returns_bit_for_bit(dtype):
    weights = two_parameters(dtype)
    before, places = [p.detach().clone() for p in weights], [p.data_ptr() for p in weights]
    optimizer = IVON(weights, lr=0.1, ess=3.0)
    generator = seeded(14)
    for _ in range(20):
        with optimizer.sampled_params(generator):
            assert not any(torch.equal(*pair) for pair in zip(weights, before, strict=True))
            half_square(weights).backward()
        assert all(torch.equal(*pair) for pair in zip(weights, before, strict=True))
    assert [p.data_ptr() for p in weights] == places
    assert all(p.requires_grad and p.grad is None for p in weights)


def failing_sample(optimizer, generator, weights):
    with optimizer.sampled_params(generator):
        (1e3 * half_square(weights)).backward()
        raise ArithmeticError


def test_a_sample_that_fails_does_not_count():
    """Weights and gradients are as before it, and the next step is the one without it."""
    results = []
    for fails in (False, True):
        weights = two_parameters()
        before = copy.deepcopy(weights)
        optimizer = IVON(weights, lr=0.1, ess=3.0, beta2=0.9)
        generator = seeded(15)
        if fails:
            with pytest.raises(ArithmeticError):
                failing_sample(optimizer, generator, weights)
            assert all(torch.equal(*pair) for pair in zip(weights, before, strict=True))
            assert all(p.grad is None for p in weights)
            with pytest.raises(RuntimeError, match="no sample"):
                optimizer.step()
        sampled_step(optimizer, seeded(16), lambda w=weights: half_square(w), n_samples=2)
        results.append(weights)
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_gradients_from_outside_do_not_count():
    results = []
    for stray in (False, True):
        weights = two_parameters()
        optimizer = IVON(weights, lr=0.1, ess=3.0)
        generator = seeded(17)
        for _ in range(2):
            if stray:
                half_square(weights).backward()
            with optimizer.sampled_params(generator):
                assert all(p.grad is None for p in weights)
                half_square(weights).backward()
        if stray:
            half_square(weights).backward()
        optimizer.step()
        results.append(weights)
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_samples_have_the_mean_and_standard_deviation_of_the_posterior():
    """For n = 20000 weights: at most 4 standard errors, σ/√n of the mean and σ/√(2n) of σ."""
    n, ess, hessian, decay = 20_000, 5.0, 2.0, 0.5
    weights = parameter(torch.full((n,), 0.7, dtype=torch.float64))
    optimizer = IVON([weights], 0.1, ess, hessian, weight_decay=decay)
    std = 1 / math.sqrt(ess * (hessian + decay))
    assert optimizer.posterior_std()[0].unique().item() == pytest.approx(std, rel=1e-14)
    with optimizer.sampled_params(seeded(18)):
        sample = weights.detach().clone()
    assert abs(sample.mean() - 0.7) < 4 * std / math.sqrt(n)
    assert abs(sample.std() - std) < 4 * std / math.sqrt(2 * n)


def trajectory(seed, dtype=torch.float64):
    weights = two_parameters(dtype)
    optimizer = IVON(weights, lr=0.1, ess=10.0, beta2=0.9)
    generator = seeded(seed)
    for _ in range(4):
        sampled_step(optimizer, generator, lambda: quartic(weights[0], 1.0) + half_square(weights))
    return torch.cat([p.detach().flatten() for p in weights])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_generator_decides_alone(dtype):
    state = torch.random.get_rng_state()
    first = trajectory(19, dtype)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(1)
    assert torch.equal(trajectory(19, dtype), first)
    assert not torch.equal(trajectory(20, dtype), first)
    assert first.dtype == dtype


@pytest.mark.gpu
def test_a_generator_on_the_cpu_gives_the_same_noise_on_the_gpu():
    samples = []
    for device in ("cpu", "cuda"):
        weights = parameter(torch.zeros(100, device=device))
        optimizer = IVON([weights], lr=0.1, ess=4.0, weight_decay=0.0)
        with optimizer.sampled_params(seeded(21)):
            samples.append(weights.detach().cpu().clone())
            half_square([weights]).backward()
        optimizer.step()
        assert optimizer.posterior_std()[0].device == weights.device
    torch.testing.assert_close(*samples, rtol=1e-6, atol=0)


def test_a_parameter_outside_the_loss_has_gradient_zero():
    """Its g is 0 and ĥ = 0: h decays by (3), m by the prior alone."""
    used, unused = two_parameters()
    start = unused.detach().clone()
    optimizer = IVON([used, unused], 0.1, 3.0, 2.0, beta2=0.9, weight_decay=0.5)
    sampled_step(optimizer, seeded(22), lambda: half_square([used]))
    h = 0.9 * 2.0 + 0.5 * 0.1**2 * 2.0**2 / 2.5
    expected = start - 0.1 * 0.5 * start / (h + 0.5)
    torch.testing.assert_close(unused.detach(), expected, rtol=1e-14, atol=0)
    std = optimizer.posterior_std()[1]
    assert std.unique().item() == pytest.approx(1 / math.sqrt(3 * (h + 0.5)), rel=1e-14)


def test_modules_see_the_sample_and_forces_train():
    """Loss on -∂E/∂x, with its double backward; gradients as in a second module that holds θ."""
    layers = [nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)]
    model = nn.Sequential(*layers).double()
    for index, p in enumerate(model.parameters()):
        p.data.copy_(normal(*p.shape, seed=23 + index))
    places, target = normal(5, 2, seed=27), normal(5, 2, seed=28)

    def force_loss(module):
        x = places.clone().requires_grad_()
        (slope,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
        return (-slope - target).square().mean()

    optimizer = IVON(model.parameters(), lr=0.05, ess=1e4, beta2=0.99)
    generator = seeded(29)
    before = force_loss(model).item()
    with optimizer.sampled_params(generator):
        force_loss(model).backward()
        other = copy.deepcopy(model)
        other.zero_grad()
        force_loss(other).backward()
        pairs = list(zip(model.parameters(), other.parameters(), strict=True))
        assert other[0].weight.grad.abs().max() > 0
        for p, q in pairs[:-1]:
            assert torch.equal(p.grad, q.grad)
        assert pairs[-1][0].grad is None  # forces do not see the last bias
    optimizer.step()
    for _ in range(200):
        sampled_step(optimizer, generator, lambda: force_loss(model))
    assert force_loss(model).item() < 0.5 * before


# --- state


def test_resumed_runs_are_the_same_bit_for_bit(tmp_path):
    """Stop after any of 6 steps; a new optimiser with other numbers takes all from the file."""
    n_steps, path = 6, tmp_path / "state.pt"

    def advance(weights, optimizer, generator, steps):
        for step in steps:
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
            sampled_step(optimizer, generator, lambda: quartic(weights[0], 1.0), n_samples=2)

    for stop in range(n_steps + 1):
        weights, generator = two_parameters(), seeded(30)
        optimizer = IVON(weights, 0.1, 10.0, 0.5, 0.8, 0.9, 0.2, None)
        advance(weights, optimizer, generator, range(stop))
        torch.save([optimizer.state_dict(), weights, generator.get_state()], path)
        advance(weights, optimizer, generator, range(stop, n_steps))

        state, resumed, noise = torch.load(path, weights_only=True)
        second = IVON(resumed, 0.7, 1.0)
        with second.sampled_params(seeded(31)):  # waits for a step, which will not come
            half_square(resumed).backward()
        second.load_state_dict(state)
        generator = seeded(32)
        generator.set_state(noise)
        advance(resumed, second, generator, range(stop, n_steps))
        assert all(torch.equal(*pair) for pair in zip(weights, resumed, strict=True))
        stds = zip(optimizer.posterior_std(), second.posterior_std(), strict=True)
        assert all(torch.equal(*pair) for pair in stds)


def test_processes_with_halves_of_a_batch_stay_the_same():
    """Two of them, with noise of their own, sum what one pass by hand averages with weights ½."""
    start, hessian = normal(4, seed=33), normal(4, seed=34).abs() + 0.5
    scales = (0.6, 2.2)  # the loss of each half of the batch
    barrier, board, n_calls = Barrier(2), [[], []], [0, 0]

    def train(rank):
        weights = parameter(start)
        optimizer = IVON([weights], 0.1, 20.0, [hessian], 0.8, 0.9, 0.3)

        def reduce(tensors):
            n_calls[rank] += 1
            board[rank] = [tensor.clone() for tensor in tensors]
            barrier.wait(timeout=10)
            for tensor, *parts in zip(tensors, *board, strict=True):
                tensor.copy_(sum(parts))
            barrier.wait(timeout=10)

        generator = seeded(35 + rank)
        for _ in range(3):
            with optimizer.sampled_params(generator):
                (0.5 * quartic(weights, scales[rank])).backward()
            optimizer.step(reduce)
        return weights.detach(), optimizer.posterior_std()[0]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(train, range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    assert n_calls == [3, 3]

    hand = ByHand(start.numpy(), 1.0, 0.1, 20.0, hessian.numpy(), 0.8, 0.9, 0.3, math.inf)
    generators = [seeded(35), seeded(36)]
    for _ in range(3):
        total = np.zeros((2, 4))
        for scale, generator in zip(scales, generators, strict=True):
            noise = torch.randn(4, generator=generator, dtype=torch.float64).numpy()
            hand.scale = scale
            total += 0.5 * np.stack(hand.sample(noise))
        hand.step(*total)
    np.testing.assert_allclose(first[0], hand.m, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(first[1], hand.std, rtol=1e-12, atol=0)


# --- positive precision


@settings(deadline=None)
@given(
    slopes=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8),
    beta2=st.floats(0.0, 0.9999),
    decay=st.floats(0.0, 10.0),
    hessian=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_precision_stays_positive(slopes, beta2, decay, hessian, seed, dtype):
    """For any gradients it falls by at most one half in a step."""
    weights = parameter(torch.zeros(3, dtype=dtype))
    optimizer = IVON([weights], 1e-3, 100.0, hessian, 0.9, beta2, decay)
    generator = seeded(seed)
    before = optimizer.posterior_std()[0]
    for slope in slopes:
        sampled_step(optimizer, generator, lambda slope=slope: (slope * weights).sum())
        after = optimizer.posterior_std()[0]
        assert after.isfinite().all()
        assert (after > 0).all()
        rounding = 10 * torch.finfo(dtype).eps
        assert (after <= math.sqrt(2) * before * (1 + rounding)).all()
        before = after


def test_the_worst_gradients_halve_the_precision():
    """For β₂ = 0, ĥ = -δ is u = -1. f falls to the rounding of ĥ + δ in float32, with h < 0."""
    weights = parameter(torch.zeros(1))
    optimizer = IVON([weights], 0.0, 1.0, 0.5, 0.0, 0.0, 1.0)
    f = 1.5
    for step in range(60):
        with optimizer.sampled_params(seeded(37)):
            (-1.0 / (f * weights.detach()) * weights).sum().backward()
        optimizer.step()
        before, f = f, optimizer.posterior_std()[0].item() ** -2
        assert f >= 0.5 * before * (1 - 1e-6)
        assert step >= 10 or f == pytest.approx(0.5 * before, rel=1e-5)


# --- bad input


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("lr", -0.1, "at least 0"),
        ("lr", math.inf, "finite"),
        ("ess", 0.0, "above 0"),
        ("ess", math.nan, "above 0"),
        ("beta1", 1.0, r"in \[0, 1\)"),
        ("beta1", -0.1, r"in \[0, 1\)"),
        ("beta2", 1.0, r"in \[0, 1\)"),
        ("weight_decay", -1e-4, "at least 0"),
        ("clip_radius", 0.0, "above 0"),
        ("hess_init", 0.0, "above 0"),
        ("hess_init", math.inf, "finite"),
        ("hess_init", [torch.ones(4, 3), torch.tensor([1.0, -2.0])], "above 0"),
    ],
)
def test_numbers_outside_their_range(name, value, allowed):
    shown = -2.0 if isinstance(value, list) else value
    with pytest.raises(ValueError, match=rf"{name} .*{shown}.* must be .*{allowed}"):
        IVON(two_parameters(), **{"lr": 0.1, "ess": 10.0, name: value})


def test_numbers_of_a_group_are_checked():
    with pytest.raises(ValueError, match="weight_decay is -1"):
        IVON([{"params": two_parameters(), "weight_decay": -1}], lr=0.1, ess=10.0)


@pytest.mark.parametrize("hessians", [[torch.ones(4, 3)], [torch.ones(4, 3), torch.ones(3)]])
def test_hessians_of_other_shapes(hessians):
    with pytest.raises(ValueError, match=r"hess_init has shapes .*\(4, 3\), \(2,\)"):
        IVON(two_parameters(), 0.1, 10.0, hessians)


def test_initial_hessians_are_copied():
    hessians = [torch.ones(4, 3), torch.ones(2)]
    weights = two_parameters()
    optimizer = IVON(weights, 0.1, 10.0, hessians)
    sampled_step(optimizer, seeded(38), lambda: half_square(weights))
    assert all(h.unique().tolist() == [1.0] for h in hessians)
    assert {std.dtype for std in optimizer.posterior_std()} == {torch.float64}


def test_order_of_calls():
    weights = two_parameters()
    optimizer = IVON(weights, lr=0.1, ess=10.0)
    stored, generator = copy.deepcopy(optimizer.state_dict()), seeded(39)
    with pytest.raises(RuntimeError, match="no sample since the last step"):
        optimizer.step()
    with optimizer.sampled_params(generator):
        for name, call in {
            "sampled_params": lambda: optimizer.sampled_params(generator).__enter__(),
            "step": optimizer.step,
            "state_dict": optimizer.state_dict,
            "load_state_dict": lambda: optimizer.load_state_dict(stored),
        }.items():
            with pytest.raises(RuntimeError, match=rf"{name}\(\) inside of sampled_params"):
                call()
    with pytest.raises(RuntimeError, match=r"call step\(\) before"):
        optimizer.state_dict()
    optimizer.step()
    with pytest.raises(RuntimeError, match="no sample since the last step"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="make a new IVON"):
        optimizer.add_param_group({"params": two_parameters()})
