"""``hessrmt levels``: a spectrum file to level statistics, for one cutoff or for two to compare."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hessrmt.curvature.density_file import load_density
from hessrmt.errors import StoreError
from hessrmt.levels.analysis import Unfolded, analyze, unfold_selection
from hessrmt.levels.selection import select
from hessrmt.levels.unfolding import check_options
from hessrmt.runs.run import SERIAL, naming
from hessrmt.store.density import SCHEMA
from hessrmt.store.files import schema_of
from hessrmt.store.spectra import load

if TYPE_CHECKING:
    from pathlib import Path

    from hessrmt.config import LevelsConfig
    from hessrmt.progress import Tick
    from hessrmt.records import LevelStatistics, Spectra
    from hessrmt.runs.run import Pool


def open_spectra(file: Path) -> Spectra:
    """The finished spectra of a file.

    Args:
        file: A spectrum file, or a density file with edge levels.

    Returns:
        At least one spectrum.

    Raises:
        StoreError: If the file cannot be read or holds no finished batch.
    """
    if schema_of(file) == SCHEMA:
        return load_density(file).spectra()
    spectra = load(file)
    if not spectra:
        raise StoreError(f"{file} holds no finished batch yet; continue it with --resume")
    return spectra


def run(
    settings: LevelsConfig,
    spectra: Spectra,
    tick: Tick | None = None,
    pool: Pool = SERIAL,
) -> dict[str, LevelStatistics]:
    """Analyse spectra.

    Args:
        settings: Cutoff, unfolding, surrogates.
        spectra: From :func:`open_spectra`.
        tick: Told of progress: the surrogates of each law.
        pool: Where surrogates are drawn.

    Returns:
        Cutoff name to statistics: one entry, or ``paper`` and ``certified``.
    """
    method, options = settings.method
    check_options("window" if method == "auto" else method, options)
    found = {}
    for name, cutoff in settings.cutoffs.items():

        def told(phase: str, done: int, total: int, name: str = name) -> None:
            if tick:
                tick(f"{name}: {phase}", done, total)

        with naming(f"cutoff {name}"):
            found[name] = analyze(
                spectra,
                cutoff,
                method,
                window=settings.range,
                rotate=settings.rotate,
                surrogates=settings.surrogates,
                seed=settings.seed,
                tick=told,
                map_unordered=pool.map_unordered,
                **options,
            )
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
        name: unfold_selection(
            select(spectra, cutoff, settings.range),
            method,
            rotate=settings.rotate,
            seed=settings.seed,
            **options,
        )
        for name, cutoff in settings.cutoffs.items()
    }
