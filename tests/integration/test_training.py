"""Training as a whole: exact resume, seeds, averages, stopping, and members in a folder."""

import csv
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import read, write
from tiny import assert_same

from ase_bayesmlip.config import Config, from_dict
from ase_bayesmlip.nn.build import build_potential
from ase_bayesmlip.posteriors import RunOptions, ensemble, point
from ase_bayesmlip.posteriors.members import load_members
from ase_bayesmlip.structures.reading import DataError
from ase_bayesmlip.training.data import GraphDataset, load_training_data
from ase_bayesmlip.training.outputs import evaluate
from ase_bayesmlip.training.state import Checkpoint
from ase_bayesmlip.training.trainer import Trainer

DATA = Path(__file__).parents[2] / "data"


def make_config(**sections) -> Config:
    content = {
        "data": {
            "train": f"{DATA}/ethanol_valid.extxyz@0:6",
            "valid": f"{DATA}/ethanol_valid.extxyz@30:33",
            "reference_energies": f"{DATA}/isolated_atoms.extxyz",
        },
        "model": {
            "cutoff": 2.5,
            "n_layers": 1,
            "hidden_irreps": "8x0e + 8x1o + 8x2e",
            "n_radial": 4,
            "radial_hidden": [8],
            "readout_hidden": 8,
        },
        "training": {
            "epochs": 10,
            "batch_size": 2,
            "warmup_steps": 3,
            "evaluate_every": 2,
            "dtype": "float64",
        },
        "loss": {"warmup_fraction": 0.5},
        "posterior": {"kind": "ensemble", "members": 2},
    }
    for name, values in sections.items():
        # Another kind of posterior has other settings.
        before = {} if "kind" in values and name == "posterior" else content.get(name, {})
        content[name] = {**before, **values}
    return from_dict(Config, content)


def make_trainer(
    config: Config, folder: Path, seed: int = 0, resume: bool = False, **arguments
) -> Trainer:
    data = load_training_data(config)
    dtype = getattr(torch, config.training.dtype)
    train, valid = (
        GraphDataset(frames, data.references, config.model.cutoff, dtype)
        for frames in (data.train, data.valid)
    )
    potential = build_potential(config.model, config.loss, data.statistics, seed, dtype)
    trainer = Trainer(potential, train, valid, config, **arguments)
    trainer.open(folder, resume)
    return trainer


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def kept(path: Path) -> dict:
    """All that a checkpoint holds but the times."""
    return {**vars(Checkpoint.read(path)), "seconds": []}


def trained(trainer: Trainer):
    trainer.run(progress=False)
    trainer.potential.load_state_dict(trainer.now.best)
    return trainer.potential.requires_grad_(False)


def assert_same_run(one: Path, other: Path) -> None:
    assert_same(*(kept(folder / "checkpoint.pt") for folder in (one, other)))
    tables = [[{**row, "seconds": ""} for row in rows(folder)] for folder in (one, other)]
    assert tables[0] == tables[1]


def slow(value):
    """A case for the long rest of the tests."""
    return pytest.param(value, marks=pytest.mark.slow)


# --- resume --------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["cosine", slow("constant")])
@pytest.mark.parametrize("stop", [slow(3), 5, slow(7)])
def test_resume_is_exact_before_at_and_after_the_change_of_loss(tmp_path, stop, schedule):
    config = make_config(training={"schedule": schedule})
    whole = trained(make_trainer(config, tmp_path / "whole"))
    make_trainer(config, tmp_path / "parts").run(progress=False, until=stop)
    assert Checkpoint.read(tmp_path / "parts/checkpoint.pt").done == stop
    # Other initial weights: everything must come from the checkpoint.
    resumed = trained(make_trainer(config, tmp_path / "parts", seed=9, resume=True))
    assert_same(dict(whole.state_dict()), dict(resumed.state_dict()))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    phases = [row["phase"] for row in rows(tmp_path / "whole")]
    assert phases == ["mse"] * 2 + ["nll_jef"] * 3


@pytest.mark.parametrize("step", [slow(1), slow(10), 17, slow(28)])
def test_interruption_in_the_middle_of_an_epoch_loses_nothing(tmp_path, step, monkeypatch):
    config = make_config()
    make_trainer(config, tmp_path / "whole").run(progress=False)
    trainer = make_trainer(config, tmp_path / "parts")
    take_step, calls = trainer._step, []

    def interrupted(value):
        calls.append(value)
        if len(calls) == step:
            raise KeyboardInterrupt
        take_step(value)

    monkeypatch.setattr(trainer, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(progress=False)
    make_trainer(config, tmp_path / "parts", resume=True).run(progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_metrics_written_after_the_checkpoint_are_written_once(tmp_path, monkeypatch):
    config = make_config()
    make_trainer(config, tmp_path / "whole").run(progress=False)
    trainer = make_trainer(config, tmp_path / "parts")
    save = trainer._save

    def interrupted():
        if trainer.done == 6:
            raise KeyboardInterrupt
        save()

    monkeypatch.setattr(trainer, "_save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(progress=False)
    assert [row["epoch"] for row in rows(tmp_path / "parts")] == ["2", "4", "6"]
    make_trainer(config, tmp_path / "parts", resume=True).run(progress=False)
    assert [row["epoch"] for row in rows(tmp_path / "parts")] == ["2", "4", "6", "8", "10"]
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_resume_of_a_finished_run_changes_nothing(tmp_path):
    config = make_config(training={"epochs": 2})
    make_trainer(config, tmp_path / "run").run(progress=False)
    before = (tmp_path / "run/checkpoint.pt").read_bytes()
    make_trainer(config, tmp_path / "run", resume=True).run(progress=False)
    assert (tmp_path / "run/checkpoint.pt").read_bytes() == before


def test_without_resume_the_folder_starts_anew(tmp_path):
    config = make_config(training={"epochs": 4})
    for _ in range(2):
        make_trainer(config, tmp_path / "run").run(progress=False)
        assert [row["epoch"] for row in rows(tmp_path / "run")] == ["2", "4"]


def test_a_trainer_may_go_on_by_itself(tmp_path):
    config = make_config()
    make_trainer(config, tmp_path / "whole").run(progress=False)
    trainer = make_trainer(config, tmp_path / "parts")
    trainer.run(progress=False, until=4)
    trainer.run(progress=False)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("training", {"learning_rate": 0.5}, r"training\.learning_rate: .* -> 0\.5"),
        ("training", {"epochs": 20}, r"training\.epochs: 10 -> 20"),
        ("loss", {"beta": 0.0}, r"loss\.beta: .* -> 0\.0"),
        ("model", {"cutoff": 2.4}, r"model\.cutoff: 2\.5 -> 2\.4"),
    ],
)
def test_other_settings_do_not_continue_a_run(tmp_path, section, changes, message):
    make_trainer(make_config(), tmp_path / "run").run(progress=False, until=1)
    with pytest.raises(ValueError, match=rf"other settings \({message}\)"):
        make_trainer(make_config(**{section: changes}), tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match=r"shuffling_seed: 0 -> 1"):
        make_trainer(make_config(), tmp_path / "run", shuffling_seed=1, resume=True)


def test_checkpoint_that_cannot_be_read(tmp_path):
    make_trainer(make_config(), tmp_path / "run").run(progress=False, until=1)
    path = tmp_path / "run/checkpoint.pt"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is not a readable checkpoint"):
        make_trainer(make_config(), tmp_path / "run", resume=True)
    torch.save({"version": 99}, path)
    with pytest.raises(ValueError, match="not a checkpoint of version 1"):
        Checkpoint.read(path)
    torch.save({"version": 1, "code": Path}, path)
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        Checkpoint.read(path)


def test_checkpoint_holds_plain_data_and_is_replaced_at_once(tmp_path):
    make_trainer(make_config(), tmp_path / "run").run(progress=False, until=1)
    state = Checkpoint.read(tmp_path / "run/checkpoint.pt")
    state.write(tmp_path / "copy.pt")
    assert_same(vars(Checkpoint.read(tmp_path / "copy.pt")), vars(state))
    assert not list(tmp_path.rglob(".*.pt.*"))


# --- the loop ------------------------------------------------------------------------------------


def test_average_is_the_exponential_average_of_the_weights(tmp_path, monkeypatch):
    config = make_config(training={"ema_decay": 0.7, "epochs": 4})
    trainer = make_trainer(config, tmp_path / "run")
    expected = {name: v.clone() for name, v in trainer.potential.state_dict().items()}
    take_step, n_steps = trainer._step, 0

    def followed(value):
        nonlocal n_steps
        take_step(value)
        n_steps += 1
        # Short memory at first, so that the start is forgotten.
        decay = min(0.7, n_steps / (n_steps + 10))
        for name, parameter in trainer.potential.named_parameters():
            expected[name] = decay * expected[name] + (1.0 - decay) * parameter.detach()

    monkeypatch.setattr(trainer, "_step", followed)
    trainer.run(progress=False)
    assert n_steps == 12
    average = Checkpoint.read(tmp_path / "run/checkpoint.pt").state["average"]
    for name, _ in trainer.potential.named_parameters():
        torch.testing.assert_close(average[name], expected[name], rtol=1e-12, atol=1e-14)


def test_training_improves_and_keeps_the_best(tmp_path):
    config = make_config(
        loss={"kind": "mse"}, training={"epochs": 20, "evaluate_every": 1, "learning_rate": 0.02}
    )
    trainer = make_trainer(config, tmp_path / "run")
    best = trained(trainer)
    losses = [float(row["valid_loss"]) for row in rows(tmp_path / "run")]
    assert min(losses) < 0.5 * losses[0]
    assert Checkpoint.read(tmp_path / "run/checkpoint.pt").state["best_loss"] == min(losses)
    force, n = 0.0, 0
    for graph, labels in trainer.valid_set.batches(range(3), 3):
        error = evaluate(best, graph, False, False).forces.detach() - labels.forces
        force, n = force + float((error**2).sum()), n + error.numel()
    table = rows(tmp_path / "run")[int(np.argmin(losses))]
    assert float(table["valid_forces_rmse_meV_per_A"]) == pytest.approx(1e3 * math.sqrt(force / n))


@pytest.mark.parametrize("kind", ["mse", "nll_e", "nll_jef"])
@pytest.mark.parametrize("warmup", ["mse", "huber"])
def test_phases(tmp_path, kind, warmup):
    config = make_config(loss={"kind": kind, "warmup": warmup}, training={"evaluate_every": 1})
    trainer = make_trainer(config, tmp_path / "run")
    last = warmup if kind == "mse" else kind
    assert [trainer.phase(epoch) for epoch in range(10)] == [warmup] * 5 + [last] * 5


@pytest.mark.parametrize("fraction", [0.96, 1.0])
def test_the_last_epoch_is_never_warmup(tmp_path, fraction):
    # Otherwise a file would report noise that nothing trained.
    config = make_config(loss={"warmup_fraction": fraction})
    trainer = make_trainer(config, tmp_path / "run")
    assert [trainer.phase(epoch) for epoch in (8, 9)] == ["mse", "nll_jef"]


def test_likelihood_starts_with_error_bars_of_the_size_of_the_errors(tmp_path):
    config = make_config(training={"evaluate_every": 1})
    trainer = make_trainer(config, tmp_path / "run")
    trainer.run(progress=False, until=5)
    before = rows(tmp_path / "run")[-1]
    trainer = make_trainer(config, tmp_path / "run", resume=True)
    trainer.run(progress=False, until=6)
    state = Checkpoint.read(tmp_path / "run/checkpoint.pt").state
    rmse = 1e-3 * float(before["valid_forces_rmse_meV_per_A"])
    assert float(state["model"]["noise.force_scale"]) == pytest.approx(rmse**2, rel=1e-9)
    rmse = 1e-3 * float(before["valid_energy_rmse_meV_per_atom"])
    # ΔE²/n per structure of n = 9 atoms.
    assert float(state["model"]["noise.energy_scale"]) == pytest.approx(9 * rmse**2, rel=1e-9)
    for name in ("noise.energy_scale", "noise.force_scale"):
        torch.testing.assert_close(state["average"][name], state["model"][name])


def no_improvement(trainer: Trainer, monkeypatch) -> None:
    validate = trainer._validate
    monkeypatch.setattr(trainer, "_validate", lambda: {**validate(), "loss": 1.0})


def test_early_stopping_in_the_final_phase(tmp_path, monkeypatch):
    config = make_config(
        loss={"kind": "mse"}, training={"epochs": 30, "evaluate_every": 2, "patience": 3}
    )
    trainer = make_trainer(config, tmp_path / "run")
    no_improvement(trainer, monkeypatch)
    trainer.run(progress=False)
    # The first evaluation is the best one, three more bring nothing.
    assert [row["epoch"] for row in rows(tmp_path / "run")] == ["2", "4", "6", "8"]
    assert Checkpoint.read(tmp_path / "run/checkpoint.pt").finished


def test_early_stopping_does_not_skip_the_likelihood(tmp_path, monkeypatch):
    config = make_config(training={"evaluate_every": 1, "patience": 2})
    trainer = make_trainer(config, tmp_path / "run")
    no_improvement(trainer, monkeypatch)
    trainer.run(progress=False)
    phases = [row["phase"] for row in rows(tmp_path / "run")]
    # Five epochs of warm-up whatever happens, then the best and two more.
    assert phases == ["mse"] * 5 + ["nll_jef"] * 3


def test_patience_may_change_between_parts_of_a_run(tmp_path):
    make_trainer(make_config(), tmp_path / "run").run(progress=False, until=2)
    config = make_config(training={"patience": 5})
    trainer = make_trainer(config, tmp_path / "run", resume=True)
    assert trainer.done == 2


def test_divergence_says_what_to_do_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    config = make_config()
    trainer = make_trainer(config, tmp_path / "run")
    trainer.run(progress=False, until=2)
    trainer = make_trainer(config, tmp_path / "run", resume=True)
    with torch.no_grad():
        trainer.potential.embedding.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"epoch 3.*lower training\.learning_rate"):
        trainer.run(progress=False)
    found = Checkpoint.read(tmp_path / "run/checkpoint.pt")
    assert found.done == 2
    weights = found.state["model"].values()
    assert all(torch.isfinite(v).all() for v in weights if v.is_floating_point())


def test_stress_labels_are_trained(tmp_path):
    data = {
        "train": f"{DATA}/co2_train.extxyz@0:2",
        "valid": f"{DATA}/co2_valid.extxyz@0:1",
    }
    results = []
    for weight in (0.0, 1000.0):
        config = make_config(
            data=data, training={"epochs": 3}, loss={"kind": "mse", "stress_weight": weight}
        )
        trainer = make_trainer(config, tmp_path / f"run-{weight}")
        assert trainer.stress
        results.append(trained(trainer).state_dict()["embedding"])
    assert not torch.equal(*results)


def test_unknown_element_in_the_validation_frames(tmp_path):
    config = make_config(
        data={"train": f"{DATA}/co2_train.extxyz@0:2", "reference_energies": "fit"}
    )
    with pytest.raises(DataError, match=r"ethanol_valid\.extxyz#30: the model does not know.* H"):
        make_trainer(config, tmp_path / "run")


def test_statistics_of_the_data():
    data = load_training_data(make_config())
    forces = np.concatenate([frame.forces for frame in data.train])
    assert data.statistics.force_rms == pytest.approx(np.sqrt((forces**2).mean()), rel=1e-12)
    distances = [frame.atoms.get_all_distances() for frame in data.train]
    pairs = sum(((d < 2.5) & (d > 0)).sum() for d in distances)
    assert data.statistics.avg_n_neighbors == pytest.approx(pairs / len(forces), rel=1e-12)
    assert data.statistics.atomic_numbers == [1, 6, 8]


def test_frames_without_forces_leave_no_scale(tmp_path):
    frame = read(DATA / "ethanol_valid.extxyz", index=0)
    frame.arrays["REF_forces"] = np.zeros((len(frame), 3))
    path = tmp_path / "still.extxyz"
    write(path, frame)
    config = make_config(data={"train": str(path), "valid": str(path)})
    with pytest.raises(DataError, match="all training forces are zero"):
        load_training_data(config)


# --- members -------------------------------------------------------------------------------------

SHORT = {"epochs": 2, "evaluate_every": 1}


def fit(folder: Path, config: Config | None = None, **arguments):
    config = config or make_config(training=SHORT)
    return ensemble.fit(config, folder, RunOptions(progress=False, **arguments))


def test_members_differ_and_a_run_repeats(tmp_path):
    first, again = fit(tmp_path / "a"), fit(tmp_path / "b")
    assert_same(list(first.weights), list(again.weights))
    one, other = first.weights
    assert not torch.equal(one["embedding"], other["embedding"])
    assert first.record == again.record


@pytest.mark.parametrize("seed", ["initialisation", "shuffling"])
def test_each_seed_changes_the_members(tmp_path, seed):
    first = fit(tmp_path / "a")
    second = fit(tmp_path / "b", make_config(training=SHORT, seeds={seed: 5}))
    assert not torch.equal(first.weights[0]["embedding"], second.weights[0]["embedding"])


def test_initialisation_alone_decides_the_start(tmp_path):
    trainers = [
        make_trainer(make_config(), tmp_path / name, seed=seed, shuffling_seed=shuffling)
        for name, seed, shuffling in (("a", 0, 0), ("b", 0, 1), ("c", 1, 0))
    ]
    a, b, c = (trainer.potential.state_dict()["embedding"] for trainer in trainers)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_members_start_from_consecutive_seeds(tmp_path):
    config = make_config(training=SHORT, seeds={"initialisation": 1, "shuffling": 1})
    shifted, members = fit(tmp_path / "a", config), fit(tmp_path / "b")
    assert_same(shifted.weights[0], members.weights[1])


def test_bootstrap_resamples_the_training_set(tmp_path):
    config = make_config(training=SHORT, posterior={"members": 2, "bootstrap": True})
    resampled, plain = fit(tmp_path / "a", config), fit(tmp_path / "b")
    assert_same(list(resampled.weights), list(fit(tmp_path / "c", config).weights))
    assert not torch.equal(resampled.weights[0]["embedding"], plain.weights[0]["embedding"])


def test_order_with_repetitions_trains_on_those_frames(tmp_path):
    config = make_config(loss={"kind": "mse"}, training={**SHORT, "batch_size": 4})
    repeated = make_trainer(config, tmp_path / "a", order=[2, 2, 2, 2])
    seen = []
    batches = repeated.train_set.batches
    repeated.train_set.batches = lambda order, size: seen.append(order) or batches(order, size)
    repeated.run(progress=False)
    assert seen == [[2, 2, 2, 2]] * 2


@pytest.mark.slow
def test_processes_train_the_same_members(tmp_path):
    one, two = fit(tmp_path / "a"), fit(tmp_path / "b", jobs=2)
    for first, second in zip(one.weights, two.weights, strict=True):
        for name, value in first.items():
            # The number of threads may differ, and with it the order of sums.
            torch.testing.assert_close(value, second[name], rtol=1e-9, atol=1e-9)


def test_a_run_is_not_overwritten(tmp_path):
    first = fit(tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match=r"already holds a run; continue it with --resume"):
        fit(tmp_path / "run", make_config(training={"epochs": 3}))
    assert before == {path: path.read_bytes() for path in before}
    assert_same(list(fit(tmp_path / "run", resume=True).weights), list(first.weights))


def test_resume_with_other_settings_leaves_the_run_as_it_was(tmp_path):
    fit(tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="other settings"):
        fit(tmp_path / "run", make_config(training={"epochs": 3, "evaluate_every": 1}), resume=True)
    assert before == {path: path.read_bytes() for path in before}
    assert load_members(tmp_path / "run").config == make_config(training=SHORT)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": f"{DATA}/ethanol_valid.extxyz@1:7"}, "the train frames have changed"),
        ({"valid": f"{DATA}/ethanol_valid.extxyz@31:34"}, "the valid frames have changed"),
        ({"reference_energies": {"H": -10.0, "C": -50.0, "O": -100.0}}, "reference energies"),
    ],
)
def test_resume_with_other_data(tmp_path, data, message):
    fit(tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        fit(tmp_path / "run", make_config(training=SHORT, data=data), resume=True)


def test_data_may_move(tmp_path):
    first = fit(tmp_path / "run")
    moved = tmp_path / "moved.extxyz"
    moved.write_text((DATA / "ethanol_valid.extxyz").read_text())
    config = make_config(training=SHORT, data={"train": f"{moved}@0:6"})
    assert_same(list(fit(tmp_path / "run", config, resume=True).weights), list(first.weights))


def test_unfinished_and_missing_members(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no run"):
        load_members(tmp_path)
    fit(tmp_path / "run")
    checkpoint = tmp_path / "run/member-01/checkpoint.pt"
    found = Checkpoint.read(checkpoint)
    dataclasses.replace(found, finished=False, done=1).write(checkpoint)
    with pytest.raises(ValueError, match=r"member-01.*stopped after step 1 of 2; finish it"):
        load_members(tmp_path / "run")
    checkpoint.unlink()
    with pytest.raises(FileNotFoundError, match=r"member-01.*is missing"):
        load_members(tmp_path / "run")


def test_run_records_what_it_was_made_from(tmp_path):
    state = fit(tmp_path / "run")
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record == state.record
    assert (record["n_train"], record["n_valid"]) == (6, 3)
    assert len(record["train_sha256"]) == 64
    assert record["has_stress"] is False
    assert len(record["probe"]["numbers"]) == 9
    assert state.config == make_config(training=SHORT)


def test_members_are_rebuilt_in_double_precision(tmp_path):
    config = make_config(training={**SHORT, "dtype": "float32"})
    state = fit(tmp_path / "run", config)
    for potential, weights in zip(state.potentials(), state.weights, strict=True):
        assert weights["embedding"].dtype == torch.float32
        for name, value in potential.state_dict().items():
            assert torch.equal(value, weights[name].to(value.dtype))
        assert potential.embedding.dtype == torch.float64
        assert not potential.embedding.requires_grad


# --- draw ----------------------------------------------------------------------------------------


def test_draws_of_an_ensemble(tmp_path):
    config = make_config(training={**SHORT, "epochs": 1}, posterior={"members": 3})
    state = fit(tmp_path / "run", config)
    generator = torch.Generator().manual_seed(0)
    embeddings = [weights["embedding"] for weights in state.weights]
    everything = ensemble.draw(state, None, generator)
    assert all(torch.equal(p.embedding, e) for p, e in zip(everything, embeddings, strict=True))
    drawn = set()
    for _ in range(20):
        pair = ensemble.draw(state, 2, generator)
        found = [
            next(k for k, e in enumerate(embeddings) if torch.equal(e, p.embedding)) for p in pair
        ]
        assert len(set(found)) == 2
        drawn.add(tuple(found))
    assert drawn == {(0, 1), (0, 2), (1, 2)}
    for n in (0, 1, 4):
        with pytest.raises(ValueError, match=r"asked of 3 trained members .* choose 2 to all"):
            ensemble.draw(state, n, generator)


def test_point_model(tmp_path):
    config = make_config(training=SHORT, posterior={"kind": "point"})
    state = point.fit(config, tmp_path / "run", RunOptions(progress=False))
    generator = torch.Generator()
    assert len(state.weights) == len(point.draw(state, None, generator)) == 1
    assert len(point.draw(state, 1, generator)) == 1
    with pytest.raises(ValueError, match="holds exactly 1"):
        point.draw(state, 2, generator)
    # The first member of an ensemble and a point model of the same seeds are the same.
    assert_same(state.weights[0], fit(tmp_path / "ensemble").weights[0])


def test_ensemble_of_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"needs at least 2.*posterior\.kind point"):
        fit(tmp_path / "run", make_config(posterior={"members": 1}))
    assert not (tmp_path / "run").exists()
