"""Training of one potential on all processes ("ranks") that ``torchrun`` starts.

Every rank holds all structures and the same weights. A batch is dealt out to the R ranks like
cards: rank r takes its structures r, r + R, r + 2R, … The loss is a sum of weighted means,

    L = w_E ⟨e⟩ + w_F ⟨f⟩ + w_S ⟨s⟩,

⟨e⟩ over structures, ⟨s⟩ over structures with a stress label, ⟨f⟩ over structures in the joint
likelihood and over atoms in the other losses. The mean over a batch is the sum over ranks of the
mean over a rank's part times its share, the fraction of the structures, atoms or stress labels
that the part holds. So each rank multiplies its weights w by its shares, and losses and gradients
are summed over the ranks, never divided by their number: the result is the loss and the gradient
of the whole batch to round-off, for structures of any size and batches of any number. A rank
without a structure adds zeros.

The gradients are summed explicitly after the backward pass: `DistributedDataParallel`, which sums
them during it, does not support `torch.autograd.grad`, from which the forces in the loss come.

Without torchrun, or with a single process, nothing in here changes anything.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ase_bayesmlip.config import LossConfig
from ase_bayesmlip.config.loss import FORCES_BY_STRUCTURE
from ase_bayesmlip.graph import AtomicGraph
from ase_bayesmlip.training.data import GraphDataset, Labels

# What torchrun gives to each process that it starts.
_VARIABLES = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}


def world_size() -> int:
    """Number of processes that train together; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if os.environ.keys() >= _VARIABLES else 1


def rank() -> int:
    """Number of this process among them; rank 0 alone writes files and shows progress."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


@contextmanager
def process_group(device: str) -> Iterator[str]:
    """Connect the ranks for the length of a `with` block: gloo on the CPU, NCCL on CUDA.

    Yields
    ------
    str
        Device of this rank: with "cuda", one GPU for each process of a machine.

    Raises
    ------
    ValueError
        If there are fewer GPUs than processes, or `device` names one of them.
    """
    if world_size() == 1:
        yield device
        return
    own = _own_device(device)
    if dist.is_initialized():  # by the caller, who also ends it
        yield own
        return
    _connect(torch.device(own))
    yield own
    # Not in a `finally`: after an error on one rank the others wait for it in a sum, and NCCL
    # would wait for them here. The process ends instead, and torchrun ends the others.
    dist.destroy_process_group()


def _connect(device: torch.device) -> None:
    store, number, size = next(dist.rendezvous("env://"))
    # The store outlives a group and remembers its addresses, which the next group must not meet.
    start = store.add(f"bayesmlip/starts/{number}", 1)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore(f"bayesmlip/{start}", store),
        rank=number,
        world_size=size,
        device_id=device if device.type == "cuda" else None,
    )


def _own_device(device: str) -> str:
    target = torch.device(device)
    if target.type != "cuda":
        return device
    if target.index is not None:
        raise ValueError(f"device {device!r} is one GPU for all processes; use 'cuda'")
    index, n_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if index >= n_gpus:
        raise ValueError(
            f"process {index} of this machine has no GPU of its own: torch sees {n_gpus}; start "
            "torchrun with --nproc-per-node of at most that"
        )
    return f"cuda:{index}"


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def own_batches(
    data: GraphDataset, order: Sequence[int], size: int, kind: str, config: LossConfig
) -> Iterator[tuple[AtomicGraph, Labels, LossConfig]]:
    """Part of this rank in each batch of `size` structures, and the weights of its loss.

    Parameters
    ----------
    order : sequence of int
        Indices of structures, the same on all ranks.
    kind : "mse", "huber", "nll_e" or "nll_jef"
    """
    if world_size() == 1:
        for graph, labels in data.batches(order, size):
            yield graph, labels, config
        return
    for start in range(0, len(order), size):
        yield part_of_batch(data, order[start : start + size], kind, config, rank(), world_size())


def part_of_batch(
    data: GraphDataset, batch: Sequence[int], kind: str, config: LossConfig, rank: int, n_ranks: int
) -> tuple[AtomicGraph, Labels, LossConfig]:
    """Part of a batch for one of `n_ranks`, and the loss weights times its shares."""
    part = batch[rank::n_ranks]
    structures, atoms, stresses = (
        own / max(whole, 1)
        for own, whole in zip(_counts(data, part), _counts(data, batch), strict=True)
    )
    weights = dataclasses.replace(
        config,
        energy_weight=config.energy_weight * structures,
        forces_weight=config.forces_weight * (structures if kind in FORCES_BY_STRUCTURE else atoms),
        stress_weight=config.stress_weight * stresses,
    )
    # A rank left empty evaluates some structure with weights of zero, so that its gradients are
    # zeros in the very tensors that the other ranks sum.
    part = part or batch[:1]
    graph, labels = next(data.batches(part, len(part)))
    return graph, labels, weights


def _counts(data: GraphDataset, indices: Sequence[int]) -> tuple[int, int, int]:
    """Structures, atoms and stress labels."""
    labels = [data.items[index][1] for index in indices]
    return (
        len(labels),
        sum(len(item.forces) for item in labels),
        sum(bool(item.has_stress) for item in labels),
    )


def sum_over_ranks(loss: Tensor, potential: nn.Module) -> Tensor:
    """Sum the gradients of a potential over the ranks, in place, and return the summed loss.

    The loss travels with the gradients, in their precision. All ranks receive the same bits, so
    that the same optimiser keeps their weights the same.
    """
    if world_size() == 1:
        return loss
    gradients = [p.grad for p in potential.parameters() if p.grad is not None]
    loss = loss.to(gradients[0].dtype)
    sum_tensors_over_ranks([loss, *gradients])
    return loss


def sum_tensors_over_ranks(tensors: list[Tensor]) -> None:
    """Sum tensors of one dtype over the ranks, in place, in a single message."""
    if world_size() == 1:
        return
    total = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(total)
    for tensor, part in zip(tensors, total.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


def of_first_rank(metrics: dict[str, float], device: torch.device) -> dict[str, float]:
    """The numbers of rank 0 on every rank, so that processors of two kinds decide alike."""
    if world_size() == 1:
        return metrics
    values = torch.tensor(list(metrics.values()), dtype=torch.float64, device=device)
    dist.broadcast(values, src=0)
    return dict(zip(metrics, values.tolist(), strict=True))
