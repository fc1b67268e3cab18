"""Two consecutive spacings of a spectrum that superposes m equal, independent GOE blocks.

Within one block two spacings x, y that follow each other have the 3 x 3 surmise's joint density
p(x, y), proportional to x y (x + y) e^(-c (x² + x y + y²)). From it come, in the block's spacings,

    a(x, y) = ∫_y^∞ p(x, v) dv          one spacing is x, the next exceeds y
    b(x, y) = ∫_x^∞ a(u, y) du          the two exceed x and y
    f(s) = ∫_s^∞ a(u, 0) du             a spacing exceeds s
    e(s) = ∫_s^∞ f(u) du                no level in an interval of length s

and the superposition sums over which block each of three consecutive levels belongs to.

Source: Giraud, Macé, Vernier, Alet, PRX 12, 011006 (2022), sec. II; the joint law within a block
follows from the eigenvalue density, as in Atas et al., PRL 110, 084101 (2013).
"""

import math

import numpy as np
from scipy import special

from hessrmt.theory.tables import panels_rule
from hessrmt.theory.values import Points

_C = 9 / (4 * math.pi)  # makes the mean spacing 1
_A = 9 * _C**2.5 / math.sqrt(math.pi)  # makes the total probability 1
_FAR = 9.0  # a block's spacing exceeds this with probability 1e-19
_MOST = 50


def block_ratio(r: Points, blocks: int) -> Points:
    """P(r) = ∫ x p(x, r x) dx, p the joint density of consecutive spacings of the superposition.

    Args:
        r: Ratios in [0, 1].
        blocks: Number m of blocks, 1 to 50; one block gives the 3 x 3 surmise back.

    Returns:
        The density of r.

    Raises:
        ValueError: The number of blocks is out of range.
    """
    m = blocks
    if isinstance(m, bool) or not isinstance(m, int | np.integer) or not 1 <= m <= _MOST:
        raise ValueError(
            f"blocks is {m!r}, an integer from 1 to {_MOST} is expected; try blocks=2."
        )
    nodes, weights = panels_rule(_FAR * np.linspace(0.0, 1.0, 13) ** 2)
    x = nodes.ravel()
    y = r[:, None] * x
    s = x + y
    a, b, exceed, empty = _next_exceeds(x, y), _both_exceed(x, y), _exceeds(s), _empty(s)
    total = _joint(x, y) * empty ** (m - 1)
    if m > 1:
        pairs = (a + _next_exceeds(y, x)) * exceed + _next_exceeds(s, np.zeros(1)) * b
        total += (m - 1) * pairs * empty ** (m - 2)
    if m > 2:
        total += (m - 1) * (m - 2) * exceed**2 * b * empty ** (m - 3)
    return total @ (x * weights.ravel())


def _joint(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _A * x * y * (x + y) * np.exp(-_C * (x**2 + x * y + y**2))


def _next_exceeds(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The function a, with v (x + v) = w² - x²/4 and w = v + x/2."""
    w = y + x / 2
    tail = math.sqrt(math.pi / _C) / 2 * special.erfc(math.sqrt(_C) * w)
    integral = w * np.exp(-_C * w**2) / (2 * _C) + (1 / (2 * _C) - x**2 / 4) * tail
    return _A * x * np.exp(-0.75 * _C * x**2) * integral


def _both_exceed(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    nodes, weights = panels_rule(np.linspace(0.0, _FAR, 4))
    steps = zip(nodes.ravel(), weights.ravel(), strict=True)
    return np.sum([w * _next_exceeds(x + u, y) for u, w in steps], axis=0)


def _exceeds(s: np.ndarray) -> np.ndarray:
    return _both_exceed(s, np.zeros(1))


def _empty(s: np.ndarray) -> np.ndarray:
    nodes, weights = panels_rule(np.linspace(0.0, _FAR, 4))
    steps = zip(nodes.ravel(), weights.ravel(), strict=True)
    return np.sum([w * u * _next_exceeds(s + u, np.zeros(1)) for u, w in steps], axis=0)
