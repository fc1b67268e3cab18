"""SGD's iterates and their averages near a minimum: exact moments, Theorem 8.1, and sampled.

On L(w) = ½ Σ λ_i w_i² with gradients that carry independent normal noise of variance σ²/B,

    w_n = w_{n-1} - α_i (λ_i w_{n-1} + noise),   r = 1 - α_i λ_i,

each coordinate is an AR(1) process. With c_m = 1 + r + ... + r^{m-1}, all noise that reaches the
average of the last T = n - b of n iterates is

    Var w_n   = (α²σ²/B) Σ_{m<n} r^{2m},
    Var w_avg = (α²σ²/BT²) (Σ_{m≤T} c_m² + c_T² Σ_{1≤l≤b} r^{2l}),   E w_avg = w_0 r^{b+1} c_T/T.

Steps A·∇L with a matrix A that commutes with the Hessian are the case of one α_i for each
eigenvalue; A ∝ H⁻¹ has the same r everywhere. For n → ∞ the average of all iterates has the
variance σ²/(Bnλ²) whatever the α_i: averaging reaches what H⁻¹ would, without knowing it.

**Theorem 8.1 as printed** bounds ‖w_n‖ by √(Σ w_{0,i}² e^{-2nαλ_i} + P(ασ²/B)⟨1/(λ(2-αλ))⟩) and
‖w_avg‖ by √(Σ w_{0,i}²/(λ_i²n²α²) + (Pασ²/Bn)⟨λ⁻²⟩), up to t with a probability of at least
1 - 2 exp(-ct²). The variance of the average has a factor α too much: it should be (Pσ²/Bn)⟨λ⁻²⟩,
and for small learning rates the printed radius is too small, by √α where noise dominates.

**With the exact moments the theorem holds**, and c is known: ‖w‖ is a function of normal numbers
that changes at most √v as fast as they do, v the largest variance, so that with R² = E‖w‖²

    P(‖w‖ - R ≥ t) ≤ exp(-t²/2v)

(Boucheron, Lugosi and Massart 2013, theorem 5.6; E‖w‖ ≤ R).

Source: Baskerville, Granziol and Keating 2022, Theorem 8.1, equation 18, and below equation 21.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hessrmt import rng
from hessrmt.checks import one_of, real, real_array, whole
from hessrmt.errors import DataError
from hessrmt.results import Result

if TYPE_CHECKING:
    from jaxtyping import Float64
    from numpy.typing import ArrayLike

    Row = Float64[np.ndarray, " P"]
    Points = Float64[np.ndarray, "samples P"]

CONVENTIONS = ("exact", "paper")
"""Of Theorem 8.1: the moments of the AR(1) process, or as printed."""


@dataclass(frozen=True)
class IterateMoments(Result, axes={"coordinate": "mean variance"}, derived="squared_norm"):
    """Law of one point of a run on a quadratic: independent normal coordinates.

    Attributes:
        mean: (P,) of each coordinate.
        variance: (P,) of each coordinate.
    """

    mean: Row
    variance: Row

    @property
    def squared_norm(self) -> float:
        """E‖w‖²."""
        return float((self.mean**2 + self.variance).sum())

    def loss(self, eigenvalues: ArrayLike) -> float:
        """E ½ Σ λ_i w_i².

        Args:
            eigenvalues: (P,) λ.

        Returns:
            The expected loss above the minimum.
        """
        values = real_array("eigenvalues", eigenvalues, dimensions=1)
        return float((values * (self.mean**2 + self.variance)).sum() / 2)

    def excess(self, probability: float) -> float:
        """How far ‖w‖ lies above √(E‖w‖²) at most, up to a probability.

        Args:
            probability: Of lying further, above 0 and at most 1.

        Returns:
            t with exp(-t²/2v) = the probability, v the largest variance.
        """
        chance = real("probability", probability, above=0, most=1)
        return math.sqrt(2 * float(self.variance.max()) * -math.log(chance))


class Radii(NamedTuple):
    """What Theorem 8.1 compares ‖w‖ with.

    Attributes:
        last: Of the last iterate.
        average: Of the average of all iterates.
    """

    last: float
    average: float


class SampledIterates(NamedTuple):
    """Points of independent runs.

    Attributes:
        last: (samples, P) last iterates.
        average: (samples, P) averages of the iterates from ``begin`` on.
        average_of_all: (samples, P) averages of all iterates.
    """

    last: Points
    average: Points
    average_of_all: Points


def iterate_moments(
    eigenvalues: ArrayLike,
    start: ArrayLike,
    rates: ArrayLike,
    steps: int,
    noise: float,
    *,
    batch: int = 1,
    begin: int | None = None,
) -> IterateMoments:
    """Mean and variance of an iterate of SGD on a quadratic, or of an average, exactly.

    Sums of n terms that are all positive for αλ ≤ 1; nothing is expanded in αλ, and λ may be zero
    or negative.

    Args:
        eigenvalues: (P,) λ, the Hessian's.
        start: (P,) w_0 along the eigenvectors.
        rates: Learning rate α, or (P,) one for each eigenvalue.
        steps: n.
        noise: σ, standard deviation of a component of one sample's gradient.
        batch: B, samples of a step.
        begin: The average of the iterates b + 1 ... n; 0 takes all, None the last iterate alone.

    Returns:
        The moments along each eigenvector.

    Raises:
        DataError: If shapes don't fit, nothing is left to average, or the iterates overflow.
    """
    values, at, alpha, n, variance = _arguments(eigenvalues, start, rates, steps, noise, batch)
    first = n - 1 if begin is None else whole("begin", begin)
    if first >= n:
        raise DataError(f"begin {first} leaves none of {n} iterates to average")
    r = 1 - alpha * values
    power, geometric, squares, before = (np.zeros_like(r) for _ in range(4))
    power += 1
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(n - first):  # c_m = 1 + r c_{m-1}
            geometric = 1 + r * geometric
            squares += geometric**2
        for _ in range(first):
            power *= r
            before += power**2
        mean = at * power * r * geometric / (n - first)
        found = alpha**2 * variance * (squares + geometric**2 * before) / (n - first) ** 2
    if not (np.isfinite(mean).all() and np.isfinite(found).all()):
        worst = float((alpha * values).max())
        raise DataError(f"the iterates diverge: αλ must be below 2, the largest is {worst:g}")
    return IterateMoments(mean, found)


def theorem_8_1(
    eigenvalues: ArrayLike,
    start: ArrayLike,
    lr: float,
    steps: int,
    noise: float,
    *,
    batch: int = 1,
    convention: str = "exact",
) -> Radii:
    """The square roots of Theorem 8.1: √(E‖w‖²) of the last iterate and of the average.

    Args:
        eigenvalues: (P,) λ of the Hessian; for ``"paper"`` all positive with αλ < 2.
        start: (P,) w_0 along the eigenvectors.
        lr: Learning rate α.
        steps: n.
        noise: σ, standard deviation of a component of one sample's gradient.
        batch: B, samples of a step.
        convention: ``"exact"``, of the AR(1) process, or ``"paper"``, equation 18 as printed: a
            stationary last iterate, and a variance of the average that has a factor α too much.

    Returns:
        The two radii.

    Raises:
        DataError: If an argument is out of range.

    Source: Baskerville, Granziol and Keating 2022, Theorem 8.1, equation 18.
    """
    one_of("convention", convention, CONVENTIONS)
    given = eigenvalues, start, real("lr", lr, above=0), steps, noise
    values, at, alpha, n, variance = _arguments(*given, batch)
    if convention == "exact":
        points = (iterate_moments(*given, batch=batch, begin=begin) for begin in (None, 0))
        return Radii(*(math.sqrt(point.squared_norm) for point in points))
    scaled = alpha * values
    if values.min() <= 0 or scaled.max() >= 2:
        raise DataError(
            f"equation 18 has 1/λ and 1/(2 - αλ): λ must be positive and αλ below 2, but they go "
            f"from {values.min():g} and to {scaled.max():g}"
        )
    last = (at**2 * np.exp(-2 * n * scaled)).sum()
    last += (alpha * variance / (values * (2 - scaled))).sum()
    average = (at**2 / (n * scaled) ** 2).sum() + (alpha * variance / (n * values**2)).sum()
    return Radii(math.sqrt(last), math.sqrt(average))


def sampled_iterates(
    gradient: Callable[[Points], Points],
    start: ArrayLike,
    rates: ArrayLike | Callable[[Points], ArrayLike],
    steps: int,
    noise: float,
    *,
    batch: int = 1,
    begin: int = 0,
    samples: int = 1000,
    seed: int = 0,
) -> SampledIterates:
    """Independent runs of SGD on any loss, w ← w - α(w)·(∇L + noise), all at the same time.

    Args:
        gradient: (samples, P) points to the gradient at each.
        start: (P,) w_0 of every run.
        rates: Learning rate, (P,) one for each coordinate, or a function of the points that gives
            what the gradient at each is multiplied with, coordinate by coordinate.
        steps: n.
        noise: σ, standard deviation of a component of one sample's gradient.
        batch: B, samples of a step.
        begin: Iterates left out of ``average``.
        samples: Runs.
        seed: Of the noise.

    Returns:
        Last iterates and averages.

    Raises:
        DataError: If an argument is out of range, or the iterates diverge.
    """
    at = real_array("start", start, dimensions=1)
    n, first = whole("steps", steps, 1), whole("begin", begin)
    if first >= n:
        raise DataError(f"begin {first} leaves none of {n} iterates to average")
    sigma = real("noise", noise, least=0) / math.sqrt(whole("batch", batch, 1))
    fixed = np.zeros(()) if callable(rates) else real_array("rates", rates, least=0)
    if fixed.shape not in {(), at.shape}:
        raise DataError(f"rates must be one number or {at.shape}, got shape {fixed.shape}")
    w = np.tile(at, (whole("samples", samples, 1), 1))
    before, total = np.zeros_like(w), np.zeros_like(w)
    draw = rng.stream(whole("seed", seed), "iterates")
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(n):
            push = gradient(w) + sigma * draw.normal(size=w.shape)
            w = w - (np.asarray(rates(w)) if callable(rates) else fixed) * push
            if not np.isfinite(w).all():
                raise DataError(f"the iterates diverge at step {step + 1}; take a smaller rate")
            if step < first:
                before += w
            else:
                total += w
    return SampledIterates(w, total / (n - first), (before + total) / n)


def _arguments(
    eigenvalues: ArrayLike,
    start: ArrayLike,
    rates: ArrayLike,
    steps: int,
    noise: float,
    batch: int,
) -> tuple[Row, Row, Row, int, float]:
    """λ, w_0, α of each coordinate, n and σ²/B."""
    values = real_array("eigenvalues", eigenvalues, dimensions=1)
    at = real_array("start", start, dimensions=1)
    alpha = real_array("rates", rates, least=0)
    if at.shape != values.shape or alpha.shape not in {(), values.shape}:
        raise DataError(
            f"{len(values)} eigenvalues need a start of as many coordinates and one rate or as "
            f"many, got shapes {at.shape} and {alpha.shape}"
        )
    variance = real("noise", noise, least=0) ** 2 / whole("batch", batch, 1)
    alpha = np.broadcast_to(alpha, values.shape)
    return values, at, alpha, whole("steps", steps, 1), variance
