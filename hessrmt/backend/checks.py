"""What every backend requires of the arguments of its verbs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from hessrmt.errors import ConfigError, NonFiniteError

if TYPE_CHECKING:
    from torch import Tensor

FLOATS = (torch.float64, torch.float32)


def require_symmetric(matrix: Tensor, what: str = "the matrix") -> None:
    """Raise unless a tensor can be a symmetric matrix of finite numbers.

    Args:
        matrix: Should be (n, n), float64 or float32, finite in the lower triangle.
        what: Its name in the error.

    Raises:
        ConfigError: If it is not square, or of another type.
        NonFiniteError: If an entry of the lower triangle is NaN or infinite.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ConfigError(f"{what} has shape {tuple(matrix.shape)}; give an (n, n) matrix")
    if matrix.dtype not in FLOATS:
        raise ConfigError(f"{what} is of {matrix.dtype}; give float64 or float32")
    # the whole matrix first: no temporary; the upper triangle may hold anything
    if not _finite(matrix) and not _finite(matrix.tril()):
        raise NonFiniteError(
            f"{what} has entries that are NaN or infinite, so it has no eigenvalues; look for an "
            "overflow in what it was computed from, e.g. with float64 instead of float32"
        )


def require_ascending(values: Tensor, what: str, *, positive: bool = False) -> None:
    """Raise unless a tensor is a vector of finite ascending numbers.

    Args:
        values: Should be (n,), floating-point.
        what: Its name in the error.
        positive: Whether the values must be greater than zero.

    Raises:
        ConfigError: If it is not a vector of floating-point numbers, does not ascend, or is not
            positive where it must be.
        NonFiniteError: If a value is NaN or infinite.
    """
    if values.ndim != 1 or values.dtype not in FLOATS:
        raise ConfigError(
            f"{what}: shape {tuple(values.shape)}, {values.dtype}; give a vector of float64 or "
            "float32"
        )
    if not _finite(values):
        raise NonFiniteError(f"{what}: a value is NaN or infinite; remove it before")
    if bool((values[1:] < values[:-1]).any()):
        raise ConfigError(f"{what}: the values do not ascend; sort them before")
    if positive and len(values) and float(values[0]) <= 0:
        raise ConfigError(
            f"{what}: the smallest value is {float(values[0]):g}; a power law needs values > 0"
        )


def require_draw(n: int, count: int, key: int, first: int, dtype: torch.dtype) -> None:
    """Raise unless GOE matrices of these numbers can be drawn.

    Args:
        n: Dimension, at least 1.
        count: How many, 0 or more.
        key: 64-bit word.
        first: Number of the first, 0 or more.
        dtype: float64 or float32.

    Raises:
        ConfigError: If one of them is out of its range.
    """
    if n < 1 or count < 0 or first < 0 or not 0 <= key < 2**64:
        raise ConfigError(
            f"GOE matrices with n = {n}, count {count}, first {first}, key {key}; give n >= 1, "
            "count >= 0, first >= 0 and a key of 64 bits"
        )
    if dtype not in FLOATS:
        raise ConfigError(f"GOE matrices of {dtype}; give float64 or float32")


def _finite(values: Tensor) -> bool:
    if not values.numel():
        return True
    return all(math.isfinite(float(end)) for end in torch.aminmax(values))  # NaN is kept
