"""All eigenvalues of a dense symmetric matrix in two stages: dense to band, band to tridiagonal.

A one-stage reduction streams the matrix through memory once for every column. Here the first stage
is matrix products, and the second, bulge chasing (csrc/bulge_chase.cu or its plain twin), works on
a band that fits into a cache (Bischof, Lang and Sun 2000). Collecting several panels before an
update of the matrix is the double blocking of Wang et al. 2024.

The first stage is written once over an array namespace: ``torch`` (on any device) or ``numpy``; on
a GPU nothing in its loop waits for the device. The method is backward stable: |λ̂ - λ| ≤ c n ε ‖A‖₂
with ε of the matrix's own type, which says nothing about the relative error of small eigenvalues.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import linalg

from hessrmt.errors import ConfigError, ConvergenceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float

    from hessrmt.arrays import Levels

HALF_WIDTH = 64
"""Largest half-width b that the kernel is meant for: it keeps two b x b blocks in shared memory."""

SPIN_LIMIT = 1 << 24
"""How often a block looks for its predecessor before the kernel reports failure (some seconds)."""


def two_stage_eigenvalues(
    a: Any,
    xp: Any,
    b: int = HALF_WIDTH,
    *,
    outer: int | None = None,
    chase: Callable[[Any, int], tuple[Any, Any]] | None = None,
    tridiagonal: Callable[[Any, Any], Any] | None = None,
) -> Levels:
    """All eigenvalues of a symmetric matrix.

    Args:
        a: (n, n) symmetric, finite, n >= 1, float64 or float32, contiguous; overwritten.
        xp: The namespace of ``a``: ``torch`` or ``numpy``.
        b: Half-width of the band in between.
        outer: Columns collected before an update of the matrix (:func:`to_band`).
        chase: Second stage, (band, b) to (diagonal, subdiagonal); by default the plain one, on the
            CPU.
        tridiagonal: Third stage, (diagonal, subdiagonal) to eigenvalues; by default LAPACK's.

    Returns:
        (n,) float64, ascending.

    Raises:
        ConvergenceError: If an eigenvalue is not finite: a stage failed, or the eigenvalue is
            larger than the largest float64.
    """
    factor = prescale_(a)
    d, e = (chase or chase_band)(to_band(a, b, xp, outer=outer), b)
    levels = np.sort(np.asarray((tridiagonal or _tridiagonal)(d, e), dtype=np.float64))
    with np.errstate(over="ignore"):
        levels /= factor
    if not np.all(np.isfinite(levels)):
        raise ConvergenceError(
            "the two-stage solver gave eigenvalues that are not finite though every entry of the "
            "matrix is; try the library's solver, or a smaller scale"
        )
    return levels


def prescale_(a: Any) -> float:
    """Bring the largest |a_ij| near 1 where squares could overflow or vanish, in place.

    As LAPACK's dsyevd does, which scales to the edge of the safe range; a power of two to its
    middle rounds nothing.

    Args:
        a: (n, n) finite, n >= 1; overwritten.

    Returns:
        The factor; divide eigenvalues by it.
    """
    of = np.finfo(str(a.dtype).removeprefix("torch."))
    largest = max(float(a.max()), -float(a.min()))
    smallest = math.sqrt(float(of.tiny) / float(of.eps))
    if largest == 0 or smallest <= largest <= 1 / smallest:
        return 1.0
    exponent = -math.frexp(largest)[1]
    factor = math.ldexp(1.0, max(int(of.minexp), min(exponent, int(of.maxexp) - 2)))
    a *= factor
    return factor


def to_band(a: Any, b: int, xp: Any, *, outer: int | None = None) -> Any:
    """Reduce a dense symmetric matrix to a band by orthogonal similarity, in place.

    For every panel of b columns below the band: A_panel = (I - V T Vᵀ) R, W = V T,
    Z = A W - ½ V (Wᵀ A W), A ← A - V Zᵀ - Z Vᵀ. With double blocking V and Z are collected up to
    ``outer`` columns before the trailing matrix is updated; until then panels and products A W are
    corrected by what is collected.

    About 2 n³ operations in products of the whole trailing matrix, which is kept explicitly
    symmetric, and 2 n² b in panels. Workspace: 6 n outer + O(n b) numbers, nothing of size n².

    Args:
        a: (n, n) symmetric and contiguous, scaled (:func:`prescale_`); overwritten.
        b: Half-width of the band, at least 1.
        xp: The namespace of ``a``: ``torch`` or ``numpy``.
        outer: Columns of V collected before an update, at least b; b is single blocking.

    Returns:
        (n, 2b+1) band, ``band[j, k] = A[j+k, j]``; zeros for k > b, where bulge chasing needs room.
    """
    outer = outer or b
    n = a.shape[0]
    # left rightᵀ = Σ V Zᵀ + Z Vᵀ, so that an update is one product
    left, right = _zeros(a, 2 * outer, xp), _zeros(a, 2 * outer, xp)
    used, low = 0, 0
    for i in range(0, n - b - 1, b):
        low = i + b
        if used:
            _subtract(a[i:, i:low], left[i:, :used], right[i:low, :used])
        V, W, R = _panel(a[low:, i:low], xp)
        k = V.shape[1]
        a[low : low + k, i:low] = R
        AW = a[low:, low:] @ W
        if used:
            _subtract(AW, left[low:, :used], W.T @ right[low:, :used])
        Z = AW - V @ ((W.T @ AW) / 2)
        for columns, x, y in ((slice(used, used + k), V, Z), (slice(used + k, used + 2 * k), Z, V)):
            left[low:, columns], right[low:, columns] = x, y
        used += 2 * k
        if used + 2 * b > 2 * outer:
            _subtract(a[low:, low:], left[low:, :used], right[low:, :used])
            used = 0
    if used:
        _subtract(a[low:, low:], left[low:, :used], right[low:, :used])

    band = _zeros(a, 2 * b + 1, xp)
    for k in range(min(b + 1, n)):
        band[: n - k, k] = xp.diagonal(a, -k)
    return band


def _panel(panel: Any, xp: Any) -> tuple[Any, Any, Any]:
    """QR of a panel, Q = I - V T Vᵀ with V unit lower trapezoidal, by the namespace's LAPACK.

    T⁻¹ has 1/tau on its diagonal and above it VᵀV (Puglisi 1992). A reflector with tau = 0 is the
    identity, as in panels of deficient rank: its v is set to zero.

    Args:
        panel: (m, b).
        xp: Its namespace.

    Returns:
        V (m, k), W = V T (m, k) and R (k, b), k = min(m, b).
    """
    if hasattr(xp, "geqrf"):
        h, tau = xp.geqrf(panel)
    else:
        h, tau = xp.linalg.qr(panel, mode="raw")
        h = h.T
    k = tau.shape[0]
    one = (tau != 0) * (tau * 0 + 1)
    V = xp.tril(h[:, :k], -1)
    V[:k] += xp.diag(one)
    inverse = xp.triu(V.T @ V, 1) + xp.diag(1 / (tau + (1 - one)))
    if xp is np:
        W = linalg.solve_triangular(inverse, V.T, trans=1).T
    else:  # unlike an inverse, which reports singular matrices, it does not wait for the device
        W = xp.linalg.solve_triangular(inverse, V, upper=True, left=False)
    return V, W, xp.triu(h[:k])


def _subtract(c: Any, x: Any, y: Any) -> None:
    """In place c - x yᵀ, without a temporary of c's size where that is large."""
    if hasattr(c, "addmm_"):
        c.addmm_(x, y.T, alpha=-1)
        return
    for j in range(0, c.shape[1], x.shape[1]):
        tile = slice(j, j + x.shape[1])
        c[:, tile] -= x @ y[tile].T


def _zeros(a: Any, columns: int, xp: Any) -> Any:
    """Zeros of the type and on the device of ``a``, as many rows as it has."""
    shape = (a.shape[0], columns)
    return a.new_zeros(shape) if hasattr(a, "new_zeros") else xp.zeros(shape, dtype=a.dtype)


def _tridiagonal(d: Any, e: Any) -> Any:
    """LAPACK's eigenvalues of a tridiagonal matrix, in float64."""
    d, e = np.asarray(d, dtype=np.float64), np.asarray(e, dtype=np.float64)
    return linalg.eigvalsh_tridiagonal(d, e) if len(d) > 1 else d


class ChaseLaunch(NamedTuple):
    """How csrc/bulge_chase.cu is launched.

    Attributes:
        blocks: Blocks of the grid: as many as have work. Any other number is correct too.
        threads: Threads of a block.
        shared_bytes: Dynamic shared memory of a block; above 48 kB it must be asked for.
        state_words: 32-bit words of ``state``, zero before the launch; after it word 1 is 0 if all
            went well.
    """

    blocks: int
    threads: int
    shared_bytes: int
    state_words: int


def chase_launch(
    n: int, b: int, itemsize: int, *, resident: int, batch: int = 1, threads: int = 256
) -> ChaseLaunch:
    """Launch configuration of csrc/bulge_chase.cu.

    Args:
        n: Dimension of every matrix.
        b: Half-width of the bands.
        itemsize: Bytes of a number: 8 or 4.
        resident: Blocks that the device holds at once: multiprocessors times blocks on each.
        batch: Number of matrices.
        threads: Threads of a block, at most 256, best a multiple of b.

    Returns:
        The configuration.

    Raises:
        ConfigError: If the sweeps of the batch can't be counted in 32 bits.
    """
    if batch * n >= 2**31:
        given = f"{batch} matrices of {n} columns"
        raise ConfigError(f"{given} are too many for one launch; give fewer than 2**31 columns")
    numbers = 2 * b * (b + 1) + 2 * max(b, threads) + 4 * b
    blocks = max(1, min(resident, batch * (n // (2 * b) + 2)))
    return ChaseLaunch(blocks, threads, 8 + numbers * itemsize, 2 + batch * n)


def chase_band(band: Any, b: int) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n-1"]]:
    """Symmetric band to tridiagonal, step by step what csrc/bulge_chase.cu does in parallel.

    Args:
        band: (n, 2b+1) on the CPU, ``band[j, k] = A[j+k, j]``, zeros for k > b; overwritten.
        b: Half-width.

    Returns:
        Diagonal and first subdiagonal.
    """
    band = np.asarray(band)
    n = len(band)
    # A[i, j] of the lower band lies at j (2b+1) + i - j = 2b j + i
    strides = (band.itemsize, 2 * b * band.itemsize)
    A = np.lib.stride_tricks.as_strided(band, (n, n), strides)
    for s in range(n - 2):
        v, tau = np.zeros(1, band.dtype), band.dtype.type(0)
        left = slice(s, s + 1)
        for r0 in range(s + 1, n, b):
            rows = slice(r0, min(r0 + b, n))
            B, D = A[rows, left], A[rows, rows]
            B -= tau * np.outer(B @ v, v)  # the step before, from the right
            v, tau, beta = _reflector(B[:, 0])
            B[:, 0] = 0
            B[0, 0] = beta
            B[:, 1:] -= tau * np.outer(v, v @ B[:, 1:])
            lower = np.tril_indices(len(v))
            S = np.tril(D) + np.tril(D, -1).T
            p = tau * (S @ v)
            q = p - tau * (p @ v) / 2 * v
            D[lower] = (S - np.outer(v, q) - np.outer(q, v))[lower]
            left = rows
    return band[:, 0].copy(), band[: max(n - 1, 0), 1].copy()


def _reflector(x: np.ndarray) -> tuple[np.ndarray, Any, Any]:
    """Vector v with v[0] = 1, tau and beta: (I - tau v vᵀ) x = (beta, 0, ...)."""
    v = np.zeros_like(x)
    v[0] = 1
    big = np.abs(x).max()
    if not np.any(x[1:]):
        return v, x.dtype.type(0), x[0]
    y = x / big
    beta = -np.copysign(np.sqrt(y @ y), y[0])
    v[1:] = y[1:] / (y[0] - beta)
    return v, (beta - y[0]) / beta, beta * big
