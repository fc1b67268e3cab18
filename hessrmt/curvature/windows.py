"""All eigenvalues beyond a bound, and how surely none of them was missed.

**Search.** Block Lanczos with full reorthogonalisation. What has converged is locked: the search
goes on from fresh random vectors in the orthogonal complement X⊥ of the Ritz vectors X that were
found, and so meets further copies of multiple eigenvalues. Without memory for a longer basis it is
restarted thickly (Wu and Simon 2000).

**Completeness.** Let A be H within X⊥, E = (I - XXᵀ)HX the part of the residuals that leads out of
X. By Weyl the eigenvalues of H, in order, lie within ‖E‖₂ of those of XᵀHX and of A together
(Parlett 1998, §10.3), those above λ_max(A) even within ‖E‖₂²/(θ - λ_max(A)) of their θ (Li and Li
2005). So none but those found lies above λ_max(A) + ‖E‖₂. For a bound on λ_max(A)
take a unit vector v, uniformly distributed in X⊥ and independent of X, whose component along the
eigenvector of λ_max(A) is γ. The Lanczos polynomials p_j that belong to v are orthonormal in v's
spectral measure, hence Σ_j p_j(λ_max)² ≤ 1/γ² (van Dorsselaer, Hochstenbach and van der Vorst 2001
have this for the last of them). |γ| < τ has a probability below τ √(2n/π), n the dimension of X⊥;
beyond the largest Ritz value the sum grows. So where it first reaches 1/τ² λ_max(A) has ended, but
with that probability. After s steps this lies within ε (λ_max - λ_min) of the largest eigenvalue as
soon as 1.648 √n exp(-√ε (2s - 1)) is small (Kuczyński and Woźniakowski 1992, theorem 4.2, here for
the number of steps to expect); where the spectrum of A is thin at its end, far earlier. The proof
is of exact arithmetic; what rounding may do to products is added. A rest below that says nothing of
eigenvectors that v has as little of, so it is counted as large as rounding, and followed.

Zero. Null directions of a Hessian are many and their computed eigenvalues round-off, so a window
lies on one side of zero and off it; the largest eigenvalues are those of a window above zero.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from hessrmt.arrays import fetched
from hessrmt.checks import real
from hessrmt.curvature.dense import gib, usable_memory
from hessrmt.curvature.krylov import (
    KEEPS,
    PATIENCE,
    norm_seen,
    require_symmetric_products,
    rotate,
)
from hessrmt.curvature.operators import CurvatureOperator
from hessrmt.curvature.rounding import gaussian, round_off
from hessrmt.errors import (
    ConfigError,
    ConvergenceError,
    DeviceError,
)
from hessrmt.results import Result

if TYPE_CHECKING:
    from hessrmt.arrays import Levels, Vectors
    from hessrmt.curvature.linear import Operator
    from hessrmt.progress import Tick

_SMALL_REST = 0.05
"""Share of the norm below which what is left of a product is made orthogonal once more."""

_BLOCK = 8
"""Vectors multiplied and orthogonalised together: passes over the basis are what costs."""

_FIRST_BLOCKS = 8
"""Blocks before it is asked whether a search has found everything."""

_FIRST_WIDTH = 256
"""Rows that a basis starts with; there are twice as many whenever they are full."""

_CHECK_STEPS = 100
"""Steps of the completeness check that are always worth their products."""

_FEWEST = 10 * _BLOCK
"""Vectors below which a search makes no sense."""

_RESTARTS = 8
"""Restarts that are tried for a check that fits, after everything in the window has converged."""

_FULL = 0.7
"""Share of the vectors that fit which the window's eigenvalues may take."""

_SHARE_OF_BOUND = 1e-2
"""Residuals are this small against the window's distance from zero, however loose a tolerance."""


@dataclass(frozen=True)
class Window(Result, derived="complete"):
    """What is known of all eigenvalues of a window.

    Attributes:
        low: Its lower bound, -inf if the window reaches down to the spectrum's end.
        high: Its upper bound, inf if it reaches up to the spectrum's end.
        complete_from: From here to the spectrum's end (upwards for a window above zero, downwards
            for one below) there are no other eigenvalues than those found, counted with
            multiplicity, up to :attr:`failure_probability`.
        failure_probability: Of that statement, over the random vectors of the check.
        matched_bound: Then the j-th eigenvalue of the matrix, counted from the spectrum's end with
            multiplicity, lies within this distance of the j-th found.
        ambiguous: How many of those given lie so close to a bound of the window, closer than
            :attr:`matched_bound`, that they may not belong to it.
        beyond: Eigenvalues found between the window and the spectrum's end.
        steps: Lanczos steps of the check that the statement rests on.
    """

    low: float
    high: float
    complete_from: float
    failure_probability: float
    matched_bound: float = 0.0
    ambiguous: int = 0
    beyond: int = 0
    steps: int = 0

    @property
    def complete(self) -> bool:
        """Whether nothing of the window was missed, up to the failure probability."""
        return self.complete_from <= self.low if self.low > 0 else self.complete_from >= self.high

    def reaches(self, values: Levels) -> np.ndarray:
        """Which eigenvalues belong to the stretch without gaps.

        Args:
            values: (n,).

        Returns:
            (n,) truth values.
        """
        return values >= self.complete_from if self.low > 0 else values <= self.complete_from


def check_window(window: Any, failure_probability: float = 1e-6) -> tuple[float, float]:
    """Refuse windows that cannot be searched, before anything is computed.

    Args:
        window: Lower and upper bound; None or an infinite number for an open side.
        failure_probability: That the completeness may fail with.

    Returns:
        Both bounds, infinite where the side is open.

    Raises:
        ConfigError: If it is no pair of numbers in order, or holds zero.
    """
    real("failure_probability", failure_probability, above=0, most=0.5, error=ConfigError)
    if not isinstance(window, tuple | list | np.ndarray) or len(window) != 2:
        raise ConfigError(f"a window is a pair (low, high) of numbers or None, got {window!r}")
    bounds = []
    for side, open_ in zip(window, (-math.inf, math.inf), strict=True):
        known = isinstance(side, Real) and not isinstance(side, bool | np.bool_)
        if side is not None and (not known or math.isnan(side)):
            raise ConfigError(f"a window's bounds are numbers, or None, got {window!r}")
        bounds.append(open_ if side is None else float(side))
    low, high = bounds
    if not low < high:
        raise ConfigError(f"a window's lower bound must lie below the upper one, got {window!r}")
    if low <= 0 <= high:
        raise ConfigError(
            f"the window from {low:g} to {high:g} holds zero or ends there, where the null "
            "directions of a matrix and round-off are: a window must stay off zero. Take one above "
            "and one below it; all eigenvalues, and which of them are zero, are given by "
            "hessrmt spectrum"
        )
    return low, high


class Found(NamedTuple):
    """What a search has found, as eigenvalues of ±H in ascending order.

    Attributes:
        vectors: (k, P) orthonormal rows.
        values: (k,) their Ritz values.
        residuals: (k,) from products with the vectors.
        rest: Bound on the largest eigenvalue in their orthogonal complement.
        failure_probability: Of that bound.
        steps: Of the check.
        norm: ‖H‖₂ as far as it was seen.
        products: Products so far.
        mixed: ‖XᵀHX - Θ‖_F, what couples vectors that were found one after the other; with the
            truncation of products that are finite differences.
        measured: What rounding does to products, as measured; 0 where it was not.
        converged: Whether the search ended by itself.
    """

    vectors: Vectors
    values: Levels
    residuals: Levels
    rest: float
    failure_probability: float
    steps: int
    norm: float
    products: int
    mixed: float
    measured: float
    converged: bool


class _Space:
    """Locked Ritz vectors, and behind them a block Krylov space of their complement.

    V's rows are orthonormal, T = VᵀHV; `pending` rows behind them are to be multiplied next, and
    `coupling` is their part of VᵀHV, which is known by symmetry.
    """

    def __init__(self, operator: Operator, sign: float, slack: float, memory: int | None) -> None:
        self.operator, self.sign, self.size = operator, sign, operator.dimension
        self.slack = max(slack, torch.finfo(operator.dtype).eps ** 0.5)
        self.most = vectors_that_fit(operator, memory)
        self.basis = self._rows(min(self.size, self.most, _FIRST_WIDTH))
        self.small = np.zeros((len(self.basis), len(self.basis)))
        self.locked = self.have = self.pending = self.products = 0
        self.residuals, self.coupling = np.zeros(0), np.zeros((0, 0))
        self.norm = self.mixed = self.strayed = 0.0

    def _rows(self, count: int) -> Vectors:
        kind, place = self.operator.dtype, self.operator.device
        return torch.empty(count, self.size, dtype=kind, device=place)

    @property
    def reach(self) -> int:
        """Rows that the basis may grow to; the old one is there while it is copied."""
        return max(len(self.basis), min(self.size, self.most - len(self.basis)))

    @property
    def floor(self) -> float:
        """What rounding may add to a product."""
        rounding = round_off(self.norm, self.size, self.operator.dtype)
        return max(rounding, self.operator.product_error)

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left of the products, not even what rounding would hide."""
        return not self.pending

    @property
    def faintest(self) -> float:
        """A rest this small is nothing but rounding.

        That of an eigenvector in which a random vector has its usual component is √P times smaller
        than the eigenvalue, so eigenvalues of a few floors show in rests far below the floor.
        """
        return self.floor / (10 * self.size**0.5)

    def begin(self, block: Vectors) -> None:
        """Drop what is not locked and start a Krylov space from a block of random vectors."""
        self.have, self.pending = self.locked, 0
        self.require(2 * len(block))
        rows = self._orthonormal(block[: self.size - self.locked], 0.0)[0]
        for _ in range(2 if len(rows) else 0):  # random vectors have nothing of the basis but noise
            rows = self._orthonormal(self._project(rows, self.locked)[1], 0.0)[0]
        self.pending = len(rows)
        self.basis[self.have : self.have + self.pending] = rows
        self.coupling = np.zeros((self.pending, self.have))

    def turn_to(self, block: Vectors) -> None:
        """Go on from an exhausted space with random vectors."""
        rows = block[: self.size - self.have]
        for _ in range(3):
            rows = self._orthonormal(self._project(rows, self.have)[1], 0.0)[0]
        self.pending = len(rows)
        self.basis[self.have : self.have + self.pending] = rows
        self.coupling = np.zeros((self.pending, self.have))

    def require(self, more: int) -> bool:
        """Whether there is room behind the last row, made if memory allows."""
        needed = min(self.have + self.pending + more, self.size)
        if needed <= len(self.basis):
            return True
        if needed > self.reach:
            return False
        width = min(max(2 * len(self.basis), needed), self.reach)
        used, grown = self.have + self.pending, self._rows(width)
        grown[:used] = self.basis[:used]
        self.basis = grown
        self.small = np.pad(self.small, (0, width - len(self.small)))
        return True

    def step(self) -> None:
        """Multiply the pending block, and find the next one."""
        first, count = self.have, self.pending
        block = self.basis[first : first + count]
        products = self.sign * self.operator.unchecked(block)
        self.products += count
        inner, rest, longest = self._project(products, first + count, 2 * count)
        self.norm = norm_seen(products, longest, self.norm)
        own = inner[:, first:]
        apart = np.abs(inner[:, :first] - self.coupling)
        gap = float(apart.max(initial=np.abs(own - own.T).max()))
        where = np.append(np.arange(first, first + count), apart.max(axis=0).argsort()[-1:])
        require_symmetric_products(self.operator, self.basis, where, gap, self.norm, self.slack)
        self.have = last = first + count
        self.small[first:last, first:last] = (own + own.T) / 2
        self.small[:first, first:last] = self.coupling.T
        self.small[first:last, :first] = self.coupling
        rows, mixing = self._orthonormal(rest, self.faintest)
        rows, mixing = rows[: self.size - last], mixing[:, : self.size - last]
        self.pending = len(rows)
        if len(rows):
            least = float(np.linalg.norm(mixing, axis=0).min())
            if least < _SMALL_REST * self.norm:  # what is small has more of the basis' rounding
                for _ in range(3):
                    rows, turn = self._orthonormal(self._project(rows, last)[1], 0.0)
                    mixing = mixing @ turn
                    if float(np.linalg.norm(turn, axis=0).min(initial=1.0)) >= KEEPS:
                        break
                self.pending = len(rows)
            self.basis[last : last + len(rows)] = rows
        self.coupling = np.zeros((self.pending, last))
        self.coupling[:, first:] = mixing.T

    def _project(
        self, rows: Vectors, count: int, near: int = 0
    ) -> tuple[np.ndarray, Vectors, float]:
        """Coefficients along the first rows of the basis, what is left, and the largest norm."""
        basis = self.basis[:count]
        inner = rows.new_zeros(len(rows), count)
        near = min(near, count)
        # a product lies mostly along the last two blocks: without them one pass usually is enough
        inner[:, count - near :] = rows @ basis[count - near :].T
        rest = rows - inner[:, count - near :] @ basis[count - near :]
        before = rest.norm(dim=1)
        sizes, found, longest = rows.norm(dim=1), np.zeros(0), np.zeros(0)
        for _ in range(3):
            along = rest @ basis.T
            rest = rest - along @ basis
            inner += along
            after = rest.norm(dim=1)
            enough = (after >= KEEPS * before).all()
            found, longest, enough = fetched(inner, sizes, enough)
            if enough:
                break
            before = after
        return found, rest, float(longest.max(initial=0.0))

    def _orthonormal(self, rows: Vectors, floor: float) -> tuple[Vectors, np.ndarray]:
        """Orthonormal rows Q and coefficients C with C Q the given rows but for their floor."""
        if not len(rows):
            return rows, np.zeros((0, 0))
        directions, triangle = torch.linalg.qr(rows.T)
        left, lengths, right = torch.linalg.svd(triangle.cpu())  # it is small
        kept = lengths > floor
        mixing = (right.T[:, : len(lengths)] * lengths)[:, kept]
        turn = left[:, kept].to(directions.device, non_blocking=True)
        return (directions @ turn).T, mixing.to(torch.float64).numpy()

    def ritz(self) -> tuple[Levels, np.ndarray, Levels]:
        """Ritz values of what is not locked, their vectors, and the residuals by the recurrence."""
        active = slice(self.locked, self.have)
        small = torch.from_numpy(self.small[active, active])
        values, rotation = (part.numpy() for part in torch.linalg.eigh(small))
        self.norm = max(self.norm, float(np.abs(values).max(initial=0.0)))
        return values, rotation, np.linalg.norm(self.coupling[:, self.locked :] @ rotation, axis=0)

    def restart(self, values: Levels, rotation: np.ndarray) -> None:
        """Keep some Ritz pairs only; the pending block stays."""
        following = self.basis[self.have : self.have + self.pending].clone()
        self._rotate(rotation)
        coupling = self.coupling[:, self.locked :] @ rotation
        self.have = self.locked + len(values)
        self.basis[self.have : self.have + self.pending] = following
        self._diagonal(values)
        self.coupling = np.hstack([np.zeros((self.pending, self.locked)), coupling])

    def lock(self, values: Levels, rotation: np.ndarray) -> None:
        """Deflate some Ritz pairs, whose residuals are computed from products."""
        self._rotate(rotation)
        self._diagonal(values)
        first, self.locked = self.locked, self.locked + len(values)
        self.have, self.pending = self.locked, 0
        found = np.empty(len(values))
        for start in range(0, len(values), _BLOCK):
            part = slice(first + start, first + min(start + _BLOCK, len(values)))
            rows = self.basis[part]
            theta = torch.from_numpy(values[start : start + _BLOCK]).to(rows)
            rest = self.sign * self.operator(rows) - theta[:, None] * rows
            stray = self.operator.truncation(rows)
            inner = (rest @ self.basis[: self.locked].T).to(torch.float64)
            sizes = [part.norm() for part in (stray, inner[:, :first], inner[:, first:])]
            errors, *known = fetched(rest.norm(dim=1) + stray, *sizes)
            found[start : start + _BLOCK] = errors
            strayed, before, own = map(float, known)
            self.strayed = math.hypot(self.strayed, strayed)
            self.mixed = math.hypot(self.mixed, before, before, own)  # as computed
            self.products += len(rows)
        self.residuals = np.append(self.residuals, found)

    def _rotate(self, columns: np.ndarray) -> None:
        rotate(self.basis, slice(self.locked, self.have), columns)

    def _diagonal(self, values: Levels) -> None:
        self.small[self.locked :] = 0.0
        self.small[:, self.locked :] = 0.0
        places = np.arange(self.locked, self.locked + len(values))
        self.small[places, places] = values

    def shift(self, measured: float) -> float:
        """So close eigenvalues of H lie to those locked and those of the rest together."""
        rounding = (1 + self.locked**0.5) * max(self.floor, measured)
        coupled = self.mixed + 2**0.5 * self.strayed
        return coupled + float(np.linalg.norm(self.residuals)) + rounding


def vectors_that_fit(operator: Operator, memory: int | None = None) -> int:
    """Vectors of the basis that there is memory for; a window's eigenvalues take half of them.

    Args:
        operator: H.
        memory: Bytes; what is free on the operator's device if None, no limit if that is unknown.

    Returns:
        How many.

    Raises:
        DeviceError: If they are too few for any window.
    """
    size, itemsize = operator.dimension, operator.dtype.itemsize
    backend: Any = getattr(operator, "backend", None)
    if memory is None and backend is None:
        return 3 * size
    usable = memory if memory is not None else usable_memory(backend)
    each, work = itemsize * size, 6 * _BLOCK * itemsize * size
    # n vectors, and T with its eigenvectors and LAPACK's workspace, 40 n² bytes
    most = (math.sqrt(each**2 + 160 * max(0, usable - work)) - each) / 80
    least = min(_FEWEST, size)
    needed = least * each + 40 * least**2 + work
    if most < least:
        raise DeviceError(
            f"a window needs a basis of at least {least} vectors of {size:,} numbers, "
            f"{gib(needed)}, and there are {gib(usable)}; take --dtype float32 (half of it), or"
            " a device with more memory"
        )
    return int(most)


@dataclass
class _Search:
    """One search: what it is for, and where it stands."""

    space: _Space
    low: float
    tolerance: float
    failure_probability: float
    seed: int
    tick: Tick
    target: float = math.nan
    rounding: float = 0.0
    converged: bool = True
    draws: Iterator[int] = field(default_factory=itertools.count)

    def fresh(self, count: int) -> Vectors:
        """Random vectors that nothing before depends on."""
        operator, size = self.space.operator, self.space.size
        return gaussian((count, size), operator, "window", next(self.draws), seed=self.seed)

    @property
    def measured(self) -> float:
        """What rounding does to products; of finite differences truncation is as large at most."""
        return max(self.rounding, 2 * self.space.operator.product_error)

    @property
    def goal(self) -> float:
        """Residual from which on a Ritz pair has converged."""
        wanted = min(self.tolerance * self.space.norm, _SHARE_OF_BOUND * self.low)
        return max(wanted, self.space.floor)

    def require_off_zero(self) -> None:
        """Refuse a window that holds what rounding makes of zero."""
        margin = 2 * max(self.space.floor, self.measured)
        if self.low <= margin:
            raise ConfigError(
                f"the window begins {self.low:.3g} off zero, and rounding alone moves null "
                f"directions by up to {margin:.3g}: a window must stay off zero by more than that, "
                "since it can't count what can't be told from zero. hessrmt spectrum counts them"
            )

    def find(self, least: int) -> bool:
        """Search until everything beyond the target has converged; lock it.

        Args:
            least: Steps before it may end.

        Returns:
            Whether it came to its end.

        Raises:
            ConvergenceError: If nothing has converged.
        """
        space, first = self.space, math.isnan(self.target)
        if not first and space.reach - space.locked < _FEWEST // 2 and space.reach < space.size:
            self._refuse(np.diag(space.small)[: space.locked])
        space.begin(self.fresh(_BLOCK))
        steps = tested = 0
        restarts = 0
        while True:
            if not space.exhausted:
                space.step()
                steps += 1
            active, block = space.have - space.locked, max(1, space.pending)
            full = not space.exhausted and not space.require(_BLOCK)
            due = space.exhausted or full
            if not due and (steps < least or active - tested < max(block, active // 8)):
                continue
            tested = active
            values, rotation, residuals = space.ritz()
            self.require_off_zero()
            settled = residuals <= self.goal
            inside = values >= (self.low if first else self.target)
            now, seen = int(np.count_nonzero(settled & inside)), int(np.count_nonzero(inside))
            self.tick("window", space.locked + now, space.locked + seen)
            patient = space.products < PATIENCE * max(active, _FIRST_WIDTH)
            if now == seen and (steps >= least or space.exhausted):
                chosen = self._locked(values, settled, restarts) if first else inside
                if chosen is not None:
                    space.lock(values[chosen], rotation[:, chosen])
                    return True
            if not patient:
                kept = inside & settled & (np.cumsum(~settled[::-1])[::-1] == 0)
                if not kept.any() and not space.locked:
                    raise ConvergenceError(
                        f"no eigenvalue of the window has converged after {space.products:,} "
                        "products; allow a larger residual (tolerance)"
                    )
                space.lock(values[kept], rotation[:, kept])
                return False
            if full:
                # counted from where all has converged, and only the check would take too long
                restarts = restarts + 1 if now == seen else 1
                self._restart(values, rotation, inside)
                tested = space.have - space.locked

    def _restart(self, values: Levels, rotation: np.ndarray, inside: np.ndarray) -> None:
        space, wanted = self.space, int(np.count_nonzero(inside))
        if space.locked + wanted > _FULL * len(space.basis):
            self._refuse(np.append(np.diag(space.small)[: space.locked], values))
        keep = wanted + (len(values) - wanted) // 2
        space.restart(values[-keep:], rotation[:, -keep:])

    def _refuse(self, values: Levels) -> None:
        """There are more eigenvalues than fit."""
        space, values = self.space, np.sort(values)
        fits, width = len(space.basis) // 2, len(space.basis)
        known = int(np.count_nonzero(values >= self.low))
        raise DeviceError(
            f"the window holds more eigenvalues than there is memory for: {known:,} or more, and "
            f"{width:,} vectors of {space.size:,} numbers fit, of which a search and its check "
            f"need a part. A window that ends at {space.sign * values[-fits:][0]:.6g} holds about "
            f"{fits:,}; or take --dtype float32 (half the memory), or a device with more"
        )

    def _locked(self, values: Levels, settled: np.ndarray, restarts: int) -> np.ndarray | None:
        """Which converged pairs make the check short, those of the window with them.

        Each extra pair costs a product, and shortens the check: pairs just below the window widen
        the gap to what remains, those at the other end make the remaining spectrum narrow.

        Returns:
            (n,) truth values; None if the check would still take too long.
        """
        space, at = self.space, int(np.searchsorted(values, self.low))
        below = settled[:at]
        down = int(np.argmin(np.append(below[::-1], False)))  # converged ones next to the window
        up = 0 if restarts else int(np.argmin(np.append(below, False)))  # and at the other end
        extras, others = np.arange(down + 1)[:, None], np.arange(up + 1)[None, :]
        following = np.append(values[:at][::-1], -math.inf)[: down + 1]
        remaining = np.append(values[:at], math.inf)[: up + 1]
        gap = self.low - np.maximum(following, 0.0)[:, None]
        width = np.maximum(self.low - np.minimum(remaining, 0.0)[None, :], gap)
        with np.errstate(divide="ignore"):
            steps = _expected_steps(gap / width, space.size, self.failure_probability)
        possible = (extras + others <= at) & (gap > 0)
        room = space.reach - 2 - space.locked - (len(values) - at) - extras - others
        cost = extras + others + steps
        if restarts > _RESTARTS:  # as much as fits
            cost = steps - room
        elif not space.exhausted:
            active = max(_CHECK_STEPS, (space.have - space.locked) // 4)
            possible = possible & (steps <= np.minimum(active, room))
        if not possible.any():
            return None
        cost = np.where(possible, cost, math.inf)
        more, rest = np.unravel_index(int(np.argmin(cost)), cost.shape)
        self.target = float(self.low - gap[more, 0] / 2)
        chosen = np.arange(len(values)) >= at - more
        return chosen | (np.arange(len(values)) < rest)

    def check(self, probability: float, *, final: bool = False) -> tuple[float, int, bool]:
        """Lanczos from one fresh vector in what is left.

        Of a rest below the floor nothing is known but that it is no larger: it counts as large as
        the floor, and the iteration goes on, from a fresh random vector where it has vanished.

        Args:
            probability: That it may fail with.
            final: Whether to go on though an eigenvalue was seen, for the bound.

        Returns:
            The bound on the largest eigenvalue there, steps, and whether an eigenvalue beyond the
            target was seen, which was not found.
        """
        space = self.space
        rest = space.size - space.locked
        if not rest:
            return -math.inf, 0, False
        if space.locked == space.reach:
            return math.inf, 0, False
        aim = self.low - 2 * space.shift(self.measured)
        wanted = math.log(2 * rest / math.pi) - 2 * math.log(probability)  # 1/τ²
        gap = max(self.low - self.target, space.floor) / (self.low + space.norm)
        limit = max(_CHECK_STEPS, 3 * float(_expected_steps(gap, rest, probability)))
        if not aim > 2 * space.floor:  # rests as large as the floor allow for eigenvalues up to it
            limit = _CHECK_STEPS
        space.begin(self.fresh(1))
        steps = 0
        while True:
            space.step()
            steps += 1
            active = slice(space.locked, space.have)
            diagonal = np.diag(space.small)[active]
            beta = np.abs(np.diag(space.small, 1))[space.locked : space.have - 1]
            beta = np.append(beta, np.abs(space.coupling).max(initial=0.0))
            if steps % 8 == 0:
                self.tick("completeness", steps, steps)
            if not final and math.isnan(polynomials(diagonal, beta, self.target)):
                return math.inf, steps, True
            everything = space.have == space.size
            known = np.maximum(beta, space.floor)
            if everything:
                known[-1] = 0.0
            last = everything or steps >= limit or not space.require(2)
            if last or polynomials(diagonal, known, aim) >= wanted:
                return _crossing(diagonal, known, wanted, aim, space.norm), steps, False
            if space.exhausted:
                space.turn_to(self.fresh(1))


def polynomials(diagonal: Levels, beta: Levels, x: float) -> float:
    """The logarithm of Σ_j p_j(x)² for the Lanczos polynomials p_0 = 1, ..., p_s.

    Args:
        diagonal: (s,) of the tridiagonal matrix.
        beta: (s,) beside it, with the norm of the last rest; 0 there if the space is invariant.
        x: Where.

    Returns:
        The logarithm; NaN unless x lies above all eigenvalues of the tridiagonal matrix.
    """
    before, total, grown, ratio = 0.0, 0.0, 0.0, 1.0
    for alpha, following in zip(diagonal, beta, strict=True):
        numerator = x - alpha - before / ratio
        if numerator <= 0:
            return math.nan
        if following <= 0:
            return math.inf
        ratio = numerator / following  # p_j / p_{j-1}
        grown += 2 * math.log(ratio)
        total = max(total, grown) + math.log1p(math.exp(-abs(total - grown)))
        before = following
    return total


def _crossing(diagonal: Levels, beta: Levels, wanted: float, start: float, norm: float) -> float:
    """The smallest number from which on the sum of the polynomials' squares is large enough."""

    def beyond(x: float) -> bool:
        return polynomials(diagonal, beta, x) >= wanted

    above, pace = start, 1e-3 * max(norm, abs(start)) or 1.0
    while not beyond(above):
        above, pace = above + pace, 2 * pace
    below, pace = above - pace, 2 * pace
    while beyond(below):
        below, pace = below - pace, 2 * pace
    for _ in range(60):
        middle = (below + above) / 2
        below, above = (below, middle) if beyond(middle) else (middle, above)
    return above


def _expected_steps(share: Any, size: int, probability: float) -> Any:
    """Lanczos steps after which the theorem of Kuczyński and Woźniakowski gives the accuracy."""
    return (math.log(1.648 * size**0.5 / probability) / np.sqrt(share) + 1) / 2


def find(
    operator: Operator,
    low: float,
    sign: float,
    *,
    tolerance: float,
    failure_probability: float,
    seed: int,
    memory: int | None,
    tick: Tick,
) -> Found:
    """All eigenvalues of sign H from a positive bound on, and those beside them that it took.

    Args:
        operator: H.
        low: The bound.
        sign: 1, or -1 for the lower end of H's spectrum.
        tolerance: Largest residual over ‖H‖₂.
        failure_probability: That the bound on the others may fail with.
        seed: Of the random vectors.
        memory: Bytes for the basis; what is free if None.
        tick: Told of progress.

    Returns:
        All of it.
    """
    # the residuals of what is locked show as a lack of symmetry
    space = _Space(operator, sign, min(tolerance, 1e-3), memory)
    search = _Search(space, low, tolerance, failure_probability, seed, tick)
    if isinstance(operator, CurvatureOperator):
        operator.expect(_FIRST_BLOCKS * _BLOCK + _CHECK_STEPS)
        search.rounding = operator.rounding()
    probability, spent, missed, steps, rest = (
        failure_probability,
        0.0,
        True,
        _FIRST_BLOCKS,
        math.inf,
    )
    while missed and search.converged:
        before = space.locked
        search.converged = search.find(steps)
        if math.isnan(search.target):
            search.target = low
        probability /= 2  # of all checks together at most what was asked for
        spent += probability
        # what the check has seen and the search can't find can't be told from rounding
        vain = spent > probability and space.locked == before
        rest, steps, missed = search.check(probability, final=vain)
    values = np.diag(space.small)[: space.locked].copy()
    order = np.argsort(values, kind="stable")
    places = torch.from_numpy(order).to(space.basis.device)
    return Found(
        vectors=space.basis[: space.locked][places],
        values=values[order],
        residuals=space.residuals[order],
        rest=rest,
        failure_probability=spent if space.locked < space.size else 0.0,
        steps=steps,
        norm=space.norm,
        products=space.products,
        mixed=space.mixed + 2**0.5 * space.strayed,
        measured=search.measured,
        converged=search.converged,
    )
