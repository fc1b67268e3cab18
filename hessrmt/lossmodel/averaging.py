"""Variance of a weighted average of gradients over a trajectory: exact, bounded, and sampled.

For g_avg = (1/T) Σ_i A_i g_i with symmetric A_i, and gradients of a stationary Gaussian process,

    P⁻¹ Tr Cov(g_avg) = (1/PT²) Σ_ij Tr(A_i A_j C_ij),   C_ij = k'(q_ij) I - k''(q_ij) d dᵀ,

d = w_i - w_j, q = -½|d|². Theorem 8.2 bounds it by a²/(PT²) Σ_ij Tr C_ij, that is, by the value for
A_i = a·I, with a a bound of the norms of the A_i.

**When the theorem holds.** Its proof replaces Tr(A_i A_j C_ij) by a² Tr C_ij. With a the operator
norm that is right for positive semi-definite C_ij, which means k''(q) d² ≤ k'(q): for the squared
exponential, points no farther apart than one length. Beyond, C_ij has the negative eigenvalue
k' - k'' d² in the direction d, and matrices that change sign there exceed the bound, in every
dimension: by 161 % for P = 1 and two points √3 apart with A = 1 and -1 (on a fine grid of many
points by any factor), by 0.7 % for P = 100. It always holds for A_i all equal, and for multiples of
I where all traces P k' - k'' d² are positive.

Read as printed, with the trace norm Σ|eigenvalues| ≤ a, its terms with i = j are P times larger
than needed, but it can fail too: by 27 % for P = 2, the corners of a square of side 1.6 lengths,
and A = ±diag(1, 0), positive on one side and negative on the other. :func:`guaranteed_bound` bounds
each term by the dual norm of C_ij instead and holds always; :func:`theorem_8_2_applies` tells
whether the printed bound is proved to hold.

Source: [B] (Baskerville, Granziol, Keating), §8, equations (16), (19) and (21).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hessrmt.errors import LossModelError
from hessrmt.lossmodel.arguments import positive, real, real_array, whole
from hessrmt.lossmodel.covariance import ROUNDING
from hessrmt.lossmodel.jets import require_stationary
from hessrmt.lossmodel.weights import Weights

if TYPE_CHECKING:
    from jaxtyping import Float64
    from numpy.typing import ArrayLike

    from hessrmt.lossmodel.process import Stationary

    Points = Float64[np.ndarray, "T P"]
    Row = Float64[np.ndarray, " later"]

NORMS = ("operator", "trace")


def averaged_gradient_covariance(
    cov: Stationary, points: ArrayLike, matrices: ArrayLike | None = None
) -> float:
    """P⁻¹ Tr Cov(g_avg) exactly, O(T² P) work for scalars and diagonals, O(T² P²) for matrices.

    Args:
        cov: A stationary covariance.
        points: (T, P) trajectory.
        matrices: The A_i: (T,) multiples of the identity, (T, P) diagonals or (T, P, P) symmetric
            matrices; default the identity.

    Returns:
        The variance of a component of g_avg, averaged over components.

    Raises:
        LossModelError: If the covariance is not stationary, or the matrices do not fit the points
            or are not symmetric.
    """
    at, weights = _arguments(cov, points, matrices)
    (T, P) = at.shape
    total = cov.derivative(1, 0.0) * float(weights.squares().sum())
    for i, d, first, second in _pairs(cov, at):
        inner, bent = weights.traces(i, d)
        total += 2 * float(first @ inner - second @ bent)
    # a variance: where the A_i cancel, round-off of the terms, which are k'(0)·‖A_i‖·‖A_j‖ or less
    size = cov.derivative(1, 0.0) * float(np.sqrt(weights.squares()).sum()) ** 2
    if -ROUNDING * size <= total < 0:
        total = 0.0
    return total / (P * T**2)


def averaged_covariance_matrix(
    cov: Stationary, points: ArrayLike, matrices: ArrayLike | None = None
) -> Float64[np.ndarray, "P P"]:
    """Cov(g_avg) itself, O(T² P²) work.

    Args:
        cov: A stationary covariance.
        points: (T, P) trajectory.
        matrices: As in :func:`averaged_gradient_covariance`.

    Returns:
        The symmetric matrix.

    Raises:
        LossModelError: As in :func:`averaged_gradient_covariance`.
    """
    at, weights = _arguments(cov, points, matrices)
    (T, P) = at.shape
    matrix = np.zeros((P, P))
    for i in range(T):
        matrix += cov.derivative(1, 0.0) * weights.product(i, slice(i, i + 1), np.ones(1))
    for i, d, first, second in _pairs(cov, at):
        later = slice(i + 1, T)
        cross = weights.product(i, later, first)
        cross -= (weights.apply(i, d) * second[:, None]).T @ weights.apply(later, d)
        matrix += cross + cross.T
    return matrix / T**2


def theorem_8_2_bound(
    cov: Stationary,
    points: ArrayLike,
    matrices: ArrayLike | None = None,
    *,
    norm: str = "operator",
) -> float:
    """The bound as stated, a²k'(0)/T + (2a²/T²) Σ_{i<j} {k'(q_ij) - k''(q_ij) d_ij²/P}.

    It can be exceeded; see the top of this file and :func:`theorem_8_2_applies`. It is the exact
    value for A_i = a·I, a being the operator norm.

    Args:
        cov: A stationary covariance.
        points: (T, P) trajectory.
        matrices: As in :func:`averaged_gradient_covariance`; only a = max_i ‖A_i‖ is used.
        norm: ``"operator"``, largest |eigenvalue|, which the proof uses, or ``"trace"``, Σ
            |eigenvalues|, as printed; the latter is up to P times larger.

    Returns:
        The bound of P⁻¹ Tr Cov(g_avg).

    Raises:
        LossModelError: As in :func:`averaged_gradient_covariance`, or the norm is unknown.

    Source: [B], Theorem 8.2, equation (19).
    """
    at, weights = _arguments(cov, points, matrices)
    (T, P) = at.shape
    total = T * P * cov.derivative(1, 0.0)
    for _, d, first, second in _pairs(cov, at):
        total += 2 * float((P * first - second * _square(d)).sum())
    return weights.norm(_known(norm)) ** 2 * total / (P * T**2)


def guaranteed_bound(
    cov: Stationary,
    points: ArrayLike,
    matrices: ArrayLike | None = None,
    *,
    norm: str = "operator",
) -> float:
    """A bound that no trajectory and no matrices of the same norm exceed.

    By Hölder's inequality |Tr(A_i A_j C)| ≤ ‖A_i A_j‖ ‖C‖_*, so that for ``norm="operator"`` the
    trace P k' - k'' d² of Theorem 8.2 becomes (P-1) k' + |k' - k'' d²| (for multiples of the
    identity: its absolute value). For ``norm="trace"`` it becomes max(k', |k' - k'' d²|), and
    P k'(0) of the terms with i = j becomes k'(0). Never above a² k'(0) for the operator norm.

    Args:
        cov: A stationary covariance.
        points: (T, P) trajectory.
        matrices: As in :func:`averaged_gradient_covariance`; used are a = max_i ‖A_i‖, and whether
            they are multiples of the identity.
        norm: ``"operator"`` or ``"trace"``, as in :func:`theorem_8_2_bound`.

    Returns:
        The bound of P⁻¹ Tr Cov(g_avg).

    Raises:
        LossModelError: As in :func:`theorem_8_2_bound`.
    """
    at, weights = _arguments(cov, points, matrices)
    (T, P) = at.shape
    by_trace = _known(norm) == "trace"
    total = T * cov.derivative(1, 0.0) * (1 if by_trace else P)
    for _, d, first, second in _pairs(cov, at):
        across, along = np.abs(first), np.abs(first - second * _square(d))
        if by_trace:
            dual = np.maximum(across, along) if P > 1 else along
        elif weights.scalar:
            dual = np.abs(P * first - second * _square(d))
        else:
            dual = (P - 1) * across + along
        total += 2 * float(dual.sum())
    return weights.norm(norm) ** 2 * total / (P * T**2)


def theorem_8_2_applies(
    cov: Stationary,
    points: ArrayLike,
    matrices: ArrayLike | None = None,
    *,
    norm: str = "operator",
) -> bool:
    """Whether Theorem 8.2's bound is proved to hold for this trajectory and these matrices.

    It is if the matrices are all equal, or if no :func:`guaranteed_bound` is larger. Both are
    sufficient; where this is False the bound may still hold.

    Args:
        cov: A stationary covariance.
        points: (T, P) trajectory.
        matrices: As in :func:`averaged_gradient_covariance`.
        norm: ``"operator"`` or ``"trace"``, as in :func:`theorem_8_2_bound`.

    Returns:
        True if it holds.

    Raises:
        LossModelError: As in :func:`theorem_8_2_bound`.
    """
    at, weights = _arguments(cov, points, matrices)
    if weights.equal:
        return True
    stated = theorem_8_2_bound(cov, at, matrices, norm=norm)
    # T² terms and each at most a² k'(0) (of the trace norm: that over P)
    rounding = at.size * np.finfo(float).eps * weights.norm(norm) ** 2 * cov.derivative(1, 0.0)
    return guaranteed_bound(cov, at, matrices, norm=norm) <= stated + rounding


def large_dimension_scaling(
    cov: Stationary, P: int, T: int, eta: float = 0.5, a: float = 1.0
) -> float:
    """The correlated part of Theorem 8.2's bound where all points are P^η apart.

    It is a²(T-1)/T [k'(-½P^{2η}) - P^{2η-1} k''(-½P^{2η})], which decays with P uniformly in T if
    k' and k'' decay; the other part is a²k'(0)/T.

    Args:
        cov: A stationary covariance.
        P: Dimension.
        T: Length of the trajectory.
        eta: Exponent η of the distances, above 0 and at most ½ in the paper.
        a: Bound of the norms.

    Returns:
        That part of the bound.

    Raises:
        LossModelError: If an argument is out of range.

    Source: [B], equation (21).
    """
    require_stationary(cov)
    P, T = whole("P", P, 1), whole("T", T, 1)
    square = P ** (2 * positive("eta", eta))
    first, second = (cov.derivative(order, -square / 2) for order in (1, 2))
    return real("a", a) ** 2 * (T - 1) / T * (first - square / P * second)


def _arguments(
    cov: Stationary, points: ArrayLike, matrices: ArrayLike | None
) -> tuple[Points, Weights]:
    require_stationary(cov)
    at = real_array("points", points, 2)
    return at, Weights.of(matrices, *at.shape)


def _known(norm: str) -> str:
    if norm not in NORMS:
        raise LossModelError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
    return norm


def _pairs(cov: Stationary, at: Points) -> Iterator[tuple[int, Points, Row, Row]]:
    """For each i the separations from all later j, and k' and k'' there.

    Yields:
        i, (later, P) separations w_i - w_j, (later,) k', (later,) k''.
    """
    for i in range(len(at) - 1):
        d = at[i] - at[i + 1 :]
        q = -_square(d) / 2
        yield i, d, cov.derivative(1, q), cov.derivative(2, q)


def _square(d: Points) -> Row:
    return np.einsum("jp,jp->j", d, d)
