"""Gap probabilities E(s): no level in an interval of s mean spacings, infinitely large matrices."""

import numpy as np
from numpy.typing import ArrayLike

from hessrmt.theory.determinants import Gap, even_odd
from hessrmt.theory.values import BETAS, Values, block_fractions, clipped, one_of


def gap_probability(s: ArrayLike, beta: int = 1) -> Values:
    """E(s), the probability of no level in an interval of length s, infinitely large matrices.

    E₁(s) = D+(s), E₂(s) = D+(s) D-(s), E₄(s) = (D+(2s) + D-(2s))/2, with the Fredholm determinants
    D± of :mod:`hessrmt.theory.determinants`.

    Args:
        s: Lengths in mean spacings, any shape; a negative length counts as 0.
        beta: Dyson's index, 1, 2 or 4.

    Returns:
        Probabilities, in the shape of s.

    Source: Mehta, Random Matrices (2004), chs. 6 (β = 2), 7 (β = 1) and 11 (β = 4); Bornemann,
    Markov Process. Related Fields 16, 803 (2010).
    """
    t, _ = clipped(s)
    return np.exp(exact_gap(t, beta).log)[()]


def exact_gap(s: Values, beta: int) -> Gap:
    """The gap probability of :func:`gap_probability` and its derivatives.

    Args:
        s: Lengths at least 0, any shape.
        beta: Dyson's index, 1, 2 or 4.

    Returns:
        ln E, E'/E and E''/E.
    """
    one_of(beta, BETAS, "beta")
    even, odd = even_odd(s if beta < 4 else 2 * s)
    if beta == 1:
        return even
    if beta == 2:
        bend = even.bend + 2 * even.slope * odd.slope + odd.bend
        return Gap(even.log + odd.log, even.slope + odd.slope, bend)
    total = np.logaddexp(even.log, odd.log)
    a, b = np.exp(even.log - total), np.exp(odd.log - total)
    slope = 2 * (a * even.slope + b * odd.slope)
    return Gap(total - np.log(2), slope, 4 * (a * even.bend + b * odd.bend))


def superposed_gap(s: Values, fractions: int | ArrayLike) -> Gap:
    """E(s) = ∏ E₁(f_i s), the gap probability of independent GOE blocks.

    Args:
        s: Lengths at least 0, any shape.
        fractions: Each block's part of the levels, or the number of equal blocks.

    Returns:
        ln E, E'/E and E''/E.
    """
    log = slope = bend = own = np.zeros(np.shape(s))
    for f, count in block_fractions(fractions):
        block = even_odd(f * s)[0]
        log = log + count * block.log
        slope = slope + count * f * block.slope
        bend = bend + count * f**2 * block.bend
        own = own + count * (f * block.slope) ** 2
    return Gap(log, slope, bend + slope**2 - own)
