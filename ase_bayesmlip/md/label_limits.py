"""How large a reference energy or force may be before it is taken for a failure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from ase_bayesmlip.md.references import Label

# Forces up to this many times the largest of the training, and at least up to so many eV/Å, which
# hot dynamics reach.
FORCE_FACTOR, LEAST_FORCE_LIMIT = 10.0, 30.0

# Energies per atom beyond those of the training by this many times their range, and at least by so
# many eV: more than a bond is worth, less than what a wrong zero of energy amounts to.
ENERGY_FACTOR, LEAST_ENERGY_MARGIN = 10.0, 10.0

# Where the file says nothing of its training labels: eV/Å, and eV per atom, with core electrons.
UNKNOWN_FORCE_LIMIT, UNKNOWN_ENERGY_LIMIT = 100.0, (-1e6, 1e6)

_NO_LIMIT = (-math.inf, math.inf)


@dataclass(frozen=True)
class LabelLimits:
    """Limits for labels, infinite where there is none.

    Attributes
    ----------
    force_max : float, eV/Å
        Largest length of the force of an atom.
    energy_per_atom : (float, float), eV
        Smallest and largest energy per atom, with the reference energies subtracted.
    reference_energies : mapping of str to float, eV
        Of the isolated atoms, by symbol; 0 for an element that is not there.
    """

    force_max: float
    energy_per_atom: tuple[float, float]
    reference_energies: Mapping[str, float] = field(default_factory=dict)

    def check(self, label: Label, atoms: Atoms) -> None:
        """Raise `ValueError` for a label beyond the limits."""
        largest = float(np.linalg.norm(label.forces, axis=1).max())
        if largest > self.force_max:
            raise ValueError(
                f"a reference force of {largest:.4g} eV/Å is above the limit of "
                f"{self.force_max:.4g} eV/Å (set force_limit, None for no limit)"
            )
        symbols = atoms.get_chemical_symbols()
        alone = sum(self.reference_energies.get(symbol, 0.0) for symbol in symbols)
        energy = (label.energy - alone) / len(atoms)
        low, high = self.energy_per_atom
        if not low <= energy <= high:
            raise ValueError(
                f"a reference energy of {energy:.4g} eV per atom (isolated atoms subtracted) is "
                f"outside the limits {low:.4g} to {high:.4g} eV; has the reference the zero of "
                "energy of the training? (set energy_limit, None for no limit)"
            )


def training_limits(card: Any) -> LabelLimits:
    """Limits from the training labels of a served file, generous beyond them.

    Forces: `FORCE_FACTOR` times the largest, `LEAST_FORCE_LIMIT` at least. Energies per atom: their
    range, widened on both sides by `ENERGY_FACTOR` times itself, `LEAST_ENERGY_MARGIN` at least.
    A file without that record, or no file: `UNKNOWN_FORCE_LIMIT` for forces. For energies, where
    the file has a probe, the range is that of the probe alone, a frame of the training, and the
    margin its own size at least; `UNKNOWN_ENERGY_LIMIT` otherwise.

    Parameters
    ----------
    card : ModelCard or None
    """
    record = getattr(card, "training", {}).get("label_limits")
    alone = getattr(card, "reference_energies", {})
    if not record:
        return LabelLimits(UNKNOWN_FORCE_LIMIT, _around_probe(card, alone), alone)
    force = max(FORCE_FACTOR * float(record["force_max"]), LEAST_FORCE_LIMIT)
    low, high = map(float, record["energy_per_atom"])
    margin = max(ENERGY_FACTOR * (high - low), LEAST_ENERGY_MARGIN)
    return LabelLimits(force, (low - margin, high + margin), alone)


def _around_probe(card: Any, alone: Mapping[str, float]) -> tuple[float, float]:
    """Limits for energies per atom, eV, of a file that says no more than its self-test does."""
    probe = getattr(card, "probe", {})
    if not probe:
        return UNKNOWN_ENERGY_LIMIT
    symbols = [chemical_symbols[z] for z in probe["numbers"]]
    total = float(probe["expected"]["energy"][0])
    energy = (total - sum(alone.get(symbol, 0.0) for symbol in symbols)) / len(symbols)
    margin = max(LEAST_ENERGY_MARGIN, abs(energy))
    return energy - margin, energy + margin


def limits_for(
    card: Any, force_limit: float | str | None, energy_limit: tuple[float, float] | str | None
) -> LabelLimits:
    """`training_limits`, with those that are not "training" in their place.

    Raises
    ------
    ValueError
        If a limit is neither ``"training"``, None nor a limit.
    """
    limits = training_limits(card)
    if not (isinstance(force_limit, str) and force_limit == "training"):
        if force_limit is not None and not _is_above_zero(force_limit):
            raise ValueError(
                f"force_limit must be 'training', None or above 0 eV/Å, not {force_limit!r}"
            )
        limits = replace(limits, force_max=math.inf if force_limit is None else float(force_limit))
    if not (isinstance(energy_limit, str) and energy_limit == "training"):
        pair = _NO_LIMIT if energy_limit is None else tuple(np.ravel(energy_limit).tolist())
        if isinstance(energy_limit, str) or len(pair) != 2 or not pair[0] < pair[1]:
            raise ValueError(
                "energy_limit must be 'training', None or the smallest and the largest energy per "
                f"atom in eV, not {energy_limit!r}"
            )
        limits = replace(limits, energy_per_atom=pair)
    return limits


def _is_above_zero(value: Any) -> bool:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return number and bool(value > 0)
