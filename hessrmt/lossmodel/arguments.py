"""What the models of loss surfaces take as arguments, checked once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from hessrmt.errors import LossModelError

if TYPE_CHECKING:
    from jaxtyping import Float64


def real(name: str, value: object) -> float:
    """A finite real number.

    Args:
        name: Of the argument, for the error.
        value: Given.

    Returns:
        The number.

    Raises:
        LossModelError: If it is a truth value, no real number, NaN or infinite.
    """
    array = np.asarray(value) if isinstance(value, int | float | np.number | np.ndarray) else None
    if array is None or array.ndim or array.dtype.kind not in "fiu" or not np.isfinite(array):
        raise LossModelError(f"{name} must be a finite real number, got {value!r}")
    return float(array)


def positive(name: str, value: object) -> float:
    """A positive finite number.

    Args:
        name: Of the argument, for the error.
        value: Given.

    Returns:
        The number.

    Raises:
        LossModelError: If it is anything else.
    """
    number = real(name, value)
    if number <= 0:
        raise LossModelError(f"{name} must be positive, got {value!r}")
    return number


def whole(name: str, value: object, least: int = 0) -> int:
    """An integer that is large enough.

    Args:
        name: Of the argument, for the error.
        value: Given.
        least: The smallest allowed.

    Returns:
        The integer.

    Raises:
        LossModelError: If it is no integer, a truth value, or smaller.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise LossModelError(f"{name} must be an integer of at least {least}, got {value!r}")
    return int(value)


def real_array(
    name: str, values: ArrayLike, dimensions: int | None = None
) -> Float64[np.ndarray, "*shape"]:
    """Finite real numbers in an array, which is not empty.

    Args:
        name: Of the argument, for the error.
        values: Given.
        dimensions: How many the array must have; None if it may have any number.

    Returns:
        The numbers as float64.

    Raises:
        LossModelError: If they are anything else.
    """
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise LossModelError(f"{name} cannot be used as an array: {error}") from error
    if dimensions not in {None, array.ndim} or not array.size:
        wanted = "" if dimensions is None else f" of {dimensions} dimension(s)"
        raise LossModelError(f"{name} must be a non-empty array{wanted}, got shape {array.shape}")
    if array.dtype.kind not in "fiu":
        raise LossModelError(f"{name} must be real numbers, got dtype {array.dtype}")
    if not np.isfinite(array).all():
        bad = int(np.count_nonzero(~np.isfinite(array)))
        raise LossModelError(f"{name} must be finite, got {bad} NaN or infinite of {array.size}")
    return array.astype(np.float64)
