"""Maximum-likelihood fits of one-parameter families of spacing laws.

Errors allow for correlated spacings: with the score U_b of each unit of resampling (see
:mod:`hessrmt.levels.resampling`) and the curvature I of the log-likelihood, the variance of the
estimate is ΣU_b²/I² (the cluster-robust "sandwich"; White, Econometrica 50, 1, 1982).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar

from hessrmt.errors import LevelsError
from hessrmt.levels.arguments import real_array
from hessrmt.levels.resampling import units
from hessrmt.levels.staircase import number
from hessrmt.theory.spacings import brody as brody_law
from hessrmt.theory.spacings import superposed_spacing

if TYPE_CHECKING:
    from jaxtyping import Float64

    Samples = Sequence[Float64[np.ndarray, " n"]]

_STEP = 1e-3
"""Step of the numerical derivatives of the log-likelihood in its parameter."""

_BINS, _LONGEST = 4000, 12.0
"""Bins of the superposition fit: 0.003 mean spacings wide, over which the law changes by 1e-5."""


class Fit(NamedTuple):
    """A fitted parameter.

    Attributes:
        value: Maximum-likelihood estimate.
        error: Standard error; NaN where the estimate lies on the edge of what is possible.
        log_likelihood: At the estimate, natural logarithm, summed over spacings.
    """

    value: float
    error: float
    log_likelihood: float


def brody(spacings: Samples | ArrayLike, resolution: float = 0.0) -> Fit:
    """Brody parameter q of p(s) = (q+1) b s^q exp(-b s^{q+1}): 0 for Poisson, 0.95 for GOE.

    Args:
        spacings: Nearest-neighbour spacings of mean 1: one array, or one (a row of a 2-D array)
            for each spectrum.
        resolution: Smallest spacing that the unfolding can tell from zero (``1/pool``), in mean
            spacings; shorter ones are taken as half of it. Zero spacings are left out if it is 0.

    Returns:
        q, its error and the log-likelihood.

    Raises:
        LevelsError: If there are fewer than three positive spacings.
    """
    resolution = number("resolution", resolution)
    samples = [_positive(values, resolution) for values in _samples(spacings)]
    _require_some(samples)

    def log_likelihood(values: np.ndarray, q: float) -> np.ndarray:
        return np.log(np.maximum(brody_law(values, q), np.finfo(np.float64).tiny))

    return _fit(samples, log_likelihood, (-0.9, 5.0))


def superposition(spacings: Samples | ArrayLike) -> Fit:
    """Share f of levels in the smaller of two independent GOE blocks, 0 ≤ f ≤ ½.

    The law is the exact one of a superposition, p = ∂²/∂s² E(fs) E((1-f)s) with the GOE gap
    probability E (Rosenzweig, Porter, Phys. Rev. 120, 1698, 1960; Mehta, App. A.2). A pure GOE has
    f = 0; any other reason for excess small spacings also shows as f > 0.

    Args:
        spacings: As in :func:`brody`; zero spacings are allowed.

    Returns:
        f, its error and the log-likelihood.

    Raises:
        LevelsError: If there are fewer than three spacings.
    """
    samples = _samples(spacings)
    _require_some(samples)
    edges = np.linspace(0, _LONGEST, _BINS + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    parts = units(samples)
    counts = np.array([np.histogram(np.minimum(part, _LONGEST), edges)[0] for part in parts])
    used = np.flatnonzero(counts.any(axis=0))
    counts, middle = counts[:, used], middle[used]

    def log_density(f: float) -> np.ndarray:
        law = superposed_spacing(middle, (1 - f, f))
        return np.log(np.maximum(law, np.finfo(np.float64).tiny))

    return _maximise(lambda f: counts @ log_density(f), (0.0, 0.5))


def _fit(
    samples: Samples,
    log_density: Callable[[np.ndarray, float], np.ndarray],
    bounds: tuple[float, float],
) -> Fit:
    parts = units(samples)
    starts = np.cumsum([0, *(len(part) for part in parts[:-1])])
    together = np.concatenate(parts)
    return _maximise(lambda q: np.add.reduceat(log_density(together, q), starts), bounds)


def _maximise(by_unit: Callable[[float], np.ndarray], bounds: tuple[float, float]) -> Fit:
    """Maximise a log-likelihood given as one sum for each unit."""
    found = minimize_scalar(
        lambda value: -float(by_unit(value).sum()),
        bounds=bounds,
        method="bounded",
        options={"xatol": 1e-5},
    )
    inside = float(found.x)  # pyright: ignore[reportAttributeAccessIssue]
    best = min((*bounds, inside), key=lambda value: -float(by_unit(value).sum()))
    centre = float(np.clip(best, bounds[0] + _STEP, bounds[1] - _STEP))
    below, here, above = (by_unit(centre + step) for step in (-_STEP, 0.0, _STEP))
    score = (above - below) / (2 * _STEP)
    curvature = -float((above - 2 * here + below).sum()) / _STEP**2
    at_edge = best in bounds
    error = float("nan")
    if curvature > 0 and len(score) > 1 and not at_edge:
        score = score - score.mean()
        error = float(np.sqrt(len(score) / (len(score) - 1) * (score @ score)) / curvature)
    return Fit(best, error, float(by_unit(best).sum()))


def _samples(spacings: Samples | ArrayLike) -> list[np.ndarray]:
    several = isinstance(spacings, Sequence) or np.ndim(spacings) == 2
    given: Any = spacings if several else [spacings]
    if not any(np.ndim(item) == 1 for item in given):
        given = [spacings]
    found = [real_array(values, "spacings") for values in given]
    for values in found:
        if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any():
            raise LevelsError(
                "spacings must be finite and not negative, in one array or one for each spectrum"
            )
    return found


def _positive(values: np.ndarray, resolution: float) -> np.ndarray:
    if resolution > 0:
        return np.maximum(values, resolution / 2)
    return values[values > 0]


def _require_some(samples: Samples) -> None:
    count = sum(map(len, samples))
    if count < 3:
        raise LevelsError(f"a fit needs at least 3 spacings, got {count}")
