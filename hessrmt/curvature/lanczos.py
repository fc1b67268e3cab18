"""Extreme eigenvalues with a bound each, and eigenvectors, of a matrix known by its products.

**Lanczos with full reorthogonalisation.** Every new vector is made orthogonal to all earlier ones,
a second time wherever that took away most of it ("twice is enough": Parlett 1998, §6.9), so that no
spurious copies of eigenvalues appear. Thick restarts are those of Wu and Simon 2000.

**Bounds.** For a unit vector x and any θ some eigenvalue of a symmetric H lies within ‖Hx - θx‖ of
θ (Parlett 1998, §4.5). Residuals come from products with the vectors that were found, not from the
iteration; what rounding may have done to these products is added. A bound holds for *some*
eigenvalue. Eigenvalues whose intervals are disjoint are different ones, so the intervals hold at
least as many eigenvalues of H as were found. That none was missed is not proved: no iteration that
sees H through products can prove it. A search from a second random vector (``check_multiplicity``)
finds further copies of a multiple eigenvalue as far as it can.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from hessrmt.arrays import fetched
from hessrmt.checks import one_of, require_whole
from hessrmt.curvature.dense import gib, usable_memory
from hessrmt.curvature.differences import DIFFERENTIATION, inexact_first
from hessrmt.curvature.foreign import as_operator
from hessrmt.curvature.krylov import (
    KEEPS,
    PATIENCE,
    norm_seen,
    require_symmetric_products,
    rotate,
)
from hessrmt.curvature.operators import CurvatureOperator
from hessrmt.curvature.rounding import gaussian, round_off
from hessrmt.curvature.windows import (
    Window,
    check_window,
    find,
)
from hessrmt.errors import ConfigError, ConvergenceError, DeviceError
from hessrmt.problems.differentiation import ordinary_mode
from hessrmt.progress import Tick, silent
from hessrmt.results import Result

if TYPE_CHECKING:
    from jaxtyping import Bool
    from torch import Tensor

    from hessrmt.arrays import Levels, Vector, Vectors
    from hessrmt.curvature.linear import Operator


_SECOND_LOOK = 24
"""Steps from a fresh random vector that look for eigenvalues which the first could not see. s steps
miss one that lies above the others by a share ε of the spectrum's width with a probability below
1.65 √n exp(-√ε (2s - 1)) (Kuczyński and Woźniakowski 1992): for
n = 10⁶ and ε = 0.1, 0.06 %."""

_SMALL_MATRIX = 1000
"""Rows up to which this second look costs little and is not left out."""

_TESTED_EACH_STEP = 48
"""Vectors up to which the eigenvalues of T cost less than a product; beyond, they are computed
whenever there are an eighth more vectors."""


_SKEW = 1e-3
"""Share of the norm beyond which a matrix is called not symmetric, however loose a tolerance."""

_SMALL_BASIS = 2**24
"""Levels in a basis (128 MiB) up to which it gets more vectors, so that it restarts less often."""


class Parted(NamedTuple):
    """A vector w = Vᵀh + rest, the rest orthogonal to the rows of V.

    Attributes:
        size: ‖w‖.
        inner: (j,) h, in float64.
        rest: (P,).
        length: ‖rest‖.
    """

    size: float
    inner: np.ndarray
    rest: Vector
    length: float


def orthogonalise(vectors: Sequence[Vector], bases: Sequence[Vectors]) -> list[Parted]:
    """Take everything that lies in the span of an orthonormal basis out of a vector.

    Several of them share what has to be waited for: once, where one pass is enough.

    Args:
        vectors: Each (P,).
        bases: For each (j, P) orthonormal rows.

    Returns:
        For each its parts.
    """
    rests, asked = zip(*map(_one_pass, vectors, bases), strict=True)
    found = []
    for first, basis, numbers in zip(rests, bases, fetched(*asked), strict=True):
        rest, inner, (size, before, after) = first, numbers[:-3], map(float, numbers[-3:])
        for _ in range(2):
            if not 0 < after < KEEPS * before:
                break
            step = basis @ rest
            rest = rest - step @ basis
            before, (more, last) = after, fetched(step, rest.norm())
            inner, after = inner + more, float(last)
        found.append(Parted(size, inner, rest, after))
    return found


def _one_pass(w: Vector, basis: Vectors) -> tuple[Vector, Tensor]:
    """What is left after one pass; and coefficients, ‖w‖, and lengths before and after it."""
    inner = w.new_zeros(len(basis))
    # a Lanczos vector lies mostly along the last two: without them one pass usually is enough
    near = basis[-2:]
    inner[-2:] = near @ w
    rest = w - inner[-2:] @ near
    before = rest.norm()
    step = basis @ rest
    rest = rest - step @ basis
    inner += step
    return rest, torch.cat([inner, w[None].norm(dim=1), torch.stack([before, rest.norm()])])


class _Space:
    """A Krylov space: orthonormal rows V, T = VᵀHV, and the next direction behind the last row."""

    def __init__(self, operator: Operator, start: Vector, width: int, slack: float = 0.0) -> None:
        self.operator = operator
        self.size = len(start)
        self.basis = start.new_empty(min(width + 1, self.size), self.size)
        self.basis[0] = start / start.norm()
        self.small = np.zeros((width, width))
        self.have, self.products, self.beta, self.norm = 0, 0, 0.0, 0.0
        self.coupling = np.zeros(0)  # of the next direction to all rows, known by symmetry
        self.slack = max(slack, torch.finfo(start.dtype).eps ** 0.5)

    def take(self, w: Vector, parted: Parted) -> None:
        """Take H times the next direction; β = 0 says that the space is invariant."""
        j = self.have
        self.products += 1
        self.norm = norm_seen(w[None], parted.size, self.norm)
        column, beta = parted.inner, parted.length
        apart = np.abs(column[:j] - self.coupling)
        where, gap = np.append(apart.argsort()[-1:], j), float(apart.max(initial=0.0))
        require_symmetric_products(self.operator, self.basis, where, gap, self.norm, self.slack)
        column[:j] = self.coupling
        self.small[: j + 1, j] = self.small[j, : j + 1] = column
        self.have = j + 1
        least = max(round_off(self.norm, self.size, w.dtype), self.operator.product_error)
        invariant = self.have == self.size or beta <= least
        self.beta = 0.0 if invariant else beta
        self.coupling = np.append(np.zeros(j), self.beta)
        if not invariant:
            self.basis[self.have] = parted.rest / beta

    def turn_to(self, direction: Vector) -> None:
        """Go on in a direction that has nothing to do with the space."""
        for _ in range(2):
            (parted,) = orthogonalise([direction / direction.norm()], [self.basis[: self.have]])
            direction = parted.rest
        self.basis[self.have] = direction / direction.norm()
        self.beta, self.coupling = 0.0, np.zeros(self.have)

    def rotate(self, columns: Levels) -> None:
        """Replace the first rows of V by combinations of all of them, (have, k) coefficients."""
        rotate(self.basis, slice(0, self.have), columns)

    def restart(self, values: Levels, rotation: Levels, slack: float = 0.0) -> None:
        """Keep some Ritz pairs only, settled to `slack`; the next direction stays."""
        self.slack = max(self.slack, slack)
        following = self.basis[self.have].clone()
        self.rotate(rotation)
        self.coupling, self.have = self.beta * rotation[-1], len(values)
        self.basis[self.have] = following
        self.small[: self.have, : self.have] = np.diag(values)


def _advance(operator: Operator, spaces: Sequence[_Space]) -> None:
    """One step of several spaces together, which share what has to be waited for."""
    products = operator.unchecked(torch.stack([space.basis[space.have] for space in spaces]))
    rows = [space.basis[: space.have + 1] for space in spaces]
    parts = orthogonalise(list(products), rows)
    for space, product, parted in zip(spaces, products, parts, strict=True):
        space.take(product, parted)


def tridiagonal(
    operator: Operator, starts: Vectors, steps: int, tick: Callable[[int], None] | None = None
) -> list[tuple[Levels, Levels]]:
    """Lanczos from several vectors at once, which share the passes over the data.

    Args:
        operator: H.
        starts: (g, P) nonzero vectors.
        steps: m, at most P.
        tick: Told of the steps done.

    Returns:
        For each start the diagonal (m,) and off-diagonal (m - 1,) of VᵀHV; shorter if the Krylov
        space is invariant before.
    """
    spaces = [_Space(operator, start, steps) for start in starts]
    running = spaces
    for step in range(steps):
        _advance(operator, running)
        if tick:
            tick(step + 1)
        running = [space for space in running if space.beta]
        if not running:
            break
    found = [space.small[: space.have, : space.have] for space in spaces]
    return [(np.diag(small).copy(), np.diag(small, 1).copy()) for small in found]


class Wanted(NamedTuple):
    """Which eigenvalues are wanted.

    Attributes:
        top: How many of the largest.
        bottom: How many of the smallest.
        largest: How many of the largest magnitude, of both signs.
    """

    top: int = 0
    bottom: int = 0
    largest: int = 0

    @property
    def levels(self) -> int:
        """How many at most."""
        return sum(self)

    def ends(self, values: Levels) -> list[tuple[int, np.ndarray]]:
        """For each end how many are wanted, and the order in which ascending values come."""
        up = np.arange(len(values))  # equal values must not count for both ends
        orders = (up[::-1], up, np.argsort(-np.abs(values), kind="stable"))
        return [(count, order) for count, order in zip(self, orders, strict=True) if count]


def _extreme_pairs(
    operator: Operator,
    wanted: Wanted,
    width: int,
    tick: Tick,
    *,
    tolerance: float,
    seed: int,
    check_multiplicity: bool,
    stop_at_zero: bool = True,
) -> tuple[_Space, Levels, np.ndarray, bool, bool]:
    """Ritz values of the space's first rows, their places; whether zero was met, and all found."""
    size, levels = operator.dimension, wanted.levels
    fresh = (gaussian(size, operator, "lanczos", n, seed=seed) for n in itertools.count())
    limit, digits = PATIENCE * width, torch.finfo(operator.dtype).eps ** 0.5
    space = _Space(operator, next(fresh), width, min(tolerance, _SKEW))
    check_multiplicity |= levels > 1 and size <= _SMALL_MATRIX
    stop, tested = width, 0
    looked: Levels | None = None
    while True:
        operator.expect(max(2 * levels, space.products))
        _advance(operator, [space])
        have, products = space.have, space.products
        due = have >= min(stop, size) or products >= limit
        if looked is None and have >= levels:
            stride = 1 if have <= _TESTED_EACH_STEP else have // 8
            due = due or not space.beta or have - tested >= stride
        if not space.beta and have < size:
            space.turn_to(next(fresh))
        if products % 16 == 0:
            tick("products", have, stop)
        if not due:
            continue
        # by torch: its threads and NumPy's would wait for each other, busily
        tested, small = have, torch.from_numpy(space.small[:have, :have])
        values, rotation = (part.numpy() for part in torch.linalg.eigh(small))
        space.norm = max(space.norm, float(np.abs(values).max()))
        floor = max(round_off(space.norm, size, operator.dtype), operator.product_error)
        goal, zero = max(tolerance * space.norm, floor), floor if stop_at_zero else -1.0
        residuals = space.beta * np.abs(rotation[-1])
        settled, chosen, done = _settled(wanted, values, residuals, goal, zero, size)
        now = values[chosen]
        tick("extremal eigenvalues", len(now), levels)
        # an invariant space, up to rounding: some eigenvalue has more copies than it holds
        check_multiplicity |= space.beta <= min(goal, digits * space.norm)
        same = looked is not None and len(looked) == len(now)
        same = same and bool((np.abs(looked - now) <= goal).all())
        complete = have == size or (done and (same or not check_multiplicity))
        if complete or products >= limit:
            if not complete and not len(now):
                raise ConvergenceError(
                    f"no extreme eigenvalue has converged after {products:,} products; allow a "
                    "larger residual (tolerance), or more vectors (ask for more eigenvalues)"
                )
            space.rotate(rotation[:, chosen])
            return space, now, chosen, len(chosen) < len(settled), complete
        if done:
            looked = now
            space.restart(values[settled], rotation[:, settled], tolerance)
            space.turn_to(next(fresh))
            stop, tested = min(width, space.have + _SECOND_LOOK), space.have
        elif looked is not None or have >= width:
            looked, stop = None, width
            if have >= width:
                kept = _kept(wanted, values, min(levels + (have - levels) // 3, width - 2))
                space.restart(values[kept], rotation[:, kept])
                tested = space.have


def _settled(
    wanted: Wanted, values: Levels, residuals: Levels, goal: float, zero: float, size: int
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Positions of wanted Ritz pairs that converged, of those not zero, and if that is all."""
    found, done = set(), True
    for count, order in wanted.ends(values):
        for position in map(int, order[:count]):
            if residuals[position] > goal:
                done = False
                break
            found.add(position)
            if abs(values[position]) <= zero:
                break
        else:
            done &= len(order) >= min(count, size)
    settled = np.array(sorted(found), dtype=np.int64)
    return settled, settled[np.abs(values[settled]) > zero], done


def _kept(wanted: Wanted, values: Levels, keep: int) -> np.ndarray:
    """Positions of the wanted Ritz values and of some next to them, each end with its share."""
    shares = [(-(-keep * count // wanted.levels), order) for count, order in wanted.ends(values)]
    places = range(len(values))
    chosen = [order[place] for place in places for share, order in shares if place < share]
    return np.array(sorted(list(dict.fromkeys(chosen))[:keep]))


_BLOCK = 8
"""Vectors whose residuals are computed together."""

_FEWEST_SPARE = 16
"""Vectors beside the wanted ones below which restarts hardly advance."""


@dataclass(frozen=True, kw_only=True)
class _Found(
    Result,
    axes={"level": "values residuals bounds"},
    derived="found bounds not_computable",
    picture="certification.eigenvalues",
):
    """Eigenvalues with a bound each.

    Attributes:
        values: (n,) float64, ascending.
        residuals: (n,) ‖Hx - λx‖ of each, x a unit vector, with the truncation of that product
            where products are finite differences.
        round_off: What rounding may add to a residual.
        dimension: P.
        norm: ‖H‖₂ as far as it was seen.
        converged: Whether all that was asked for and exists was found.
        check: ‖Hx - H'x‖/‖H‖₂ for the eigenvalue of largest magnitude and another way of
            differentiating; NaN where there is none.
        products: Products with H that it took.
        products_by: ``"differentiation"``; or ``"finite-difference"``: then no product is exact,
            and their measured errors are in the bounds.
        window: Of all eigenvalues of a window what is known; None if a number was asked for.
    """

    values: Levels
    residuals: Levels
    round_off: float
    dimension: int
    norm: float
    converged: bool = True
    check: float = float("nan")
    products: int = 0
    products_by: str = DIFFERENTIATION
    window: Window | None = None

    def __len__(self) -> int:
        return len(self.values)

    def shown(self) -> dict[str, str]:
        """What its short text says."""
        return inexact_first(super().shown())

    @property
    def found(self) -> int:
        """How many."""
        return len(self)

    @property
    def not_computable(self) -> dict[str, str]:
        """Quantity that is NaN to the reason."""
        if not np.isnan(self.check):
            return {}
        only = "the matrix is known by its products alone: there is nothing to compare them with"
        return {"check": only if len(self) else "no eigenvalue was found"}

    @property
    def bounds(self) -> Levels:
        """(n,) an eigenvalue of H lies within this distance of the value."""
        return self.residuals + self.round_off


@dataclass(frozen=True, kw_only=True)
class EdgeLevels(_Found, derived="found bounds joint_bound not_computable"):
    """Levels at the ends of a spectrum; those of the lower end come first.

    Attributes:
        n_lower: How many of the levels belong to the lower end.
        asked: What was asked for, in words.
        exhausted: Whether an end has no more eigenvalues that can be told from zero.
    """

    n_lower: int
    asked: str
    exhausted: bool = False

    @property
    def joint_bound(self) -> float:
        """So close n eigenvalues of H, counted with multiplicity, lie to these n values.

        The Frobenius norm of all residuals (Kahan's theorem, Parlett 1998, §11.5), with round-off.
        """
        return float(np.linalg.norm(self.bounds))

    @property
    def certain_spacing(self) -> float:
        """A spacing in one of :meth:`runs` that is larger than this is certain."""
        if self.window is not None:
            return 2 * self.window.matched_bound
        return 2 * float(self.bounds.max(initial=0.0))

    @property
    def certified(self) -> Bool[np.ndarray, " n"]:
        """(n,) whether the level is certainly not zero."""
        return np.abs(self.values) > self.bounds

    @property
    def certain_spacings(self) -> Bool[np.ndarray, " n-1"]:
        """(n - 1,) whether two consecutive levels of one end have disjoint intervals."""
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

        A window's levels are counted with multiplicity, so those of its complete part are one
        stretch, also where neighbours cannot be told apart.

        Args:
            smallest: Levels below which a stretch is left out; three have one ratio.

        Returns:
            Ascending arrays, which the functions of ``hessrmt.levels`` take as so many spectra.
        """
        if self.window is not None:
            run = self.values[self.window.reaches(self.values)]
            return (run,) if len(run) >= smallest else ()
        clear, apart = self.is_resolved, self.certain_spacings
        edges = np.flatnonzero(~(apart & clear[1:] & clear[:-1])) + 1
        pieces = zip(np.split(self.values, edges), np.split(clear, edges), strict=True)
        return tuple(run for run, kept in pieces if len(run) >= smallest and kept.all())

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
        return super().to_dict() | counts


@dataclass(frozen=True, kw_only=True, eq=False)
class Eigenpairs(
    _Found,
    axes={"pair": "values residuals bounds", "parameter pair": "vectors"},
    omitted="vectors unflatten",
):
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
    operator: Any,
    k: int | None = None,
    which: str = "LA",
    *,
    window: tuple[float | None, float | None] | None = None,
    failure_probability: float = 1e-6,
    tolerance: float = 1e-8,
    check_multiplicity: bool = False,
    seed: int = 0,
    memory: int | None = None,
    tick: Tick | None = None,
) -> Eigenpairs:
    """Some eigenvalues at one end of a symmetric matrix with their eigenvectors, by Lanczos.

    Or all eigenvalues of a window, and from where on none was missed (``curvature/windows.py``).
    Sources: thick restarts, Wu and Simon 2000; completeness, van Dorsselaer, Hochstenbach and van
    der Vorst 2001, Kuczyński and Woźniakowski 1992.

    Args:
        operator: H: an operator; a problem, whose Hessian is then taken in float64 on the device
            that is there; a pair (matvec, n) of a function from (n,) to H v, in float64; or
            anything with ``shape`` and ``@``: an array, a tensor, a sparse matrix, a
            ``LinearOperator`` of scipy, an operator of curvlinops.
        k: How many, at most n; 6 if None and there is no window.
        which: ``"LA"`` for the largest, ``"SA"`` for the smallest, ``"LM"`` for those of largest
            magnitude.
        window: (low, high) instead, for all eigenvalues between them; None or infinite for an open
            side. It lies on one side of zero and off it: null directions can't be counted. It is
            searched from that end of the spectrum on, so all that lies beyond it is found too.
        failure_probability: That the window's completeness may fail with.
        tolerance: Largest residual ‖Hx - λx‖ over ‖H‖₂; never below what rounding adds.
        check_multiplicity: Search once more from a fresh random vector, since an eigenvalue of
            higher multiplicity may have shown only one of its copies to the first. If False, this
            is done where n is at most 1,000 or the Krylov space is invariant. In a window all
            copies are found.
        seed: Of the start vectors.
        memory: Bytes for the basis; what is free if None.
        tick: Told of progress: phase, steps done, steps in all.

    Returns:
        The pairs; zero eigenvalues are pairs like others. For a window none, if it is empty.

    Raises:
        ConfigError: If k, which, the window or the tolerance is out of range, the window holds zero
            or what rounding makes of it, or H is nothing of these.
        DeviceError: If the basis does not fit in memory.
        ConvergenceError: If none converged within 100 times the basis' size.
        ProblemError: If the matrix is not symmetric, or its entries are so large or small that
            their squares overflow or underflow.
    """
    ends = {"LA": "top", "SA": "bottom", "LM": "largest"}
    one_of("end", which, ends, error=ConfigError)
    matrix = as_operator(operator)
    if window is not None:
        if k is not None or which != "LA":
            raise ConfigError(
                "a window takes all eigenvalues of it, at the end that it reaches; leave out k and "
                "which"
            )
        bounds = check_window(window, failure_probability)
        _check_tolerance(tolerance)
        how = {"tolerance": tolerance, "seed": seed, "failure_probability": failure_probability}
        vectors, found = _window(matrix, bounds, memory, tick, **how)
        which = "LA" if bounds[0] > 0 else "SA"
    else:
        k = 6 if k is None else k
        require_whole(k=k)
        if k > matrix.dimension:
            raise ConfigError(f"k = {k:,} pairs are asked for, the matrix has {matrix.dimension:,}")
        wanted = check_request(matrix, tolerance=tolerance, **{ends[which]: k})
        options = {"tolerance": tolerance, "seed": seed, "check_multiplicity": check_multiplicity}
        vectors, found = _search(matrix, wanted, memory, tick, stop_at_zero=False, **options)
    # the sign of an eigenvector is free: its entry of largest magnitude is positive
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    return Eigenpairs(
        vectors=(vectors * largest.sign()).T.contiguous(),
        which=which,
        unflatten=getattr(matrix, "unflatten", None),
        **{item.name: getattr(found, item.name) for item in fields(_Found)},
    )


@ordinary_mode()
def extremal_eigenvalues(
    operator: Any,
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
    options = {"tolerance": tolerance, "seed": seed, "check_multiplicity": check_multiplicity}
    return _search(matrix, wanted, memory, tick, **options)[1]


@ordinary_mode()
def window_eigenvalues(
    operator: Any,
    window: tuple[float | None, float | None],
    *,
    failure_probability: float = 1e-6,
    tolerance: float = 1e-10,
    seed: int = 0,
    memory: int | None = None,
    tick: Tick | None = None,
) -> EdgeLevels:
    """All eigenvalues of a window, as :func:`eigsh` finds them, without the eigenvectors.

    Args:
        operator: H, as for :func:`eigsh`.
        window: Likewise.
        failure_probability: Likewise.
        tolerance: Likewise.
        seed: Likewise.
        memory: Likewise.
        tick: Likewise.

    Returns:
        The eigenvalues. Raises as :func:`eigsh`.
    """
    matrix, bounds = as_operator(operator), check_window(window, failure_probability)
    _check_tolerance(tolerance)
    how = {"tolerance": tolerance, "seed": seed, "failure_probability": failure_probability}
    return _window(matrix, bounds, memory, tick, **how)[1]


edge_levels = extremal_eigenvalues
"""The former name."""


def _search(
    operator: Any, wanted: Wanted, memory: int | None, tick: Tick | None, **options: Any
) -> tuple[Tensor, EdgeLevels]:
    """Unit Ritz vectors as rows, and all that is said of their values."""
    width, tick = plan_width(operator, wanted.levels, memory), tick or silent
    found = _extreme_pairs(operator, wanted, width, tick, **options)
    space, values, places, exhausted, converged = found
    # values ascend: those of the lower end come first
    below = values < 0 if wanted.largest else places < wanted.bottom
    n_lower = 0 if len(values) == operator.dimension else int(np.count_nonzero(below))
    vectors, norm = space.basis[: len(values)], space.norm
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    leading = int(np.argmax(np.abs(values))) if len(values) else -1
    residuals, check, image = np.empty(len(values)), float("nan"), None
    theta = torch.from_numpy(values).to(vectors)
    for first in range(0, len(vectors), _BLOCK):
        part = slice(first, first + _BLOCK)
        products = operator(vectors[part])
        rest = products - theta[part, None] * vectors[part]
        errors = rest.norm(dim=1) + operator.truncation(vectors[part])
        (residuals[part],) = fetched(errors)
        if first <= leading < first + _BLOCK:
            image = products[leading - first]
        tick("residuals", min(first + _BLOCK, len(vectors)), len(vectors))
    rounding = max(round_off(norm, operator.dimension, operator.dtype), operator.product_error)
    if isinstance(operator, CurvatureOperator) and len(vectors):
        measured = operator.rounding()
        check = operator.agreement(norm, vectors[leading], image, measured)
        rounding = max(rounding, measured, check * norm)
    return vectors, EdgeLevels(
        values=values,
        residuals=residuals,
        round_off=rounding,
        dimension=operator.dimension,
        norm=norm,
        converged=converged,
        check=check,
        products=space.products + len(values),
        products_by=operator.products_by,
        n_lower=n_lower,
        asked=", ".join(f"{name} {count}" for name, count in wanted._asdict().items() if count),
        exhausted=exhausted,
    )


def _window(
    operator: Any,
    window: tuple[float, float],
    memory: int | None,
    tick: Tick | None,
    **options: Any,
) -> tuple[Tensor, EdgeLevels]:
    """Unit vectors as rows and all that is said of the window's eigenvalues."""
    upper = window[0] > 0
    sign, (near, far) = (1.0, window) if upper else (-1.0, (-window[1], -window[0]))
    found = find(operator, near, sign, memory=memory, tick=tick or silent, **options)
    rounding = max(round_off(found.norm, operator.dimension, operator.dtype), found.measured)
    check, products = float("nan"), found.products
    if isinstance(operator, CurvatureOperator):
        leading = found.vectors[np.abs(found.values).argmax()] if len(found.values) else None
        check = operator.agreement(found.norm, leading, None, found.measured)
        products += 1
        rounding = max(rounding, check * found.norm)
    rest = float(np.linalg.norm(found.residuals))
    apart = found.values[found.values >= near].min(initial=np.inf) - found.rest
    known = found.mixed + (1 + len(found.values) ** 0.5) * rounding
    matched = float(known + (min(rest, rest**2 / apart) if apart > 0 else rest))
    inside = (found.values >= near - matched) & (found.values <= far + matched)
    unsure = np.minimum(np.abs(found.values - near), np.abs(found.values - far)) <= matched
    places = np.flatnonzero(inside)[:: int(sign)]
    low, high = window
    return found.vectors[torch.from_numpy(places.copy()).to(operator.device)], EdgeLevels(
        values=sign * found.values[places],
        residuals=found.residuals[places],
        round_off=rounding,
        dimension=operator.dimension,
        norm=found.norm,
        converged=found.converged,
        check=check,
        products=products,
        products_by=operator.products_by,
        n_lower=0 if upper else len(places),
        asked=f"window {low:.6g} to {high:.6g}",
        window=Window(
            low=low,
            high=high,
            complete_from=sign * (found.rest + known + rest),
            failure_probability=found.failure_probability,
            matched_bound=matched,
            ambiguous=int(np.count_nonzero(unsure)),
            beyond=int(np.count_nonzero(found.values > far + matched)),
            steps=found.steps,
        ),
    )


def plan_width(operator: Operator, count: int, memory: int | None = None) -> int:
    """Vectors of the basis, or a refusal before anything is computed.

    Args:
        operator: H.
        count: Levels that are wanted.
        memory: Bytes; what is free on the operator's device if None, no limit if that is unknown.

    Returns:
        As many as pay, or as fit.

    Raises:
        DeviceError: If not even a few more than the eigenvalues fit.
    """
    size, itemsize = operator.dimension, operator.dtype.itemsize
    spare = max(40, min(count, 1000), min(300, _SMALL_BASIS // size))
    best, least = (min(size, count + more) for more in (spare, _FEWEST_SPARE))
    backend: Any = getattr(operator, "backend", None)
    if memory is None and backend is None:
        return best
    usable = memory if memory is not None else usable_memory(backend)
    each = itemsize * size

    def needed(width: int) -> int:
        # basis, a few vectors of work, T with its eigenvectors and LAPACK's workspace
        return each * (width + 8 + _BLOCK) + 8 * 5 * width**2

    if needed(least) > usable:
        fits = max(0, usable // each - _FEWEST_SPARE - 8 - _BLOCK)
        raise DeviceError(
            f"{count:,} eigenvalues need a basis of {least:,} vectors of {size:,} numbers, "
            f"{gib(needed(least))}, and there are {gib(usable)}; about {fits:,} fit. Ask "
            "for fewer, take --dtype float32 (half of it), or a device with more memory"
        )
    while needed(best) > usable:
        best = max(least, int(0.9 * best))
    return best


def check_request(
    operator: Operator, top: int = 0, bottom: int = 0, largest: int = 0, tolerance: float = 1e-10
) -> Wanted:
    """Refuse eigenvalues that cannot be asked for, before anything is computed.

    Args:
        operator: H.
        top: As for :func:`extremal_eigenvalues`.
        bottom: Likewise.
        largest: Likewise.
        tolerance: Likewise.

    Returns:
        The request.

    Raises:
        ConfigError: If none or more than P are asked for, or a number is out of range.
    """
    require_whole(0, top=top, bottom=bottom, largest=largest)
    _check_tolerance(tolerance)
    wanted = Wanted(int(top), int(bottom), int(largest))
    if largest and (top or bottom):
        raise ConfigError("largest magnitudes already are of both ends; leave out top and bottom")
    if not wanted.levels:
        raise ConfigError("no level is asked for; give top, bottom or largest")
    if wanted.levels > operator.dimension:
        raise ConfigError(
            f"{wanted.levels:,} eigenvalues are asked for, the matrix has {operator.dimension:,}; "
            "hessrmt spectrum computes all of them"
        )
    return wanted


def _check_tolerance(tolerance: float) -> None:
    if not isinstance(tolerance, Real) or not 0 < tolerance < 1:
        raise ConfigError(f"the tolerance must lie between 0 and 1, got {tolerance!r}")
