"""All eigenvalues of a dense symmetric matrix in two stages: dense to band, band to tridiagonal.

A one-stage reduction streams the matrix through memory once for every column. Here the first stage
is matrix products, and the second, bulge chasing (csrc/bulge_chase.cu), works on a band that fits
into a cache (Bischof, Lang and Sun 2000). Collecting several panels before an update of the matrix
is the double blocking of Wang et al. 2024.

The first stage is torch on any device, on a GPU with panels by csrc/panel_qr.cu; there nothing in
its loop waits for the device. The method is backward stable: |λ̂ - λ| ≤ c n ε ‖A‖₂ with ε of the
matrix's own type, which says nothing about the relative error of small eigenvalues.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hessrmt.arrays import fetched
from hessrmt.errors import ConvergenceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float, Float64
    from torch import Tensor

    from hessrmt.arrays import Levels, Matrix

    Panel = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]

_SQUARE = 2048
"""Columns of the trailing matrix that are updated together, half of their square in vain."""


def two_stage_eigenvalues(
    a: Matrix,
    b: int,
    outer: int,
    *,
    panel: Panel | None = None,
    chase: Callable[[Tensor, int], tuple[Any, Any]],
    tridiagonal: Callable[[Any, Any], Levels],
) -> Levels:
    """All eigenvalues of a symmetric matrix.

    Args:
        a: (n, n) symmetric, finite, n >= 1, float64 or float32, contiguous; overwritten.
        b: Half-width of the band in between.
        outer: Columns collected before an update of the matrix (:func:`to_band`).
        panel: QR of a panel (:func:`to_band`).
        chase: Second stage, (band, b) to (diagonal, subdiagonal).
        tridiagonal: Third stage, (diagonal, subdiagonal) to float64 eigenvalues.

    Returns:
        (n,) float64, ascending.

    Raises:
        ConvergenceError: If an eigenvalue is not finite: a stage failed, or the eigenvalue is
            larger than the largest float64.
    """
    factor = prescale_(a)
    return _unscaled(tridiagonal(*chase(to_band(a, b, outer, panel), b)), factor)


def _unscaled(levels: np.ndarray, factor: Any) -> np.ndarray:
    """Eigenvalues in order and by the scale of the matrix that was given."""
    levels = np.sort(levels)
    with np.errstate(over="ignore"):
        levels /= factor
    if not np.all(np.isfinite(levels)):
        raise ConvergenceError(
            "the two-stage solver gave eigenvalues that are not finite though every entry of the "
            "matrix is; try the library's solver, or a smaller scale"
        )
    return levels


def prescale_(a: Matrix) -> float:
    """Bring the largest |a_ij| near 1 where squares could overflow or vanish, in place.

    As LAPACK's dsyevd does, which scales to the edge of the safe range; a power of two to its
    middle rounds nothing.

    Args:
        a: (n, n) finite, n >= 1; overwritten.

    Returns:
        The factor; divide eigenvalues by it.
    """
    of = np.finfo(str(a.dtype).removeprefix("torch."))
    least, most = map(float, fetched(*torch.aminmax(a)))
    largest = max(most, -least)
    smallest = math.sqrt(float(of.tiny) / float(of.eps))
    if largest == 0 or smallest <= largest <= 1 / smallest:
        return 1.0
    factor = _factor(largest, of)
    a *= factor
    return factor


def to_band(a: Matrix, b: int, outer: int, panel: Panel | None = None) -> Float[Tensor, "n width"]:
    """Reduce a dense symmetric matrix to a band by orthogonal similarity, in place.

    For every panel of b columns below the band: A_panel = (I - V T Vᵀ) R, W = V T,
    Z = A W - ½ V (Wᵀ A W), A ← A - V Zᵀ - Z Vᵀ. With double blocking V and Z are collected up to
    ``outer`` columns before the trailing matrix is updated; until then panels and products A W are
    corrected by what is collected.

    Updates compute the lower triangle and copy it to the upper one: A W is then one product, which
    reads the whole matrix, at the speed of memory. About 4/3 n³ operations in products, half of
    them in A W, and 2 n² b in panels. Workspace: 6 n outer + O(n b) numbers, nothing of size n².

    Args:
        a: (n, n) symmetric and contiguous, scaled (:func:`prescale_`); overwritten.
        b: Half-width of the band, at least 1.
        outer: Columns of V collected before an update, at least b; b is single blocking.
        panel: QR of an (m, b) panel, to V, W and R as :func:`geqrf_panel`, the default, gives them.

    Returns:
        (n, 2b+1) band, ``band[j, k] = A[j+k, j]``; zeros for k > b, where bulge chasing needs room.
    """
    n = a.shape[0]
    # left rightᵀ = Σ V Zᵀ + Z Vᵀ, so that an update is one product
    left, right = a.new_zeros(2, n, 2 * outer)
    used, low = 0, 0
    for i in range(0, n - b - 1, b):
        low = i + b
        a[i:, i:low].addmm_(left[i:, :used], right[i:low, :used].T, alpha=-1)
        V, W, R = (panel or geqrf_panel)(a[low:, i:low])
        k = V.shape[1]
        a[low : low + k, i:low] = R
        AW = a[low:, low:] @ W
        AW.addmm_(left[low:, :used], right[low:, :used].T @ W, alpha=-1)
        Z = AW - V @ ((W.T @ AW) / 2)
        for columns, x, y in ((slice(used, used + k), V, Z), (slice(used + k, used + 2 * k), Z, V)):
            left[low:, columns], right[low:, columns] = x, y
        used += 2 * k
        if used + 2 * b > 2 * outer or low >= n - b - 1:
            _update_(a[low:, low:], left[low:, :used], right[low:, :used])
            used = 0

    band = a.new_zeros(n, 2 * b + 1)
    for k in range(min(b + 1, n)):
        band[: n - k, k] = torch.diagonal(a, -k)
    return band


def _update_(a: Tensor, left: Tensor, right: Tensor) -> None:
    """A ← A - left rightᵀ, symmetric: block columns of the lower triangle, copied to the upper."""
    for i in range(0, len(a), _SQUARE):
        end = i + _SQUARE
        a[i:, i:end].addmm_(left[i:], right[i:end].T, alpha=-1)
        a[i:end, end:] = a[end:, i:end].T


def geqrf_panel(panel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """QR of an (m, b) panel, Q = I - V T Vᵀ with V unit lower trapezoidal, by LAPACK's routine.

    T⁻¹ has 1/tau on its diagonal and above it VᵀV (Puglisi 1992). A reflector with tau = 0 is the
    identity, as in panels of deficient rank: its v is set to zero.

    Args:
        panel: (m, b).

    Returns:
        V (m, k), W = V T (m, k) and R (k, b), k = min(m, b).
    """
    h, tau = torch.geqrf(panel)
    k = tau.shape[0]
    one = (tau != 0).to(tau)
    V = torch.tril(h[:, :k], -1)
    V[:k] += torch.diag(one)
    inverse = torch.triu(V.T @ V, 1) + torch.diag(1 / (tau + (1 - one)))
    # unlike an inverse, which reports singular matrices, it does not wait for the device
    W = torch.linalg.solve_triangular(inverse, V, upper=True, left=False)
    return V, W, torch.triu(h[:k])


# A batch


def two_stage_batch(
    a: Float64[Tensor, "batch n n"],
    b: int,
    *,
    panels: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    chase: Callable[[Tensor, int], tuple[Any, Any]],
    tridiagonal: Callable[[Any, Any], np.ndarray],
) -> Float64[np.ndarray, "batch n"]:
    """All eigenvalues of each of several symmetric matrices of one size.

    Args:
        a: (batch, n, n) symmetric, finite, at least one, n >= 1; overwritten.
        b: Half-width of the bands in between.
        panels: Of the first stage (:func:`to_bands`).
        chase: Second stage, (bands, b) to (diagonals, subdiagonals).
        tridiagonal: Third stage, (diagonals, subdiagonals) to float64 eigenvalues.

    Returns:
        (batch, n) float64, each row ascending.

    Raises:
        ConvergenceError: If an eigenvalue is not finite, as in :func:`two_stage_eigenvalues`.
    """
    of = np.finfo(np.float64)
    largest = torch.maximum(a.amax((1, 2)), -a.amin((1, 2))).tolist()
    # always, since csrc/panel_batch.cu relies on it
    factors = np.array([[[_factor(x, of)]] for x in largest])
    a *= torch.from_numpy(factors).to(a)
    levels = tridiagonal(*chase(to_bands(a, b, panels), b))
    return _unscaled(levels, factors[:, 0])


def to_bands(
    a: Float64[Tensor, "batch n n"],
    b: int,
    panels: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
) -> Float64[Tensor, "batch n width"]:
    """:func:`to_band` of several matrices of one size at once, with an update for each panel.

    Args:
        a: (batch, n, n) symmetric, scaled to entries of order 1; overwritten.
        b: Half-width of the bands, at least 1.
        panels: QR of panels (batch, b, rows), given column by column: (I - V T Vᵀ) R as V (batch,
            rows, k), T (batch, k, k) and R (batch, k, b), k = min(rows, b).

    Returns:
        (batch, n, 2b+1) bands, as of :func:`to_band`.
    """
    batch, n, _ = a.shape
    for i in range(0, n - b - 1, b):
        low = i + b
        V, T, R = panels(a[:, i:low, low:])  # by rows of the mirror image: contiguous
        a[:, low : low + R.shape[1], i:low] = R
        W, trailing = V @ T, a[:, low:, low:]
        AW = trailing @ W
        Z = AW - V @ ((W.mT @ AW) / 2)
        trailing.baddbmm_(torch.cat([V, Z], 2), torch.cat([Z, V], 2).mT, alpha=-1)

    bands = a.new_zeros(batch, n, 2 * b + 1)
    for k in range(min(b + 1, n)):
        bands[:, : n - k, k] = torch.diagonal(a, -k, 1, 2)
    return bands


def _factor(largest: float, of: np.finfo[Any]) -> float:
    """The power of two that brings a number near 1; 1 for 0."""
    exponent = -math.frexp(largest)[1]
    return math.ldexp(1.0, max(int(of.minexp), min(exponent, int(of.maxexp) - 2)))
