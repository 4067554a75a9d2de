"""Settings of the posteriors: one frozen dataclass per kind, chosen by its `kind`.

Part of `config`, in a module of its own for length. This module is free of torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from ase_bayesmlip.config.strict import Rule


@dataclass(frozen=True)
class EnsembleConfig:
    """Deep ensemble.

    Attributes
    ----------
    members : int
        Independently trained potentials.
    bootstrap : bool
        Train each member on a resampled training set.
    folds : int or None
        Divide the training frames into so many folds and train member j without fold j mod folds,
        so that thresholds of a monitor need no other frames (`md.limit`). `members` is twice the
        number of folds or another multiple. What all members share, such as fitted reference
        energies, then comes from the validation frames, which are in no fold.
    """

    kind: Literal["ensemble"] = "ensemble"
    members: int = 4
    bootstrap: bool = False
    folds: int | None = None


@dataclass(frozen=True)
class PointConfig:
    """A single potential."""

    kind: Literal["point"] = "point"


@dataclass(frozen=True)
class SWAGConfig:
    """Gaussian of the weights that training visits at a constant learning rate.

    It follows the ordinary training, so `training.epochs` is the epoch from which snapshots are
    taken.

    Attributes
    ----------
    members : int
        More than one is MultiSWAG, a mixture over potentials trained from different seeds.
    start_from : path or None
        Run whose members are the start, in the place of training.
    epochs : int
        Epochs at the constant rate.
    learning_rate : float
    snapshot_every : int
        Epochs from one snapshot to the next.
    rank : int
        Snapshots whose deviations from the running mean are kept, for ``diagonal: false``.
    scale : float
        Factor of the covariance; the paper's samples have one half.
    diagonal : bool
        Leave out the deviations: they are mostly the noise of the optimiser along stiff directions
        (docs/benchmarks.md).
    samples : int
        Draws that are served, unless `bayesmlip serve` asks for another number.
    """

    kind: Literal["swag"] = "swag"
    members: int = 1
    start_from: str | None = None
    epochs: int = 40
    learning_rate: float = 0.002
    snapshot_every: int = 1
    rank: int = 20
    scale: float = 1.0
    diagonal: bool = True
    samples: int = 8


@dataclass(frozen=True)
class IVONConfig:
    """Variational diagonal Gaussian of the weights, found by the optimiser IVON.

    It follows the ordinary training, whose weights are the start.

    Attributes
    ----------
    members : int
        More than one is a mixture over seeds.
    start_from : path or None
        Run whose members are the start, in the place of training.
    epochs : int
    learning_rate : float
        At the start of a cosine to zero.
    weights : "all" or "readouts"
        Every weight, or those of the readouts with the others as they were trained.
    beta1 : float in [0, 1)
        Decay of the average of the gradient.
    beta2 : float in [0, 1) or None
        Decay of the average of the Hessian; None fits its memory, 1/(1 - beta2) steps, five times
        into the run, so that little is left of the start, but is 100 steps or more.
    hess_init : float or None
        Curvature at the start; None estimates it from the data.
    weight_decay : float
        δ: the prior's precision divided by the effective sample size.
    effective_sample_size : float or None
        λ; None is the number of training structures, which makes the target the posterior. Where
        weights far outnumber labels its variances spoil the potential (docs/benchmarks.md); a
        larger λ, a colder posterior, keeps it accurate.
    train_samples : int
        Draws of the weights per step.
    clip_radius : float
        Largest change of a weight in a step, in units of the learning rate.
    samples : int
        Draws that are served, unless `bayesmlip serve` asks for another number.
    """

    kind: Literal["ivon"] = "ivon"
    members: int = 1
    start_from: str | None = None
    epochs: int = 40
    learning_rate: float = 0.01
    weights: Literal["all", "readouts"] = "all"
    beta1: float = 0.9
    beta2: float | None = None
    hess_init: float | None = None
    weight_decay: float = 1e-4
    effective_sample_size: float | None = None
    train_samples: int = 1
    clip_radius: float = 1.0
    samples: int = 8


@dataclass(frozen=True)
class LaplaceConfig:
    """Gaussian of the weights from the curvature of the likelihood at trained weights.

    Attributes
    ----------
    members : int
        More than one is a mixture: the Laplace approximation inside each member of an ensemble.
    start_from : path or None
        Run whose members it is made for, in the place of training.
    weights : "last_layer" or "all"
        The readout of the energy with its full curvature, or every weight with the diagonal.
    by_element : bool
        With ``weights: last_layer``: each element has readout weights of its own, with the trained
        ones as their mean. False is one set of weights, as in files of before.
    prior : "marginal_likelihood", "validation" or float
        Precision τ of the prior: the most probable one, the best one for the validation frames,
        or a number.
    probes : int
        With ``weights: all``: random vectors per structure that estimate the diagonal; 0 computes
        it exactly, at 1 + 3 n_atoms derivatives per structure.
    samples : int
        Draws that are served, unless `bayesmlip serve` asks for another number.
    """

    kind: Literal["laplace"] = "laplace"
    members: int = 1
    start_from: str | None = None
    weights: Literal["last_layer", "all"] = "last_layer"
    by_element: bool = True
    prior: Literal["marginal_likelihood", "validation"] | float = "marginal_likelihood"
    probes: int = 8
    samples: int = 8


@dataclass(frozen=True)
class EvidentialConfig:
    """One network that gives the law of its own errors (``loss.kind: evidential`` or ``eip``).

    Attributes
    ----------
    members : int
        More than one is a mixture of such networks from different seeds.
    start_from : path or None
        Run, with ``loss.kind: mse`` or this one's, whose potentials are the start in the place of
        a warm-up.
    features : "frozen" or "trained"
        With `start_from`: fit the head alone, which leaves energies and forces as they are to the
        last bit, or train everything on.
    """

    kind: Literal["evidential"] = "evidential"
    members: int = 1
    start_from: str | None = None
    features: Literal["frozen", "trained"] = "frozen"


PosteriorConfig = (
    EnsembleConfig | PointConfig | SWAGConfig | IVONConfig | LaplaceConfig | EvidentialConfig
)


def posterior_rules(config: PosteriorConfig) -> list[Rule]:
    """What the values must satisfy, for those settings that the kind has."""
    at_least_1 = ("members", "epochs", "snapshot_every", "train_samples")
    positive = ("learning_rate", "scale", "hess_init", "effective_sample_size", "clip_radius")
    rules: list[Rule] = []

    def add(name: str, valid: Any, allowed: str) -> None:
        value = getattr(config, name, None)
        if value is not None and not isinstance(value, str):
            rules.append((f"posterior.{name}", value, valid(value), allowed))

    for name in at_least_1:
        add(name, lambda value: value >= 1, "at least 1")
    for name in ("rank", "samples"):
        add(name, lambda value: value >= 2, "at least 2")
    for name in (*positive, "prior"):
        add(name, lambda value: 0 < value < math.inf, "positive and finite")
    add("folds", lambda value: value >= 2, "at least 2")
    if isinstance(config, EnsembleConfig) and (config.folds or 0) > 1:
        members, no_bootstrap = config.members, not config.bootstrap
        pairs = "a divisor of posterior.members, half of them at most, and without bootstrap"
        add("folds", lambda k: members % k == 0 and members >= 2 * k and no_bootstrap, pairs)
    for name in ("beta1", "beta2"):
        add(name, lambda value: 0 <= value < 1, "in [0, 1)")
    for name in ("weight_decay", "probes"):
        add(name, lambda value: 0 <= value < math.inf, "finite and not negative")
    return rules
