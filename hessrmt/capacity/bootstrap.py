"""Is a sample a power law's at all? p-value of a fit by the semi-parametric bootstrap.

Source: Clauset, Shalizi, Newman, SIAM Rev. 51, 661 (2009), §4.1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from hessrmt import rng
from hessrmt.capacity.powerlaw import fit_rule, usable
from hessrmt.errors import CapacityError

if TYPE_CHECKING:
    from jaxtyping import Float, Float64

    from hessrmt.backend.base import Backend
    from hessrmt.capacity.powerlaw import PowerLawFit

_TOGETHER = 2**20
"""Values of the synthetic samples that are fitted in one launch."""


def goodness_of_fit(
    values: Float[np.ndarray, " n"],
    fitted: PowerLawFit,
    *,
    samples: int = 1000,
    seed: int = 0,
    backend: Backend | None = None,
) -> float:
    """Probability that a power law's own sample lies as far from its fit as this one does.

    Synthetic samples of the same size: each value is, with probability n_tail/n, drawn from the
    fitted law, and otherwise one of the values below x_min. Each is fitted by the same rule, x_min
    included. Its standard error is √(p(1 - p)/samples). Below 0.1 the paper rejects the power law;
    a large p of a short tail says little.

    Args:
        values: (n,) those that were fitted.
        fitted: Their fit.
        samples: How many synthetic samples; each costs a fit (4,096 values: 3 to 7 ms on one core).
        seed: Of the run.
        backend: Where the fits are computed, as in :func:`hessrmt.capacity.powerlaw.fit_all`.

    Returns:
        The share of synthetic samples whose distance is not below the fit's; NaN for a failed fit.

    Raises:
        CapacityError: If ``samples`` is not positive, or the fit is one of other values.
    """
    if samples < 1:
        raise CapacityError(f"{samples} synthetic samples; give 1 or more, 1,000 for p to 0.016")
    ordered = usable(values, fitted.rule).values
    if len(ordered) != fitted.n:
        raise CapacityError(
            f"a fit of {fitted.n} values, given with {len(ordered)}; give the fitted values"
        )
    if not fitted:
        return math.nan
    generator = rng.stream(seed, "powerlaw", "bootstrap")
    body = ordered[: np.searchsorted(ordered, fitted.x_min, side="left")]
    step = max(_TOGETHER // len(ordered), 1)
    distances = []
    for begin in range(0, samples, step):
        drawn = [_synthetic(fitted, body, generator) for _ in range(min(step, samples - begin))]
        fits = fit_rule(drawn, fitted.rule, backend)
        distances += [one.ks_distance for one in fits if one]
    if not distances:
        return math.nan
    return float(np.mean(np.array(distances) >= fitted.ks_distance))


def _synthetic(
    fitted: PowerLawFit, body: Float64[np.ndarray, " m"], generator: np.random.Generator
) -> Float64[np.ndarray, " n"]:
    tail = generator.binomial(fitted.n, fitted.n_tail / fitted.n) if len(body) else fitted.n
    below = generator.choice(body, fitted.n - tail) if len(body) else body
    return np.concatenate([below, sample_law(fitted, tail, generator)])


def sample_law(
    fitted: PowerLawFit, n: int, generator: np.random.Generator
) -> Float64[np.ndarray, " n"]:
    """Independent values of a fitted law, by inversion.

    Args:
        fitted: With α, x_min and x_max.
        n: How many.
        generator: Source of randomness.

    Returns:
        (n,) in any order; what float64 cannot hold is its largest number.
    """
    slope, uniform = fitted.alpha - 1, generator.random(n)
    if math.isinf(fitted.x_max):
        exponent = -np.log1p(-uniform) / slope
        top = np.finfo(np.float64).max
    else:
        extent, top = math.log(fitted.x_max / fitted.x_min), fitted.x_max
        if abs(slope) * extent < 1e-12:
            exponent = uniform * extent
        else:
            rate, share = abs(slope), uniform if slope > 0 else 1 - uniform
            exponent = -np.log1p(share * math.expm1(-rate * extent)) / rate
            exponent = exponent if slope > 0 else extent - exponent
    with np.errstate(over="ignore"):
        return np.minimum(fitted.x_min * np.exp(exponent), top)
