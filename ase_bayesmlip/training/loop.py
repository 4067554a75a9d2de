"""The training loop of one potential: warm-up, likelihood, moving average, exact resume."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ase_bayesmlip.config import Config
from ase_bayesmlip.nn.potential import Potential
from ase_bayesmlip.training.data import GraphDataset
from ase_bayesmlip.training.distributed import of_first_rank, own_batches, rank, sum_over_ranks
from ase_bayesmlip.training.first_scales import set_first_scales
from ase_bayesmlip.training.log import METRICS_FILE, append_metrics, truncate_metrics
from ase_bayesmlip.training.loss import final_loss, loss
from ase_bayesmlip.training.outputs import evaluate
from ase_bayesmlip.training.state import (
    TrainingState,
    differences,
    load_state,
    run_identity,
    save_state,
)
from ase_bayesmlip.training.validation import (
    other_weights,
    validation_metrics,
    warn_if_saturated,
)


class Trainer:
    """Train one potential in a folder of its own, under torchrun on all its processes.

    Parameters
    ----------
    potential : Potential
        Built for ``config.loss.kind``, in the dtype and on the device of the data.
    train, valid : GraphDataset
    config : Config
    folder : Path
        Gets ``checkpoint.pt`` and ``metrics.csv``.
    shuffling_seed : int
    resume : bool
        Continue from the checkpoint in the folder, if there is one.
    order : sequence of int, optional
        Indices of the training structures, repeated ones allowed (bootstrap).
    warm : bool
        Whether the potential is trained already, so that there is no warm-up.
    """

    def __init__(
        self,
        potential: Potential,
        train: GraphDataset,
        valid: GraphDataset,
        config: Config,
        folder: Path,
        shuffling_seed: int = 0,
        resume: bool = False,
        order: Sequence[int] | None = None,
        warm: bool = False,
    ) -> None:
        self.potential = potential
        self.train_set, self.valid_set = train, valid
        self.config = config
        self.folder = folder
        self.shuffling_seed = shuffling_seed
        self.warm = warm
        trained = [p for p in potential.parameters() if p.requires_grad]
        # Forces are differentiated again by the weights, unless those below the heads are fixed.
        self.create_graph = potential.embedding.requires_grad
        self.order = np.arange(len(train)) if order is None else np.asarray(order)
        self.unit = float(potential.scale)
        self.stress = any(bool(labels.has_stress) for _, labels in train.items)
        self.optimizer = torch.optim.AdamW(
            trained,
            lr=config.training.learning_rate,
            weight_decay=config.training.weight_decay,
            amsgrad=True,
        )
        self.state = self._initial_state(shuffling_seed)
        self.writes = rank() == 0
        if resume and (folder / "checkpoint.pt").exists():
            self._restore()
        elif self.writes:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / METRICS_FILE).unlink(missing_ok=True)

    def _initial_state(self, shuffling_seed: int) -> TrainingState:
        weights = self._weights()
        identity = run_identity(self.config)
        identity |= {"shuffling_seed": shuffling_seed, "n_train": len(self.order)}
        return TrainingState(
            epoch=0,
            step=0,
            model={},
            average={name: value.clone() for name, value in weights.items()},
            best={name: value.clone() for name, value in weights.items()},
            optimizer={},
            best_loss=math.inf,
            n_stale=0,
            phase=self.phase(0),
            phase_start=0,
            finished=False,
            identity=identity,
        )

    def _restore(self) -> None:
        path = self.folder / "checkpoint.pt"
        stored = load_state(path, device=self.potential.scale.device)
        if stored.identity != self.state.identity:
            changed = differences(stored.identity, self.state.identity)
            raise ValueError(
                f"{path} belongs to a run with other settings ({'; '.join(changed)}); restore "
                "them, or train into another folder"
            )
        self.state = stored
        self.potential.load_state_dict(stored.model)
        self.optimizer.load_state_dict(stored.optimizer)
        for moments in self.optimizer.state.values():
            # A step counter on the GPU would cost a synchronisation per parameter and step.
            moments["step"] = moments["step"].cpu()
        if self.writes:
            truncate_metrics(self.folder / METRICS_FILE, self.state.epoch)

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.potential.state_dict().items()}

    def phase(self, epoch: int) -> str:
        """Name of the loss in an epoch: the warm-up's first, then the configured one."""
        config = self.config
        warmup_epochs = round(config.loss.warmup_fraction * config.training.epochs)
        # A model with noise heads must not be left with heads that nothing trained.
        warmup_epochs = 0 if self.warm else min(warmup_epochs, config.training.epochs - 1)
        return config.loss.warmup if epoch < warmup_epochs else final_loss(config.loss)

    def run(self, progress: bool = True, until: int | None = None, position: int = 0) -> Potential:
        """Train to the configured number of epochs (or `until`) and return the best potential.

        An interruption loses the unfinished epoch alone. `position` is the line of the progress
        bar, where several members train at a time.
        """
        training = self.config.training
        last = training.epochs if until is None else min(until, training.epochs)
        bar = tqdm(
            total=training.epochs,
            initial=self.state.epoch,
            desc=self.folder.name,
            unit="epoch",
            disable=not progress,
            position=position,
        )
        started = time.monotonic()
        with bar:
            while self.state.epoch < last and not self.state.finished:
                self._enter_phase()
                train_loss = self._epoch()
                self.state.epoch += 1
                due = self.state.epoch % training.evaluate_every == 0
                if due or self.state.epoch == training.epochs:
                    metrics = self._validate()
                    self._keep_best(metrics["loss"])
                    self._log(train_loss, metrics, time.monotonic() - started)
                    bar.set_postfix(F=f"{metrics['forces_rmse_meV_per_A']:.1f} meV/Å")
                self.state.finished |= self.state.epoch == training.epochs
                if self.state.finished:
                    self._rescale_noise()
                self._save()
                bar.update()
        return self.best_potential()

    def best_potential(self) -> Potential:
        """The potential with the best averaged weights, without gradients."""
        potential = copy.deepcopy(self.potential)
        potential.load_state_dict(self.state.best)
        return potential.eval().requires_grad_(False)

    def _epoch(self) -> float:
        phase, config = self.state.phase, self.config.loss
        generator = np.random.default_rng([self.shuffling_seed, self.state.epoch])
        order = generator.permutation(self.order).tolist()
        losses = []
        batch_size = self.config.training.batch_size
        n_batches = math.ceil(len(order) / batch_size)
        batches = own_batches(self.train_set, order, batch_size, phase, config)
        for graph, labels, weighted in batches:
            rate = self._learning_rate(n_batches)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            outputs = evaluate(self.potential, graph, self.stress, self.create_graph)
            value = loss(phase, weighted, outputs, labels, graph, self.unit)
            self.optimizer.zero_grad(set_to_none=True)
            value.backward()
            value = sum_over_ranks(value.detach(), self.potential)
            self._step(value)
            losses.append(value)
        return float(torch.stack(losses).mean())

    def _step(self, value: Tensor) -> None:
        parameters = [p for p in self.potential.parameters() if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.training.clip_norm)
        if not bool(torch.isfinite(norm)):
            raise FloatingPointError(
                f"training diverged in epoch {self.state.epoch + 1} (loss {value.item():.3g}, "
                f"gradient {float(norm):.3g}); lower training.learning_rate and train into "
                "another folder"
            )
        self.optimizer.step()
        self.state.step += 1
        self._update_average()

    def _update_average(self) -> None:
        # The average of the first steps is over those steps: it must not remember the start.
        decay = min(self.config.training.ema_decay, self.state.step / (self.state.step + 10))
        weights = self._weights()
        floating = [name for name, value in weights.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [self.state.average[name] for name in floating],
            [weights[name] for name in floating],
            1.0 - decay,
        )

    def _learning_rate(self, n_batches: int) -> float:
        training = self.config.training
        step, total = self.state.step, training.epochs * n_batches
        in_phase = step - self.state.phase_start
        rate = training.learning_rate * min(1.0, (in_phase + 1) / max(training.warmup_steps, 1))
        if training.schedule == "cosine":
            rate *= 0.5 * (1.0 + math.cos(math.pi * min(step / total, 1.0)))
        return rate

    def _enter_phase(self) -> None:
        """On the change from warm-up to likelihood, start the error bars from the errors."""
        phase = self.phase(self.state.epoch)
        if phase == self.state.phase and self.state.epoch > 0:
            return
        self.state.phase, self.state.phase_start = phase, self.state.step
        self.state.best_loss, self.state.n_stale = math.inf, 0
        if phase not in ("mse", "huber"):
            # The likelihood is another objective: it starts from the averaged weights, whose
            # errors the scales are, and with fresh moments, since those of the warm-up know
            # nothing of the noise heads and would make their first steps far too long.
            self.potential.load_state_dict(self.state.average)
            self.optimizer.state.clear()
            set_first_scales(self.potential.noise, self.state.average, self._validate, self.unit)

    def _rescale_noise(self) -> None:
        """Give the error bars of the best weights the size of the validation errors.

        A common factor c of all variances has its most likely value in closed form, c = ⟨r²/σ²⟩,
        or for Student-t laws by a short iteration.
        Means improve faster than the noise heads follow at the end of the schedule, so that
        without this the error bars are those of an earlier, less accurate potential.
        """
        kind = self.config.loss.kind
        if kind in ("mse", "eip"):  # eIP as published is not corrected
            return
        metrics = self._evaluate(self.state.best, kind)
        self.state.best["noise.energy_scale"] *= metrics["energy_chi2"]
        if kind != "nll_e":
            self.state.best["noise.force_scale"] *= metrics["forces_chi2"]
        warn_if_saturated(metrics, self.folder)

    def _validate(self) -> dict[str, float]:
        """Loss and errors of the averaged weights on the validation structures."""
        return self._evaluate(self.state.average, self.state.phase)

    def _evaluate(self, weights: dict[str, Tensor], kind: str) -> dict[str, float]:
        with other_weights(self.potential, weights):
            metrics = validation_metrics(
                self.potential, self.valid_set, kind, self.config.loss, self.stress, self.unit
            )
        return of_first_rank(metrics, self.potential.scale.device)

    def _keep_best(self, valid_loss: float) -> None:
        if not math.isfinite(valid_loss):
            raise FloatingPointError(
                f"the validation loss is {valid_loss} after epoch {self.state.epoch}; lower "
                "training.learning_rate and train into another folder"
            )
        if valid_loss < self.state.best_loss:
            self.state.best_loss, self.state.n_stale = valid_loss, 0
            self.state.best = {name: v.clone() for name, v in self.state.average.items()}
            return
        self.state.n_stale += 1
        patience = self.config.training.patience
        final = self.state.phase == self.phase(self.config.training.epochs)
        self.state.finished |= final and 0 < patience <= self.state.n_stale

    def _save(self) -> None:
        if not self.writes:
            return
        state = dataclasses.replace(
            self.state,
            model=self._weights(),
            optimizer=self.optimizer.state_dict(),
        )
        save_state(state, self.folder / "checkpoint.pt")

    def _log(self, train_loss: float, metrics: dict[str, float], seconds: float) -> None:
        row = {
            "epoch": self.state.epoch,
            "phase": self.state.phase,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "train_loss": train_loss,
            "valid_loss": metrics["loss"],
            "valid_energy_rmse_meV_per_atom": metrics["energy_rmse_meV_per_atom"],
            "valid_forces_rmse_meV_per_A": metrics["forces_rmse_meV_per_A"],
            "seconds": round(seconds, 2),
        }
        if "saturated" in metrics:
            row["saturated"] = metrics["saturated"]
        if self.writes:
            append_metrics(self.folder / METRICS_FILE, row)
