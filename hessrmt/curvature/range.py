"""An orthonormal basis of the range of a symmetric matrix that is known by its products.

Block Lanczos with complete reorthogonalisation, run until nothing is left: the newest block of the
basis V is multiplied, what of the images lies outside of V becomes the next block, and blocks are
filled up with fresh Gaussian vectors, so that no invariant subspace is missed. Each basis vector is
multiplied once. T = V H Vᵀ has the nonzero eigenvalues of H; its dimension is the rank of H to
rounding, whatever architecture H belongs to.

Whether V is complete and orthonormal is not trusted: how far VᵀT V is from H is measured afterwards
along other random vectors (:class:`hessrmt.curvature.certify.Reference`), and
:meth:`Basis.shift` measures V Vᵀ - I.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from hessrmt.arrays import fetched
from hessrmt.curvature.rounding import DIRECTIONS, gaussian, norm_bound
from hessrmt.errors import NonFiniteError, StoreError
from hessrmt.progress import Tick, silent
from hessrmt.store.search import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from hessrmt.arrays import Matrix, Vectors
    from hessrmt.curvature.products import Product
    from hessrmt.store.search import SearchFile


WIDTH = 64
"""Vectors multiplied together: enough for matrix products to run at full speed."""

_FRESH = 4
"""Gaussian vectors whose images must lie in the range before it is called complete; and as many
whose part outside of the basis says how large the range is at least."""

_CHANCE = 5
"""Standard deviations of that which are allowed for: it fails with probability 3e-7."""

_PIECE = 1024
"""Rows of the basis that are allocated together."""

_SPREAD = 1e-2
"""Length, relative to the longest of its block, from which a new direction keeps enough digits of
its orthogonality to V; shorter ones are made orthogonal again."""

_SHRINKS = 0.1
"""Share of its length below which a vector that lost the rest is made orthogonal again."""

_POWER = 4
"""Power of a matrix whose norm is bounded in place of its own."""

_NOISE = 4
"""Multiple of the estimated rounding of a product up to which a direction is not there."""


class Basis(ABC):
    """Orthonormal vectors, as rows of V.

    Attributes:
        like: Gives their precision and place.
    """

    like: Tensor

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abstractmethod
    def project(self, vectors: Tensor) -> Tensor:
        """Coordinates of vectors.

        Args:
            vectors: (..., n).

        Returns:
            (..., k), vectors times Vᵀ.
        """

    @abstractmethod
    def lift(self, coordinates: Tensor) -> Tensor:
        """Vectors of given coordinates.

        Args:
            coordinates: (..., k).

        Returns:
            (..., n), coordinates times V.
        """

    def shift(self, matrix: Matrix) -> float:
        """A bound on how far eigenvalues of VᵀT V, or zero, are from those of T.

        They are those of (I + E)^½ T (I + E)^½ with E = V Vᵀ - I, which is T + (E T + T E)/2 to
        first order: what is not orthonormal matters as far as T acts there.

        Args:
            matrix: T, (k, k) symmetric.

        Returns:
            The bound, which fails with probability 0.002.
        """
        if not len(self):
            return 0.0
        largest = matrix.abs().max()
        matrix = matrix / largest

        def skew(rows: Vectors) -> Vectors:
            return self.project(self.lift(rows)) - rows

        def first_order(rows: Vectors) -> Vectors:
            return (skew(rows) @ matrix + skew(rows @ matrix)) / 2

        parts = [*_powers(first_order, self), *_powers(skew, self)]
        size, *known = fetched(largest, *parts)
        if not size:
            return 0.0
        return float(size) * _norm(*known[:2]) * (1 + _norm(*known[2:]))


def _powers(product: Product, basis: Basis) -> tuple[Tensor, Tensor]:
    """Random rows times a power of a matrix on coordinates: their norms, and what was left out."""
    rows = gaussian((DIRECTIONS, len(basis)), basis.like, "orthonormality")
    sizes = []
    for _ in range(_POWER):
        rows = product(rows)
        sizes.append(rows.abs().max())
        rows = rows / sizes[-1]
    return rows.norm(dim=1), torch.stack(sizes)


def _norm(norms: np.ndarray, sizes: np.ndarray) -> float:
    """A bound on the 2-norm of a matrix: of itself it would bound little better than ‖.‖_F."""
    if not sizes.all():
        return 0.0
    logarithm = sum(map(math.log, sizes.tolist()))
    return math.exp((math.log(norm_bound(norms.tolist())) + logarithm) / _POWER)


class Rows(Basis):
    """Orthonormal rows in pieces, so that more of them need no copy.

    Args:
        like: (n,) gives dimension, precision and place.
    """

    def __init__(self, like: Tensor) -> None:
        self.like, self.size = like, 0
        self._pieces: list[Vectors] = []

    def __len__(self) -> int:
        """Number of rows."""
        return self.size

    @property
    def parts(self) -> Iterator[tuple[slice, Vectors]]:
        """The rows of each piece, and which they are."""
        for number, piece in enumerate(self._pieces):
            some = slice(number * _PIECE, min(self.size, (number + 1) * _PIECE))
            yield some, piece[: some.stop - some.start]

    def append(self, rows: Vectors) -> None:
        """Add rows that are orthonormal, also to those that are there.

        Args:
            rows: (m, n).
        """
        assert self.size + len(rows) <= self.like.numel()
        while len(rows):
            place = self.size % _PIECE
            if not place:
                shape = min(_PIECE, self.like.numel()), self.like.numel()
                self._pieces.append(self.like.new_empty(shape))
            piece = self._pieces[-1]
            now = rows[: len(piece) - place]
            piece[place : place + len(now)] = now
            self.size += len(now)
            rows = rows[len(now) :]

    def rows(self, some: slice) -> Vectors:
        """Rows of the basis.

        Args:
            some: Which, consecutive.

        Returns:
            (m, n), a copy.
        """
        found = [
            part[max(0, some.start - place.start) : max(0, some.stop - place.start)]
            for place, part in self.parts
        ]
        return torch.cat([self.like.new_empty(0, self.like.numel()), *found])

    def project(self, vectors: Tensor) -> Tensor:
        """Coordinates of vectors (..., n), (..., k)."""
        found = [vectors @ part.T for _, part in self.parts]
        return torch.cat(found, dim=-1) if found else vectors[..., :0]

    def lift(self, coordinates: Tensor) -> Tensor:
        """Vectors of given coordinates (..., k), (..., n)."""
        total = coordinates.new_zeros(*coordinates.shape[:-1], self.like.numel())
        for some, part in self.parts:
            total += coordinates[..., some] @ part
        return total

    def take_out(self, vectors: Vectors) -> Tensor:
        """Subtract from vectors, in place, what of them lies in the span.

        Args:
            vectors: (m, n).

        Returns:
            (m, k) coordinates of what was taken out.
        """
        coordinates = self.project(vectors)
        for some, part in self.parts:
            vectors.addmm_(coordinates[:, some], part, alpha=-1)
        return coordinates


@dataclass
class Range:
    """A basis of the range of H, and H in it; grows until it is complete.

    Attributes:
        basis: V, (k, n).
        blocks: Coordinates of H/scale times the rows, (m, j) for the m rows that end at row j.
        scale: A power of two, of the size of H: what is below belongs to H over it.
        fresh: Gaussian vectors that have been drawn.
        products: Products with H.
        norm: ‖H‖₂ as far as it was seen.
        noise: Length of what rounding adds to a product with a unit vector, as far as it was seen.
        complete: Whether fresh vectors add nothing.
        outside: What lies outside of the basis of the Gaussian vectors drawn first, (4, n).
    """

    basis: Rows
    blocks: list[Tensor] = field(default_factory=list)
    scale: float = 0.0
    fresh: int = 0
    products: int = 0
    norm: float = 0.0
    noise: float = 0.0
    complete: bool = False
    outside: Vectors | None = None

    def __len__(self) -> int:
        """The dimension k."""
        return len(self.basis)

    @property
    def at_least(self) -> int:
        """Dimensions that the range has at least.

        What lies outside of the range lies outside of the basis, whose polynomials in H leave far
        less of a vector than k of its n coordinates: a Gaussian vector has the square of its length
        there that is the dimension of H's null space, and one of a deviation of √(2 n) at most.
        """
        if self.outside is None:
            return len(self)
        size = self.outside.shape[1]
        null = float(self.outside.square().sum(1).mean())
        null += _CHANCE * math.sqrt(2 * size / len(self.outside))
        return max(len(self), int(size - null))

    @property
    def multiplied(self) -> int:
        """How many rows have been multiplied; those behind them wait."""
        return self.blocks[-1].shape[1] if self.blocks else 0

    @property
    def matrix(self) -> Matrix:
        """T = V H Vᵀ of the rows that have been multiplied, (k, k) symmetric."""
        size = self.multiplied
        found = self.basis.like.new_zeros(size, size)
        for block in self.blocks:
            count, stop = block.shape
            rows = slice(stop - count, stop)
            found[rows, :stop] = block
            found[rows, rows] = (block[:, rows] + block[:, rows].T) / 2
            found[: rows.start, rows] = block[:, : rows.start].T
        return found * self.scale


def range_of(
    product: Product,
    like: Tensor,
    *,
    width: int = WIDTH,
    limit: int | None = None,
    expected: int | None = None,
    tick: Tick = silent,
    kept: SearchFile | None = None,
) -> Range:
    """An orthonormal basis of the range of a symmetric matrix, to rounding.

    Args:
        product: Maps rows (m, n) to their products with H.
        like: (n,) gives dimension, precision and place.
        width: Vectors multiplied together.
        limit: Dimensions beyond which to stop; n if None.
        expected: What progress compares the dimensions found with; n if None.
        tick: Called with phase, dimensions found and those expected.
        kept: Where the search is written to now and then; what is there is continued.

    Returns:
        The basis; not complete if the range has more dimensions than the limit. Raises
        NonFiniteError if a product is NaN or infinite, StoreError if the search that was kept is
        another one.
    """
    size = like.numel()
    limit = size if limit is None else limit
    state = Range(Rows(like), complete=not size)
    if kept is not None and size:
        state = _restored(like, kept, product)
    written = len(state), len(state.blocks)
    while not state.complete and state.at_least <= limit:
        _multiply(state, product, width)
        if kept is not None and kept.due():
            kept.append(_record(state, *written))
            written = len(state), len(state.blocks)
        tick("dimensions", len(state), max(expected or size, len(state)))
    return state


def rank_at_least(product: Product, like: Tensor, products: int) -> int:
    """A lower bound on the rank of a symmetric matrix, from a few products.

    Args:
        product: Maps rows (m, n) to their products with H.
        like: (n,) gives dimension, precision and place.
        products: How many to spend.

    Returns:
        The bound, which fails with probability 3e-7. Raises NonFiniteError if a product is NaN or
        infinite.
    """
    state = Range(Rows(like), complete=not like.numel())
    while not state.complete and state.products < products:
        _multiply(state, product, _FRESH)
    return state.at_least


_NUMBERS = ("scale", "fresh", "products", "norm", "noise", "complete")

_SAME = 100
"""Multiple of rounding by which products of another matrix are told from those of the same one on
another machine."""


def _record(state: Range, rows: int, blocks: int) -> Record:
    """What a search has found since it had so many rows and blocks."""
    new = state.basis.rows(slice(rows, len(state))), *state.blocks[blocks:]
    numbers = {name: getattr(state, name) for name in _NUMBERS}
    return Record(numbers, [part.cpu().numpy() for part in new])


def _restored(like: Tensor, kept: SearchFile, product: Product) -> Range:
    """Where an earlier search was; a new one if there is none. Refuses that of another matrix."""
    state, same = Range(Rows(like)), True
    for record in kept.read():
        rows, *blocks = (torch.from_numpy(array).to(like.device) for array in record.arrays)
        size = len(state) + len(rows)
        same = same and rows.dtype == like.dtype and rows.shape[1:] == like.shape
        same = same and size <= like.numel() and all(x.shape[1] <= size for x in blocks)
        if not same:
            break
        state.basis.append(rows)
        state.blocks += blocks
        for name in _NUMBERS:
            setattr(state, name, record.numbers[name])
    if same and not state.blocks:  # nothing that could be compared
        kept.clear()
        return Range(Rows(like))
    if same:
        mixture = gaussian((1, state.multiplied), like, "search")
        mixture /= mixture.norm()
        waiting = len(state) - state.multiplied
        vector = state.basis.lift(torch.nn.functional.pad(mixture, (0, waiting)))
        image = state.basis.project(product(vector) / state.scale)[:, : state.multiplied]
        apart = float((image - mixture @ state.matrix / state.scale).norm())
        same = apart <= _SAME * max(state.noise, _rounding(like, state.norm))
    if not same:
        raise StoreError(
            f"{kept.path} keeps the search of another matrix; remove it, or name another file"
        )
    return state


def _rounding(like: Tensor, norm: float) -> float:
    """Length of what rounding adds to a product with a unit vector, if nothing else is known."""
    return torch.finfo(like.dtype).eps * math.sqrt(like.numel()) * norm


def _drawn(like: Tensor, numbers: range) -> Vectors:
    """Gaussian vectors by their numbers, (m, n)."""
    drawn = [gaussian((1, like.numel()), like, "range", number) for number in numbers]
    return torch.cat([like.new_empty(0, like.numel()), *drawn])


def _multiply(state: Range, product: Product, width: int) -> None:
    """Multiply the rows that wait and fresh vectors beside them; what is new waits next."""
    basis, like = state.basis, state.basis.like
    size, before, waiting = like.numel(), len(basis), len(basis) - state.multiplied
    fresh = 0 if before == size else min(size, width - waiting if waiting or not before else _FRESH)
    drawn = _drawn(like, range(state.fresh, state.fresh + fresh))
    images = product(torch.cat([basis.rows(slice(state.multiplied, before)), drawn])).detach()
    if not state.scale:
        largest = float(images.abs().max())
        state.scale = 2.0 ** math.frexp(largest)[1] if math.isfinite(largest) else 1.0
    images = images / state.scale
    finite, lengths = torch.isfinite(images).all(), images.norm(dim=1)
    previous = state.blocks[-1].shape[0] if state.blocks else 0
    coordinates, short = _take_out(basis, images, max(0, state.multiplied - previous))
    asymmetry = _asymmetry(coordinates, waiting)
    asked = fetched(finite, lengths, short, asymmetry)
    if not asked[0]:
        raise NonFiniteError("the Hessian has NaN or infinite entries")
    if asked[2].any():
        again = torch.from_numpy(asked[2].nonzero()[0]).to(like.device, non_blocking=True)
        rows = images[again]
        coordinates[again] += basis.take_out(rows)
        images[again] = rows
        asked[3:] = fetched(_asymmetry(coordinates, waiting))
    if waiting:
        state.noise = max(state.noise, math.sqrt(size / 2) * float(asked[3]))
        state.blocks.append(coordinates[:waiting])
    sizes = asked[1].copy()
    sizes[waiting:] /= math.sqrt(size)  # of Gaussian vectors
    state.norm = max(state.norm, float(sizes.max()))
    noise, eps = max(state.noise, _rounding(like, state.norm)), torch.finfo(like.dtype).eps
    if fresh and noise:  # their images are longer, and so is what rounding adds to them
        relative = max(state.noise / state.norm, eps * math.sqrt(max(before, width)))
        images *= (noise / (relative * lengths)).clamp(max=1)[:, None]
    added = _extend(basis, images, _NOISE * noise)
    if state.outside is None:
        state.outside = _drawn(like, range(_FRESH))
        basis.take_out(state.outside)
    else:
        new = basis.rows(slice(before, len(basis)))
        state.outside.addmm_(state.outside @ new.T, new, alpha=-1)
    state.fresh += fresh
    state.products += len(images)
    state.complete = (not waiting and not added) or len(basis) == state.multiplied == size


def _asymmetry(coordinates: Tensor, waiting: int) -> Tensor:
    """Root mean square of h - hᵀ of the newest rows, which the waiting images belong to."""
    if not waiting:
        return coordinates.new_zeros(())
    own = coordinates[:waiting, -waiting:]
    return (own - own.T).square().mean().sqrt()


def _take_out(basis: Rows, images: Vectors, near: int) -> tuple[Tensor, Tensor]:
    """Take out of images, in place, what lies in the basis.

    Returns:
        (m, k) coordinates, and (m,) for which it should be done again.
    """
    # those of the newest rows lie mostly along the last two blocks, from row `near` on; without
    # these they are short, and one pass over all rows makes them orthogonal
    if not len(basis):
        nothing = images.new_zeros(len(images), 0)
        return nothing, nothing.any(dim=1)
    rows = basis.rows(slice(near, len(basis)))
    first = images @ rows.T
    images.addmm_(first, rows, alpha=-1)
    lengths = images.norm(dim=1)
    coordinates = basis.take_out(images)
    coordinates[:, near:] += first
    return coordinates, images.norm(dim=1) < _SHRINKS * lengths


def _extend(basis: Rows, rows: Vectors, least: float) -> int:
    """Add to a basis the directions in which orthogonal rows are longer than the least length."""
    before = len(basis)
    while len(rows):
        squares, turn = torch.linalg.eigh(
            (rows @ rows.T).cpu()
        )  # in main memory, where it is quick
        lengths = squares.clamp(min=0).sqrt()
        longest = float(lengths[-1])
        if not longest > least:
            break
        long = lengths > max(least, _SPREAD * longest)
        turns = ((turn[:, long] / lengths[long]).T, turn[:, ~long].T)
        first, others = (part.to(rows.device, non_blocking=True) for part in turns)
        new = first @ rows
        # nearly the identity, so that nothing can fail and nothing has to be waited for
        lower = torch.linalg.cholesky_ex(new @ new.T).L
        basis.append(torch.linalg.solve_triangular(lower, new, upper=False))
        rows = others @ rows
        basis.take_out(rows)
    return len(basis) - before
