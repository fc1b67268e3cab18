"""Fredholm determinants of the even and odd parts of the sine kernel.

Source: F. Bornemann, "On the numerical evaluation of Fredholm determinants", Math. Comp. 79, 871
(2010), and "On the numerical evaluation of distributions in random matrix theory", Markov Process.
Related Fields 16, 803 (2010). The first gives the method (determinant of I - K at Gauss-Legendre
nodes, exponentially convergent for entire kernels), the second the gap probabilities.
"""

import functools
from typing import NamedTuple

import numpy as np
from numpy.polynomial.legendre import leggauss
from scipy.interpolate import PPoly

from hessrmt.theory.tables import piecewise
from hessrmt.theory.values import Points, Values

_NODES = 40
_END = 8.0
"""Tables reach to here. D+ is then 1e-20, and round-off in I - K leaves it five digits."""
_PANELS = 32


class Gap(NamedTuple):
    """A gap probability E(s) by quantities without under- and overflow.

    ``log`` is ln E, ``slope`` is E'/E, ``bend`` is E''/E.
    """

    log: Values
    slope: Values
    bend: Values


def determinant(s: Points, parity: int) -> Gap:
    """D±(s) = det(I - K±) on (0, s/2), K±(x,y) = S(x-y) ± S(x+y), S(d) = sin(πd)/(πd).

    On fixed nodes in (0, 1) the derivative of the matrix A(s) is of rank one, A' = v vᵀ with
    v = √w cos(πsx/2) for the even part and √w sin(πsx/2) for the odd, so that with R = (I - A)⁻¹
    D'/D = -vᵀRv and D''/D = -2 v'ᵀRv: analytic, and free of cancellation in the even part.

    Args:
        s: Lengths in mean spacings, up to about 8.
        parity: +1 for the even part, -1 for the odd.

    Returns:
        ln D, D'/D and D''/D.
    """
    nodes, weights = leggauss(_NODES)
    x, w = (nodes + 1) / 2, weights / 2
    root = np.sqrt(np.outer(w, w))
    near, far = x[:, None] - x, x[:, None] + x
    half = s[:, None, None] / 2
    A = root * half * (np.sinc(half * near) + parity * np.sinc(half * far))
    B = np.eye(_NODES) - A
    angle = np.pi * s[:, None] * x / 2
    rate = np.pi * x / 2
    if parity > 0:
        v, dv = np.sqrt(w) * np.cos(angle), -np.sqrt(w) * rate * np.sin(angle)
    else:
        v, dv = np.sqrt(w) * np.sin(angle), np.sqrt(w) * rate * np.cos(angle)
    Rv = np.linalg.solve(B, v[..., None])[..., 0]
    log = np.linalg.slogdet(B)[1]
    return Gap(log, -(v * Rv).sum(axis=1), -2 * (dv * Rv).sum(axis=1))


def even_odd(s: Values) -> tuple[Gap, Gap]:
    """D+ and D- of :func:`determinant`, from a table.

    Beyond the table ln D is continued by its second-order expansion, which has the right Gaussian
    fall-off; D- is below 1e-14 there, D+ below 1e-19.

    Args:
        s: Lengths at least 0, any shape.

    Returns:
        ln D, D'/D and D''/D of the even part and of the odd part.
    """
    inside = np.minimum(s, _END)
    table = _table()(inside)
    beyond = np.minimum(s, 1e3) - inside
    gaps = []
    for part in (table[..., :3], table[..., 3:]):
        log, slope, bend = np.moveaxis(part, -1, 0)
        if np.any(beyond > 0):
            curvature = bend - slope**2
            log = log + slope * beyond + curvature * beyond**2 / 2
            slope = slope + curvature * beyond
            bend = curvature + slope**2
        gaps.append(Gap(log, slope, bend))
    return gaps[0], gaps[1]


@functools.cache
def _table() -> PPoly:
    def both(s: np.ndarray) -> np.ndarray:
        return np.stack([*determinant(s, 1), *determinant(s, -1)], axis=-1)

    return piecewise(both, np.linspace(0.0, _END, _PANELS + 1))
