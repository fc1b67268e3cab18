"""Spectra of weight matrices: eigenvalues of X = WᵀW/N, N the larger side of W.

The min(N, M) eigenvalues that X and WWᵀ/N share are the squared singular values over N. They are
computed as eigenvalues of the smaller Gram matrix in float64, or, on demand, from the singular
values themselves.

A Gram eigenvalue has an absolute error of a few ε·λ_max: rounding in sums of N products adds a
matrix of norm √N ε λ_max or less, the solver one of a few ε λ_max, at most M. Below the noise floor
(M + √N)·ε·λ_max, ε = 2.2e-16, an eigenvalue counts as zero. In singular values that is a few 1e-7
of the largest for M = 400: about what weights stored in float32 carry (6e-8 of the largest weight
in each entry), and far below what float16 and bfloat16 carry. Norms, power-law tails,
Marchenko-Pastur bulks and entropies don't feel it. Only the rank of float64 weights whose singular
values span more than six decades does; singular values have the floor (N ε σ_max)²/N at two to
six times the cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from hessrmt.capacity.layers import count_nonfinite
from hessrmt.errors import ConvergenceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float64, Num
    from torch import Tensor

    from hessrmt.arrays import Levels, Matrix
    from hessrmt.backend.base import Backend

_EPS = float(np.finfo(np.float64).eps)

_TILE = 192
"""Rows of a tile of a Gram matrix, of which only the tiles on and below the diagonal are computed:
up to 1.7 times faster than the whole (M = 384 to 2,048)."""

_STREAM_FROM = 2**22
"""Weights of a matrix that is cast to float64 block by block: no copy of 32 MB or more."""

_BLOCK = 512
"""Rows of such a block."""

LARGEST, SMALLEST = 1e70, 1e-70
"""Weights must lie between them: their squares' sums stay far inside float64's range."""


@dataclass(frozen=True)
class MatrixSpectrum:
    """Eigenvalues of X = WᵀW/N of one matrix, or of several matrices of one shape together.

    Attributes:
        eigenvalues: (n,) ascending, in the square of the weights' units; not negative, and exactly
            zero at and below the noise floor.
        noise_floor: Below it an eigenvalue cannot be told from zero.
        larger: N.
        smaller: M, the number of eigenvalues of one matrix.
        frobenius_squared: ‖W‖_F², the sum of all squared weights.
    """

    eigenvalues: Levels
    noise_floor: float
    larger: int
    smaller: int
    frobenius_squared: float

    @property
    def lambda_max(self) -> float:
        """The largest eigenvalue of X."""
        return float(self.eigenvalues[-1])

    @property
    def spectral_squared(self) -> float:
        """‖W‖₂² = N λ_max."""
        return self.larger * self.lambda_max

    @property
    def positive(self) -> Levels:
        """Eigenvalues above the noise floor, ascending."""
        return self.eigenvalues[self.eigenvalues > 0]

    @property
    def rank(self) -> int:
        """How many eigenvalues lie above the noise floor."""
        return len(self.positive)


@dataclass(frozen=True)
class Gram:
    """Gram matrix of a weight matrix along its smaller side, waiting to be diagonalised.

    Attributes:
        matrix: (M, M) float64; the lower triangle is valid.
        larger: N.
    """

    matrix: Matrix
    larger: int


def gram(stack: Float64[Tensor, "parts rows columns"]) -> list[Gram]:
    """Gram matrices WᵀW or WWᵀ, whichever is smaller, of matrices of one shape.

    Args:
        stack: The matrices.

    Returns:
        One for each.
    """
    tall = stack if stack.shape[1] >= stack.shape[2] else stack.mT
    return [Gram(matrix, tall.shape[1]) for matrix in _products(tall)]


def _products(tall: Float64[Tensor, "parts n m"]) -> Sequence[Matrix]:
    m = tall.shape[2]
    if m <= _TILE:
        return list(tall.mT @ tall)
    found = []
    for matrix in tall:
        product = torch.zeros(m, m, dtype=tall.dtype, device=tall.device)
        for begin in range(0, m, _TILE):
            rows = slice(begin, begin + _TILE)
            torch.mm(matrix[:, rows].T, matrix[:, : rows.stop], out=product[rows, : rows.stop])
        found.append(product)
    return found


@dataclass(frozen=True)
class Range:
    """What the weights of a layer are like.

    Attributes:
        nonfinite: How many are NaN or infinite.
        peak: The largest |weight| of the others.
    """

    nonfinite: int
    peak: float


def streams(part_shape: tuple[int, int]) -> bool:
    """Whether matrices are large enough for :func:`streamed_grams`.

    Args:
        part_shape: (rows, columns).

    Returns:
        Whether they are.
    """
    return part_shape[0] * part_shape[1] >= _STREAM_FROM


def streamed_grams(
    view: Num[Tensor, "parts rows columns"], device: torch.device
) -> tuple[list[Gram], Range]:
    """Gram matrices of large matrices without a float64 copy of them.

    Args:
        view: The matrices in any precision and order.
        device: Where the Gram matrices are wanted.

    Returns:
        One for each, and what the weights are like; Gram matrices of weights that are not finite,
        or too large or small, are of no use.
    """
    grams, bad, peak = [], 0, 0.0
    for part in view:
        tall = part if part.shape[0] >= part.shape[1] else part.mT
        n, m = tall.shape
        product = torch.zeros(m, m, dtype=torch.float64, device=device)
        buffer = torch.empty(m, min(n, _BLOCK), dtype=torch.float64, device=device).T
        for begin in range(0, n, _BLOCK):
            rows = tall[begin : begin + _BLOCK]
            block = buffer[: len(rows)].copy_(rows)
            here = count_nonfinite(block)
            bad += here
            if not here:
                peak = max(peak, *(abs(float(end)) for end in torch.aminmax(block)))
            if bad:
                continue
            for first in range(0, m, _TILE):
                tile = slice(first, first + _TILE)
                product[tile, : tile.stop].addmm_(block[:, tile].T, block[:, : tile.stop])
        grams.append(Gram(product, n))
    return grams, Range(bad, peak)


def from_grams(grams: Sequence[Gram], backend: Backend) -> list[MatrixSpectrum]:
    """Spectra from Gram matrices of any sizes, all in one call of the backend.

    Args:
        grams: On the backend's device; may be overwritten.
        backend: Where they are diagonalised.

    Returns:
        One for each.
    """
    traces = [float(item.matrix.diagonal().sum()) for item in grams]
    levels = backend.eigvalsh_batch([item.matrix for item in grams])
    return [
        _spectrum(found / item.larger, noise(item.larger, len(found)), item.larger, trace)
        for item, found, trace in zip(grams, levels, traces, strict=True)
    ]


def from_singular_values(
    stack: Float64[Tensor, "parts rows columns"],
) -> list[MatrixSpectrum]:
    """Spectra from singular values: accurate down to (N ε σ_max)²/N.

    Args:
        stack: Matrices of one shape.

    Returns:
        One for each.

    Raises:
        ConvergenceError: If the solver fails.
    """
    larger = max(stack.shape[1:])
    try:
        values = torch.linalg.svdvals(stack)
    except RuntimeError as error:
        raise ConvergenceError(f"the singular values don't converge: {error}") from error
    squares = stack.square().sum(dim=(1, 2)).tolist()
    return [
        _spectrum(found[::-1] ** 2 / larger, (larger * _EPS) ** 2, larger, square)
        for found, square in zip(values.cpu().numpy(), squares, strict=True)
    ]


def noise(larger: int, smaller: int) -> float:
    """Relative noise floor M + √N, times ε, of Gram eigenvalues."""
    return (smaller + larger**0.5) * _EPS


def direct_sum(spectra: Sequence[MatrixSpectrum]) -> MatrixSpectrum:
    """The spectrum of the block-diagonal matrix of several matrices of one shape.

    Its Frobenius norm is the norm of all weights together, its spectral norm the largest of the
    single ones; N stays that of one matrix.

    Args:
        spectra: At least one.

    Returns:
        The union of the eigenvalues.
    """
    if len(spectra) == 1:
        return spectra[0]
    return MatrixSpectrum(
        np.sort(np.concatenate([item.eigenvalues for item in spectra])),
        max(item.noise_floor for item in spectra),
        spectra[0].larger,
        spectra[0].smaller,
        float(sum(item.frobenius_squared for item in spectra)),
    )


def _spectrum(levels: Levels, relative: float, larger: int, frobenius: float) -> MatrixSpectrum:
    floor = max(float(levels[-1]), 0.0) * relative
    cleaned = np.where(levels > floor, levels, 0.0)
    return MatrixSpectrum(cleaned, floor, larger, len(levels), frobenius)
