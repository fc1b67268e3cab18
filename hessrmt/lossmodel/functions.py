"""Functions of one number that a user writes, differentiated by torch and refused where in doubt.

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

from hessrmt.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Float64

    Points = Float64[np.ndarray, "*shape"]
    Jet = Float64[np.ndarray, "orders *shape"]

Function = Callable[[Tensor], Tensor]

AGREEMENT = 1e-3
"""Relative difference of a derivative at the end and just inside that counts as continuous."""

ROUNDING = 1e-12
"""Relative error within which two second moments count as equal: thousands of roundings."""

MARKS = ("", "'", "''", "'''", "''''")


@dataclass(frozen=True)
class Differentiated:
    """A function of one real number and derivatives of it, the missing ones by torch.

    Attributes:
        functions: The function, then as many of its derivatives as are known, at most four.
        symbol: What errors call the function and its argument, e.g. ("k", "q").

    Raises:
        DataError: If one of them is not callable or there are more than four derivatives.
    """

    functions: tuple[Function, ...]
    symbol: tuple[str, str]

    def __post_init__(self) -> None:
        if len(self.functions) > len(MARKS):
            raise DataError(f"at most 4 derivatives are used, got {len(self.functions) - 1}")
        for mark, given in zip(MARKS, self.functions, strict=False):
            if not callable(given):
                name, argument = self.symbol
                kind = type(given).__name__
                raise DataError(f"{name}{mark} must be a function of {argument}, got {kind}")

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

    def rates(self, size: int, generator: np.random.Generator) -> Points:  # noqa: ARG002
        """The spectral measure of the kernel, see :class:`hessrmt.lossmodel.covariance.Kernel`.

        Raises:
            DataError: Always: it is not known.
        """
        raise DataError(
            "the spectral measure of a kernel given as a function is not known; use rbf, "
            "rational_quadratic, matern or a mixture of them, or give mixing = a function "
            "(generator, size) -> rates s with k(q) = k(0) E exp(s q)"
        )

    def _at(self, point: float, order: int) -> list[float]:
        given, (name, argument) = len(self.functions), self.symbol
        at = value = nothing = torch.zeros((), dtype=torch.float64)
        values = []
        with torch.inference_mode(False), torch.enable_grad():
            for m in range(order + 1):
                if m < given:
                    at, value = self._call(m, point)
                elif value.requires_grad:
                    (slope,) = torch.autograd.grad(value, at, create_graph=True, allow_unused=True)
                    value = nothing if slope is None else slope
                else:
                    value = nothing
                if value is nothing and m == given:
                    raise DataError(
                        f"{name}{MARKS[m - 1]}({argument}) is constant, or torch cannot see that "
                        f"it depends on {argument}: use torch functions, or give the derivatives"
                    )
                values.append(float(value.detach()))
        return values

    def _call(self, m: int, point: float) -> tuple[Tensor, Tensor]:
        """The point as a tensor, and the m-th of the functions there."""
        at = torch.tensor(point, dtype=torch.float64, device="cpu", requires_grad=True)
        name, argument = f"{self.symbol[0]}{MARKS[m]}({self.symbol[1]})", self.symbol[1]
        expected = f"expected a float64 scalar torch.Tensor made with torch functions of {argument}"
        try:
            value = self.functions[m](at)
        except Exception as error:
            reason = f"failed at {argument} = {point:g}: {type(error).__name__}: {error}"
            raise DataError(f"{name} {reason}; {expected}") from error
        if not isinstance(value, Tensor):
            raise DataError(f"{name} returned {type(value).__name__}, {expected}")
        if value.ndim or value.dtype != torch.float64:
            found = f"shape {tuple(value.shape)} and {value.dtype}"
            raise DataError(f"{name} returned a tensor of {found}, {expected}")
        return at, value


def jet_at_end(
    function: Differentiated, end: float, inside: Sequence[float], wanted: str, hint: str = ""
) -> Float64[np.ndarray, " 3"]:
    """Variances of loss, gradient and Hessian: value and derivatives at the end of the domain.

    Args:
        function: On an interval that ends at ``end``.
        end: The point.
        inside: Points of the interval that approach the end.
        wanted: What the function must be, for the error.
        hint: Put behind the error where one is not positive.

    Returns:
        Value, first and second derivative, which are continuous and positive.

    Raises:
        DataError: If one is not finite or not positive, or none of the points inside has similar
            values.
    """
    name, argument = function.symbol
    jet = function.jet(np.array(end), 2)
    near = function.jet(np.array(inside), 2)
    at = f"at {argument} = " + " and ".join(f"{point:.9g}" for point in inside[:2])
    seen = [" and ".join(f"{value:.4g}" for value in row[:2]) for row in near]
    for m in np.flatnonzero(~np.isfinite(jet)):
        raise DataError(
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
        jump = f"{name}{MARKS[m]}({end:g}) = {jet[m] + 0.0:.4g}, but {seen[m]} {at}"
        raise DataError(f"{jump}: the function has a kink there or its formula fails; {wanted}")
    roles = ("the loss", "the gradient's components", "the Hessian's elements")
    for mark, role, moment in zip(MARKS, roles, jet, strict=False):
        if moment <= 0:
            what = f"{name}{mark}({end:g}) is the variance of {role}"
            raise DataError(f"{what}, expected positive, got {moment:g}{hint}")
    return jet
