"""Epochs of stochastic gradient descent: the one way in which weights are learned here.

Training, SWAG and IVON differ in what they do with the gradient of a batch, and after an epoch.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ase_bayesmlip.config import Config, LossConfig
from ase_bayesmlip.graph import AtomicGraph
from ase_bayesmlip.nn.potential import Potential
from ase_bayesmlip.training.data import GraphDataset, Labels
from ase_bayesmlip.training.distributed import of_first_rank, own_batches, sum_over_ranks
from ase_bayesmlip.training.loss import final_loss, loss
from ase_bayesmlip.training.outputs import evaluate
from ase_bayesmlip.training.stage import Stage, digest
from ase_bayesmlip.training.state import run_identity
from ase_bayesmlip.training.validation import validation_metrics


class Epochs(Stage):
    """A stage whose steps are epochs; subclasses `prepare` an optimizer and say what follows one.

    Parameters
    ----------
    potential : Potential
        In the dtype and on the device of the data.
    train, valid : GraphDataset
    config : Config
    shuffling_seed : int

    Attributes
    ----------
    order : ndarray of int
        Indices of the training structures.
    kind, loss : str and LossConfig
        Of the present epoch.
    settings : TrainingConfig, SWAGConfig or IVONConfig
    first : int
        Number of the first epoch, in the seed of its order.
    repair : str
        What helps beside a lower learning rate.
    """

    settings: Any
    optimizer: Any
    repair = ""

    def __init__(
        self,
        potential: Potential,
        train: GraphDataset,
        valid: GraphDataset,
        config: Config,
        shuffling_seed: int,
    ) -> None:
        self.settings = getattr(config, self.section)
        identity = run_identity(config) | {"shuffling_seed": shuffling_seed}
        super().__init__(self.settings.epochs, identity, potential.scale.device)
        self.potential, self.config, self.loss = potential, config, config.loss
        self.train_set, self.valid_set = train, valid
        self.shuffling_seed, self.first = shuffling_seed, 0
        if self.section == "posterior":
            # The epochs before were the training's: no order of theirs is used again.
            self.first = config.training.epochs
            self.identity["start"] = digest(potential.state_dict())
        self.order = np.arange(len(train))
        self.kind = final_loss(config.loss)
        self.unit = float(potential.scale)
        self.stress = any(bool(labels.has_stress) for _, labels in train.items)
        # Forces are differentiated again by the weights, unless those below the heads are fixed.
        self.create_graph = potential.embedding.requires_grad
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Make the optimizer, and what else there is before the first epoch."""

    def epoch(self, index: int) -> float:
        """Take a step for each batch of the data in a new order; the mean loss."""
        generator = np.random.default_rng([self.shuffling_seed, self.first + index])
        order = generator.permutation(self.order).tolist()
        size = self.config.training.batch_size
        n_batches = math.ceil(len(order) / size)
        batches = own_batches(self.train_set, order, size, self.kind, self.loss)
        losses = [
            self.batch(graph, labels, weighted, index + k / n_batches)
            for k, (graph, labels, weighted) in enumerate(batches)
        ]
        return float(torch.cat([part.reshape(-1) for part in losses]).mean())

    def batch(
        self,
        graph: AtomicGraph,
        labels: Labels,
        weighted: LossConfig,
        position: float,  # noqa: ARG002
    ) -> Tensor:
        """One step, at a position in epochs; its loss or losses, summed over the ranks."""
        outputs = evaluate(self.potential, graph, self.stress, self.create_graph)
        value = loss(self.kind, weighted, outputs, labels, graph, self.unit)
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()
        value = sum_over_ranks(value.detach(), self.potential)
        self._step(value)
        return value

    def _step(self, value: Tensor) -> None:
        clip = self.config.training.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self.potential.parameters(), clip)
        self.check(norm, value)
        self.optimizer.step()

    def check(self, number: Tensor, value: Tensor) -> None:
        """Stop before a step along numbers that are none."""
        if not bool(torch.isfinite(number)):
            raise FloatingPointError(
                f"{self.title} diverged in epoch {self.done + 1} (loss {value.item():.3g}); lower "
                f"{self.section}.learning_rate{self.repair} and train into another folder"
            )

    def adamw(self, learning_rate: float) -> torch.optim.AdamW:
        """The optimizer of the weights that are trained."""
        return torch.optim.AdamW(
            [p for p in self.potential.parameters() if p.requires_grad],
            lr=learning_rate,
            weight_decay=self.config.training.weight_decay,
            amsgrad=True,
        )

    def validate(self, kind: str) -> dict[str, float]:
        """Loss and errors on the validation structures, the same on all ranks."""
        metrics = validation_metrics(
            self.potential, self.valid_set, kind, self.config.loss, self.stress, self.unit
        )
        return of_first_rank(metrics, self.device)


def row_of(metrics: dict[str, float]) -> dict[str, float]:
    """Validation loss and errors as columns of a table."""
    names = ("loss", "energy_rmse_meV_per_atom", "forces_rmse_meV_per_A")
    return {f"valid_{name}": metrics[name] for name in names}
