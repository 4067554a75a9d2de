"""The error bars that a likelihood starts with: as large as the errors that the warm-up left."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from ase_bayesmlip.nn.heads import NoiseHeads

SCALES = ("energy_scale", "force_scale")


def set_first_scales(
    noise: NoiseHeads,
    average: Mapping[str, Tensor],
    validate: Callable[[], Mapping[str, float]],
    unit: float,
) -> None:
    """Set what raw zeros of the noise heads stand for, so that χ² of energies and forces is one.

    An energy's variance is a sum over its atoms, one number for the whole structure, or has a part
    that atoms have in common, as the form of the noise is. Which of them does not matter here: the
    scale starts as the mean of ΔE²/n and is then multiplied by the χ² that it leads to.

    Parameters
    ----------
    noise : NoiseHeads
    average : mapping
        State of the averaged weights, which `validate` looks at: it gets the scales, too.
    validate : callable
        Gives `validation.validation_metrics` of the averaged weights with the likelihood.
    unit : float, eV/Å
        Force RMS of the training set; errors below 1e-4 of it count as so much.
    """
    floor = (1e-4 * unit) ** 2
    metrics = validate()
    energy, forces = (max(metrics[f"{name}_mse"], floor) for name in ("energy", "forces"))
    _set(noise, average, energy, forces)
    chi2 = validate()["energy_chi2"]
    if chi2 > 0.0:  # zero where energies have no noise
        _set(noise, average, max(energy * chi2, floor), forces)


def _set(noise: NoiseHeads, average: Mapping[str, Tensor], energy: float, forces: float) -> None:
    noise.set_scales(energy, forces)
    for name in SCALES:
        average[f"noise.{name}"].copy_(getattr(noise, name))
