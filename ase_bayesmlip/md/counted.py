"""Which atoms count in a score: by default those that can move."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from ase import Atoms

from ase_bayesmlip.md.constraints import held_atoms
from ase_bayesmlip.scores import OF_ATOMS


def counted_atoms(
    atoms: Atoms, chosen: Any, score_name: str, *, by_name: bool, card_threshold: bool
) -> np.ndarray | None:
    """Mask of the atoms that count in a score, (n_atoms,); None when all do.

    Parameters
    ----------
    chosen : None, "all", array_like of bool (n_atoms,), or array_like of int
        None leaves out the atoms that constraints hold, unless they hold all.
    by_name : bool
        Whether the score is one of `SCORES`, and not a function of the user.
    card_threshold : bool
        Whether the threshold is the false-alarm rate over whole calibration frames.

    Raises
    ------
    ValueError
        If atoms are chosen for a score that does not divide into atoms, or do not exist, or if
        none is left.
    """
    if isinstance(chosen, str) and chosen == "all":
        return None
    divisible = by_name and score_name in OF_ATOMS
    if chosen is None:
        counted = ~held_atoms(atoms) if divisible else np.ones(len(atoms), dtype=bool)
        if not counted.any():
            return None
    elif not divisible:
        raise ValueError(
            f"the score {score_name!r} does not divide into atoms here; atoms can be chosen for "
            f"{', '.join(OF_ATOMS)} (a function of your own chooses its atoms itself)"
        )
    else:
        counted = _mask(atoms, chosen)
    if counted.all():
        return None
    if card_threshold and score_name.endswith("_mean"):
        warnings.warn(
            "the threshold comes from means over all atoms of the calibration frames, and the "
            f"mean over {np.count_nonzero(counted)} of {len(atoms)} atoms may be larger: the "
            "false-alarm rate is not kept. Use a maximum, which fewer atoms only make smaller"
            ", give calibration_scores of the same atoms, or atoms='all'",
            UserWarning,
            stacklevel=3,
        )
    return counted


def _mask(atoms: Atoms, chosen: Any) -> np.ndarray:
    values = np.asarray(chosen)
    n_atoms = len(atoms)
    if values.dtype == bool and values.shape == (n_atoms,):
        mask = values.copy()
    elif values.ndim == 1 and values.dtype.kind in "iu":
        outside = values[(values < -n_atoms) | (values >= n_atoms)]
        if outside.size:
            raise ValueError(f"atoms names {outside[:5].tolist()}, and there are {n_atoms} atoms")
        mask = np.zeros(n_atoms, dtype=bool)
        mask[values] = True
    else:
        raise ValueError(
            f"atoms must be None, 'all', a mask of {n_atoms} booleans or a list of indices, not "
            f"{values.dtype} of shape {values.shape}"
        )
    if not mask.any():
        raise ValueError("atoms leaves no atom to score")
    return mask
