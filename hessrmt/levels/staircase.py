"""Staircases N̄(λ) fitted to one whole spectrum: a polynomial, a spline, a law.

Everything here trusts its input, sorted finite levels of which at least two differ;
:func:`hessrmt.levels.unfolding.unfold` checks it. N̄ at the i-th of n levels, counted from 0, is
about i + 1/2, halfway up its step of the counting function.

Source: Haake, Quantum Signatures of Chaos, §4.8; Guhr, Müller-Groeling, Weidenmüller, Phys. Rep.
299, 189 (1998), §3.2.1; Gómez et al., PRE 66, 036209 (2002) compares such choices.
"""

from __future__ import annotations

import numbers
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.polynomial import Chebyshev
from scipy.interpolate import BSpline, make_lsq_spline
from scipy.optimize import nnls

from hessrmt.errors import LevelsError, OptionError
from hessrmt.theory import densities

if TYPE_CHECKING:
    from hessrmt.arrays import Levels

_MISFIT = 3.0
"""Multiple of √n by which a fitted staircase may miss the counted one. Even n independent levels,
the most irregular of the usual ensembles, do so with probability 2 exp(-2·3²) = 3e-8 (Kolmogorov).
"""

_CDF_ROUNDING = float(np.finfo(np.float64).eps ** 0.5)
"""By how much the values of a distribution function may be out of order."""

_ADVICE = "try method='window', which follows any density, or method='pooled' with more batches"


def polynomial(levels: Levels, *, degree: int = 9) -> Levels:
    """N̄ as a least-squares polynomial, in the Chebyshev basis of the levels' range.

    Where the best polynomial falls between two levels, the best one whose Bernstein coefficients
    rise, and which rises with them, takes its place.

    Args:
        levels: (n,) ascending.
        degree: Of the polynomial.

    Returns:
        (n,) unfolded levels.

    Raises:
        LevelsError: If there are too few levels for the degree, or the fit is no staircase of them.
    """
    at_least("degree", degree, 1)
    distinct = 1 + np.count_nonzero(np.diff(levels))
    if distinct < degree + 2:
        raise LevelsError(
            f"a polynomial of degree {degree} needs at least {degree + 2} distinct levels, got "
            f"{distinct}; lower the degree or try method='window'"
        )
    fit, (_, rank, _, _) = Chebyshev.fit(levels, _steps(levels), degree, full=True)
    if rank <= degree:
        raise LevelsError(
            f"the levels determine only {rank} of a polynomial's {degree + 1} coefficients, they "
            "crowd in a small part of their range; try method='window' or 'spline'"
        )
    unfolded, name = fit(levels), f"the polynomial of degree {degree}"
    if not _rises(levels, unfolded):
        x, first, counts = np.unique(levels, return_index=True, return_counts=True)
        ends = np.repeat([x[0], x[-1]], degree + 1)  # a spline without knots between them
        unfolded = _rising_spline(x, first + counts / 2, ends, np.sqrt(counts), degree)(levels)
    _rising(levels, unfolded, name)
    return _of_mean_one(_checked(levels, unfolded, name))


def spline(levels: Levels, *, knots: int | None = None) -> Levels:
    """N̄ as a least-squares cubic spline with knots at quantiles of the levels.

    Where the best spline falls between two levels, the best one whose B-spline coefficients rise,
    and which rises with them (de Boor, A Practical Guide to Splines, ch. XI), takes its place.

    Args:
        levels: (n,) ascending.
        knots: Number of interior knots; n/40, between 3 and 200, if None.

    Returns:
        (n,) unfolded levels.

    Raises:
        LevelsError: If there are too few levels for the knots, or the fit is no staircase of them.
    """
    x, first, counts = np.unique(levels, return_index=True, return_counts=True)
    if knots is None:
        knots = max(min(max(len(levels) // 40, 3), 200, len(x) // 4 - 1), 0)
    at_least("knots", knots, 0)
    if len(x) < 2 * (knots + 1) + 3:
        raise LevelsError(
            f"a cubic spline with {knots} interior knots needs at least {2 * (knots + 1) + 3} "
            f"distinct levels, got {len(x)}; use fewer knots or try method='window'"
        )
    inner = np.quantile(x, np.arange(1, knots + 1) / (knots + 1))
    t = np.concatenate([[x[0]] * 4, inner, [x[-1]] * 4])
    y, weights = first + counts / 2, np.sqrt(counts)
    try:
        fit = make_lsq_spline(x, y, t, k=3, w=weights)
        if not _rises(x, fit(x)):
            fit = _rising_spline(x, y, t, weights, 3)
    except (np.linalg.LinAlgError, RuntimeError) as error:
        raise LevelsError(
            f"the spline with {knots} interior knots has no unique fit ({error}), its knots lie "
            "too close for round-off; use fewer knots or try method='window'"
        ) from error
    unfolded, name = fit(levels), f"the spline with {knots} knots"
    _rising(levels, unfolded, name)
    return _of_mean_one(_checked(levels, unfolded, name))


def analytic(
    levels: Levels,
    *,
    law: Any = "semicircle",
    centre: float | None = None,
    radius: float | None = None,
    ratio: float | None = None,
    scale: float | None = None,
) -> Levels:
    """ξ = n·F(λ) with the distribution function F of a law; levels outside its support coincide.

    Args:
        levels: (n,) ascending.
        law: ``"semicircle"``; ``"marchenko-pastur"``, for the nonzero levels of X Xᵀ/m, X n × m;
            or any distribution function of an array, or a law with such a ``cdf``.
        centre: Of the semicircle, in the units of the levels; their mean if None.
        radius: Of the semicircle, in the units of the levels; twice their standard deviation if
            None.
        ratio: n/m of Marchenko-Pastur, at most 1; variance/mean² of the levels if None.
        scale: Variance of an entry of X, in the units of the levels; their mean if None.

    Returns:
        (n,) unfolded levels.

    Raises:
        OptionError: If the law is unknown or has no such parameter.
        LevelsError: If it is not the levels' law.
    """
    given = {"centre": centre, "radius": radius, "ratio": ratio, "scale": scale}
    known = {"semicircle": ("centre", "radius"), "marchenko-pastur": ("ratio", "scale")}
    cdf = getattr(law, "cdf", law)
    name = f"law {getattr(law, 'name', law)!r}"
    if not callable(cdf) and (not isinstance(law, str) or law not in known):
        raise OptionError(f"unknown {name}; known: {', '.join(known)}, or a distribution function")
    takes = () if callable(cdf) else known[law]
    values = {key: number(key, value) for key, value in given.items() if value is not None}
    foreign = [key for key in values if key not in takes]
    if foreign:
        raise OptionError(
            f"{name} has no parameter {foreign[0]!r}; known: {', '.join(takes) or 'none'}"
        )
    if callable(cdf):
        share = np.asarray(cdf(levels), dtype=np.float64)
    elif law == "semicircle":
        share = _semicircle(levels, **values)
    else:
        share = _marchenko_pastur(levels, **values)
    if (
        share.shape != levels.shape
        or not (np.diff(share, prepend=0.0, append=1.0) >= -_CDF_ROUNDING).all()
    ):
        raise LevelsError(
            f"{name} is no distribution function: expected {len(levels)} values that rise within "
            "[0, 1]"
        )
    return _checked(levels, len(levels) * np.clip(share, 0, 1), name)


def number(name: str, value: object) -> float:
    """Check an option that measures something.

    Args:
        name: Of the option.
        value: Given.

    Returns:
        The value.

    Raises:
        OptionError: If it is no finite real number.
    """
    if not isinstance(value, numbers.Real) or not np.isfinite(float(value)):
        raise OptionError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def at_least(name: str, value: object, bound: int) -> int:
    """Check an option that counts something.

    Args:
        name: Of the option.
        value: Given.
        bound: The smallest that makes sense.

    Returns:
        The value.

    Raises:
        OptionError: If it is no integer or is smaller.
    """
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < bound:
        raise OptionError(f"{name} must be an integer of at least {bound}, got {value!r}")
    return int(value)


def _steps(levels: Levels) -> Levels:
    return np.arange(len(levels)) + 0.5


def _checked(levels: Levels, unfolded: Levels, name: str) -> Levels:
    misfit = float(np.abs(unfolded - _steps(levels)).max())
    allowed = _MISFIT * len(levels) ** 0.5
    if not misfit <= allowed:
        raise LevelsError(
            f"{name} misses the staircase of {len(levels)} levels by {misfit:.3g} levels, more "
            f"than the {allowed:.3g} that even independent levels would; {_ADVICE}"
        )
    return np.maximum.accumulate(unfolded)


def _rising(levels: Levels, unfolded: Levels, name: str) -> None:
    if not _rises(levels, unfolded):
        raise LevelsError(f"{name} fitted to the staircase does not rise everywhere; {_ADVICE}")


def _rises(levels: Levels, unfolded: Levels) -> bool:
    """Whether a fit rises between all levels that are further apart than its round-off."""
    rounding = 8 * len(levels) * np.finfo(np.float64).eps
    apart = np.diff(levels) * (len(levels) / (levels[-1] - levels[0])) > rounding
    step = np.diff(unfolded)
    return not ((step < -rounding).any() or (step[apart] <= 0).any())


def _of_mean_one(unfolded: Levels) -> Levels:
    """A fit runs through the staircase's ends only about: stretched to n - 1 mean spacings."""
    return 0.5 + (unfolded - unfolded[0]) * ((len(unfolded) - 1) / (unfolded[-1] - unfolded[0]))


def _rising_spline(x: Levels, y: Levels, t: Levels, weights: Levels, degree: int) -> BSpline:
    design = BSpline.design_matrix(x, t, degree).toarray() * weights[:, None]
    # column k: the spline whose coefficients are 0 before the k-th and 1 from there on
    increments = np.cumsum(design[:, ::-1], axis=1)[:, ::-1]
    q, r = np.linalg.qr(increments)
    steps, _ = nnls(r, q.T @ (weights * y))
    return BSpline(t, np.cumsum(steps), degree)


def _semicircle(x: Levels, centre: float | None = None, radius: float | None = None) -> Levels:
    centre = float(x.mean()) if centre is None else centre
    radius = 2 * float(x.std()) if radius is None else radius
    if not radius > 0:
        raise LevelsError(f"the radius of a semicircle must be positive, got {radius}")
    return densities.semicircle_cdf(x - centre, radius)


def _marchenko_pastur(x: Levels, ratio: float | None = None, scale: float | None = None) -> Levels:
    if not x[0] > 0:
        raise LevelsError(
            f"the lowest level is {x[0]:.3g}, Marchenko-Pastur is the law of the nonzero levels of "
            "a positive matrix; leave the others out or try method='window'"
        )
    scale = float(x.mean()) if scale is None else scale
    # at 1 the estimate falls on both sides; the fit is checked against the levels in any case
    ratio = min(1.0, float(x.var() / x.mean() ** 2)) if ratio is None else ratio
    if not (0 < ratio <= 1 and scale > 0):
        raise LevelsError(
            f"Marchenko-Pastur needs a ratio in (0, 1] and a positive scale, got {ratio:.3g} and "
            f"{scale:.3g}; where n > m the nonzero levels are those of Xᵀ X"
        )
    return densities.marchenko_pastur_cdf(x, ratio, scale)
