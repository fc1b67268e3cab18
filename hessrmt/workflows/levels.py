"""``hessrmt levels``: a spectrum file to level statistics, for one cutoff or for two to compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hessrmt.curvature.density_file import load_density
from hessrmt.errors import LevelsError, StoreError
from hessrmt.levels.analysis import analyze
from hessrmt.levels.selection import select
from hessrmt.levels.unfolding import Unfolded, check_options, unfold_selection
from hessrmt.store.density import is_density
from hessrmt.store.hdf5 import load
from hessrmt.workflows.cluster import SERIAL

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hessrmt.config import LevelsConfig
    from hessrmt.levels import LevelStatistics
    from hessrmt.records import Spectra
    from hessrmt.workflows.cluster import Pool

COMPARED = ("paper", "certified")
"""What ``--compare`` puts side by side."""


def open_spectra(file: Path) -> Spectra:
    """The finished spectra of a file.

    Args:
        file: A spectrum file, or a density file with edge levels.

    Returns:
        At least one spectrum.

    Raises:
        StoreError: If the file cannot be read or holds no finished batch.
    """
    if is_density(file):
        return load_density(file).spectra()
    spectra = load(file)
    if not spectra:
        raise StoreError(f"{file} holds no finished batch yet; continue it with --resume")
    return spectra


def run(
    settings: LevelsConfig,
    spectra: Spectra,
    observer: Callable[[str, str, int, int], None] | None = None,
    pool: Pool = SERIAL,
) -> dict[str, LevelStatistics]:
    """Analyse spectra.

    Args:
        settings: Cutoff, unfolding, surrogates.
        spectra: From :func:`open_spectra`.
        observer: Told of progress: cutoff, phase, steps done, steps in all.
        pool: Where surrogates are drawn.

    Returns:
        Cutoff name to statistics: one entry, or ``paper`` and ``certified``.

    Raises:
        LevelsError: If a cutoff leaves nothing, which it names, or an option cannot be used.
    """
    method, options = settings.method
    check_options("window" if method == "auto" else method, options)
    found = {}
    for cutoff in COMPARED if settings.compare else (settings.cutoff,):
        name = str(cutoff)

        def tick(phase: str, done: int, total: int, name: str = name) -> None:
            if observer:
                observer(name, phase, done, total)

        try:
            found[name] = analyze(
                spectra,
                cutoff,
                method,
                window=settings.range,
                rotate=settings.rotate,
                surrogates=settings.surrogates,
                seed=settings.seed,
                tick=tick,
                map_unordered=pool.map_unordered,
                **options,
            )
        except LevelsError as error:
            raise LevelsError(f"cutoff {name}: {error}") from error
    return found


def unfolded(settings: LevelsConfig, spectra: Spectra) -> dict[str, Unfolded]:
    """The unfolded levels behind :func:`run`, for pictures.

    Args:
        settings: The same.
        spectra: The same.

    Returns:
        Cutoff name to levels.
    """
    method, options = settings.method
    return {
        str(cutoff): unfold_selection(
            select(spectra, cutoff, settings.range),
            method,
            rotate=settings.rotate,
            seed=settings.seed,
            **options,
        )
        for cutoff in (COMPARED if settings.compare else (settings.cutoff,))
    }
