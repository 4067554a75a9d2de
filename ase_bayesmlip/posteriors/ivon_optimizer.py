"""IVON: a diagonal Gaussian over the weights, learned by an optimiser in place of the weights.

The posterior of weights θ given n structures is approximated by q = N(m, diag σ²), which minimises

    λ E_q[L(θ)] + KL(q ‖ N(0, 1/(λδ))),

L the mean loss per structure (a negative log-likelihood), λ the effective number of structures
(n for the posterior, more for a colder one) and δ the weight decay. At the minimum

    E_q[∇L] + δ m = 0,    1/σ² = λ (h + δ),    h = E_q[∇²L] = E_q[∇L(θ) (θ - m)/σ²],

elementwise, where Stein's identity takes the Hessian's diagonal from gradients alone. IVON descends
to it along natural gradients (Shen et al. 2024, arXiv 2402.17641, Algorithm 1). Each step draws
θ = m + σε, ε ~ N(0, 1), and, with averages over the samples of the step,

    ĝ = ∇L(θ),    ĥ = ĝ (θ - m)/σ²                                                      (1)
    g ← β₁ g + (1 - β₁) ĝ,    ḡ = g/(1 - β₁ᵗ)                                           (2)
    h ← β₂ h + (1 - β₂) ĥ + ½ (1 - β₂)² (h - ĥ)²/(h + δ)                                (3)
    m ← m - lr · clip((ḡ + δ m)/(h + δ), ±clip_radius)                                  (4)

The last term of (3) keeps σ real, whatever ĥ (Lin et al. 2020, arXiv 2002.10060): f = h + δ obeys

    f ← f (1 + u + ½ u²),    u = (1 - β₂) (ĥ + δ - f)/f,    1 + u + ½ u² ≥ ½,           (3')

the series of f exp(u). So f > 0, while h itself may fall below zero, down to -δ. The state holds
f, not h: from h + δ, rounding would take the sign. The term also raises the mean of a stationary f
by ½ (1 - β₂) Var(ĥ)/f, of the order of (1 - β₂) f.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "lr": ("finite and at least 0", lambda x: 0.0 <= x < math.inf),
    "ess": ("finite and above 0", lambda x: 0.0 < x < math.inf),
    "beta1": ("in [0, 1)", lambda x: 0.0 <= x < 1.0),
    "beta2": ("in [0, 1)", lambda x: 0.0 <= x < 1.0),
    "weight_decay": ("finite and at least 0", lambda x: 0.0 <= x < math.inf),
    "clip_radius": ("above 0, or None", lambda x: x > 0.0),
}


class IVON(Optimizer):
    """Mean and standard deviation of every weight, from gradients at weights drawn from them.

    A step is ``with optimizer.sampled_params(generator): loss(...).backward()``, once or more,
    and then ``optimizer.step()``. Outside the block the parameters hold the mean m.

    Parameters
    ----------
    params : iterable of Parameter or of groups
        Weights with a posterior; leave out those that do not train. A group may have its own value
        of every number below but `hess_init`. The groups are fixed from then on; ``group["lr"]``
        may change at any time.
    lr : float
        About the fraction of a Newton step.
    ess : float
        Effective number of structures λ.
    hess_init : float or sequence of Tensor
        Initial h, positive; the tensors, in the parameters' order, have their shapes.
    beta1, beta2 : float
        Memory of the gradient and of the Hessian, in [0, 1).
    weight_decay : float
        δ, the precision of the prior divided by λ.
    clip_radius : float, optional
        Largest change of a weight, in units of lr; by default without limit.

    Raises
    ------
    ValueError
        If a number is outside its range, or `hess_init` does not fit the parameters.
    """

    # Of every parameter ĝ, then of every parameter ĥ, summed over the samples since the last step.
    _sums: tuple[Tensor, ...] = ()
    _n_samples = 0
    _sampling = False

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        ess: float,
        hess_init: float | Sequence[Tensor] = 1.0,
        beta1: float = 0.9,
        beta2: float = 0.9999,
        weight_decay: float = 1e-4,
        clip_radius: float | None = math.inf,
    ) -> None:
        numbers = {
            "lr": lr,
            "ess": ess,
            "beta1": beta1,
            "beta2": beta2,
            "weight_decay": weight_decay,
            "clip_radius": clip_radius,
        }
        super().__init__(params, numbers)
        members = self._members()
        hessians = _initial_hessians(hess_init, [parameter for parameter, _ in members])
        for (parameter, group), hessian in zip(members, hessians, strict=True):
            self.state[parameter] = {
                "step": torch.zeros(()),  # on the CPU, as in Adam: reading it must not wait
                "gradient": torch.zeros_like(parameter),
                "precision": hessian + group["weight_decay"],
            }

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Check a group; only the constructor adds them, because each weight needs an h."""
        if self.state:
            raise RuntimeError("the posterior has all its parameters; make a new IVON for others")
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if group["clip_radius"] is None:
            group["clip_radius"] = math.inf
        for name, (allowed, holds) in _RANGES.items():
            if not holds(group[name]):
                raise ValueError(f"{name} is {group[name]}; it must be {allowed}")

    @contextmanager
    def sampled_params(self, generator: torch.Generator) -> Iterator[None]:
        """Weights drawn from the posterior for the length of a `with` block.

        The gradients that the block leaves in ``.grad`` count for the next step, none as zero,
        unless the block raises. Afterwards the weights are the mean again, bit for bit, and every
        ``.grad`` is None, as it is at the start.

        Parameters
        ----------
        generator : torch.Generator
            Source of ε, on any device: one on the CPU gives the same ε to a potential anywhere.
        """
        self._require_mean("sampled_params")
        means = [parameter.detach().clone() for parameter, _ in self._members()]
        self.zero_grad()
        self._sampling = True
        try:
            self._perturb(generator)
            yield
            self._count_sample(means)
        finally:
            with torch.no_grad():
                for (parameter, _), mean in zip(self._members(), means, strict=True):
                    parameter.copy_(mean)
            self.zero_grad()
            self._sampling = False

    @torch.no_grad()
    def step(self, reduce: Callable[[list[Tensor]], None] | None = None) -> None:  # type: ignore[override]
        """Move m and σ by the samples since the last step, eqs (2) to (4).

        Parameters
        ----------
        reduce : function, optional
            Sums tensors in place over processes, each with samples of its own and a loss weighted
            by its share of the batch. Called once, with ĝ and ĥ of all parameters.

        Raises
        ------
        RuntimeError
            Without a sample since the last step, or inside of `sampled_params`.
        """
        self._require_mean("step")
        if self._n_samples == 0:
            raise RuntimeError(
                "no sample since the last step; compute the loss and its gradients in "
                "`with optimizer.sampled_params(generator):` before step()"
            )
        averages = [total / self._n_samples for total in self._sums]
        if reduce is not None:
            reduce(averages)
        members = self._members()
        gradients, hessians = averages[: len(members)], averages[len(members) :]
        for (parameter, group), *estimates in zip(members, gradients, hessians, strict=True):
            _update(parameter, self.state[parameter], group, *estimates)
        self._forget_samples()

    def posterior_std(self) -> list[Tensor]:
        """Standard deviation σ of every weight, a tensor for each parameter, in its shape."""
        return [
            (group["ess"] * self.state[parameter]["precision"]).rsqrt()
            for parameter, group in self._members()
        ]

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs besides the weights and the generator.

        Raises
        ------
        RuntimeError
            Between a sample and its step: the sums of samples are not stored.
        """
        self._require_mean("state_dict")
        if self._n_samples > 0:
            raise RuntimeError("samples wait for their step; call step() before state_dict()")
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a stored state; samples that wait for a step are forgotten."""
        self._require_mean("load_state_dict")
        super().load_state_dict(state_dict)
        self._forget_samples()

    def _members(self) -> list[tuple[Tensor, dict[str, Any]]]:
        """Every parameter with its group."""
        return [(p, group) for group in self.param_groups for p in group["params"]]

    def _require_mean(self, method: str) -> None:
        if self._sampling:
            raise RuntimeError(f"{method}() inside of sampled_params(); leave its block first")

    def _forget_samples(self) -> None:
        self._sums, self._n_samples = (), 0

    @torch.no_grad()
    def _perturb(self, generator: torch.Generator) -> None:
        for (parameter, _), std in zip(self._members(), self.posterior_std(), strict=True):
            noise = torch.randn(
                parameter.shape,
                generator=generator,
                device=generator.device,
                dtype=parameter.dtype,
            )
            parameter.addcmul_(std, noise.to(parameter.device))

    @torch.no_grad()
    def _count_sample(self, means: list[Tensor]) -> None:
        """Add ĝ and ĥ of the weights in place, eq. (1)."""
        members = self._members()
        if self._n_samples == 0:
            self._sums = tuple(torch.zeros_like(p) for p, _ in members * 2)
        gradients, hessians = self._sums[: len(members)], self._sums[len(members) :]
        for (parameter, group), mean, gradient, hessian in zip(
            members, means, gradients, hessians, strict=True
        ):
            if parameter.grad is None:
                continue
            # θ - m as it was rounded, which is where the gradient was taken, rather than σε.
            scaled = (parameter - mean) * self.state[parameter]["precision"] * group["ess"]
            gradient += parameter.grad
            hessian += parameter.grad * scaled
        self._n_samples += 1


def _update(
    mean: Tensor, state: dict[str, Tensor], group: dict[str, Any], gradient: Tensor, hessian: Tensor
) -> None:
    """One step of one parameter, in place, from its averages ĝ and ĥ."""
    decay, momentum, precision = group["weight_decay"], state["gradient"], state["precision"]
    state["step"] += 1
    momentum.lerp_(gradient, 1.0 - group["beta1"])  # eq. (2)
    unbiased = momentum / (1.0 - group["beta1"] ** float(state["step"]))
    u = (1.0 - group["beta2"]) * ((hessian + decay) / precision - 1.0)
    precision.addcmul_(precision, u + 0.5 * u.square())  # eq. (3')
    newton = (unbiased + decay * mean) / precision  # eq. (4)
    radius = group["clip_radius"]
    mean.sub_(newton.clamp_(-radius, radius), alpha=group["lr"])


def _initial_hessians(
    hess_init: float | Sequence[Tensor], parameters: list[Tensor]
) -> list[Tensor]:
    """Initial h of every parameter, in its dtype and on its device."""
    if isinstance(hess_init, Sequence):
        hessians = [
            h.detach().to(p, copy=True) for h, p in zip(hess_init, parameters, strict=False)
        ]
        shapes = [tuple(h.shape) for h in hess_init], [tuple(p.shape) for p in parameters]
        if shapes[0] != shapes[1]:
            raise ValueError(f"hess_init has shapes {shapes[0]}; the parameters have {shapes[1]}")
    else:
        hessians = [torch.full_like(p, hess_init) for p in parameters]
    for hessian in hessians:
        bad = hessian[~((hessian > 0.0) & hessian.isfinite())]
        if bad.numel() > 0:
            raise ValueError(f"hess_init holds {bad[0].item()}; it must be finite and above 0")
    return hessians
