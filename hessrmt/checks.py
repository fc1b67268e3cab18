"""Arguments of public functions, checked once, where they come in, before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from hessrmt.errors import ConfigError, DataError, HessrmtError

if TYPE_CHECKING:
    from jaxtyping import Float64
    from numpy.typing import ArrayLike


def require_type(kind: type, otherwise: str, **objects: Any) -> None:
    """Refuse what is of another type.

    Args:
        kind: The type.
        otherwise: What to do with things of others.
        objects: Name to object.

    Raises:
        ConfigError: If one is.
    """
    for name, value in objects.items():
        if not isinstance(value, kind):
            raise ConfigError(
                f"the {name} must be a {kind.__name__}, not a {type(value).__name__}; {otherwise}"
            )


def require_whole(least: int = 1, **numbers: Any) -> None:
    """Refuse settings that are no whole numbers from some number on.

    Args:
        least: That number.
        numbers: Name to value.
    """
    for name, value in numbers.items():
        whole(name, value, least, error=ConfigError)


def whole(
    name: str, value: Any, least: int = 0, *, error: type[HessrmtError] = DataError, hint: str = ""
) -> int:
    """A whole number that is large enough; truth values are none.

    Args:
        name: Of the argument, for the error.
        value: Given.
        least: The smallest allowed.
        error: What is raised.
        hint: What to do, or the unit; put behind the message.

    Returns:
        The number.

    Raises:
        DataError: Or ``error``, if it is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise error(f"{name} must be a whole number from {least} on, got {value!r}{_behind(hint)}")
    return int(value)


def real(
    name: str,
    value: Any,
    *,
    above: float = -np.inf,
    least: float = -np.inf,
    most: float = np.inf,
    error: type[HessrmtError] = DataError,
    hint: str = "",
) -> float:
    """A finite real number within bounds; truth values and text are none.

    Args:
        name: Of the argument, for the error.
        value: Given; an array of no dimension will do.
        above: It must be larger than this.
        least: The smallest allowed.
        most: The largest allowed.
        error: What is raised.
        hint: What to do, or the unit; put behind the message.

    Returns:
        The number.

    Raises:
        DataError: Or ``error``, if it is anything else.
    """
    array = np.asarray(value) if isinstance(value, int | float | np.number | np.ndarray) else None
    fits = array is not None and not array.ndim and array.dtype.kind in "fiu"
    if array is None or not fits or not np.isfinite(array):
        raise error(f"{name} must be a finite real number, got {value!r}{_behind(hint)}")
    if (above > -np.inf and array <= above) or not least <= array <= most:
        raise error(f"{name} must be {_bounds(above, least, most)}, got {value!r}{_behind(hint)}")
    return float(array)


def real_array(
    name: str,
    values: ArrayLike,
    *,
    dimensions: int | None = None,
    empty: bool = False,
    infinite: bool = False,
    above: float = -np.inf,
    least: float = -np.inf,
    most: float = np.inf,
    error: type[HessrmtError] = DataError,
    hint: str = "",
) -> Float64[np.ndarray, "*shape"]:
    """Real numbers as float64; complex numbers, truth values, text and NaN are refused.

    Args:
        name: Of the argument, for the error.
        values: Given.
        dimensions: How many the array must have; None if it may have any number.
        empty: Whether it may hold no number.
        infinite: Whether infinite ones are allowed.
        above: Every number must be larger than this.
        least: The smallest allowed.
        most: The largest allowed.
        error: What is raised.
        hint: What to do, or the unit; put behind the message.

    Returns:
        The numbers, in the same shape.

    Raises:
        DataError: Or ``error``, if they are anything else.
    """
    end = _behind(hint)
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as reason:
        raise error(f"{name} cannot be used as an array: {reason}{end}") from reason
    if np.ma.is_masked(values):
        raise error(f"{name} must not be masked; give what isn't, by compressed(){end}")
    if dimensions not in {None, array.ndim}:
        raise error(f"{name} must have {dimensions} dimension(s), got shape {array.shape}{end}")
    if not array.size and not empty:
        raise error(f"{name} must not be empty, got shape {array.shape}{end}")
    if array.size and array.dtype.kind not in "fiu":
        raise error(f"{name} must be real numbers, got dtype {array.dtype}{end}")
    numbers = array.astype(np.float64)
    bad = np.isnan(numbers) if infinite else ~np.isfinite(numbers)
    if bad.any():
        kind = "NaN" if infinite else "NaN or infinite"
        count = np.count_nonzero(bad)
        raise error(f"{name} must be finite, got {count} {kind} of {array.size}{end}")
    bad = (numbers < least) | (numbers > most) | ((numbers <= above) & (above > -np.inf))
    if bad.any():
        bounds = _bounds(above, least, most)
        raise error(f"{name} must be {bounds}, got {numbers[bad].flat[0]:g}{end}")
    return numbers


def one_of(
    name: str,
    value: Any,
    choices: Iterable[Any],
    *,
    error: type[HessrmtError] = DataError,
) -> None:
    """Refuse what is none of the choices.

    Args:
        name: Of the argument, for the error.
        value: Given.
        choices: All that are allowed.
        error: What is raised.

    Raises:
        DataError: Or ``error``, if it is another.
    """
    known = list(choices)
    if isinstance(value, bool | np.ndarray) or value not in known:
        raise error(f"unknown {name} {value!r}; known: {', '.join(map(str, known))}")


def _behind(hint: str) -> str:
    return f"; {hint}" if hint else ""


def _bounds(above: float, least: float, most: float) -> str:
    if above == 0 and most == np.inf:
        return "positive"
    if least == 0 and most == np.inf:
        return "non-negative"
    parts = [f"above {above:g}"] * (above > -np.inf) + [f"at least {least:g}"] * (least > -np.inf)
    return " and ".join([*parts, *([f"at most {most:g}"] if most < np.inf else [])])
