"""Checks of what metrics are given: numbers that are there, finite, in range and of one shape."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def finite(name: str, values: ArrayLike) -> FloatArray:
    """The values in float64; at least one, all of them finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError(f"{name} is empty, of shape {array.shape}; give at least one number")
    n_bad = np.count_nonzero(~np.isfinite(array))
    if n_bad:
        raise ValueError(f"{name} must be finite, and {n_bad} of {array.size} numbers are not")
    return array


def finite_1d(name: str, values: ArrayLike) -> FloatArray:
    """Finite values on one axis."""
    array = finite(name, values)
    if array.ndim != 1:
        raise ValueError(f"{name} must have shape (n,), not {array.shape}")
    return array


def positive(name: str, values: ArrayLike) -> FloatArray:
    """Finite values above zero."""
    array = finite(name, values)
    if array.min() <= 0:
        raise ValueError(f"{name} must be positive, and the smallest number is {array.min():.6g}")
    return array


def not_negative(name: str, values: ArrayLike) -> FloatArray:
    """Finite values of zero and above."""
    array = finite(name, values)
    if array.min() < 0:
        raise ValueError(
            f"{name} must not be negative, and the smallest number is {array.min():.6g}"
        )
    return array


def probability(name: str, values: ArrayLike) -> FloatArray:
    """Finite values between 0 and 1, both included."""
    array = finite(name, values)
    if array.min() < 0 or array.max() > 1:
        raise ValueError(
            f"{name} must be between 0 and 1, not from {array.min():.6g} to {array.max():.6g}"
        )
    return array


def whole(name: str, value: int, smallest: int) -> int:
    """An integer, not below the smallest allowed."""
    if not isinstance(value, (int, np.integer)) or value < smallest:
        raise ValueError(f"{name} must be an integer of {smallest} or more, not {value}")
    return int(value)


def same_shape(name: str, array: FloatArray, other_name: str, other: FloatArray) -> None:
    """Two arrays of one shape."""
    if array.shape != other.shape:
        raise ValueError(
            f"{name} and {other_name} must have the same shape, not {array.shape} and {other.shape}"
        )
