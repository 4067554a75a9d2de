"""What a monitor compares a score with: a number, calibration frames, or folds of training frames.

**Folds.** Where no frame can be spared for calibration, members are trained without some of the
training frames (``posterior.folds``: K): member j leaves out the frames of fold j mod K. The score
s_k of a frame is then taken over the members that left out fold k alone, and τ_k is its conformal
quantile over the m_k frames of that fold, which are exchangeable with a new frame for these
members. So s_k(new) > τ_k has a probability of at most the rate, and a frame is flagged when this
is so in every fold, which is no more likely than in one of them. The price: n frames reach the
rate K/(n + K) and not 1/(n + 1), and where the folds disagree fewer frames are flagged than the
rate allows, foreign ones among them. Ranks of all folds together, as of CV+ and cross-conformal
prediction (doi:10.1214/20-AOS1965), reach no further and promise twice the level. Members that
have all seen a frame promise nothing of its like.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms

from ase_bayesmlip.md.events import UncertaintyWarning
from ase_bayesmlip.md.threshold import AlarmLevel, alarm_level
from ase_bayesmlip.metrics.reach import frames_needed, reachable_rate
from ase_bayesmlip.scores import (
    OF_ATOMS,
    SCORES,
    Score,
    ScoreFunction,
    calibration_scores,
    evaluate_score,
    find_score,
)

# Of a monitor that is given neither a rate nor a threshold.
DEFAULT_RATE = 0.01

# Of the logarithm of a ratio of sizes that matters to a score of the whole structure.
_OTHER_SIZE = 0.1


class Limit(NamedTuple):
    """What a frame is compared with, and what that stands for.

    Attributes
    ----------
    threshold : float, unit of the score
    rate : float or None
        False alarms per frame, at most; None for a threshold that was given.
    score : function
        The one that was asked for, or a `FoldScore` of it.
    meaning : str
        In words.
    """

    threshold: float
    rate: float | None
    score: ScoreFunction
    meaning: str


def named_score(score: str | ScoreFunction | None, calculator: Any) -> tuple[str, ScoreFunction]:
    """Name and function of a score; for None of the best that the file of a calculator has.

    Warns
    -----
    UncertaintyWarning
        If the file tells foreign structures by the distance of features better than by `score`.
    """
    card = getattr(calculator, "card", None)
    best = getattr(card, "default_score", "forces_epistemic_max")
    found = find_score(best if score is None else score)
    by_distance = found[0].startswith("feature_distance") or found[0] not in SCORES
    if card is not None and best == "feature_distance_max" and not by_distance:
        warnings.warn(
            f"{found[0]} of the {card.kind} posterior in this file hardly tells foreign structures "
            f"from known ones; {best} does, and is what a monitor takes that is given no score",
            UncertaintyWarning,
            stacklevel=3,
        )
    return found


def find_limit(
    threshold: float | None,
    rate: float | None,
    scores: Sequence[float] | np.ndarray | None,
    score: tuple[str, ScoreFunction],
    calculator: Any,
    n_atoms: int | None = None,
) -> Limit:
    """Limit from a threshold, or from a false-alarm rate and scores.

    The scores are the given ones, or those that the model card of the calculator holds for the
    name; these are for as many atoms as its frames have, and those that count in the run are
    `n_atoms`, see `level_for`. Without threshold and rate the rate is `DEFAULT_RATE`, or the
    smallest reachable one.

    Raises
    ------
    ValueError
        If both `threshold` and `rate` are given, or if there are no scores, or too few.

    Warns
    -----
    UncertaintyWarning
        If there are too few scores for `DEFAULT_RATE`, which nobody asked for.
    """
    name, function = score
    if threshold is not None:
        if rate is not None:
            raise ValueError("give threshold or false_alarm_rate, not both")
        if not math.isfinite(threshold):
            raise ValueError(f"threshold must be finite, not {threshold}")
        return Limit(float(threshold), None, function, f"{name} above {threshold:.4g}, as given")
    card = getattr(calculator, "card", None)
    folds = [] if scores is not None or card is None else card.calibration.get("folds", [])
    if folds:
        by_folds = FoldScore(name, folds, rate, n_atoms)
        found, rate, function = by_folds.threshold, by_folds.rate, by_folds
        words, which = "at most", by_folds.frames_in_words
    else:
        series = _series(scores, name, calculator)
        n = len(series["scores"])
        rate = _default_rate(n) if rate is None else rate
        found, count, promised = level_for(name, rate, series, n_atoms)
        words = "at most" if count == n and promised else "about"
        which = f"{n} calibration frames"
        which += f", worth {count:.0f} independent ones" * (count < n)
        which += " (extrapolated: nothing promises it)" * (not promised)
    meaning = f"{name} above {found:.4g}: {words} {100 * rate:.3g} % of frames like the {which}"
    return Limit(found, rate, function, meaning)


def _series(scores: Any, name: str, calculator: Any) -> dict[str, Any]:
    """Scores with trajectory and number of atoms of their frames, as far as they are known."""
    known = find_scores(scores, name, calculator)
    kept = {} if scores is not None else calculator.card.calibration.get("series", {})
    if name not in kept.get("scores", {}):
        return {"scores": known}
    return {**kept, "scores": kept["scores"][name]}


def level_for(name: str, rate: float, series: Mapping[str, Any], n_atoms: int | None) -> AlarmLevel:
    """Threshold of a score for a structure of which `n_atoms` count.

    * A maximum over more atoms than the M of a calibration frame (on average) is larger: its
      quantile is taken deeper (`alarm_level`).
    * A mean over fewer of them strays further from its own mean m, as 1/√N if parts are
      independent: a threshold T becomes m + (T - m) √(M/N). Over more of them it strays less,
      and fewer frames are flagged than asked for.
    * A variance of the total energy grows with the structure, in a way that depends on the model:
      another number of atoms brings a warning.

    Parameters
    ----------
    series : mapping
        ``scores`` in the order of their frames, and if known their ``trajectory`` and ``n_atoms``.
    n_atoms : int or None
        None, or a score of the user: as many as in the calibration frames.
    """
    scores, sizes = series["scores"], series.get("n_atoms", ())
    ratio = (
        1.0 if n_atoms is None or not len(sizes) or name not in SCORES else n_atoms / np.mean(sizes)
    )
    deeper = ratio if name.endswith("_max") else 1.0
    level = alarm_level(scores, rate, series.get("trajectory"), deeper)
    if name.endswith("_mean") and ratio < 1.0:
        middle = float(np.mean(scores))
        return level._replace(threshold=middle + (level.threshold - middle) / math.sqrt(ratio))
    if name not in OF_ATOMS and abs(math.log(ratio)) > _OTHER_SIZE:
        warnings.warn(
            f"{name} depends on the number of atoms, {n_atoms} here and {np.mean(sizes):.4g} in "
            "the calibration frames: the false-alarm rate is not kept. Use forces_epistemic_max, "
            "or calibration_scores of structures of this size",
            UncertaintyWarning,
            stacklevel=4,
        )
    return level


def _default_rate(n: int) -> float:
    rate = max(DEFAULT_RATE, reachable_rate(n))
    if rate > DEFAULT_RATE:
        warnings.warn(
            f"with {n} scores no false-alarm rate below {rate:.3g} can be promised: it takes the "
            f"place of the usual {DEFAULT_RATE}, which needs {frames_needed(DEFAULT_RATE)}",
            UncertaintyWarning,
            stacklevel=4,
        )
    return rate


def find_scores(
    scores: Sequence[float] | np.ndarray | None, score_name: str, calculator: Any
) -> Sequence[float] | np.ndarray:
    """Calibration scores: the given ones, or those in the model card of the calculator.

    Raises
    ------
    ValueError
        If there are none.
    """
    if scores is not None:
        return scores
    card = getattr(calculator, "card", None)
    if card is None:
        raise ValueError(
            "a false-alarm rate or an alarm needs calibration scores, and the atoms have no "
            "calculator with a model card; set atoms.calc first, or give calibration_scores or "
            "threshold"
        )
    if card.calibration.get("folds"):
        raise ValueError(
            "the thresholds of this file come from folds of the training frames, whose scores are "
            "of some members each; give calibration_scores or threshold, or write the file with "
            "calibration frames: bayesmlip serve RUN --calibration FRAMES"
        )
    known = card.calibration.get("scores", {})
    if score_name not in known:
        raise ValueError(
            f"the model card holds no calibration scores for {score_name!r} (it holds "
            f"{', '.join(known) or 'none'}); give calibration_scores or threshold"
        )
    return known[score_name]


def fold_scores(
    results: Sequence[Mapping[str, Any]], frames: Sequence[Atoms], members: Sequence[int]
) -> dict[str, list[float]]:
    """Scores of the frames of one fold by the members that have not seen them, sorted.

    Parameters
    ----------
    results : sequence of mapping
        One per frame, with ``energy_ensemble`` and ``forces_ensemble``.
    """
    return calibration_scores([_committee(result, members) for result in results], frames)


class FoldScore:
    """A score that compares a frame with every fold, see the head of this module.

    It is τ min_k s_k/τ_k with τ the largest of the thresholds τ_k: above τ where all folds flag.

    Parameters
    ----------
    name : str
    folds : list of dict
        Of a model card: ``members`` and ``scores`` of each fold.
    rate : float
    n_atoms : int or None
        Those that count in the run, see `level_for`.

    Raises
    ------
    ValueError
        If a fold has no such scores, or too few for the rate.
    """

    def __init__(
        self,
        name: str,
        folds: list[dict[str, Any]],
        rate: float | None,
        n_atoms: int | None = None,
    ) -> None:
        if any(name not in fold["scores"] for fold in folds):
            raise ValueError(
                f"the folds in the model card hold no scores for {name!r} (they hold "
                f"{', '.join(folds[0]['scores'])}); give calibration_scores or threshold"
            )
        self._function = SCORES[name]
        self._members = [fold["members"] for fold in folds]
        scores = [fold["scores"][name] for fold in folds]
        least = min(map(len, scores))
        self.n_frames = sum(map(len, scores))
        self.rate = _default_rate(least) if rate is None else rate
        try:
            # Frames of a fold are drawn by chance, and their scores are sorted.
            parts = [{**fold, "scores": s} for fold, s in zip(folds, scores, strict=True)]
            limits = [level_for(name, self.rate, part, n_atoms).threshold for part in parts]
        except ValueError as error:
            raise ValueError(f"of {len(folds)} folds the smallest is too small: {error}") from error
        if min(limits) <= 0:
            raise ValueError(f"the scores of a fold are {min(limits)}: its members do not differ")
        self.threshold = max(limits)
        self._factors = [self.threshold / limit for limit in limits]

    @property
    def frames_in_words(self) -> str:
        """Which frames the promise is of."""
        return (
            f"{self.n_frames} training frames (each scored by the members that left it out; all "
            f"{len(self._members)} folds must agree, which misses more than calibration frames "
            "would)"
        )

    def __call__(
        self, results: Mapping[str, Any], atoms: Atoms, counted: np.ndarray | None = None
    ) -> Score:
        """Score of a frame, with the contributions of atoms where it has them."""
        if "forces_ensemble" not in results:
            raise ValueError(
                "thresholds from folds of the training frames need what each member says: make "
                "the calculator with return_members=True"
            )
        found = []
        for members, factor in zip(self._members, self._factors, strict=True):
            value, per_atom = evaluate_score(
                self._function, _committee(results, members), atoms, counted
            )
            found.append(Score(factor * value, None if per_atom is None else factor * per_atom))
        return min(found, key=lambda score: score.value)


def _committee(results: Mapping[str, Any], members: Sequence[int]) -> dict[str, Any]:
    """Epistemic variances of some of the members, over one less than there are."""
    energy = np.asarray(results["energy_ensemble"], dtype=float)[list(members)]
    forces = np.asarray(results["forces_ensemble"], dtype=float)[list(members)]
    deviation = forces - forces.mean(axis=0)
    return {
        "energy_var_epistemic": energy.var(ddof=1),
        "forces_cov_epistemic": np.einsum("sna,snb->nab", deviation, deviation)
        / (len(members) - 1),
    }
