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

**Sampled.** Gradients are drawn exactly. T points differ in at most T - 1 directions: there the
components are drawn jointly, and in the P - T + 1 directions across them they are independent of
one another with covariance k'(q_ij). So the cost grows with min(P, T - 1)·T, and only linearly
with P.

Source: Baskerville, Granziol and Keating 2022, section 8, equations 16, 19 and 21.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hessrmt import rng
from hessrmt.arrays import sample_mean
from hessrmt.checks import one_of, real, real_array, whole
from hessrmt.errors import DataError
from hessrmt.lossmodel.covariance import require_stationary, symmetrized
from hessrmt.lossmodel.functions import ROUNDING
from hessrmt.lossmodel.surfaces import covariance_root, require_memory

if TYPE_CHECKING:
    from jaxtyping import Float64
    from numpy.typing import ArrayLike

    from hessrmt.lossmodel.covariance import Stationary

    Points = Float64[np.ndarray, "T P"]
    Row = Float64[np.ndarray, " later"]

NORMS = ("operator", "trace")

_SYMMETRY_ULPS = 64
"""How far, in ulps of the largest element, a matrix may be from its transpose."""

_MATRICES = 5
"""Matrices of the joint dimension held at the fullest moment of sampling."""


class Estimate(NamedTuple):
    """A mean over samples.

    Attributes:
        value: The mean.
        standard_error: Its standard error.
    """

    value: float
    standard_error: float


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
    cov: Stationary, points: ArrayLike, matrices: ArrayLike | None = None, *, norm: str = "operator"
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

    Source: Baskerville, Granziol and Keating 2022, Theorem 8.2, equation 19.
    """
    return _bound(cov, *_arguments(cov, points, matrices), norm, guaranteed=False)


def guaranteed_bound(
    cov: Stationary, points: ArrayLike, matrices: ArrayLike | None = None, *, norm: str = "operator"
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
    """
    return _bound(cov, *_arguments(cov, points, matrices), norm, guaranteed=True)


def theorem_8_2_applies(
    cov: Stationary, points: ArrayLike, matrices: ArrayLike | None = None, *, norm: str = "operator"
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
    """
    at, weights = _arguments(cov, points, matrices)
    if (weights.values == weights.values[:1]).all():
        return True
    stated, proved = (_bound(cov, at, weights, norm, guaranteed=g) for g in (False, True))
    # T² terms and each at most a² k'(0) (of the trace norm: that over P)
    rounding = at.size * np.finfo(float).eps * weights.norm(norm) ** 2 * cov.derivative(1, 0.0)
    return proved <= stated + rounding


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

    Source: Baskerville, Granziol and Keating 2022, equation 21.
    """
    require_stationary(cov)
    P, T = whole("P", P, 1), whole("T", T, 1)
    square = P ** (2 * real("eta", eta, above=0))
    first, second = (cov.derivative(order, -square / 2) for order in (1, 2))
    return real("a", a) ** 2 * (T - 1) / T * (first - square / P * second)


def weight_decay_matrices(alpha: float, lam: float, T: int) -> Float64[np.ndarray, " T"]:
    """A_i = α(1 - λα)^i for i = 1 ... T, as multiples of the identity.

    Args:
        alpha: Learning rate α, positive.
        lam: Weight decay λ with 0 <= λα <= 1.
        T: How many steps.

    Returns:
        (T,) multiples, to be given as ``matrices``. In w_T itself the latest gradient has decayed
        least, which is the reverse order.

    Source: Baskerville, Granziol and Keating 2022, below equation 21.
    """
    alpha, T = real("alpha", alpha, above=0), whole("T", T, 1)
    decay = real("lam·alpha", real("lam", lam) * alpha, least=0, most=1)
    return alpha * (1 - decay) ** np.arange(1, T + 1)


def monte_carlo(
    cov: Stationary,
    points: ArrayLike,
    matrices: ArrayLike | None = None,
    samples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """P⁻¹ Tr Cov(g_avg) from sampled gradients; the exact value is `averaged_gradient_covariance`.

    Args:
        cov: A stationary covariance.
        points: (T, P) trajectory.
        matrices: As in :func:`averaged_gradient_covariance`.
        samples: How many surfaces.
        seed: Of the run.

    Returns:
        The estimate P⁻¹ ⟨|g_avg|²⟩ (the mean of g_avg is zero) and its standard error.
    """
    at, weights = _arguments(cov, points, matrices)
    samples = whole("samples", samples, 2)
    found = []
    for g in sampled_gradients(cov, at, samples, seed):
        average = weights.apply(slice(0, len(at)), g).mean(axis=0)
        found.append(float(average @ average) / weights.rows)
    return Estimate(*sample_mean(found))


def sampled_gradients(
    cov: Stationary, points: ArrayLike, samples: int, seed: int = 0
) -> Iterator[Float64[np.ndarray, "T P"]]:
    """Gradients of independent surfaces at the points of a trajectory, exactly.

    Args:
        cov: A stationary covariance.
        points: (T, P) trajectory.
        samples: How many surfaces.
        seed: Of the run.

    Yields:
        (T, P) gradients of one surface after the other.
    """
    require_stationary(cov)
    at = real_array("points", points, dimensions=2)
    samples, (T, P) = whole("samples", samples, 1), at.shape
    # coordinates (T, r) in the span of the differences, its basis (r, P); the rest of R^P is flat
    _, sizes, basis = np.linalg.svd(at - at.mean(axis=0), full_matrices=False)
    basis = basis[sizes > max(T, P) * np.finfo(float).eps * sizes.max()]
    r = len(basis)
    what = f"the components of {T} gradients in the span of the trajectory ({P} dimensions)"
    require_memory(what, T * max(r, 1), 8 * _MATRICES, "Take fewer points, or average gradients")
    inside = at @ basis.T
    d = inside[:, None, :] - inside[None, :, :]
    q = -np.einsum("ijp,ijp->ij", d, d) / 2
    first, second = cov.derivative(1, q), cov.derivative(2, q)
    across = covariance_root(first)
    along = np.zeros((0, 0))
    if r:
        block = np.einsum("ij,pq->ipjq", first, np.eye(r))
        block -= np.einsum("ij,ijp,ijq->ipjq", second, d, d)
        along = covariance_root(block.reshape(T * r, T * r))
    draw = rng.stream(whole("seed", seed), "gradients")
    for _ in range(samples):
        g = np.zeros((T, P))
        if r < P:
            g = across @ draw.normal(size=(across.shape[1], P))
            g -= (g @ basis.T) @ basis
        if r:
            g += (along @ draw.normal(size=along.shape[1])).reshape(T, r) @ basis
        yield g


@dataclass(frozen=True)
class _Weights:
    """T symmetric P x P matrices: (T, 1) multiples of the identity, (T, P) diagonals, or all."""

    values: Float64[np.ndarray, "*shape"]
    rows: int

    @property
    def repeats(self) -> int:
        """How many elements of a diagonal one value stands for."""
        return self.rows // self.values.shape[1]

    def norm(self, which: str) -> float:
        """Largest ‖A_i‖: the largest |eigenvalue|, or for ``"trace"`` the sum of them."""
        sizes = np.abs(self.values if self.values.ndim < 3 else np.linalg.eigvalsh(self.values))
        return float(sizes.max() if which == "operator" else self.repeats * sizes.sum(axis=1).max())

    def squares(self) -> Row:
        """(T,) Tr A_i²."""
        return self.repeats * (self.values**2).reshape(len(self.values), -1).sum(axis=1)

    def traces(self, i: int, d: Points) -> tuple[Row, Row]:
        """Tr(A_i A_j) and d_jᵀ A_i A_j d_j of one matrix with all later ones."""
        one, later = self.values[i], self.values[i + 1 :]
        bent = np.einsum("jp,jp->j", self.apply(i, d), self.apply(slice(i + 1, None), d))
        return np.tensordot(later, self.repeats * one, one.ndim), bent

    def apply(self, which: int | slice, d: Points) -> Points:
        """A_i d_j of one matrix and many vectors, or A_j d_j of as many matrices as vectors."""
        values = self.values[which]
        if self.values.ndim < 3:
            return d * values
        return d @ values if values.ndim == 2 else np.einsum("jpq,jq->jp", values, d)

    def product(self, i: int, which: slice, factors: Row) -> Float64[np.ndarray, "P P"]:
        """A_i Σ_j factor_j A_j."""
        one, mean = self.values[i], np.tensordot(factors, self.values[which], 1)
        if self.values.ndim == 3:
            return one @ mean
        return np.diag(np.broadcast_to(one * mean, (self.rows,)))


def _arguments(
    cov: Stationary, points: ArrayLike, matrices: ArrayLike | None
) -> tuple[Points, _Weights]:
    require_stationary(cov)
    at = real_array("points", points, dimensions=2)
    T, P = at.shape
    values = np.ones(T) if matrices is None else real_array("matrices", matrices)
    if values.shape not in {(T,), (T, P), (T, P, P)}:
        raise DataError(
            f"{T} points in {P} dimensions need matrices of shape ({T},) for multiples of the "
            f"identity, ({T}, {P}) for diagonals or ({T}, {P}, {P}), got {values.shape}"
        )
    if values.ndim == 3:
        values = symmetrized("each of the matrices", values, _SYMMETRY_ULPS)
    return at, _Weights(values[:, None] if values.ndim == 1 else values, P)


def _bound(cov: Stationary, at: Points, weights: _Weights, norm: str, *, guaranteed: bool) -> float:
    """The bound of Theorem 8.2 as stated, or with the dual norm of C_ij in place of its trace."""
    one_of("norm", norm, NORMS)
    T, P = at.shape
    by_trace = guaranteed and norm == "trace"
    total = T * (1 if by_trace else P) * cov.derivative(1, 0.0)
    for _, d, first, second in _pairs(cov, at):
        bent = second * _square(d)
        term, across, along = P * first - bent, np.abs(first), np.abs(first - bent)
        if by_trace:
            term = np.maximum(across, along) if P > 1 else along
        elif guaranteed:
            term = np.abs(term) if weights.repeats == P else (P - 1) * across + along
        total += 2 * float(term.sum())
    return weights.norm(norm) ** 2 * total / (P * T**2)


def _pairs(cov: Stationary, at: Points) -> Iterator[tuple[int, Points, Row, Row]]:
    """For each i the separations from all later j, and k' and k'' there."""
    for i in range(len(at) - 1):
        d = at[i] - at[i + 1 :]
        q = -_square(d) / 2
        yield i, d, cov.derivative(1, q), cov.derivative(2, q)


def _square(d: Points) -> Row:
    return np.einsum("jp,jp->j", d, d)
