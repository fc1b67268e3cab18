"""Argument checks shared by the laws."""

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float64
from numpy.typing import ArrayLike

Values = Float64[np.ndarray, "*shape"]
"""Float64 values in the shape of the argument: a NumPy scalar (which is a float) for a scalar."""

Points = Float64[np.ndarray, "n"]
"""Points on the line, one-dimensional."""


BETAS = (1, 2, 4)
"""Dyson's index: 1 for real symmetric, 2 for Hermitian, 4 for self-dual quaternion matrices."""


def real_values(x: ArrayLike, what: str) -> Values:
    """Float64 array of real numbers; infinities pass.

    Args:
        x: Numbers, any shape.
        what: Their name in error messages.

    Returns:
        The numbers as a float64 array of the same shape.

    Raises:
        ValueError: The numbers are complex, not numbers, or contain NaN.
    """
    raw = np.asarray(x)
    if raw.dtype.kind not in "fiub":
        raise ValueError(
            f"{what} has dtype {raw.dtype}, real numbers are expected; pass a float array."
        )
    values = raw.astype(np.float64)
    if np.isnan(values).any():
        count = int(np.isnan(values).sum())
        raise ValueError(
            f"{what} has {count} NaN among {values.size} values, real numbers are expected; drop "
            "them first, e.g. x[~np.isnan(x)]."
        )
    return values


def nonnegative_values(x: ArrayLike, what: str) -> Values:
    """Float64 array of finite numbers that are not negative (arguments as in real_values).

    Returns:
        The numbers as a float64 array of the same shape.

    Raises:
        ValueError: A number is negative, infinite or not a number.
    """
    values = real_values(x, what)
    if values.size and not (values.min() >= 0 and values.max() < np.inf):
        raise ValueError(
            f"{what} runs from {values.min():g} to {values.max():g}, finite numbers that are not "
            "negative are expected; pass lengths in units of the mean spacing."
        )
    return values


def one_of(value: object, choices: Sequence[object], what: str) -> None:
    """Check a choice.

    Args:
        value: What was given.
        choices: What is possible.
        what: The choice's name in error messages.

    Raises:
        ValueError: The value is none of the choices.
    """
    if not isinstance(value, Hashable) or value not in choices:
        raise ValueError(
            f"{what} is {value!r}, one of {', '.join(map(repr, choices))} is expected; try "
            f"{what}={choices[0]!r}."
        )


def block_fractions(fractions: int | ArrayLike) -> tuple[tuple[float, int], ...]:
    """Relative level densities of independent blocks, equal ones gathered.

    Args:
        fractions: One fraction per block, at least 0 and of sum 1; or a number m of equal blocks.

    Returns:
        Pairs (fraction, how many blocks have it), empty blocks left out.

    Raises:
        ValueError: The fractions are negative, their sum is not 1, or m < 1.
    """
    if isinstance(fractions, int | np.integer) and not isinstance(fractions, bool):
        if fractions < 1:
            raise ValueError(
                f"{fractions} blocks given, at least 1 is expected; try 2 for two equal blocks."
            )
        return ((1 / int(fractions), int(fractions)),)
    values = real_values(fractions, "fractions")
    if values.ndim != 1 or not len(values) or values.min() < 0 or abs(values.sum() - 1) > 1e-9:
        raise ValueError(
            f"fractions are {values.tolist()}, one number >= 0 per block with sum 1 is expected; "
            "divide each block's number of levels by the total."
        )
    found, counts = np.unique(values[values > 0], return_counts=True)
    return tuple(zip(found.tolist(), counts.tolist(), strict=True))


def clipped(s: ArrayLike, far: float = 1e3) -> tuple[Values, np.ndarray]:
    """Spacings moved into [0, far], and where they were not negative.

    Args:
        s: Spacings, any shape.
        far: Where the law at hand has underflowed to 0, so that no power of a spacing overflows.

    Returns:
        The moved spacings and a mask.
    """
    values = real_values(s, "s")
    return np.clip(values, 0.0, far), values >= 0
