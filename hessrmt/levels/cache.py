"""Surrogates kept between runs, in the user's cache folder; losing them costs only time."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from hessrmt.levels.goodness import POINTS, Null

_STATISTICS = ("ratio", "spacing")


def path_of(key: str) -> Path:
    """Where surrogates are kept.

    Args:
        key: Everything that they depend on, as text.

    Returns:
        A file in the user's cache folder; it need not exist.
    """
    from pooch import os_cache

    name = hashlib.sha256(key.encode()).hexdigest()[:24]
    return Path(os_cache("hessrmt")) / "surrogates" / f"{name}.npz"


def read(path: Path, surrogates: int) -> dict[str, Null] | None:
    """Surrogates from a file.

    Args:
        path: From :func:`path_of`.
        surrogates: Data sets expected.

    Returns:
        ``"ratio"`` and ``"spacing"`` to the surrogates; None if the file is not there, damaged, or
        not what was expected.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {
                name: Null(
                    file[f"{name}_bias"],
                    file[f"{name}_deviations"],
                    *map(float, file[f"{name}_sizes"]),
                )
                for name in _STATISTICS
            }
    except Exception:  # damage raises what zip, numpy's header or the tokenizer raise
        return None
    whole = all(
        null.bias.shape == (POINTS,)
        and null.deviations.shape == (surrogates, POINTS)
        and np.isfinite(null.bias).all()
        and np.isfinite(null.deviations).all()
        and 0 < null.size < null.bank
        for null in found.values()
    )
    return found if whole else None


def write(path: Path, found: dict[str, Null]) -> None:
    """Keep surrogates for next time; a cache that cannot be written is no error.

    Args:
        path: From :func:`path_of`.
        found: ``"ratio"`` and ``"spacing"`` to the surrogates.
    """
    arrays: dict[str, Any] = {}
    for name, null in found.items():
        arrays[f"{name}_bias"] = null.bias
        arrays[f"{name}_deviations"] = null.deviations
        arrays[f"{name}_sizes"] = np.array([null.size, null.bank])
    draft = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            draft = file.name
            np.savez(file, **arrays)
        os.replace(draft, path)
    except OSError:
        if draft is not None:
            Path(draft).unlink(missing_ok=True)
