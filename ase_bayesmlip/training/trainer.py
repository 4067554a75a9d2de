"""The training of one potential: warm-up, likelihood, moving average."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ase_bayesmlip.config import Config, LossConfig
from ase_bayesmlip.graph import AtomicGraph
from ase_bayesmlip.nn.potential import Potential
from ase_bayesmlip.training.data import GraphDataset, Labels
from ase_bayesmlip.training.distributed import rank
from ase_bayesmlip.training.epochs import Epochs, row_of
from ase_bayesmlip.training.evidence import fit_evidence
from ase_bayesmlip.training.few_frames import warn_of_few_frames
from ase_bayesmlip.training.first_scales import set_first_scales
from ase_bayesmlip.training.log import METRICS_FILE
from ase_bayesmlip.training.loss import final_loss
from ase_bayesmlip.training.validation import other_weights, warn_if_saturated


@dataclasses.dataclass
class TrainingState:
    """What changes while training, beside weights and optimizer.

    Attributes
    ----------
    average, best : dict of str to Tensor
        Moving average of the weights, and that with the lowest validation loss.
    phase : str
        Loss of the current phase; a change resets `best_loss`.
    step, phase_start : int
        Optimiser steps, and those at which the phase began.
    best_loss : float
    n_stale : int
        Evaluations since `best_loss` improved.
    """

    average: dict[str, Tensor]
    best: dict[str, Tensor]
    phase: str
    step: int = 0
    phase_start: int = 0
    best_loss: float = math.inf
    n_stale: int = 0


class Trainer(Epochs):
    """Train one potential, under torchrun on all its processes.

    Parameters
    ----------
    potential : Potential
        Built for ``config.loss.kind``, in the dtype and on the device of the data.
    train, valid : GraphDataset
    config : Config
    shuffling_seed : int
    order : sequence of int, optional
        Indices of the training structures, repeated ones allowed (bootstrap).
    warm : bool
        Whether the potential is trained already, so that there is no warm-up.
    """

    name, log, section = "checkpoint", METRICS_FILE, "training"

    def __init__(
        self,
        potential: Potential,
        train: GraphDataset,
        valid: GraphDataset,
        config: Config,
        shuffling_seed: int = 0,
        order: Sequence[int] | None = None,
        warm: bool = False,
    ) -> None:
        self.warm = warm
        super().__init__(potential, train, valid, config, shuffling_seed)
        if order is not None:
            self.order = np.asarray(order)
        self.identity["n_train"] = len(self.order)

    def prepare(self) -> None:
        """Start from the weights that the potential has."""
        self.optimizer = self.adamw(self.settings.learning_rate)
        average, best = (
            {name: value.clone() for name, value in self._weights().items()} for _ in range(2)
        )
        self.now = TrainingState(average, best, self.phase(0))

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.potential.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """Weights, optimizer and `TrainingState`."""
        return {
            "model": self._weights(),
            "optimizer": self.optimizer.state_dict(),
            **vars(self.now),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        names = [field.name for field in dataclasses.fields(TrainingState)]
        self.now = TrainingState(**{name: state[name] for name in names})
        self.potential.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for moments in self.optimizer.state.values():
            # A step counter on the GPU would cost a synchronisation per parameter and step.
            moments["step"] = moments["step"].cpu()

    def phase(self, epoch: int) -> str:
        """Name of the loss in an epoch: the warm-up's first, then the configured one."""
        settings, last = self.config.loss, self.schedule.epochs - 1
        # A model with noise heads must not be left with heads that nothing trained.
        warmup_epochs = min(self.schedule.epoch_of(settings.warmup_fraction), last)
        is_warmup = epoch < warmup_epochs and not self.warm
        return settings.warmup if is_warmup else final_loss(settings)

    def step(self, index: int) -> dict[str, Any] | None:
        """One epoch, and a look at the validation structures when it is due."""
        self._enter_phase(index)
        train_loss = self.epoch(index)
        row = None
        if (index + 1) % self.config.training.evaluate_every == 0 or self.is_last:
            metrics = self._validate()
            self._keep_best(metrics["loss"])
            row = {
                "phase": self.now.phase,
                "learning_rate": self.optimizer.param_groups[0]["lr"],
                "train_loss": train_loss,
                **row_of(metrics),
                "seconds": round(self.spent(), 2),
            }
            row |= {name: metrics[name] for name in ("saturated",) if name in metrics}
        if self.finished or self.is_last:
            self._rescale_noise()
        return row

    def batch(
        self, graph: AtomicGraph, labels: Labels, weighted: LossConfig, position: float
    ) -> Tensor:
        """One step at the learning rate of the moment."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        return super().batch(graph, labels, weighted, position)

    def _step(self, value: Tensor) -> None:
        super()._step(value)
        self.now.step += 1
        # The average of the first steps is over those steps: it must not remember the start.
        decay = min(self.config.training.ema_decay, self.now.step / (self.now.step + 10))
        weights = self._weights()
        floating = [name for name, value in weights.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [self.now.average[name] for name in floating],
            [weights[name] for name in floating],
            1.0 - decay,
        )

    def _learning_rate(self) -> float:
        training = self.config.training
        n_batches = math.ceil(len(self.order) / training.batch_size)
        in_phase = self.now.step - self.now.phase_start
        rate = training.learning_rate * min(1.0, (in_phase + 1) / max(training.warmup_steps, 1))
        if training.schedule == "cosine":
            rate *= 0.5 * (1.0 + math.cos(math.pi * self.schedule.at(self.now.step, n_batches)))
        return rate

    def _enter_phase(self, epoch: int) -> None:
        """On the change from warm-up to likelihood, start the error bars from the errors."""
        phase, now = self.phase(epoch), self.now
        final = now.phase == final_loss(self.config.loss)  # which no later plan takes back
        if epoch > 0 and (phase == now.phase or final):
            self.kind = now.phase
            return
        self.kind = now.phase = phase
        now.phase_start, now.best_loss, now.n_stale = now.step, math.inf, 0
        if phase not in ("mse", "huber"):
            # The likelihood is another objective: it starts from the averaged weights, whose
            # errors the scales are, and with fresh moments, since those of the warm-up know
            # nothing of the noise heads and would make their first steps far too long.
            self.potential.load_state_dict(now.average)
            self.optimizer.state.clear()
            set_first_scales(self.potential.noise, now.average, self._validate, self.unit)

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
        with other_weights(self.potential, self.now.best):
            self.now.best |= fit_evidence(self.potential, self.train_set, self.valid_set)
            metrics = self.validate(kind)
            if kind != "evidential" and rank() == 0:
                warn_of_few_frames(self.potential, self.valid_set, self.folder)
        self.now.best["noise.energy_scale"] *= metrics["energy_chi2"]
        if kind != "nll_e":
            self.now.best["noise.force_scale"] *= metrics["forces_chi2"]
        warn_if_saturated(metrics, self.folder)

    def _validate(self) -> dict[str, float]:
        """Loss and errors of the averaged weights on the validation structures."""
        with other_weights(self.potential, self.now.average):
            return self.validate(self.now.phase)

    def _keep_best(self, valid_loss: float) -> None:
        now, patience = self.now, self.config.training.patience
        if not math.isfinite(valid_loss):
            raise FloatingPointError(
                f"the validation loss is {valid_loss} after epoch {self.done + 1}; lower "
                "training.learning_rate and train into another folder"
            )
        if valid_loss < now.best_loss:
            now.best_loss, now.n_stale = valid_loss, 0
            now.best = {name: v.clone() for name, v in now.average.items()}
            return
        now.n_stale += 1
        final = now.phase == final_loss(self.config.loss)
        self.finished |= final and 0 < patience <= now.n_stale
