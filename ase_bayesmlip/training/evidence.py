"""Evidence of a trained e²IP potential in mode "leverage": fitted at the end, not trained."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ase_bayesmlip.nn.evidential.head import Evidence
from ase_bayesmlip.nn.evidential.law import scale_distance
from ase_bayesmlip.nn.evidential.leverage import LeverageEvidence
from ase_bayesmlip.nn.leverage import invariant_starts, invariants, leverage_at_home
from ase_bayesmlip.nn.potential import Potential
from ase_bayesmlip.training.data import GraphDataset
from ase_bayesmlip.training.evidential_loss import likely_force_factor
from ase_bayesmlip.training.outputs import evaluate

GIVEN = "head.given."
BATCH_SIZE = 32

# τ and g of κ = 1/(τ hᵍ): frames at home say little of either, so that they have bounds.
SCALES = tuple(float(x) for x in torch.logspace(-1, 1, 9))
EXPONENTS = (0.5, 0.75, 1.0)


def fit_evidence(
    potential: Potential, train: GraphDataset, valid: GraphDataset
) -> dict[str, Tensor]:
    """Fit the leverage to the training frames and its tempering to the validation frames.

    Returns
    -------
    dict of str to Tensor
        What is new in the state of the potential, and is put into it; empty in other modes.
    """
    given = getattr(getattr(potential, "head", None), "given", None)
    if not isinstance(given, LeverageEvidence):
        return {}
    found = leverage_at_home(potential, (graph for graph, _ in train.items))
    given.leverage.centre.copy_(found.centre)
    given.leverage.factor.copy_(found.factor)
    tau, exponent = most_likely_temper(*_observed(potential, given, valid))
    given.temper[0], given.temper[1] = tau, exponent
    return {GIVEN + name: value.clone() for name, value in given.state_dict().items()}


def most_likely_temper(distance: Tensor, dof: Tensor, leverage: Tensor) -> tuple[float, float]:
    """τ and g whose Student-t laws, of the best common size, suit the errors best.

    Parameters
    ----------
    distance, dof, leverage : Tensor of float64, (n,)
        M = rᵀ Σ₀⁻¹ r, ν and h of validation atoms.
    """
    best, chosen = float("inf"), (1.0, 1.0)
    for tau, exponent in itertools.product(SCALES, EXPONENTS):
        spread = dof * (1.0 + tau * leverage**exponent)
        size = spread * likely_force_factor(distance, dof, spread)
        nll = 1.5 * torch.log(size) + 0.5 * (dof + 1.0) * torch.log1p(distance / size)
        if float(nll.mean()) < best:
            best, chosen = float(nll.mean()), (tau, exponent)
    return chosen


def _observed(
    potential: Potential, given: LeverageEvidence, valid: GraphDataset
) -> tuple[Tensor, Tensor, Tensor]:
    """What `most_likely_temper` takes, of the validation frames."""
    starts, columns = invariant_starts(potential), []
    for graph, labels in valid.batches(range(len(valid)), BATCH_SIZE):
        outputs = evaluate(potential, graph, False, create_graph=False)
        law = outputs.evidence
        assert isinstance(law, Evidence)
        with torch.no_grad():
            strata = potential.strata(graph)
            h = given.leverage(invariants(strata.features, starts), strata.species)
            residual = labels.forces - outputs.forces
            distance = scale_distance(residual, law.niw, law.unit_squared)
            columns.append(torch.stack([distance, law.niw.dof, h]).double())
    distance, dof, leverage = torch.cat(columns, dim=1)
    return distance, dof, leverage
