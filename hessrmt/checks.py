"""What public functions refuse before anything is computed."""

from __future__ import annotations

from typing import Any

import numpy as np

from hessrmt.errors import ConfigError


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
    """Refuse what is no whole number from some number on.

    Args:
        least: That number.
        numbers: Name to value.

    Raises:
        ConfigError: If one is not.
    """
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ConfigError(f"{name} must be a whole number from {least} on, got {value!r}")
