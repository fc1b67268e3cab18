"""Covariances of loss, gradient and Hessian of a Gaussian process, at one point and at several.

Whatever the covariance function of the loss, as long as no direction is special, the Hessian at
one point is H = mean·I + √a·G + √c·ξ·I with G of the Gaussian orthogonal ensemble (off-diagonal
variance 1, diagonal variance 2) and an independent standard normal ξ:

    Cov(H_ij, H_kl) = a (δ_ik δ_jl + δ_il δ_jk) + c δ_ij δ_kl.

The loss value is correlated with the trace alone, Cov(ε, H_ij) = -Var(∂_1 ε) δ_ij, so that it
shifts the spectrum and narrows ξ; the gradient at the same point is independent of both.

At several points a stationary process is K(d) = k(-½|d|²), d = w - w'. The covariance of the
derivatives i.. of ε at w and j.. of ε at w' is (-1)^(number of j) times the derivative i..j.. of K
at d (Adler and Taylor 2007, equation 5.5.4), a sum over the ways to pair some of the indices:

    ∂_{i₁…i_m} K = Σ_pairings (-1)^p k^(p)(q) Π_pairs δ_ij Π_others d_i,    p = m - number of pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from hessrmt.checks import real, real_array, whole
from hessrmt.errors import DataError
from hessrmt.lossmodel.functions import ROUNDING, Differentiated, Function, jet_at_end

if TYPE_CHECKING:
    from jaxtyping import Float64

    from hessrmt.lossmodel.functions import Jet, Points

    Point = Float64[np.ndarray, " n"]
    Matrix = Float64[np.ndarray, "n n"]

_INSIDE_SPHERE = tuple(1 - 10.0**-decades for decades in (4, 6, 8, 10))

_COINCIDENT = 1e-100
"""Points this close, -q in units of k(0)/k'(0), count as one where k''' or k'''' is infinite."""


@dataclass(frozen=True)
class HessianCovariance:
    """Law of a sampled Hessian at one point, H = mean·I + √a·G + √c·ξ·I.

    Attributes:
        a: Variance of an off-diagonal element, positive.
        c: Covariance of two diagonal elements, non-negative; their variance is 2a + c.
        mean: Mean of a diagonal element.
        name: Of the covariance function.
        loss_variance: Var ε at the point; zero where the loss is known, None where it has no law.
        gradient_variance: Var ∂_1 ε at the point, which is also -Cov(ε, H_11); None if unknown.
        parameters: Of the covariance function, as plain values.

    Raises:
        DataError: If such a law does not exist.
    """

    a: float
    c: float
    mean: float = 0.0
    name: str = ""
    loss_variance: float | None = field(default=None, kw_only=True)
    gradient_variance: float | None = field(default=None, kw_only=True)
    parameters: Mapping[str, Any] = field(default_factory=dict, kw_only=True, hash=False)

    def __post_init__(self) -> None:
        none = "H = √a·G + √c·ξ·I has no such covariance"
        checked = {
            "a": real("a = Var H_12", self.a, above=0),
            "c": real("c = Cov(H_11, H_22)", self.c, least=0, hint=none),
            "mean": real("mean", self.mean),
        }
        for key in ("loss_variance", "gradient_variance"):
            if getattr(self, key) is not None:
                checked[key] = real(key, getattr(self, key), least=0)
        for key, value in checked.items():
            object.__setattr__(self, key, value)

    @property
    def settings(self) -> dict[str, Any]:
        """Name, parameters and moments as plain values, for a file's provenance."""
        keys = ("a", "c", "mean", "loss_variance", "gradient_variance")
        known = {key: getattr(self, key) for key in keys if getattr(self, key) is not None}
        return {"kernel": self.name or "covariance", **self.parameters, **known}

    def entry(self, i: int, j: int, k: int, l: int) -> float:  # noqa: E741
        """Covariance of two elements, Cov(H_ij, H_kl).

        Args:
            i: Row of the first, counted from zero.
            j: Its column.
            k: Row of the second.
            l: Its column.

        Returns:
            The covariance.
        """
        i, j, k, l = (whole("an index", index) for index in (i, j, k, l))  # noqa: E741
        return self.a * ((i == k) * (j == l) + (i == l) * (j == k)) + self.c * (i == j) * (k == l)

    def tensor(self, n: int) -> Float64[np.ndarray, "n n n n"]:
        """All covariances of the elements of an n × n Hessian.

        Args:
            n: Dimension.

        Returns:
            (n, n, n, n) with element [i, j, k, l] = Cov(H_ij, H_kl).
        """
        unit = np.eye(whole("n", n, 1))
        pairs = np.einsum("ik,jl->ijkl", unit, unit) + np.einsum("il,jk->ijkl", unit, unit)
        return self.a * pairs + self.c * np.einsum("ij,kl->ijkl", unit, unit)

    def given_loss(self, u: float) -> HessianCovariance:
        """The law of the Hessian where the random part of the loss is known to be ε(w) = u.

        With v = Var ε and g = Var ∂_1 ε: the mean moves by -g·u/v and c falls by g²/v; a and the
        law of the gradient stay as they are. A squared-exponential kernel and a pure p-spin model
        are left with c = 0.

        Args:
            u: The value, in units of the loss.

        Returns:
            The conditional law.

        Raises:
            DataError: If the law of the value is unknown, if the value is known already (a second
                one would contradict the first, or say nothing new), or if c would become negative.
        """
        u = real("the loss value u", u)
        v, g = self.loss_variance, self.gradient_variance
        if v is None or g is None:
            raise DataError("no law of the loss value: give loss_variance and gradient_variance")
        if v == 0:
            known = self.parameters.get("given_loss")
            raise DataError(f"the loss is known already (given_loss = {known}), got also {u:g}")
        c = self.c - g**2 / v
        if abs(c) <= ROUNDING * self.c:
            c = 0.0
        least = g**2 / self.c if self.c else np.inf
        if c < 0:
            what = f"given the loss, Cov(H_11, H_22) = {self.c:g} would become {c:g}"
            raise DataError(
                f"{what}: the variance of the loss must be at least {least:g}, got {v:g}"
            )
        known = {**self.parameters, "given_loss": u}
        mean = self.mean - g * u / v
        return HessianCovariance(
            self.a, c, mean, self.name, loss_variance=0.0, gradient_variance=g, parameters=known
        )


def paper(k1: float, k2: float, k0: float = 1.0) -> HessianCovariance:
    """The covariance as printed: a = k''(0) and c = k'(0)².

    No stationary process in every dimension has it unless k'(0)² = k''(0): that law has c = k''(0),
    see :func:`hessrmt.lossmodel.stationary`. The pure p-spin model has it, with k'(0) = p. Here it
    reproduces the published figures, whose k'(0) = 0 no process has either: its gradient would
    vanish everywhere.

    Args:
        k1: k'(0), the variance of a gradient's component; zero is allowed.
        k2: k''(0), the variance of an off-diagonal element.
        k0: k(0), the variance of the loss, which only ``given_loss`` uses; below 1 it refuses,
            since its c = k'(0)² (1 - 1/k(0)) would be negative.

    Returns:
        The covariance.

    Source: Baskerville, Granziol and Keating 2022, equation 17 and Figures 5 and 6.
    """
    k1 = real("k1 = k'(0)", k1, least=0, hint="it is the variance of a gradient")
    k2, k0 = real("k2 = k''(0)", k2, above=0), real("k0 = k(0)", k0, above=0)
    known = {"k0": k0, "k1": k1, "k2": k2}
    return HessianCovariance(
        k2, k1**2, name="paper", loss_variance=k0, gradient_variance=k1, parameters=known
    )


def p_spin(p: int) -> HessianCovariance:
    """The pure spherical p-spin model, Cov(ε(w), ε(w')) = (w·w')^p on the unit sphere.

    Args:
        p: How many spins interact, at least 2; p = 1 has no random Hessian but its trace.

    Returns:
        The law with a = p(p-1), c = p², gradient variance p and loss variance 1, see
        :func:`mixed_spherical`. It obeys equation 17 of Baskerville, Granziol and Keating 2022,
        c = (gradient variance)². Given the loss, the trace is known: c = 0.
    """
    p = whole("p", p, 2)
    return _spherical("p_spin", [1.0, p, p * (p - 1)], {"p": p})


def mixed_spherical(nu: Function | Sequence[float]) -> HessianCovariance:
    """A mixed spherical model, Cov(ε(w), ε(w')) = ν(w·w') on the unit sphere.

    The Hessian is the Riemannian one in an orthonormal basis of the tangent space, P∇²εP -
    (w·∇ε)P, so that a sphere in Rⁿ gives (n-1) × (n-1) matrices. A covariance on spheres of every
    dimension is ν(t) = Σ_p α_p t^p with α_p ≥ 0 (Schoenberg 1942).

    Args:
        nu: ν(t), written with torch functions (a float64 scalar in, a float64 scalar out), or the
            non-negative coefficients of t², t³, ...

    Returns:
        The law with a = ν''(1), c = ν''(1) + ν'(1), gradient variance ν'(1), loss variance ν(1).

    Raises:
        DataError: With the reason, if ν is no covariance on every sphere, has no finite second
            derivative at 1 (then there is no Hessian), or a coefficient is negative.

    Source: Auffinger, Ben Arous and Černý 2013, Lemma 3.2; Auffinger and Ben Arous 2013.
    """
    if callable(nu):
        wanted = "a process with Hessians has a finite and continuous ν'' at t = 1"
        function = Differentiated((nu,), ("ν", "t"))
        jet = jet_at_end(function, 1.0, _INSIDE_SPHERE, wanted)
        label = str(getattr(nu, "__qualname__", type(nu).__name__))
        return _spherical("mixed_spherical", jet.tolist(), {"function": label})
    name = "the coefficients of t², t³, ..."
    factors = real_array(name, nu, dimensions=1, least=0)
    if not factors.any():
        raise DataError(f"{name} must not be all zero, got {factors.tolist()}")
    p = np.arange(2, 2 + len(factors))
    moments = [float(x) for x in (factors.sum(), p @ factors, (p * (p - 1)) @ factors)]
    return _spherical("mixed_spherical", moments, {"coefficients": factors.tolist()})


def _spherical(name: str, jet: list[float], parameters: dict[str, Any]) -> HessianCovariance:
    """The law from ν(1), ν'(1) and ν''(1)."""
    value, slope, curvature = jet
    c = curvature + slope
    if c * value < slope**2 * (1 - ROUNDING):
        raise DataError(
            f"ν(1)·(ν''(1) + ν'(1)) = {c * value:g} is less than ν'(1)² = {slope**2:g}: ν(t) is no "
            "Σ α_p t^p with α_p ≥ 0, the form that covariances on spheres of every dimension have"
        )
    moments = {"loss_variance": value, "gradient_variance": slope}
    return HessianCovariance(curvature, c, name=name, **moments, parameters=parameters)


class Kernel(Protocol):
    """A covariance function k(q) that knows its derivatives, and its spectral measure."""

    def jet(self, q: Points, order: int) -> Jet:
        """The function and its derivatives with respect to q, called with NumPy's warnings off.

        Args:
            q: Points, -½|w - w'|² ≤ 0.
            order: The highest derivative, at most 4.

        Returns:
            (order + 1, ...) values of k, k', k'', ... at each point.
        """
        ...

    def rates(self, size: int, generator: np.random.Generator) -> Points:
        """Independent rates s with k(q) = k(0)·E exp(s q).

        Args:
            size: How many.
            generator: Source of randomness.

        Returns:
            (size,) rates in units of inverse squared distance.
        """
        ...


def jet_of(kernel: Kernel, q: Points, order: int) -> Jet:
    """:meth:`Kernel.jet`, infinite or NaN without a warning where the derivatives are."""
    with np.errstate(all="ignore"):
        return kernel.jet(q, order)


@dataclass(frozen=True)
class Stationary(HessianCovariance):
    """A stationary process, known at any number of points.

    ``w`` and ``v`` are points of shape (n,); the first derivative belongs to ``w``, the second to
    ``v``. Conditional on its loss it is no longer stationary: ``given_loss`` keeps the law at the
    one point.

    Attributes:
        kernel: k with its derivatives.
    """

    kernel: Kernel = field(kw_only=True)

    def derivative(self, order: int, q: ArrayLike) -> Any:
        """A derivative of the kernel.

        Args:
            order: Which, from 0 to 4.
            q: -½|w - w'|², not positive, of any shape.

        Returns:
            A float for a scalar, else an array of the shape of q.

        Raises:
            DataError: If the order is above four, q positive, or the derivative infinite (at
                q = 0 those above the second may be).
        """
        real("order", whole("order", order), most=4)
        points = real_array("q = -½|w - w'|²", q, most=0)
        values = jet_of(self.kernel, points, order)[order]
        values = self._finite(f"derivative {order} of the kernel {self.name}", points, values)
        return values if points.ndim else float(values)

    def value_covariance(self, w: ArrayLike, v: ArrayLike) -> float:
        """Cov(ε(w), ε(v)) = k(q)."""
        return float(self._between(w, v, 0, 0))

    def value_gradient_covariance(self, w: ArrayLike, v: ArrayLike) -> Point:
        """Cov(ε(w), ∂_i ε(v)) = k' d_i, (n,), with d = w - v."""
        return self._between(w, v, 0, 1)

    def gradient_covariance(self, w: ArrayLike, v: ArrayLike) -> Matrix:
        """Cov(∂_i ε(w), ∂_j ε(v)) = k' δ_ij - k'' d_i d_j, (n, n).

        Source: Baskerville, Granziol and Keating 2022, equation 16.
        """  # noqa: DOC201
        return self._between(w, v, 1, 1)

    def value_hessian_covariance(self, w: ArrayLike, v: ArrayLike) -> Matrix:
        """Cov(ε(w), ∂_ij ε(v)) = -k' δ_ij + k'' d_i d_j, (n, n)."""
        return self._between(w, v, 0, 2)

    def gradient_hessian_covariance(
        self, w: ArrayLike, v: ArrayLike
    ) -> Float64[np.ndarray, "n n n"]:
        """Cov(∂_i ε(w), ∂_jk ε(v)) = k'' (δ_ij d_k + δ_ik d_j + δ_jk d_i) - k''' d_i d_j d_k."""
        return self._between(w, v, 1, 2)

    def hessian_covariance(self, w: ArrayLike, v: ArrayLike) -> Float64[np.ndarray, "n n n n"]:
        """Covariance of two elements of the Hessians at two points.

        Args:
            w: (n,) the first point.
            v: (n,) the second.

        Returns:
            (n, n, n, n) with element [i, j, k, l] = Cov(∂_ij ε(w), ∂_kl ε(v)), which is
            k'' (δ_ij δ_kl + 2 more) - k''' (δ_ij d_k d_l + 5 more) + k'''' d_i d_j d_k d_l.
        """
        return self._between(w, v, 2, 2)

    def joint(self, points: ArrayLike) -> Float64[np.ndarray, "size size"]:
        """Covariance matrix of everything up to the second derivatives at several points.

        Args:
            points: (m, n) points, m of them in n dimensions.

        Returns:
            (m·s, m·s) symmetric positive semi-definite matrix with s = 1 + n + n(n+1)/2. Point by
            point it has the value ε, the n components of the gradient, and the upper triangle of
            the Hessian row by row: ∂_11, ∂_12, ..., ∂_1n, ∂_22, ..., as ``numpy.triu_indices(n)``.
            Coincident points, and close ones to rounding, make it singular.
        """
        at = real_array("points", points, dimensions=2)
        (m, n), d = at.shape, at[:, None, :] - at[None, :, :]
        jet, groups = self._five(d), [(), (np.arange(n),), np.triu_indices(n)]

        def block(rows: Sequence[Any], columns: Sequence[Any]) -> Float64[np.ndarray, "m m h w"]:
            indices = [row[:, None] for row in rows] + [column[None, :] for column in columns]
            found = (-1) ** len(columns) * _partial(jet, d, indices)
            return found.reshape(m, m, *(found.shape[2:] or (1, 1)))

        blocks = np.block([[block(rows, columns) for columns in groups] for rows in groups])
        flat = blocks.transpose(0, 2, 1, 3).reshape(m * blocks.shape[2], -1)
        # the two halves add the same terms in different orders
        return (flat + flat.T) / 2

    def _between(self, w: ArrayLike, v: ArrayLike, at_w: int, at_v: int) -> Any:
        one, two = real_array("w", w, dimensions=1), real_array("v", v, dimensions=1)
        if one.shape != two.shape:
            raise DataError(f"points of the same dimension needed: {one.shape} and {two.shape}")
        d, order = one - two, at_w + at_v
        indices = np.ogrid[(slice(len(d)),) * order] if order else ()
        return (-1) ** at_v * _partial(self._five(d), d, indices)

    def _five(self, d: Float64[np.ndarray, "... n"]) -> Jet:
        # k to k'''' at separations d. In every derivative of K the last two have factors d_i d_j,
        # and q k'''(q), q² k''''(q) → 0 at q → 0 for a mixture of exponentials of finite k''(0):
        # at distance zero, where they may be infinite, they count for nothing.
        q = -0.5 * np.einsum("...i,...i->...", d, d)
        jet = jet_of(self.kernel, q, 4)
        value, slope = jet_of(self.kernel, np.array(0.0), 1)
        touching = -q * slope <= _COINCIDENT * value
        jet[3:] = np.where(touching & ~np.isfinite(jet[3:]), 0.0, jet[3:])
        return self._finite(f"the kernel {self.name} or one of four derivatives", q, jet)

    def _finite(self, what: str, q: Points, values: Any) -> Any:
        """What is known at each q, refused where one of the numbers is not finite."""
        bad = q[~np.isfinite(values).reshape(-1, *q.shape).all(axis=0)]
        if bad.size:
            raise DataError(f"{what} is not finite at q = -½|w - w'|² = {bad.max():g}")
        return values


def symmetrized(
    name: str, matrices: Float64[np.ndarray, "*batch n n"], ulps: int
) -> Float64[np.ndarray, "*batch n n"]:
    """Matrices that are symmetric but for rounding, without it.

    Args:
        name: Of the argument, for the error.
        matrices: Given.
        ulps: How far, in ulps of the largest element, one may be from its transpose.

    Returns:
        (a + aᵀ)/2 of each.

    Raises:
        DataError: If one is farther from its transpose.
    """
    turned = matrices.swapaxes(-1, -2)
    skew = np.abs(matrices - turned).max()
    if skew > ulps * np.finfo(float).eps * np.abs(matrices).max():
        raise DataError(f"{name} must be symmetric, is off by {skew:g}; try (a + a.T) / 2")
    return (matrices + turned) / 2


def require_stationary(cov: object, otherwise: str = "at one point use sample_hessian") -> None:
    """Refuse a covariance that is known at one point only.

    Args:
        cov: Given.
        otherwise: What to do with another.

    Raises:
        DataError: If it is not stationary.
    """
    if not isinstance(cov, Stationary):
        given = f"{type(cov).__name__} {getattr(cov, 'name', '')}"
        raise DataError(f"a stationary covariance such as rbf() needed, got {given}; {otherwise}")


def _partial(
    jet: Jet, d: Float64[np.ndarray, "... n"], indices: Sequence[Any]
) -> Float64[np.ndarray, "*shape"]:
    """Derivatives of K(d): points first, then what the arrays of components broadcast to."""
    shape = np.broadcast_shapes(*(index.shape for index in indices)) if indices else ()
    orders = jet.reshape(*jet.shape, *(1,) * len(shape))
    total = np.zeros((*d.shape[:-1], *shape))
    for pairs, others in _pairings(tuple(range(len(indices)))):
        p = len(indices) - len(pairs)
        term = (-1) ** p * orders[p]
        for first, second in pairs:
            term = term * (indices[first] == indices[second])
        for other in others:
            term = term * d[..., indices[other]]
        total += term
    return total


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
