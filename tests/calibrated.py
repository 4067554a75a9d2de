"""A calibration of which no two factors are equal."""

import dataclasses

from ase_bayesmlip.calibration import Factors

FACTORS = Factors(
    forces_epistemic={"H": 2.0, "C": 3.0, "O": 0.5},
    forces_aleatoric={"H": 0.25, "C": 5.0, "O": 1.5},
    energy_epistemic=7.0,
    energy_aleatoric=0.125,
    stress_epistemic=1.75,
)


def calibration_record(factors):
    """What a model card keeps of a calibration, without its levels."""
    numbers = {"forces": {"coverage_90": 0.5}}
    return {
        "method": "per-element-split",
        "sha256": "2" * 64,
        "n_frames": 3,
        "factors": dataclasses.asdict(factors),
        "levels": [],
        "conformal": {},
        "isotonic": {},
        "numbers": {"before": numbers, "after": numbers},
    }
