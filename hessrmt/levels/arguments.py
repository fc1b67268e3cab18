"""What the statistics of unfolded levels take as arguments, checked once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from hessrmt.errors import LevelsError

if TYPE_CHECKING:
    from jaxtyping import Float64

FEWEST_LEVELS = 3
"""Levels that every spectrum must have."""

_MEAN_SPACING = (0.1, 10.0)
"""Mean spacings within which levels may be unfolded ones; raw eigenvalues rarely are."""


def sorted_spectra(
    unfolded: ArrayLike | Sequence[ArrayLike],
) -> list[Float64[np.ndarray, " levels"]]:
    """The spectra as sorted float64 arrays, refused unless they can be unfolded ones.

    Args:
        unfolded: (n,) levels of one spectrum, or a sequence of such arrays, in any order.

    Returns:
        One array for each spectrum, ascending, in the given order.

    Raises:
        LevelsError: If there is no spectrum, or one is not a one-dimensional array of at least
            three finite real levels, or the mean spacing is not of order one.
    """
    several = np.ndim(_first(unfolded)) > 0
    given: Any = unfolded if several else [unfolded]
    spectra = [
        _sorted(levels, f"spectrum {number}: " if several else "")
        for number, levels in enumerate(given)
    ]
    spacings = sum(len(levels) - 1 for levels in spectra)
    mean = sum(float(levels[-1] - levels[0]) for levels in spectra) / spacings
    low, high = _MEAN_SPACING
    if mean != 0 and not low <= mean <= high:
        raise LevelsError(
            f"the levels have mean spacing {mean:.3g}, expected about 1; "
            "unfold them first (hessrmt.levels.unfold)"
        )
    return spectra


def positive_grid(
    name: str, values: ArrayLike, *, zero: bool = False
) -> tuple[Float64[np.ndarray, " m"], bool]:
    """A scalar or one-dimensional argument as an array.

    Args:
        name: The argument's name, for the error.
        values: Scalar or (m,) finite values, positive.
        zero: Whether zero is allowed too.

    Returns:
        The (m,) float64 values, and whether a scalar was given.

    Raises:
        LevelsError: If the values are anything else.
    """
    wanted = "non-negative" if zero else "positive"
    array = real_array(values, name)
    if array.ndim > 1:
        raise LevelsError(f"{name} must be a number or one-dimensional, got shape {array.shape}")
    bad = ~np.isfinite(array) | (array < 0 if zero else array <= 0)
    if bad.any():
        raise LevelsError(
            f"{name} must be {wanted} and finite, got {np.atleast_1d(array)[np.atleast_1d(bad)][0]}"
            "; it is in mean level spacings"
        )
    return np.atleast_1d(array), array.ndim == 0


def longer_than(
    spectra: Sequence[Float64[np.ndarray, " levels"]], length: float
) -> list[Float64[np.ndarray, " levels"]]:
    """The spectra that hold windows of a length.

    Args:
        spectra: Sorted levels of each spectrum.
        length: Window length in mean spacings.

    Returns:
        The spectra whose span exceeds the length.

    Raises:
        LevelsError: If there is none.
    """
    held = [levels for levels in spectra if levels[-1] - levels[0] > length]
    if not held:
        longest = max(float(levels[-1] - levels[0]) for levels in spectra)
        raise LevelsError(
            f"no window of length L = {length:g} fits: the longest spectrum spans {longest:g} mean "
            "spacings; take a smaller L or unfold more levels"
        )
    return held


def _first(unfolded: Any) -> Any:
    """The first element of a sequence, to tell one spectrum from several."""
    try:
        return unfolded[0] if len(unfolded) else 0.0
    except (TypeError, KeyError, IndexError):
        return 0.0


def _sorted(levels: ArrayLike, where: str) -> Float64[np.ndarray, " levels"]:
    array = real_array(levels, f"{where}levels")
    if array.ndim != 1:
        raise LevelsError(
            f"{where}levels must be one-dimensional, got shape {array.shape}; "
            "give several spectra as a sequence of one-dimensional arrays"
        )
    if len(array) < FEWEST_LEVELS:
        raise LevelsError(
            f"{where}got {len(array)} levels, expected at least {FEWEST_LEVELS}; leave out spectra "
            "with so few"
        )
    if not np.isfinite(array).all():
        count = int(np.count_nonzero(~np.isfinite(array)))
        raise LevelsError(
            f"{where}levels must be finite, got {count} NaN or infinite of {len(array)}; "
            "leave those out"
        )
    return np.sort(array, kind="stable")  # quick where they are sorted already


def real_array(values: ArrayLike, name: str) -> Float64[np.ndarray, "*shape"]:
    """Numbers as float64; complex numbers, truth values and text are refused, never converted.

    Args:
        values: Real numbers of any shape.
        name: What an error calls them.

    Returns:
        The same numbers.

    Raises:
        LevelsError: If they are anything else.
    """
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise LevelsError(f"{name} cannot be used as an array: {error}") from error
    if array.size and array.dtype.kind not in "fiu":
        raise LevelsError(
            f"{name} must be real numbers, got dtype {array.dtype}; give a float64 array"
        )
    return array.astype(np.float64)
