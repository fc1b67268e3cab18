"""The Hessian or Gauss-Newton matrix of a whole data set, as an operator that is never formed.

H v = Σ_j (n_j/N) H_j v over micro-batches of n_j samples, each linearised once as far as memory
allows and read anew for every product otherwise.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree

from hessrmt.backend.select import select
from hessrmt.curvature.certify import random_direction, require_agreement
from hessrmt.curvature.fidelity import require_second_derivative
from hessrmt.curvature.hessian import torch_dtype
from hessrmt.curvature.linearise import TRACED_FROM, KeptProduct, choose
from hessrmt.curvature.plan import gib, row_bytes, saved_bytes, usable_memory
from hessrmt.curvature.products import close
from hessrmt.errors import DataError, DeviceError, NonFiniteError, ProblemError
from hessrmt.problems.problem import Problem, ordinary_mode

if TYPE_CHECKING:
    from torch import nn

    from hessrmt.arrays import Vector, Vectors
    from hessrmt.backend.base import Backend
    from hessrmt.problems.losses import Loss

OPERATORS = ("hessian", "ggn")

_KEPT_BYTES = 4 * 2**30
"""Memory for linearised micro-batches; fixed, so that the rounding of a run rarely depends on what
else runs on the machine."""

_TRACED_COPIES = 8
"""Arrays of the size of everything saved for backward that a linearised Hessian keeps: 5 to 7.5
measured on LeNet-5 (docs/density.md)."""

_MEAN_ULPS = 256
"""How far, in ulps, the mean over a batch may lie from that of its two halves."""


class SymmetricOperator(Protocol):
    """What the matrix-free methods need of a symmetric matrix.

    Attributes:
        dimension: P.
        dtype: Of its vectors.
        device: Where they live.
    """

    dimension: int
    dtype: torch.dtype
    device: torch.device

    def __call__(self, block: Vectors) -> Vectors:
        """Products with the rows of a block, (k, P) to (k, P)."""
        ...


class CurvatureOperator:
    """The curvature of the mean loss over batches of data.

    The product of one vector does not depend on what is multiplied together with it.

    Args:
        model: Any ``torch.nn.Module`` in evaluation mode; copied, never changed.
        loss: As for :class:`~hessrmt.problems.problem.Problem`: a mean over samples.
        batches: Pairs (inputs, targets), the same ones whenever it is iterated over: a list, or a
            ``DataLoader`` without shuffling and random augmentation.
        operator: ``"hessian"``, or ``"ggn"`` for Jᵀ S J.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        dtype: ``"float64"`` or ``"float32"``.
        only: Pattern of the parameters to take.
        linearise: Keep micro-batches, as far as memory allows, linearised from the start; False
            differentiates anew for every product. If None, the graphs of their gradients are kept,
            and they are linearised when :meth:`expect` hears of enough products.

    Attributes:
        dimension: P.
        samples: N.
        parts: Micro-batches.
        kept: How many of them are kept as graphs.
        loss: Mean loss.
        gradient_norm: Euclidean norm of its gradient.
        kind: ``"hessian"`` or ``"ggn"``.
        precision: ``"float64"`` or ``"float32"``.
        dtype: The same as torch's type.
        device: Where vectors live.
        backend: Its backend.
        products: Products so far.

    Raises:
        ProblemError: If the operator's name is unknown, the loss is random, no mean over samples or
            not twice differentiable by torch.
        DataError: If there is no batch, or batches that can be read only once.
    """

    @ordinary_mode()
    def __init__(
        self,
        model: nn.Module,
        loss: str | Loss,
        batches: Iterable[tuple[Any, Any]],
        operator: str = "hessian",
        *,
        device: str = "auto",
        dtype: str = "float64",
        only: str | None = None,
        linearise: bool | None = None,
    ) -> None:
        if operator not in OPERATORS:
            raise ProblemError(f"unknown operator {operator!r}; known are {', '.join(OPERATORS)}")
        self.backend: Backend = select(device)
        self.device, self.dtype = self.backend.device, torch_dtype(dtype)
        self.kind, self.precision, self.products = operator, dtype, 0
        if isinstance(batches, Iterator):
            raise DataError(
                "the batches can be read only once, and every product reads them again; give a "
                "list or a DataLoader"
            )
        self._batches = batches
        first = next(iter(batches), None)
        if first is None:
            raise DataError("there is no batch of data")
        self._base = Problem(model, loss, first, only=only).at(self.dtype, self.device)
        self.dimension = self._base.dimension
        self._survey()
        ways = choose(self._base, operator)
        self._plain, self._check = ways.plain, ways.check
        room = 0 if linearise is False else self._room()
        self._kept: list[tuple[float, KeptProduct]] = [
            (problem.samples / self.samples, ways.kept(problem))
            for problem in self._problems(stop=room)
        ]
        self.kept = len(self._kept)
        if linearise:
            self.expect(TRACED_FROM)
        if operator == "hessian":
            require_second_derivative(self._base, random_direction(self._base))

    @classmethod
    def of(
        cls,
        problem: Problem,
        operator: str = "hessian",
        *,
        batch: int | None = None,
        device: str = "auto",
        dtype: str = "float64",
        linearise: bool | None = None,
    ) -> CurvatureOperator:
        """The operator of a problem whose samples are in memory.

        Args:
            problem: Model, loss and samples.
            operator: ``"hessian"`` or ``"ggn"``.
            batch: Samples differentiated at a time; all if None.
            device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
            dtype: ``"float64"`` or ``"float32"``.
            linearise: As for the class.

        Returns:
            The operator.

        Raises:
            DataError: If the batch is not a positive number.
        """
        step = problem.samples if batch is None else batch
        if step < 1:
            raise DataError(f"micro-batches must hold at least one sample, got {batch!r}")
        device_of = select(device).device
        problem.part(slice(step)).at(torch_dtype(dtype), device_of).evaluate()
        parts = [problem.part(slice(i, i + step)) for i in range(0, problem.samples, step)]
        return cls(
            problem.model,  # what the problem holds constant requires no gradient in it
            problem.loss_function,
            [(part.inputs, part.targets) for part in parts],
            operator,
            device=device,
            dtype=dtype,
            linearise=linearise,
        )

    @ordinary_mode()
    def expect(self, products: int) -> None:
        """Prepare for a number of products: what is kept is linearised if that pays.

        Args:
            products: How many there will be at least.
        """
        if products >= TRACED_FROM:
            for _, product in self._kept:
                product.trace()

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
        total = torch.zeros_like(block)
        for weight, product in self._kept:
            total.add_(product(block), alpha=weight)
        if self.kept < self.parts:
            self._add(total, block, self._plain, self.kept)
        if not bool(torch.isfinite(total).all()):
            raise NonFiniteError(f"a product with the {self.kind} is NaN or infinite")
        self.products += len(block)
        return total

    @ordinary_mode()
    def agreement(
        self, norm: float, v: Vector | None = None, product: Vector | None = None
    ) -> float:
        """How far another way of differentiating, from data read anew, leads from the product.

        Args:
            norm: ‖H‖₂.
            v: (P,) unit vector; a random one if None.
            product: (P,) H v, if it has been computed.

        Returns:
            ‖Hv - H'v‖/‖H‖₂. Raises ProblemError if rounding does not explain it: wrong derivatives,
            or data that changed.
        """
        if v is None:
            v = random_direction(self._base)
        found = self(v[None]) if product is None else product[None]
        # traced products are forward-over-reverse, all others reverse-over-reverse
        traced = any(kept.traced for _, kept in self._kept)
        expected = torch.zeros_like(found)
        self._add(expected, v[None], self._plain if traced else self._check)
        if not traced and not close(expected, found):  # torch may have a rule of forward mode wrong
            self._add(expected.zero_(), v[None], self._plain)
        residual = float((found - expected).norm())
        return require_agreement(residual, norm, self.dimension, self.precision)

    def _add(self, total: Vectors, block: Vectors, way: Any, start: int = 0) -> None:
        samples = 0
        for problem in self._problems(start):
            total.add_(way(problem)(block).detach(), alpha=problem.samples / self.samples)
            samples += problem.samples
        if samples != self._samples_from(start):
            raise DataError(
                f"the batches held {self.samples:,} samples when first read and hold other "
                "numbers now; every pass must give the same data"
            )

    def _samples_from(self, start: int) -> int:
        return sum(self._sizes[start:])

    def _problems(self, start: int = 0, stop: int | None = None) -> Iterator[Problem]:
        """The problems of the micro-batches in their final precision and place."""
        for number, (inputs, targets) in enumerate(self._batches):
            if stop is not None and number >= stop:
                return
            if number >= start:
                yield self._with(inputs, targets)

    def _with(self, inputs: Any, targets: Any) -> Problem:
        found = copy.copy(self._base)

        def move(leaf: Any) -> Any:
            if isinstance(leaf, np.ndarray):
                leaf = torch.from_numpy(leaf)
            if not isinstance(leaf, Tensor):
                return leaf
            return leaf.detach().to(
                device=self.device, dtype=self.dtype if leaf.is_floating_point() else leaf.dtype
            )

        found.inputs = _pytree.tree_map(move, inputs)
        found.targets = _pytree.tree_map(move, targets)
        leaves = [leaf for leaf in _pytree.tree_leaves(found.targets) if isinstance(leaf, Tensor)]
        found.samples = len(leaves[0])
        return found

    def _survey(self) -> None:
        """Read all data once: sizes, loss and gradient, and everything that can be wrong."""
        self._sizes: list[int] = []
        loss, self._saved = 0.0, 0
        total = torch.zeros(self.dimension, dtype=self.dtype, device=self.device)
        for number, problem in enumerate(self._problems()):
            if number:
                problem.own = None  # compared with the user's own model once
            usable, needed = usable_memory(self.backend), row_bytes(problem)
            if needed > usable:
                raise DeviceError(
                    f"a product over {problem.samples:,} samples takes {gib(needed)} and "
                    f"{self.backend.name} has {gib(usable)} free; take smaller micro-batches"
                )
            loss += problem.samples * problem.evaluate()[0]
            theta = problem.theta.requires_grad_()
            here = problem.loss(theta)
            if here.requires_grad:
                slope = torch.autograd.grad(here, theta, allow_unused=True)[0]
                total += 0 if slope is None else problem.samples * slope
            self._sizes.append(problem.samples)
            self._saved = max(self._saved, saved_bytes(problem))
        self.parts, self.samples = len(self._sizes), sum(self._sizes)
        if self.parts > 1:
            _require_mean(self._base)
        self.loss, self.gradient_norm = loss / self.samples, float(total.norm()) / self.samples

    def _room(self) -> int:
        """Micro-batches whose linearisations fit beside everything else."""
        budget, usable = _KEPT_BYTES, usable_memory(self.backend)
        while budget > usable // 2:
            budget //= 2
        return budget // max(1, _TRACED_COPIES * self._saved)


def _require_mean(problem: Problem) -> None:
    """Refuse a loss that is no mean over samples: micro-batches would not add up to it."""
    half = problem.samples // 2
    if not half:
        return
    parts = [problem.part(slice(half)), problem.part(slice(half, None))]
    theta = problem.theta
    with torch.no_grad():
        whole = float(problem.loss(theta))
        pieces = sum(part.samples * float(part.loss(theta)) for part in parts) / problem.samples
    if abs(whole - pieces) > _MEAN_ULPS * torch.finfo(problem.dtype).eps * abs(whole):
        raise ProblemError(
            f"the loss {problem.loss_name!r} is no mean over samples: {whole!r} over a batch, but "
            f"{pieces!r} from its halves, so micro-batches don't add up to the loss of all data. "
            "Take one batch that holds everything, or a loss without weights and coupled samples"
        )
