"""Settings of the loss.

Part of `config`, in a module of its own for length. This module is free of torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from ase_bayesmlip.config.strict import Rule

# What gives the law of a force error from one network, see `nn.evidential`.
EVIDENTIAL_LOSSES = ("evidential", "eip")

# Losses whose force term is a mean over structures of a mean over their atoms; that of the others
# is a mean over all atoms of a batch.
FORCES_BY_STRUCTURE = ("nll_jef", "evidential")


@dataclass(frozen=True)
class EvidenceConfig:
    """How an evidential potential divides its uncertainty, and what its evidence costs.

    Attributes
    ----------
    mode : "leverage", "coupled" or "paper"
        κ from the leverage of features, tempered on validation frames (`nn.evidential.leverage`),
        κ = ν/ratio (after arXiv 2104.06135), or κ free with a penalty on evidence (arXiv
        2602.10419). The likelihood determines neither of the last two: the division is a
        convention.
    ratio : float
        r of the coupling.
    weight : float or None
        λ of the penalty λ (ν + κ) |r|²/σ_F², σ_F the force error after the warm-up. None is 0 but
        in mode "paper", where it is the λ = 0.1 (eV/Å)⁻² that goes with forces in eV/Å.
        In ``kind: eip`` it is the weight of that method's own penalty, for None 0.1.
    stop_residual : bool
        Whether the penalty acts on the evidence alone and does not pull on the forces.
    quantile : float
        q of ``kind: eip``.
    """

    mode: Literal["leverage", "coupled", "paper"] = "leverage"
    ratio: float = 5.0
    weight: float | None = None
    stop_residual: bool = False
    quantile: float = 0.5

    @property
    def coupling(self) -> float | None:
        """r, 0 where κ is free, or None where it comes from the leverage."""
        return {"leverage": None, "coupled": self.ratio, "paper": 0.0}[self.mode]


@dataclass(frozen=True)
class LossConfig:
    """What training minimises; every weight multiplies a whole term.

    Attributes
    ----------
    kind : "nll_jef", "nll_e", "mse", "evidential" or "eip"
        Joint energy-force likelihood, energy likelihood with squared force error, squared errors,
        Student-t likelihood of evidential forces (e²IP, arXiv 2602.10419), or that of the
        component-wise baseline eIP.
    warmup : "mse" or "huber"
        Loss of the epochs before the likelihood; with ``kind: mse`` of all epochs.
    warmup_fraction : float in [0, 1]
        Share of the epochs that is warm-up.
    energy_weight, forces_weight, stress_weight : float
    beta : float in [0, 1]
        Exponent of β-NLL (arXiv 2203.09168); 0 is the plain likelihood.
    huber_delta : float
        Where the Huber loss turns from quadratic to linear, in units of the training force RMS
        (times 1 Å for ΔE/√n).
    evidence : EvidenceConfig
        Settings of ``kind: evidential`` and ``eip``.
    """

    kind: Literal["nll_jef", "nll_e", "mse", "evidential", "eip"] = "nll_jef"
    warmup: Literal["mse", "huber"] = "mse"
    warmup_fraction: float = 0.7
    energy_weight: float = 1.0
    forces_weight: float = 10.0
    stress_weight: float = 10.0
    beta: float = 0.5
    huber_delta: float = 0.1
    evidence: EvidenceConfig = field(default_factory=EvidenceConfig)


def loss_rules(loss: LossConfig) -> list[Rule]:
    """What the values must satisfy."""
    evidence = loss.evidence
    rules: list[Rule] = [
        ("loss.beta", loss.beta, 0 <= loss.beta <= 1, "from 0 to 1"),
        ("loss.warmup_fraction", loss.warmup_fraction, 0 <= loss.warmup_fraction <= 1, "0 to 1"),
        ("loss.huber_delta", loss.huber_delta, loss.huber_delta > 0, "positive"),
        ("loss.evidence.ratio", evidence.ratio, 0 < evidence.ratio < math.inf, "positive"),
        ("loss.evidence.quantile", evidence.quantile, 0 < evidence.quantile < 1, "in (0, 1)"),
    ]
    for name in ("energy_weight", "forces_weight", "stress_weight"):
        value = getattr(loss, name)
        rules.append((f"loss.{name}", value, value >= 0, "not negative"))
    weight = evidence.weight
    if weight is not None:
        rules.append(("loss.evidence.weight", weight, 0 <= weight < math.inf, "not negative"))
    return rules
