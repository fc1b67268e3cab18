"""Curvature matrices as operators: known by their products, never formed.

H v = Σ_j w_j H_j v over micro-batches j, whose weights w_j make the losses of the micro-batches add
up to the loss of all data; each is linearised once as far as memory allows and read anew for every
product otherwise.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hessrmt.backend.select import select
from hessrmt.checks import one_of, require_whole, whole
from hessrmt.curvature.certify import (
    Comparison,
    gradient,
    random_direction,
    require_agreement,
    require_gradient,
    require_jacobian,
    require_second_derivative,
)
from hessrmt.curvature.dense import (
    Device,
    Dtype,
    dtype_name,
    gib,
    halved,
    row_bytes,
    saved_bytes,
    torch_dtype,
    unit_vectors,
    usable_memory,
)
from hessrmt.curvature.differences import (
    DIFFERENTIATION,
    FINITE_DIFFERENCE,
    PRODUCTS,
    Differences,
)
from hessrmt.curvature.parallel import ALONE, ranks_of
from hessrmt.curvature.products import TRACED_FROM, KeptProduct, choose, close
from hessrmt.curvature.rounding import (
    DIRECTIONS,
    FEW_DIRECTIONS,
    Perturbed,
    directions,
    gaussian,
    lengths,
    norm_bound,
    round_off,
)
from hessrmt.errors import ConfigError, DataError, DeviceError, NonFiniteError, ProblemError
from hessrmt.problems.batches import Batch, join, read_batch
from hessrmt.problems.outputs import in_one_tensor, is_recorded_mean, loss_mass
from hessrmt.problems.problem import Problem, of_parts, ordinary_mode

if TYPE_CHECKING:
    import re

    from scipy.sparse.linalg import LinearOperator
    from torch import nn

    from hessrmt.arrays import Vector, Vectors
    from hessrmt.backend.base import Backend
    from hessrmt.curvature.parallel import Group
    from hessrmt.problems.losses import Loss


OPERATORS = ("hessian", "ggn", "fisher")

_KEPT_BYTES = 4 * 2**30
"""Memory for linearised micro-batches; fixed, so that the rounding of a run rarely depends on what
else runs on the machine."""

_TRACED_COPIES = 8
"""Arrays of the size of everything saved for backward that a linearised Hessian keeps: 5 to 7.5
measured on LeNet-5 (docs/density.md)."""

_MEAN_ULPS = 256
"""How far, in ulps, a loss may lie from the weighted mean of its parts."""

_TOGETHER = 8
"""Unit vectors multiplied at a time."""


class Operator(ABC):
    """A symmetric matrix known by its products: ``H @ v``, ``H + 0.1 * hr.Identity(n)``.

    Attributes:
        dimension: n.
        dtype: Of its vectors.
        device: Where they live.
        products_by: ``"differentiation"``, or ``"finite-difference"`` where products are quotients
            of differences.
        product_error: Bound on the rounding error of a product with a unit vector, where that is
            far more than :func:`~hessrmt.curvature.lanczos.round_off`; else 0.0.
    """

    dimension: int
    dtype: torch.dtype
    device: torch.device
    products_by: str = DIFFERENTIATION
    product_error: float = 0.0
    neutral = False
    """Whether it takes vectors of any precision, in any place."""

    @abstractmethod
    def __call__(self, block: Vectors) -> Vectors:
        """Products with the rows of a block.

        Args:
            block: (k, n) in the operator's precision and place.

        Returns:
            (k, n).
        """

    def unchecked(self, block: Vectors) -> Vectors:
        """The same for callers that see themselves if a product is NaN or infinite.

        Whether all is finite, a device has to be asked and waited for.

        Args:
            block: (k, n).

        Returns:
            (k, n).
        """
        return self(block)

    def expect(self, products: int) -> None:  # noqa: B027
        """Prepare for a number of products, if that pays.

        Args:
            products: How many there will be at least.
        """

    def truncation(self, block: Vectors) -> Tensor:
        """Estimates of what errors of the products with unit vectors are not rounding.

        Args:
            block: (k, n) unit vectors.

        Returns:
            (k,) in the 2-norm; zeros unless products are finite differences.
        """
        return block.new_zeros(len(block))

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        return self.dimension, self.dimension

    def __matmul__(self, other: Any) -> Any:
        """The product with a vector or with columns.

        Args:
            other: (n,) or (n, k), a tensor or an array.

        Returns:
            Of the same shape; an array for an array.

        Raises:
            ConfigError: If the shape is another one.
        """
        given = other if isinstance(other, Tensor) else torch.as_tensor(np.array(other))
        if given.is_complex():
            raise ConfigError("a real matrix multiplies real vectors; give real and imaginary part")
        if given.dim() not in (1, 2) or len(given) != self.dimension:
            raise ConfigError(
                f"a matrix of shape {self.shape} can multiply a vector ({self.dimension},) or "
                f"columns ({self.dimension}, k), not shape {tuple(given.shape)}"
            )
        rows = given.reshape(self.dimension, -1).T.to(device=self.device, dtype=self.dtype)
        found = self(rows.contiguous()).T.reshape(given.shape) if len(rows) else rows.T
        return found.cpu().numpy() if isinstance(other, np.ndarray) else found

    def __add__(self, other: Operator, factor: float = 1.0) -> Operator:
        return _Sum((1.0, self), (factor, other)) if isinstance(other, Operator) else NotImplemented

    def __sub__(self, other: Operator) -> Operator:
        return self.__add__(other, -1.0)

    def __mul__(self, factor: float) -> Operator:
        return _Sum((float(factor), self)) if isinstance(factor, Real) else NotImplemented

    __rmul__ = __mul__

    def __neg__(self) -> Operator:
        return -1.0 * self

    def diagonal(self) -> Vector:
        """The diagonal, from n products.

        Returns:
            (n,).
        """
        found = torch.empty(self.dimension, dtype=self.dtype, device=self.device)
        for start in range(0, self.dimension, _TOGETHER):
            rows = torch.arange(start, min(start + _TOGETHER, self.dimension), device=self.device)
            found[rows] = self(unit_vectors(rows, self.dimension, found))[:, rows].diagonal()
        return found

    def to_scipy(self) -> LinearOperator:
        """The same matrix for ``scipy.sparse.linalg``.

        Returns:
            An operator on NumPy vectors and columns, in the precision of this one.
        """
        from scipy.sparse.linalg import LinearOperator

        def multiply(columns: np.ndarray) -> np.ndarray:
            return self @ np.ascontiguousarray(columns)

        kind = torch.zeros(0, dtype=self.dtype).numpy().dtype
        make: Any = LinearOperator  # its constructor is that of a subclass which it picks
        return make(self.shape, matvec=multiply, rmatvec=multiply, matmat=multiply, dtype=kind)


class Identity(Operator):
    """The identity matrix, to be added to others.

    Its products have the precision and the place of the vectors.

    Args:
        n: Its dimension.
        dtype: Of its vectors.
        device: Where they live.
    """

    def __init__(self, n: int, dtype: Dtype = torch.float64, device: Device = "cpu") -> None:
        require_whole(n=n)
        self.dimension, self.dtype, self.neutral = n, torch_dtype(dtype), True
        self.device = select(device).device

    def __call__(self, block: Vectors) -> Vectors:
        """The block itself, (k, n)."""
        return block.clone()


class _Sum(Operator):
    """A linear combination of operators, in the precision and place of the first proper one."""

    def __init__(self, *terms: tuple[float, Operator]) -> None:
        if len({term.dimension for _, term in terms}) != 1:
            shapes = ", ".join(str(term.shape) for _, term in terms)
            raise ConfigError(f"matrices of shapes {shapes} cannot be added")
        self._terms = terms
        leading = next((t for _, t in terms if not t.neutral), terms[0][1])
        self.neutral, self.dimension = leading.neutral, leading.dimension
        self.dtype, self.device = leading.dtype, leading.device
        self._weigh()
        if any(term.products_by == FINITE_DIFFERENCE for _, term in terms):
            self.products_by = FINITE_DIFFERENCE

    def __call__(self, block: Vectors) -> Vectors:
        """Products with the rows of a block, (k, n)."""
        return self._added(block, (term(block) for _, term in self._terms))

    def unchecked(self, block: Vectors) -> Vectors:
        """The same, perhaps not finite."""
        return self._added(block, (term.unchecked(block) for _, term in self._terms))

    def _added(self, block: Vectors, products: Iterable[Vectors]) -> Vectors:
        total = torch.zeros_like(block)
        for (factor, _), product in zip(self._terms, products, strict=True):
            total.add_(product, alpha=factor)
        self._weigh()
        return total

    def _weigh(self) -> None:
        """Add the terms' errors, which may have grown with their products."""
        errors = (abs(factor) * term.product_error for factor, term in self._terms)
        self.product_error = sum(errors)

    def truncation(self, block: Vectors) -> Tensor:
        """The terms' errors that are not rounding, (k,)."""
        found = [abs(factor) * term.truncation(block) for factor, term in self._terms]
        return torch.stack(found).sum(dim=0)


class CurvatureOperator(Operator):
    """The curvature of the mean loss over batches of data, which are read one by one.

    The product of one vector does not depend on what is multiplied together with it. For samples
    that are in memory use :class:`Hessian`, :class:`GaussNewton` or :class:`EmpiricalFisher`.

    Args:
        model: Any ``torch.nn.Module`` in evaluation mode; copied, never changed.
        loss: As for :class:`~hessrmt.problems.problem.Problem`: a mean over samples.
        batches: Pairs (inputs, targets) or dict-like batches, the same ones whenever it is iterated
            over: a list, or a ``DataLoader`` without shuffling and random augmentation.
        operator: ``"hessian"``, ``"ggn"`` for Jᵀ S J, or ``"fisher"`` for the mean of the outer
            products of the samples' gradients.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        dtype: ``"float64"`` or ``"float32"``.
        only: The parameters to take.
        linearise: Keep micro-batches, as far as memory allows, linearised from the start; False
            differentiates anew for every product. If None, the graphs of their gradients are kept,
            and they are linearised when :meth:`expect` hears of enough products.
        group: Of ``torch.distributed``: the loss is the mean over the batches of all its ranks,
            each of which gives its share, makes the same calls and gets the same numbers
            (docs/distributed.md). A model of FSDP2 is gathered.
        products: ``"differentiation"``, or ``"finite-difference"`` for central differences of the
            gradient, for a Hessian whose network torch cannot differentiate twice.

    Attributes:
        samples: N; like the next four of all ranks.
        parts: Micro-batches.
        kept: How many of them are kept as graphs.
        loss: Mean loss.
        gradient_norm: Euclidean norm of its gradient.
        kind: ``"hessian"``, ``"ggn"`` or ``"fisher"``.
        precision: ``"float64"`` or ``"float32"``.
        backend: Where vectors live.
        products: Products so far.

    Raises:
        ProblemError: If the operator's name is unknown, the loss is random, no mean over samples or
            not twice differentiable by torch; with finite differences if the gradient jumps.
        DataError: If there is no batch, or batches that can be read only once or change.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: str | Loss,
        batches: Iterable[Any],
        operator: str = "hessian",
        *,
        device: Device = "auto",
        dtype: Dtype = "float64",
        only: str | re.Pattern[str] | Sequence[str] | None = None,
        linearise: bool | None = None,
        products: str = DIFFERENTIATION,
        group: Group = ALONE,
    ) -> None:
        ranks = ranks_of(group)
        with ranks.at("the first batch"):
            if isinstance(batches, Iterator):
                raise DataError(
                    "the batches can be read only once, and every product reads them again; give a "
                    "list or a DataLoader"
                )
            backend = select(device)
            first = next(map(read_batch, batches), None)
        having = [rank for rank, has in enumerate(ranks.gather(first is not None)) if has]
        if not having:
            raise DataError("there is no batch of data")
        if len(having) < ranks.size:  # a rank without data looks at that of another
            lent = ranks.share(first, having[0])
            first = lent if first is None else first
        model = ranks.whole(model, ranks.beside(backend))
        with ranks.at("the model"):
            problem = Problem(model, loss, first, only=only)
        options = (operator, device, dtype, linearise, products, group)
        self._read(problem, lambda: map(read_batch, batches), *options)

    @classmethod
    def of(cls, problem: Problem, operator: str = "hessian", **options: Any) -> CurvatureOperator:
        """The operator of a problem whose samples are in memory.

        Args:
            problem: Model, loss and samples.
            operator: ``"hessian"``, ``"ggn"`` or ``"fisher"``.
            options: As for :class:`Hessian`.

        Returns:
            The operator.
        """
        one_of("operator", operator, OPERATORS, error=ProblemError)
        kinds = {"hessian": Hessian, "ggn": GaussNewton, "fisher": EmpiricalFisher}
        return kinds[operator](problem, **options)

    @ordinary_mode()
    def _read(
        self, problem: Problem, batches: Callable[[], Iterable[Batch]], *options: Any
    ) -> None:
        """Set up, from a batch, with kind, device, dtype, linearise, products and group."""
        kind, device, dtype, linearise, products_by, group = self._options = options
        self._ranks = ranks = ranks_of(group)
        differences = products_by == FINITE_DIFFERENCE
        with ranks.at("the set-up"):
            one_of("operator", kind, OPERATORS, error=ProblemError)
            one_of("way of products", products_by, PRODUCTS, error=ProblemError)
            if differences and kind != "hessian":
                raise ProblemError(
                    f"products by finite differences are those of the Hessian; the operator "
                    f"{kind!r} needs derivatives of the outputs, take products='differentiation' "
                    "for it"
                )
            self._place = select(device)
            self.device, self.dtype = self._place.device, torch_dtype(dtype)
            self.kind, self.precision, self.products = kind, dtype_name(dtype), 0
            self._batches, self.products_by = batches, products_by
            self._base = problem.at(self.dtype, self.device)
            if differences:
                self._base.inside = replace(self._base.inside, own_kernels=True)
        self.backend: Backend = ranks.beside(self._place)
        ranks.require_one_problem(self._base, (kind, self.precision, products_by))
        self.dimension = self._base.dimension
        self._survey()
        if differences:
            self._use_differences()
            return
        with ranks.at("the choice of products"):
            if kind == "ggn":
                self._base.require_loss_of_outputs_alone()
                packed = in_one_tensor(self._base)
                require_jacobian(packed, random_direction(self._base))
                if self.parts == 1:  # the loss of other batches may depend on other outputs
                    self._base = packed
            ways = choose(self._base, kind)
            self._plain, self._check = ways.plain, ways.check
            parts = self._problems(stop=0 if linearise is False else self._room())
            self._kept = [(weight, KeptProduct(part, ways)) for weight, part in parts]
        self.kept, self._traced = sum(ranks.gather(len(self._kept))), False
        if linearise:
            self.expect(TRACED_FROM)
        with ranks.at("the second derivative"):
            if kind == "hessian":
                require_second_derivative(self._base, random_direction(self._base))

    def _use_differences(self) -> None:
        """Measure the gradient and choose a step; parts that fit are held, not read anew."""
        with self._ranks.at("the micro-batches that are held"):
            self._held = list(self._problems(stop=self._room()))
        self._kept, self._traced = [], False
        self.kept = sum(self._ranks.gather(len(self._held)))
        theta = self._base.theta
        slope = self._slopes(theta[None])[0]
        moved = partial(self._loss_at, theta, 0)
        require_gradient(self._loss_at, theta, slope, random_direction(self._base), moved)
        together = self.kept < self.parts
        self._differences = Differences(self._slopes, theta, together=together)
        self.product_error = self._differences.rounding

    def _counting(self) -> Iterator[tuple[int, float, Problem]]:
        """Number, weight and problem of the micro-batches that count, held or read anew."""
        held = len(self._held)
        anew = self._problems(held) if held < len(self._seen) else ()
        for part, (weight, problem) in enumerate(itertools.chain(self._held, anew), self._before):
            if weight:
                yield part, weight, problem

    def _slopes(self, points: Vectors, rounded: int | None = None) -> Vectors:
        """Gradients of the mean loss at the rows; perhaps all is rounded otherwise."""
        total = torch.zeros_like(points)
        with self._ranks.at("a gradient", points):
            with _rounding(rounded):
                points = points + 0  # a point is rounded as well
            for part, weight, problem in self._counting():
                for row, point in zip(total, points, strict=True):
                    with _rounding(rounded, part):
                        slope = gradient(problem.loss, point)
                    row.add_(slope, alpha=weight)
        return self._ranks.total(total)

    def _loss_at(self, theta: Vector, rounded: int | None = None) -> Tensor:
        total = theta.new_zeros(1)
        with self._ranks.at("a loss", theta[None]):
            for part, weight, problem in self._counting():
                with torch.no_grad(), _rounding(rounded, part):
                    loss = problem.loss(theta)
                total += weight * loss
        return self._ranks.total(total)[0]

    def block(self, only: str | re.Pattern[str] | Sequence[str]) -> CurvatureOperator:
        """The block of some parameters, all others held constant.

        Args:
            only: A pattern of their names, a regular expression, or a list of either.

        Returns:
            An operator of fewer dimensions.
        """
        found = CurvatureOperator.__new__(CurvatureOperator)
        found._read(self._base.restricted(only), self._batches, *self._options)
        return found

    @ordinary_mode()
    def expect(self, products: int) -> None:
        """Prepare for a number of products: what is kept is linearised if that pays.

        Args:
            products: How many there will be at least.
        """
        if products < TRACED_FROM or self._traced:  # finite differences keep nothing
            return
        with self._ranks.at("the linearisation"):
            for _, product in self._kept:
                product.trace()
        self._traced = True

    def unflatten(self, vector: Vector) -> dict[str, Tensor]:
        """A vector as one tensor for each parameter.

        Args:
            vector: (P,).

        Returns:
            Parameter name to tensor of the parameter's shape.
        """
        return self._base.unflatten(vector)

    @ordinary_mode()
    def __call__(self, block: Vectors) -> Vectors:
        """Products of the rows of a block with the mean curvature.

        Args:
            block: (k, P) in the operator's precision and place.

        Returns:
            (k, P).

        Raises:
            NonFiniteError: If an entry comes out as NaN or infinite.
        """
        total = self.unchecked(block)
        if not bool(torch.isfinite(total).all()):
            raise NonFiniteError(f"a product with the {self.kind} is NaN or infinite")
        return total

    @ordinary_mode()
    def unchecked(self, block: Vectors) -> Vectors:
        """The same, perhaps not finite.

        Args:
            block: (k, P) in the operator's precision and place.

        Returns:
            (k, P).
        """
        if self.products_by == FINITE_DIFFERENCE:
            total = self._differences(block) if len(block) else block
            self.product_error = self._differences.rounding  # of a shorter step it is larger
        else:
            total = torch.zeros_like(block)
            with self._ranks.at("a product", block):
                for weight, product in self._kept:
                    if weight:
                        total.add_(product(block), alpha=weight)
                if len(self._kept) < len(self._seen):
                    self._add(total, block, self._plain, len(self._kept))
            total = self._ranks.total(total)
        self.products += len(block)
        return total

    @ordinary_mode()
    def truncation(self, block: Vectors) -> Tensor:
        """Estimates of what errors of the products with unit vectors are not rounding.

        Args:
            block: (k, P) unit vectors.

        Returns:
            (k,) in the 2-norm; zeros unless products are finite differences.
        """
        if self.products_by != FINITE_DIFFERENCE or not len(block):
            return super().truncation(block)
        found = self._differences.truncation(block)
        self.product_error = self._differences.rounding
        return found

    @ordinary_mode()
    def rounding(self) -> float:
        """Bound on the rounding error of products, in the 2-norm (see ``curvature/rounding.py``).

        Returns:
            The bound, in the units of the eigenvalues; by finite differences, that of a product
            with a unit vector.
        """
        if self.products_by == FINITE_DIFFERENCE:
            return self.product_error
        rows = directions(self._base, FEW_DIRECTIONS)
        products, moved = torch.zeros_like(rows), torch.zeros_like(rows)
        with self._ranks.at("the rounding error of products", rows):
            for part, (weight, problem) in enumerate(self._problems(), self._before):
                if weight:
                    way = self._plain(problem)
                    products.add_(way(rows).detach(), alpha=weight)
                    for number, v in enumerate(rows):
                        with Perturbed(part * len(rows) + number):
                            found = way(v[None])[0].detach()
                        moved[number].add_(found, alpha=weight)
        return norm_bound(lengths(list(self._ranks.total(moved - products))))

    @ordinary_mode()
    def agreement(
        self,
        norm: float,
        v: Vector | None = None,
        product: Vector | None = None,
        rounding: float = 0.0,
    ) -> float:
        """How far another way of differentiating, from data read anew, leads from the product.

        Args:
            norm: ‖H‖₂.
            v: (P,) unit vector; a random one if None.
            product: (P,) H v, if it has been computed.
            rounding: What may be rounding, if that has been measured.

        Returns:
            ‖Hv - H'v‖/‖H‖₂. Raises ProblemError if rounding does not explain it: wrong derivatives,
            or data that changed. By finite differences H' is that of half the step.
        """
        v = random_direction(self._base) if v is None else v
        if self.products_by == FINITE_DIFFERENCE:
            return float(self.truncation(v[None])) / norm if norm else 0.0
        found = self(v[None]) if product is None else product[None]
        # traced products are forward-over-reverse, all others reverse-over-reverse
        traced = self.kind != "fisher" and any(kept.traced for _, kept in self._kept)
        expected = self._by(self._plain if traced else self._check, v[None])
        # torch may have a rule of forward mode wrong
        if self.kind == "hessian" and not close(expected, found):
            expected = self._by(self._plain, v[None])
        residual = float((found - expected).norm())
        apart = Comparison(residual, rounding, rounding)
        return require_agreement(apart, norm, self, self.precision)

    def _by(self, way: Any, block: Vectors) -> Vectors:
        """Products by a way of differentiating, from data read anew."""
        total = torch.zeros_like(block)
        with self._ranks.at("a product that is compared", block):
            self._add(total, block, way)
        return self._ranks.total(total)

    def _add(self, total: Vectors, block: Vectors, way: Any, start: int = 0) -> None:
        for weight, problem in self._problems(start):
            if weight:
                total.add_(way(problem)(block).detach(), alpha=weight)

    def _problems(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[float, Problem]]:
        """The micro-batches' weights, and their problems in their final precision and place."""
        number = -1
        for number, batch in enumerate(self._batches()):
            if stop is not None and number >= stop:
                return
            if number < start:
                continue
            if number >= len(self._seen) or _fingerprint(batch) != self._seen[number]:
                raise DataError(
                    "the batches are other ones than when they were first read; every pass must "
                    "give the same data in the same order: take shuffle=False and no random "
                    "augmentation"
                )
            yield self._weights[number], self._base.on(batch)
        if stop is None and number + 1 != len(self._seen):
            raise DataError(
                f"there were {len(self._seen):,} batches when they were first read and there are "
                f"{number + 1:,} now; every pass must give the same data"
            )

    def _survey(self) -> None:
        """Read all data once: sizes, loss and gradient, and everything that can be wrong."""
        ranks = self._ranks
        self._seen: list[tuple] = []
        self._saved = samples = 0
        masses, loss = [], 0.0
        slope = torch.zeros(self.dimension, dtype=self.dtype, device=self.device)
        with ranks.at("the first pass over the data"):
            few = len(list(itertools.islice(self._batches(), 2)))
        several = sum(ranks.gather(few)) > 1
        if several:
            self._settle()
        with ranks.at("the loss"):
            evaluated = self._base.evaluate()
        ranks.require_one_loss(evaluated, self._base)
        # the first batch of a rank comes after one of another
        before = self._base if several and ranks.size > 1 else None
        with ranks.at("the pass over all data"):
            for batch in self._batches():
                self._seen.append(_fingerprint(batch))
                problem = self._base.on(batch)
                saved, usable = saved_bytes(problem), self._usable()
                needed = row_bytes(problem, saved)
                if needed > usable:
                    raise DeviceError(
                        f"a product over {problem.samples:,} samples takes {gib(needed)} and "
                        f"{self.backend.name} has {gib(usable)} free; take smaller micro-batches"
                    )
                masses.append(loss_mass(problem) if several else 1.0)
                if masses[-1]:  # else no sample of it counts
                    loss += masses[-1] * problem.evaluate(compare=False)[0]
                    slope += masses[-1] * gradient(problem.loss, problem.theta)
                samples += problem.samples
                self._saved = max(self._saved, saved)
                if before is not None:
                    _require_sum(before, problem)
                before = problem
        found = ranks.gather((len(masses), samples, sum(masses), loss))
        self._before = sum(parts for parts, *_ in found[: ranks.rank])
        self.parts, self.samples, mass, loss = map(sum, zip(*found, strict=True))
        total = self._base.total([mass]) if several else 1.0
        self._weights = [mass / total for mass in masses]
        self.loss, self.gradient_norm = loss / total, float(ranks.total(slope).norm()) / total

    def _settle(self) -> None:
        """Take a batch that counts for the base, and whether losses add up, from the first ones."""
        ranks, is_sum, counting = self._ranks, None, None
        with ranks.at("the first losses"), of_parts():
            for batch in self._batches():
                problem = self._base.on(batch)
                is_sum = problem.doubles()
                if is_sum is not None and loss_mass(problem):
                    counting = batch
                    break
        found = ranks.gather((counting is not None, is_sum))
        root = next((rank for rank, (counts, _) in enumerate(found) if counts), 0)
        is_sum = found[root][1]
        if found[root][0]:
            self._base = self._base.on(ranks.share(counting, root))
        elif ranks.size > 1:
            self._base = self._base.on(ranks.share(self._base.batch))
        self._base.is_sum = bool(is_sum)

    def _usable(self) -> int:
        """Bytes of this rank's part of the free memory."""
        return usable_memory(self._place) // self._ranks.neighbours

    def _room(self) -> int:
        """Micro-batches whose linearisations fit beside everything else."""
        budget = halved(_KEPT_BYTES, self._usable() // 2)
        return budget // max(1, _TRACED_COPIES * self._saved)


class Hessian(CurvatureOperator):
    """The Hessian of a problem's loss.

    Args:
        problem: Model, loss and samples.
        batch: Samples differentiated at a time; all if None.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        dtype: ``"float64"`` or ``"float32"``.
        linearise: As for :class:`CurvatureOperator`.
        products: Likewise.
        group: Likewise; the problem's samples are this rank's share.

    Raises:
        DataError: If the batch is not a positive number; so much else as for
            :class:`CurvatureOperator`.
    """

    _kind = "hessian"

    def __init__(
        self,
        problem: Problem,
        *,
        batch: int | None = None,
        device: Device = "auto",
        dtype: Dtype = "float64",
        linearise: bool | None = None,
        products: str = DIFFERENTIATION,
        group: Group = ALONE,
    ) -> None:
        some = "micro-batches hold at least one sample"
        step = problem.samples if batch is None else whole("batch", batch, 1, hint=some)
        places = [slice(i, i + step) for i in range(0, problem.samples, step)]
        batches = partial(map, problem.batch.part, places)
        options = (self._kind, device, dtype, linearise, products, group)
        self._read(problem.part(places[0]), batches, *options)


class GaussNewton(Hessian):
    """The generalised Gauss-Newton matrix Jᵀ S J of a problem.

    J is the Jacobian of the outputs in the parameters and S the Hessian of the loss in the outputs
    (Schraudolph 2002). Arguments as for :class:`Hessian`.
    """

    _kind = "ggn"


class EmpiricalFisher(Hessian):
    """The weighted mean of g_b g_bᵀ over samples b, g_b the gradient of that sample's loss.

    Arguments as for :class:`Hessian`.
    """

    _kind = "fisher"


class _Function(Operator):
    """A symmetric matrix known as a function of one vector, in float64."""

    dtype, device = torch.float64, torch.device("cpu")

    def __init__(self, matvec: Callable[[Vector], Any], size: int) -> None:
        hint = "(matvec, n) must be a function and its dimension"
        self.matvec, self.dimension = matvec, whole("n", size, 1, error=ConfigError, hint=hint)
        if not callable(matvec):
            raise ConfigError(f"{hint}, got {matvec!r}")

    def __call__(self, block: Vectors) -> Vectors:
        """Products with the rows of a block, (k, n)."""
        found = [torch.as_tensor(self.matvec(row.clone())).detach() for row in block]
        for one in found:
            if one.shape != (self.dimension,):
                raise ConfigError(
                    f"matvec must map ({self.dimension},) to ({self.dimension},), it gave "
                    f"{tuple(one.shape)}"
                )
            if one.is_complex():
                raise ConfigError("matvec must give real numbers, it gave complex ones")
        product = torch.stack(found).to(block)
        if not bool(torch.isfinite(product).all()):
            raise NonFiniteError("a product of matvec is NaN or infinite")
        return product


class _Like(Operator):
    """What looks like an operator without being one."""

    def __init__(self, given: Any) -> None:
        self._given, self.dimension = given, whole("dimension", given.dimension, error=ConfigError)
        self.dtype, self.device = given.dtype, given.device
        self.product_error = float(getattr(given, "product_error", 0.0))
        self.products_by = getattr(given, "products_by", DIFFERENTIATION)

    def truncation(self, block: Vectors) -> Tensor:
        """Errors of products with unit vectors that aren't rounding, (k,)."""
        known = getattr(self._given, "truncation", super().truncation)
        return known(block)

    def __call__(self, block: Vectors) -> Vectors:
        """Products with the rows of a block, (k, n)."""
        return self._given(block)


class _Matrix(Operator):
    """Anything with ``shape`` and ``@``, of any library, that a random probe finds symmetric.

    ``held`` says whether its entries are in memory, so that products with unit vectors are exact.
    """

    def __init__(self, given: Any) -> None:
        name = type(given).__name__
        shape = tuple(given.shape)
        if len(shape) != 2 or shape[0] != shape[1]:
            raise ConfigError(
                f"eigenvalues are those of a square matrix, but this {name} has shape {shape}"
            )
        self.dimension = whole("n", shape[0], 1, error=ConfigError)
        kind = getattr(given, "dtype", None)
        takes_tensors = isinstance(given, Tensor) or isinstance(kind, torch.dtype)
        self.dtype, exact = _precision(kind, name)
        held = isinstance(given, Tensor | np.ndarray) or hasattr(given, "toarray")
        self.held = held or name == "DataFrame"
        if not (exact or held):
            raise ConfigError(
                f"the products of this {name} are in {kind}, too few digits for eigenvalues; give "
                "an operator in float32 or float64"
            )
        place = getattr(given, "device", None)
        self.device = torch.device(place) if takes_tensors and place is not None else _CPU
        if isinstance(given, Tensor) and not exact:
            given = given.to(self.dtype)
        elif (not exact and isinstance(given, np.ndarray)) or name == "DataFrame":
            given = np.asarray(given, dtype=np.float64)
        self._given, self._takes_tensors = given, takes_tensors
        self.backend = select(self.device)
        self._probe(name)

    def __call__(self, block: Vectors) -> Vectors:
        """Products with the rows of a block, (k, n)."""
        product = self.unchecked(block)
        if not bool(torch.isfinite(product).all()):
            raise NonFiniteError(
                f"a product with this {type(self._given).__name__} is NaN or infinite"
            )
        return product

    def unchecked(self, block: Vectors) -> Vectors:
        """The same, perhaps not finite."""
        columns = block.T.contiguous()
        given = columns if self._takes_tensors else columns.numpy(force=True)
        try:
            found = self._given @ given
        except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
            raise ConfigError(
                f"this {type(self._given).__name__} of shape {self.shape} could not be multiplied "
                f"with columns of shape {tuple(columns.shape)}: {error}"
            ) from error
        found = found.detach() if isinstance(found, Tensor) else torch.from_numpy(np.array(found))
        if found.is_complex():
            raise ConfigError(f"this {type(self._given).__name__} gives complex numbers; {_REAL}")
        if found.shape != columns.shape:
            raise ConfigError(
                f"this {type(self._given).__name__} makes {tuple(found.shape)} of columns of "
                f"shape {tuple(columns.shape)}; a square matrix keeps the shape"
            )
        return found.T.to(block).contiguous()

    def _probe(self, name: str) -> None:
        """Refuse a matrix that isn't symmetric, and keep what it may differ from one by.

        For Gaussian v and w the number wᵀ(H - Hᵀ)v is ‖H - Hᵀ‖_F in the mean square, and ‖Hv‖ is
        ‖H‖_F. The bound is that of :func:`~hessrmt.curvature.rounding.norm_bound`, once for each
        side.

        Raises:
            ProblemError: If it isn't.
        """
        pairs = gaussian((2, DIRECTIONS, self.dimension), self, "symmetric")
        left, right = pairs
        products = self(pairs.reshape(-1, self.dimension)).reshape(pairs.shape)
        gaps = (left * products[1]).sum(dim=1) - (right * products[0]).sum(dim=1)
        gap = float(gaps.abs().max())
        size = max(lengths(list(products.reshape(-1, self.dimension))))
        epsilon = torch.finfo(self.dtype).eps
        if gap > epsilon**0.5 * size:
            raise ProblemError(
                f"this {name} is not symmetric: wᵀ(Hv) and vᵀ(Hw) of random vectors differ by "
                f"{gap / size:.2g} of the size of its entries. Give the symmetric part, "
                "(H + Hᵀ)/2, or for singular values HᵀH"
            )
        share = (2 / _FAILURE ** (1 / DIRECTIONS)) ** 2 * 2 / math.pi
        skew = share * gap / 2
        norm = size / self.dimension**0.5  # at least that is ‖H‖₂
        self.product_error = skew if skew > round_off(norm, self.dimension, self.dtype) else 0.0


_CPU = torch.device("cpu")

_FAILURE = 1e-3
"""Probability that the bound on how far a matrix is from a symmetric one fails."""

_REAL = "eigenvalues are computed of real symmetric matrices"


def _precision(kind: Any, name: str) -> tuple[torch.dtype, bool]:
    """Precision in which a matrix of some type is multiplied, and whether that is its own."""
    if kind is None:
        return torch.float64, True
    if isinstance(kind, torch.dtype):
        words, number = str(kind).removeprefix("torch."), kind.is_floating_point
        complex_, size = kind.is_complex, kind.itemsize
    else:
        known = np.dtype(kind)
        words, number, complex_ = str(known), known.kind == "f", known.kind == "c"
        size = known.itemsize
        if known.kind not in "fiubc":
            raise ConfigError(f"this {name} holds {words}; {_REAL}")
    if complex_:
        raise ConfigError(f"this {name} is complex ({words}); {_REAL}")
    if number and size == 4:
        return torch.float32, True
    return torch.float64, not number or size >= 8


def as_operator(given: Any) -> Operator:
    """What the algorithms take: an operator, a matrix, a problem, or a function with its dimension.

    Args:
        given: An operator, or anything with ``dimension``, ``dtype``, ``device`` and a call for
            blocks of rows; a problem, whose Hessian is then taken in float64; a pair (matvec, n)
            of a function that maps a float64 vector (n,) to H v, and n; or anything with ``shape``
            and ``@``: an array, a tensor, a sparse matrix, a ``LinearOperator`` of scipy, an
            operator of curvlinops. Such a matrix is multiplied in its own precision and place, and
            refused if random vectors show that it isn't symmetric.

    Returns:
        The operator.

    Raises:
        ConfigError: If it is nothing of these, or not square.
    """
    if isinstance(given, Problem):
        return CurvatureOperator.of(given)
    if isinstance(given, tuple) and len(given) == 2:
        return _Function(*given)
    if isinstance(given, Operator):
        return given
    if callable(given) and all(hasattr(given, name) for name in ("dimension", "dtype", "device")):
        return _Like(given)
    if hasattr(given, "shape") and hasattr(given, "__matmul__"):
        return _Matrix(given)
    raise ConfigError(
        "expected an operator, a matrix (anything with shape and @), a problem, or a pair "
        f"(matvec, n), got {type(given).__name__}"
    )


def _rounding(number: int | None, part: int = 0) -> AbstractContextManager:
    """Operations rounded otherwise, by a stream for each part; or as they are."""
    return nullcontext() if number is None else Perturbed(number, part)


def _fingerprint(batch: Batch) -> tuple:
    """Numbers that other data would not share."""
    found: list = [batch.samples]
    for leaf in batch.tensors():
        real = torch.view_as_real(leaf.resolve_conj()) if leaf.is_complex() else leaf
        dense = real.detach() if real.layout == torch.strided else real.detach().to_dense()
        flat = dense.reshape(-1).to(torch.float64)
        place = torch.arange(1, len(flat) + 1, dtype=flat.dtype, device=flat.device)
        found += [tuple(leaf.shape), float(flat.sum()), float(flat @ place)]
    return tuple(map(str, found))  # NaN of a mask equals itself


def _require_sum(first: Problem, second: Problem) -> None:
    """Refuse micro-batches whose losses do not add up to the loss of both together."""
    joined = join([first.batch, second.batch])
    pairs = [] if joined is None else [(first, second, first.on(joined))]
    for problem in (first, second):
        half = problem.samples // 2
        if half:
            pairs.append((problem.part(slice(half)), problem.part(slice(half, None)), problem))
    if not pairs and not first.is_sum and not is_recorded_mean(first):
        raise DataError(
            "neighbouring batches of one sample have different shapes, so that it cannot be seen "
            "with which weights their losses add up; pad them to one shape, or let the loss take "
            "its mean with torch's cross_entropy"
        )
    for one, other, both in pairs:
        with of_parts():
            masses = [loss_mass(part) for part in (one, other)]
            with torch.no_grad():
                whole, *values = (float(part.loss(part.theta)) for part in (both, one, other))
        counted = [(mass, value) for mass, value in zip(masses, values, strict=True) if mass]
        pieces = sum(mass * value for mass, value in counted) / (both.total(masses) or 1.0)
        largest = max(abs(whole), *(abs(value) for _, value in counted), 0.0)
        epsilon = torch.finfo(both.dtype).eps
        if abs(whole - pieces) > epsilon * (_MEAN_ULPS * largest + epsilon):
            raise ProblemError(
                f"the loss {first.loss_name!r} is no mean over samples: {whole!r} over a "
                f"batch, but {pieces!r} from its parts, so micro-batches don't add up to the "
                "loss of all data. Take one batch that holds everything, or a loss without "
                "weights and coupled samples"
            )
