"""CPU twins of what GPUs do in ways of their own: bands, staircases, power laws, GOE matrices.

Plain functions over NumPy arrays: what :class:`~hessrmt.backend.cpu.CpuBackend` calls, and what the
kernels are compared with. Like kernels they trust their arguments: whoever calls them has checked
that values are finite, ascending and of the shapes below. NumPy rather than torch, whose threads
would wait for each other between many short steps.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.linalg import LinAlgError, eig_banded, eigvalsh_tridiagonal

from hessrmt.errors import ConvergenceError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float, Float64, Int64

_CHUNK = 2**16
"""Elements of a temporary array: half a megabyte of float64, what a core's own cache holds."""

_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def banded_eigenvalues(
    bands: Float64[np.ndarray, "batch width n"],
) -> Float64[np.ndarray, "batch n"]:
    """All eigenvalues of symmetric band matrices, O(n² r) each.

    Args:
        bands: (batch, r + 1, n), row k of each the k-th subdiagonal in its first n - k numbers;
            overwritten.

    Returns:
        (batch, n), each row ascending.

    Raises:
        ConvergenceError: If LAPACK's iteration fails.
    """
    try:
        return np.array([_of_band(band) for band in bands])
    except LinAlgError as error:
        raise ConvergenceError(f"the eigenvalue solver of band matrices failed: {error}") from error


def _of_band(band: np.ndarray) -> np.ndarray:
    if len(band) == 1:
        return np.sort(band[0])
    if len(band) == 2:
        return np.asarray(eigvalsh_tridiagonal(band[0], band[1, :-1], lapack_driver="sterf"))
    options: dict[str, Any] = {"overwrite_a_band": True, "check_finite": False}
    return np.asarray(eig_banded(band, True, eigvals_only=True, **options))


def staircase(
    pool: Float[np.ndarray, " m"], queries: Float[np.ndarray, " n"]
) -> Int64[np.ndarray, " n"]:
    """Counting function of a pool of levels: how many are less than each query.

    Args:
        pool: (m,) without NaN, fastest where long stretches ascend.
        queries: (n,) without NaN, fastest where they ascend.

    Returns:
        (n,) numbers of pooled levels, equal ones not counted.
    """
    # kind="stable" merges what is sorted already
    ordered = np.sort(pool, kind="stable")
    return np.searchsorted(ordered, queries, side="left").astype(np.int64, copy=False)


def powerlaw_scan(
    values: Float[np.ndarray, " total"],
    offsets: Int64[np.ndarray, " layers+1"],
    two_sided: bool = False,
) -> tuple[Float64[np.ndarray, " total"], Float64[np.ndarray, " total"]]:
    """Fit ρ(x) ~ x^(-α), x ≥ x_min, to every layer at every candidate x_min = x_i.

    With the tail {x_j ≥ x_i} of n_i values and F(x) = 1 - (x/x_i)^(1-α):

    - α_i = 1 + n_i / Σ ln(x_j/x_i), the maximum of the likelihood;
    - D_i = max over the tail of |F(x_j) - #{tail < x_j}/n_i|: the steps' lower ends alone, the
      convention of the Python package ``powerlaw`` (Alstott, Bullmore and Plenz 2014; version
      1.5), where x_max, at which 1 - 1/n_i stands against F, ends the staircase
      below 1. With ``two_sided`` the supremum over all x ≥ x_i, the Kolmogorov-Smirnov distance:
      the upper ends #{tail ≤ x_j}/n_i count as well, so it is larger by at most the largest step.

    Equal candidates get equal results. Work O(n²) for a layer of n distinct values, memory O(n).

    Source: Clauset, Shalizi and Newman 2009, equations 3.1 and 3.9.

    Args:
        values: The layers one after another, each ascending, positive and finite; computed with in
            float64.
        offsets: Where each layer begins in ``values``, and where the last one ends.
        two_sided: Which distance.

    Returns:
        α and D for each value, NaN where its tail holds fewer than two distinct values.
    """
    alpha, distance = np.full((2, len(values)), np.nan)
    for begin, end in pairwise(offsets):
        layer = np.asarray(values[begin:end], dtype=np.float64)
        distinct, first, counts = np.unique(layer, return_index=True, return_counts=True)
        if len(distinct) < 2:
            continue
        fits = _scan_distinct(distinct, len(layer) - first, counts, two_sided)
        for target, fit in zip((alpha, distance), fits, strict=True):
            # the last candidate's tail is one value
            target[begin : end - counts[-1]] = np.repeat(fit, counts[:-1])
    return alpha, distance


def _scan_distinct(
    x: np.ndarray, size: np.ndarray, counts: np.ndarray, two_sided: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Fits at all but the last of the distinct values x, each ``counts`` times in the data.

    Survival probabilities are compared, (x_j/x_i)^(1-α) with #{tail ≥ x_j}/n_i, and logarithms are
    taken of ratios: no difference loses more than a few ulp of the tail's own extent in ln x.

    Args:
        x: (d,) ascending.
        size: (d,) values not below each.
        counts: (d,) values equal to each.
        two_sided: Whether the steps' upper ends count.

    Returns:
        (d - 1,) α and D.
    """
    depth = log_ratio(x[-1], x)
    # Σ over a tail = Σ over the next one + its size · the ratio between them, all positive
    sums = np.cumsum((size[1:] * log_ratio(x[1:], x[:-1]))[::-1])[::-1]
    slope = size[:-1] / sums
    share = 1 / size[:-1]
    lower, upper = size.astype(np.float64), (size - counts).astype(np.float64)
    distance = np.empty(len(slope))
    buffers = np.empty((2, max(_CHUNK, len(x))))
    begin = 0
    while begin < len(slope):
        width = len(x) - begin
        # few rows, since the triangle below the first candidate of each is computed in vain
        rows = min(max(_CHUNK // width, 1), 64, len(slope) - begin)
        end = begin + rows
        model, gap = (buffer[: rows * width].reshape(rows, width) for buffer in buffers)
        np.subtract(depth[begin:], depth[begin:end, None], out=model)
        model[:, :rows][np.tri(rows, k=-1, dtype=bool)] = 0  # below the candidate: ln 1
        model *= slope[begin:end, None]
        np.exp(model, out=model)
        worst = np.zeros(rows)
        for steps in (lower, upper) if two_sided else (lower,):
            np.multiply(steps[begin:], share[begin:end, None], out=gap)
            np.minimum(gap[:, :rows], 1, out=gap[:, :rows])  # below the candidate: survival 1
            gap -= model
            np.maximum(worst, np.maximum(gap.max(axis=1), -gap.min(axis=1)), out=worst)
        distance[begin:end] = worst
        begin = end
    return 1 + slope, distance


def log_ratio(high: Any, low: np.ndarray) -> np.ndarray:
    """ln(high/low), high ≥ low, with an error relative to itself also where the two are close."""
    with np.errstate(over="ignore"):
        excess = (high - low) / low
    return np.where(excess < 1e300, np.log1p(excess), np.log(high) - np.log(low))


def sample_goe(n: int, count: int, key: int, *, first: int = 0) -> Float64[np.ndarray, "count n n"]:
    """Draw matrices of the Gaussian orthogonal ensemble: off-diagonal N(0, 1), diagonal N(0, 2).

    Element (i, j), i ≥ j, of matrix m depends on (key, m, i(i+1)/2 + j) alone: the same matrices
    come whether a batch is drawn at once or in parts, and on a GPU up to the last bits of logarithm
    and cosine. Elements 2p and 2p + 1 are the cosine and the sine of one Box-Muller pair, of which
    the counter (p, m) of Philox4x32-10 gives both uniform numbers, 53 bits each.

    Source: Box and Muller 1958; Salmon et al. 2011.

    Args:
        n: Dimension.
        count: How many matrices.
        key: 64-bit word of a named stream, e.g.
            ``int(rng.seed_sequence(seed, "goe").generate_state(1, np.uint64)[0])``.
        first: Number of the first matrix in the key's sequence.

    Returns:
        (count, n, n), symmetric to the bit.
    """
    matrices = np.empty((count, n, n))
    for rows, batch in _parts(n, count):
        begin, end = (int(i) * (int(i) + 1) // 2 for i in (rows.start, rows.stop))
        pairs = np.arange(begin // 2, (end + 1) // 2, dtype=np.uint64)
        indices = np.arange(first + batch.start, first + batch.stop, dtype=np.uint64)
        normal = _normal_pairs(pairs, indices[:, None], key)[:, begin % 2 :]
        target = matrices[batch.start : batch.stop]
        for i in rows:
            at = i * (i + 1) // 2 - begin
            normal[:, at + i] *= np.sqrt(2)
            target[:, i, : i + 1] = target[:, : i + 1, i] = normal[:, at : at + i + 1]
    return matrices


def _parts(n: int, count: int) -> Iterator[tuple[range, range]]:
    """Rows and matrices to fill at once: several small matrices, or several rows of a large one."""
    together = max(1, 2 * _CHUNK // max(n * (n + 1) // 2, 1))
    step = n if together > 1 else max(1, 2 * _CHUNK // max(n, 1))
    for m in range(0, count, together):
        for i in range(0, n, max(step, 1)):
            yield range(i, min(i + step, n)), range(m, min(m + together, count))


def _normal_pairs(pair: np.ndarray, matrix: np.ndarray, key: int) -> np.ndarray:
    """Standard normals of counters (pair, matrix), (matrices, 2 · pairs)."""
    word = philox4x32_10((pair & _LOW, pair >> _HALF, matrix & _LOW, matrix >> _HALF), key)
    unit, drop = 2.0**-53, np.uint64(11)
    distance = ((word[1] << _HALF | word[0]) >> drop).astype(np.float64)
    distance += 1
    distance *= unit  # in (0, 1]
    angle = ((word[3] << _HALF | word[2]) >> drop).astype(np.float64)
    angle *= unit
    angle *= 2 * np.pi
    np.log(distance, out=distance)
    distance *= -2
    np.sqrt(distance, out=distance)
    normal = np.empty((*distance.shape, 2))
    np.multiply(distance, np.cos(angle), out=normal[..., 0])
    np.multiply(distance, np.sin(angle), out=normal[..., 1])
    return normal.reshape(len(distance), -1)


def philox4x32_10(
    counter: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], key: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Counter-based random words: Philox4x32 with 10 rounds.

    Source: Salmon et al. 2011.

    Args:
        counter: Four arrays of 32-bit words, uint64, whose shapes broadcast.
        key: 64 bits, the lower half first.

    Returns:
        Four arrays of 32-bit words, uint64.
    """
    a, b, c, d = (np.array(word) for word in np.broadcast_arrays(*counter))
    even, odd = np.empty_like(a), np.empty_like(a)
    keys = [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        np.multiply(a, _MULTIPLIERS[0], out=even)
        np.multiply(c, _MULTIPLIERS[1], out=odd)
        for product, high, low, k in ((odd, a, b, keys[0]), (even, c, d, keys[1])):
            np.right_shift(product, _HALF, out=high)
            np.bitwise_xor(high, low, out=high)
            np.bitwise_xor(high, np.uint64(k), out=high)
            np.bitwise_and(product, _LOW, out=low)
        keys = [(k + weyl) & 0xFFFFFFFF for k, weyl in zip(keys, _WEYL, strict=True)]
    return a, b, c, d
