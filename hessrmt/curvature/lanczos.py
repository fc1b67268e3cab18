"""Lanczos with full reorthogonalisation: tridiagonal matrices, and extreme eigenpairs by restarts.

Every new vector is made orthogonal to all earlier ones, a second time wherever that took away most
of it ("twice is enough": Parlett, The Symmetric Eigenvalue Problem, 1998, §6.9), so that no
spurious copies of eigenvalues appear. Thick restarts are those of Wu & Simon, SIAM J. Matrix Anal.
Appl. 22 (2000) 602.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from hessrmt import rng
from hessrmt.errors import ConvergenceError

if TYPE_CHECKING:
    from jaxtyping import Float64
    from torch import Tensor

    from hessrmt.arrays import Vector, Vectors
    from hessrmt.curvature.operator import SymmetricOperator

    Numbers = Float64[np.ndarray, " m"]

_KEEPS = 0.7
"""Share of a vector's norm below which one pass of orthogonalisation is not enough (about 1/√2)."""

_COLUMNS = 4096
"""Parameters whose part of the basis is rotated at a time."""

_SECOND_LOOK = 24
"""Steps from a fresh random vector that look for levels which the first one could not see."""


def round_off(norm: float, size: int, dtype: torch.dtype) -> float:
    """What rounding may add to a product with a unit vector: 10 √P ε ‖H‖₂.

    An entry is a sum whose rounding errors grow like the root of its length (Higham & Mary, SIAM J.
    Sci. Comput. 41 (2019) A2815); the norm over P entries brings √P. It is the same number up to
    which :func:`hessrmt.curvature.certify.require_agreement` lets two differentiations differ.

    Args:
        norm: ‖H‖₂.
        size: P.
        dtype: Of the products.

    Returns:
        In the units of the eigenvalues.
    """
    return 10 * size**0.5 * torch.finfo(dtype).eps * norm


def tridiagonal(
    operator: SymmetricOperator,
    starts: Vectors,
    steps: int,
    tick: Callable[[int], None] | None = None,
) -> list[tuple[Numbers, Numbers]]:
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
    count, size = starts.shape
    bases = starts.new_empty(count, steps, size)
    bases[:, 0] = starts / starts.norm(dim=1, keepdim=True)
    alphas: list[list[float]] = [[] for _ in range(count)]
    betas: list[list[float]] = [[] for _ in range(count)]
    norms = [0.0] * count
    running = list(range(count))
    for step in range(steps):
        found = operator(bases[running, step])
        for row, index in zip(found, list(running), strict=True):
            norms[index] = max(norms[index], float(row.norm()))  # ‖Hv‖ <= ‖H‖
            basis = bases[index, : step + 1]
            inner, rest = orthogonalise(row, basis)
            alphas[index].append(float(inner[-1]))
            beta = float(rest.norm())
            if step + 1 == steps:
                continue
            if beta <= round_off(norms[index], size, row.dtype):
                running.remove(index)
                continue
            betas[index].append(beta)
            bases[index, step + 1] = rest / beta
        if tick:
            tick(step + 1)
        if not running:
            break
    return [(np.array(a), np.array(b)) for a, b in zip(alphas, betas, strict=True)]


def orthogonalise(w: Vector, basis: Vectors) -> tuple[Tensor, Vector]:
    """Take everything that lies in the span of an orthonormal basis out of a vector.

    Args:
        w: (P,).
        basis: (j, P) orthonormal rows.

    Returns:
        (j,) coefficients and the (P,) rest, w = Vᵀh + rest.
    """
    inner = w.new_zeros(len(basis))
    # a Lanczos vector lies mostly along the last two: without them one pass usually is enough
    near = basis[-2:]
    inner[-2:] = near @ w
    rest = w - inner[-2:] @ near
    before = float(rest.norm())
    for _ in range(3):
        step = basis @ rest
        rest = rest - step @ basis
        inner += step
        after = float(rest.norm())
        if after >= _KEEPS * before or after == 0:
            break
        before = after
    return inner, rest


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
        return self.top + self.bottom + self.largest

    def ends(self, values: Numbers) -> list[tuple[int, np.ndarray]]:
        """For each end how many are wanted, and the order in which its values come."""
        orders = (
            (self.top, -values),
            (self.bottom, values),
            (self.largest, -np.abs(values)),
        )
        return [(count, np.argsort(key, kind="stable")) for count, key in orders if count]


@dataclass(frozen=True)
class Pairs:
    """Extreme Ritz pairs.

    Attributes:
        values: (n,) ascending.
        vectors: (n, P) orthonormal rows.
        n_lower: How many of them belong to the lower end; of largest magnitudes the negative ones.
        norm: Largest |Ritz value| that was seen, a lower bound of ‖H‖₂ that is sharp once an end
            has converged.
        exhausted: Whether an end reached zero before it had as many as wanted.
        converged: Whether all that was wanted was found.
        products: Of the operator.
    """

    values: Numbers
    vectors: Vectors
    n_lower: int
    norm: float
    exhausted: bool
    converged: bool
    products: int


def extreme_pairs(
    operator: SymmetricOperator,
    wanted: Wanted,
    *,
    width: int,
    tolerance: float = 1e-10,
    seed: int = 0,
    limit: int | None = None,
    tick: Callable[[str, int, int], None] | None = None,
) -> Pairs:
    """Extreme eigenpairs by thick-restart Lanczos.

    Converged spaces are searched once more from a fresh random vector: a level of higher
    multiplicity shows only one of its copies to the first.

    Args:
        operator: H.
        wanted: Which.
        width: m, vectors of the basis, more than are wanted unless m = P.
        tolerance: Largest residual ‖Hx - θx‖ over ‖H‖₂; never below what rounding adds.
        seed: Of the start vectors.
        limit: Products after which to stop with what has converged; 100 m if None.
        tick: Told of progress: phase, levels that converged, levels wanted.

    Returns:
        The pairs; raises ConvergenceError if none converged.
    """
    return _Restarted(operator, wanted, width, tolerance, seed, tick).run(limit or 100 * width)


class _Restarted:
    """State of a thick-restart Lanczos iteration: basis V, T = VᵀHV, and the next direction."""

    def __init__(
        self,
        operator: SymmetricOperator,
        wanted: Wanted,
        width: int,
        tolerance: float,
        seed: int,
        tick: Callable[[str, int, int], None] | None,
    ) -> None:
        self.operator, self.wanted, self.width = operator, wanted, width
        self.tolerance, self.seed, self.tick = tolerance, seed, tick
        self.size = operator.dimension
        self.basis = torch.empty(
            min(width + 1, self.size), self.size, dtype=operator.dtype, device=operator.device
        )
        self.small = np.zeros((width, width))
        self.norm = 0.0
        self.products = self.draws = 0
        self.have = self.lower = 0
        self.beta = 0.0
        self.basis[0] = self._random()

    def run(self, limit: int) -> Pairs:
        """Iterate until everything has converged and a second look finds nothing more."""
        looked: Numbers | None = None
        while True:
            fill = self.width if looked is None else min(self.width, self.have + _SECOND_LOOK)
            self._fill(fill)
            values, rotation = np.linalg.eigh(self.small[: self.have, : self.have])
            self.norm = max(self.norm, float(np.abs(values).max()))
            floor = round_off(self.norm, self.size, self.operator.dtype)
            goal = max(self.tolerance * self.norm, floor)
            residuals = self.beta * np.abs(rotation[-1])
            complete = self.have == self.size
            chosen, more, exhausted = self._judge(values, residuals, goal, floor)
            if self.tick:
                self.tick("edge levels", min(len(chosen), self.wanted.levels), self.wanted.levels)
            done = not more
            if complete or (done and looked is not None and _same(looked, values[chosen], goal)):
                return self._pairs(values, rotation, chosen, exhausted, True)
            if self.products >= limit:
                if not len(chosen):
                    raise ConvergenceError(
                        f"no extreme level has converged after {self.products:,} products; allow "
                        "a larger residual (tolerance), or more vectors (ask for more levels)"
                    )
                return self._pairs(values, rotation, chosen, exhausted, False)
            looked = values[chosen] if done else None
            self._restart(values, rotation, fresh=done)

    def _judge(
        self, values: Numbers, residuals: Numbers, goal: float, floor: float
    ) -> tuple[np.ndarray, bool, bool]:
        """Positions that have converged, whether more are to come, whether an end met zero."""
        chosen: set[int] = set()
        more = exhausted = False
        self.lower = 0
        for count, order in self.wanted.ends(values):
            got = 0
            # the order begins with the smallest value at the lower end only
            lower = order[0] == 0 and not self.wanted.largest
            while got < min(count, len(order)):
                position = int(order[got])
                if residuals[position] > goal:
                    more = True
                    break
                if abs(values[position]) <= floor:
                    exhausted = True
                    break
                chosen.add(position)
                got += 1
                self.lower += bool(lower or (self.wanted.largest and values[position] < 0))
            else:
                if got < count:
                    more |= self.have < self.size
                    exhausted |= self.have == self.size
        return np.array(sorted(chosen), dtype=np.int64), more, exhausted

    def _fill(self, stop: int) -> None:
        """Extend the basis to ``stop`` vectors, the next direction stored behind them."""
        while self.have < stop:
            j = self.have
            w = self.operator(self.basis[j : j + 1])[0]
            self.products += 1
            self.norm = max(self.norm, float(w.norm()))
            inner, rest = orthogonalise(w, self.basis[: j + 1])
            column = inner.to(torch.float64).cpu().numpy()
            self.small[: j + 1, j] = self.small[j, : j + 1] = column
            self.have, self.beta = j + 1, float(rest.norm())
            if self.have == self.size:
                self.beta = 0.0
                return
            if self.beta <= round_off(self.norm, self.size, w.dtype):  # an invariant space
                self.beta, rest = 0.0, self._random(self.basis[: self.have])
                self.basis[self.have] = rest
            else:
                self.basis[self.have] = rest / self.beta
            if self.tick and j % 16 == 0:
                self.tick("products", j, stop)

    def _restart(self, values: Numbers, rotation: np.ndarray, *, fresh: bool) -> None:
        """Keep the wanted Ritz vectors and some next to them; go on from the last direction."""
        spare = self.have - self.wanted.levels
        keep = self.wanted.levels + (0 if fresh else spare // 3)
        keep = max(1, min(keep, self.have - 1, self.width - 2))
        ends = self.wanted.ends(values)
        chosen: set[int] = set()
        for place in range(self.have):
            for count, order in ends:
                # each end gets its share
                if len(chosen) < keep and place < -(-keep * count // self.wanted.levels):
                    chosen.add(int(order[place]))
        kept = np.array(sorted(chosen), dtype=np.int64)
        turn = torch.from_numpy(rotation[:, kept].T.copy()).to(self.basis)
        for first in range(0, self.size, _COLUMNS):
            part = slice(first, first + _COLUMNS)
            self.basis[: len(kept), part] = turn @ self.basis[: self.have, part]
        if fresh:
            self.beta = 0.0
            self.basis[len(kept)] = self._random(self.basis[: len(kept)])
        else:
            self.basis[len(kept)] = self.basis[self.have].clone()
        self.have = len(kept)
        self.small[: self.have, : self.have] = np.diag(values[kept])

    def _random(self, basis: Vectors | None = None) -> Vector:
        """A random unit vector orthogonal to some others."""
        generator = rng.torch_generator(self.seed, "lanczos", self.draws)
        self.draws += 1
        drawn = torch.randn(self.size, generator=generator, dtype=torch.float64)
        drawn = drawn.to(dtype=self.operator.dtype, device=self.operator.device)
        if basis is not None:
            drawn = orthogonalise(drawn / drawn.norm(), basis)[1]
            drawn = orthogonalise(drawn / drawn.norm(), basis)[1]
        return drawn / drawn.norm()

    def _pairs(
        self,
        values: Numbers,
        rotation: np.ndarray,
        chosen: np.ndarray,
        exhausted: bool,
        converged: bool,
    ) -> Pairs:
        turn = torch.from_numpy(rotation[:, chosen].T.copy()).to(self.basis)
        for first in range(0, self.size, _COLUMNS):
            part = slice(first, first + _COLUMNS)
            self.basis[: len(chosen), part] = turn @ self.basis[: self.have, part]
        return Pairs(
            values=values[chosen],
            vectors=self.basis[: len(chosen)],
            n_lower=0 if len(chosen) == self.size else self.lower,
            norm=self.norm,
            exhausted=exhausted,
            converged=converged,
            products=self.products,
        )


def _same(before: Numbers, now: Numbers, goal: float) -> bool:
    return len(before) == len(now) and bool((np.abs(before - now) <= goal).all())


def vectors_needed(wanted: int, size: int, spare: int | None = None) -> int:
    """Width of the basis for a number of levels.

    Args:
        wanted: Levels.
        size: P.
        spare: Vectors beside them; as many as levels, within limits, if None.

    Returns:
        m.
    """
    beside = max(40, min(wanted, 1000)) if spare is None else spare
    return min(size, wanted + beside)
