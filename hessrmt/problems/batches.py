"""Data as people have them: a pair, a dict-like batch, a data set, or a loader of batches.

And the tensors inside any Python object, without knowing its type.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.data import Dataset, IterableDataset, default_collate

from hessrmt.errors import DataError

_LABELS = ("labels", "label", "targets", "target", "y")
"""Where a dict-like batch keeps its targets."""

_PAIR = "data must be a pair (inputs, targets), or a DataLoader of such pairs"


class Intercepting(TorchFunctionMode):
    """Hands every call of a function of torch to another function in its place.

    Args:
        handle: Of the function, its arguments and its keyword arguments.
    """

    def __init__(self, handle: Callable[[Any, Any, dict[str, Any]], Any]) -> None:
        super().__init__()
        self._handle = handle

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        return self._handle(function, arguments, keywords or {})


def map_tensors(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    """A copy of an object with all tensors in it replaced.

    Whatever ``copy.deepcopy`` can copy will do: tuples and dicts, dataclasses, the outputs of
    transformers with their caches, distributions.

    Args:
        tree: Any object.
        change: Called once for each distinct tensor, in an order that depends on the kind of
            object alone.

    Returns:
        The copy. Raises TypeError if something in it can't be copied, such as a generator.
    """
    if isinstance(tree, Tensor):  # also of a class that copies itself in its own way
        return change(tree)
    done: dict[int, tuple[Tensor, Any]] = {}

    def replaced(function: Any, arguments: Any, keywords: dict[str, Any]) -> Any:
        if function is not Tensor.__deepcopy__:
            return function(*arguments, **keywords)
        found = arguments[0]
        if id(found) not in done:  # kept with the original, so that no id is given twice
            done[id(found)] = found, change(found)
        return done[id(found)][1]

    with Intercepting(replaced):
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
    with suppress(TypeError):
        map_tensors(tree, lambda tensor: found.append(tensor) or tensor)
    return found


@dataclass(frozen=True)
class Shared:
    """A tensor that belongs to all samples alike; see :func:`shared`."""

    value: Any


def shared(tensor: Tensor | np.ndarray) -> Shared:
    """Mark a part of the inputs or targets that has no batch axis: a mask, a graph's edges.

    Tensors whose first axis is not as long as the batch are recognised without it.

    Args:
        tensor: Of any shape.

    Returns:
        The mark, to be put in its place.
    """
    return Shared(tensor)


@dataclass(frozen=True)
class Batch:
    """Inputs and targets of some samples.

    Attributes:
        inputs: Tensors in any structure; a dict holds keyword arguments of the network.
        targets: Likewise.
        samples: B.
        batched: For each tensor of (inputs, targets) whether its first axis is the batch.
    """

    inputs: Any
    targets: Any
    samples: int
    batched: tuple[bool, ...]

    @classmethod
    def of(cls, inputs: Any, targets: Any) -> Batch:
        """Check a pair.

        Args:
            inputs: Tensors or NumPy arrays in any structure, some of them perhaps shared.
            targets: Likewise.

        Returns:
            The batch.

        Raises:
            DataError: If a part is empty, NaN or infinite, or the lengths differ.
        """
        marked: set[int] = set()
        inputs, targets = _opened(inputs, marked), _opened(targets, marked)
        parts = {"inputs": tensors_of(inputs), "targets": tensors_of(targets)}
        of_inputs, of_targets = (
            [len(leaf) for leaf in leaves if id(leaf) not in marked and leaf.dim()]
            for leaves in parts.values()
        )
        samples = (of_targets or of_inputs or [0])[0]
        if samples not in of_inputs:
            lengths = [
                ", ".join(f"{length:,}" for length in dict.fromkeys(found)) or "none"
                for found in (of_inputs, of_targets)
            ]
            raise DataError(
                "inputs and targets must have one common batch length; inputs have "
                f"{lengths[0]}, targets {lengths[1]}"
            )
        if any(length != samples for length in of_targets):
            raise DataError(
                f"the targets have lengths {sorted(set(of_targets))}: give all of them the "
                "batch's length, or mark what belongs to all samples with hr.shared(tensor)"
            )
        batched = []
        for what, leaves in parts.items():
            for leaf in leaves:
                batched.append(id(leaf) not in marked and leaf.dim() > 0 and len(leaf) == samples)
                _check_values(what, leaf, batched[-1], len(leaves) == 1 or what == "targets")
        return cls(inputs, targets, samples, tuple(batched))

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Every tensor replaced, all of them keeping their first axis."""
        inputs, targets = (map_tensors(tree, change) for tree in self.pair)
        return replace(self, inputs=inputs, targets=targets)

    def part(self, samples: slice) -> Batch:
        """Some of the samples.

        Returns:
            A batch whose shared tensors are the same.
        """
        flags = iter(self.batched)
        taken = self.map(lambda leaf: leaf[samples] if next(flags) else leaf)
        return replace(taken, samples=len(range(*samples.indices(self.samples))))

    @property
    def pair(self) -> tuple[Any, Any]:
        """Inputs and targets."""
        return self.inputs, self.targets

    def tensors(self) -> list[Tensor]:
        """All tensors, inputs first."""
        return [*tensors_of(self.inputs), *tensors_of(self.targets)]


def read_batch(item: Any) -> Batch:
    """One batch from what people hold it in.

    Args:
        item: A pair, or a dict-like batch with its targets under ``labels`` or the like.

    Returns:
        The batch.

    Raises:
        DataError: If it is neither.
    """
    if isinstance(item, Batch):
        return item
    if isinstance(item, Mapping):
        names = [name for name in _LABELS if name in item]
        if len(names) != 1:
            raise DataError(
                f"a batch with the entries {', '.join(map(str, item))} has no targets that could "
                f"be told from inputs: one of {', '.join(_LABELS)} is expected, or a pair"
            )
        return Batch.of({k: v for k, v in item.items() if k != names[0]}, item[names[0]])
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise DataError(_PAIR)
    return Batch.of(*item)


def read_data(data: Any) -> Batch:
    """All samples of a pair, a data set or a loader, as one batch in memory.

    Args:
        data: What :func:`read_batch` takes, a map-style data set, or an iterable of batches.

    Returns:
        The batch.

    Raises:
        DataError: If there are no samples, or batches that cannot be joined.
    """
    if isinstance(data, list) and all(isinstance(part, tuple | list) for part in data):
        if [len(part) for part in data] == [2, 2]:
            raise DataError(
                "a list of two pairs may be two batches or one; give a tuple (inputs, targets), "
                "or a DataLoader"
            )
    elif isinstance(data, Batch | Mapping) or _is_pair(data):
        return read_batch(data)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        size = len(data)  # type: ignore[arg-type]
        return read_batch(default_collate([data[i] for i in range(size)]))
    if isinstance(data, Tensor | np.ndarray | str) or not isinstance(data, Iterable):
        raise DataError(_PAIR)
    batches = [read_batch(item) for item in data]
    if not batches:
        raise DataError("there is no batch of data")
    whole = join(batches)
    if whole is None:
        raise DataError(
            "the batches of the loader have different shapes and cannot be joined into one; give "
            "the loader to hr.CurvatureOperator(model, loss, loader), which reads them one by one"
        )
    return whole


def join(batches: list[Batch]) -> Batch | None:
    """Batches one after the other, as one.

    Args:
        batches: At least one.

    Returns:
        The batch; None if their tensors do not fit together.
    """
    flags = batches[0].batched
    if any(batch.batched != flags for batch in batches):
        return None
    joined = []
    for flag, first, *rest in zip(flags, *(b.tensors() for b in batches), strict=True):
        for leaf in rest:
            same = first.shape[1:] == leaf.shape[1:] if flag else torch.equal(first, leaf)
            if not same or first.dtype != leaf.dtype:
                return None
        joined.append(torch.cat([first, *rest]) if flag else first)
    leaves = iter(joined)
    whole = batches[0].map(lambda _: next(leaves))
    return replace(whole, samples=sum(batch.samples for batch in batches))


def _is_pair(data: Any) -> bool:
    """Whether something is (inputs, targets), not two dict-like batches."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        return False
    return not all(isinstance(part, Mapping) and set(_LABELS) & part.keys() for part in data)


def _opened(tree: Any, marked: set[int]) -> Any:
    """Arrays as tensors, dict-like containers as dicts, marks of shared tensors noted."""
    if isinstance(tree, Shared):
        found = _opened(tree.value, marked)
        marked.update(id(leaf) for leaf in tensors_of(found))
        return found
    if isinstance(tree, np.ndarray):
        if tree.dtype.kind not in "biufc" or tree.dtype.itemsize > 8 << (tree.dtype.kind == "c"):
            raise DataError(f"an array of type {tree.dtype} holds no numbers that torch knows")
        return torch.from_numpy(np.array(tree, dtype=tree.dtype.newbyteorder("="), order="C"))
    if isinstance(tree, Mapping):
        return {name: _opened(part, marked) for name, part in tree.items()}
    if isinstance(tree, list) and tree and all(isinstance(n, int | float) for n in tree):
        return torch.tensor(tree)
    if isinstance(tree, tuple | list):
        parts = [_opened(part, marked) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return map_tensors(tree, lambda leaf: leaf.detach().clone())


def _check_values(what: str, leaf: Tensor, batched: bool, finite: bool) -> None:
    """Refuse what cannot be data; a mask beside the inputs may be infinite."""
    if batched and not leaf.numel():
        raise DataError(f"the {what} are empty (shape {tuple(leaf.shape)})")
    if not leaf.is_floating_point() or leaf.layout != torch.strided:
        return
    bad = ~torch.isfinite(leaf) if finite and batched else torch.isnan(leaf)
    if bool(bad.any()):
        where = f"first in sample {int(bad.nonzero()[0, 0])}" if batched else "in a shared tensor"
        raise DataError(f"the {what} have NaN or infinite values, {where}")
