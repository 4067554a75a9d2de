"""The noise of a mixture, fitted once for all its members.

Training gives the noise heads of each member the size of that member's own errors. Part of those
is what differs from member to member, which the mixture adds again as spread, and its mean errs
less than a member does: with both, error bars are too wide. So the members stay as they are, and
their variances of energies, and covariances of forces, are multiplied by one factor c each,

    Σ = Σ_spread + c ⟨Σ_noise⟩,

with which the 80 % regions of the validation frames hold 80 % of the labels. Of Gaussian errors
such a quantile knows c as well as the likelihood does from two thirds of the frames; a frame with
large errors would carry the likelihood away, and moves the quantile by one rank. Rare conformers
were an eighth of the frames of one study, too many for a quantile of 90 %.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import chdtri
from torch import Tensor

from ase_bayesmlip.calibration.scaling import components
from ase_bayesmlip.metrics.errors import Errors
from ase_bayesmlip.metrics.laws import PredictiveLaw
from ase_bayesmlip.nn.cholesky import CholeskyNoise
from ase_bayesmlip.nn.evidential.potential import EvidentialPotential
from ase_bayesmlip.nn.last_layer import LastLayerPotential
from ase_bayesmlip.nn.potential import Potential
from ase_bayesmlip.serving.home import BATCH_SIZE, Home
from ase_bayesmlip.serving.served_model import ServedModel
from ase_bayesmlip.training.few_frames import carried

LEVEL = 0.8
MIN_FRAMES = 10
# Of c. What is left of the noise where the spread alone is wide enough keeps matrices invertible.
LEAST, MOST = 1e-2, 1e4


def fit_joint_noise(
    members: Sequence[Potential | LastLayerPotential], home: Home
) -> dict[str, dict[str, float]]:
    """Give the noise of members, in float64, the size that their mixture needs.

    Evidential laws have no noise of their own, and the published covariances with a floor
    (`CholeskyNoise`) are no multiple of their scale: both are left alone.

    Returns
    -------
    dict of str to dict of str to float
        For a card, of ``"energy"`` and ``"forces"`` as far as there is such noise: the factors
        (``"noise"``) and the share of χ² that a ``"tenth"`` of the validation frames carries. Empty
        where these are fewer than `MIN_FRAMES`.
    """
    networks = [m.potential if isinstance(m, LastLayerPotential) else m for m in members]
    heads, evidential = networks[0].noise, isinstance(networks[0], EvidentialPotential)
    scales = {
        "energy": heads.energy is not None,
        "forces": heads.forces is not None and not isinstance(heads.forces, CholeskyNoise),
    }
    if evidential or not any(scales.values()) or len(home.valid) < MIN_FRAMES:
        return {}
    errors = errors_at_home(members, home)
    factors = {name: joint_factor(errors[name]) for name, trained in scales.items() if trained}
    for network in networks:
        network.noise.energy_scale *= factors.get("energy", 1.0)
        network.noise.force_scale *= factors.get("forces", 1.0)
    shares = {name: share_of_a_tenth(errors[name], c) for name, c in factors.items()}
    return {"noise": factors, "tenth": shares}


def errors_at_home(
    members: Sequence[Potential | LastLayerPotential], home: Home
) -> dict[str, Errors]:
    """Errors of the mixture on the validation frames: of ``"energy"``, eV, ``"forces"``, eV/Å."""
    mixture = ServedModel(members, {})
    batches = list(home.valid.batches(range(len(home.valid)), BATCH_SIZE))
    said = [mixture(graph, False, False) for graph, _ in batches]
    sizes = [int(n) for _, labels in batches for n in labels.n_atoms]

    def of_energy(parts: Sequence[Tensor | None]) -> np.ndarray | None:
        joined = _joined(parts)
        return None if joined is None else joined.reshape(-1, 1, 1)

    energy = [labels.energy - p.energy for (_, labels), p in zip(batches, said, strict=True)]
    forces = [labels.forces - p.forces for (_, labels), p in zip(batches, said, strict=True)]
    return {
        "energy": Errors(
            torch.cat(energy).numpy(force=True)[:, None],
            of_energy([p.energy_var_epistemic for p in said]),
            of_energy([p.energy_var_aleatoric for p in said]),
            np.arange(len(sizes)),
            PredictiveLaw(),
        ),
        "forces": Errors(
            torch.cat(forces).numpy(force=True),
            _joined([p.forces_cov_epistemic for p in said]),
            _joined([p.forces_cov_aleatoric for p in said]),
            np.repeat(np.arange(len(sizes)), sizes),
            PredictiveLaw(),
        ),
    }


def _joined(parts: Sequence[Tensor | None]) -> np.ndarray | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known).numpy(force=True) if known else None


def joint_factor(errors: Errors) -> float:
    """The c with which a share `LEVEL` of the errors lies within the regions of that probability.

    Between `LEAST`, where the epistemic part is wide enough by itself, and `MOST`.
    """
    c = components(errors)
    radius = chdtri(c.square.shape[1], 1.0 - LEVEL)

    def excess(logarithm: float) -> float:
        distances = (c.square / (c.ratio + np.exp(logarithm))).sum(axis=1)
        return float(np.quantile(distances, LEVEL)) - radius

    low, high = np.log(LEAST), np.log(MOST)
    if excess(low) <= 0.0:
        return LEAST
    return MOST if excess(high) >= 0.0 else float(np.exp(brentq(excess, low, high)))


def share_of_a_tenth(errors: Errors, factor: float) -> float:
    """What the tenth of the frames with the largest χ² carries of it, with noise times a factor."""
    c = components(errors)
    distances = (c.square / (c.ratio + factor)).sum(axis=1)
    return carried(np.bincount(errors.frame, distances))[0]
