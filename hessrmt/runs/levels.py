"""``hessrmt levels``: a spectrum file to level statistics, for one cutoff or for two to compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from hessrmt.backend.select import select as select_backend
from hessrmt.curvature.density import load_density
from hessrmt.errors import StoreError
from hessrmt.levels.analysis import analyze
from hessrmt.levels.histograms import (
    decade_histograms,
    density_histograms,
    long_range,
    ratio_histogram,
    spacing_histogram,
)
from hessrmt.levels.selection import select
from hessrmt.levels.unfolding import Unfolded, check_options, unfold_selection
from hessrmt.plots import levels as plots
from hessrmt.plots.style import of_spectra
from hessrmt.problems.readers import SAFETENSORS, WRITTEN
from hessrmt.progress import under
from hessrmt.records import Provenance
from hessrmt.runs.run import SERIAL, naming
from hessrmt.store.density import SCHEMA
from hessrmt.store.files import schema_of
from hessrmt.store.spectra import load, load_all

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

    from hessrmt.config import LevelsConfig
    from hessrmt.levels import LevelStatistics
    from hessrmt.progress import Tick
    from hessrmt.records import Spectra
    from hessrmt.runs.run import Pool


ALL = "all"
"""Instead of the name of a block: each by itself."""


_OTHER_TABLES = (".npz", ".npy", ".csv", ".txt", ".parquet")


def open_spectra(file: Path, block: str | None = None) -> dict[str, Spectra]:
    """The finished spectra of a file.

    Args:
        file: A spectrum file, or a density file with extreme eigenvalues.
        block: Of a file of several blocks: which one, or :data:`ALL`.

    Returns:
        Name of the block, empty for whole matrices, to at least one spectrum.

    Raises:
        StoreError: If the file cannot be read, is of another kind, holds no finished batch
            or no such block.
    """
    if file.name.lower().endswith((*WRITTEN, ".ckpt", SAFETENSORS)):
        raise StoreError(
            f"{file} holds weights, not eigenvalues: hessrmt spectrum --checkpoint computes those "
            "of a Hessian, hessrmt capacity looks at the weights themselves"
        )
    if file.suffix.lower() in _OTHER_TABLES:
        raise StoreError(
            f"{file} is no HDF5 file; eigenvalues from elsewhere go through hr.levels.analyze(...) "
            "in Python, which takes arrays and tables"
        )
    if schema_of(file) == SCHEMA:
        found = {"": load_density(file).spectra()}
    else:
        found = {name or "": spectra for name, spectra in load_all(file).items()}
        if block != ALL and (block is not None or len(found) > 1):
            found = {block or "": load(file, block)}
    if not all(found.values()):
        raise StoreError(f"{file} holds no finished batch yet; continue it with --resume")
    return found


def run(
    settings: LevelsConfig,
    spectra: Spectra,
    tick: Tick | None = None,
    pool: Pool = SERIAL,
    given: Mapping[str, Any] | None = None,
) -> dict[str, LevelStatistics]:
    """Analyse spectra.

    Args:
        settings: Cutoff, unfolding, surrogates, device.
        spectra: From :func:`open_spectra`.
        tick: Told of progress: the surrogates of each law.
        pool: Where surrogates are drawn.
        given: Where the spectra were read, to be kept with the settings.

    Returns:
        Cutoff name to statistics: one entry, or ``paper`` and ``certified``.
    """
    method, options = settings.method
    check_options(method, options, auto=True)
    device = select_backend(settings.device).name  # one not there is no fault of a cutoff
    found = {}
    for name, cutoff in settings.cutoffs.items():
        with naming(f"cutoff {name}"):
            statistics = analyze(
                spectra,
                cutoff,
                method,
                window=settings.range,
                drop_outliers=settings.drop_outliers,
                orders=settings.orders,
                rotate=settings.rotate,
                surrogates=settings.surrogates,
                seed=settings.seed,
                device=settings.device,
                tick=under(tick, f"{name}: "),
                map_unordered=pool.map_unordered,
                **options,
            )
        source = statistics.provenance or Provenance()
        asked = settings.model_copy(update={"cutoff": cutoff, "compare": False})
        config = {**source.config, "levels": {**(given or {}), **asked.model_dump(mode="json")}}
        made = Provenance(config, device, notes=source.notes)
        found[name] = replace(statistics, provenance=made)
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
    backend = select_backend(settings.device)
    return {
        name: unfold_selection(
            select(spectra, cutoff, settings.range, settings.drop_outliers),
            method,
            rotate=settings.rotate,
            seed=settings.seed,
            backend=backend,
            **options,
        )
        for name, cutoff in settings.cutoffs.items()
    }


Pictures = dict[str, "Callable[[], Figure]"]
"""Name of a picture to what computes and draws it."""


def pictures(
    unfolded: Unfolded,
    title: str = "",
    *,
    surrogates: int = 0,
    seed: int = 0,
    device: str = "auto",
) -> Pictures:
    """Everything there is to see of some levels.

    Args:
        unfolded: The unfolded levels.
        title: Above every picture.
        surrogates: As for :func:`hessrmt.levels.spacing_histogram`.
        seed: Of the surrogates.
        device: Where their levels are computed.

    Returns:
        ``spacings``, ``ratios``, ``ratios-unfolded`` (r up to 10), ``density``,
        ``density-per-decade``, ``staircase`` (of the first spectrum that was unfolded),
        ``number-variance``, ``rigidity`` and ``form-factor``.
    """
    rows = unfolded.selection.levels
    group = {of_spectra(len(rows)): rows}
    first = next((i for i, row in enumerate(unfolded.levels) if row is not None), 0)
    return histograms(unfolded, title, surrogates=surrogates, seed=seed, device=device) | {
        "density": partial(densities, group, title),
        "density-per-decade": partial(decades, group, title),
        "staircase": partial(plots.staircase, unfolded, first, title),
        **{
            name.replace("_", "-"): lambda name=name: long_range(unfolded, name).plot(title)
            for name in ("number_variance", "rigidity", "form_factor")
        },
    }


def histograms(
    unfolded: Unfolded, title: str, *, surrogates: int, seed: int, device: str
) -> Pictures:
    """Spacings and ratios beside the laws (arguments as of :func:`pictures`).

    Returns:
        ``spacings``, ``ratios`` and ``ratios-unfolded``.
    """
    selection = unfolded.selection

    def spacings() -> Figure:
        backend = select_backend(device)
        found = spacing_histogram(unfolded, surrogates=surrogates, seed=seed, backend=backend)
        return found.plot(title)

    return {
        "spacings": spacings,
        "ratios": lambda: ratio_histogram(selection).plot(title),
        "ratios-unfolded": lambda: ratio_histogram(selection, folded=False).plot(title),
    }


def higher_orders(found: LevelStatistics, title: str) -> Pictures:
    """Statistics of every k-th level.

    Args:
        found: The statistics.
        title: Above the picture.

    Returns:
        ``higher-orders``; nothing if none beyond the first were asked for.
    """
    return {"higher-orders": partial(plots.higher_orders, found, title)} if found.higher else {}


def densities(groups: Mapping[str, Sequence[Any]], title: str) -> Figure:
    """Densities of the levels of several groups of spectra.

    Args:
        groups: Name to levels of each spectrum.
        title: Above the picture.

    Returns:
        The picture.
    """
    return plots.spectral_density(density_histograms(groups), title)


def decades(groups: Mapping[str, Sequence[Any]], title: str) -> Figure:
    """Levels per decade of |λ| (arguments and result as of :func:`densities`)."""
    return plots.density_per_decade(decade_histograms(groups), title)
