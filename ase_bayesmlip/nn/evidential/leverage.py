"""Evidence that needs no training: as many observations as the leverage of the features allows.

κ_i = min(κ_cap, 1/(τ h_iᵍ)), h_i the leverage of the invariant features of an atom among those of
the training atoms of its element (`nn.leverage`). τ and g temper it, for 1/h alone overshoots on
broken bonds; they are fitted to validation frames. Before there is a leverage κ is κ_cap.
"""

import torch
from torch import Tensor, nn

from ase_bayesmlip.nn.leverage import Leverage

EVIDENCE_CAP = 1e4


class LeverageEvidence(nn.Module):
    """Invariant features to κ.

    Parameters
    ----------
    n_species, n_features : int

    Attributes
    ----------
    temper : Tensor, (2,)
        τ and g.
    """

    temper: Tensor

    def __init__(self, n_species: int, n_features: int) -> None:
        super().__init__()
        shape = (n_species, n_features, n_features)
        none = torch.zeros(shape, dtype=torch.float64)
        self.leverage = Leverage(none[:, 0].clone(), none)
        self.register_buffer("temper", torch.ones(2, dtype=torch.float64))
        self.least = 1.0 / EVIDENCE_CAP

    def forward(self, features: Tensor, species: Tensor) -> Tensor:
        """κ, (n,), of features (n, p) and one-hot species (n, n_species)."""
        h = self.leverage(features.detach(), species)
        return 1.0 / torch.clamp(self.temper[0] * h.pow(self.temper[1]), min=self.least)
