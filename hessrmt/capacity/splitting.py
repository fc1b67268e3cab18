"""How a stored tensor is cut into the matrices whose spectra are taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Literal

from torch import Tensor

if TYPE_CHECKING:
    from hessrmt.capacity.kinds import Role

Conv = Literal["slices", "pooled", "unfolded"]


@dataclass(frozen=True)
class Split:
    """Matrices of equal shape in one tensor.

    Attributes:
        parts: A label for each matrix, in order.
        shape: (rows, columns) of each.
        view: Tensor to a view of it, in the order of (parts, rows, columns).
    """

    parts: tuple[str, ...]
    shape: tuple[int, int]
    view: Callable[[Tensor], Tensor]


def split(role: Role, shape: tuple[int, ...], conv: Conv) -> Split:
    """How to cut a tensor.

    Convolutions, (c_out, c_in / groups, *kernel), or (c_in, c_out / groups, *kernel) if
    transposed: ``slices`` and ``pooled`` take the matrix at each kernel position ([M], below
    eq. 6), of each group by itself where the groups are known; ``unfolded`` takes one matrix, a
    row for each output channel and a column for each of the inputs that its kernel meets.

    Args:
        role: Of the tensor; its form is not "none".
        shape: Of the tensor.
        conv: How to cut convolutions.

    Returns:
        The cut.
    """
    if role.form == "convolution":
        return _unfolded(role, shape) if conv == "unfolded" else _slices(role, shape)
    if role.form == "stacked":
        count, rows, columns = shape
        return Split(tuple(map(str, range(count))), (rows, columns), lambda tensor: tensor)
    if role.form == "packed":
        axis, count = role.axis, len(role.labels)
        sizes = [size // count if i == axis else size for i, size in enumerate(shape)]
        return Split(
            role.labels,
            (sizes[0], sizes[1]),
            lambda tensor: tensor.unflatten(axis, (count, -1)).movedim(axis, 0),
        )
    return Split(("",), (shape[-2], shape[-1]), lambda tensor: tensor)


def _slices(role: Role, shape: tuple[int, ...]) -> Split:
    kernel = shape[2:]
    positions = [",".join(map(str, at)) for at in product(*map(range, kernel))]
    first, groups = shape[0] // role.groups, role.groups
    labels = positions if groups == 1 else [f"g{g}:{at}" for g in range(groups) for at in positions]

    def view(tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (groups, first)).movedim((1, 2), (-2, -1))

    return Split(tuple(labels), (first, shape[1]), view)


def _unfolded(role: Role, shape: tuple[int, ...]) -> Split:
    if not role.transposed:
        return Split(("",), (shape[0], prod(shape[1:])), lambda tensor: tensor)
    first, groups = shape[0] // role.groups, role.groups

    def view(tensor: Tensor) -> Tensor:
        return tensor.unflatten(0, (groups, first)).movedim(2, 1)

    return Split(("",), (groups * shape[1], first * prod(shape[2:])), view)
