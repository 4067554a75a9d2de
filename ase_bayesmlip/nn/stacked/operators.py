"""Compiled kernels as torch operators: `torch.ops.ase_bayesmlip.*`.

Operators are what `torch.export` and AOTInductor can call without looking inside. Each takes the
name of a kernel, "digest:name", of a library that was loaded before.

A backward operator takes one gradient of every member, or several: gradient q is one of member
q % members.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Raised when an operator or the arguments of a kernel change: compiled programs know it.
INTERFACE = 2

_LIBRARIES: dict[str, ctypes.CDLL] = {}

_OPERATORS = torch.library.Library("ase_bayesmlip", "DEF")
_GEOMETRY = "Tensor edge, Tensor distances, Tensor neighbor, Tensor count, Tensor radial"
_OPERATORS.define(
    f"neighbor_forward(Tensor features, {_GEOMETRY}, int n_rows, str kernel) -> Tensor"
)
_OPERATORS.define(
    f"neighbor_backward(Tensor features, {_GEOMETRY}, Tensor harmonics, Tensor slopes, "
    "Tensor grad, bool by_features, str kernel) -> (Tensor, Tensor)"
)
_OPERATORS.define("channel_forward(Tensor left, Tensor right, int n_rows, str kernel) -> Tensor")
_OPERATORS.define(
    "channel_backward(Tensor left, Tensor right, Tensor grad, str kernel) -> (Tensor, Tensor)"
)


def load_kernels(path: Path, digest: str) -> None:
    """Load a library of kernels; the operators find it by its digest.

    Raises
    ------
    OSError
        If the library cannot be loaded on this machine.
    """
    if digest not in _LIBRARIES:
        _LIBRARIES[digest] = ctypes.CDLL(str(path))


def _call(kernel: str, direction: str, *arguments: Tensor | int) -> None:
    digest, name = kernel.split(":")
    function = getattr(_LIBRARIES[digest], f"{name}_{direction}")
    function(
        *(
            ctypes.c_void_p(item.data_ptr()) if isinstance(item, Tensor) else ctypes.c_int64(item)
            for item in arguments
        )
    )


def _sizes(features: Tensor, distances: Tensor, radial: Tensor) -> tuple[int, ...]:
    """Members, atoms, columns of the table of neighbours, intervals of the radial table."""
    return features.shape[0], features.shape[1], distances.shape[1], radial.shape[1] - 2


def _neighbor_forward(
    features: Tensor,
    edge: Tensor,
    distances: Tensor,
    neighbor: Tensor,
    count: Tensor,
    radial: Tensor,
    n_rows: int,
    kernel: str,
) -> Tensor:
    tensors = [x.contiguous() for x in (features, edge, distances, neighbor, count, radial)]
    members, n_atoms, _, channels = features.shape
    rows = features.new_empty((members, n_atoms, n_rows, channels))
    _call(kernel, "forward", *tensors, *_sizes(features, distances, radial), rows)
    return rows


def _neighbor_backward(
    features: Tensor,
    edge: Tensor,
    distances: Tensor,
    neighbor: Tensor,
    count: Tensor,
    radial: Tensor,
    harmonics: Tensor,
    slopes: Tensor,
    grad: Tensor,
    by_features: bool,
    kernel: str,
) -> tuple[Tensor, Tensor]:
    """Without `by_features` that derivative is left out and comes back empty."""
    tensors = [x.contiguous() for x in (features, edge, distances, neighbor, count, radial)]
    geometry = [x.contiguous() for x in (harmonics, slopes, grad)]
    sizes = _sizes(features, distances, radial)
    to_features, to_vectors = _empty_slopes(features, distances, grad, by_features)
    _call(kernel, "backward", *tensors, *sizes, *geometry, len(grad), to_features, to_vectors)
    return to_features, to_vectors


def _empty_slopes(
    features: Tensor, distances: Tensor, grad: Tensor, by_features: bool
) -> tuple[Tensor, Tensor]:
    n_grads, (n_atoms, width) = grad.shape[0], distances.shape
    shape = (n_grads, *features.shape[1:]) if by_features else (0,)
    return features.new_empty(shape), features.new_empty((n_grads, n_atoms, width, 3))


def _channel_forward(left: Tensor, right: Tensor, n_rows: int, kernel: str) -> Tensor:
    left, right = left.contiguous(), right.contiguous()
    members, n_atoms, _, channels = left.shape
    rows = left.new_empty((members, n_atoms, n_rows, channels))
    _call(kernel, "forward", left, right, members * n_atoms, rows)
    return rows


def _channel_backward(
    left: Tensor, right: Tensor, grad: Tensor, kernel: str
) -> tuple[Tensor, Tensor]:
    left, right = left.contiguous(), right.contiguous()
    to_left, to_right = _fake_channel_backward(left, right, grad)
    sizes = [x.shape[0] * x.shape[1] for x in (left, grad)]
    slopes = to_left, to_right
    _call(kernel, "backward", left, right, sizes[0], grad.contiguous(), sizes[1], *slopes)
    return to_left, to_right


def _fake_neighbor_forward(features: Tensor, *arguments: Any) -> Tensor:
    members, n_atoms, _, channels = features.shape
    return features.new_empty((members, n_atoms, arguments[-2], channels))


def _fake_neighbor_backward(features: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return _empty_slopes(features, arguments[1], arguments[-3], arguments[-2])


def _fake_channel_forward(left: Tensor, *arguments: Any) -> Tensor:
    members, n_atoms, _, channels = left.shape
    return left.new_empty((members, n_atoms, arguments[1], channels))


def _fake_channel_backward(
    left: Tensor, right: Tensor, grad: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    like = [(grad.shape[0], *x.shape[1:]) for x in (left, right)]
    return left.new_empty(like[0]), right.new_empty(like[1])


_IMPLEMENTATIONS: list[tuple[str, Callable[..., Any], Callable[..., Any]]] = [
    ("neighbor_forward", _neighbor_forward, _fake_neighbor_forward),
    ("neighbor_backward", _neighbor_backward, _fake_neighbor_backward),
    ("channel_forward", _channel_forward, _fake_channel_forward),
    ("channel_backward", _channel_backward, _fake_channel_backward),
]
for _name, _function, _fake in _IMPLEMENTATIONS:
    _OPERATORS.impl(_name, _function, "CPU")
    torch.library.register_fake(f"ase_bayesmlip::{_name}", _fake, lib=_OPERATORS)
