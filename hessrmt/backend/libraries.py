"""Finding a shared library of a cluster's eigenvalue solvers."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

from hessrmt.errors import DeviceError


def load_library(names: Sequence[str], variable: str, hint: str) -> ctypes.CDLL:
    """The first library of several names that is there.

    Args:
        names: File names, best first.
        variable: Environment variable that may hold a path instead.
        hint: How to install it.

    Returns:
        The library, its names visible to libraries loaded later.

    Raises:
        DeviceError: If none can be loaded.
    """
    given = os.environ.get(variable)
    reasons = []
    for name in [given] if given else names:
        try:
            return ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            reasons.append(str(error))
    raise DeviceError(
        f"{given or names[0]} cannot be loaded ({reasons[0]}). {hint}, or set {variable} to the "
        "path of the shared library"
    )
