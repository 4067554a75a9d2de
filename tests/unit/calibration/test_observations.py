"""What calibration frames must hold."""

import numpy as np
import pytest
from synthetic_errors import synthetic

from ase_bayesmlip.calibration import observe


def test_results_without_variances_or_that_are_not_finite():
    results, frames = synthetic(12)
    bare = [{"energy": r["energy"], "forces": r["forces"]} for r in results]
    with pytest.raises(ValueError, match="nothing to calibrate"):
        observe(bare, frames)
    results[4]["forces"] = np.full((4, 3), np.nan)
    with pytest.raises(ValueError, match=r"not finite.*synthetic#4"):
        observe(results, frames)
    results, frames = synthetic(12, parts="e")
    results[7]["energy_var_epistemic"] = 0.0
    with pytest.raises(ValueError, match=r"zero variance.*synthetic#7"):
        observe(results, frames)
