"""What tells a resumed run that its samples and parameters are those of before."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable


def digest(arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 of the bytes, shapes and types of some arrays.

    Args:
        arrays: In an order that matters.

    Returns:
        64 hexadecimal digits.
    """
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.str}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()
