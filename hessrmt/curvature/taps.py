"""What enters some layers of a network, and what comes back to them from its outputs."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hessrmt import rng
from hessrmt.problems.problem import find_structure
from hessrmt.problems.structure import hooked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hessrmt.problems.problem import Problem
    from hessrmt.problems.structure import Hook, Layer

_TRIAL = 3
"""Samples on which the network is tried out."""


class IrregularError(Exception):
    """A layer is not used on every part of the batch as it was in the trial."""


def find_layers(problem: Problem) -> tuple[Layer, ...]:
    """The layers of a network whose samples do not mix, in the order of execution.

    Args:
        problem: In its final precision and place, with one output row for each sample.

    Returns:
        Layers called exactly once with the batch first, whose parameters reach the outputs in no
        other way. Parameters outside them are for others to treat.
    """
    part = problem.part(slice(0, min(problem.samples, _TRIAL)))
    found = tuple(layer for layer in find_structure(part, of_loss=False).layers if layer.positions)
    while found:  # a layer that mixes samples can only be seen once layers are no longer cut
        with tapped(found, part.samples) as taps:
            outputs = part.outputs(part.theta)
        some = torch.zeros(part.samples, dtype=torch.bool, device=outputs.device)
        some[part.samples // 2] = True
        generator = rng.torch_generator(0, "taps")
        draw = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
        cotangent = draw.view(part.samples, -1) * some[:, None]
        deltas = taps.pull(outputs, cotangent.view_as(outputs))
        mixed = {
            layer.name
            for layer, delta in zip(found, deltas, strict=True)
            if bool(delta[~some].count_nonzero())
        }
        if not mixed:
            break
        found = tuple(layer for layer in found if layer.name not in mixed)
    return found


def samples_are_apart(problem: Problem, outputs: Tensor) -> bool:
    """Whether parts of the batch, run alone, give the outputs that they give in the batch.

    Args:
        problem: In its final precision and place.
        outputs: Of the whole batch.

    Returns:
        False also if the outputs cannot be dealt out evenly to the samples.
    """
    count = problem.samples
    if outputs.dim() == 0 or outputs.numel() % count or outputs.shape[0] % count:
        return False
    if count == 1:
        return True
    allowed = torch.finfo(outputs.dtype).eps ** 0.5 * float(outputs.abs().max())
    expected = outputs.reshape(count, -1)
    for part in (slice(0, 1), slice(1, count)):
        found = _outputs_alone(problem.part(part))
        if found is None:  # it needs its whole batch
            return False
        if found.numel() != expected[part].numel():
            return False
        difference = found.reshape(expected[part].shape) - expected[part]
        if not bool(difference.abs().max() <= allowed):
            return False
    return True


class Taps:
    """Inputs and outputs of some layers in one run of the network.

    Attributes:
        entering: Layer name to its input.
        leaving: Layer name to its output, a place from which derivatives can be taken.
    """

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        self._layers = layers
        self.entering: dict[str, Tensor] = {}
        self.leaving: dict[str, Tensor] = {}

    def pull(self, outputs: Tensor, cotangent: Tensor) -> tuple[Tensor, ...]:
        """Derivatives of ⟨cotangent, outputs⟩ in the layers' outputs.

        Args:
            outputs: Of the run.
            cotangent: Of the shape of ``outputs``.

        Returns:
            One tensor for each layer, zero where the outputs do not depend on it.
        """
        places = [self.leaving[layer.name] for layer in self._layers]
        if not outputs.requires_grad:
            return tuple(torch.zeros_like(place) for place in places)
        return torch.autograd.grad(
            outputs, places, cotangent, retain_graph=True, materialize_grads=True
        )


@contextmanager
def tapped(layers: tuple[Layer, ...], samples: int) -> Iterator[Taps]:
    """Record the layers' inputs and outputs for the time of a ``with`` block.

    The parameters should not require gradients: nothing is then kept for backward before the first
    of the layers.

    Args:
        layers: Which.
        samples: Length of the batch that is run.

    Yields:
        The record, complete at the end of the block.

    Raises:
        IrregularError: If a layer is not called exactly once with the batch first.
    """
    taps = Taps(layers)

    def record(name: str) -> Hook:
        def hook(entering: Tensor, leaving: Tensor) -> Tensor:
            if name in taps.entering or not len(entering) == len(leaving) == samples:
                raise IrregularError
            if not leaving.requires_grad:
                leaving = leaving.detach().requires_grad_()
            taps.entering[name] = entering.detach()
            taps.leaving[name] = leaving
            return leaving.clone()  # the model may work in place

        return hook

    with hooked({layer.name: layer.module for layer in layers}, record):
        yield taps
    if len(taps.entering) != len(layers):
        raise IrregularError


def _outputs_alone(part: Problem) -> Tensor | None:
    """Outputs of a part of the batch; None if the network cannot run on it."""
    try:
        with torch.no_grad():
            return part.outputs(part.theta)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever the user's network raises
        return None
