"""Band to tridiagonal by bulge chasing: how csrc/bulge_chase.cu is launched, and its plain twin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hessrmt.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Float

HALF_WIDTH = 64
"""Largest half-width b that the kernel is meant for: it keeps two b x b blocks in shared memory."""

SPIN_LIMIT = 1 << 24
"""How often a block looks for its predecessor before the kernel reports failure (some seconds)."""


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
        raise ConfigError(
            f"{batch} matrices of {n} columns are too many for one launch of the bulge chase; "
            "give fewer than 2**31 columns at once"
        )
    numbers = 2 * b * (b + 1) + 2 * max(b, threads) + 4 * b
    useful = batch * (n // (2 * b) + 2)
    blocks = max(1, min(resident, useful))
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
