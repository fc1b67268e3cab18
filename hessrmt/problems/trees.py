"""The tensors inside any Python object, without knowing its type."""

from __future__ import annotations

import copy
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable


class _Replacing(TorchFunctionMode):
    """Gives another tensor for each that is deeply copied."""

    def __init__(self, replace: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self._replace = replace
        self._done: dict[int, tuple[Tensor, Any]] = {}

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        if function is not Tensor.__deepcopy__:
            return function(*arguments, **(keywords or {}))
        found = arguments[0]
        if id(found) not in self._done:  # kept with the original, so that no id is given twice
            self._done[id(found)] = found, self._replace(found)
        return self._done[id(found)][1]


def map_tensors(tree: Any, replace: Callable[[Tensor], Any]) -> Any:
    """A copy of an object with all tensors in it replaced.

    Whatever ``copy.deepcopy`` can copy will do: tuples and dicts, dataclasses, the outputs of
    transformers with their caches, distributions.

    Args:
        tree: Any object.
        replace: Called once for each distinct tensor, in an order that depends on the kind of
            object alone.

    Returns:
        The copy. Raises TypeError if something in it can't be copied, such as a generator.
    """
    if isinstance(tree, Tensor):  # also of a class that copies itself in its own way
        return replace(tree)
    with _Replacing(replace):
        return copy.deepcopy(tree)


def tensors_of(tree: Any) -> list[Tensor]:
    """The distinct tensors in an object.

    Args:
        tree: Any object.

    Returns:
        The tensors themselves, in the order in which :func:`map_tensors` meets them, as far as it
        can copy the object.
    """
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    with suppress(TypeError):
        map_tensors(tree, keep)
    return found
