"""How well error bars fit errors: the numbers of a calibration record."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from ase_bayesmlip.calibration.levels import LEVELS, conformal_at
from ase_bayesmlip.calibration.observations import FloatArray, Observations
from ase_bayesmlip.metrics import calibration_error, coverage
from ase_bayesmlip.metrics.errors import Errors


class Quality:
    """Collects errors, fold by fold, and measures them together."""

    def __init__(self) -> None:
        self._nll: dict[str, list[tuple[float, int]]] = defaultdict(list)
        self._confidence: dict[tuple[str, str], list[FloatArray]] = defaultdict(list)
        self._covered: dict[str, list[FloatArray]] = defaultdict(list)

    def add(
        self,
        observed: Observations,
        conformal: dict[str, Any] | None = None,
        isotonic: dict[str, Any] | None = None,
    ) -> None:
        """Take in errors whose covariances are as a file serves them, and levels if there are."""
        for name, errors in (("forces", observed.forces), ("energy", observed.energy)):
            if errors is None:
                continue
            value = errors.standardised
            self._nll[name].append((errors.nll, len(value)))
            self._confidence["law", name].append(errors.confidence)
            if isotonic is not None:
                found = _isotonic_confidence(value, isotonic[name], name)
                self._confidence["isotonic", name].append(found)
            if conformal is not None:
                self._covered[name].append(_inside(value, errors, conformal[name]))

    def numbers(self) -> dict[str, dict[str, dict[str, float]]]:
        """``calibration_error``, ``coverage_90`` and, of the law, ``nll``, by kind and quantity.

        The law is that of the errors, as in `bayesmlip evaluate`.

        Negative log-likelihoods are in nats per vector, of (eV/Å)³, or per frame, of eV.
        """
        found: dict[str, dict[str, dict[str, float]]] = {
            "law": {},
            "isotonic": {},
            "conformal": {},
        }
        for (kind, name), parts in self._confidence.items():
            u = np.concatenate(parts)
            found[kind][name] = {
                "calibration_error": calibration_error(u),
                "coverage_90": coverage(u, 0.9),
            }
        for name, terms in self._nll.items():
            total = sum(n for _, n in terms)
            found["law"][name]["nll"] = sum(nll * n for nll, n in terms) / total
        for name, inside in self._covered.items():
            covered = np.concatenate(inside)
            if len(covered):
                found["conformal"][name] = {"coverage_90": float(covered.mean())}
        return found


def _isotonic_confidence(value: FloatArray, quantiles: list[Any], name: str) -> FloatArray:
    """Probability of the smallest central region that holds the label."""
    known = [(v, p) for p, v in zip(LEVELS, quantiles, strict=True) if v is not None]
    values, levels = np.array(known).T
    u = np.asarray(np.interp(value, values, levels, left=0.0, right=1.0))
    return np.abs(2.0 * u - 1.0) if name == "energy" else u


def _inside(value: FloatArray, errors: Errors, radii: Any) -> FloatArray:
    """Whether the regions of 90 % hold the labels, where there is such a region."""
    everything: Any = slice(None)
    chosen_by = [(everything, radii)]
    if errors.atomic_numbers is not None:
        symbols = np.array([chemical_symbols[z] for z in errors.atomic_numbers])
        chosen_by = [(symbols == symbol, values) for symbol, values in radii.items()]
    inside: list[FloatArray] = []
    for items, values in chosen_by:
        chosen = np.abs(value[items])
        try:
            inside.append((chosen <= conformal_at(LEVELS, values, 0.9)).astype(float))
        except ValueError:
            continue  # too few frames hold this element
    return np.concatenate(inside) if inside else np.zeros(0)
