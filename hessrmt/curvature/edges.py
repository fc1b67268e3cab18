"""Extreme eigenvalues with a bound each, of a matrix that is only known through products.

For a unit vector x and any θ some eigenvalue of a symmetric H lies within ‖Hx - θx‖ of θ (Parlett
1998, §4.5). Residuals come from products with the vectors that were found, not from the iteration;
what rounding may have done to these products is added.

A bound holds for *some* eigenvalue. Levels whose intervals are disjoint belong to different
eigenvalues, so the intervals hold at least as many eigenvalues as levels. That none was missed is
not proved: no iteration that sees H through products can prove it. A search from a second random
vector finds further copies of a multiple level as far as it can.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hessrmt.curvature.lanczos import Wanted, extreme_pairs, round_off, vectors_needed
from hessrmt.curvature.operator import CurvatureOperator
from hessrmt.curvature.plan import gib, usable_memory
from hessrmt.errors import ConfigError, DeviceError
from hessrmt.problems.problem import Problem, ordinary_mode

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64

    from hessrmt.curvature.operator import SymmetricOperator

    Levels = Float64[np.ndarray, " n"]

Tick = Callable[[str, int, int], None]

_BLOCK = 8
"""Vectors whose residuals are computed together."""

_FEWEST_SPARE = 16
"""Vectors beside the wanted ones below which restarts hardly advance."""


@dataclass(frozen=True)
class EdgeLevels:
    """Levels at the ends of a spectrum.

    Attributes:
        values: (n,) float64, ascending; those of the lower end first.
        residuals: (n,) ‖Hx - λx‖ of each, x a unit vector.
        round_off: What rounding may add to a residual.
        n_lower: How many of the levels belong to the lower end.
        dimension: P.
        norm: ‖H‖₂ as far as it was seen.
        asked: What was asked for, in words.
        exhausted: Whether an end has no more levels that can be told from zero.
        converged: Whether all that was asked for and exists was found.
        check: ‖Hx - H'x‖/‖H‖₂ for the level of largest magnitude and another way of
            differentiating; NaN where there is none.
        products: Products with H that it took.
    """

    values: Levels
    residuals: Levels
    round_off: float
    n_lower: int
    dimension: int
    norm: float
    asked: str
    exhausted: bool = False
    converged: bool = True
    check: float = float("nan")
    products: int = 0

    def __len__(self) -> int:
        return len(self.values)

    @property
    def bounds(self) -> Levels:
        """(n,) an eigenvalue of H lies within this distance of the level."""
        return self.residuals + self.round_off

    @property
    def joint_bound(self) -> float:
        """So close n eigenvalues of H, counted with multiplicity, lie to the n levels.

        The Frobenius norm of all residuals (Kahan's theorem, Parlett 1998, §11.5), with round-off.
        """
        return float(np.linalg.norm(self.bounds)) if len(self) else 0.0

    @property
    def certified(self) -> Bool[np.ndarray, " n"]:
        """(n,) whether the level is certainly not zero."""
        return np.abs(self.values) > self.bounds

    @property
    def certain_spacings(self) -> Bool[np.ndarray, " n-1"]:
        """(n - 1,) whether two consecutive levels of one end have disjoint intervals."""
        if len(self) < 2:
            return np.zeros(0, dtype=bool)
        apart = np.diff(self.values) > self.bounds[1:] + self.bounds[:-1]
        if 0 < self.n_lower < len(self):
            apart[self.n_lower - 1] = False  # what lies between the ends is unknown
        return apart

    @property
    def is_resolved(self) -> Bool[np.ndarray, " n"]:
        """(n,) whether a level is certified and its interval meets that of no neighbour."""
        clear = self.certified.copy()
        meet = np.diff(self.values) <= self.bounds[1:] + self.bounds[:-1]
        clear[:-1] &= ~meet
        clear[1:] &= ~meet
        return clear

    @property
    def resolved(self) -> Levels:
        """The levels of :attr:`is_resolved`, ascending."""
        return self.values[self.is_resolved]

    def runs(self, smallest: int = 3) -> tuple[Levels, ...]:
        """Stretches of resolved levels with nothing unresolved in between, for level statistics.

        Args:
            smallest: Levels below which a stretch is left out; three have one ratio.

        Returns:
            Ascending arrays, which the functions of ``hessrmt.levels`` take as so many spectra.
        """
        clear, apart = self.is_resolved, self.certain_spacings
        edges = np.flatnonzero(~(apart & clear[1:] & clear[:-1])) + 1
        pieces = np.split(self.values, edges)
        kept = np.split(clear, edges)
        return tuple(
            piece
            for piece, keep in zip(pieces, kept, strict=True)
            if len(piece) >= smallest and keep.all()
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, e.g. for JSON.

        Returns:
            Name to value.
        """
        return {
            "asked": self.asked,
            "found": len(self),
            "n_lower": self.n_lower,
            "values": self.values.tolist(),
            "residuals": self.residuals.tolist(),
            "bounds": self.bounds.tolist(),
            "round_off": self.round_off,
            "joint_bound": self.joint_bound,
            "certified": int(np.count_nonzero(self.certified)),
            "resolved": int(np.count_nonzero(self.is_resolved)),
            "certain_spacings": int(np.count_nonzero(self.certain_spacings)),
            "norm": self.norm,
            "exhausted": self.exhausted,
            "converged": self.converged,
            "check": self.check,
            "products": self.products,
        }


@ordinary_mode()
def edge_levels(
    operator: SymmetricOperator | Problem,
    top: int = 0,
    bottom: int = 0,
    largest: int = 0,
    *,
    tolerance: float = 1e-10,
    seed: int = 0,
    memory: int | None = None,
    tick: Tick | None = None,
) -> EdgeLevels:
    """Extreme eigenvalues by thick-restart Lanczos, each with the bound of its own residual.

    An end stops at zero: the Hessian of a network has its largest eigenspace there, whose computed
    eigenvalues are round-off.

    Args:
        operator: H, e.g. a :class:`~hessrmt.curvature.operator.CurvatureOperator`; or a problem,
            whose Hessian is then taken in float64 on the device that is there.
        top: How many of the largest levels.
        bottom: How many of the smallest.
        largest: How many of the largest magnitude instead.
        tolerance: Largest residual over ‖H‖₂; never below what rounding adds.
        seed: Of the start vectors.
        memory: Bytes for the basis; what is free if None.
        tick: Told of progress.

    Returns:
        The levels; fewer than asked for where an end is exhausted. Raises ConvergenceError if none
        converged within 100 times the basis' size; ConfigError and DeviceError as
        :func:`check_request` and :func:`plan_width`.
    """
    if isinstance(operator, Problem):
        operator = CurvatureOperator.of(operator)
    wanted = check_request(operator, top, bottom, largest, tolerance)
    width = plan_width(operator, wanted.levels, memory)
    found = extreme_pairs(operator, wanted, width=width, tolerance=tolerance, seed=seed, tick=tick)
    residuals = np.empty(len(found.values))
    theta = torch.from_numpy(found.values).to(found.vectors)
    for first in range(0, len(residuals), _BLOCK):
        part = slice(first, first + _BLOCK)
        block = found.vectors[part]
        block = block / block.norm(dim=1, keepdim=True)
        rest = operator(block) - theta[part, None] * block
        residuals[part] = rest.norm(dim=1).to(torch.float64).cpu().numpy()
        if tick:
            tick("residuals", min(first + _BLOCK, len(residuals)), len(residuals))
    check = float("nan")
    agreement = getattr(operator, "agreement", None)
    if agreement is not None and len(residuals):
        top_vector = found.vectors[int(np.argmax(np.abs(found.values)))]
        check = agreement(found.norm, top_vector / top_vector.norm())
    return EdgeLevels(
        values=found.values,
        residuals=residuals,
        round_off=round_off(found.norm, operator.dimension, operator.dtype),
        n_lower=found.n_lower,
        dimension=operator.dimension,
        norm=found.norm,
        asked=", ".join(f"{name} {count}" for name, count in wanted._asdict().items() if count),
        exhausted=found.exhausted,
        converged=found.converged,
        check=check,
        products=found.products + len(residuals),
    )


def plan_width(operator: SymmetricOperator, count: int, memory: int | None = None) -> int:
    """Vectors of the basis, or a refusal before anything is computed.

    Args:
        operator: H.
        count: Levels that are wanted.
        memory: Bytes; what is free on the operator's device if None, no limit if that is unknown.

    Returns:
        As many as pay, or as fit.

    Raises:
        DeviceError: If not even a few more than the levels fit.
    """
    size, itemsize = operator.dimension, operator.dtype.itemsize
    best = vectors_needed(count, size)
    backend: Any = getattr(operator, "backend", None)
    if memory is None and backend is None:
        return best
    usable = memory if memory is not None else usable_memory(backend)
    each = itemsize * size

    def needed(width: int) -> int:
        # basis, a few vectors of work, T with its eigenvectors and LAPACK's workspace
        return each * (width + 8 + _BLOCK) + 8 * 5 * width**2

    least = vectors_needed(count, size, _FEWEST_SPARE)
    if needed(least) > usable:
        fits = max(0, usable // each - _FEWEST_SPARE - 8 - _BLOCK)
        raise DeviceError(
            f"{count:,} levels need a basis of {least:,} vectors of {size:,} numbers, "
            f"{gib(needed(least))}, and there are {gib(usable)}; about {fits:,} levels fit. Ask "
            "for fewer, take --dtype float32 (half of it), or a device with more memory"
        )
    while needed(best) > usable:
        best = max(least, int(0.9 * best))
    return best


def check_request(
    operator: SymmetricOperator, top: int, bottom: int, largest: int, tolerance: float = 1e-10
) -> Wanted:
    """Refuse levels that cannot be asked for, before anything is computed.

    Args:
        operator: H.
        top: As for :func:`edge_levels`.
        bottom: Likewise.
        largest: Likewise.
        tolerance: Likewise.

    Returns:
        The request.

    Raises:
        ConfigError: If nothing, or more than P levels are asked for, or a number is out of range.
    """
    for name, value in (("top", top), ("bottom", bottom), ("largest", largest)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
            raise ConfigError(f"{name} must be a whole number from 0 on, got {value!r}")
    if not 0 < tolerance < 1:
        raise ConfigError(f"the tolerance must lie between 0 and 1, got {tolerance!r}")
    wanted = Wanted(int(top), int(bottom), int(largest))
    if largest and (top or bottom):
        raise ConfigError("largest magnitudes already are of both ends; leave out top and bottom")
    if not wanted.levels:
        raise ConfigError("no level is asked for; give top, bottom or largest")
    if wanted.levels > operator.dimension:
        raise ConfigError(
            f"{wanted.levels:,} levels are asked for, the matrix has {operator.dimension:,}; "
            "hessrmt spectrum computes all of them"
        )
    plan_width(operator, wanted.levels)
    return wanted
