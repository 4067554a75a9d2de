"""How far the surroundings of an atom are from those of the training: leverage of its features.

x_i are the invariant features of an atom from all layers, less their mean over the n training
atoms of its element, and X those of these atoms. The leverage

    h_i = x_iᵀ (XᵀX/n + λ)⁻¹ x_i / n

is the variance of a linear model of the features at x_i in units of its noise: 1/h_i observations
are worth as much. Over the training atoms it averages to the number of features over n. No label,
no derivative and no training is needed.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ase_bayesmlip.graph import AtomicGraph
from ase_bayesmlip.nn.last_layer import LastLayerPotential
from ase_bayesmlip.nn.potential import Potential

# λ in units of the mean variance of a feature over the training atoms. Of 1e-8 to 0.1, the smaller
# the better it tells 600 K from 300 K (AUROC 0.831 to 0.77); float32 allows 1e-5 (0.830).
RIDGE = 1e-5


class Leverage(nn.Module):
    """Leverage of atoms by their element.

    Parameters
    ----------
    centre : Tensor, (n_species, p)
    factor : Tensor, (n_species, p, p)
        W with h = |x W|².
    """

    centre: Tensor
    factor: Tensor

    def __init__(self, centre: Tensor, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer("centre", centre)
        self.register_buffer("factor", factor)

    def forward(self, features: Tensor, species: Tensor) -> Tensor:
        """h, (n,), of features (n, p) and one-hot species (n, n_species)."""
        whitened = self.whitened(features, species)
        return (whitened * whitened).sum(dim=1)

    def whitened(self, features: Tensor, species: Tensor) -> Tensor:
        """(n, p): the squared length is the leverage."""
        centred = features - species @ self.centre
        by_element = torch.einsum("np,spq->nsq", centred, self.factor)
        return (by_element * species.unsqueeze(2)).sum(dim=1)


def fit_leverage(features: Tensor, species: Tensor) -> Leverage:
    """Leverage from the features of training atoms, (n, p), and their one-hot species.

    λ is relative to the variance of features within elements, so that directions that no atom has
    taken count strongly but finitely. An element without atoms has the centre of all and no
    direction that is known.
    """
    features, species = features.to(torch.float64), species.to(torch.float64)
    counts = species.sum(dim=0).clamp(min=1.0)
    centre = species.T @ features / counts.unsqueeze(1)
    centre = torch.where(species.any(dim=0).unsqueeze(1), centre, features.mean(dim=0))
    centred = features - species @ centre
    ridge = RIDGE * float(centred.square().mean())
    if ridge == 0.0:  # all atoms of an element alike, as in a perfect crystal
        ridge = RIDGE * float(features.square().mean()) or 1.0
    factors = []
    for of_element, n in zip(species.T, counts, strict=True):
        x = centred[of_element > 0.0]
        values, vectors = torch.linalg.eigh(x.T @ x / n)
        factors.append(vectors / torch.sqrt((values.clamp(min=0.0) + ridge) * n))
    return Leverage(centre, torch.stack(factors))


def invariants(features: list[Tensor], starts: list[int]) -> Tensor:
    """Invariant features of all layers side by side, (n, p); `starts` are their components."""
    return torch.cat([x[:, start] for x, start in zip(features, starts)], dim=1)  # noqa: B905 (TorchScript)


def invariant_starts(potential: Potential) -> list[int]:
    """Component of the invariants in the features after each layer."""
    return [int(readout.scalar_component) for readout in potential.readouts]  # type: ignore[arg-type]


def leverage_at_home(
    potential: Potential | LastLayerPotential, graphs: Iterable[AtomicGraph]
) -> Leverage:
    """Leverage with the features that a potential has of the training structures."""
    network = potential.potential if isinstance(potential, LastLayerPotential) else potential
    starts, features, species = invariant_starts(network), [], []
    with torch.no_grad():
        for graph in graphs:
            strata = network.strata(graph)
            features.append(invariants(strata.features, starts))
            species.append(strata.species)
    return fit_leverage(torch.cat(features), torch.cat(species))
