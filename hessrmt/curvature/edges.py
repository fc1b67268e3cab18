"""Extreme eigenvalues with a bound each, and eigenvectors, of a matrix known through products.

For a unit vector x and any θ some eigenvalue of a symmetric H lies within ‖Hx - θx‖ of θ (Parlett
1998, §4.5). Residuals come from products with the vectors that were found, not from the iteration;
what rounding may have done to these products is added.

A bound holds for *some* eigenvalue. Eigenvalues whose intervals are disjoint are different ones, so
the intervals hold at least as many eigenvalues of H as were found. That none was missed is not
proved: no iteration that sees H through products can prove it. A search from a second random
vector (``check_multiplicity``) finds further copies of a multiple eigenvalue as far as it can.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hessrmt.checks import require_whole
from hessrmt.curvature.dense import Tick
from hessrmt.curvature.krylov import (
    Pairs,
    Wanted,
    as_operator,
    extreme_pairs,
    round_off,
    vectors_needed,
)
from hessrmt.curvature.memory import gib, usable_memory
from hessrmt.curvature.operators import CurvatureOperator
from hessrmt.errors import ConfigError, DeviceError
from hessrmt.problems.problem import ordinary_mode

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64
    from torch import Tensor

    from hessrmt.curvature.operators import SymmetricOperator
    from hessrmt.problems.problem import Problem

    Levels = Float64[np.ndarray, " n"]

_BLOCK = 8
"""Vectors whose residuals are computed together."""

_FEWEST_SPARE = 16
"""Vectors beside the wanted ones below which restarts hardly advance."""


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Eigenvalues with a bound each.

    Attributes:
        values: (n,) float64, ascending.
        residuals: (n,) ‖Hx - λx‖ of each, x a unit vector.
        round_off: What rounding may add to a residual.
        dimension: P.
        norm: ‖H‖₂ as far as it was seen.
        converged: Whether all that was asked for and exists was found.
        check: ‖Hx - H'x‖/‖H‖₂ for the eigenvalue of largest magnitude and another way of
            differentiating; NaN where there is none.
        products: Products with H that it took.
    """

    values: Levels
    residuals: Levels
    round_off: float
    dimension: int
    norm: float
    converged: bool = True
    check: float = float("nan")
    products: int = 0

    def __len__(self) -> int:
        return len(self.values)

    @property
    def bounds(self) -> Levels:
        """(n,) an eigenvalue of H lies within this distance of the value."""
        return self.residuals + self.round_off

    def to_dict(self) -> dict[str, Any]:
        """All numbers as plain values, e.g. for JSON; eigenvectors are left out.

        Returns:
            Name to value.
        """
        fields = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        plain = {k: v for k, v in fields.items() if isinstance(v, str | int | float)}
        arrays = {k: getattr(self, k).tolist() for k in ("values", "residuals", "bounds")}
        return {"found": len(self), **plain, **arrays}


@dataclass(frozen=True, kw_only=True)
class EdgeLevels(_Found):
    """Levels at the ends of a spectrum; those of the lower end come first.

    Attributes:
        n_lower: How many of the levels belong to the lower end.
        asked: What was asked for, in words.
        exhausted: Whether an end has no more levels that can be told from zero.
    """

    n_lower: int
    asked: str
    exhausted: bool = False

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
        marks = {
            "certified": self.certified,
            "resolved": self.is_resolved,
            "certain_spacings": self.certain_spacings,
        }
        counts = {name: int(np.count_nonzero(mark)) for name, mark in marks.items()}
        return super().to_dict() | counts | {"joint_bound": self.joint_bound}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Eigenpairs(_Found):
    """Some eigenvalues of a symmetric matrix and their eigenvectors.

    If not all have converged, there are fewer than were asked for.

    Attributes:
        vectors: (P, n) orthonormal columns, in the operator's precision and place.
        which: ``"LA"``, ``"SA"`` or ``"LM"``.
        unflatten: From a vector (P,) to parameter name and tensor; None where there are no names.
    """

    vectors: Tensor
    which: str
    unflatten: Callable[[Tensor], dict[str, Tensor]] | None = None

    def __repr__(self) -> str:
        shown = ", ".join(f"{value:.6g}" for value in self.values[:: max(1, len(self) - 1)])
        return (
            f"Eigenpairs({len(self)} {self.which} of {self.dimension:,}: {shown}; bounds up to "
            f"{self.bounds.max(initial=0.0):.1g}; {self.products:,} products"
            f"{'' if self.converged else '; not all converged'})"
        )

    def as_parameters(self, index: int) -> dict[str, Tensor]:
        """An eigenvector as one tensor for each parameter.

        Args:
            index: Of the eigenvalue in :attr:`values`.

        Returns:
            Parameter name to tensor of the parameter's shape.

        Raises:
            ConfigError: If the operator has no parameters, or there is no such pair.
        """
        if self.unflatten is None:
            raise ConfigError(
                "these eigenvectors belong to a matrix without named parameters; take eigsh of a "
                "problem or of its operator"
            )
        if not -len(self) <= index < len(self):
            raise ConfigError(f"there are {len(self)} eigenvectors, got index {index!r}")
        return self.unflatten(self.vectors[:, index])


@ordinary_mode()
def eigsh(
    operator: SymmetricOperator | Problem | tuple[Callable[[Tensor], Tensor], int],
    k: int = 6,
    which: str = "LA",
    *,
    tolerance: float = 1e-8,
    check_multiplicity: bool = False,
    seed: int = 0,
    memory: int | None = None,
    tick: Tick | None = None,
) -> Eigenpairs:
    """Some eigenvalues at one end of a symmetric matrix with their eigenvectors, by Lanczos.

    Source: thick restarts, Wu & Simon (2000).

    Args:
        operator: H: an operator; a problem, whose Hessian is then taken in float64 on the device
            that is there; or a pair (matvec, n) of a function from (n,) to H v, in float64.
        k: How many, at most n.
        which: ``"LA"`` for the largest, ``"SA"`` for the smallest, ``"LM"`` for those of largest
            magnitude.
        tolerance: Largest residual ‖Hx - λx‖ over ‖H‖₂; never below what rounding adds.
        check_multiplicity: Search once more from a fresh random vector, since an eigenvalue of
            higher multiplicity may have shown only one of its copies to the first. If False, this
            is done where n is at most 1,000 or the Krylov space is invariant.
        seed: Of the start vectors.
        memory: Bytes for the basis; what is free if None.
        tick: Told of progress: phase, steps done, steps in all.

    Returns:
        The pairs; zero eigenvalues are pairs like others.

    Raises:
        ConfigError: If k, which or the tolerance is out of range, or H is nothing of these.
        DeviceError: If the basis does not fit in memory.
        ConvergenceError: If none converged within 100 times the basis' size.
        ProblemError: If the matrix is not symmetric.
    """
    end = {"LA": "top", "SA": "bottom", "LM": "largest"}.get(which)
    if end is None:
        raise ConfigError(f"unknown end {which!r}; known are LA, SA and LM")
    matrix = as_operator(operator)
    require_whole(k=k)
    if k > matrix.dimension:
        raise ConfigError(f"k = {k:,} pairs are asked for, the matrix has {matrix.dimension:,}")
    wanted = check_request(matrix, tolerance=tolerance, **{end: k})
    _, vectors, common = _search(
        matrix,
        wanted,
        memory,
        tick,
        tolerance=tolerance,
        seed=seed,
        check_multiplicity=check_multiplicity,
        stop_at_zero=False,
    )
    # the sign of an eigenvector is free: its entry of largest magnitude is positive
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    return Eigenpairs(
        vectors=(vectors * largest.sign()).T.contiguous(),
        which=which,
        unflatten=getattr(matrix, "unflatten", None),
        **common,
    )


@ordinary_mode()
def extremal_eigenvalues(
    operator: SymmetricOperator | Problem | tuple[Callable[[Tensor], Tensor], int],
    top: int = 0,
    bottom: int = 0,
    largest: int = 0,
    *,
    tolerance: float = 1e-10,
    check_multiplicity: bool = True,
    seed: int = 0,
    memory: int | None = None,
    tick: Tick | None = None,
) -> EdgeLevels:
    """Extreme eigenvalues by thick-restart Lanczos, each with the bound of its own residual.

    An end stops at zero: the Hessian of a network has its largest eigenspace there, whose computed
    eigenvalues are round-off.

    Args:
        operator: H, as for :func:`eigsh`.
        top: How many of the largest eigenvalues.
        bottom: How many of the smallest.
        largest: How many of the largest magnitude instead.
        tolerance: Largest residual over ‖H‖₂; never below what rounding adds.
        check_multiplicity: As for :func:`eigsh`.
        seed: Of the start vectors.
        memory: Bytes for the basis; what is free if None.
        tick: Told of progress.

    Returns:
        The eigenvalues; fewer than asked for where an end is exhausted. Raises ConvergenceError if
        none converged within 100 times the basis' size; ConfigError and DeviceError as
        :func:`check_request` and :func:`plan_width`.
    """
    matrix = as_operator(operator)
    wanted = check_request(matrix, top, bottom, largest, tolerance)
    found, _, common = _search(
        matrix,
        wanted,
        memory,
        tick,
        tolerance=tolerance,
        seed=seed,
        check_multiplicity=check_multiplicity,
    )
    return EdgeLevels(
        n_lower=found.n_lower,
        asked=", ".join(f"{name} {count}" for name, count in wanted._asdict().items() if count),
        exhausted=found.exhausted,
        **common,
    )


edge_levels = extremal_eigenvalues
"""The former name."""


def _search(
    operator: Any, wanted: Wanted, memory: int | None, tick: Tick | None, **options: Any
) -> tuple[Pairs, Tensor, dict[str, Any]]:
    """Ritz pairs, their unit vectors as rows, and what every result says of them."""
    width = plan_width(operator, wanted.levels, memory)
    found = extreme_pairs(operator, wanted, width=width, tick=tick, **options)
    vectors = found.vectors / found.vectors.norm(dim=1, keepdim=True)
    leading = int(np.argmax(np.abs(found.values))) if len(vectors) else -1
    residuals, check, image = np.empty(len(vectors)), float("nan"), None
    theta = torch.from_numpy(found.values).to(vectors)
    for first in range(0, len(vectors), _BLOCK):
        part = slice(first, first + _BLOCK)
        products = operator(vectors[part])
        rest = products - theta[part, None] * vectors[part]
        residuals[part] = rest.norm(dim=1).to(torch.float64).cpu().numpy()
        if first <= leading < first + _BLOCK:
            image = products[leading - first]
        if tick:
            tick("residuals", min(first + _BLOCK, len(vectors)), len(vectors))
    rounding = round_off(found.norm, operator.dimension, operator.dtype)
    if isinstance(operator, CurvatureOperator) and len(vectors):
        measured = operator.rounding()
        rounding = max(rounding, measured)
        check = operator.agreement(found.norm, vectors[leading], image, measured)
        rounding = max(rounding, check * found.norm)
    common = {
        "values": found.values,
        "residuals": residuals,
        "round_off": rounding,
        "dimension": operator.dimension,
        "norm": found.norm,
        "converged": found.converged,
        "check": check,
        "products": found.products + len(residuals),
    }
    return found, vectors, common


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
    operator: SymmetricOperator,
    top: int = 0,
    bottom: int = 0,
    largest: int = 0,
    tolerance: float = 1e-10,
) -> Wanted:
    """Refuse levels that cannot be asked for, before anything is computed.

    Args:
        operator: H.
        top: As for :func:`extremal_eigenvalues`.
        bottom: Likewise.
        largest: Likewise.
        tolerance: Likewise.

    Returns:
        The request.

    Raises:
        ConfigError: If nothing, or more than P levels are asked for, or a number is out of range.
    """
    require_whole(0, top=top, bottom=bottom, largest=largest)
    if not isinstance(tolerance, Real) or not 0 < tolerance < 1:
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
    return wanted
