"""Whether a few validation frames carry what the error bars are fitted to.

The χ² of a frame is ΔE²/σ_E² for the energy and Σ_i Δf_iᵀ Σ_i⁻¹ Δf_i for forces. If errors are
Gaussian with the stated variances, the tenth of the frames with the largest χ² carries

    1 - F_3(q) = 44 %  of the sum,    F_1(q) = 0.9,

of energies, because x p_1(x) = p_3(x) for the densities of χ² of 1 and 3 degrees of freedom; and
of forces less, however the errors of a frame are correlated. Two thirds are exceeded by one in 600
sets of 30 frames, and one in 10,000 of 50 (simulated). A rare conformer or a wrong label is another
matter: then the error bars of all other frames are those of a few.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import torch

from ase_bayesmlip.nn.potential import Potential
from ase_bayesmlip.statistics import mahalanobis
from ase_bayesmlip.training.data import GraphDataset
from ase_bayesmlip.training.outputs import evaluate

MIN_FRAMES = 30
MOST = 2.0 / 3.0
BATCH_SIZE = 32
# So many frames are named.
_NAMED = 5


def frame_chi2(potential: Potential, data: GraphDataset) -> dict[str, np.ndarray]:
    """χ² of each frame, (n_frames,), of ``"energies"`` and ``"forces"``, as far as stated."""
    found: dict[str, list[torch.Tensor]] = {"energies": [], "forces": []}
    for graph, labels in data.batches(range(len(data)), BATCH_SIZE):
        outputs = evaluate(potential, graph, stress=False, create_graph=False)
        if outputs.energy_var is not None:
            error = labels.energy - outputs.energy
            found["energies"].append(error**2 / outputs.energy_var)
        if outputs.forces_cov is not None:
            distance = mahalanobis(labels.forces - outputs.forces, outputs.forces_cov)
            zeros = distance.new_zeros(graph.n_graphs)
            found["forces"].append(zeros.index_add(0, graph.batch, distance))
    return {name: torch.cat(x).numpy(force=True) for name, x in found.items() if x}


def carried(chi2: np.ndarray) -> tuple[float, np.ndarray]:
    """Share of the sum that the largest tenth carries, and which frames these are."""
    largest = np.argsort(-chi2)[: math.ceil(len(chi2) / 10)]
    total = float(chi2.sum())
    return (float(chi2[largest].sum()) / total if total > 0.0 else 0.0), largest


def warn_of_few_frames(potential: Potential, data: GraphDataset, folder: Path) -> None:
    """Say so where a tenth of the validation frames carries more than two thirds of their χ²."""
    if len(data) < MIN_FRAMES:
        return
    for name, chi2 in frame_chi2(potential, data).items():
        share, largest = carried(chi2)
        if share > MOST:
            names = ", ".join(data.sources[k] for k in largest[:_NAMED])
            names += ", ..." * (len(largest) > _NAMED)
            warnings.warn(
                f"{folder}: a tenth of the validation frames carries {share:.0%} of the χ² of "
                f"{name}, where Gaussian errors would have 44 % at most: {names}. The error bars "
                "of all frames are those of these few. A structure that is rare in the "
                "training frames, which need more of its kind, or a wrong label, does that",
                stacklevel=3,
            )
