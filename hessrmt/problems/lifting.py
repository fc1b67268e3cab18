"""How a network is run: in float64 throughout, by operations that torch can differentiate twice.

Many networks compute some parts in float32 whatever they are asked for: norms, rotary tables and
softmax cast to it, hidden states and masks are made in it. In float64 such casts are casts to
float64, and what is made in the default precision is made in float64. A user who wants the network
in its own precision says ``dtype="float32"``: then nothing is lifted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.utils import _pytree
from torch.utils import checkpoint as torch_checkpoint

from hessrmt.errors import ProblemError, let_pass
from hessrmt.problems.batches import Intercepting, map_tensors
from hessrmt.problems.equivalents import EQUIVALENT, KERNELS

_WIDE = dict.fromkeys((torch.float16, torch.bfloat16, torch.float32), torch.float64)
_WIDE |= dict.fromkeys((torch.complex32, torch.complex64), torch.complex128)
"""Narrow types and what they become. Types of 8 bits are left: rounding to them is meant."""

_CASTS = {
    Tensor.float: torch.float32,
    Tensor.half: torch.float16,
    Tensor.bfloat16: torch.bfloat16,
    Tensor.cfloat: torch.complex64,  # pyright: ignore[reportAttributeAccessIssue]
    Tensor.chalf: torch.complex32,
}

_LEGACY = {k.__name__: k.dtype for k in (torch.FloatTensor, torch.HalfTensor, torch.BFloat16Tensor)}

_BITS = (Tensor.view, torch.frombuffer)
"""A type that is given to these says how bits are read."""


@dataclass
class Inside:
    """What running a network has shown of it.

    Attributes:
        own: Floating-point type of the model as it was given.
        lifted: Narrower types for which it asked inside and got float64.
        keeps_data: Whether it leaves its inputs and targets as they are; None before it was run.
        own_loss: Loss of the model as it was given, in its own precision; None before the problem
            was evaluated, and where the model can't be run as it is.
        own_kernels: Whether fused kernels are used that torch can differentiate only once.
    """

    own: torch.dtype
    lifted: set[torch.dtype] = field(default_factory=set)
    keeps_data: bool | None = None
    own_loss: float | None = None
    own_kernels: bool = False


def _spelled_out(function: Any, arguments: Any) -> tuple[Any, Any]:
    """A cast in any spelling as ``Tensor.to`` with a type."""
    if function in _CASTS:
        return Tensor.to, (arguments[0], _CASTS[function], *arguments[1:])
    if len(arguments) < 2:
        return function, arguments
    source, wanted, *rest = arguments
    if isinstance(wanted, Tensor):  # the type and the place of another tensor
        return Tensor.to, (source, wanted.device, wanted.dtype, *rest)
    legacy = _LEGACY.get(str(getattr(wanted, "__name__", wanted)).rsplit(".", 1)[-1])
    return (function, arguments) if legacy is None else (Tensor.to, (source, legacy, *rest))


_SPELLED = {*_CASTS, Tensor.to, Tensor.type, Tensor.type_as}


def _widened(function: Any, arguments: Any, keywords: Any) -> tuple[Any, Any] | None:
    """Arguments of equal type, where some are of float64 and some narrower.

    Returns:
        None where there is nothing to do, or where the function writes into one of them.
    """
    name = getattr(function, "__name__", "")
    writes = "out" in keywords or name.startswith(("__i", "__set"))
    if writes or (name.endswith("_") and not name.endswith("__")):
        return None
    tree = (arguments, keywords)
    kinds = {leaf.dtype for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, Tensor)}
    if not kinds & set(_WIDE) or not kinds & set(_WIDE.values()):
        return None
    return _pytree.tree_map_only(Tensor, lambda a: a.to(_WIDE.get(a.dtype, a.dtype)), tree)


def require_wide(loss: Tensor) -> None:
    """Refuse a float64 loss with a part in a narrower type that could not be lifted.

    Args:
        loss: With its graph.

    Raises:
        ProblemError: If a result in the graph has a narrow type.
    """
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        for result in node._input_metadata:
            if result.dtype in _WIDE:
                kind = str(result.dtype).removeprefix("torch.")
                raise ProblemError(
                    f"a part of the network or of the loss computes in {kind} in a float64 run "
                    f"(at {node.name()}): it writes into a tensor of {kind}, or casts where that "
                    "can't be seen (TorchScript, a custom kernel). Make that float64 (x.new_zeros, "
                    'x.dtype), or take the network in its own precision with dtype="float32"'
                )
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]


class _NoCheckpoints:
    """Stands in for torch's way of forgetting intermediate results and computing them again.

    That happens within the backward pass, where nothing is lifted, and ``torch.func`` knows no way
    through it.
    """

    @staticmethod
    def apply(function: Callable[..., Any], _preserve: bool, *arguments: Any) -> Any:
        return function(*arguments)

    @staticmethod
    def generator(*_arguments: Any, **_options: Any) -> Iterator[None]:
        yield


@contextmanager
def as_written() -> Iterator[None]:
    """Run what is checkpointed as if it weren't, and what is compiled as Python.

    Yields:
        None.
    """
    new = {
        "CheckpointFunction": _NoCheckpoints,
        "_checkpoint_without_reentrant_generator": _NoCheckpoints.generator,
    }
    kept = {name: getattr(torch_checkpoint, name) for name in new}
    torch_checkpoint.__dict__.update(new)
    compiles = "torch._dynamo" in sys.modules
    try:
        with torch.compiler.set_stance("force_eager") if compiles else nullcontext():
            yield
    finally:
        torch_checkpoint.__dict__.update(kept)


@contextmanager
def running(
    inside: Inside,
    dtype: torch.dtype,
    data: Any = None,
    *,
    check: bool = False,
    own: tuple[tuple[Tensor, Tensor], ...] = (),
    lift: bool = True,
) -> Iterator[Any]:
    """Run a network or a loss so that it is one function in one precision, twice differentiable.

    Args:
        inside: Where to say what was lifted.
        dtype: Precision of the run; only in float64 something is lifted.
        data: What it is run on.
        check: Whether to look at the values of class labels.
        own: Tables of embeddings with a row for padding: as they are given, and as they are.
        lift: Whether to lift at all.

    Yields:
        The data; a copy where it may write into them.
    """
    data = data if inside.keeps_data else map_tensors(data, Tensor.clone)
    more: dict[Any, dict[str, Any]] = {F.embedding: {"own": own}}
    more |= {loss: {"check": check} for loss in (F.cross_entropy, F.binary_cross_entropy)}
    lift, default = lift and dtype == torch.float64, torch.get_default_dtype()

    def operation(function: Any, arguments: Any, keywords: dict[str, Any]) -> Any:
        """By its equivalent, and in float64 where it asks for less."""
        if function in EQUIVALENT and not (inside.own_kernels and function in KERNELS):
            keywords = keywords | more.get(function, {})
            function = EQUIVALENT[function]
        if not lift:
            return function(*arguments, **keywords)
        if function in _SPELLED:
            function, arguments = _spelled_out(function, arguments)
        kinds = [a for a in arguments if type(a) is torch.dtype]
        kind = kinds[-1] if kinds else keywords.get("dtype")
        if kind in _WIDE and function not in _BITS:  # asked for a narrow type, asked for the wide
            source = arguments[0] if arguments and isinstance(arguments[0], Tensor) else None
            if source is None or source.is_floating_point() or source.is_complex():
                inside.lifted.add(kind)
            widen = lambda a: _WIDE.get(a, a) if type(a) is torch.dtype else a  # noqa: E731
            found = function(*map(widen, arguments), **{k: widen(v) for k, v in keywords.items()})
            # a cast that in the model's own precision makes a new tensor makes one here, too: the
            # model may go on to work on it in place
            return found.clone() if found is source and kind != inside.own else found
        try:
            return function(*arguments, **keywords)
        except RuntimeError as error:
            let_pass(error)
            widened = _widened(function, arguments, keywords)
            if widened is None:
                raise
        return function(*widened[0], **widened[1])

    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch.set_default_dtype(torch.float64 if lift else default)
    try:
        with as_written(), Intercepting(operation):
            yield data
    finally:
        torch.set_default_dtype(default)
        torch.backends.mha.set_fastpath_enabled(fastpath)


def called(model: Callable[..., Any], inputs: Any) -> Any:
    """A network on a batch: a tuple is positional, a dict keyword arguments.

    Args:
        model: The network.
        inputs: As :class:`~hessrmt.problems.problem.Problem` takes them.

    Returns:
        Its outputs.
    """
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)
