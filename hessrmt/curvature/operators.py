"""Curvature matrices as operators: known by their products, never formed.

H v = Σ_j w_j H_j v over micro-batches j, whose weights w_j make the losses of the micro-batches add
up to the loss of all data; each is linearised once as far as memory allows and read anew for every
product otherwise.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hessrmt.backend.select import select
from hessrmt.checks import one_of, whole
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
    usable_memory,
)
from hessrmt.curvature.differences import (
    DIFFERENTIATION,
    FINITE_DIFFERENCE,
    PRODUCTS,
    Differences,
)
from hessrmt.curvature.linear import Operator
from hessrmt.curvature.parallel import ALONE, ranks_of
from hessrmt.curvature.products import TRACED_FROM, KeptProduct, choose, close
from hessrmt.curvature.rounding import (
    FEW_DIRECTIONS,
    Perturbed,
    directions,
    lengths,
    norm_bound,
)
from hessrmt.errors import DataError, DeviceError, NonFiniteError, ProblemError
from hessrmt.problems.batches import Batch, join, read_batch
from hessrmt.problems.differentiation import of_parts, ordinary_mode
from hessrmt.problems.outputs import in_one_tensor, is_recorded_mean, loss_mass
from hessrmt.problems.problem import Problem

if TYPE_CHECKING:
    import re

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
