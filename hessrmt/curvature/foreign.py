"""Matrices of others as operators: functions, arrays, and what any library multiplies with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from hessrmt.backend.select import select
from hessrmt.checks import whole
from hessrmt.curvature.differences import DIFFERENTIATION
from hessrmt.curvature.linear import Operator
from hessrmt.curvature.operators import CurvatureOperator
from hessrmt.curvature.rounding import DIRECTIONS, gaussian, lengths, round_off
from hessrmt.errors import ConfigError, NonFiniteError, ProblemError, let_pass
from hessrmt.problems.problem import Problem

if TYPE_CHECKING:
    from hessrmt.arrays import Vector, Vectors


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
            let_pass(error)
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
    if isinstance(given, nn.Module):
        raise ConfigError(
            "a network alone has no Hessian: give hessrmt.Problem(model, loss, (inputs, targets))"
        )
    raise ConfigError(
        "expected an operator, a matrix (anything with shape and @), a problem, or a pair "
        f"(matvec, n), got {type(given).__name__}"
    )
