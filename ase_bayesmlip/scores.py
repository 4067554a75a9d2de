"""Scores: one rotation-invariant number per structure that says how little the model knows it.

A score is a pure function of the results of one evaluation and of the atoms they belong to. It
reads epistemic uncertainty or the distance of features from those of the training: what is called
aleatoric is the misfit at home, which is no reason to distrust the model and does not grow away
from home.

Scores that are a maximum or a mean over atoms can be taken over some of them (`counted`, a mask).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError


class Score(NamedTuple):
    """A score and, where the score has one, the contribution of every atom.

    Attributes
    ----------
    value : float
        In the unit that the score function states.
    per_atom : ndarray or None, (n_atoms,)
        In the same unit; None when the score does not divide into atoms.
    """

    value: float
    per_atom: np.ndarray | None


ScoreFunction = Callable[..., Score | float]


def forces_epistemic_max(
    results: Mapping[str, Any], atoms: Atoms, counted: np.ndarray | None = None
) -> Score:
    """max_i sqrt(tr Σ_i / 3) over the atoms, with the epistemic force covariance Σ_i; eV/Å."""
    per_atom = _force_deviation(results, atoms, "forces_epistemic_max")
    return Score(float(_among(per_atom, counted).max()), per_atom)


def forces_epistemic_mean(
    results: Mapping[str, Any], atoms: Atoms, counted: np.ndarray | None = None
) -> Score:
    """Mean over the atoms of sqrt(tr Σ_i / 3), with the epistemic force covariance Σ_i; eV/Å."""
    per_atom = _force_deviation(results, atoms, "forces_epistemic_mean")
    return Score(float(_among(per_atom, counted).mean()), per_atom)


def atomic_energy_var_max(
    results: Mapping[str, Any], atoms: Atoms, counted: np.ndarray | None = None
) -> Score:
    """Largest epistemic variance of an atomic energy; eV².

    Of a last-layer Laplace file it is φᵀ H⁻¹ φ, the squared distance of the features φ of an atom
    from what the training has seen, in the metric of its curvature H.

    Labels fix total energies only, and members may divide the same total differently over the
    elements. A file that was served with the frames of its training has members that agree on that
    division as far as they can (`serving.gauge`); in others this score sees it, too.
    """
    per_atom = _require(results, "energies_var_epistemic", atoms, "atomic_energy_var_max")
    per_atom = np.asarray(per_atom, dtype=float)
    return Score(float(_among(per_atom, counted).max()), per_atom)


def feature_distance_max(
    results: Mapping[str, Any], atoms: Atoms, counted: np.ndarray | None = None
) -> Score:
    """Largest distance of the features of an atom from those of its element in training; 1.

    It is the root of their leverage (`nn.leverage`), which every file has that was written with the
    frames of its run, that of a single potential too. It needs no derivative and no second network.
    """
    per_atom = _feature_distances(results, atoms, "feature_distance_max")
    return Score(float(_among(per_atom, counted).max()), per_atom)


def feature_distance_mean(
    results: Mapping[str, Any], atoms: Atoms, counted: np.ndarray | None = None
) -> Score:
    """Mean of these distances over the atoms; 1.

    It tells a hotter molecule better than the maximum and hardly sees one strange atom among many.
    """
    per_atom = _feature_distances(results, atoms, "feature_distance_mean")
    return Score(float(_among(per_atom, counted).mean()), per_atom)


def energy_var(results: Mapping[str, Any], atoms: Atoms) -> Score:
    """Epistemic variance of the total energy; eV². It grows with the number of atoms."""
    return Score(float(_require(results, "energy_var_epistemic", atoms, "energy_var")), None)


SCORES: dict[str, ScoreFunction] = {
    "forces_epistemic_max": forces_epistemic_max,
    "forces_epistemic_mean": forces_epistemic_mean,
    "atomic_energy_var_max": atomic_energy_var_max,
    "energy_var": energy_var,
    "feature_distance_max": feature_distance_max,
    "feature_distance_mean": feature_distance_mean,
}

SCORE_UNITS = {
    "forces_epistemic_max": "eV/Å",
    "forces_epistemic_mean": "eV/Å",
    "atomic_energy_var_max": "eV²",
    "energy_var": "eV²",
    "feature_distance_max": "1",
    "feature_distance_mean": "1",
}

_SCORE_KEYS = {
    "forces_epistemic_max": "forces_cov_epistemic",
    "forces_epistemic_mean": "forces_cov_epistemic",
    "atomic_energy_var_max": "energies_var_epistemic",
    "energy_var": "energy_var_epistemic",
    "feature_distance_max": "feature_distances",
    "feature_distance_mean": "feature_distances",
}


# Scores that can be taken over some of the atoms.
OF_ATOMS = (
    "forces_epistemic_max",
    "forces_epistemic_mean",
    "atomic_energy_var_max",
    "feature_distance_max",
    "feature_distance_mean",
)


def find_score(score: str | ScoreFunction) -> tuple[str, ScoreFunction]:
    """Name and function of a score that is given by name or as a function.

    Raises
    ------
    ValueError
        If there is no score of that name.
    TypeError
        If `score` is neither a name nor callable.
    """
    if isinstance(score, str):
        if score not in SCORES:
            raise ValueError(f"unknown score {score!r}; known scores: {', '.join(SCORES)}")
        return score, SCORES[score]
    if not callable(score):
        raise TypeError(
            "score must be a name or a function (results, atoms) -> Score or float, "
            f"not {type(score).__name__}"
        )
    return getattr(score, "__name__", type(score).__name__), score


def evaluate_score(
    function: ScoreFunction,
    results: Mapping[str, Any],
    atoms: Atoms,
    counted: np.ndarray | None = None,
) -> Score:
    """Evaluate a score; a plain number from a user's function becomes a `Score`.

    Parameters
    ----------
    counted : ndarray of bool or None, (n_atoms,)
        The atoms that count, for the scores `OF_ATOMS`; None counts all.

    Raises
    ------
    ValueError
        If the function returns neither a `Score` nor one number, or one of a wrong length.
    """
    if counted is not None and len(counted) != len(atoms):
        raise ValueError(
            f"the structure has {len(atoms)} atoms, and those that count were chosen among "
            f"{len(counted)}; make a new monitor when the number of atoms changes"
        )
    with np.errstate(invalid="ignore"):
        answer = function(results, atoms, *(() if counted is None else (counted,)))
    value, per_atom = answer if isinstance(answer, Score) else (answer, None)
    try:
        value = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"a score must return a Score or one number, not {type(value).__name__}"
        ) from error
    if per_atom is not None:
        per_atom = np.asarray(per_atom, dtype=float)
        if per_atom.shape != (len(atoms),):
            raise ValueError(
                f"a score gave per-atom values of shape {per_atom.shape} for {len(atoms)} atoms"
            )
    return Score(value, per_atom)


def calibration_scores(
    results: Sequence[Mapping[str, Any]], frames: Sequence[Atoms], in_order: bool = False
) -> dict[str, list[float]]:
    """Every built-in score that the results allow, for each calibration frame.

    Parameters
    ----------
    results : sequence of mapping
        One per frame, as `BayesianCalculator.evaluate` returns them.
    in_order : bool
        In the order of the frames, and not sorted.

    Returns
    -------
    dict of str to list of float
        In the units of `SCORE_UNITS`.
    """
    available = [name for name, key in _SCORE_KEYS.items() if all(key in r for r in results)]
    found: dict[str, list[float]] = {}
    for name in available:
        pairs = zip(results, frames, strict=True)
        values = [evaluate_score(SCORES[name], result, atoms).value for result, atoms in pairs]
        found[name] = values if in_order else sorted(values)
    return found


def calibration_record(
    results: Sequence[Mapping[str, Any]], frames: Sequence[Atoms], trajectory: Sequence[int]
) -> dict[str, Any]:
    """What a model card keeps of calibration frames, for the thresholds of monitors.

    Parameters
    ----------
    results, frames : see `calibration_scores`
    trajectory : sequence of int, (n,)
        The trajectory that each frame belongs to.

    Returns
    -------
    dict
        ``n_frames``; ``scores``, sorted; ``series``: the ``scores`` in the order of the frames,
        with the ``trajectory`` and the number of atoms, ``n_atoms``, of each.
    """
    scores = calibration_scores(results, frames, in_order=True)
    series = {
        "scores": scores,
        "trajectory": list(trajectory),
        "n_atoms": [len(atoms) for atoms in frames],
    }
    ordered = {name: sorted(values) for name, values in scores.items()}
    return {"n_frames": len(frames), "scores": ordered, "series": series}


def _among(per_atom: np.ndarray, counted: np.ndarray | None) -> np.ndarray:
    return per_atom if counted is None else per_atom[counted]


def _feature_distances(results: Mapping[str, Any], atoms: Atoms, score: str) -> np.ndarray:
    return np.asarray(_require(results, "feature_distances", atoms, score), dtype=float)


def _force_deviation(results: Mapping[str, Any], atoms: Atoms, score: str) -> np.ndarray:
    """sqrt(tr Σ_i / 3), (n_atoms,), eV/Å: the standard deviation of one force component.

    The trace is invariant under rotation; with an isotropic Σ_i = σ² 1 the value is σ.
    """
    key = "forces_cov_epistemic"
    if key not in results and "forces_std_epistemic" in results:
        return np.asarray(results["forces_std_epistemic"], dtype=float) / np.sqrt(3)
    covariance = np.asarray(_require(results, key, atoms, score), dtype=float)
    return np.sqrt(covariance.trace(axis1=1, axis2=2) / 3)


def _require(results: Mapping[str, Any], key: str, atoms: Atoms, score: str) -> Any:
    if key in results:
        return results[key]
    card = getattr(atoms.calc, "card", None)
    holder = "the calculator" if card is None else f"the {card.kind!r} posterior in this file"
    available = [name for name, needed in _SCORE_KEYS.items() if needed in results]
    remedy = (
        f"available scores: {', '.join(available)}"
        if available
        else "no built-in score is available from these results; a model that knows its "
        "epistemic uncertainty is needed (for example a deep ensemble), or a file that "
        "`bayesmlip serve` wrote with the frames of its run"
    )
    if getattr(atoms.calc, "lazy", False):
        remedy += "; the calculator was made with lazy=True, which leaves covariances out"
    raise PropertyNotImplementedError(
        f"score {score!r} needs {key!r}, which {holder} does not give; {remedy}"
    )
