"""Polynomials realised by smooth units, and the square of the ReLU by ReLUs.

Poggio, Banburski and Liao 2020, Theorem 2: every polynomial of degree k in n variables is realised
with arbitrary accuracy by r = C(n + k, k) units σ(h w_i·x + b_i) of one layer, σ infinitely
differentiable and no polynomial. The reason is the limit h → 0: the Taylor series of r such units
up to degree k span all polynomials of that degree for almost all w_i and b_i; what is left out is
of the order h^(k + 1), the coefficients are of the order h^-k, so that the error falls at least
like h until round-off of the order ε h^-k exceeds it. Theorem 3: a compositional polynomial needs
C(2 + k, 2) units at each of its n - 1 nodes.

The step from smooth units to ReLUs is Yarotsky's approximation of x² on [0, 1] by sawtooth
functions: m levels have the error 4^-(m + 1), while a piecewise linear function of p pieces, which
is what p - 1 ReLUs of one layer give, is off by at least 1/(8 p²).

Source: Poggio, Banburski and Liao 2020, §2 B; Mhaskar 1996; Yarotsky 2017, Proposition 2.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb
from typing import TYPE_CHECKING

import numpy as np

from hessrmt import rng
from hessrmt.checks import one_of, real_array, whole
from hessrmt.errors import DataError
from hessrmt.generalization.approximation import ACTIVATIONS, quasi_random
from hessrmt.generalization.fits import log_slopes
from hessrmt.results import Result

if TYPE_CHECKING:
    from jaxtyping import Float64
    from numpy.typing import ArrayLike

    Points = Float64[np.ndarray, "B n"]
    Values = Float64[np.ndarray, " B"]
    Errors = Float64[np.ndarray, "..."]
    Scales = Float64[np.ndarray, " H"]
    Generator = np.random.Generator

Function = Callable[[np.ndarray], np.ndarray]

SMOOTH = ("softplus", "tanh")
"""Activations that the theorems are about."""

SCALES = tuple(2.0**-i for i in range(1, 9))

_OVERSAMPLED = 8
"""Points to fit for every coefficient, and as many to test."""

_LARGEST = 4000
"""Units of a shallow network whose least squares are still solved."""

_SLOPE = 3
"""Scales that the exponent is taken from."""

_FINE, _LEVELS = 2048, 20
"""Points of a tree; levels of the deep network that are told apart from round-off."""

_EPS = float(np.finfo(float).eps)


@dataclass(frozen=True)
class PolynomialStudy(
    Result,
    axes={"scale": "scales", "scale seed": "errors fewer"},
    derived="exponent smallest smallest_with_fewer",
    picture="generalization.polynomial_errors",
):
    """How well r random units realise random polynomials.

    Attributes:
        kind: ``"deep"``: compositional polynomials (Theorem 3); ``"shallow"`` (Theorem 2).
        inputs: n.
        degree: k, of the polynomial, or of every node's.
        activation: Of the units.
        units: r, in all.
        scales: (H,) h, falling.
        errors: (H, S) root mean squares of the error over test points, relative to the polynomial's
            standard deviation; a column for each polynomial.
        fewer: (H, S) the same with one unit less, at every node of a deep network.
    """

    kind: str
    inputs: int
    degree: int
    activation: str
    units: int
    scales: Float64[np.ndarray, " H"]
    errors: Errors
    fewer: Errors

    @property
    def exponent(self) -> float:
        """Slope of log error against log h at the last scales before the smallest error.

        Of geometric means over polynomials; beyond that scale the error is round-off's.
        """
        logs = np.log(self.errors).mean(axis=1)
        end = int(np.argmin(logs)) + 1
        if end < 2:
            return float("nan")
        last = slice(max(end - _SLOPE, 0), end)
        return float(log_slopes(self.scales[last], self.errors[last]).mean())

    @property
    def smallest(self) -> float:
        """Geometric mean over polynomials of the error at the best scale."""
        return float(np.exp(np.log(self.errors).mean(axis=1).min()))

    @property
    def smallest_with_fewer(self) -> float:
        """The same with one unit less."""
        return float(np.exp(np.log(self.fewer).mean(axis=1).min()))


def realize(
    kind: str,
    inputs: int,
    degree: int,
    *,
    activation: str = "softplus",
    scales: ArrayLike = SCALES,
    polynomials: int = 5,
    seed: int = 0,
) -> PolynomialStudy:
    """Realise random polynomials with the number of units that Theorem 2 or 3 gives.

    Directions w_i and offsets b_i are drawn once and never fitted; the r coefficients are, by least
    squares at each scale h.

    Args:
        kind: ``"shallow"``, polynomials of degree k in n variables with independent standard normal
            coefficients; ``"deep"``, trees of such polynomials in two variables, divided by their
            largest values.
        inputs: n; for ``"deep"`` a power of two.
        degree: k.
        activation: ``"softplus"`` or ``"tanh"``.
        scales: (H,) h, positive and falling.
        polynomials: How many, each with units of its own.
        seed: Of the run.

    Returns:
        The errors.

    Raises:
        DataError: If a setting cannot be used.
    """
    one_of("kind", kind, ("deep", "shallow"))
    one_of("smooth activation", activation, SMOOTH)
    n, k = whole("inputs", inputs, 1), whole("degree", degree, 1)
    count = whole("polynomials", polynomials, 1)
    grid = real_array("scales", scales, dimensions=1, above=0, hint="values of h")
    if (np.diff(grid) >= 0).any():
        raise DataError("the scales h must fall")
    if kind == "deep" and (n < 2 or n & (n - 1)):
        raise DataError(f"a binary tree needs 2, 4, 8, 16, ... variables, got {n} of them")
    each = comb((2 if kind == "deep" else n) + k, k)
    if each > _LARGEST:
        raise DataError(f"C({n + k}, {k}) = {each:,} units are too many; at most {_LARGEST:,}")
    solve = _tree if kind == "deep" else _layer
    found = np.empty((2, len(grid), count))
    for s in range(count):
        draw = rng.stream(seed, "polynomial", kind, n, k, s)
        found[:, :, s] = solve(n, k, each, ACTIVATIONS[activation][0], grid, draw)
    units = each * (n - 1 if kind == "deep" else 1)
    return PolynomialStudy(kind, n, k, activation, units, grid, *found)


class _Node:
    """A random polynomial of degree k in n variables, r random units, and points."""

    def __init__(self, n: int, k: int, units: int, draw: np.random.Generator) -> None:
        powers = [p for p in itertools.product(range(k + 1), repeat=n) if sum(p) <= k]
        self.powers, self.coefficients = np.array(powers), draw.normal(size=len(powers))
        self.w, self.b = draw.normal(size=(units, n)), draw.normal(size=units)
        count = 2 ** int(np.ceil(np.log2(_OVERSAMPLED * units)))
        self.fitted_at, self.tested_at = (
            quasi_random(n, count, shift) for shift in draw.uniform(size=(2, n))
        )

    def polynomial(self, x: Points) -> Values:
        """The polynomial's values."""
        monomials = np.ones((len(x), len(self.powers)))
        for column, powers in zip(x.T, self.powers.T, strict=True):
            monomials *= column[:, None] ** powers
        return monomials @ self.coefficients

    def network(self, activate: Function, h: float, units: int) -> Function:
        """The first units with the coefficients that fit the polynomial best."""

        def entries(x: Points) -> Float64[np.ndarray, "B r"]:
            return activate(h * (x @ self.w[:units].T) + self.b[:units])

        values = self.polynomial(self.fitted_at)
        found = np.linalg.lstsq(entries(self.fitted_at), values, rcond=_EPS)[0]
        return lambda x: entries(x) @ found


def _layer(n: int, k: int, units: int, activate: Function, h: Scales, draw: Generator) -> Errors:
    """(2, H) errors of one polynomial with all units and with one less."""
    node = _Node(n, k, units, draw)
    expected = node.polynomial(node.tested_at)

    def error(scale: float, few: int) -> float:
        return _relative(node.network(activate, scale, units - few)(node.tested_at), expected)

    return np.array([[error(scale, few) for scale in h] for few in (0, 1)])


def _tree(n: int, k: int, units: int, activate: Function, h: Scales, draw: Generator) -> Errors:
    """The same of a tree with such a polynomial at each node, its values in [-1, 1]."""
    nodes = [_Node(2, k, units, draw) for _ in range(n - 1)]
    for node in nodes:
        node.coefficients /= np.abs(node.polynomial(quasi_random(2, _FINE, np.zeros(2)))).max()
    points = quasi_random(n, _FINE, draw.uniform(size=n))
    expected = _composed([node.polynomial for node in nodes], points)

    def error(scale: float, few: int) -> float:
        networks = [node.network(activate, scale, units - few) for node in nodes]
        return _relative(_composed(networks, points), expected)

    return np.array([[error(scale, few) for scale in h] for few in (0, 1)])


def _composed(functions: Sequence[Function], x: Points) -> Values:
    """The tree with these functions of two variables at its nodes."""
    waiting = iter(functions)
    while x.shape[1] > 1:
        pairs = [x[:, i : i + 2] for i in range(0, x.shape[1], 2)]
        x = np.stack([next(waiting)(pair) for pair in pairs], axis=1)
    return x[:, 0]


def _relative(found: Values, expected: Values) -> float:
    return float(np.sqrt(np.square(found - expected).mean()) / expected.std())


@dataclass(frozen=True)
class SquareStudy(
    Result, axes={"level": "units deep shallow bound"}, picture="generalization.square_errors"
):
    """The square of the ReLU on [-1, 1] by networks of ReLUs.

    Attributes:
        units: (M,) ReLUs of a deep network of m levels, 3m + 1.
        deep: (M,) its largest error, measured on a grid that holds the points where it is attained.
        shallow: (M,) largest error of a piecewise linear interpolation with as many ReLUs.
        bound: (M,) no network with one layer of as many ReLUs has a smaller one.
    """

    units: Float64[np.ndarray, " M"]
    deep: Float64[np.ndarray, " M"]
    shallow: Float64[np.ndarray, " M"]
    bound: Float64[np.ndarray, " M"]


def squares(levels: int = 10) -> SquareStudy:
    """Approximate (z₊)² by deep and by shallow networks of ReLUs.

    Args:
        levels: m, up to this.

    Returns:
        Errors for m = 1, 2, ...

    Raises:
        DataError: If there are more levels than float64 can tell apart.
    """
    if whole("levels", levels, 1) > _LEVELS:
        raise DataError(f"{levels} levels have errors below round-off; take at most {_LEVELS}")
    m = np.arange(1, levels + 1)
    units = 3.0 * m + 1
    # the error is largest in the middle between multiples of 2^-m
    grid = np.arange(2.0 ** (levels + 1) + 1) / 2.0 ** (levels + 1)
    x = np.concatenate([-grid[:0:-1], grid])
    exact = np.maximum(x, 0.0) ** 2
    deep = [np.abs(squared_relu(x, int(level)) - exact).max() for level in m]
    # p units: pieces of length 1/p on [0, 1], zero before; no network has more than p + 1 there
    shallow, bound = 1 / (4 * units**2), 1 / (8 * (units + 1) ** 2)
    return SquareStudy(units, np.array(deep), shallow, bound)


def squared_relu(x: Values, levels: int) -> Values:
    """A network of ReLUs, three in each of m layers and one before, that approximates (x₊)².

    On [0, 1] it interpolates x² at multiples of 2^-m: x - Σ g_s(x) 4^-s, g_s the s-fold composition
    of the tent g(x) = 2 x₊ - 4 (x - 1/2)₊.

    Args:
        x: (B,) points up to 1.
        levels: m.

    Returns:
        (B,) values, off by at most 4^-(m + 1).
    """
    tent = total = np.maximum(x, 0.0)
    for s in range(1, levels + 1):
        first, second, total = (np.maximum(z, 0.0) for z in (tent, tent - 0.5, total))
        tent = 2 * first - 4 * second
        total = total - tent / 4.0**s
    return total
