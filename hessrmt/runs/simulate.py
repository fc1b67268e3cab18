"""``hessrmt simulate``: Hessians of a Gaussian-process loss to a spectrum file and a summary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from hessrmt import lossmodel
from hessrmt.backend.select import select as backend_of
from hessrmt.config import OUTLIER_SCALE
from hessrmt.errors import DataError
from hessrmt.levels.analysis import analyze
from hessrmt.levels.resampling import mean_and_error
from hessrmt.levels.selection import ratio_samples, select
from hessrmt.lossmodel.sampler import bulk, centre, expected_outside, sample_spectra
from hessrmt.records import Provenance
from hessrmt.results import Result
from hessrmt.runs.run import SERIAL, computed_by
from hessrmt.store.spectra import load
from hessrmt.store.writing import SpectrumWriter
from hessrmt.theory.densities import bbp_position, bbp_threshold

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from hessrmt.arrays import Indices, Levels, Stack
    from hessrmt.backend.base import Backend
    from hessrmt.config import SimulateConfig
    from hessrmt.levels import LevelStatistics
    from hessrmt.lossmodel import HessianCovariance
    from hessrmt.progress import Tick
    from hessrmt.records import Spectra, Spectrum
    from hessrmt.runs.run import Pool

_GROUP, _GROUP_WORK = 256, 10**10
"""Largest number of samples, and on a CPU of samples times n³, that are drawn before they are
stored."""

_TASKS = 8
"""Groups for each worker of a pool, at least, where there are as many samples."""


_FURTHEST = 3.27
"""Quantile 0.999 of the largest level's law, β = 1 (Tracy, Widom, Commun. Math. Phys. 177, 727,
1996)."""


@dataclass(frozen=True)
class Outlier:
    """One given eigenvalue of H_true, and where it shows.

    Attributes:
        value: θ.
        position: Where large matrices have it, from the middle of the bulk: θ + n a/θ, or the edge.
        seen: Mean over the samples, from the middle of the bulk.
        spread: Its standard deviation over the samples; NaN for a single one.
    """

    value: float
    position: float
    seen: float
    spread: float


@dataclass(frozen=True)
class Summary(Result):
    """What a file of sampled Hessians holds, in a few numbers.

    Attributes:
        a: Variance of an off-diagonal element.
        c: Covariance of two diagonal elements, the variance of a spectrum's shift.
        mean: Mean of a diagonal element.
        radius: Of the bulk, 2√(n a).
        mean_ratio: ⟨r̃⟩ of all levels; NaN where no ratio is defined.
        mean_ratio_error: Its standard error.
        bulk_mean_ratio: ⟨r̃⟩ without the outliers; that of all levels where there are none.
        bulk_mean_ratio_error: Its standard error.
        outside_expected: Mean number of levels outside the bulk, |θ| > √(n a).
        outside_seen: Mean number of levels further from the middle of the bulk than the largest
            level of a GOE matrix is in 999 of 1,000 samples.
        outliers: One entry for each given outlier, ascending; none for drawn ones.
    """

    a: float
    c: float
    mean: float
    radius: float
    mean_ratio: float
    mean_ratio_error: float
    bulk_mean_ratio: float
    bulk_mean_ratio_error: float
    outside_expected: float
    outside_seen: float
    outliers: tuple[Outlier, ...]


def covariance(config: SimulateConfig) -> HessianCovariance:
    """The law of the random part of the Hessian.

    Args:
        config: The settings.

    Returns:
        That of the kernel, given the loss if it is known.
    """
    kernels: dict[str, Callable[..., HessianCovariance]] = {
        "paper": lossmodel.paper,
        "rbf": lossmodel.rbf,
        "rational-quadratic": lossmodel.rational_quadratic,
        "matern": lossmodel.matern,
        "p-spin": lossmodel.p_spin,
        "mixed-spherical": lambda coefficients: lossmodel.mixed_spherical(list(coefficients)),
    }
    found = kernels[config.kernel](**config.kernel_options)
    return found if config.given_loss is None else found.given_loss(config.given_loss)


def run(
    config: SimulateConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    tick: Tick | None = None,
    pool: Pool = SERIAL,
) -> Spectra:
    """Sample every Hessian that the file lacks and store their spectra.

    Args:
        config: The settings.
        out: The spectrum file.
        resume: Continue the file if it is there; with more samples it is extended.
        overwrite: Replace the file if it is there.
        tick: Told of progress: samples done and wanted.
        pool: Where samples are drawn. This process alone writes the file.

    Returns:
        All spectra of the file.
    """
    backend = backend_of(config.device) if pool.local else None
    sample = partial(_sample, config, backend=backend) if backend else partial(_sample, config)
    # what cannot be sampled must not cost an existing file
    ((_, (first,)),) = pool.map_unordered(sample, [(0, 1)])
    with SpectrumWriter(
        out,
        identity=config.model_dump(mode="json"),
        solver=first.solver,
        dimension=first.dimension,
        batch_indices=np.arange(config.samples)[:, None],
        provenance=_provenance(config, first, pool),
        resume=resume,
        overwrite=overwrite,
    ) as file:
        groups = list(_groups(np.flatnonzero(~file.done), config.dimension, pool, backend))
        for index, found in pool.map_unordered(sample, groups):
            file.write_all(dict(enumerate(found, groups[index][0])))
            if tick:
                tick("samples", int(file.done.sum()), config.samples)
    return load(out)


def _sample(
    config: SimulateConfig, rows: tuple[int, int], backend: Backend | None = None
) -> list[Spectrum]:
    """Samples from a first one up to one past the last; each depends on its number alone."""
    start, stop = rows
    found = sample_spectra(
        covariance(config),
        config.dimension,
        stop - start,
        outliers(config),
        scale(config),
        config.degenerate,
        config.method,
        config.seed,
        device=backend or config.device,
        first=start,
    )
    loss = float("nan") if config.given_loss is None else config.given_loss
    return [replace(item, loss=loss) for item in found]


def outliers(config: SimulateConfig) -> int | Sequence[float]:
    """Outliers as the sampler takes them: how many are drawn, or their values."""
    return config.outliers if config.outlier_values is None else config.outlier_values


def scale(config: SimulateConfig) -> float:
    """Scale of drawn outliers."""
    return OUTLIER_SCALE if config.outlier_scale is None else config.outlier_scale


def summary(config: SimulateConfig, spectra: Sequence[Spectrum]) -> Summary:
    """Compare sampled spectra with what is known of them.

    Args:
        config: The settings they were sampled with.
        spectra: At least one.

    Returns:
        The numbers.
    """
    cov, n = covariance(config), config.dimension
    given = np.sort(np.asarray(config.outlier_values or (), dtype=np.float64))
    threshold = bbp_threshold(n, cov.a)
    below, above = _outside(config)
    places = np.array(
        [item.eigenvalues[item.eigenvalues != 0] - centre(item, below, above) for item in spectra]
    )
    edge = 2 * threshold + _FURTHEST * cov.a**0.5 * n ** (-1 / 6)
    return Summary(
        a=cov.a,
        c=cov.c,
        mean=cov.mean,
        radius=2 * threshold,
        **_ratios("mean_ratio", spectra),
        **_ratios("bulk_mean_ratio", [bulk(item, below, above) for item in spectra]),
        outside_expected=sum(expected_outside(cov, n, outliers(config), scale(config))),
        outside_seen=float(np.mean(np.count_nonzero(np.abs(places) > edge, axis=1))),
        outliers=_outliers(given[given != 0], places, n, cov),
    )


def statistics(config: SimulateConfig, spectra: Sequence[Spectrum]) -> LevelStatistics:
    """What the levels of the bulk agree with.

    Args:
        config: The settings they were sampled with.
        spectra: At least one.

    Returns:
        The statistics, without p-values.
    """
    return analyze([bulk(item, *_outside(config)) for item in spectra], surrogates=0)


def _outside(config: SimulateConfig) -> tuple[int, int]:
    """Outliers that a spectrum has below its bulk, and above it."""
    given = np.asarray(config.outlier_values or (), dtype=np.float64)
    threshold = bbp_threshold(config.dimension, covariance(config).a)
    below, above = np.count_nonzero(given < -threshold), np.count_nonzero(given > threshold)
    return int(below), int(above) + config.outliers


def _ratios(name: str, spectra: Sequence[Spectrum]) -> dict[str, float]:
    """⟨r̃⟩ and its error under a name; NaN where no ratio is defined."""
    try:
        mean, error = mean_and_error(ratio_samples(select(spectra)))
    except DataError:
        mean = error = float("nan")
    return {name: mean, f"{name}_error": error}


def _outliers(given: Levels, places: Stack, n: int, cov: HessianCovariance) -> tuple[Outlier, ...]:
    """Each outlier beside the level that belongs to it: the lowest θ < 0 beside the lowest."""
    negative = int(np.count_nonzero(given < 0))
    found = []
    for number, value in enumerate(given):
        seen = places[:, number if number < negative else number - len(given)]
        spread = float(seen.std(ddof=1)) if len(seen) > 1 else float("nan")
        position = float(bbp_position(value, n, cov.a))
        found.append(Outlier(float(value), position, float(seen.mean()), spread))
    return tuple(found)


def _groups(
    rows: Indices, n: int, pool: Pool, backend: Backend | None
) -> Iterator[tuple[int, int]]:
    """Stretches of rows that are sampled together: first, and one past the last."""
    work = _GROUP_WORK * (1 if backend is None else backend.speed)
    size = max(1, min(_GROUP, work // n**3))
    if not pool.local:
        size = min(size, -(-max(1, len(rows)) // (_TASKS * pool.width)))
    for stretch in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
        for start in range(0, len(stretch), size):
            part = stretch[start : start + size]
            yield int(part[0]), int(part[-1]) + 1


def _provenance(config: SimulateConfig, first: Spectrum, pool: Pool) -> Provenance:
    """Settings of the sampler, without what belongs to its first sample alone."""
    sampled = {
        name: value
        for name, value in first.provenance.config.items()
        if name not in {"index", "drawn"}
    }
    kernel = {"kernel": config.kernel, "samples": config.samples, "given_loss": config.given_loss}
    return Provenance(
        config={**sampled, **kernel}, device=first.provenance.device, notes=computed_by(pool)
    )
