"""Write a served file again with calibrated variances."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

from ase_bayesmlip.calibration.scaling import Factors, scaled_results
from ase_bayesmlip.card import ModelCard, read_card
from ase_bayesmlip.serving.archive import quiet_torchscript, write_served
from ase_bayesmlip.serving.compiler import rebuild_members
from ase_bayesmlip.serving.export import script
from ase_bayesmlip.serving.runtime import LoadedModel, load_model
from ase_bayesmlip.serving.served_model import ServedModel
from ase_bayesmlip.serving.variance_scaling import set_factors, total_factors


def write_recalibrated(
    source: Path | LoadedModel, target: Path, record: dict[str, Any], calibration: dict[str, Any]
) -> ModelCard:
    """Write a served file with one more recalibration.

    Its means and its weights stay what they are, to the bit. Compiled programs hold the old
    variances and are left out. The expected variances of the self-test are multiplied here, by
    other code than that of the file, and the file is loaded, which runs that test, before it takes
    its place: an interruption or a failure leaves `target` as it was.

    Parameters
    ----------
    source : Path or LoadedModel
    target : Path
        May be the file of the source.
    record : dict
        For `ModelCard.recalibrations`; its factors multiply those already in the file.
    calibration : dict
        For `ModelCard.calibration`: scores of the calibration frames after the scaling.

    Raises
    ------
    ValueError
        If the file fails its self-test, or is no longer the one that was loaded.
    """
    target = Path(target)
    if isinstance(source, LoadedModel):
        if not source.is_current:
            raise ValueError(f"{source.path} has changed since it was loaded; start again")
        path, card = Path(source.path), source.card
    else:
        path, card = Path(source), read_card(source)
    factors = Factors.from_dict(record["factors"])
    new = dataclasses.replace(
        card,
        recalibrations=[*card.recalibrations, record],
        calibration=calibration,
        probe=_scaled_probe(card.probe, factors),
        compiled=[],
    )
    module = _module(path, card)
    set_factors(module.variance_scaling, total_factors(new))
    trial = target.with_name(target.name + ".trial")
    try:
        write_served(module, new, trial)
        load_model(trial, backend="torchscript")
        trial.replace(target)
    finally:
        trial.unlink(missing_ok=True)
    return new


def _module(path: Path, card: ModelCard) -> Any:
    """The TorchScript program of a file; one from before there were factors is built anew."""
    with quiet_torchscript():
        module = torch.jit.load(str(path), map_location="cpu")
        if hasattr(module, "variance_scaling"):
            return module
        members, references, _ = rebuild_members(path, card)
        known = {z: float(references[z]) for z in card.atomic_numbers}
        return script(ServedModel(members, known), card.dtype)


def _scaled_probe(probe: dict[str, Any], factors: Factors) -> dict[str, Any]:
    """The probe with its expected variances multiplied and its means as they were."""
    if not probe:
        return probe
    symbols = Atoms(probe["numbers"]).get_chemical_symbols()
    expected = {name: np.asarray(value) for name, value in probe["expected"].items()}
    scaled = scaled_results(expected, symbols, factors)
    return {**probe, "expected": {name: np.asarray(v).tolist() for name, v in scaled.items()}}
