"""Derivatives of K(d) = k(-½|d|²) with respect to d, d = w - w': all covariances of derivatives.

The covariance of the derivatives i.. of ε at w and j.. of ε at w' is (-1)^(number of j) times the
derivative i..j.. of K at d: Adler, Taylor, Random Fields and Geometry (2007), equation (5.5.4).
That derivative is a sum over the ways to pair some of the indices:

    ∂_{i₁…i_m} K = Σ_pairings (-1)^p k^(p)(q) Π_pairs δ_ij Π_others d_i,    p = m - number of pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64

    Indices = Int64[np.ndarray, "*index"]


def partial(
    jet: Float64[np.ndarray, "orders ..."],
    d: Float64[np.ndarray, "... n"],
    indices: Sequence[Indices],
) -> Float64[np.ndarray, "*shape"]:
    """Derivatives of K with respect to as many components of d as there are indices.

    Args:
        jet: k, k', ..., k'''' at q = -½|d|².
        d: Separations.
        indices: At most four arrays of component numbers which broadcast against each other.

    Returns:
        The derivatives, of the shape of the points followed by that of the indices.
    """
    shape = np.broadcast_shapes(*(index.shape for index in indices)) if indices else ()
    orders = jet.reshape(*jet.shape, *(1,) * len(shape))
    total = np.zeros((*d.shape[:-1], *shape))
    for pairs, others in _pairings(tuple(range(len(indices)))):
        p = len(indices) - len(pairs)
        term = (-1) ** p * orders[p]
        for first, second in pairs:
            term = term * (indices[first] == indices[second])
        for other in others:
            term = term * d[..., indices[other]].reshape(
                *d.shape[:-1], *(1,) * (len(shape) - indices[other].ndim), *indices[other].shape
            )
        total += term
    return total


def full(
    jet: Float64[np.ndarray, " orders"], d: Float64[np.ndarray, " n"], order: int
) -> Float64[np.ndarray, "*tensor"]:
    """All derivatives of one order at one separation.

    Args:
        jet: k, k', ..., k'''' at q = -½|d|².
        d: The separation.
        order: How many derivatives, at most four.

    Returns:
        The symmetric tensor of n^order elements.
    """
    return partial(jet, d, np.ogrid[(slice(len(d)),) * order] if order else ())


def joint(
    jet: Float64[np.ndarray, "orders m m"], d: Float64[np.ndarray, "m m n"]
) -> Float64[np.ndarray, "size size"]:
    """Covariance of value, gradient and upper triangle of the Hessian at several points.

    Args:
        jet: k, k', ..., k'''' for each pair of points.
        d: Separations w - w' of each pair.

    Returns:
        The symmetric matrix, of size m·(1 + n + n(n+1)/2), point by point.
    """
    m, n = len(d), d.shape[-1]
    upper = np.triu_indices(n)
    groups: list[tuple[Indices, ...]] = [(), (np.arange(n),), upper]
    sizes = [1, n, len(upper[0])]
    ends = np.cumsum([0, *sizes])
    matrix = np.empty((m, ends[-1], m, ends[-1]))
    for r, rows in enumerate(groups):
        for c, columns in enumerate(groups):
            indices = [row[:, None] for row in rows] + [column[None, :] for column in columns]
            block = (-1) ** len(columns) * partial(jet, d, indices)
            # points first in a block, (m, m, rows, columns); one of the last two may be missing
            block = np.broadcast_to(
                block.reshape(m, m, sizes[r] if rows else 1, sizes[c] if columns else 1),
                (m, m, sizes[r], sizes[c]),
            )
            matrix[:, ends[r] : ends[r + 1], :, ends[c] : ends[c + 1]] = block.transpose(0, 2, 1, 3)
    flat = matrix.reshape(m * ends[-1], m * ends[-1])
    # the two halves add the same terms in different orders
    return (flat + flat.T) / 2


def _pairings(
    items: tuple[int, ...],
) -> Iterator[tuple[tuple[tuple[int, int], ...], tuple[int, ...]]]:
    """Every way to pair some of the items: the pairs, and the items left over."""
    if not items:
        yield (), ()
        return
    first, rest = items[0], items[1:]
    for pairs, others in _pairings(rest):
        yield pairs, (first, *others)
    for position, partner in enumerate(rest):
        for pairs, others in _pairings(rest[:position] + rest[position + 1 :]):
            yield ((first, partner), *pairs), others
