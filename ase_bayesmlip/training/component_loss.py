"""The loss of eIP, a baseline: per force component NLL + λ ρ_q(r) (2ν + α + 1/β), and w_E |ΔE|/√n.

See `nn.evidential.components`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ase_bayesmlip.config.loss import LossConfig
from ase_bayesmlip.graph import AtomicGraph
from ase_bayesmlip.nn.evidential.components import ComponentEvidence, eip_nll, eip_regulariser
from ase_bayesmlip.training.data import Labels
from ase_bayesmlip.training.outputs import Outputs

# λ in units of σ_F.
EIP_WEIGHT = 0.1


def component_loss(
    config: LossConfig,
    outputs: Outputs,
    labels: Labels,
    graph: AtomicGraph,  # noqa: ARG001 (as `evidential_loss`)
    unit: float,
) -> Tensor:
    """Loss of a batch without stress, a scalar; arguments as for `loss.loss`."""
    evidence = outputs.evidence
    assert isinstance(evidence, ComponentEvidence)  # the potential was built for this loss
    quantile, weight = config.evidence.quantile, config.evidence.weight
    scaled = (labels.forces - outputs.forces) / torch.sqrt(evidence.unit_squared)
    cost = eip_nll(scaled, evidence.nig, quantile) + (
        EIP_WEIGHT if weight is None else weight
    ) * eip_regulariser(scaled, evidence.nig, quantile)
    energy = (outputs.energy - labels.energy).abs() / (unit * labels.n_atoms.sqrt())
    return config.forces_weight * cost.sum(dim=1).mean() + config.energy_weight * energy.mean()
