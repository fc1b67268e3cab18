"""How torch differentiates here: its modes meanwhile, and first derivatives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hessrmt.problems.plugins import explained, same_folder

if TYPE_CHECKING:
    from hessrmt.arrays import Vector


@contextmanager
def _all_bits() -> Iterator[None]:
    """Multiply float32 with all its bits: cuDNN's convolutions use 11 of 24 by default."""
    library: Any = torch.backends
    with ExitStack() as undo:
        try:
            _change(undo, library.cudnn, "allow_tf32", False)
            if (precision := torch.get_float32_matmul_precision()) != "highest":
                undo.callback(torch.set_float32_matmul_precision, precision)
                torch.set_float32_matmul_precision("highest")
            for kind in ("conv", "rnn"):  # which only the newer names can change
                place = getattr(library.mkldnn, kind, None)
                if getattr(place, "fp32_precision", "none") != "none":
                    _change(undo, place, "fp32_precision", "ieee")
        except RuntimeError:  # the caller has set some by torch's newer names, which exclude these
            for part, kinds in (("cudnn", "conv rnn"), ("mkldnn", "conv rnn matmul")):
                for kind in kinds.split():
                    place = getattr(getattr(library, part), kind)
                    _change(undo, place, "fp32_precision", "ieee")
            _change(undo, library.cuda.matmul, "fp32_precision", "ieee")
        yield


def _change(undo: ExitStack, place: Any, name: str, value: Any) -> None:
    """Set an attribute for the time being."""
    undo.callback(setattr, place, name, getattr(place, name))
    setattr(place, name, value)


@contextmanager
def ordinary_mode() -> Iterator[None]:
    """Gradients on, inference mode, mixed and reduced precision off, whatever the caller has set.

    The network and the loss can't change the working folder for what comes after.

    Also a decorator, of every public function that differentiates. Under ``torch.no_grad()`` every
    second derivative would silently be zero. What torch cannot do becomes an error of ours here:
    a ProblemError for any RuntimeError but that a device has no room.

    Yields:
        None.
    """
    with (
        same_folder(),
        explained(RuntimeError, "torch cannot differentiate this loss as it must be"),
        torch.inference_mode(mode=False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
        _all_bits(),
    ):
        yield


def of_parts() -> Any:
    """Say so if a network or a loss that is run on a part of its data needs all of it.

    Returns:
        A context in which every error but ours, and but that a device has no room, is a
        ProblemError.
    """
    return explained(Exception, "the network or the loss cannot be run on a part of the data")


def derivatives(
    value: Tensor, leaves: Sequence[Tensor], *, graph: bool = False
) -> Sequence[Tensor]:
    """The derivatives of a number; zeros where there is no way to it.

    Args:
        value: The number.
        leaves: By what.
        graph: Whether to keep the graph of the derivatives.

    Returns:
        Of the shapes of the leaves.
    """
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return torch.autograd.grad(
        value, leaves, create_graph=graph, materialize_grads=True, allow_unused=True
    )


def gradient_vector(loss: Tensor, parameters: Sequence[Tensor]) -> Vector:
    """The gradient of a loss.

    Args:
        loss: One number.
        parameters: By what.

    Returns:
        (P,) in their order, without a graph; zeros where there is no way to the loss.
    """
    found = derivatives(loss, parameters)
    return torch.cat([part.detach().to_dense().reshape(-1) for part in found])
