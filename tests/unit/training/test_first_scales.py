"""A likelihood starts with error bars of the right size, whatever form the noise has."""

import pytest
import torch
from tiny import DATA, tiny_config, tiny_sets

from ase_bayesmlip.nn.build import build_potential
from ase_bayesmlip.nn.heads import NoiseHeads
from ase_bayesmlip.structures.labelled import read_frames
from ase_bayesmlip.training.data import GraphDataset, load_training_data
from ase_bayesmlip.training.first_scales import set_first_scales
from ase_bayesmlip.training.trainer import Trainer

FORMS = {
    "sum": ({}, {}, {"kind": "nll_jef"}),
    "mean": ({"energy_noise": "mean"}, {}, {"kind": "nll_jef"}),
    "mean, cholesky": ({"energy_noise": "mean", "covariance": "cholesky"}, {}, {"kind": "nll_jef"}),
    "mean, energies alone": ({"energy_noise": "mean"}, {}, {"kind": "nll_e"}),
    "evidential": ({}, {"kind": "evidential"}, {"kind": "evidential"}),
    "evidential, paper": (
        {"energy_noise": "mean"},
        {"kind": "evidential"},
        {"kind": "evidential", "evidence": {"mode": "paper"}},
    ),
}


def trainer_of(form, folder, mixed):
    model, posterior, loss = FORMS[form]
    options = {"posterior": posterior} if posterior else {}
    config = tiny_config(model=model, loss={"warmup_fraction": 0.0, **loss}, **options)
    data = load_training_data(config)
    potential = build_potential(config.model, config.loss, data.statistics, 0, torch.float64)
    train, valid = tiny_sets(config)
    if mixed:  # molecules of nine atoms and crystals of twelve
        frames = [*data.valid, *read_frames(f"{DATA / 'co2_train.extxyz'}@0:3", config.data.keys)]
        valid = GraphDataset(frames, data.references, config.model.cutoff, torch.float64)
    trainer = Trainer(potential, train, valid, config)
    trainer.open(folder, resume=False)
    return trainer


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_chi_squared_is_one_at_the_start(form, mixed, tmp_path):
    """The energy's was 9 for molecules of 9 atoms with the noise "mean"."""
    trainer = trainer_of(form, tmp_path, mixed)
    trainer._enter_phase(0)
    assert trainer.now.phase == FORMS[form][2]["kind"]
    metrics = trainer._validate()
    assert metrics["energy_chi2"] == pytest.approx(1.0, rel=1e-9)
    if FORMS[form][2]["kind"] == "nll_jef" and "cholesky" not in form:
        assert metrics["forces_chi2"] == pytest.approx(1.0, rel=1e-9)
    # The trained weights start with what the averaged ones were measured with.
    for name in ("energy_scale", "force_scale"):
        expected = trainer.now.average[f"noise.{name}"]
        assert torch.equal(getattr(trainer.potential.noise, name), expected)


def test_the_shared_noise_stands_for_the_whole_energy(tmp_path):
    scales = {}
    for form in ("sum", "mean"):
        trainer = trainer_of(form, tmp_path / form, False)
        trainer._enter_phase(0)
        scales[form] = float(trainer.potential.noise.energy_scale)
    assert scales["mean"] == pytest.approx(9 * scales["sum"])


@pytest.mark.parametrize(("error", "chi2"), [(0.0, 0.0), (1e-30, 1.0)])
def test_errors_of_nothing_leave_a_floor(error, chi2):
    noise = NoiseHeads()
    average = {"noise.energy_scale": torch.ones(()), "noise.force_scale": torch.ones(())}
    metrics = {"energy_mse": error, "forces_mse": error, "energy_chi2": chi2}
    set_first_scales(noise, average, lambda: metrics, 2.0)
    for name in ("energy_scale", "force_scale"):
        assert float(getattr(noise, name)) == pytest.approx((2e-4) ** 2)
        assert torch.equal(getattr(noise, name), average[f"noise.{name}"])
