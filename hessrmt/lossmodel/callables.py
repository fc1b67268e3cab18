"""Functions written by the user, differentiated by torch and refused where they cannot be trusted.

At the end of the domain (distance zero) automatic differentiation can fail silently: the derivative
of |q| is 0 there, that of √(-2q) NaN. So the derivatives are compared with those just inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hessrmt.errors import LossModelError

if TYPE_CHECKING:
    from jaxtyping import Float64

    from hessrmt.lossmodel.kernels import Jet, Points

Function = Callable[[Tensor], Tensor]

AGREEMENT = 1e-3
"""Relative difference of a derivative at the end and just inside that counts as continuous."""

MARKS = ("", "'", "''", "'''", "''''")


@dataclass(frozen=True)
class Differentiated:
    """A function of one real number and derivatives of it, the missing ones by torch.

    Attributes:
        functions: The function, then as many of its derivatives as are known.
        symbol: What errors call the function and its argument, e.g. ("k", "q").
    """

    functions: tuple[Function, ...]
    symbol: tuple[str, str]

    def jet(self, q: Points, order: int) -> Jet:
        """The function and its derivatives, point by point.

        Args:
            q: Points.
            order: The highest derivative.

        Returns:
            (order + 1, ...) values; NaN and infinity are passed on.
        """
        points = np.asarray(q, dtype=np.float64)
        distinct, where = np.unique(points.ravel(), return_inverse=True)
        rows = np.array([self._at(float(point), order) for point in distinct])
        return rows[where].T.reshape(order + 1, *points.shape)

    def _at(self, point: float, order: int) -> list[float]:
        values: list[float] = []
        with torch.inference_mode(False), torch.enable_grad():
            at, value = self._call(0, point)
            values.append(float(value.detach()))
            for m in range(1, min(order + 1, len(self.functions))):
                at, value = self._call(m, point)
                values.append(float(value.detach()))
            if order >= len(self.functions):
                values += self._derivatives(value, at, range(len(self.functions), order + 1))
        return values

    def _derivatives(self, value: Tensor, at: Tensor, orders: range) -> list[float]:
        values = []
        for m in orders:
            known = value.requires_grad
            if known:
                (slope,) = torch.autograd.grad(
                    value, at, create_graph=m < orders[-1], allow_unused=True
                )
                known = slope is not None
                value = slope if known else value
            if not known and m == orders[0]:
                name, argument = self.symbol
                raise LossModelError(
                    f"{name}{MARKS[m - 1]}({argument}) is constant, or torch cannot see that it "
                    f"depends on {argument}; write it with torch functions of {argument} alone, "
                    "or give its derivatives"
                )
            values.append(float(value.detach()) if known else 0.0)
            value = value if known else torch.zeros((), dtype=torch.float64)
        return values

    def _call(self, m: int, point: float) -> tuple[Tensor, Tensor]:
        """The point as a tensor, and the m-th of the functions there."""
        at = torch.tensor(point, dtype=torch.float64, device="cpu", requires_grad=True)
        name, argument = f"{self.symbol[0]}{MARKS[m]}({self.symbol[1]})", self.symbol[1]
        expected = f"expected a float64 scalar torch.Tensor made with torch functions of {argument}"
        try:
            value = self.functions[m](at)
        except Exception as error:
            raise LossModelError(
                f"{name} failed at {argument} = {point:g}: "
                f"{type(error).__name__}: {error}; {expected}"
            ) from error
        if not isinstance(value, Tensor):
            raise LossModelError(f"{name} returned {type(value).__name__}, {expected}")
        if value.ndim or value.dtype != torch.float64:
            raise LossModelError(
                f"{name} returned a tensor of shape {tuple(value.shape)} and {value.dtype}, "
                f"{expected}"
            )
        return at, value


def function_of(
    function: object, symbol: tuple[str, str], derivatives: Sequence[Function] | None = None
) -> Differentiated:
    """A function and the derivatives given with it.

    Args:
        function: Given by the user.
        symbol: What errors call the function and its argument.
        derivatives: The first, second, ... derivative, at most four.

    Returns:
        The function, which differentiates itself.

    Raises:
        LossModelError: If one of them is not callable or there are more than four.
    """
    functions = (function, *(derivatives or ()))
    if len(functions) > len(MARKS):
        raise LossModelError(f"at most 4 derivatives are used, got {len(functions) - 1}")
    checked = []
    for m, given in enumerate(functions):
        if not callable(given):
            raise LossModelError(
                f"{symbol[0]}{MARKS[m]} must be a function of {symbol[1]}, "
                f"got {type(given).__name__}"
            )
        checked.append(given)
    return Differentiated(tuple(checked), symbol)


def jet_at_end(
    function: Differentiated, end: float, inside: Sequence[float], wanted: str
) -> Float64[np.ndarray, " 3"]:
    """Value, first and second derivative at the end of the domain, if they are continuous there.

    Args:
        function: On an interval that ends at ``end``.
        end: The point.
        inside: Points of the interval that approach the end.
        wanted: What the function must be, for the error.

    Returns:
        The three numbers.

    Raises:
        LossModelError: If one is not finite, or none of the points inside has similar values.
    """
    name, argument = function.symbol
    jet = function.jet(np.array(end), 2)
    near = function.jet(np.array(inside), 2)
    at = f"at {argument} = " + " and ".join(f"{point:.9g}" for point in inside[:2])
    seen = [" and ".join(f"{value:.4g}" for value in row[:2]) for row in near]
    for m in range(3):
        if not np.isfinite(jet[m]):
            raise LossModelError(
                f"{name}{MARKS[m]}({end:g}) = {jet[m]}, and {seen[m]} {at}; {wanted}. If only the "
                "formula fails there (a square root), rewrite it or give the derivatives"
            )
    with np.errstate(invalid="ignore"):
        error = np.abs(near - jet[:, None])
    # the first point inside gives a derivative its size where the end has zero
    size = np.fmax(np.fmax(np.abs(near), np.abs(near[:, :1])), np.abs(jet[:, None]))
    close = np.isfinite(near) & (error <= AGREEMENT * size)
    if not close.all(axis=0).any():
        m = int(np.argmin(close.any(axis=1))) if not close.any(axis=1).all() else 2
        raise LossModelError(
            f"{name}{MARKS[m]}({end:g}) = {jet[m] + 0.0:.4g}, but {seen[m]} {at}: the function has "
            f"a kink there or its formula fails; {wanted}"
        )
    return jet
