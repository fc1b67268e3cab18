"""The normalised loss during training: what [G] advises practitioners to watch (discussion)."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hessrmt.errors import DataError, GeneralizationError
from hessrmt.generalization import networks
from hessrmt.generalization.evaluation import batches_of, evaluate, pair
from hessrmt.generalization.normalize import (
    OUTPUT,
    checked_norm,
    effective_weights,
    layer_factors,
    normalize,
    output_factor,
)
from hessrmt.problems.losses import resolve

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import nn

    from hessrmt.generalization.layers import Layer
    from hessrmt.problems.losses import Loss

_CHECKED = 64
"""Samples of the first batch on which homogeneity is checked."""


@dataclass(frozen=True)
class Measurement:
    """One entry of the history of a :class:`NormalizedLoss`.

    Attributes:
        step: Which call it was, from 0.
        samples: How many samples were measured.
        loss: Mean loss of f.
        normalized_loss: Mean loss of f̃ = f/Πρ_k.
        factors: Name of the layer to ρ_k.
        error: Share of samples classified wrongly; None where targets are no class labels.
        margin: Smallest margin of f; None where targets are no class labels.
    """

    step: int
    samples: int
    loss: float
    normalized_loss: float
    factors: Mapping[str, float]
    error: float | None
    margin: float | None

    @property
    def product(self) -> float:
        """Πρ_k."""
        return math.prod(self.factors.values())

    @property
    def normalized_margin(self) -> float | None:
        """Smallest margin of f̃, or None."""
        return None if self.margin is None else self.margin / self.product


class NormalizedLoss:
    """Measures the loss of the normalised network in a training loop of one's own.

    >>> monitor = NormalizedLoss(model, "cross-entropy")
    >>> for epoch in range(epochs):
    ...     train(model)
    ...     print(monitor(test_loader))

    f̃ = f/Πρ_k, so that nothing is rescaled: the network is run in evaluation mode without
    gradients, and its flags are restored. The data are not copied. Layers are found, and the
    network is checked to be homogeneous, in the first call.

    Args:
        model: The network in training; its parameters are read afresh in every call.
        loss: ``"cross-entropy"``, ``"mse"``, ``"file.py:function"`` or a callable
            (outputs, targets) -> scalar mean over the batch.
        norm: p of the norms of the weights, at least 1.
        every: Measure in every so manieth call, the first included, and give the last value in
            between.
        reference: A fixed image or batch: normalise by the norm of the output on it, as
            :func:`~hessrmt.generalization.normalize.output_normalize`, for networks that are not
            homogeneous.

    Attributes:
        history: What was measured, in order.

    Raises:
        GeneralizationError: If ``norm`` or ``every`` cannot be used.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: str | Loss = "cross-entropy",
        norm: float = 2,
        every: int = 1,
        reference: Any = None,
    ) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise GeneralizationError(f"every is {every!r}; expected a number of calls from 1 on")
        self.model = networks.unwrapped(model)
        self.loss = resolve(loss)
        self.norm = checked_norm(norm)
        self.every = every
        self.reference = reference
        self.history: list[Measurement] = []
        self._calls = 0
        self._layers: tuple[Layer, ...] | None = None

    def __call__(self, x: Any, y: Any = None) -> float:
        """Measure on a batch, or on all batches of a loader.

        Args:
            x: Inputs; without ``y`` a pair (inputs, targets), or an iterable of such pairs, which
                is gone through once.
            y: Targets.

        Returns:
            Mean loss of the normalised network; the last value where this call is left out.
        """
        step, self._calls = self._calls, self._calls + 1
        if step % self.every and self.history:
            return self.history[-1].normalized_loss
        batches = batches_of(x, y)
        if self.reference is None and self._layers is None:
            batches = self._find_layers(batches)
        factors = self._factors()
        found = evaluate(self.model, batches, self.loss, math.prod(factors.values()))
        margin = None if found.margins is None else found.margins.minimum
        self.history.append(
            Measurement(
                step,
                found.samples,
                found.loss,
                found.normalized_loss,
                factors,
                found.error,
                margin,
            )
        )
        return found.normalized_loss

    def _find_layers(self, batches: Iterable[tuple[Any, Any]]) -> Iterable[tuple[Any, Any]]:
        """Check the network on the first samples; gives all batches back."""
        rest = iter(batches)
        first = next(rest, None)
        if first is None:
            raise DataError("there are no samples to measure; give at least one batch (x, y)")
        some = networks.take(pair(first)[0], slice(_CHECKED))
        self._layers = normalize(self.model, some, self.norm).layers
        return itertools.chain([first], rest)

    def _factors(self) -> dict[str, float]:
        with networks.evaluating(self.model):
            if self._layers is not None:
                return layer_factors(effective_weights(self.model, self._layers), self.norm)
            inputs = networks.moved(self.reference, networks.device_of(self.model))
            return {OUTPUT: output_factor(networks.outputs(self.model, inputs), self.norm)}
