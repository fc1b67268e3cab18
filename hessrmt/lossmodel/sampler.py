"""Sampled Hessians of the Gaussian-process loss model, their complete spectra, bulk and outliers.

A sample is H = H_true + mean·I + √a·G + √c·ξ·I in the n directions in which the loss is random, G
of the Gaussian orthogonal ensemble and ξ standard normal, with zeros in the degenerate directions
(Baskerville, Granziol and Keating 2022, sections 7 and 8). One thing differs from the published
code, where an outlier may come to lie on a degenerate direction: it is an eigenvalue θ exactly
there and feels nothing of the bulk. Here H_true acts in the n random directions; ``h_true`` in full
size says anything else.

Sample i depends on the seed, i and the settings alone: not on how many are drawn, on batches or, up
to round-off, on the device.

**The band.** The GOE is orthogonally invariant, so an H_true of rank r may be taken diagonal in the
first r coordinates. Reflections of the other coordinates leave it alone, and they suffice to bring
G to a band of half-width r: column by column, the elements below row j + r are rotated into that
row. What they leave is, with all elements independent,

- on the diagonal N(0, 2), as in G;
- beside it, in the first r - 1 subdiagonals, N(0, 1), as in G;
- in the r-th subdiagonal the lengths of the vectors that were rotated, χ_{n-r}, ..., χ_2, χ_1.

For r = 1 that is the tridiagonal matrix of Dumitriu and Edelman 2002; in general the band of
Bloemendal and Virág 2016, section 1 (for r = 1 also Bloemendal and Virág 2013).

**Bulk and outliers.** Of the n levels those that belong to an eigenvalue |θ| > √(n a) of H_true lie
at θ + n a/θ, outside the bulk: a semicircle of radius 2√(n a) about the shift of the sample.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy.special import ndtri

from hessrmt import rng
from hessrmt.backend.select import select
from hessrmt.checks import one_of, real, real_array, whole
from hessrmt.config import OUTLIER_SCALE
from hessrmt.ensembles.sampling import BETA_ENSEMBLE, ensemble_spectrum, noise_floor
from hessrmt.errors import DataError, DeviceError, NonFiniteError
from hessrmt.lossmodel.covariance import HessianCovariance, symmetrized
from hessrmt.records import Provenance
from hessrmt.results import Result
from hessrmt.theory.densities import bbp_deviation, bbp_position, bbp_threshold, smeared_semicircle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jaxtyping import Float64
    from torch import Tensor

    from hessrmt.arrays import Levels
    from hessrmt.backend.base import Backend
    from hessrmt.records import Spectrum

    Square = Float64[np.ndarray, "size size"]
    Outliers = int | Sequence[float] | Levels

METHODS = ("auto", "tridiagonal", "dense")

BAND_SHARE = 8
"""Up to n/8 outliers the band is the faster way, with dense matrices on two cores (measured for n
from 100 to 2,000; it needs far less memory besides)."""

_BATCH = 256
_BATCH_WORK = 64 * 1000**3
"""Largest Σ n³ of a batch of dense matrices: a report of progress every few seconds on a CPU."""

_BAND_WORK = 10**8
"""Largest Σ n² r of a batch of bands, for the same reason."""

_QUANTILES = 2000
"""Values that stand for the law of a drawn outlier."""


class _Point(NamedTuple):
    """What is drawn for one sample before G, and the stream that goes on."""

    number: int
    generator: np.random.Generator
    shift: float
    outliers: Levels


@dataclass
class _Model:
    """Arguments of a run, checked; H_true by a number of outliers to be drawn, values, or whole."""

    cov: HessianCovariance
    n: int
    degenerate: int
    outliers: Outliers
    scale: float
    h_true: Square | None
    seed: int

    def __post_init__(self) -> None:
        if not isinstance(self.cov, HessianCovariance):
            kind = type(self.cov).__name__
            raise DataError(f"cov must be a HessianCovariance such as rbf() or paper(), got {kind}")
        self.n, self.degenerate = whole("n", self.n, 1), whole("degenerate", self.degenerate)
        self.scale = real("outlier_scale", self.scale, above=0)
        self.seed = whole("seed", self.seed)
        self.count, self.values = 0, np.empty(0)
        if isinstance(self.outliers, int | np.integer):
            self.count = whole("outliers", self.outliers)
        else:
            hint = "give a count or a list of values"
            given = real_array("outliers", self.outliers, dimensions=1, empty=True, hint=hint)
            self.values = given[given != 0]
        n, rank, full = self.n, self.rank, self.dimension
        if rank > n:
            few = "give fewer or a larger n"
            raise DataError(f"{rank} outliers need as many directions, got n = {n}; {few}")
        if self.h_true is None:
            return
        if rank:
            raise DataError(f"h_true and {rank} outliers given: give one of them, or their sum")
        matrix = real_array("h_true", self.h_true, dimensions=2)
        if matrix.shape not in {(n, n), (full, full)}:
            shapes = f"{(n, n)} or {(full, full)}" if full > n else f"{(n, n)}"
            raise DataError(f"h_true must have shape {shapes}, got {matrix.shape}")
        self.h_true = symmetrized("h_true", matrix, len(matrix))
        levels = np.linalg.eigvalsh(self.h_true)
        self.values = levels[np.abs(levels) > noise_floor(levels)]

    @property
    def dimension(self) -> int:
        """All directions, degenerate ones among them."""
        return self.n + self.degenerate

    @property
    def size(self) -> int:
        """Dimension of the matrix that is diagonalised."""
        return self.n if self.h_true is None else len(self.h_true)

    @property
    def rank(self) -> int:
        """Number of outliers."""
        return self.count or len(self.values)

    def point(self, index: int) -> _Point:
        """Shift mean + √c·ξ and non-zero eigenvalues of H_true of one sample."""
        generator = rng.stream(self.seed, "lossmodel", index)
        shift = self.cov.mean + self.cov.c**0.5 * generator.normal()
        drawn = self.scale * (1 + generator.normal(size=self.count) ** 2)
        return _Point(index, generator, shift, drawn if self.count else self.values)

    def config(self, point: _Point, method: str) -> dict[str, Any]:
        """Full settings of one sample, with what was drawn besides G."""
        asked: dict[str, Any] = {"outliers": self.count or self.values.tolist()}
        if self.count:
            asked["outlier_scale"] = self.scale
        if self.h_true is not None:
            digest = sha256(self.h_true.tobytes()).hexdigest()
            asked = {"outliers": [], "h_true": {"shape": [self.size] * 2, "sha256": digest}}
        what = {"ensemble": "loss-model", "operator": "ensemble", "dtype": "float64"}
        law = {"covariance": dict(self.cov.settings), "n": self.n, "degenerate": self.degenerate}
        drawn = {"shift": point.shift, "outliers": point.outliers.tolist()}
        which = {"method": method, "seed": self.seed, "index": point.number, "drawn": drawn}
        return {**what, **law, **asked, **which}


def sample_spectra(
    cov: HessianCovariance,
    n: int = 300,
    samples: int = 100,
    outliers: Outliers = 0,
    outlier_scale: float = OUTLIER_SCALE,
    degenerate: int = 0,
    method: str = "auto",
    seed: int = 0,
    *,
    h_true: Square | None = None,
    device: str | Backend = "cpu",
    tick: Callable[[int, int], None] | None = None,
    first: int = 0,
) -> list[Spectrum]:
    """Complete spectra of independently sampled Hessians.

    Both methods are exact in law. ``"tridiagonal"`` draws a matrix that is similar to a dense one,
    tridiagonal without outliers and a band of half-width r with r of them: O(n r) random numbers,
    O(n² r) work, no n × n matrix (see the top of this file). Of ``h_true`` it needs only the
    eigenvalues, since G favours no direction. ``"dense"`` diagonalises the matrices of
    :func:`sample_hessian`. ``"auto"`` takes the first up to n/8 outliers.

    Args:
        cov: Law of the random part, e.g. ``rbf()``, ``p_spin(3)`` or ``paper(0, 1)``.
        n: Directions in which the loss is random.
        samples: How many spectra.
        outliers: Non-zero eigenvalues of H_true: their values, the same in every sample; or how
            many are drawn anew for each sample, θ = outlier_scale·(1 + g²), g standard normal, as
            in the published code.
        outlier_scale: Of drawn outliers, in units of the eigenvalues.
        degenerate: Further directions in which the loss is constant: exact zeros, not diagonalised.
        method: ``"auto"``, ``"tridiagonal"`` or ``"dense"``.
        seed: Of the run.
        h_true: H_true itself instead of outliers, (n, n); or (n + degenerate, n + degenerate) to
            act on degenerate directions too, for which the matrices are dense, of that size, and
            without exact zeros.
        device: Where dense matrices are drawn, and eigenvalues computed: ``auto``, ``cpu`` or
            ``cuda[:i]``. Bands are drawn in main memory.
        tick: Called with the number of spectra done and the number wanted.
        first: Index of the first sample: a run is continued with the number that are done.

    Returns:
        Spectra of dimension n + degenerate, operator ``"ensemble"``. Their provenance holds all
        settings, and under ``"drawn"`` the shift mean + √c·ξ and the outliers of the sample.

    Raises:
        DataError: If an argument cannot be used.
    """
    model = _Model(cov, n, degenerate, outliers, outlier_scale, h_true, seed)
    samples, first = whole("samples", samples), whole("first", first)
    one_of("method", method, METHODS)
    full = model.size > n
    if full and method == "tridiagonal":
        raise DataError(f"for h_true of a shape other than {(n, n)} take method='dense'")
    if method == "auto":  # the same on every device, since the numbers depend on it
        banded = not full and model.rank <= max(1, n // BAND_SHARE)
        method = "tridiagonal" if banded else "dense"
    if tick is not None and not callable(tick):
        raise DataError(f"tick must be a function of two numbers or None, got {tick!r}")
    backend, indices, spectra = select(device), range(first, first + samples), []
    for spectrum in _sampled(model, method, backend, indices):
        spectra.append(spectrum)
        if tick is not None:
            tick(len(spectra), samples)
    return spectra


def sample_hessian(
    cov: HessianCovariance,
    n: int,
    seed: int = 0,
    index: int = 0,
    outliers: Outliers = 0,
    outlier_scale: float = OUTLIER_SCALE,
    degenerate: int = 0,
    h_true: Square | None = None,
    backend: Backend | None = None,
) -> Float64[np.ndarray, "P P"]:
    """One sampled Hessian, that of :func:`sample_spectra` with ``method="dense"``.

    Args:
        cov: Law of the random part.
        n: Directions in which the loss is random; they come first.
        seed: Of the run.
        index: Which sample of the run.
        outliers: As in :func:`sample_spectra`; they are added to the first diagonal elements.
        outlier_scale: Of drawn outliers.
        degenerate: Further directions: rows and columns of zeros.
        h_true: As in :func:`sample_spectra`, added as it is.
        backend: Where it is drawn; the CPU if None.

    Returns:
        (n + degenerate, n + degenerate), symmetric to the bit.
    """
    model = _Model(cov, n, degenerate, outliers, outlier_scale, h_true, seed)
    backend = select("cpu") if backend is None else backend
    index = whole("index", index)
    _require_memory(backend, 24 * model.dimension**2, model)
    matrix = _matrices(model, backend, [model.point(index)])[0].cpu().numpy()
    return np.pad(matrix, (0, model.dimension - model.size))


def _sampled(model: _Model, method: str, backend: Backend, indices: range) -> Iterator[Spectrum]:
    """In batches; dense matrices of one fit into half of the free memory."""
    width, banded = min(max(1, model.rank), model.n - 1), method == "tridiagonal"
    if banded:
        fitting = backend.speed * _BAND_WORK // (model.n**2 * max(1, width))
    else:
        each = backend.eigen_bytes(model.size, 8) + 8 * model.n**2
        _require_memory(backend, each, model)
        # one more: itself, its copy in the stack, and as much for the solver
        more = max(0, backend.free_memory() // 2 - each) // (3 * 8 * model.size**2)
        fitting = min(backend.speed * _BATCH_WORK // model.size**3, 1 + more)
    batch = max(1, min(_BATCH, int(fitting)))
    for start in range(0, len(indices), batch):
        begin = time.perf_counter()
        points = [model.point(index) for index in indices[start : start + batch]]
        if banded:
            bands = np.array([_band(model, width, point) for point in points])
            middle = time.perf_counter()
            shifts = np.array([[point.shift] for point in points])
            found = backend.eigvalsh_banded(bands) + shifts
            device, route = backend.banded_route(width)
            kind = f"GOE as a band of half-width {width}" if width > 1 else BETA_ENSEMBLE
            solver = f"{kind} ({route})"
        else:
            matrices = _matrices(model, backend, points)
            middle = time.perf_counter()
            found = backend.eigvalsh_batch(matrices)
            device, solver = backend.name, f"dense, {backend.solver}"  # the one that was taken
        times = np.diff([begin, middle, time.perf_counter()]) / len(points)
        seconds = dict(zip(("matrix", "eigenvalues"), times.tolist(), strict=True))
        for point, levels in zip(points, found, strict=True):
            if not np.isfinite(levels).all():
                what = f"sample {point.number} has eigenvalues beyond float64"
                raise NonFiniteError(f"{what}; rescale the loss")
            provenance = Provenance(config=model.config(point, method), device=device)
            known = {"solver": solver, "provenance": provenance, "seconds": seconds}
            yield ensemble_spectrum(levels, model.dimension, **known)


def _band(model: _Model, width: int, point: _Point) -> Float64[np.ndarray, "width+1 n"]:
    """A sample as a band, without its shift."""
    band = goe_band(model.n, width, point.generator) * model.cov.a**0.5
    band[0, : model.rank] += point.outliers
    return band


def _matrices(
    model: _Model, backend: Backend, points: Sequence[_Point]
) -> Float64[Tensor, "batch size size"]:
    """Dense samples of consecutive indices, degenerate directions left out unless H_true acts."""
    key = int(rng.seed_sequence(model.seed, "lossmodel", "goe").generate_state(1, np.uint64)[0])
    found = backend.sample_goe(model.n, len(points), key, first=points[0].number)
    found *= model.cov.a**0.5
    diagonal = np.repeat([[point.shift] for point in points], model.n, axis=1)
    if model.h_true is None:
        diagonal[:, : model.rank] += [point.outliers for point in points]
    found.diagonal(dim1=1, dim2=2).add_(torch.from_numpy(diagonal).to(found.device))
    if model.h_true is not None:
        padding = model.size - model.n
        found = torch.nn.functional.pad(found, (0, padding, 0, padding))
        found += torch.from_numpy(model.h_true).to(found.device)
    return found


def _require_memory(backend: Backend, needed: int, model: _Model) -> None:
    free = backend.free_memory()
    if needed > free:
        what = f"a dense matrix of dimension {model.size} needs {needed / 2**30:.1f} GiB"
        there = f"on {backend.name}, {free / 2**30:.1f} GiB are free"
        raise DeviceError(f"{what} {there}; method='tridiagonal' needs none")


def goe_band(
    n: int, width: int, generator: np.random.Generator
) -> Float64[np.ndarray, "width+1 n"]:
    """Band form of a GOE matrix in which the first ``width`` coordinates are as they were.

    Args:
        n: Dimension.
        width: Half-width r of the band: subdiagonals that are not zero. Above n - 1 it is n - 1,
            where nothing but the sign of one coordinate is left to choose.
        generator: Source of randomness.

    Returns:
        (r + 1, n), row k the k-th subdiagonal in its first n - k elements. With any diagonal matrix
        added that is zero beyond the first r coordinates, its eigenvalues have the law of those of
        a dense GOE matrix (off-diagonal variance 1) with the same addition.
    """
    width = min(width, n - 1)
    band = np.zeros((width + 1, n))
    band[0] = generator.normal(scale=2**0.5, size=n)
    for k in range(1, width):
        band[k, : n - k] = generator.normal(size=n - k)
    if width:
        band[width, : n - width] = np.sqrt(generator.chisquare(np.arange(n - width, 0, -1)))
    return band


def _outside(
    cov: HessianCovariance, n: int, outliers: Outliers, scale: float
) -> tuple[Levels, Levels]:
    """θ that show outside the bulk, drawn ones at quantiles of their law; how many of each."""
    if isinstance(outliers, int | np.integer):
        g = ndtri((np.arange(_QUANTILES) + 0.5) / _QUANTILES)
        values, weights = scale * (1 + g**2), np.full(_QUANTILES, outliers / _QUANTILES)
    else:
        values = np.asarray(outliers, dtype=np.float64).reshape(-1)
        weights = np.ones(len(values))
    shown = (np.abs(values) > bbp_threshold(n, cov.a)) & (weights > 0)
    return values[shown], weights[shown]


def mean_density(
    x: Levels,
    cov: HessianCovariance,
    n: int,
    outliers: Outliers = 0,
    outlier_scale: float = OUTLIER_SCALE,
    degenerate: int = 0,
) -> Levels:
    """Mean density of the levels of sampled Hessians for large n and few outliers.

    The bulk is a semicircle, every outlier outside it a normal distribution about its position,
    and both are smeared by the shift √c·ξ of a sample. What outliers do to each other and to the
    bulk is left out: it is of the order of their share in n.

    Args:
        x: (k,) levels.
        cov: Law of the random part.
        n: Directions in which the loss is random.
        outliers: As for :func:`hessrmt.lossmodel.sampler.sample_spectra`.
        outlier_scale: Of drawn outliers.
        degenerate: Directions in which the loss is constant; they add a point mass at zero, which
            the density leaves out.

    Returns:
        (k,) density; its integral is n/(n + degenerate).

    Source: :func:`hessrmt.theory.smeared_semicircle`, :func:`hessrmt.theory.bbp_position`.
    """
    values, weights = _outside(cov, n, outliers, outlier_scale)
    at = np.asarray(x, dtype=np.float64) - cov.mean
    bulk = smeared_semicircle(at, 2 * bbp_threshold(n, cov.a), cov.c**0.5)
    density = (n - weights.sum()) * bulk
    width = np.sqrt(bbp_deviation(values, n, cov.a) ** 2 + cov.c)
    for place, weight, sigma in zip(bbp_position(values, n, cov.a), weights, width, strict=True):
        normal = np.exp(-(((at - place) / sigma) ** 2) / 2)
        density += weight * normal / (sigma * (2 * np.pi) ** 0.5)
    return density / (n + degenerate)


def expected_outside(
    cov: HessianCovariance, n: int, outliers: Outliers = 0, outlier_scale: float = OUTLIER_SCALE
) -> tuple[float, float]:
    """Mean numbers of levels below and above the bulk of one sample.

    Args:
        cov: Law of the random part.
        n: Directions in which the loss is random.
        outliers: As for :func:`hessrmt.lossmodel.sampler.sample_spectra`.
        outlier_scale: Of drawn outliers.

    Returns:
        How many θ < -√(n a) there are, and how many θ > √(n a).
    """
    values, weights = _outside(cov, n, outliers, outlier_scale)
    return float(weights[values < 0].sum()), float(weights[values > 0].sum())


def bulk(spectrum: Spectrum, below: int = 0, above: int = 0) -> Spectrum:
    """A spectrum without its outermost levels.

    Args:
        spectrum: Sampled; its exact zeros, the degenerate directions, are no levels.
        below: Levels left out at the lower end.
        above: Levels left out at the upper end.

    Returns:
        The spectrum of the rest, exact zeros between its levels included; no level at all if there
        are not so many.
    """
    levels = np.flatnonzero(spectrum.eigenvalues)
    kept = levels[below : max(below, len(levels) - above)]
    span = slice(kept[0], kept[-1] + 1) if len(kept) else slice(0)
    return replace(spectrum, eigenvalues=spectrum.eigenvalues[span])


def centre(spectrum: Spectrum, below: int = 0, above: int = 0) -> float:
    """Middle of the bulk of a spectrum, which the shift of the sample moves.

    Args:
        spectrum: Sampled.
        below: Outliers at the lower end.
        above: Outliers at the upper end.

    Returns:
        The median of the other levels; NaN if there are none.
    """
    levels = bulk(spectrum, below, above).eigenvalues
    levels = levels[levels != 0]
    return float(np.median(levels)) if len(levels) else float("nan")


_BINS, _POINTS = 70, 1201
_SEEN = 0.98
"""Share of drawn outliers that the bins reach; their law has a long tail."""


@dataclass(frozen=True)
class SampledDensity(
    Result,
    axes={"point": "x law", "bin": "density", "edge": "edges"},
    picture="lossmodel.densities",
):
    """Density of the levels of sampled Hessians in bins, and its large-matrix law.

    Attributes:
        edges: (k + 1,) of the bins.
        density: (k,) of all levels; its integral leaves exact zeros out.
        x: (m,) points.
        law: (m,) density there, as :func:`mean_density` has it.
        outliers: Places of given outliers; none if they are drawn.
        n_outliers: Of a sample.
        n_levels: Of all samples, exact zeros included.
        zeros: Share of exact zeros.
    """

    edges: Float64[np.ndarray, " k+1"]
    density: Float64[np.ndarray, " k"]
    x: Float64[np.ndarray, " m"]
    law: Float64[np.ndarray, " m"]
    outliers: Float64[np.ndarray, " o"]
    n_outliers: int
    n_levels: int
    zeros: float


def sampled_density(
    spectra: Sequence[Spectrum],
    cov: HessianCovariance,
    n: int,
    outliers: int | Sequence[float] = 0,
    outlier_scale: float = OUTLIER_SCALE,
    degenerate: int = 0,
) -> SampledDensity:
    """Density of the levels of sampled Hessians, with its large-matrix law.

    Args:
        spectra: Sampled.
        cov: As for :func:`mean_density`; so are the others.
        n: Directions in which the loss is random.
        outliers: How many are drawn for each sample, or their values.
        outlier_scale: Of drawn outliers.
        degenerate: Directions in which the loss is constant.

    Returns:
        The histogram, which leaves out the largest 2 % of drawn outliers, and the law.
    """
    levels = np.concatenate([item.eigenvalues for item in spectra])
    every, total = np.sort(levels[levels != 0]), len(levels)
    if isinstance(outliers, int | np.integer):
        count, places = int(outliers), []
        unseen = round((1 - _SEEN) * count * len(spectra))
    else:
        count, unseen = len(outliers), 0
        places = bbp_position(outliers, n, cov.a) + cov.mean
    low, high = every[0], every[-1 - unseen]
    margin = 0.04 * (high - low)
    edges = np.linspace(low - margin, high + margin, _BINS + 1)
    x = np.linspace(edges[0], edges[-1], _POINTS)
    density = np.histogram(every, edges)[0] / np.diff(edges) / total
    law = mean_density(x, cov, n, outliers, outlier_scale, degenerate)
    zeros = degenerate / (n + degenerate)
    return SampledDensity(edges, density, x, law, np.atleast_1d(places), count, total, zeros)
