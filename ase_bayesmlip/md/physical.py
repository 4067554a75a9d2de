"""Whether a frame can be one of nature at all: what no uncertainty tells of.

An atom without neighbours has a force of zero in every member, so that a molecule that has blown
apart scores zero. Hence the checks here, none of which evaluates the calculator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ase import Atoms

from ase_bayesmlip.md.temperature import TemperatureWatch
from ase_bayesmlip.md.threshold import ContactWatch

LONE_ATOMS = ("unphysical", "ignore")


class PhysicalChecks:
    """Says why a frame of one simulation is unphysical; the parameters are those of the monitor.

    Attributes
    ----------
    temperature_K : float or None
        Of the frame that was checked last, see `Thermometer`; None in a relaxation.
    """

    def __init__(
        self,
        dyn: Any,
        atoms: Atoms,
        min_distance_ratio: float | None,
        max_temperature_K: float | str | None,
        lone_atoms: str,
    ) -> None:
        if lone_atoms not in LONE_ATOMS:
            raise ValueError(f"lone_atoms must be one of {', '.join(LONE_ATOMS)}: {lone_atoms!r}")
        self._atoms = atoms
        self._min_distance_ratio = min_distance_ratio
        self._judge_lone_atoms = lone_atoms == "unphysical"
        self._temperature = TemperatureWatch(dyn, atoms, max_temperature_K)
        self._contacts = ContactWatch()
        self._first = True

    @property
    def temperature_K(self) -> float | None:  # noqa: N802
        """Temperature of the frame that was checked last, K."""
        return self._temperature.temperature_K

    def __call__(self) -> str:
        """Judge the present frame: a text, empty if nothing speaks against it."""
        first, self._first = self._first, False
        reason = self._temperature()
        if not reason and self._judge_lone_atoms:
            reason = lone_atoms_reason(self._atoms, first)
        if not reason and self._min_distance_ratio is not None:
            try:
                reason = self._contacts(self._atoms, self._min_distance_ratio)
            except ValueError as error:  # atoms so far apart that neighbours are not searched
                reason = str(error)
        return reason


def unphysical_results(results: Mapping[str, Any]) -> str:
    """Why energy or forces cannot be trusted at all: a text, empty when they are finite."""
    for key, unit in (("energy", "eV"), ("forces", "eV/Å")):
        if key in results and not np.isfinite(results[key]).all():
            values = np.asarray(results[key])
            return (
                f"{key} ({unit}) is not finite in {np.count_nonzero(~np.isfinite(values))} of "
                f"{values.size} numbers"
            )
    return ""


def lone_atoms_reason(atoms: Atoms, first: bool) -> str:
    """Say which atoms have no neighbour within the cutoff, where training had none such.

    Read from ``calc.lone_atoms``. Nothing is said for a calculator without it, nor for elements
    that training had alone; files from before those were named know all or none.
    """
    card = getattr(atoms.calc, "card", None)
    training = getattr(card, "training", {})
    known = training.get("lone_elements", atoms.numbers if training.get("has_lone_atoms") else ())
    lone = [i for i in getattr(atoms.calc, "lone_atoms", ()) if atoms.numbers[i] not in known]
    if not lone:
        return ""
    named = ", ".join(f"{i} ({atoms.symbols[i]})" for i in lone[:5])
    more = f" and {len(lone) - 5} more" if len(lone) > 5 else ""
    cutoff = getattr(card, "cutoff", None)
    within = f" of {cutoff:g} Å" if cutoff is not None else ""
    subject, verb = ("atom", "has") if len(lone) == 1 else ("atoms", "have")
    reason = (
        f"{subject} {named}{more} {verb} no neighbour within the cutoff{within}, and the training "
        "data hold no such atom: all members agree on a force of zero, and no uncertainty tells"
    )
    if first:
        reason += (
            "; the start structure is like that already: bring its atoms together, or set "
            "lone_atoms='ignore'"
        )
    return reason
