"""Losses of a network and of its normalised form, and its margins, in one pass over the data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from hessrmt.errors import DataError, GeneralizationError, NonFiniteError
from hessrmt.generalization import networks
from hessrmt.generalization.margins import MarginSummary, of_outputs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from hessrmt.problems.losses import Loss


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A network measured on some samples.

    Attributes:
        samples: How many.
        loss: Mean loss of f.
        normalized_loss: Mean loss of f̃ = f/Πρ_k.
        margins: Margins; None where targets are no class labels.
    """

    samples: int
    loss: float
    normalized_loss: float
    margins: MarginSummary | None

    @property
    def error(self) -> float | None:
        """Share of samples that are classified wrongly, the same for f and f̃."""
        return None if self.margins is None else self.margins.error


def evaluate(
    model: nn.Module, batches: Iterable[tuple[Any, Any]], loss: Loss, product: float
) -> Evaluation:
    """Measure a network; f̃ is what f gives, divided in float64.

    Args:
        model: The network, run as it is in evaluation mode; its flags are restored.
        batches: Inputs and targets; moved to the model's device.
        loss: (outputs, targets) -> scalar mean over the batch.
        product: Πρ_k.

    Returns:
        Means over all samples, each counted once.

    Raises:
        DataError: If there are no samples.
        GeneralizationError: If the loss fails.
        NonFiniteError: If a loss is NaN or infinite.
    """
    device = networks.device_of(model)
    total, normalized, samples = 0.0, 0.0, 0
    found: list[np.ndarray] | None = []
    with networks.evaluating(model):
        for batch in batches:
            x, y = pair(batch)
            inputs, targets = networks.moved(x, device), networks.moved(y, device)
            outputs = networks.outputs(model, inputs).double()
            if isinstance(targets, Tensor) and targets.is_floating_point():
                targets = targets.double()
            labelled = isinstance(targets, Tensor) and not targets.is_floating_point()
            if found is not None and labelled and outputs.dim() <= 2:
                found.append(of_outputs(outputs, targets))
            else:
                found = None
            count = len(outputs)
            try:
                total += count * float(loss(outputs, targets))
                normalized += count * float(loss(outputs / product, targets))
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                raise GeneralizationError(
                    f"the loss failed on outputs {tuple(outputs.shape)}: {error}"
                ) from error
            samples += count
    if not samples:
        raise DataError("there are no samples to measure; give at least one batch (x, y)")
    if not math.isfinite(total) or not math.isfinite(normalized):
        raise NonFiniteError(
            f"the mean loss is {total / samples}, of the normalised network "
            f"{normalized / samples}; the parameters or the data are out of range"
        )
    summary = None if not found else MarginSummary(np.concatenate(found), product)
    return Evaluation(samples, total / samples, normalized / samples, summary)


def batches_of(x: Any, y: Any = None) -> Iterable[tuple[Any, Any]]:
    """A batch or a loader as an iterable of batches; nothing is copied.

    Args:
        x: Inputs; without ``y`` a pair (inputs, targets) of tensors, or an iterable of pairs.
        y: Targets, or None.

    Returns:
        Pairs (inputs, targets).

    Raises:
        DataError: If it is neither.
    """
    if y is not None:
        return [(x, y)]
    two = isinstance(x, tuple | list) and len(x) == 2
    if two and all(isinstance(part, Tensor | np.ndarray) for part in x):
        return [(x[0], x[1])]
    if not hasattr(x, "__iter__"):
        raise DataError(f"got {type(x).__name__}; expected inputs and targets, or a loader of them")
    return x


def pair(batch: Any) -> tuple[Any, Any]:
    """A batch as inputs and targets.

    Args:
        batch: What a loader gives.

    Returns:
        The two.

    Raises:
        DataError: If it is no pair.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise DataError(f"a batch is a {type(batch).__name__}; expected a pair (inputs, targets)")
    return batch[0], batch[1]
