"""Banks of levels of a known law, drawn once and kept in memory and in the user's cache folder.

Losing what is kept costs only time.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

import numpy as np
from jaxtyping import Float64

from hessrmt import rng
from hessrmt.backend.select import select
from hessrmt.ensembles import gaussian_band, poisson_levels, superposed
from hessrmt.errors import StoreError
from hessrmt.files import write_whole
from hessrmt.theory import semicircle_cdf
from hessrmt.theory.law import BETA_OF

if TYPE_CHECKING:
    from hessrmt.arrays import Levels
    from hessrmt.backend.base import Backend

Rows = Float64[np.ndarray, "spectra n"]

_VERSION = 4
"""Part of the cache's key: raise it whenever the numbers would change."""

STRETCH, _STRETCHES = 400, 200
"""Levels of a stretch in the bank of a law, and stretches: 80,000 levels."""

BANK = 3
"""Pooled: spectra in the bank for each one of a data set, if that is enough levels."""

_BANK_LEVELS, _BANK_MOST = 30_000, 600
"""Pooled: levels that a bank has at least, unless it takes too many spectra. A smaller one knows
the spread of small data sets badly: with 3 × 6 spectra of 200 levels, tests at the level of 5 %
reject 2 to 17 % of GOE data."""

_MOST_IN_MEMORY = 16

_memory: dict[Any, Any] = {}


def remembered(key: Any, make: Callable[[], Any]) -> Any:
    """What was made before in this process, or is made now.

    Args:
        key: Of it; hashable.
        make: Makes it. Of what was made, the last sixteen are held.

    Returns:
        It.
    """
    if key not in _memory:
        made = make()
        while len(_memory) >= _MOST_IN_MEMORY:
            _memory.pop(next(iter(_memory)))
        _memory[key] = made
    return _memory[key]


def bank(law: str, seed: int, backend: Backend) -> Rows:
    """Stretches of levels of mean spacing 1 from the bulk; from the cache where they are there.

    Args:
        law: ``"goe"``, ``"gue"`` or ``"gse"``.
        seed: Of the levels.
        backend: Where they are computed.

    Returns:
        (200, 400) levels.
    """

    def drawn() -> dict[str, np.ndarray]:
        generator = rng.stream(seed, "surrogates", law, "stretches")
        return {"levels": np.array(bulks([STRETCH] * _STRETCHES, BETA_OF[law], generator, backend))}

    return _kept("stretches", law, seed, STRETCH, _STRETCHES, draw=drawn, backend=backend)["levels"]


def whole_spectra(
    law: str, count: int, n: int, whole: bool, seed: int, backend: Backend
) -> tuple[Rows, Rows]:
    """Whole spectra of a law, or stretches, and the same with their known density.

    Args:
        law: One of :data:`hessrmt.levels.goodness.LAWS`.
        count: Spectra in one data set; the bank has some times as many.
        n: Levels of each.
        whole: Whole spectra; else stretches from the bulk of larger ones.
        seed: Of the levels.
        backend: Where they are computed.

    Returns:
        (spectra, n) levels, twice: as they are, and with mean spacing 1.
    """

    def drawn() -> dict[str, np.ndarray]:
        found = _draw(law, count, n, whole, seed, backend)
        return dict(zip(("levels", "unfolded"), found, strict=True))

    kept = _kept("spectra", law, count, n, whole, seed, draw=drawn, backend=backend)
    return kept["levels"], kept["unfolded"]


def _kept(
    *key: Any, draw: Callable[[], dict[str, np.ndarray]], backend: Backend
) -> dict[str, np.ndarray]:
    """Levels from memory, from the cache folder, or drawn anew."""
    from pooch import os_cache

    # solvers differ in the last bits
    text = json.dumps([_VERSION, *key, backend.banded_route(1)[1]])
    name = hashlib.sha256(text.encode()).hexdigest()[:24]
    path = Path(os_cache("hessrmt")) / "surrogates" / f"{name}.npz"

    def kept() -> dict[str, np.ndarray]:
        found = read_kept(path)
        if found is None:
            found = draw()
            write_kept(path, found)
        return found

    return remembered(path, kept)


def read_kept(path: Path) -> dict[str, np.ndarray] | None:
    """Levels from a file of the cache.

    Args:
        path: The file.

    Returns:
        Name to array; None if the file is not there or damaged.
    """
    try:
        with ZipFile(path) as archive, np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
            return None if archive.testzip() else found  # the checksums of everything
    except Exception:  # damage raises what zip, numpy's header or the tokenizer raise
        return None


def write_kept(path: Path, found: dict[str, np.ndarray]) -> None:
    """Keep levels for next time; a cache that cannot be written is no error.

    Args:
        path: Of the file.
        found: Name to array.
    """
    image = io.BytesIO()
    arrays: dict[str, Any] = found
    np.savez(image, **arrays)
    with suppress(OSError, StoreError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, image.getbuffer())


def _draw(
    law: str, spectra: int, n: int, whole: bool, seed: int, backend: Backend
) -> tuple[Rows, Rows]:
    """Spectra of a law, and the same unfolded with the density they were drawn with."""
    generator, beta = rng.stream(seed, "surrogates", law, "bank"), BETA_OF.get(law, 1)
    count = max(BANK * spectra, min(-(-_BANK_LEVELS // n), _BANK_MOST))
    if law == "poisson":
        bank = np.array([poisson_levels(n, generator) for _ in range(count)])
        return bank, bank
    sizes = [n // 2, n - n // 2] if law == "goe2" else [n]
    if whole:
        drawn = gaussian_spectra(sizes * count, beta, generator, backend)
    else:
        drawn = bulks(sizes * count, beta, generator, backend)
    # the blocks of each spectrum
    parts = [drawn[i : i + len(sizes)] for i in range(0, len(drawn), len(sizes))]
    if whole:
        bank = np.array([superposed(blocks) for blocks in parts])
        return bank, n * np.asarray(semicircle_cdf(bank, radius=2 * (beta * n) ** 0.5))
    bank = np.array([np.sort(np.concatenate([x * n / len(x) for x in row])) for row in parts])
    return bank, bank


def gaussian_spectra(
    sizes: Sequence[int], beta: int, generator: np.random.Generator, backend: Backend
) -> list[Levels]:
    """Levels of Gaussian matrices, as :func:`hessrmt.ensembles.gaussian_levels` draws one.

    Args:
        sizes: How many levels each has.
        beta: 1, 2 or 4.
        generator: Source of randomness; the matrices are drawn one after the other.
        backend: Where their eigenvalues are computed, those of one size together.

    Returns:
        (n,) for each, ascending.
    """
    bands = [gaussian_band(beta, n, generator) for n in sizes]
    found: dict[int, Levels] = {}
    for n in sorted(set(sizes)):
        which = [number for number, size in enumerate(sizes) if size == n]
        levels = backend.eigvalsh_banded(np.array([bands[i][:n] for i in which]))  # n may be 1
        found.update(zip(which, levels, strict=True))
    return [found[number] for number in range(len(sizes))]


def bulks(
    sizes: Sequence[int], beta: int, generator: np.random.Generator, backend: Backend | None = None
) -> list[Levels]:
    """Levels of mean spacing 1, each time from the middle of a larger spectrum.

    Args:
        sizes: How many levels, each time.
        beta: 1, 2 or 4.
        generator: Source of randomness.
        backend: Where eigenvalues are computed; the CPU if None.

    Returns:
        (n,) for each, ascending, unfolded with the semicircle law, between about 0 and n.
    """
    where = select("cpu") if backend is None else backend
    larger = [max(n + n // 4, 200) for n in sizes]
    found = []
    for n, levels in zip(sizes, gaussian_spectra(larger, beta, generator, where), strict=True):
        size = len(levels)
        unfolded = size * np.asarray(semicircle_cdf(levels, radius=2 * (beta * size) ** 0.5))
        start = (size - n) // 2
        found.append(unfolded[start : start + n] - start)
    return found
