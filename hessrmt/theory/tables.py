"""Piecewise polynomial tables and quadrature rules on panels."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64
from numpy.polynomial import chebyshev
from numpy.polynomial.legendre import leggauss
from scipy.interpolate import PPoly

from hessrmt.theory.values import Points


def piecewise(
    function: Callable[[np.ndarray], np.ndarray], edges: Points, degree: int = 15
) -> PPoly:
    """Piecewise polynomial through a smooth function's values at Chebyshev points of each panel.

    Its ``antiderivative()`` is the integral to the same accuracy.

    Args:
        function: Takes (points,) and returns (points,) or (points, k) values.
        edges: The panels' ends, ascending.
        degree: Degree on every panel.

    Returns:
        The table; outside of the edges it extrapolates.
    """
    nodes = chebyshev.chebpts1(degree + 1)
    half = np.diff(edges)[:, None] / 2
    values = function((edges[:-1, None] + half * (1 + nodes)).ravel())
    values = values.reshape(len(half), degree + 1, *values.shape[1:])
    fit = np.linalg.inv(chebyshev.chebvander(nodes, degree))
    coefficients = np.einsum("cn,pn...->cp...", fit, values)
    # Chebyshev series in t = (x - left)/half - 1, to powers of x - left
    powers = np.zeros((degree + 1, degree + 1))
    for k in range(degree + 1):
        series = np.polynomial.Chebyshev.basis(k).convert(kind=np.polynomial.Polynomial)
        shifted = series(np.polynomial.Polynomial([-1.0, 1.0]))
        powers[: k + 1, k] = shifted.coef
    local = np.einsum("kc,cp...->kp...", powers, coefficients)
    scale = half.T ** np.arange(degree + 1)[:, None]
    local /= scale.reshape(*scale.shape, *[1] * (local.ndim - 2))
    return PPoly(local[::-1], edges)


def panels_rule(
    edges: Points, order: int = 16
) -> tuple[Float64[np.ndarray, "panels order"], Float64[np.ndarray, "panels order"]]:
    """Gauss-Legendre nodes and weights on every panel.

    Args:
        edges: The panels' ends, ascending.
        order: Nodes on each panel.

    Returns:
        Nodes and weights, one row per panel.
    """
    nodes, weights = leggauss(order)
    half = np.diff(edges)[:, None] / 2
    return edges[:-1, None] + half * (1 + nodes), half * weights
