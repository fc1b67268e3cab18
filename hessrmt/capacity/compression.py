"""A network's weights, compressed: quantised, pruned, or of low rank.

Each tensor is compressed by itself, as it is stored; a convolution's as the matrix with a row for
each output channel. What is compared are the weights, so that nothing is trained again afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from hessrmt import rng
from hessrmt.checks import one_of, real, whole

Weights = Mapping[str, Tensor]

_MOST = 0.999
"""Largest share that may be removed."""


class Method(NamedTuple):
    """A way to compress.

    Attributes:
        kind: ``bits`` if its strength is a number of bits, ``share`` if it is what is removed.
        words: What it does.
        apply: (rows, columns) float64 weights, strength and a source of randomness to new weights.
    """

    kind: str
    words: str
    apply: Callable[[Tensor, float, torch.Generator], Tensor]


def _rounded(values: Tensor, bits: float, _: torch.Generator, *, rows: bool = False) -> Tensor:
    """Symmetric, 2^(bits - 1) - 1 steps of one size on either side of zero."""
    size = values.abs()
    top = size.amax(dim=1, keepdim=True) if rows else size.amax()
    step = top / (2 ** (int(bits) - 1) - 1)
    return torch.where(step > 0, (values / step).round() * step, values)


def _channels(values: Tensor, bits: float, draw: torch.Generator) -> Tensor:
    return _rounded(values, bits, draw, rows=True)


def _without_least(values: Tensor, order: Tensor, share: float) -> Tensor:
    """Zeros in the places whose numbers in ``order`` are least."""
    count = int(share * order.numel())
    mask = torch.ones(order.numel(), dtype=torch.bool)
    mask[order.ravel().argsort(stable=True)[:count]] = False
    return values * mask.view(order.shape)


def _magnitude(values: Tensor, share: float, _: torch.Generator) -> Tensor:
    return _without_least(values, values.abs(), share)


def _random(values: Tensor, share: float, draw: torch.Generator) -> Tensor:
    return _without_least(values, torch.rand(values.shape, generator=draw), share)


def _rows(values: Tensor, share: float, _: torch.Generator) -> Tensor:
    return _without_least(values, values.norm(dim=1, keepdim=True), share)


def _low_rank(values: Tensor, share: float, _: torch.Generator) -> Tensor:
    left, singular, right = torch.linalg.svd(values, full_matrices=False)
    kept = max(1, math.ceil((1 - share) * len(singular)))
    return (left[:, :kept] * singular[:kept]) @ right[:kept]


METHODS: dict[str, Method] = {
    "uniform": Method("bits", "quantised, one step for each tensor", _rounded),
    "channels": Method("bits", "quantised, one step for each output", _channels),
    "magnitude": Method("share", "pruned, the smallest weights", _magnitude),
    "random": Method("share", "pruned, weights at random", _random),
    "rows": Method("share", "pruned, the outputs of smallest norm", _rows),
    "low-rank": Method("share", "the smallest singular values left out", _low_rank),
}
"""Name of a way to compress to it."""


def compress(
    state: Weights, names: Collection[str], method: str, strength: float, seed: int = 0
) -> dict[str, Tensor]:
    """Compress some tensors of a network.

    Args:
        state: Name to tensor.
        names: Of those to compress, matrices or kernels of convolutions (c_out, ...).
        method: One of :data:`METHODS`.
        strength: Bits, 2 to 16, or the share that is removed, of weights, outputs or singular
            values, 0 to 0.999.
        seed: Of weights pruned at random.

    Returns:
        All tensors, the others as they are.

    Source: the ways themselves: Cheng, Wang, Zhou and Zhang 2017.
    """
    one_of("method", method, METHODS)
    if METHODS[method].kind == "bits":
        whole("bits", int(strength) if strength == int(strength) else strength, 2)
        real("bits", strength, most=16)
    else:
        real("share removed", strength, least=0, most=_MOST)
    found = dict(state)
    for name in names:
        values = state[name]
        matrix = values.detach().double().reshape(len(values), -1)
        draw = rng.torch_generator(seed, "compression", name, repr(strength))
        made = METHODS[method].apply(matrix, strength, draw)
        found[name] = made.to(values.dtype).reshape(values.shape)
    return found
