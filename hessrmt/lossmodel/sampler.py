"""Sampled Hessians of the Gaussian-process loss model and their complete spectra.

A sample is H = H_true + mean·I + √a·G + √c·ξ·I in the n directions in which the loss is random, G
of the Gaussian orthogonal ensemble and ξ standard normal, with zeros in the degenerate directions
([B] = Baskerville, Granziol, Keating, sections 7 and 8). One thing differs from the published code,
where an outlier may come to lie on a degenerate direction: it is an eigenvalue θ exactly there and
feels nothing of the bulk. Here H_true acts in the n random directions; ``h_true`` in full size says
anything else.

Sample i depends on the seed, i and the settings alone: not on how many are drawn, on batches or, up
to round-off, on the device.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hessrmt import rng
from hessrmt.backend.select import select
from hessrmt.errors import DeviceError, LossModelError, NonFiniteError
from hessrmt.lossmodel.arguments import whole
from hessrmt.lossmodel.band import band_eigenvalues, goe_band, solver_words
from hessrmt.lossmodel.covariance import HessianCovariance
from hessrmt.lossmodel.outliers import TrueHessian, true_hessian
from hessrmt.records import Provenance, Spectrum

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jaxtyping import Float64
    from torch import Tensor

    from hessrmt.arrays import Levels
    from hessrmt.backend.base import Backend

METHODS = ("auto", "tridiagonal", "dense")

BAND_SHARE = 8
"""Up to n/8 outliers the band is the faster way, with dense matrices on two cores (measured for n
from 100 to 2,000; it needs far less memory besides)."""

_BATCH = 256
_BATCH_WORK = 64 * 1000**3
"""Largest Σ n³ of a batch of dense matrices: a report of progress every few seconds on a CPU."""


@dataclass(frozen=True)
class _Point:
    """What is drawn for one sample before G, and the stream that goes on."""

    index: int
    generator: np.random.Generator
    shift: float
    outliers: Levels


@dataclass(frozen=True)
class _Model:
    """Checked arguments of a run."""

    cov: HessianCovariance
    n: int
    degenerate: int
    true: TrueHessian
    seed: int

    @property
    def size(self) -> int:
        """Dimension of the matrix that is diagonalised."""
        return self.n if self.true.matrix is None else len(self.true.matrix)

    def point(self, index: int) -> _Point:
        """Shift mean + √c·ξ and non-zero eigenvalues of H_true of one sample."""
        generator = rng.stream(self.seed, "lossmodel", index)
        shift = self.cov.mean + self.cov.c**0.5 * generator.normal()
        return _Point(index, generator, shift, self.true.draw(generator))

    def config(self, point: _Point, method: str) -> dict[str, Any]:
        """Full settings of one sample, with what was drawn besides G."""
        return {
            "ensemble": "loss-model",
            "operator": "ensemble",
            "dtype": "float64",
            "covariance": dict(self.cov.settings),
            "n": self.n,
            "degenerate": self.degenerate,
            **self.true.settings,
            "method": method,
            "seed": self.seed,
            "index": point.index,
            "drawn": {"shift": point.shift, "outliers": point.outliers.tolist()},
        }


def sample_spectra(
    cov: HessianCovariance,
    n: int = 300,
    samples: int = 100,
    outliers: int | Sequence[float] | Levels = 0,
    outlier_scale: float = 1.0,
    degenerate: int = 0,
    method: str = "auto",
    seed: int = 0,
    *,
    h_true: Float64[np.ndarray, "size size"] | None = None,
    device: str = "cpu",
    tick: Callable[[int, int], None] | None = None,
    first: int = 0,
) -> list[Spectrum]:
    """Complete spectra of independently sampled Hessians.

    Both methods are exact in law. ``"tridiagonal"`` draws a matrix that is similar to a dense one,
    tridiagonal without outliers and a band of half-width r with r of them: O(n r) random numbers,
    O(n² r) work, no n × n matrix (:mod:`hessrmt.lossmodel.band`). Of ``h_true`` it needs only the
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
        device: Where dense matrices are drawn and diagonalised.
        tick: Called with the number of spectra done and the number wanted.
        first: Index of the first sample: a run is continued with the number that are done.

    Returns:
        Spectra of dimension n + degenerate, operator ``"ensemble"``. Their provenance holds all
        settings, and under ``"drawn"`` the shift mean + √c·ξ and the outliers of the sample.

    Raises:
        LossModelError: If an argument cannot be used.
    """
    model = _model(cov, n, degenerate, outliers, outlier_scale, h_true, seed)
    samples, first = whole("samples", samples), whole("first", first)
    chosen = _method(model, method)
    if tick is not None and not callable(tick):
        raise LossModelError(f"tick must be a function of two numbers or None, got {tick!r}")
    # a device that is not there is refused also where it is not needed
    backend = select(device) if chosen == "dense" or device not in {"auto", "cpu"} else None
    indices = range(first, first + samples)
    if chosen == "tridiagonal" or backend is None:
        found = (_banded(model, index) for index in indices)
    else:
        found = _diagonalised(model, backend, indices)
    spectra = []
    for spectrum in found:
        spectra.append(spectrum)
        if tick is not None:
            tick(len(spectra), samples)
    return spectra


def sample_hessian(
    cov: HessianCovariance,
    n: int,
    seed: int = 0,
    index: int = 0,
    outliers: int | Sequence[float] | Levels = 0,
    outlier_scale: float = 1.0,
    degenerate: int = 0,
    h_true: Float64[np.ndarray, "size size"] | None = None,
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
    model = _model(cov, n, degenerate, outliers, outlier_scale, h_true, seed)
    backend = select("cpu") if backend is None else backend
    index = whole("index", index)
    _require_memory(backend, 24 * (model.n + model.degenerate) ** 2, model)
    matrix = _matrices(model, backend, [model.point(index)])[0].cpu().numpy()
    padding = model.n + model.degenerate - model.size
    return np.pad(matrix, (0, padding)) if padding else matrix


def _model(
    cov: HessianCovariance,
    n: int,
    degenerate: int,
    outliers: int | Sequence[float] | Levels,
    outlier_scale: float,
    h_true: Float64[np.ndarray, "size size"] | None,
    seed: int,
) -> _Model:
    if not isinstance(cov, HessianCovariance):
        raise LossModelError(
            f"cov must be a HessianCovariance, got {type(cov).__name__}; try "
            "hessrmt.lossmodel.rbf() or paper(k1, k2)"
        )
    n, degenerate = whole("n", n, 1), whole("degenerate", degenerate)
    true = true_hessian(n, degenerate, outliers, outlier_scale, h_true)
    return _Model(cov, n, degenerate, true, whole("seed", seed))


def _method(model: _Model, method: str) -> str:
    """The method that is taken; the same on every device, since the numbers depend on it."""
    if method not in METHODS:
        raise LossModelError(f"unknown method {method!r}; known are {', '.join(METHODS)}")
    full = model.size > model.n
    if full and method == "tridiagonal":
        raise LossModelError(
            f"h_true of shape {(model.size, model.size)} acts on degenerate directions, where the "
            "random part is no GOE matrix: take method='dense', or h_true of shape "
            f"{(model.n, model.n)}"
        )
    if method != "auto":
        return method
    banded = not full and model.true.rank <= max(1, model.n // BAND_SHARE)
    return "tridiagonal" if banded else "dense"


def _banded(model: _Model, index: int) -> Spectrum:
    """One spectrum by the band."""
    begin = time.perf_counter()
    point = model.point(index)
    rank = len(point.outliers)
    width = max(1, rank)
    band = goe_band(model.n, width, point.generator)
    band *= model.cov.a**0.5
    band[0, :rank] += point.outliers
    middle = time.perf_counter()
    levels = band_eigenvalues(band) + point.shift
    seconds = {"matrix": middle - begin, "eigenvalues": time.perf_counter() - middle}
    words = solver_words(model.n, width)
    return _spectrum(model, point, levels, seconds, "tridiagonal", words, "cpu")


def _diagonalised(model: _Model, backend: Backend, indices: range) -> Iterator[Spectrum]:
    """Spectra by dense matrices, in batches that fit into half of the free memory."""
    each = backend.eigen_bytes(model.size, 8) + 8 * model.n**2
    _require_memory(backend, each, model)
    batch = min(_BATCH, _BATCH_WORK // model.size**3, backend.free_memory() // (2 * each))
    batch = max(1, int(batch))
    for start in range(0, len(indices), batch):
        begin = time.perf_counter()
        points = [model.point(index) for index in indices[start : start + batch]]
        matrices = _matrices(model, backend, points)
        middle = time.perf_counter()
        found = backend.eigvalsh_batch(matrices)
        times = np.diff([begin, middle, time.perf_counter()]) / len(points)
        seconds = {"matrix": float(times[0]), "eigenvalues": float(times[1])}
        words = f"dense, {backend.solver}"
        for point, levels in zip(points, found, strict=True):
            yield _spectrum(model, point, levels, seconds, "dense", words, backend.name)


def _matrices(
    model: _Model, backend: Backend, points: Sequence[_Point]
) -> Float64[Tensor, "batch size size"]:
    """Dense samples of consecutive indices, degenerate directions left out unless H_true acts."""
    key = int(rng.seed_sequence(model.seed, "lossmodel", "goe").generate_state(1, np.uint64)[0])
    found = backend.sample_goe(model.n, len(points), key, torch.float64, first=points[0].index)
    found *= model.cov.a**0.5
    diagonal = np.empty((len(points), model.n))
    for row, point in enumerate(points):
        diagonal[row] = point.shift
        if model.true.matrix is None:
            diagonal[row, : len(point.outliers)] += point.outliers
    found.diagonal(dim1=1, dim2=2).add_(torch.from_numpy(diagonal).to(found.device))
    if model.size > model.n:
        padding = model.size - model.n
        found = torch.nn.functional.pad(found, (0, padding, 0, padding))
    if model.true.matrix is not None:
        found += torch.from_numpy(model.true.matrix).to(found.device)
    return found


def _spectrum(
    model: _Model,
    point: _Point,
    levels: Levels,
    seconds: dict[str, float],
    method: str,
    solver: str,
    device: str,
) -> Spectrum:
    """Record of one sample, the degenerate directions added."""
    size, dimension = model.size, model.n + model.degenerate
    if not np.isfinite(levels).all():
        raise NonFiniteError(
            f"sample {point.index} has eigenvalues beyond the largest float64; rescale the loss"
        )
    floor = size * float(np.finfo(np.float64).eps) * float(np.abs(levels).max())
    return Spectrum(
        eigenvalues=np.sort(np.concatenate([levels, np.zeros(dimension - size)])),
        noise_floor=floor,
        dimension=dimension,
        reduced_dimension=size,
        operator="ensemble",
        dtype="float64",
        solver=solver,
        seconds=seconds,
        provenance=Provenance(config=model.config(point, method), device=device),
    )


def _require_memory(backend: Backend, needed: int, model: _Model) -> None:
    free = backend.free_memory()
    if needed > free:
        raise DeviceError(
            f"a dense matrix of dimension {model.size} needs {needed / 2**30:.1f} GiB on "
            f"{backend.name}, {free / 2**30:.1f} GiB are free; spectra need none with "
            "method='tridiagonal'"
        )
